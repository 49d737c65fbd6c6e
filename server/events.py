"""What happens in the server, told to whoever listens and, where it is a decision, to the history.

`publish` may be called from any thread and never blocks on a listener: each subscriber has a queue
of its own, bounded, and one that cannot keep up is cut off with an error rather than waited for.
An event with `record=True` is written to the model's history first; if that fails (a full disk, a
lock that somebody does not let go of) it is counted and logged, and the listeners are still told.
What others write into a history is published too, by who follows it; each entry is told once,
whichever of the two came first.

The newest events are kept, so that a listener who was away for a moment misses none. Their sequence
begins anew with every server; `run` tells whose it is.

Which kinds there are: `KINDS`; what each tells of: docs/loop.md.
"""

import asyncio
import json
import logging
import secrets
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trimtab.registry.errors import RegistryError
from trimtab.registry.history import HistoryEntry
from trimtab.registry.state import CHANGES

from .errors import UnavailableError

_log = logging.getLogger(__name__)

MAX_WAITING_EVENTS = 1024  # per subscriber
KEPT_EVENTS = 2048

KINDS = (
    *CHANGES,  # what the registry writes itself
    *("drift", "drift_cleared", "drift_warning", "drift_warning_cleared"),
    *("data_quality", "data_quality_cleared"),
    *("quality", "quality_cleared", "labels_one_sided", "labels_two_sided"),
    *("label_file_taken", "label_file_failed"),
    *("waiting", "training_started", "training_failed", "training_skipped", "data_broken"),
    *("training_cancelled", "training_progress"),
    *("refused", "held", "approval_wanted", "approved"),
    *("rollout_started", "rollout_step", "rollout_verdict", "rollout_ended"),
    *("loaded", "load_failed", "recovered", "log_failed", "log_recovered"),
)


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
    ) -> HistoryEntry | None: ...


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
    entry: HistoryEntry | None = None  # of the model's history; None: it has none

    @classmethod
    def of_entry(cls, model: str, entry: HistoryEntry) -> "Event":
        """An entry of a model's history; no server's run has numbered it."""
        return cls(
            sequence=0,
            time_ms=entry.time_ms,
            event_time_ms=entry.event_time_ms,
            model=model,
            kind=entry.kind,
            version=entry.version,
            actor=entry.actor,
            reason=entry.reason,
            evidence=entry.evidence,
            entry=entry,
        )

    def evidence_json(self) -> str:
        """The evidence as text; what JSON does not know is written as its str()."""
        return json.dumps(self.evidence, sort_keys=True, default=str)


class _Kept:
    """An event with its evidence as compressed text: a report on 30 features takes some 40 KB as
    objects and 1 KB like this."""

    __slots__ = ("_event", "_evidence")

    def __init__(self, event: Event, evidence: bytes) -> None:
        entry = event.entry
        bare = None if entry is None else replace(entry, evidence={})
        self._event = replace(event, evidence={}, entry=bare)
        self._evidence = evidence

    @staticmethod
    def packed(event: Event) -> bytes:
        return zlib.compress(event.evidence_json().encode(), 1)

    @property
    def sequence(self) -> int:
        return self._event.sequence

    @property
    def model(self) -> str:
        return self._event.model

    def event(self) -> Event:
        evidence = json.loads(zlib.decompress(self._evidence))
        entry = self._event.entry
        whole = None if entry is None else replace(entry, evidence=evidence)
        return replace(self._event, evidence=evidence, entry=whole)


@dataclass(frozen=True)
class EventStats:
    """Counts since the start."""

    published: Mapping[str, int]  # by kind
    subscribers: int
    cut_off: int  # subscribers that could not keep up
    not_recorded: int  # decisions that the history could not take


