"""Statistics of counts against their formulas, against scipy, and against what chance really does."""

import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, spatial, stats

from trimtab._native.divergence import (
    Comparison,
    GroupedReference,
    hellinger,
    jensen_shannon,
    ks_bracket,
    ks_p_value,
    psi,
    psi_critical,
    psi_lower_bound,
    psi_p_value,
    rate_interval,
    wasserstein,
)
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
    st.lists(st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan]), min_size=1, max_size=60),
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
    reference, current = reference[~np.isnan(reference)], current[~np.isnan(current)]
    if not (len(reference) and len(current)):
        assert (low, high) == (0, 1)
        return
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


@pytest.mark.parametrize("shift", SHIFTED)
def test_the_bracket_of_a_shifted_normal_closes_in_on_the_known_value(shift: float) -> None:
    expected = 2 * stats.norm.cdf(shift / 2) - 1
    for bins, near in ((10, 0.03), (64, 1e-3), (256, 1e-4), (4096, 1e-6)):
        edges = stats.norm.ppf(np.arange(1, bins) / bins)
        shares = np.diff(stats.norm.cdf(edges - shift), prepend=0, append=1)
        low, high = ks_bracket(np.full(bins, 1e12), shares * bins * 1e12)
        assert low - 1e-12 <= expected <= high + 1e-12
        assert expected - low < near
        assert high - low <= max(1 / bins, shares.max()) + 1e-12


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_the_lower_bound_of_a_million_counted_rows_comes_near_the_known_value(shift: float) -> None:
    rng = np.random.default_rng(8)
    feature = numeric_feature("x", rng.normal(size=1_000_000), bins=256)
    live = counted(feature.edges, rng.normal(shift, size=1_000_000).astype(np.float32))
    low, _ = ks_bracket(feature.counts, live)
    assert low == pytest.approx(2 * stats.norm.cdf(shift / 2) - 1, abs=0.003)


def test_one_wild_value_does_not_blind_the_index() -> None:
    rng = np.random.default_rng(3)
    feature = numeric_feature("x", rng.normal(size=10_000), bins=10)
    values = rng.normal(0.5, size=1000).astype(np.float32)
    without = psi(feature.counts, counted(feature.edges, values))
    wild = np.append(values, np.float32(1e6))
    assert without > 0.2
    assert abs(psi(feature.counts, counted(feature.edges, wild)) - without) < 0.02


# What chance does.

SAMPLE_SIZES = [(200, 200), (10_000, 200), (10_000, 1000), (500.5, 731.25), (2e7, 2e7), (1e9, 1e8)]


@pytest.mark.parametrize("bins", [2, 3, 10, 21, 64, 257, 5000])
@pytest.mark.parametrize(("m", "n"), SAMPLE_SIZES)
def test_the_critical_psi_and_the_p_value_are_those_of_chi_square(
    bins: int, m: float, n: float
) -> None:
    k = 1 / m + 1 / n
    for alpha in (0.5, 0.2, 0.05, 0.01, 1e-4, 1e-9):
        critical = psi_critical(m, n, bins, alpha)
        assert critical == pytest.approx(k * stats.chi2.isf(alpha, bins - 1), rel=1e-11)
        assert psi_p_value(critical, m, n, bins) == pytest.approx(alpha, rel=1e-9)
    for times in (0.0, 1e-30, 1e-6, 0.1, 0.9, 1.0, 1.1, 3.0, 20.0):  # of what chance has on average
        x = times * (bins - 1)
        expected = stats.chi2.sf(x, bins - 1)
        assert psi_p_value(k * x, m, n, bins) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("bins", [2, 3, 11, 64, 257])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.01, 1e-6])
def test_the_lower_bound_inverts_scipy_s_noncentral_chi_square(bins: int, alpha: float) -> None:
    m, n = 50_000.0, 2000.0
    k = 1 / m + 1 / n
    noncentralities = [0.01, 0.5, 3, 30, 200, 700, 890, 990, 1000, 1100, 3000, 1e4, 1e5, 1e6, 1e7]
    for noncentrality in noncentralities:
        x = float(stats.ncx2.isf(alpha, bins - 1, noncentrality))
        bound = psi_lower_bound(k * x, m, n, bins, alpha) / k
        near = 1e-8 if x <= 1000 else 1e-6
        assert bound == pytest.approx(noncentrality, rel=near, abs=near)


