"""Groups for the e-detector, evidence of several features, and rows that depend on each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, stats

from trimtab._native.evidence import (
    design_effect,
    e_bh,
    evidence_groups,
    global_log_evidence,
    log_threshold,
)
from trimtab._native.histogram import CategoryHistogram, NumericHistogram
from trimtab._native.reference import categorical_feature, numeric_feature

Floats = NDArray[np.float64]


def test_groups_of_a_continuous_column_have_the_intervals_between_order_statistics() -> None:
    values = np.random.default_rng(0).normal(size=6400).astype(np.float32)
    feature = numeric_feature("x", values)
    groups = evidence_groups(feature)
    assert len(groups.masses) == 10
    assert groups.masses.sum() == 6401
    histogram = NumericHistogram([feature.edges], 2)
    histogram.update(values[:, None])
    counted = groups.count(histogram.window()[0])
    assert (groups.masses - counted).tolist() == [1] + [0] * 9
    assert counted.min() >= 500


@given(st.lists(st.integers(0, 12), min_size=1, max_size=400), st.integers(2, 64))
def test_every_group_of_a_tied_column_has_fifty_rows_or_there_is_one(
    values: list[int], bins: int
) -> None:
    feature = numeric_feature("x", values, bins)
    groups = evidence_groups(feature)
    row = np.append(feature.counts, np.uint64(0))
    assert len(groups.masses) == 1 or groups.count(row).min() >= 50
    assert groups.masses.sum() == len(values) + 1
    assert groups.count(row).sum() == len(values)


def test_missing_values_are_a_group_if_the_reference_has_enough_of_them() -> None:
    some = np.concatenate([np.arange(1000.0), np.full(50, np.nan)])
    for values, missing in ((some, [50.0]), (some[:-1], [])):
        groups = evidence_groups(numeric_feature("x", values))
        assert groups.masses[10:].tolist() == missing
        row = np.zeros(80, np.uint64)
        row[-1] = 7
        assert groups.count(row).tolist() == [0.0] * 10 + ([7.0] if missing else [])


@pytest.mark.parametrize("values", [[], [np.nan] * 500, [3.0] * 500, [np.nan] * 500 + [1.0] * 49])
def test_a_column_that_leaves_one_group_has_one(values: list[float]) -> None:
    assert len(evidence_groups(numeric_feature("x", values)).masses) == 1


def test_common_categories_are_groups_and_all_others_are_one() -> None:
    sizes = {f"c{i:02}": 300 - 10 * i for i in range(24)} | {"rare": 3, "": 60}
    feature = categorical_feature("x", [name for name, n in sizes.items() for _ in range(n)])
    groups = evidence_groups(feature)
    assert groups.masses[:14].tolist() == [300 - 10 * i for i in range(14)]
    assert groups.masses[14:].tolist() == [sum(300 - 10 * i for i in range(14, 24)) + 3, 60]
    histogram = CategoryHistogram([feature.kept], [feature.rare], 1)
    live = [b"c00", b"c20", b"rare", b"never seen", b"", b"c13"]
    histogram.update(b"".join(len(text).to_bytes(4, "little") + text for text in live), len(live))
    assert groups.count(histogram.window()[0]).tolist() == [1] + [0] * 12 + [1, 3, 1]


def test_what_was_never_seen_joins_the_least_category_that_was() -> None:
    feature = categorical_feature("x", ["a"] * 500 + ["b"] * 90 + ["c"] * 60 + [""] * 10)
    groups = evidence_groups(feature)
    assert groups.masses.tolist() == [500, 90, 60]
    # a, b, c, other, unseen, missing: too few are missing to be a group
    assert groups.count(np.array([1, 2, 3, 0, 9, 7], np.uint64)).tolist() == [1, 2, 12]


@pytest.mark.parametrize("values", [[], ["a"] * 500, [""] * 500, [""] * 500 + ["a"] * 49])
def test_categories_that_leave_one_group_have_one(values: list[str]) -> None:
    assert len(evidence_groups(categorical_feature("x", values)).masses) == 1


EVIDENCE = st.lists(st.floats(-20, 2000), min_size=1, max_size=12)


@given(EVIDENCE)
def test_the_global_evidence_is_the_mean(log_e: list[float]) -> None:
    found = global_log_evidence(np.array(log_e))
    assert found == pytest.approx(float(np.logaddexp.reduce(log_e)) - math.log(len(log_e)))


def test_there_is_no_evidence_before_the_first_check() -> None:
    assert global_log_evidence(np.full(3, -math.inf)) == -math.inf
    assert not len(e_bh(np.full(3, -math.inf), 0.05))


@given(st.lists(st.floats(-3, 12), min_size=1, max_size=12), st.sampled_from([0.5, 0.05, 1e-3]))
def test_e_bh_takes_the_largest_set_that_is_strong_enough(log_e: list[float], alpha: float) -> None:
    strongest = sorted(range(len(log_e)), key=lambda i: -log_e[i])
    expected: list[int] = []
    for k in range(1, len(log_e) + 1):
        if log_e[strongest[k - 1]] >= math.log(len(log_e) / (k * alpha)):
            expected = strongest[:k]
    assert e_bh(np.array(log_e), alpha).tolist() == expected


def test_levels_that_are_none_are_refused() -> None:
    assert log_threshold(1000) == math.log(1000)
    with pytest.raises(ValueError, match=r"target_checks must be at least 1, not 0\.5"):
        log_threshold(0.5)
    with pytest.raises(ValueError, match="alpha must be above 0 and at most 1, not 0"):
        e_bh(np.zeros(2), 0)


def panes(
    random: np.random.Generator, number: int, correlation: float, pane: int = 1000
) -> NDArray[np.float64]:
    """Deciles of a stationary normal series whose rows resemble the one before."""
    noise = random.normal(size=number * pane)
    noise[1:] *= math.sqrt(1 - correlation**2)
    series = signal.lfilter([1], [1, -correlation], noise)
    bins = np.searchsorted(stats.norm.ppf(np.arange(1, 10) / 10), series).reshape(number, pane)
    return np.array([np.bincount(each, minlength=10) for each in bins], float)


@pytest.mark.parametrize(
    ("correlation", "expected"), [(0.0, 1.0), (0.2, 1.08), (0.5, 1.59), (0.8, 4.77)]
)
def test_the_design_effect_of_autocorrelated_rows_is_about_right(
    correlation: float, expected: float
) -> None:
    random = np.random.default_rng(8)
    found = [design_effect(panes(random, 40, correlation)) for _ in range(12)]
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_one_change_of_level_is_not_dependence() -> None:
    random = np.random.default_rng(9)
    counts = random.multinomial(1000, np.full(10, 0.1), size=40).astype(float)
    calm = design_effect(counts)
    counts[20:] = random.multinomial(1000, np.arange(1, 11) / 55, size=20)
    assert design_effect(counts) <= calm + 0.15


def test_panes_of_unlike_sizes_and_rare_groups_have_no_design_effect() -> None:
    random = np.random.default_rng(10)
    shares = np.array([0.9, 0.08, 0.0199, 0.0001])
    found = [
        design_effect(
            np.array([random.multinomial(n, shares) for n in random.integers(0, 3000, size=60)])
        )
        for _ in range(30)
    ]
    assert np.mean(found) <= 1.15


@pytest.mark.parametrize(
    "counts", [np.zeros((0, 3)), np.zeros((9, 3)), np.full((4, 3), 100), np.full((9, 3), 1),
               np.full((9, 1), 100)]
)  # fmt: skip
def test_too_little_to_judge_by_has_no_design_effect(counts: Floats) -> None:
    assert design_effect(counts) == 1


def test_counts_without_panes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts have shape \(3,\), expected \(panes, groups\)"):
        design_effect(np.zeros(3))
