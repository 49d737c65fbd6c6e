import asyncio
from typing import Any

import pytest

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
