"""The queue between the threads that receive requests and the thread that runs one version.

Many threads put and cancel, one thread takes. What waits is bounded in rows, not requests, and a
cancelled call gives its rows and its tensors back at once. A take returns calls that may share a run of the model
(same `group`), the longest waiting first: with no linger an idle executor gets what is there
immediately, and batches form by themselves from what arrives while it runs. A lone request is
never held back for company unless the operator asked for it.

Cancelled and expired calls never come out as work. They stay as dead entries until a take reaches
them, so that cancelling is O(1) however long the queue is.

Why not `queue.Queue`: it bounds items, cannot take a group, and cannot give up what was cancelled.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from ..errors import UnavailableError
from .tensor import Tensor

Outcome = Mapping[str, Tensor] | Exception


class QueueClosedError(Exception):
    """The version was retired after the caller looked it up: look it up again."""


class Call:
    """One request on its way through a queue.

    Made by a service, then owned by the queue, then by the executor, which hands every call that
    was not cancelled exactly one outcome, through the call's `sink`: that gets all the outcomes of
    a batch at once, on the executor's thread, and arranges for each call's `finish`.
    """

    __slots__ = (
        "cancelled",
        "deadline",
        "enqueued",
        "event_time_ms",
        "expiry",
        "group",
        "id",
        "inputs",
        "outputs",
        "queued",
        "received_ms",
        "rows",
        "sink",
    )

    def __init__(
        self,
        *,
        id: str,
        inputs: Mapping[str, Tensor],
        rows: int,
        group: Hashable,
        outputs: tuple[str, ...],
        received_ms: int,
        event_time_ms: int | None = None,
        deadline: float | None = None,
        expiry: Exception | None = None,
        sink: "Sink | None" = None,
    ) -> None:
        self.id = id
        self.inputs = inputs
        self.rows = rows
        self.group = group  # calls of equal groups can be computed together
        self.outputs = outputs  # names, in the order of the reply
        self.received_ms = received_ms
        self.event_time_ms = event_time_ms
        self.deadline = deadline  # in the executor's clock; afterwards it is not run
        self.expiry = expiry  # what the caller is told when the deadline passed
        self.sink = sink or finish_here
        self.enqueued = 0.0
        self.queued = False
        self.cancelled = False

    def finish(self, outcome: Outcome) -> None:
        """Takes the outcome to whoever waits; called where the sink decides."""
        raise NotImplementedError


Sink = Callable[[list[tuple[Call, Outcome]]], None]


def finish_here(outcomes: list[tuple[Call, Outcome]]) -> None:
    """The sink that finishes calls on the executor's own thread."""
    for call, outcome in outcomes:
        call.finish(outcome)


@dataclass(frozen=True, slots=True)
class Taken:
    """What an executor should do next: compute `calls` together, tell `expired` so."""

    calls: list[Call]
    expired: list[Call]


@dataclass(frozen=True)
class QueueStats:
    """Counters since the queue was made, and what waits now."""

    waiting_rows: int
    cancelled: int  # calls that were cancelled before they ran
    expired: int  # calls whose deadline passed before they ran
    rejected: int  # calls that found the queue full


def linger_left(waiting_rows: int, waited_s: float, max_rows: int, linger_s: float) -> float:
    """Seconds that an idle executor should still wait for more rows; 0: run now."""
    return 0.0 if waiting_rows >= max_rows else max(0.0, linger_s - waited_s)


class RequestQueue:
    """A bounded queue of calls; see the module."""

    def __init__(
        self,
        max_rows: int,
        *,
        linger_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rows = max_rows
        self._linger_s = linger_s
        self._clock = clock
        # Protects every field below.
        self._condition = threading.Condition(threading.Lock())
        self._order: deque[Call] = deque()  # by arrival, dead entries included
        self._groups: dict[Hashable, deque[Call]] = {}  # the same calls by group
        self._rows = 0  # of live entries
        self._idle = False  # somebody waits in take
        self._closed = False
        self._cancelled = self._expired = self._rejected = 0

    def __repr__(self) -> str:
        return f"<RequestQueue {self._rows}/{self._max_rows} rows{' closed' * self._closed}>"

    def put(self, call: Call) -> None:
        """Queues a call. Raises UnavailableError when full, QueueClosedError after `close`.

        A call larger than the whole queue is taken when nothing else waits.
        """
        call.enqueued = self._clock()
        with self._condition:
            if self._closed:
                raise QueueClosedError
            if self._rows and self._rows + call.rows > self._max_rows:
                self._rejected += 1
                raise UnavailableError("Exceeds maximum queue size")
            call.queued = True
            self._rows += call.rows
            self._order.append(call)
            group = self._groups.get(call.group)
            if group is None:
                group = self._groups[call.group] = deque()
            group.append(call)
            if self._idle:
                self._condition.notify()

    def cancel(self, call: Call) -> None:
        """Nobody waits for this call any more: it is not run if it still waits."""
        with self._condition:
            call.cancelled = True
            if call.queued:
                call.queued = False
                call.inputs = {}  # nobody else has it, and a take may be long in coming
                self._rows -= call.rows
                self._cancelled += 1

    def take(self, max_rows: int) -> Taken | None:
        """The next calls to compute together: the first one whatever its size, then all of its
        group that fit into `max_rows`. Blocks while there is none; None: closed and empty.
        """
        with self._condition:
            while True:
                head = self._head()
                if head is not None:
                    waited = self._clock() - head.enqueued
                    left = linger_left(self._rows, waited, max_rows, self._linger_s)
                    if left == 0.0 or self._closed:
                        return self._gather(head, max_rows)
                elif self._closed:
                    return None
                self._idle = True
                self._condition.wait(None if head is None else left)
                self._idle = False

    def close(self) -> None:
        """No more calls; what waits can still be taken."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def empty(self) -> list[Call]:
        """Takes every waiting call out, so that its owner can be told."""
        with self._condition:
            calls = [call for call in self._order if call.queued]
            for call in calls:
                call.queued = False
            self._order.clear()
            self._groups.clear()
            self._rows = 0
            return calls

    def stats(self) -> QueueStats:
        with self._condition:
            return QueueStats(self._rows, self._cancelled, self._expired, self._rejected)

    def _head(self) -> Call | None:
        """The longest waiting live call; forgets the dead ones before it."""
        while self._order:
            call = self._order[0]
            if call.queued:
                return call
            self._order.popleft()
            self._forget_dead(call.group)
        return None

    def _gather(self, head: Call, max_rows: int) -> Taken:
        now = self._clock()
        calls: list[Call] = []
        expired: list[Call] = []
        rows = 0
        group = self._groups[head.group]
        while group:
            call = group[0]
            if call.queued:
                if call.deadline is not None and call.deadline <= now:
                    expired.append(call)
                    self._expired += 1
                elif calls and rows + call.rows > max_rows:
                    break
                else:
                    calls.append(call)
                    rows += call.rows
                call.queued = False
                self._rows -= call.rows
            group.popleft()
        if not group:
            del self._groups[head.group]
        self._head()  # lets go of what was just taken: an idle queue holds no tensors
        return Taken(calls, expired)

    def _forget_dead(self, key: Hashable) -> None:
        group = self._groups.get(key)
        if group is None:
            return
        while group and not group[0].queued:
            group.popleft()
        if not group:
            del self._groups[key]
