"""Edges that ties, constants and extremes cannot upset, and groups of about equal mass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab._native.binning import groups, quantile_edges

FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 4).map(float)
)


@given(st.lists(FLOATS, max_size=80), st.integers(2, 256))
@settings(deadline=None)
def test_edges_ascend_strictly_and_fit_the_bins(values: list[float], bins: int) -> None:
    edges = quantile_edges(np.sort(np.array(values, np.float32)), bins)
    assert edges.dtype == np.float32
    assert len(edges) <= bins - 1
    assert np.all(edges[:-1] < edges[1:])


def test_quantile_bins_of_distinct_values_have_equal_mass() -> None:
    ordered = np.arange(6400, dtype=np.float32)
    counts = np.diff(np.searchsorted(ordered, quantile_edges(ordered, 8)), prepend=0, append=6400)
    assert counts.tolist() == [800] * 8
    ordered = np.arange(6000, dtype=np.float32)
    edges = quantile_edges(ordered, 64)
    counts = np.diff(np.searchsorted(ordered, edges), prepend=0, append=6000)
    assert counts.tolist() == [0, 0, *[100] * 60, 0, 0]


def test_the_outermost_bins_are_beyond_the_extremes_and_far_beyond() -> None:
    edges = quantile_edges(np.linspace(10, 20, 5000, dtype=np.float32), 64)
    assert edges[[0, 1]].tolist() == [10 - 90, 10]
    assert edges[[-2, -1]].tolist() == [np.nextafter(np.float32(20), np.float32(np.inf)), 110]
    largest = np.finfo(np.float32).max
    edges = quantile_edges(np.linspace(-1, 1, 5000).astype(np.float32) * largest, 64)
    assert edges[0] == -largest and edges[-1] == np.inf, "nothing is farther out"


def test_each_of_few_distinct_values_has_a_bin_and_so_has_what_lies_outside() -> None:
    edges = quantile_edges(np.array([1, 1, 1, 5, 7], np.float32), 64)
    above = np.nextafter(np.float32(7), np.float32(np.inf))
    assert edges.tolist() == [1 - 54, 1, 5, 7, above, 7 + 54]
    assert quantile_edges(np.array([1, 1, 1, 5, 7], np.float32), 5).tolist() == [1, 5, 7, above]


@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, 1e-45, float(np.finfo(np.float32).max)])
def test_a_constant_column_has_a_bin_below_one_at_and_one_above(value: float) -> None:
    edges = quantile_edges(np.full(9, value, np.float32), 64)
    assert len(edges) == 2
    assert edges[0] == np.float32(value) < edges[1]


def test_a_heavy_tie_collapses_into_one_bin_with_its_real_mass() -> None:
    ordered = np.concatenate([np.zeros(5000), np.linspace(1, 2, 5000)]).astype(np.float32)
    edges = quantile_edges(ordered, 64)
    counts = np.diff(np.searchsorted(ordered, edges), prepend=0, append=len(ordered))
    assert counts[:2].tolist() == [0, 0]
    assert counts[2] >= 5000
    assert counts[3:].max() < 200


@given(st.lists(st.integers(0, 50), min_size=1, max_size=70), st.integers(1, 12))
def test_groups_cover_every_bin_once_and_have_mass(counts: list[int], at_most: int) -> None:
    starts = groups(counts, at_most)
    assert starts[0] == 0
    assert np.all(np.diff(starts) > 0)
    assert len(starts) <= at_most
    assert starts[-1] < len(counts)
    mass = np.add.reduceat(np.array(counts), starts)
    assert mass.sum() == sum(counts)
    if sum(counts) and len(counts) > at_most:
        assert mass.min() > 0


def test_even_bins_are_grouped_evenly() -> None:
    assert groups([1] * 60).tolist() == list(range(0, 60, 6))
    mass = np.add.reduceat(np.full(64, 100), groups(np.full(64, 100)))
    assert mass.min() >= 600
    assert mass.max() <= 700


def test_few_bins_are_a_group_each_the_empty_ones_too() -> None:
    assert groups([0, 900, 0]).tolist() == [0, 1, 2]


def test_a_heavy_bin_takes_the_place_of_several_groups() -> None:
    counts = [0, 500, *[10] * 50]
    mass = np.add.reduceat(counts, groups(counts))
    assert mass.tolist() == [500, *[100] * 5]


@pytest.mark.parametrize(
    ("counts", "at_most", "message"),
    [([], 10, "shape"), ([[1]], 10, "shape"), ([1], 0, "at_most must be at least 1, not 0")],
)
def test_groups_of_nothing_are_refused(counts: list[int], at_most: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(counts, at_most)
