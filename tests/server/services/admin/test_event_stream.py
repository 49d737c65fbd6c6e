"""Streams of events that end and go on: what is told, once, in which order, and what is lost."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.loop_fakes import publish_version
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.server import events as events_module
from trimtab.server.errors import InvalidRequestError, UnavailableError
from trimtab.server.events import EventBus
from trimtab.server.services.admin.event_stream import LOST, EventMethods
from trimtab.server.services.admin.resume_token import Place, ResumeToken
from trimtab.server.services.handlers import CallContext, StreamHandler


class Run:
    """One server's run, as far as events go: a bus that follows every history."""

    def __init__(self, path: Path) -> None:
        self.registry = Registry(path)
        self.bus = EventBus(self.registry.model)
        for model in self.registry.models():
            self.bus.follow(model, self.registry.model(model).history().entries)

    def tell_changes(self, model: str = "m") -> None:
        """What a model's loop does with every tick."""
        for entry in self.registry.model(model).history().entries:
            self.bus.publish_entry(model, entry)

    def record(self, reason: str, model: str = "m") -> None:
        self.bus.publish("refused", model, reason=reason, record=True)

    def say(self, reason: str, model: str = "m") -> None:
        self.bus.publish("loaded", model, reason=reason)

    def stream(self, model: str = "", token: str = "") -> Any:
        handler = EventMethods(self.registry, self.bus).handlers()["WatchEvents"]
        assert isinstance(handler, StreamHandler)
        request = pb.WatchEventsRequest(model_name=model, resume_token=token)
        return handler.handle(request.SerializeToString(), CallContext())


def told(
    run: Run, count: int, token: str = "", model: str = "", do: Callable[[], None] = lambda: None
) -> list[pb.Event]:
    """The first events of a stream that is open while `do` is done."""

    async def main() -> list[pb.Event]:
        stream = run.stream(model, token)
        await asyncio.to_thread(do)
        found = [
            pb.Event.FromString(await asyncio.wait_for(anext(stream), 10)) for _ in range(count)
        ]
        await stream.aclose()
        assert run.bus.stats.subscribers == 0
        return found

    return asyncio.run(main())


def reasons(events: Sequence[pb.Event]) -> list[str]:
    return [LOST if event.kind == LOST else event.reason for event in events]


