"""Tells other systems what happens: from the event bus into outboxes, from these to their receivers.

    bus ─→ a queue in memory ─→ intake thread ─→ outbox file, synced ─→ delivery thread ─→ HTTP
                                     ↑                    (one of each a webhook)
                        histories: what was recorded while nobody looked

The bus only appends to the queue, so nothing of this holds up a request or a decision. An outbox
keeps how far it has seen each model's history; a server that starts reads what came since, whoever
wrote it, and so does one whose queue overflowed. What is in a history is therefore sent at least once,
whatever crashes; of the rest a crash may take what was not synced yet, some milliseconds as a rule. A
webhook that is new begins with what happens from now on.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from trimtab.registry.directory import DATA_DIRECTORY_NAME, Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.history import HistoryEntry

from ..config import ALL_EVENTS, ConfigError, WebhookConfig
from ..events import KINDS, Event, EventBus, HistoryMark, wall_ms
from .delivery import Delivery, Receiver, WebhookStats
from .endpoint import Endpoint
from .message import Message
from .outbox import Mark, Outbox
from .signature import SecretError

_log = logging.getLogger(__name__)

_MAX_QUEUED = 4096  # events in memory
_RECENT_MS = 60_000  # that the bus has been there at most, as webhooks are made
_END_S = 10.0  # that the intake is given to write what is queued as the server stops
_NEVER = ("training_progress",)  # comes many times a minute, and is nothing to be told of


@dataclass
class _Line:
    """One webhook: what it wants, what waits, who sends. The intake thread's."""

    config: WebhookConfig
    outbox: Outbox
    delivery: Delivery
    marks: dict[str, HistoryMark] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)  # hashes of entries that were found in histories

    def wants(self, kind: str) -> bool:
        events = self.config.events
        return kind in events or (ALL_EVENTS in events and kind not in _NEVER)


