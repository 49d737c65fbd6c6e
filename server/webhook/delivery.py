"""Sends one receiver what waits in its outbox: in order, one at a time, on a thread of its own.

A receiver that is slow or dead holds up nobody but itself: the next message waits for the one before,
in its own outbox. What follows from a reply is retry.py's; here it is done. A message that is older
than `max_age_s` is given up.

`step` does one thing and says how long to wait; the thread is no more than that in a loop.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..events import wall_ms
from .message import Message
from .outbox import Outbox
from .retry import Reply, after

_log = logging.getLogger(__name__)

_END_S = 5.0  # that an attempt is given to end as the server stops


class Receiver(Protocol):
    """As Endpoint is one."""

    @property
    def shown(self) -> str: ...
    def post(self, message: Message, now_s: float) -> Reply: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WebhookStats:
    """Counts since the start."""

    name: str
    delivered: int = 0  # messages
    failed: int = 0  # attempts
    too_old: int = 0  # messages that were given up, as the two below
    refused: int = 0
    no_room: int = 0
    pending: int = 0
    problem: str = ""  # of the last attempt; empty: it succeeded

    @property
    def dropped(self) -> int:
        return self.too_old + self.refused + self.no_room


class Delivery:
    """See the module."""

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        receiver: Receiver,
        *,
        max_age_s: float,
        wall: Callable[[], int] = wall_ms,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._outbox = outbox
        self._receiver = receiver
        self._max_age_ms = round(max_age_s * 1000)
        self._wall = wall
        self._monotonic = monotonic
        self._draw = draw
        self._thread = threading.Thread(target=self._run, name=f"webhook {name}", daemon=True)
        self._arrived = threading.Condition()  # guards the two below
        self._woken = False
        self._stopping = False
        # The thread's own, read on any.
        self._head = ""  # id of the message that was tried last
        self._attempts = 0  # of it
        self._not_before = 0.0
        self._gone = False
        self._delivered = self._failed = self._too_old = self._refused = 0
        self._problem = ""

    def __repr__(self) -> str:
        return f"Delivery({self.stats})"

    @property
    def stats(self) -> WebhookStats:
        """On any thread."""
        return WebhookStats(
            self.name,
            self._delivered,
            self._failed,
            self._too_old,
            self._refused,
            self._outbox.overflowed,
            self._outbox.pending,
            self._problem,
        )

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something waits."""
        with self._arrived:
            self._woken = True
            self._arrived.notify()

    def stop(self) -> None:
        """What has not been delivered stays in the outbox."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._receiver.close()
        if self._thread.ident is not None:
            self._thread.join(_END_S)  # a name that nobody resolves may take longer: let it

    def step(self) -> float | None:
        """Seconds until the next step; None: not before something else waits."""
        message = self._outbox.first()
        if message is None or self._gone:
            return None
        now_ms = self._wall()
        if now_ms - message.time_ms > self._max_age_ms:
            self._too_old += 1
            self._give_up(message, f"nobody took it within {self._max_age_ms / 1000:g} s")
            return 0.0
        if (wait_s := self._not_before - self._monotonic()) > 0:
            return wait_s
        if message.id != self._head:
            self._head, self._attempts = message.id, 0
        reply = self._receiver.post(message, now_ms / 1000)
        if self._stopping and not reply.status:
            return None  # it was broken off
        self._attempts += 1
        decision = after(reply, self._attempts, now_ms / 1000, self._draw())
        if decision.action == "delivered":
            self._tell_recovery()
            self._delivered += 1
            self._outbox.done(message)
            return 0.0
        self._tell_failure(message, reply)
        if decision.action == "give up":
            self._refused += 1
            self._give_up(message, f"refused {self._attempts} times: {reply}")
            return 0.0
        if decision.action == "stop":
            self._gone = True
            _log.error(
                "webhook '%s': %s answers 410, gone: nothing is sent there until the server is "
                "started anew",
                self.name,
                self._receiver.shown,
            )
            return None
        self._not_before = self._monotonic() + decision.wait_s
        return decision.wait_s

    def _run(self) -> None:
        while True:
            try:
                wait_s = self.step()
            except Exception:  # noqa: BLE001  an edge
                _log.exception("webhook '%s'", self.name)
                wait_s = 60.0
            with self._arrived:
                if wait_s != 0.0 and not self._woken and not self._stopping:
                    self._arrived.wait(wait_s)
                self._woken = False
                if self._stopping:
                    return

    def _give_up(self, message: Message, why: str) -> None:
        _log.error("webhook '%s': %s is given up: %s", self.name, message.id, why)
        self._outbox.done(message)

    def _tell_failure(self, message: Message, reply: Reply) -> None:
        """Logs once until it succeeds again, or fails otherwise."""
        self._failed += 1
        if (problem := str(reply)) != self._problem:
            _log.warning(
                "webhook '%s': %s cannot be sent %s (%s): %s",
                self.name,
                self._receiver.shown,
                message.id,
                message.kind,
                problem,
            )
        self._problem = problem

    def _tell_recovery(self) -> None:
        if self._problem:
            _log.info("webhook '%s': %s takes messages again", self.name, self._receiver.shown)
        self._problem = ""