def outside(path: Path, reason: str, model: str = "m") -> None:
    """What another process writes into the history."""
    Registry(path).model(model).record("refused", actor="ann", reason=reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    publish_version(Registry(tmp_path))
    return tmp_path


def test_who_comes_back_to_the_same_server_gets_every_event_since_and_no_more(path: Path) -> None:
    run = Run(path)
    run.say("before")

    def happens() -> None:
        run.say("one")
        run.record("two")
        run.say("three", "other")

    first, second = told(run, 2, do=happens)
    assert (first.reason, second.reason) == ("one", "two")
    assert (first.history_sequence, second.history_sequence) == (0, 3)
    run.say("four")
    run.tell_changes()
    for _ in range(2):  # a token is not used up
        assert reasons(told(run, 2, second.resume_token)) == ["three", "four"]
    rest = told(run, 1, first.resume_token)
    assert (rest[0].reason, rest[0].sequence) == ("two", second.sequence)


def test_what_others_recorded_is_told_once_whoever_found_it_first(path: Path) -> None:
    run = Run(path)

    def happens() -> None:
        run.record("ours")
        outside(path, "theirs")
        run.tell_changes()
        run.tell_changes()
        run.record("last")

    events = told(run, 3, do=happens)
    assert reasons(events) == ["ours", "theirs", "last"]
    assert [event.history_sequence for event in events] == [3, 4, 5]
    assert [event.actor for event in events] == ["trimtab", "ann", "trimtab"]


def test_across_a_restart_nothing_recorded_is_missed_and_the_rest_is_said_to_be_lost(
    path: Path,
) -> None:
    run = Run(path)
    (seen,) = told(run, 1, do=lambda: run.record("seen"))
    run.record("unseen")
    run.say("lost for good")
    outside(path, "while no server ran")
    publish_version(Registry(path), "new")
    again = Run(path)
    again.say("after the start")
    again.record("and recorded")
    events = told(again, 7, seen.resume_token)
    assert reasons(events) == [
        LOST,
        "unseen",
        "while no server ran",
        *["for a test", "first version"],
        "after the start",
        "and recorded",
    ]
    assert "started anew" in events[0].reason and not events[0].resume_token
    assert [event.sequence for event in events[1:5]] == [0] * 4
    for index, event in enumerate(events[1:-1], 2):  # wherever it ends, it goes on from there
        rest = told(again, len(events) - index, event.resume_token)
        assert reasons(rest) == reasons(events[index:])


def test_more_than_is_kept_is_made_up_for_by_the_histories(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "KEPT_EVENTS", 3)
    run = Run(path)
    (seen,) = told(run, 1, do=lambda: run.say("seen"))
    run.record("recorded")
    for number in range(4):
        run.say(f"passing {number}")
    run.record("kept")
    events = told(run, 5, seen.resume_token)
    assert reasons(events) == [LOST, "recorded", "passing 2", "passing 3", "kept"]
    assert "3 events since are kept no longer" in events[0].reason


def test_a_history_that_was_replaced_or_is_gone_is_noticed(path: Path) -> None:
    publish_version(Registry(path), "gone")
    run = Run(path)
    (seen,) = told(run, 1, do=lambda: run.record("seen"))
    for model in ("m", "gone"):
        (path / model).rename(path / f".{model}")
    publish_version(Registry(path), actor="another registry")
    outside(path, "longer")
    outside(path, "than before")
    events = told(Run(path), 7, seen.resume_token)
    assert [event.kind for event in events[:3]] == [LOST] * 3
    problems = {event.model_name: event.reason for event in events[1:3]}
    assert "is gone" in problems["gone"]
    assert "is not the one that was told up to entry 3" in problems["m"]
    assert reasons(events[3:]) == ["for a test", "first version", "longer", "than before"]


def test_a_model_that_begins_anew_under_a_running_server_is_told(path: Path) -> None:
    run = Run(path)

    def happens() -> None:
        run.record("of the old one")
        (path / "m").rename(path / ".m")
        publish_version(Registry(path))
        run.bus.follow("m", run.registry.model("m").history().entries)
        run.record("of the new one")

    events = told(run, 4, do=happens)
    assert reasons(events) == ["of the old one", "for a test", "first version", "of the new one"]
    again = told(Run(path), 2, events[1].resume_token)
    assert reasons(again) == [LOST, "first version"]


def test_a_stream_of_one_model_has_tokens_of_its_own(path: Path) -> None:
    publish_version(Registry(path), "other")
    run = Run(path)

    def happens() -> None:
        run.record("not for it", "other")
        run.record("for it")

    (event,) = told(run, 1, model="m", do=happens)
    assert event.reason == "for it"
    run.record("next")
    assert reasons(told(run, 1, event.resume_token, "m")) == ["next"]
    for model, wrong in (("", "model 'm', not of all models"), ("other", "not of model 'other'")):
        with pytest.raises(InvalidRequestError, match=wrong):
            told(run, 1, event.resume_token, model)
    outside(path, "restarted", "other")
    outside(path, "after a restart")
    assert reasons(told(Run(path), 3, event.resume_token, "m")) == [LOST, "next", "after a restart"]


def test_what_is_no_token_is_refused(path: Path) -> None:
    run = Run(path)
    token = ResumeToken("", run.bus.run, 1, {"m": Place(1, "ab")})
    assert ResumeToken.decode(token.encode(), "") == token
    for text in (
        "x",
        "é",
        "W10",
        token.encode()[:-3],
        replace(token, sequence=-1).encode(),
        replace(token, places={"m": Place("1", "ab")}).encode(),  # type: ignore[arg-type]  # on purpose
        "W" * 100_000,
    ):
        with pytest.raises(InvalidRequestError, match="resume_token is none"):
            told(run, 1, text)
    assert run.bus.stats.subscribers == 0


def test_a_listener_that_was_cut_off_goes_on_where_it_was(path: Path) -> None:
    run = Run(path)

    async def main() -> str:
        stream = run.stream()
        for number in range(1500):
            run.say(str(number))
        seen = []
        with pytest.raises(UnavailableError, match="resume token"):
            async for raw in stream:
                seen.append(pb.Event.FromString(raw))
        await stream.aclose()
        assert len(seen) == 1024
        return seen[-1].resume_token

    token = asyncio.run(main())
    assert reasons(told(run, 1500 - 1024, token)) == [str(n) for n in range(1024, 1500)]