@given(
    st.integers(2, 100),
    st.floats(1.001, 50),
    st.sampled_from([0.3, 0.05, 1e-3]),
    st.floats(0.01, 0.99),
)
@settings(deadline=None)
def test_every_index_below_the_lower_bound_is_rejected_and_none_above(
    bins: int, times: float, alpha: float, part: float
) -> None:
    m, n = 10_000.0, 1000.0
    k = 1 / m + 1 / n
    found = times * psi_critical(m, n, bins, alpha)
    bound = psi_lower_bound(found, m, n, bins, alpha)
    assert 0 < bound < found
    assert found > k * stats.ncx2.isf(alpha, bins - 1, bound * part / k)
    assert found < k * stats.ncx2.isf(alpha, bins - 1, bound * (1 + part) / k)


@given(st.integers(2, 200), st.floats(0, 3000), st.floats(1e-5, 100), st.floats(1e-6, 0.5))
@settings(deadline=None)
def test_more_psi_is_less_likely_and_means_more(
    bins: int, x: float, more: float, alpha: float
) -> None:
    m, n = 20_000.0, 3000.0
    low, high = x * (1 / m + 1 / n), (x * (1 + more) + more) * (1 / m + 1 / n)
    assert psi_p_value(high, m, n, bins) <= psi_p_value(low, m, n, bins)
    assert psi_lower_bound(high, m, n, bins, alpha) >= psi_lower_bound(low, m, n, bins, alpha)
    assert psi_lower_bound(high, m, n, bins, alpha) >= psi_lower_bound(high, m, n / 2, bins, alpha)
    assert psi_critical(m, n, bins, alpha) < psi_critical(m, n / 2, bins, alpha)
    exceeded = high > psi_critical(m, n, bins, alpha)
    assert exceeded == (psi_lower_bound(high, m, n, bins, alpha) > 0)


@pytest.mark.parametrize(
    ("bins", "n", "m"),
    [(10, 200, 10_000), (10, 500, 500), (20, 400, 400), (10, 10_000, 100_000), (5, 100, 1000)],
)
def test_five_in_a_hundred_undrifted_windows_exceed_the_critical_psi(
    bins: int, n: int, m: int
) -> None:
    rng = np.random.default_rng(11)
    flat = np.full(bins, 1 / bins)
    pairs = zip(rng.multinomial(m, flat, 6000), rng.multinomial(n, flat, 6000), strict=True)
    critical = psi_critical(m, n, bins)
    assert 0.04 < np.mean([psi(p, q) > critical for p, q in pairs]) < 0.065


@pytest.mark.parametrize(
    ("bins", "least", "n", "m"),
    [
        (10, 0.01, 10_000, 100_000),
        (10, 0.1, 1000, 10_000),
        (10, 0.1, 2000, 60_000),
        (10, 0.2, 1000, 10_000),
        (20, 0.1, 5000, 100_000),
    ],
)
def test_five_in_a_hundred_windows_drifted_so_far_are_said_to_have_drifted_farther(
    bins: int, least: float, n: int, m: int
) -> None:
    rng = np.random.default_rng(12)
    flat = np.full(bins, 1 / bins)

    def tilted(by: float) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.exp(by * np.linspace(-1, 1, bins))
        weights /= weights.sum()
        return weights

    def excess(by: float) -> float:
        shares = tilted(by)
        return float(np.sum((shares - flat) * np.log(shares / flat))) - least

    moved = tilted(optimize.brentq(excess, 0, 3))
    pairs = zip(rng.multinomial(m, flat, 6000), rng.multinomial(n, moved, 6000), strict=True)
    over = [psi_lower_bound(psi(p, q), m, n, bins) > least for p, q in pairs]
    assert 0.04 < np.mean(over) < 0.065


def test_no_index_is_too_large() -> None:
    for found in (1e3, 1e9, 1e250):
        assert psi_p_value(found, 1e6, 1e6, 10) == 0
        assert psi_lower_bound(found, 1e6, 1e6, 10) == pytest.approx(found, rel=1e-3)


def test_one_bin_or_no_rows_cannot_differ() -> None:
    assert psi_critical(100, 100, 1) == 0
    assert psi_p_value(0, 100, 100, 1) == 1
    assert psi_lower_bound(0, 100, 100, 1) == 0
    assert psi_critical(100, 0, 10) == math.inf
    assert psi_p_value(0.5, 0, 100, 10) == 1
    assert psi_lower_bound(0.5, 100, 0, 10) == 0
    assert ks_p_value(0.5, 0, 100) == 1