class HistoryMark:
    """How far a history was told of: up to an entry, and perhaps of some that come later."""

    def __init__(self, sequence: int = 0, hash: str = "") -> None:
        self.sequence = sequence  # all entries up to this one
        self.hash = hash  # of that entry
        self._beyond: dict[int, str] = {}

    def pass_(self, entry: HistoryEntry) -> bool:
        """Marks an entry as told of; False: it was already."""
        if entry.sequence <= self.sequence or entry.sequence in self._beyond:
            return False
        self._beyond[entry.sequence] = entry.hash
        while self.sequence + 1 in self._beyond:
            self.sequence += 1
            self.hash = self._beyond.pop(self.sequence)
        return True

    def copy(self) -> "HistoryMark":
        """Without those beyond."""
        return HistoryMark(self.sequence, self.hash)


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
        self.run = secrets.token_hex(8)
        self._began_ms = wall_ms()  # by the clock that the histories go by
        self._recorder_of = recorder_of
        self._wall = wall
        self._lock = threading.Lock()  # guards every field below
        self._sequence = 0
        self._kept: deque[_Kept] = deque(maxlen=KEPT_EVENTS)
        self._marks: dict[str, HistoryMark] = {}  # of every history that is followed
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Event], None]] = []
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

    def follow(self, model: str, entries: Sequence[HistoryEntry]) -> None:
        """From now on a model's history is told of: what was recorded since this server began, at
        once, and what will be as it is found."""
        old = [number for number, each in enumerate(entries, 1) if each.time_ms < self._began_ms]
        known = old[-1] if old else 0
        mark = HistoryMark(entries[known - 1].sequence, entries[known - 1].hash) if old else None
        with self._lock:
            self._marks[model] = mark or HistoryMark()
        for entry in entries[known:]:
            self.publish_entry(model, entry)

    def publish_entry(self, model: str, entry: HistoryEntry) -> None:
        """Tells everybody of what was found in a followed history, unless they know it."""
        self._tell(Event.of_entry(model, entry))

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
        entry = None
        evidence = dict(evidence or {})
        now_ms = self._wall()
        if record and self._recorder_of is not None:
            try:
                entry = self._recorder_of(model).record(
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
        return self._tell(
            Event(
                sequence=0,
                time_ms=now_ms,
                event_time_ms=now_ms if event_time_ms is None else event_time_ms,
                model=model,
                kind=kind,
                version=version,
                actor=actor,
                reason=reason,
                # Events are kept: of two that say the same, only one.
                evidence=evidence if entry is None else entry.evidence,
                entry=entry,
            )
        )

    def _tell(self, event: Event) -> Event:
        """Gives the event its number and everybody the event."""
        evidence = _Kept.packed(event)
        with self._lock:
            mark = self._marks.get(event.model)
            if event.entry is not None and mark is not None and not mark.pass_(event.entry):
                return event  # it was told when it was found
            self._sequence += 1
            self._counts[event.kind] += 1
            event = replace(event, sequence=self._sequence)
            self._kept.append(_Kept(event, evidence))
            for listener in self._listeners:
                listener(event)
            self._offer(event)
        version = f" version {event.version}" if event.version else ""
        _log.info("%s %s%s: %s", event.model, event.kind, version, event.reason)
        return event

    def tell_in_passing(
        self,
        kind: str,
        model: str,
        *,
        reason: str,
        evidence: Mapping[str, Any],
        event_time_ms: int,
    ) -> None:
        """Tells who listens at this moment, and keeps nothing: the event has the number of the one
        before it, so who comes back later misses none, and no listener of `listen` is told."""
        event = Event(
            sequence=0,
            time_ms=self._wall(),
            event_time_ms=event_time_ms,
            model=model,
            kind=kind,
            actor="trimtab",
            reason=reason,
            evidence=evidence,
        )
        with self._lock:
            self._counts[kind] += 1
            self._offer(replace(event, sequence=self._sequence))

    def _offer(self, event: Event) -> None:
        """To every subscriber, under the lock; one that is full is let go of."""
        for subscription in list(self._subscriptions):
            if not subscription.offer(event):
                self._subscriptions.discard(subscription)
                self._cut_off += 1

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Gives every event from now on to `listener`, in order, under a lock: it only keeps it."""
        with self._lock:
            self._listeners.append(listener)

    def subscribe(
        self, model: str = "", limit: int = MAX_WAITING_EVENTS, after: int | None = None
    ) -> "Subscription":
        """Every event from now on (of one model, or of all); called on the loop that iterates.

        `after`: those with a later sequence that are still kept as well, before.
        """
        with self._lock:
            kept: list[Event] = []
            lost = 0
            if after is not None:
                later = [each for each in self._kept if each.sequence > after]
                lost = max(0, self._sequence - after - len(later))
                kept = [each.event() for each in later if model in ("", each.model)]
            subscription = Subscription(self, model, limit + len(kept))
            subscription.begins_after = self._sequence if after is None else after
            subscription.lost = lost
            subscription.marks = {name: mark.copy() for name, mark in self._marks.items()}
            subscription.kept = tuple(kept)
            for event in kept:
                subscription.offer(event)
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
        self.begins_after = 0  # sequence of the event before those of this listener
        self.kept: tuple[Event, ...] = ()  # of those from before it began
        self.lost = 0  # events, of whatever model, that it asked for and that are kept no longer
        self.marks: dict[str, HistoryMark] = {}  # as they were when it began
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
                    "call again with the resume token of the last one"
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
