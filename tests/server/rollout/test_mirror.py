import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, FakeRunner, batch, reference, wait_until
from trimtab.server.inference.observation import ObservedBatch, ObservedCalls
from trimtab.server.rollout.comparison import Comparison
from trimtab.server.rollout.mirror import Mirror, MirrorStats

Make = Callable[..., tuple[Mirror, Comparison]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Mirror] = []

    def build(
        version: FakeRunner | None = None,
        against: FakeRunner | None = None,
        *,
        start: bool = True,
        **options: Any,
    ) -> tuple[Mirror, Comparison]:
        comparison = Comparison(
            SIGNATURE, SIGNATURE, reference(2_000), tolerance=0.1, capacity=10_000
        )
        taken = {"cpu": 1.0, "max_rows": 10_000, "max_bytes": 1 << 30, **options}
        mirror = Mirror(
            (2, version or FakeRunner()), (1, against or FakeRunner()), comparison, **taken
        )
        made.append(mirror)
        if start:
            mirror.start()
        return mirror, comparison

    yield build
    for mirror in made:
        mirror.stop()


def rows(count: int, version: int = 1, *, nan: bool = False, **options: Any) -> ObservedBatch:
    numeric = np.linspace(-1, 1, 2 * count, dtype=np.float32).reshape(count, 2)
    if nan:
        numeric[0, 0] = np.nan
    return batch(numeric, version=version, **options)


def settle(mirror: Mirror) -> None:
    mirror.hurry()
    wait_until(lambda: not mirror.waiting, "the mirror's queue is empty")


def test_the_other_version_computes_what_the_answering_one_was_asked(make: Make) -> None:
    mirror, comparison = make(FakeRunner(lambda temp: temp * 3))
    mirror.offer(rows(100, version=1))
    mirror.offer(rows(50, version=2, prefix="other"))
    mirror.offer(rows(70, version=7))  # neither of the two
    settle(mirror)
    figures = comparison.figures()
    assert (figures.rows, figures.answered, figures.requests) == (150, 50, 2)
    # Both batches were answered with 2 · temp; only where version 1 answered did 2 compute its 3 ·.
    assert figures.outputs[0].rows == 150 and 0 < figures.outputs[0].agreement < 1
    assert mirror.stats == MirrorStats(offered=150, compared=150, dropped=0, waiting=0)
    assert figures.latency.runs == 6, "both versions were timed on runs of 32 rows"


def test_a_full_queue_drops_exactly_and_takes_more_once_half_of_it_is_done(make: Make) -> None:
    started, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        started.set()
        assert go_on.wait(20)

    mirror, comparison = make(FakeRunner(on_run=wait), max_rows=100)
    mirror.offer(rows(20))
    assert started.wait(20)
    for _ in range(10):
        mirror.offer(rows(20))
    assert mirror.stats == MirrorStats(offered=220, compared=0, dropped=120, waiting=100)
    mirror.offer(rows(1))  # would fit by itself
    assert mirror.stats.dropped == 121
    go_on.set()
    settle(mirror)
    mirror.offer(rows(20))
    settle(mirror)
    stats = mirror.stats
    assert stats == MirrorStats(offered=241, compared=120, dropped=121, waiting=0)
    assert comparison.figures().rows == stats.compared


def test_a_batch_larger_than_the_queue_is_taken_by_an_empty_one(make: Make) -> None:
    mirror, _ = make(max_rows=10)
    mirror.offer(rows(64))
    settle(mirror)
    assert mirror.stats.compared == 64