# Every way it is computed, and both sides of where one ends.
KS_SIZES = [1, 2, 3, 7, 8, 12, 30, 50, 77, 99, 100, 101, 150, 255, 256, 257, 300, 1000, 5000]


@pytest.mark.parametrize("size", KS_SIZES)
def test_the_p_value_of_ks_is_scipy_s(size: int) -> None:
    scaled = np.concatenate([np.linspace(0.1, 3.75, 60), [1.3999, 1.4, 1.4001, 1.9999, 2.0001]])
    statistics = scaled[scaled <= math.sqrt(size)] / math.sqrt(size)
    for statistic in (*statistics, 0.0, 0.4999 / size, 0.5, 1.0):
        expected = float(stats.kstwo.sf(statistic, size))
        if expected < 1e-12:
            continue
        near = 1e-7 if size <= 100 else 5e-5 if expected > 1e-3 else 5e-4
        # N = m n / (m + n)
        assert ks_p_value(statistic, 2 * size, 2 * size) == pytest.approx(expected, rel=near)


def test_the_p_value_of_ks_is_of_the_rounded_harmonic_number_of_rows() -> None:
    for m, n in ((10_000, 333), (77.7, 51.2), (1, 1), (50_000, 2000)):
        size = max(1, round(m * n / (m + n)))
        expected = stats.kstwo.sf(0.6 / math.sqrt(size), size)
        assert ks_p_value(0.6 / math.sqrt(size), m, n) == pytest.approx(expected, rel=1e-4)


@given(st.sampled_from(KS_SIZES), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_ks_statistic_is_less_likely(size: int, first: float, second: float) -> None:
    assume(abs(first - second) > 1e-3)
    low, high = sorted((first, second))
    assert 0 <= ks_p_value(high, 2 * size, 2 * size) <= ks_p_value(low, 2 * size, 2 * size) <= 1


def test_the_p_value_of_the_lower_bound_errs_on_the_safe_side() -> None:
    rng = np.random.default_rng(13)
    flat = np.full(64, 1 / 64)
    pairs = zip(rng.multinomial(5000, flat, 3000), rng.multinomial(700, flat, 3000), strict=True)
    rejected = np.mean([ks_p_value(ks_bracket(p, q)[0], 5000, 700) <= 0.05 for p, q in pairs])
    assert 0.015 < rejected < 0.055


@pytest.mark.parametrize("rows", [1, 2, 30, 1000])
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001])
def test_the_interval_of_a_rate_is_wilson_s(rows: int, alpha: float) -> None:
    for successes in {0, 1, rows // 3, rows - 1, rows}:
        expected = stats.binomtest(successes, rows).proportion_ci(1 - alpha, method="wilson")
        low, high = rate_interval(successes, rows, alpha)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= successes / rows <= high <= 1
    assert rate_interval(0, rows, alpha)[0] == 0
    assert rate_interval(rows, rows, alpha)[1] == 1
    assert rate_interval(0, 0, alpha) == (0, 1)


def test_the_interval_of_a_rate_covers_it_as_often_as_it_says() -> None:
    rows = 1000
    bounds = np.array([rate_interval(successes, rows) for successes in range(rows + 1)])
    rates = np.linspace(0.0005, 0.1, 200)
    chances = stats.binom.pmf(np.arange(rows + 1)[:, None], rows, rates[None])
    covered = (bounds[:, :1] <= rates) & (rates <= bounds[:, 1:])
    assert np.sum(chances * covered, axis=0).mean() == pytest.approx(0.95, abs=0.01)


# Distances.


@given(COUNTS, st.data())
def test_jensen_shannon_is_scipy_s_distance_and_hellinger_its_formula(
    reference: list[int], data: st.DataObject
) -> None:
    current = data.draw(
        st.lists(st.integers(0, 1000), min_size=len(reference)).map(
            lambda counts: counts[: len(reference)]
        )
    )
    if not (any(reference) and any(current)):
        assert jensen_shannon(reference, current) == hellinger(reference, current) == 0
        return
    p, q = np.array(reference) / sum(reference), np.array(current) / sum(current)
    # Rounding within the divergence is seen through a square root.
    shannon = spatial.distance.jensenshannon(p, q, base=2)
    assert jensen_shannon(reference, current) == pytest.approx(shannon, abs=1e-7)
    roots = np.sqrt(p) - np.sqrt(q)
    assert hellinger(reference, current) == pytest.approx(math.sqrt(roots @ roots / 2), abs=1e-12)
    for distance in (jensen_shannon, hellinger):
        assert 0 <= distance(reference, current) <= 1
        assert distance(reference, current) == pytest.approx(distance(current, reference), abs=1e-7)
        assert distance(reference, reference) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("distance", [jensen_shannon, hellinger])
def test_samples_without_a_common_bin_are_one_apart(distance: Callable[..., float]) -> None:
    assert distance([5, 0, 7, 0], [0, 100, 0, 1]) == pytest.approx(1, abs=1e-15)
    assert distance([3, 0, 6], [1, 0, 2]) == pytest.approx(0, abs=1e-8)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=8), st.floats(0.1, 30))