class Webhooks:
    """All of a server's; `start` and `stop` once each."""

    def __init__(
        self,
        configs: Sequence[WebhookConfig],
        registry: Registry,
        bus: EventBus,
        *,
        receiver: Callable[[WebhookConfig], Receiver] | None = None,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        """Raises ConfigError for a secret that cannot be used. `receiver` makes one of a webhook."""
        self._registry = registry
        self._bus = bus
        self._recent_ms = wall_ms() - _RECENT_MS  # by the clock that the histories go by
        self._lines = [self._line(config, receiver or _endpoint, wall) for config in configs]
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._arrived = threading.Condition()  # guards the four below
        self._queue: deque[Event] = deque()
        self._missed = False  # there may be something in the histories that was not seen
        self._lost = 0  # events that no history has, and that the queue had no room for
        self._stopping = False

    def __repr__(self) -> str:
        return f"Webhooks({[line.delivery for line in self._lines]})"

    @property
    def lost(self) -> int:
        """Events that came faster than they could be written down, and that no history has."""
        return self._lost

    def stats(self) -> list[WebhookStats]:
        """On any thread."""
        stats = [line.delivery.stats for line in self._lines]
        return [replace(each, no_room=each.no_room + self._lost) for each in stats]

    def start(self) -> None:
        """Takes up what the last server left; from now on events are told. Reads every history.

        To be called before anything is published: what is found is told before it.
        """
        if not self._lines:
            return
        self._bus.listen(self.offer)
        histories = self._histories()
        for line in self._lines:
            _begin(line, line.outbox.open(), histories, self._recent_ms)
        self._catch_up(histories, frozenset())
        for line in self._lines:
            line.delivery.start()
        self._thread.start()

    def stop(self) -> None:
        """After whatever publishes has stopped; what is not delivered is for the next server."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        if self._thread.ident is not None:
            self._thread.join(_END_S)
        for line in self._lines:
            line.delivery.stop()
            line.outbox.close()

    def offer(self, event: Event) -> None:
        """Takes an event from the bus; never waits for a disk or a network."""
        with self._arrived:
            if len(self._queue) < _MAX_QUEUED:
                self._queue.append(event)
            elif event.entry is not None:
                self._missed = True  # its history has it
            else:
                self._lost += 1
            self._arrived.notify()

    def _line(
        self,
        config: WebhookConfig,
        receiver: Callable[[WebhookConfig], Receiver],
        wall: Callable[[], int],
    ) -> _Line:
        for kind in {*config.events} - {ALL_EVENTS, *KINDS}:
            close = get_close_matches(kind, KINDS, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            _log.warning("webhook '%s': no event is of the kind %r%s", config.name, kind, meant)
        folder = self._registry.path / DATA_DIRECTORY_NAME
        outbox = Outbox(outbox_path(folder, config.name), config.max_mb * 1024 * 1024)
        made = receiver(config)
        return _Line(
            config,
            outbox,
            Delivery(config.name, outbox, made, max_age_s=config.max_age_s, wall=wall),
        )

    def _histories(self) -> dict[str, Sequence[HistoryEntry]]:
        histories: dict[str, Sequence[HistoryEntry]] = {}
        try:
            models = self._registry.models()
        except OSError as error:
            _log.error("webhooks: the histories cannot be read: %s", error)
            return histories
        for model in models:
            try:
                histories[model] = self._registry.model(model).history().entries
            except (OSError, RegistryError) as error:
                _log.error("webhooks: the history of model '%s' cannot be read: %s", model, error)
        return histories

    # On the intake thread.

    def _run(self) -> None:
        while True:
            with self._arrived:
                while not (self._queue or self._missed or self._stopping):
                    self._arrived.wait()
                missed, self._missed = self._missed, False
            # Read first: what is told by the time the queue is looked at comes in the queue's order.
            histories = self._histories() if missed else {}
            with self._arrived:
                events = list(self._queue)
                self._queue.clear()
                stopping = self._stopping
            try:
                told = {each.entry.hash for each in events if each.entry is not None}
                self._catch_up(histories, told)
                self._take(events)
            except Exception:  # noqa: BLE001  an edge
                _log.exception("webhooks: %d events are lost", len(events))
            if stopping and not events:
                return

    def _take(self, events: Sequence[Event]) -> None:
        """Writes events down for whoever wants them."""
        if not events:
            return
        for line in self._lines:
            messages, seen = [], set()
            for event in events:
                if event.entry is not None:
                    seen.add(event.model)
                    if not _pass(line, event.model, event.entry):
                        continue
                if line.wants(event.kind):
                    messages.append(Message.of(event, self._bus.run))
            self._add(line, messages, seen)

    def _catch_up(
        self, histories: Mapping[str, Sequence[HistoryEntry]], told: AbstractSet[str]
    ) -> None:
        """Writes down what histories have beyond the marks, in the order of time, but for entries with
        the hashes in `told`."""
        if not histories:
            return
        for line in self._lines:
            found: list[tuple[int, str, HistoryEntry]] = []
            for model, entries in histories.items():
                latest_ms = 0
                for entry in self._news(line, model, entries):
                    latest_ms = max(latest_ms, entry.time_ms)  # a clock may have gone back
                    if entry.hash not in told:
                        found.append((latest_ms, model, entry))
            messages = []
            for _, model, entry in sorted(found, key=lambda each: each[0]):
                line.read.add(entry.hash)
                if _pass(line, model, entry, found=True) and line.wants(entry.kind):
                    messages.append(Message.of(Event.of_entry(model, entry), self._bus.run))
            self._add(line, messages, set(histories))

    def _news(
        self, line: _Line, model: str, entries: Sequence[HistoryEntry]
    ) -> Sequence[HistoryEntry]:
        """The entries after the line's mark; all of them, if it is another history now."""
        mark = line.marks.setdefault(model, HistoryMark())
        if not _goes_on(mark, entries):
            line.marks[model] = mark = HistoryMark()
        return [each for each in entries if each.sequence > mark.sequence]

    def _add(self, line: _Line, messages: Sequence[Message], models: set[str]) -> None:
        marks = {
            model: Mark(mark.sequence, mark.hash)
            for model in models
            if (mark := line.marks.get(model)) is not None and mark.sequence
        }
        line.outbox.add(messages, marks)
        if messages:
            line.delivery.wake()


def outbox_path(folder: Path, name: str) -> Path:
    """Of the webhook of a name, in the directory of a server's own data."""
    return folder / f"webhook-{name}.outbox"


def _endpoint(config: WebhookConfig) -> Endpoint:
    endpoint = Endpoint(config)
    try:
        endpoint.check()
    except SecretError as error:
        raise ConfigError(f"webhook '{config.name}': secret_file = {error}") from error
    if config.url.startswith("http://"):
        _log.warning(
            "webhook '%s': %s is not https: others on the way can read what is sent",
            config.name,
            endpoint.shown,
        )
    if not config.secret_file:
        _log.warning("webhook '%s': without a secret_file nothing is signed", config.name)
    return endpoint


def _begin(
    line: _Line,
    marks: Mapping[str, Mark] | None,
    histories: Mapping[str, Sequence[HistoryEntry]],
    recent_ms: int,
) -> None:
    """Takes up how far a webhook was told; one that is new (None) is told nothing of what is past."""
    if marks is None:
        ends = {model: entries[-1] for model, entries in histories.items() if entries}
        marks = {model: Mark(end.sequence, end.hash) for model, end in ends.items()}
        line.outbox.add([], marks, sync=True)  # or a crash would make it one that is not new
    line.marks = {model: HistoryMark(mark.sequence, mark.hash) for model, mark in marks.items()}
    for model, mark in marks.items():
        entries = histories.get(model, ())
        if _goes_on(mark, entries):
            # The bus may be yet to tell of those that were recorded since it began.
            line.read.update(
                each.hash
                for each in entries
                if each.sequence <= mark.sequence and each.time_ms >= recent_ms
            )


def _goes_on(mark: Mark | HistoryMark, entries: Sequence[HistoryEntry]) -> bool:
    """Whether a history is the one that the mark was made in."""
    return not mark.sequence or any(
        (each.sequence, each.hash) == (mark.sequence, mark.hash) for each in entries
    )


def _pass(line: _Line, model: str, entry: HistoryEntry, *, found: bool = False) -> bool:
    """Marks an entry as seen; False: it was, in the history. `found`: that is where it is from."""
    if not found and entry.hash in line.read:
        return False
    mark = line.marks.get(model)
    if mark is None:
        mark = line.marks[model] = HistoryMark(entry.sequence - 1, entry.previous_hash)
    if not mark.pass_(entry):
        if found:
            return False
        # The bus tells nothing twice: the history began anew.
        line.marks[model] = HistoryMark(entry.sequence, entry.hash)
    return True
