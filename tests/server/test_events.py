import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry.directory import ModelDirectory
from trimtab.server.errors import UnavailableError
from trimtab.server.events import Event, EventBus


class FakeHistory:
    def __init__(self, error: Exception | None = None) -> None:
        self.lines: list[tuple[str, str]] = []
        self.error = error

    def record(self, kind: str, *, actor: str, reason: str, **rest: Any) -> None:
        if self.error:
            raise self.error
        self.lines.append((kind, reason))


async def take(events: Any, count: int) -> list[Event]:
    return [await asyncio.wait_for(anext(events), 10) for _ in range(count)]


def test_listeners_get_every_event_from_now_on_in_order() -> None:
    async def main() -> None:
        bus = EventBus(wall=lambda: 5)
        bus.publish("drift", "a", reason="before")
        everything, of_b = bus.subscribe().events(), bus.subscribe("b").events()
        bus.publish("drift", "a", version=3, reason="x", evidence={"psi": 0.3}, event_time_ms=9)
        await asyncio.to_thread(bus.publish, "promoted", "b", actor="ann")
        first, second = await take(everything, 2)
        assert (first.sequence, first.model, first.kind, first.version) == (2, "a", "drift", 3)
        assert (first.time_ms, first.event_time_ms) == (5, 9)
        assert first.evidence_json() == '{"psi": 0.3}'
        assert (second.sequence, second.event_time_ms, second.actor) == (3, 5, "ann")
        assert await take(of_b, 1) == [second]
        await everything.aclose()
        assert bus.stats.subscribers == 1
        await of_b.aclose()

    asyncio.run(main())


def test_a_listener_that_cannot_keep_up_is_cut_off_and_told() -> None:
    async def main() -> None:
        bus = EventBus()
        slow, quick = bus.subscribe(limit=3), bus.subscribe(limit=100)
        for index in range(10):
            bus.publish("drift", "m", reason=str(index))
        got = []
        with pytest.raises(UnavailableError, match="fell behind by 3 events"):
            async for event in slow.events():
                got.append(event.reason)
        assert got == ["0", "1", "2"]
        events = quick.events()
        assert len(await take(events, 10)) == 10
        await events.aclose()
        assert bus.stats.cut_off == 1 and bus.stats.subscribers == 0

    asyncio.run(main())


def test_closing_the_bus_ends_every_stream() -> None:
    async def main() -> None:
        bus = EventBus()
        subscription = bus.subscribe()
        bus.publish("drift", "m")
        bus.close()
        assert [event.kind async for event in subscription.events()] == ["drift"]

    asyncio.run(main())


def test_a_listener_whose_loop_is_gone_harms_nobody() -> None:
    bus = EventBus()

    async def main() -> None:
        bus.subscribe()

    asyncio.run(main())
    bus.publish("drift", "m")
    bus.close()


def test_decisions_go_into_the_history_and_a_full_disk_does_not_stop_the_event() -> None:
    history = FakeHistory()
    bus = EventBus(lambda model: history)
    bus.publish("refused", "m", reason="worse", record=True)
    bus.publish("waiting", "m", reason="labels")
    assert history.lines == [("refused", "worse")]
    history.error = OSError(28, "No space left")
    assert bus.publish("refused", "m", reason="again", record=True).sequence == 3
    assert bus.stats.not_recorded == 1
    assert bus.stats.published == {"refused": 2, "waiting": 1}


def test_an_event_that_was_kept_is_told_as_it_was_and_takes_little_memory(tmp_path: Path) -> None:
    features = [{"name": f"f{i}", "psi": i / 7, "reason": "a sentence"} for i in range(100)]

    async def main() -> None:
        bus = EventBus(lambda name: ModelDirectory(tmp_path), wall=lambda: 5)
        bus.publish("drift", "a", reason="x", evidence={"features": features}, record=True)
        tracemalloc.start()
        for _ in range(50):
            evidence = {"features": [dict(each) for each in features], "window": (1, 2)}
            bus.publish("drift_warning", "a", evidence=evidence)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken / 50 < 10_000, "bytes an event, of some 30,000 that its evidence had"
        kept = bus.subscribe(after=0).events()
        first, second = await take(kept, 2)
        assert (first.sequence, first.kind, first.reason) == (1, "drift", "x")
        assert first.evidence == {"features": features}
        assert first.entry is not None and first.entry.evidence == first.evidence
        assert first.entry.computed_hash() == first.entry.hash
        assert second.entry is None and second.evidence["window"] == [1, 2]
        await kept.aclose()

    asyncio.run(main())


def test_what_is_told_in_passing_is_kept_for_nobody_and_costs_no_number() -> None:
    async def main() -> None:
        bus = EventBus(lambda model: FakeHistory())
        kept: list[Event] = []
        bus.listen(kept.append)
        bus.publish("drift", "m")
        here, elsewhere = bus.subscribe("m"), bus.subscribe("n")
        for fraction in (0.1, 0.2):
            bus.tell_in_passing(
                "training_progress",
                "m",
                reason=f"{fraction:.0%}",
                evidence={"fraction": fraction},
                event_time_ms=5,
            )
        bus.publish("refused", "m")
        events = here.events()
        found = await take(events, 3)
        assert [(each.kind, each.sequence) for each in found] == [
            ("training_progress", 1),
            ("training_progress", 1),
            ("refused", 2),
        ]
        assert found[1].evidence == {"fraction": 0.2} and found[1].event_time_ms == 5
        later = bus.subscribe("m", after=0)
        assert ([each.kind for each in later.kept], later.lost) == (["drift", "refused"], 0)
        assert [each.kind for each in kept] == ["drift", "refused"]
        assert bus.stats.published["training_progress"] == 2
        await events.aclose()
        for each in (elsewhere, later):
            each.close()

    asyncio.run(main())