@settings(deadline=None)
def test_wasserstein_is_scipy_s_of_values_spread_over_their_bins(
    bins: list[tuple[int, int, int]], scale: float
) -> None:
    reference, current, widths = np.array(bins).T
    limits = np.cumsum([-3, *(widths + 1)]).astype(np.float64)
    found = wasserstein(reference, current, limits[1:-1], limits[0], limits[-1], scale)
    if not (reference.sum() and current.sum()):
        assert found == 0
        return
    parts = 50
    inside = (np.arange(parts) + 0.5) / parts
    values = (limits[:-1, None] + (widths + 1)[:, None] * inside).ravel()
    expected = stats.wasserstein_distance(
        values, values, np.repeat(reference, parts), np.repeat(current, parts)
    )
    assert found == pytest.approx(expected / scale, abs=12 / parts / scale)


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60),
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60),
    st.integers(2, 20),
)
@settings(deadline=None)
def test_wasserstein_is_off_by_half_the_bins_widths_at_most(
    first: list[float], second: list[float], bins: int
) -> None:
    reference, current = np.array(first, np.float32), np.array(second, np.float32)
    feature = numeric_feature("x", reference, bins)
    live = counted(feature.edges, current)
    lower, upper = min(first), max(first)
    limits = np.array(
        [min(lower, *feature.edges), *feature.edges, max(upper, *feature.edges)], np.float64
    )
    within = np.clip(current, limits[0], limits[-1])  # how far out the others are is unknown
    expected = stats.wasserstein_distance(reference, within)
    shares = feature.counts / len(reference) + live / len(current)
    found = wasserstein(feature.counts, live, feature.edges, lower, upper)
    assert abs(found - expected) <= np.sum(np.diff(limits) * shares) / 2 + 1e-9


def test_wasserstein_of_a_shifted_normal_is_the_shift() -> None:
    rng = np.random.default_rng(4)
    feature = numeric_feature("x", 10 * rng.normal(size=200_000), bins=64)
    live = counted(feature.edges, (10 * rng.normal(0.5, size=200_000)).astype(np.float32))
    found = wasserstein(
        feature.counts, live, feature.edges, feature.minimum, feature.maximum, feature.std
    )
    assert found == pytest.approx(0.5, abs=0.03)


# Whole tensors.

FEATURES, BINS = 5, 16


