"""The queue: who comes out, in what company, and who never does."""

import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeCall, FakeClock
from trimtab.server.errors import UnavailableError
from trimtab.server.inference.request_queue import (
    QueueClosedError,
    RequestQueue,
    Taken,
    linger_left,
)


def queue(
    max_rows: int = 100, linger_s: float = 0.0, clock: FakeClock | None = None
) -> RequestQueue:
    return RequestQueue(max_rows, linger_s=linger_s, clock=clock or FakeClock())


def rows(count: int) -> list[float]:
    return [1.0] * count


def take(waiting: RequestQueue, max_rows: int = 100) -> Taken:
    taken = waiting.take(max_rows)
    assert taken is not None
    return taken


def test_what_waits_comes_out_together_in_the_order_of_arrival() -> None:
    waiting = queue()
    calls = [FakeCall(rows(2)) for _ in range(3)]
    for call in calls:
        waiting.put(call)
    assert take(waiting).calls == calls
    assert waiting.stats().waiting_rows == 0


def test_rows_are_counted_and_not_calls() -> None:
    waiting = queue()
    first, second, third = (FakeCall(rows(count)) for count in (3, 2, 1))
    for call in (first, second, third):
        waiting.put(call)
    assert take(waiting, 5).calls == [first, second]
    assert take(waiting, 5).calls == [third]


def test_a_call_larger_than_a_batch_comes_out_alone() -> None:
    waiting = queue()
    large, small = FakeCall(rows(9)), FakeCall(rows(1))
    waiting.put(large)
    waiting.put(small)
    assert take(waiting, 4).calls == [large]
    assert take(waiting, 4).calls == [small]


def test_only_calls_of_one_group_share_a_batch_and_the_longest_waiting_goes_first() -> None:
    waiting = queue()
    a1, b1, a2 = FakeCall(group="a"), FakeCall(group="b"), FakeCall(group="a")
    for call in (a1, b1, a2):
        waiting.put(call)
    assert take(waiting).calls == [a1, a2]
    assert take(waiting).calls == [b1]


def test_a_full_queue_refuses_with_tritons_words() -> None:
    waiting = queue(max_rows=3)
    waiting.put(FakeCall(rows(2)))
    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        waiting.put(FakeCall(rows(2)))
    assert waiting.stats().rejected == 1
    waiting.put(FakeCall(rows(1)))


def test_a_call_larger_than_the_queue_is_taken_when_nothing_else_waits() -> None:
    waiting = queue(max_rows=3)
    waiting.put(FakeCall(rows(5)))
    assert take(waiting).calls[0].rows == 5


def test_a_cancelled_call_never_comes_out_and_gives_its_rows_back_at_once() -> None:
    waiting = queue(max_rows=3)
    gone, stays = FakeCall(rows(2)), FakeCall(rows(3))
    waiting.put(gone)
    waiting.cancel(gone)
    waiting.put(stays)
    assert take(waiting).calls == [stays]
    assert waiting.stats().cancelled == 1


def test_a_call_that_is_cancelled_in_the_queue_lets_its_tensors_go_at_once() -> None:
    waiting = queue()
    call = FakeCall(rows(2))
    array = weakref.ref(call.inputs["x"].array())
    waiting.put(call)
    waiting.cancel(call)
    assert array() is None


def test_a_call_that_is_cancelled_while_it_runs_keeps_its_tensors() -> None:
    waiting = queue()
    call = FakeCall(rows(2))
    waiting.put(call)
    take(waiting)
    waiting.cancel(call)
    assert call.inputs["x"].shape == (2, 2)


def test_a_call_that_is_cancelled_while_it_runs_is_not_counted_as_never_run() -> None:
    waiting = queue()
    call = FakeCall()
    waiting.put(call)
    take(waiting)
    waiting.cancel(call)
    assert call.cancelled
    assert waiting.stats().cancelled == 0


def test_groups_of_which_every_call_was_cancelled_are_forgotten() -> None:
    waiting = queue()
    for number in range(10):
        call = FakeCall(group=number)
        waiting.put(call)
        waiting.cancel(call)
    last = FakeCall()
    waiting.put(last)
    assert take(waiting).calls == [last]
    assert not waiting._groups and not waiting._order


def test_an_expired_call_is_told_and_does_not_run() -> None:
    clock = FakeClock()
    waiting = queue(clock=clock)
    late, timely = FakeCall(deadline=clock() + 1), FakeCall(deadline=clock() + 3)
    waiting.put(late)
    waiting.put(timely)
    clock.advance(2)
    taken = take(waiting)
    assert (taken.expired, taken.calls) == ([late], [timely])
    assert waiting.stats().expired == 1


def test_after_closing_what_waits_still_comes_out_and_nothing_goes_in() -> None:
    waiting = queue()
    call = FakeCall()
    waiting.put(call)
    waiting.close()
    with pytest.raises(QueueClosedError):
        waiting.put(FakeCall())
    assert take(waiting).calls == [call]
    assert waiting.take(100) is None


def test_emptying_gives_every_live_call_back() -> None:
    waiting = queue()
    live, dead = FakeCall(), FakeCall()
    waiting.put(live)
    waiting.put(dead)
    waiting.cancel(dead)
    assert waiting.empty() == [live]
    waiting.close()
    assert waiting.take(100) is None


def test_a_taker_that_waits_is_woken_by_the_first_call() -> None:
    waiting = queue()
    taken: list[Taken | None] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.take(100)))
    thread.start()
    call = FakeCall()
    waiting.put(call)
    thread.join(30)
    assert taken == [Taken([call], [])]


@pytest.mark.parametrize(
    ("waiting_rows", "waited_s", "left"),
    [(1, 0.0, 0.01), (1, 0.004, 0.006), (1, 0.01, 0.0), (1, 9.0, 0.0), (8, 0.0, 0.0)],
)
def test_lingering_ends_with_a_full_batch_or_the_time(
    waiting_rows: int, waited_s: float, left: float
) -> None:
    assert linger_left(waiting_rows, waited_s, max_rows=8, linger_s=0.01) == pytest.approx(left)


def test_without_linger_nobody_waits() -> None:
    assert linger_left(1, 0.0, max_rows=8, linger_s=0.0) == 0.0


def test_a_call_that_waited_long_enough_does_not_linger_again() -> None:
    clock = FakeClock()
    waiting = queue(linger_s=3600.0, clock=clock)
    waiting.put(FakeCall())
    clock.advance(3600.0)
    assert len(take(waiting).calls) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from("abc"), st.sampled_from(["live", "cancel"]))
    ),
    st.integers(1, 8),
)
def test_every_live_call_comes_out_exactly_once(
    calls: list[tuple[int, str, str]], max_rows: int
) -> None:
    waiting = queue(max_rows=10_000)
    live = []
    for count, group, fate in calls:
        call = FakeCall(rows(count), group=group)
        waiting.put(call)
        if fate == "cancel":
            waiting.cancel(call)
        else:
            live.append(call)
    waiting.close()
    seen = []
    while (taken := waiting.take(max_rows)) is not None:
        assert len({call.group for call in taken.calls}) == 1
        assert len(taken.calls) == 1 or sum(call.rows for call in taken.calls) <= max_rows
        seen += taken.calls
    assert sorted(map(id, seen)) == sorted(map(id, live))
    for group in "abc":
        assert [c for c in seen if c.group == group] == [c for c in live if c.group == group]
    assert waiting.stats().waiting_rows == 0
