"""What happens in the server, told to whoever listens and, where it is a decision, to the history.

`publish` may be called from any thread and never blocks on a listener: each subscriber has a queue
of its own, bounded, and one that cannot keep up is cut off with an error rather than waited for.
An event with `record=True` is written to the model's history first; if that fails (a full disk, a
lock that somebody does not let go of) it is counted and logged, and the listeners are still told.

Kinds: published, promoted, rolled_back, refused, held (a version waits for a human),
training_started, training_failed, waiting (there is a signal, but labels, cooldown … are lacking),
drift_warning, drift, drift_cleared, data_quality, data_quality_cleared, loaded, load_failed,
recovered, log_failed, log_recovered.
"""

import asyncio
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.registry.errors import RegistryError

from .errors import UnavailableError

_log = logging.getLogger(__name__)

MAX_WAITING_EVENTS = 1024  # per subscriber


class Recorder(Protocol):
    """The history of one model, as the registry's ModelDirectory has it."""

    def record(
        self,
        kind: str,
        *,
        actor: str,
        reason: str,
        version: int = 0,
        evidence: Mapping[str, Any] | None = None,
        event_time_ms: int | None = None,
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    sequence: int  # counts this server's events from 1
    time_ms: int  # wall clock
    event_time_ms: int  # the loop's clock
    model: str
    kind: str
    version: int = 0
    actor: str = ""
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def evidence_json(self) -> str:
        """The evidence as text; what JSON does not know is written as its str()."""
        return json.dumps(self.evidence, sort_keys=True, default=str)


@dataclass(frozen=True)
class EventStats:
    """Counts since the start."""

    published: Mapping[str, int]  # by kind
    subscribers: int
    cut_off: int  # subscribers that could not keep up
    not_recorded: int  # decisions that the history could not take


def wall_ms() -> int:
    """The wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class EventBus:
    """One per server."""

    def __init__(
        self,
        recorder_of: Callable[[str], Recorder] | None = None,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        """`recorder_of` gives a model's history by its name; without it nothing is recorded."""
        self._recorder_of = recorder_of
        self._wall = wall
        self._lock = threading.Lock()  # guards every field below
        self._sequence = 0
        self._subscriptions: set[Subscription] = set()
        self._counts: Counter[str] = Counter()
        self._cut_off = 0
        self._not_recorded = 0

    def __repr__(self) -> str:
        return f"EventBus({self.stats})"

    @property
    def stats(self) -> EventStats:
        with self._lock:
            return EventStats(
                dict(self._counts), len(self._subscriptions), self._cut_off, self._not_recorded
            )

    def publish(
        self,
        kind: str,
        model: str,
        *,
        version: int = 0,
        actor: str = "trimtab",
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
        event_time_ms: int | None = None,
        record: bool = False,
    ) -> Event:
        """Tells everybody; `record` also writes it into the model's history. Never raises for it."""
        evidence = dict(evidence or {})
        now_ms = self._wall()
        if record and self._recorder_of is not None:
            try:
                self._recorder_of(model).record(
                    kind,
                    actor=actor,
                    reason=reason,
                    version=version,
                    evidence=evidence,
                    event_time_ms=event_time_ms,
                )
            except Exception as error:  # noqa: BLE001  an edge
                surprise = None if isinstance(error, OSError | RegistryError) else error
                _log.error(
                    "model '%s': the history cannot take '%s' (%s): %s",
                    model,
                    kind,
                    reason,
                    error,
                    exc_info=surprise,
                )
                with self._lock:
                    self._not_recorded += 1
        with self._lock:
            self._sequence += 1
            self._counts[kind] += 1
            event = Event(
                sequence=self._sequence,
                time_ms=now_ms,
                event_time_ms=now_ms if event_time_ms is None else event_time_ms,
                model=model,
                kind=kind,
                version=version,
                actor=actor,
                reason=reason,
                evidence=evidence,
            )
            for subscription in list(self._subscriptions):
                if not subscription.offer(event):
                    self._subscriptions.discard(subscription)
                    self._cut_off += 1
        _log.info("%s %s%s: %s", model, kind, f" version {version}" if version else "", reason)
        return event

    def subscribe(self, model: str = "", limit: int = MAX_WAITING_EVENTS) -> "Subscription":
        """Every event from now on (of one model, or of all); called on the loop that iterates."""
        subscription = Subscription(self, model, limit)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """Ends every subscription, after what waits in it."""
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, set()
        for subscription in subscriptions:
            subscription.finish()

    def forget(self, subscription: "Subscription") -> None:
        """Called by a subscription that ends."""
        with self._lock:
            self._subscriptions.discard(subscription)


class Subscription:
    """One listener's queue: offered to from any thread, iterated on one event loop."""

    def __init__(self, bus: EventBus, model: str, limit: int) -> None:
        self._bus = bus
        self._model = model
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()  # guards the three below
        self._waiting: deque[Event] = deque()
        self._overflowed = False
        self._finished = False

    def offer(self, event: Event) -> bool:
        """Takes an event that it is for; False: it is full, and ends after what waits."""
        if self._model and event.model != self._model:
            return True
        with self._lock:
            if len(self._waiting) >= self._limit:
                self._overflowed = self._finished = True
            else:
                self._waiting.append(event)
            overflowed = self._overflowed
        self._wake()
        return not overflowed

    def finish(self) -> None:
        """No more events come."""
        with self._lock:
            self._finished = True
        self._wake()

    def close(self) -> None:
        """The listener has left."""
        self._bus.forget(self)

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events in order; UnavailableError if this listener was too slow for them."""
        try:
            while True:
                with self._lock:
                    waiting, finished = list(self._waiting), self._finished
                    self._waiting.clear()
                    self._arrived.clear()
                for event in waiting:
                    yield event
                if finished and not waiting:
                    break
                if not waiting:
                    await self._arrived.wait()
            if self._overflowed:
                raise UnavailableError(
                    f"this listener fell behind by {self._limit} events and was cut off: "
                    "call again, and read the history for what was missed"
                )
        finally:
            self.close()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # its event loop has closed, and with it the listener
            with self._lock:
                self._finished = True
                self._waiting.clear()