def tensor() -> tuple[
    NDArray[np.uint64], NDArray[np.uint64], NDArray[np.intp], NDArray[np.float64]
]:
    """Reference, window and groups of features whose last slot is for missing values; edges."""
    rng = np.random.default_rng(21)
    edges = np.linspace(-2, 2, BINS - 1)
    groups = np.append(np.arange(BINS) // 3, BINS // 3 + 1)

    def drawn(rows: int, shift: float) -> NDArray[np.uint64]:
        values = rng.normal(shift * np.arange(FEATURES), size=(rows, FEATURES))
        found = [np.bincount(np.searchsorted(edges, x), minlength=BINS) for x in values.T]
        return np.array([[*counts, 7] for counts in found], np.uint64)

    return drawn(9000, 0), drawn(800, 0.1), np.tile(groups, (FEATURES, 1)), edges


def test_a_comparison_of_a_tensor_has_what_the_single_functions_say() -> None:
    reference, current, groups, edges = tensor()
    current[1] = 0
    reference[2, -1] = current[2, -1] = 0  # nothing is missing on either side
    current[3, :-1] = 0
    grouped = GroupedReference(
        reference,
        groups,
        np.full(FEATURES, BINS),
        edges=[edges] * FEATURES,
        lower=np.full(FEATURES, -4.0),
        upper=np.full(FEATURES, 4.0),
        scale=[1, 1, 2, 1, math.nan],
    )
    assert (grouped.features, grouped.slots, grouped.groups) == (FEATURES, BINS + 1, 7)
    share = np.array([1, 1, 0.5, 1, 0.25])
    found = grouped.compare(current, effective=share, alpha=0.01)
    was, now = grouped.grouped(reference), grouped.grouped(current)
    assert was.shape == (FEATURES, 7)
    assert was[0].tolist() == [*np.add.reduceat(reference[0, :-1], range(0, BINS, 3)), 7]
    for f, each in enumerate(found):
        filled = (was[f] > 0) | (now[f] > 0)
        p, q = was[f][filled], now[f][filled]
        m, n, count = p.sum(), q.sum(), len(p)
        assert (each.rows, each.reference_rows, each.groups) == (n, m, count)
        assert each.psi == psi(p, q)
        n_effective = n * share[f]
        assert each.psi_critical == psi_critical(m, n_effective, count, 0.01)
        assert each.psi_p_value == psi_p_value(each.psi, m, n_effective, count)
        assert each.psi_lower_bound == psi_lower_bound(each.psi, m, n_effective, count, 0.01)
        assert each.jensen_shannon == jensen_shannon(p, q)
        assert each.hellinger == hellinger(p, q)
        before, after = reference[f, :BINS], current[f, :BINS]
        assert (each.ks_low, each.ks_high) == ks_bracket(before, after)
        assert each.ks_p_value == ks_p_value(
            each.ks_low, int(before.sum()), int(after.sum()) * share[f]
        )
    assert [math.isnan(each.wasserstein) for each in found] == [False, True, False, True, True]
    assert found[2].wasserstein == wasserstein(
        reference[2, :BINS], current[2, :BINS], edges, -4, 4, 2
    )
    assert found[2].groups == 6
    assert found[4].psi > found[0].psi
    assert found[1] == pytest.approx(
        (0, 9007, 7, 0, math.inf, 1, 0, 0, 1, 1, 0, 0, math.nan), nan_ok=True
    )


def test_a_tensor_of_categories_has_no_order() -> None:
    # Slots: kept ones, other, unseen, missing; of the second feature one is not used.
    reference = [[50, 30, 10, 6, 0, 4], [60, 36, 0, 0, 4, 0]]
    groups = [[0, 1, 2, 2, 2, 3], [0, 1, 2, 2, 3, -1]]
    grouped = GroupedReference(reference, groups, [0, 0])
    current = [[20, 30, 5, 5, 5, 5], [60, 36, 0, 0, 4, 99]]
    assert grouped.grouped(current).tolist() == [[20, 30, 15, 5], [60, 36, 0, 4]]
    first, second = grouped.compare(current)
    assert first.psi == psi([50, 30, 16, 4], [20, 30, 15, 5])
    assert (first.ks_low, first.ks_high, first.ks_p_value) == (0, 1, 1)
    assert math.isnan(first.wasserstein)
    assert (second.rows, second.groups, second.psi, second.psi_p_value) == (100, 3, 0, 1)


def test_features_without_known_limits_have_no_wasserstein() -> None:
    reference, current, groups, edges = tensor()
    infinite = np.append(edges[:-1], np.inf)
    grouped = GroupedReference(
        reference,
        groups,
        [BINS] * FEATURES,
        edges=[edges, infinite, edges, edges, edges],
        lower=[-4, -4, math.nan, -4, -1],
        upper=[4, 4, math.nan, math.inf, 1],
        scale=[0, 1, 1, 1, 1],
    )
    found = [each.wasserstein for each in grouped.compare(current)]
    assert [math.isnan(each) for each in found] == [True] * 4 + [False]  # within the edges: closed
    assert found[4] == wasserstein(reference[4, :BINS], current[4, :BINS], edges, -2, 2)


def test_threads_may_share_a_reference_and_pass_on_what_it_says() -> None:
    reference, current, groups, _ = tensor()
    grouped = GroupedReference(reference, groups, [BINS] * FEATURES)
    expected = grouped.compare(current)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: grouped.compare(current), range(50)))
    for found in results:
        for each, same in zip(found, expected, strict=True):
            assert each == pytest.approx(same, nan_ok=True)
    copy = pickle.loads(pickle.dumps(expected[0]))
    assert isinstance(copy, Comparison) and copy.psi == expected[0].psi
    assert repr(grouped) == "GroupedReference(features=5, slots=17, groups=7)"


