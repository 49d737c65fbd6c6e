import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.server.logs.label_ages import LabelAges

TIMES = st.integers(0, 2_000) | st.integers(0, 4_000_000_000_000)
LABELS = st.lists(st.tuples(TIMES, st.integers(1, 5)), max_size=400)


def naive(labels: list[tuple[int, int]], now_ms: int, maturity_ms: float) -> int:
    return sum(count for known_ms, count in labels if known_ms + maturity_ms > now_ms)


def ages_of(labels: list[tuple[int, int]]) -> LabelAges:
    ages = LabelAges()
    for known_ms, count in labels:
        ages.add(known_ms, count)
    return ages


@given(LABELS, st.integers(0, 4_100_000_000_000), st.integers(1, 3_000) | st.integers(1, 10**12))
def test_no_label_matures_early_and_none_more_than_a_32nd_late(
    labels: list[tuple[int, int]], now_ms: int, maturity_ms: int
) -> None:
    ages = ages_of(labels)
    young = ages.young(now_ms, maturity_ms)
    assert young >= naive(labels, now_ms, maturity_ms)
    if now_ms >= max((known_ms for known_ms, _ in labels), default=0):
        assert young <= naive(labels, now_ms, maturity_ms * 33 / 32)


@given(LABELS)
def test_none_is_lost_and_what_was_dumped_is_loaded(labels: list[tuple[int, int]]) -> None:
    ages = ages_of(labels)
    dumped = ages.dump()
    assert sum(count for _, _, count in dumped) == sum(count for _, count in labels)
    assert all(first <= latest for first, latest, _ in dumped)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(dumped))
    assert LabelAges.load(json.loads(json.dumps(dumped))).dump() == dumped


def test_a_few_labels_are_exact() -> None:
    ages = ages_of([(1_000, 3), (1_000, 1), (5_000, 7), (3_000, 2)])
    assert [ages.young(now, 1_000) for now in (1_999, 2_000, 3_999, 4_000, 6_000)] == [
        *(13, 9, 9, 7, 0),
    ]


@pytest.mark.parametrize("step_ms", [1, 1_000, 3_600_000])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_year_of_any_rate_takes_some_hundred_buckets(step_ms: int, shuffled: bool) -> None:
    times = np.arange(30_000) * step_ms
    if shuffled:
        np.random.default_rng(0).shuffle(times)
    ages = LabelAges()
    most = 0
    for known_ms in times.tolist():
        ages.add(known_ms, 1)
        most = max(most, len(ages))
    assert most < 2_000


@pytest.mark.parametrize("dumped", [[[1, 2]], [["a", 1, 1]], [3], 7])
def test_what_is_no_dump_is_refused(dumped: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        LabelAges.load(dumped)  # type: ignore[arg-type]  # that is the point