def test_bytes_that_wait_are_bounded_too(make: Make) -> None:
    mirror, _ = make(start=False, max_bytes=5_000)
    size = 100 * (2 * 4 + (4 + 2) + 4)  # two floats, a string of two letters, a float
    for _ in range(5):
        mirror.offer(rows(100))
    assert mirror.stats.waiting == 100 * (5_000 // size)


def test_what_waits_as_it_stops_is_dropped_and_nothing_is_taken_any_more(make: Make) -> None:
    mirror, _ = make(start=False)
    mirror.offer(rows(10))
    mirror.stop()
    mirror.offer(rows(10))
    assert mirror.stats == MirrorStats(offered=10, compared=0, dropped=10, waiting=0)


def test_a_run_that_fails_is_found_out_request_by_request(make: Make) -> None:
    def poisoned(temp: Any) -> Any:
        if np.isnan(temp).any():
            raise ValueError("a bad row")
        return temp

    mirror, comparison = make(FakeRunner(poisoned))
    mirror.offer(rows(9, nan=True, calls=[2, 3, 4]))
    settle(mirror)
    figures = comparison.figures()
    assert (figures.requests, figures.failed_version) == (3, 1)
    # The answering version's NaN is no answer either: 2 · NaN.
    assert (figures.failed_against, figures.failed_both) == (1, 1)
    assert figures.outputs[0].rows == 7 and mirror.stats.failures == 0


def test_a_request_that_the_answering_version_failed_on_is_given_to_the_other(make: Make) -> None:
    mirror, comparison = make()
    asked = rows(4, version=2)
    mirror.offer(ObservedBatch("m", 2, ObservedCalls.of([]), 4, asked.inputs, {}, -1))
    settle(mirror)
    figures = comparison.figures()
    assert (figures.requests, figures.failed_version, figures.failed_against) == (1, 1, 0)


def test_a_model_without_a_batch_dimension_is_run_request_by_request(make: Make) -> None:
    sizes: list[int] = []
    mirror, comparison = make(FakeRunner(batchable=False, on_run=sizes.append))
    mirror.offer(rows(9, calls=[2, 3, 4]))
    settle(mirror)
    assert sizes == [2, 3, 4] and comparison.figures().requests == 3


def test_runs_are_small_until_enough_were_timed_and_then_every_eighth_is(make: Make) -> None:
    sizes: list[int] = []
    mirror, comparison = make(FakeRunner(on_run=sizes.append), max_rows=100_000)
    mirror.offer(rows(64 * 32))
    mirror.offer(rows(80 * 256))
    settle(mirror)
    assert sizes == [32] * 64 + [256] * 80
    assert comparison.figures().latency.runs == 64 + 10


def test_both_versions_times_are_those_of_the_thread_that_runs_them(make: Make) -> None:
    now = 0

    def taking(ns: int) -> Callable[[int], None]:
        def run(_: int) -> None:
            nonlocal now
            now += ns

        return run

    mirror, comparison = make(
        FakeRunner(on_run=taking(6_000_000)),
        FakeRunner(on_run=taking(2_000_000)),
        clock=lambda: now,
    )
    mirror.offer(rows(320))
    settle(mirror)
    latency = comparison.figures().latency
    assert (latency.runs, latency.ratio, latency.more_ms) == (10, 3.0, 4.0)


def test_it_sleeps_for_its_share_of_a_core_unless_somebody_waits(make: Make) -> None:
    """A run of 1 s on the thread's clock is followed by 9 s of sleep, which `hurry` ends."""
    now = 0

    def run(_: int) -> None:
        nonlocal now
        now += 1_000_000_000

    emptied = threading.Event()
    mirror, _ = make(FakeRunner(on_run=run), cpu=0.1, clock=lambda: now, on_empty=emptied.set)
    mirror.offer(rows(1))
    wait_until(lambda: mirror.stats.compared == 1, "the first one is compared")
    mirror.offer(rows(2))
    assert not emptied.wait(0.05) and mirror.waiting == 2
    assert mirror.hurry() is False
    assert emptied.wait(20) and mirror.waiting == 0
    assert mirror.hurry() is True


def test_a_bug_loses_a_batch_and_not_the_thread(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, comparison = make()
    taken = comparison.add

    def fails_once(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(comparison, "add", taken)
        raise RuntimeError("a bug")

    monkeypatch.setattr(comparison, "add", fails_once)
    mirror.offer(rows(5))
    mirror.offer(rows(3))
    settle(mirror)
    assert mirror.stats.failures == 1 and comparison.figures().rows == 3