def test_an_empty_side_says_nothing() -> None:
    assert psi([1, 2], [0, 0]) == 0.0
    assert psi([0, 0], [1, 2]) == 0.0
    assert ks_bracket([1, 2], [0, 0]) == (0.0, 1.0)


@pytest.mark.parametrize("compare", [psi, ks_bracket, jensen_shannon, hellinger])
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psi_critical(-1, 5, 2), "reference_rows is -1.0"),
        (lambda: psi_critical(5, math.nan, 2), "current_rows is nan"),
        (lambda: psi_critical(5, 5, 0), "bins is 0, expected at least 1"),
        (lambda: psi_critical(5, 5, 2, 0), "alpha is 0.0"),
        (lambda: psi_critical(5, 5, 2, 0.51), "alpha is 0.51, expected above 0 and at most 0.5"),
        (lambda: psi_p_value(-0.1, 5, 5, 2), "psi is -0.1, expected at least 0"),
        (lambda: psi_lower_bound(math.inf, 5, 5, 2), "psi is inf"),
        (lambda: psi_lower_bound(0.1, 5, 5, -3), "bins is -3"),
        (lambda: ks_p_value(1.5, 5, 5), "statistic is 1.5, expected from 0 to 1"),
        (lambda: ks_p_value(0.5, 5, math.inf), "current_rows is inf"),
        (lambda: rate_interval(6, 5), "successes is 6.0, expected from 0 to 5"),
        (lambda: rate_interval(0, -1), "rows is -1.0"),
        (lambda: rate_interval(0, 1, 1), "alpha is 1.0"),
        (lambda: wasserstein([1, 1], [1, 1], [], 0, 1), r"edges have shape \(0,\).* 2 bins"),
        (lambda: wasserstein([1] * 3, [1] * 3, [1, 1], 0, 1), "do not ascend strictly"),
        (lambda: wasserstein([1, 1], [1, 1], [math.inf], 0, 1), "edges are not finite"),
        (lambda: wasserstein([1, 1], [1, 1], [0.5], 1, 0), "limits are 1.0 and 0.0"),
        (lambda: wasserstein([1, 1], [1, 1], [0.5], 0, math.nan), "limits are 0.0 and nan"),
        (lambda: wasserstein([1, 1], [1, 1], [0.5], 0, 1, 0), "scale is 0.0, expected above 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [1, 2]}, r"reference counts have shape \(2,\), expected \(features, slots\)"),
        ({"counts": [[1, -2]]}, "reference count of feature 0, slot 1 is -2"),
        ({"groups": [[0]]}, r"groups have shape \(1, 1\), expected \(1, 2\)"),
        ({"groups": [[0, 2]]}, "groups are from 0 to 2, expected from -1 to 1"),
        ({"groups": [[-2, 0]]}, "groups are from -2 to 0"),
        ({"bins": [1, 1]}, r"bins have shape \(2,\), expected \(1,\)"),
        ({"bins": [3]}, "bins are from 3 to 3, expected from 0 to 2"),
        ({"lower": [0], "upper": [1]}, "edges and scale must be given as well"),
        ({"edges": [[1]], "lower": [0, 1], "upper": [1], "scale": [1]}, "2 lower for 1 features"),
        ({"edges": [[]], "lower": [0], "upper": [1], "scale": [1]}, r"edges have shape \(0,\)"),
    ],
)
def test_what_does_not_describe_a_tensor_is_refused(change: dict[str, Any], message: str) -> None:
    described: dict[str, Any] = {"counts": [[1, 2]], "groups": [[0, 1]], "bins": [2], **change}
    with pytest.raises(ValueError, match=message):
        GroupedReference(
            described.pop("counts"), described.pop("groups"), described.pop("bins"), **described
        )


def test_what_is_not_a_window_of_the_tensor_is_refused() -> None:
    grouped = GroupedReference([[1, 2]], [[0, 1]], [2])
    with pytest.raises(ValueError, match=r"current counts have shape \(1, 3\), expected \(1, 2\)"):
        grouped.compare([[1, 2, 3]])
    with pytest.raises(ValueError, match="current count of feature 0, slot 0 is nan"):
        grouped.grouped([[math.nan, 2]])
    with pytest.raises(ValueError, match="effective is 0, expected above 0 and at most 1"):
        grouped.compare([[1, 2]], effective=0)
    with pytest.raises(ValueError, match=r"alpha is 0\.7"):
        grouped.compare([[1, 2]], alpha=0.7)
