"""WatchEvents: what happens, told as it happens, and without a gap to who comes back.

A stream tells of two kinds of things: what the server alone knows (a version was loaded, drift came
near), and what is recorded in a model's history. A client that comes back with the token of its last
event gets, of a server that ran on, every event since. Otherwise (another server runs, or too much has
happened) it is told so by an event of the kind `events_lost`, then gets from the histories what they
have since, and then what the server has kept. So it misses nothing that is recorded, and
nothing at all without being told. It may be told of an entry twice where two writers were at work as
the stream ended; `history_sequence` tells.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.history import HistoryEntry

from ...errors import InvalidRequestError
from ...events import Event, EventBus, HistoryMark, wall_ms
from ..handlers import CallContext, Handler, StreamHandler
from .calls import decode
from .resume_token import Place, ResumeToken

LOST = "events_lost"


class EventMethods:
    """WatchEvents."""

    def __init__(self, registry: Registry, bus: EventBus) -> None:
        self._registry = registry
        self._bus = bus

    def handlers(self) -> dict[str, Handler]:
        """By the method's own name."""
        return {"WatchEvents": StreamHandler(self._watch)}

    def _watch(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """Not a generator itself: who calls it is subscribed as it returns, not a moment later."""
        try:
            asked = decode(pb.WatchEventsRequest, request)
            token = None
            if asked.resume_token:
                token = ResumeToken.decode(asked.resume_token, asked.model_name)
        except InvalidRequestError as error:
            return _refusal(error)
        return EventStream(self._registry, self._bus, asked.model_name, token)


class EventStream(AsyncIterator[bytes]):
    """One client's. No generator: one that never began would not end its subscription."""

    def __init__(
        self, registry: Registry, bus: EventBus, model: str, token: ResumeToken | None
    ) -> None:
        self._registry = registry
        self._bus = bus
        self._model = model
        self._token = token
        # Of another server's run nothing is known: then all that this one has kept.
        after = None if token is None else token.sequence if token.run == bus.run else 0
        self._subscribed_ms = wall_ms()
        self._subscription = bus.subscribe(model, after=after)
        self._sequence = self._subscription.begins_after
        self._marks: dict[str, HistoryMark] = {}
        self._read: set[str] = set()  # hashes of the entries that were told from the histories
        self._events = self._tell()

    async def __anext__(self) -> bytes:
        return (await anext(self._events)).SerializeToString()

    async def aclose(self) -> None:
        await self._events.aclose()
        self._subscription.close()

    async def _tell(self) -> AsyncGenerator[pb.Event, None]:
        events = self._subscription.events()
        try:
            async for message in self._begin():
                yield message
            async for event in events:
                if self._pass(event):
                    yield self._message(event_message(event))
        finally:
            await events.aclose()

    async def _begin(self) -> AsyncGenerator[pb.Event, None]:
        """What comes before the subscription's events."""
        token, lost = self._token, self._subscription.lost
        if token is None:
            self._marks = await asyncio.to_thread(self._marks_now)
            return
        self._marks = {n: HistoryMark(p.sequence, p.hash) for n, p in token.places.items()}
        what = ""
        if lost:
            what = f"{lost:,} events since are kept no longer"
        elif token.run != self._bus.run:
            what = "the server was started anew since"
        if what:
            yield self._lost_message(
                f"{what}: those that a history has follow from there, the others are lost"
            )
        # Of the same run there is something to find if the stream ended while this was told.
        told = {each.entry.hash for each in self._subscription.kept if each.entry is not None}
        for found in await asyncio.to_thread(self._look):
            if found.entry is None:
                yield self._lost_message(found.problem, found.model)
            elif found.entry.hash not in told:  # else it comes in its place among the others
                self._marks[found.model].pass_(found.entry)
                self._read.add(found.entry.hash)
                yield self._message(event_message(Event.of_entry(found.model, found.entry)))

    def _pass(self, event: Event) -> bool:
        """Marks an event of the subscription as told; False: it was, from the history."""
        self._sequence = event.sequence
        if (entry := event.entry) is None:
            return True
        if entry.hash in self._read:
            return False
        if not self._marks.setdefault(event.model, HistoryMark()).pass_(entry):
            # The bus tells nothing twice: the history began anew.
            self._marks[event.model] = HistoryMark(entry.sequence, entry.hash)
        return True

    def _look(self) -> "list[_Found]":
        """What the histories have beyond their marks, in the order of time."""
        there = self._models()
        found: list[_Found] = []
        for model in sorted({*self._marks, *there}):
            mark = self._marks.setdefault(model, HistoryMark())
            if model not in there:
                if mark.sequence:
                    found.append(_Found(0, model, problem="the model is gone, and its history"))
                self._marks.pop(model)
                continue
            try:
                entries = self._registry.model(model).history().entries
            except (OSError, RegistryError) as error:
                found.append(_Found(0, model, problem=f"its history cannot be read: {error}"))
                continue
            place = Place.of(mark)
            if mark.sequence and not any(place.is_at(e.sequence, e.hash) for e in entries):
                told = f"its history is not the one that was told up to entry {mark.sequence}"
                found.append(_Found(0, model, problem=f"{told}; all of it follows"))
                self._marks[model] = mark = HistoryMark()
            latest_ms = 0
            for entry in entries:
                if entry.sequence > mark.sequence:
                    latest_ms = max(latest_ms, entry.time_ms)  # a clock may have gone back
                    found.append(_Found(latest_ms, model, entry))
        return sorted(found, key=lambda each: each.time_ms)  # stable: a model's stay in order

    def _marks_now(self) -> dict[str, HistoryMark]:
        """How far the histories were told as the stream began."""
        marks = {}
        for model in self._models():
            if (mark := self._subscription.marks.get(model)) is None:
                # The server takes up this one when it loads something of it.
                mark = HistoryMark()
                with contextlib.suppress(OSError, RegistryError):  # then all of it is news
                    for entry in self._registry.model(model).history().entries:
                        if entry.time_ms < self._subscribed_ms:
                            mark = HistoryMark(entry.sequence, entry.hash)
            marks[model] = mark
        return marks

    def _models(self) -> list[str]:
        try:
            names = self._registry.models()
        except OSError:  # away at the moment; what is followed is told all the same
            names = list(self._subscription.marks)
        return [name for name in names if self._model in ("", name)]

    def _message(self, message: pb.Event) -> pb.Event:
        places = {name: Place.of(mark) for name, mark in self._marks.items()}
        token = ResumeToken(self._model, self._bus.run, self._sequence, places)
        message.resume_token = token.encode()
        return message

    def _lost_message(self, reason: str, model: str = "") -> pb.Event:
        """Has no token: who comes back before what follows it is told again."""
        now_ms = wall_ms()
        return pb.Event(
            time_ms=now_ms,
            event_time_ms=now_ms,
            model_name=model or self._model,
            kind=LOST,
            actor="trimtab",
            reason=reason,
        )


@dataclass(frozen=True)
class _Found:
    """An entry of a model's history, or why there is none."""

    time_ms: int
    model: str
    entry: HistoryEntry | None = None
    problem: str = ""


def event_message(event: Event) -> pb.Event:
    """An event as the protocol has it."""
    return pb.Event(
        sequence=event.sequence,
        time_ms=event.time_ms,
        event_time_ms=event.event_time_ms,
        model_name=event.model,
        kind=event.kind,
        version=event.version,
        actor=event.actor,
        reason=event.reason,
        evidence_json=event.evidence_json(),
        history_sequence=event.entry.sequence if event.entry else 0,
    )


async def _refusal(error: Exception) -> AsyncIterator[bytes]:
    raise error
    yield b""  # which makes it a generator
