from collections.abc import Sequence

import numpy as np
import pytest

from trimtab.trainer.errors import DataError
from trimtab.trainer.sampling import Choice, RowChooser, WindowPolicy, allotted, row_keys

HOUR = 3_600_000


def choose(
    policy: WindowPolicy,
    times: np.ndarray,
    order: np.ndarray | None = None,
    batch: int = 7_000,
) -> Choice:
    """The choice when the rows come in this order; a row's place and name are its number."""
    chooser = RowChooser(policy)
    places = np.arange(len(times)) if order is None else order
    for start in range(0, len(places), batch):
        part = places[start : start + batch].astype(np.int64)
        chooser.add(times[part], row_keys(policy.seed, part.astype(np.uint64)), part)
    return chooser.choose()


def spread(rows: int, hours: int = 1_000, seed: int = 1) -> np.ndarray:
    """Times over so many hours, more and more of them towards the end."""
    shares = np.sqrt(np.random.default_rng(seed).random(rows))
    return (shares * hours * HOUR).astype(np.int64)


def test_the_newest_rows_are_those_a_sort_would_give_and_each_stands_for_itself() -> None:
    times = spread(300_000) // HOUR * HOUR  # hundreds of rows share a time
    found = choose(WindowPolicy(rows=5_000, limit=5_000), times)
    expected = np.sort(np.lexsort((np.arange(len(times)), times))[-5_000:])
    assert np.array_equal(found.places, expected)
    assert not found.sampled and found.to_dict()["rate"] == 1.0


@pytest.mark.parametrize("rows", [0, 1, 9, 10])
def test_fewer_rows_than_wanted_are_all_taken(rows: int) -> None:
    times = spread(rows)
    for policy in (
        WindowPolicy(rows=10, limit=10),
        WindowPolicy(rows=10, limit=10, period_ms=1_000 * HOUR, periods=2),
    ):
        assert choose(policy, times).places.tolist() == list(range(rows))


@pytest.mark.parametrize(
    "policy",
    [
        WindowPolicy(rows=10_000, limit=2_000, history=0.1),
        WindowPolicy(rows=2_000, limit=2_000, period_ms=50 * HOUR, periods=4, history=0.1),
    ],
)
def test_the_choice_depends_on_neither_order_nor_batches(policy: WindowPolicy) -> None:
    times = spread(200_000)
    first = choose(policy, times)
    for seed, batch in ((1, 100_000), (2, 1_234)):
        order = np.random.default_rng(seed).permutation(len(times))
        again = choose(policy, times, order, batch)
        assert np.array_equal(first.places, again.places)
        assert np.array_equal(first.weights, again.weights)
        assert first.to_dict() == again.to_dict()
    assert len(first.places) == 2_000


def test_a_window_of_periods_goes_back_so_far_and_every_stretch_gives_the_same_share() -> None:
    times = spread(200_000)
    policy = WindowPolicy(rows=4_000, limit=4_000, period_ms=64 * HOUR, periods=4)
    found = choose(policy, times)
    first = times.max() // (4 * HOUR) * 4 * HOUR - 63 * 4 * HOUR  # 64 parts of four hours
    inside = int((times >= first).sum())
    assert times[found.places].min() >= first
    told = found.to_dict()
    assert (told["window_rows"], told["window_taken"]) == (inside, 4_000)
    assert len(found.window) == 64
    for stratum in found.window:
        assert abs(stratum.taken - stratum.rows * told["rate"]) <= 1
    assert found.weights.sum() == pytest.approx(inside, rel=1e-5)


def test_a_sample_of_the_newest_rows_keeps_its_share_of_each_time_and_grows_with_the_limit() -> (
    None
):
    times = spread(100_000)
    few = choose(WindowPolicy(rows=50_000, limit=1_000), times)
    more = choose(WindowPolicy(rows=50_000, limit=4_000), times)
    assert np.isin(few.places, more.places).mean() > 0.98  # all but a rounded row of a slice
    newest = np.sort(times)[-50_000:]
    halves = (times[few.places] < np.median(newest)).mean()
    assert halves == pytest.approx(0.5, abs=0.01)
    assert few.sampled and few.to_dict()["rate"] == 0.02
    other = choose(WindowPolicy(rows=50_000, limit=1_000, seed=1), times)
    assert np.isin(few.places, other.places).mean() < 0.1


def test_history_is_drawn_evenly_from_all_that_is_older_and_says_what_it_stands_for() -> None:
    times = np.arange(400_000, dtype=np.int64) * 1_000
    found = choose(WindowPolicy(rows=8_000, limit=10_000, history=0.2), times)
    assert found.history is not None
    assert (found.history.rows, found.history.taken) == (392_000, 2_000)
    old = found.places[found.places < 392_000]
    assert len(old) == 2_000
    assert np.histogram(old, 4, (0, 392_000))[0].min() > 420
    assert found.weights[0] == pytest.approx(196.0)
    assert found.weights[-1] == 1.0
    # Where there is nothing older, the window has the whole.
    alone = choose(WindowPolicy(rows=8_000, limit=4_000, history=0.2), times[:3_000])
    assert alone.history is None and len(alone.places) == 3_000


def test_history_of_periods_counts_rows_that_were_dropped_before_they_were_old() -> None:
    times = np.arange(600_000, dtype=np.int64) * 1_000
    policy = WindowPolicy(500, 500, period_ms=100_000_000, periods=1, history=0.2)
    found = choose(policy, times)
    assert found.history is not None
    window = found.to_dict()["window_rows"]
    assert found.history.rows + window == 600_000
    assert found.history.taken == 100
    assert found.weights.sum() == pytest.approx(600_000, rel=1e-4)


def test_no_more_than_a_few_times_the_limit_is_ever_kept() -> None:
    policy = WindowPolicy(rows=1_000, limit=1_000, period_ms=HOUR * 1_000, periods=1)
    chooser = RowChooser(policy)
    for start in range(0, 2_000_000, 100_000):
        places = np.arange(start, start + 100_000)
        keys = row_keys(0, places.astype(np.uint64))
        chooser.add(np.full(100_000, HOUR, np.int64), keys, places)
        assert chooser.kept <= 2_000 + 65_536
    assert len(chooser.choose().places) == 1_000


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([], 5, []),
        ([3, 4], 9, [3, 4]),
        ([10, 10], 5, [2, 3]),
        ([1, 1, 98], 10, [0, 0, 10]),
        ([50, 30, 20], 10, [5, 3, 2]),
    ],
)
def test_rows_are_allotted_by_share_and_add_up(
    counts: Sequence[int], total: int, expected: list[int]
) -> None:
    assert allotted(list(counts), total) == expected


def test_more_rows_than_places_can_name_are_refused() -> None:
    chooser = RowChooser(WindowPolicy(10, 10))
    with pytest.raises(DataError, match="more than 4,294,967,295 rows"):
        chooser.add(np.zeros(1, np.int64), np.zeros(1, np.uint32), np.array([1 << 32]))


def test_keys_are_evenly_spread_and_differ_by_seed() -> None:
    numbers = np.arange(100_000, dtype=np.uint64)
    keys = row_keys(0, numbers)
    assert np.histogram(keys, 16, (0, 2**32))[0].min() > 6_000
    assert (keys == row_keys(1, numbers)).mean() < 1e-3
