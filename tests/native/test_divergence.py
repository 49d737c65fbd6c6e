"""PSI against its formula and known values, the KS bracket against scipy's statistic."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from trimtab._native.divergence import ks_bracket, psi
from trimtab._native.histogram import NumericHistogram
from trimtab._native.reference import numeric_feature

# PSI over the deciles of N(0, 1) between it and N(d, 1), integrated numerically.
SHIFTED = {0.05: 0.002397, 0.1: 0.009587, 0.25: 0.059816, 0.5: 0.237749, 1.0: 0.926142}

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=30)


def counted(edges: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint64]:
    histogram = NumericHistogram([edges], 1)
    histogram.update(values[:, None])
    return histogram.total()[0, :-1]


@given(COUNTS, st.data())
def test_psi_is_its_formula_with_half_a_row_added_to_every_bin(
    reference: list[int], data: st.DataObject
) -> None:
    bins = len(reference)
    current = data.draw(st.lists(st.integers(0, 1000), min_size=bins, max_size=bins))
    m, n = sum(reference), sum(current)
    expected = 0.0
    if m and n:
        for c, d in zip(reference, current, strict=True):
            p, q = (c + 0.5) / (m + bins / 2), (d + 0.5) / (n + bins / 2)
            expected += (q - p) * math.log(q / p)
    assert psi(reference, current) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert psi(np.array(reference, np.uint64), np.array(current, np.int64)) == psi(
        reference, current
    )


@given(COUNTS)
def test_psi_of_equal_counts_is_zero_and_it_is_symmetric(counts: list[int]) -> None:
    assert psi(counts, counts) == 0
    assert psi(counts, counts[::-1]) == pytest.approx(psi(counts[::-1], counts))


@pytest.mark.parametrize(("shift", "expected"), SHIFTED.items())
def test_psi_of_a_shifted_normal_over_its_deciles_is_the_known_value(
    shift: float, expected: float
) -> None:
    deciles = stats.norm.ppf(np.arange(1, 10) / 10)
    shares = np.diff(stats.norm.cdf(deciles - shift), prepend=0, append=1)
    assert psi(np.full(10, 1e12), shares * 1e13) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(("shift", "expected"), SHIFTED.items())
def test_psi_of_a_million_counted_rows_comes_near_the_known_value(
    shift: float, expected: float
) -> None:
    rng = np.random.default_rng(7)
    feature = numeric_feature("x", rng.normal(size=1_000_000), bins=10)
    live = counted(feature.edges, rng.normal(shift, size=1_000_000).astype(np.float32))
    assert psi(feature.counts, live) == pytest.approx(expected, rel=0.02, abs=3e-4)


SAMPLE = st.one_of(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=60),  # ties
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, 1.0, np.inf, -np.inf]), min_size=1, max_size=60),
    st.integers(1, 30).map(lambda n: [2.5] * n),  # constant
)


def exact_ks(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    with np.errstate(divide="ignore"):  # in the p-value of two samples of one row each
        return float(stats.ks_2samp(first, second, method="asymp").statistic)


def assert_bracketed(
    reference: NDArray[np.float32], current: NDArray[np.float32], edges: NDArray[np.float32]
) -> None:
    before, now = counted(edges, reference), counted(edges, current)
    low, high = ks_bracket(before, now)
    assert 0 <= low <= exact_ks(reference, current) <= high  # to the last bit
    largest = max(max(before / len(reference)), max(now / len(current)))
    assert high <= low + largest + 1e-12
    assert high <= 1


@given(SAMPLE, SAMPLE, st.lists(st.floats(-5, 5, width=32), max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_bracket_contains_the_exact_statistic_for_any_edges(
    first: list[float], second: list[float], edges: list[float]
) -> None:
    reference, current = np.array(first, np.float32), np.array(second, np.float32)
    assert_bracketed(reference, current, np.unique(np.array(edges, np.float32)))


@given(SAMPLE, SAMPLE, st.integers(2, 64))
@settings(max_examples=150, deadline=None)
def test_the_bracket_contains_the_exact_statistic_for_the_reference_s_own_edges(
    first: list[float], second: list[float], bins: int
) -> None:
    reference, current = np.array(first, np.float32), np.array(second, np.float32)
    assert_bracketed(reference, current, numeric_feature("x", reference, bins).edges)


def test_the_bracket_is_exact_where_every_value_has_its_bin() -> None:
    rng = np.random.default_rng(1)
    reference, current = (rng.poisson(mean, 5000).astype(np.float32) for mean in (3, 3.2))
    edges = numeric_feature("x", reference).edges
    low, _ = ks_bracket(counted(edges, reference), counted(edges, current))
    assert low == exact_ks(reference, current)


def test_the_bracket_of_64_quantile_bins_is_narrow() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=50_000).astype(np.float32)
    current = rng.normal(0.5, size=10_000).astype(np.float32)
    feature = numeric_feature("x", reference)
    low, high = ks_bracket(feature.counts, counted(feature.edges, current))
    exact = exact_ks(reference, current)
    assert low <= exact <= high
    assert exact - low < 0.005
    assert high - low < 0.04


def test_an_empty_side_says_nothing() -> None:
    assert psi([1, 2], [0, 0]) == 0.0
    assert psi([0, 0], [1, 2]) == 0.0
    assert ks_bracket([1, 2], [0, 0]) == (0.0, 1.0)


@pytest.mark.parametrize("compare", [psi, ks_bracket])
@pytest.mark.parametrize(
    ("reference", "current", "message"),
    [
        ([1, 2], [1], "2 bins of reference, 1 of current"),
        ([], [], r"reference counts have shape \(0,\)"),
        ([[1]], [1], r"reference counts have shape \(1, 1\)"),
        ([1, -1], [1, 1], "reference count of bin 1 is -1.0"),
        ([1, 1], [math.nan, 1], "current count of bin 0 is nan"),
        ([1, 1], [math.inf, 1], "current count of bin 0 is inf"),
    ],
)
def test_what_are_not_counts_is_refused(
    compare: Any, reference: Any, current: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(reference, current)
