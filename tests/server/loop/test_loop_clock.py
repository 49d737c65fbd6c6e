from tests.loop_fakes import FakeWall
from trimtab.server.loop.loop_clock import LoopClock, Reading


def test_it_is_the_wall_clock_until_a_request_tells_its_time() -> None:
    wall = FakeWall(1_000_000)
    clock = LoopClock(wall)
    wall.advance(1)
    assert clock.reading() == Reading(1_001_000, is_event_time=False)
    clock.label_seen(5)
    assert not clock.reading().is_event_time, "a label alone does not set it going"
    clock.seen(500)
    assert clock.reading() == Reading(500, is_event_time=True)


def test_event_time_never_goes_back() -> None:
    clock = LoopClock(FakeWall())
    for event_time, expected in ((100, 100), (50, 100), (200, 200)):
        clock.seen(event_time)
        assert clock.reading().ms == expected
    clock.label_seen(300)
    assert clock.reading().ms == 300


def test_a_watermark_moves_event_time_and_no_other() -> None:
    clock = LoopClock(FakeWall(1_000_000))
    clock.watermark(5)
    assert not clock.reading().is_event_time, "no request carries its time"
    clock.seen(500)
    for event_time, expected in ((700, 700), (600, 700)):
        clock.watermark(event_time)
        assert clock.reading() == Reading(expected, is_event_time=True)


def test_a_time_far_ahead_of_the_wall_is_not_believed() -> None:
    wall = FakeWall()
    clock = LoopClock(wall)
    clock.seen(wall.ms + 3600_000)
    clock.seen(wall.ms + 365 * 86_400_000)
    assert clock.reading().ms == wall.ms + 3600_000


def test_what_a_label_says_of_its_time_is_believed_up_to_a_day_ahead() -> None:
    wall = FakeWall()
    clock = LoopClock(wall)
    for ahead, expected in (
        (-(10**9), -(10**9)),
        (0, 0),
        (86_400_000, 86_400_000),
        (86_400_001, 0),
    ):
        assert clock.believed(wall.ms + ahead) == wall.ms + expected
