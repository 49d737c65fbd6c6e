import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab._native.histogram import NumericHistogram
from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.feature_faults import (
    FEWEST,
    Key,
    TensorCounts,
    faults_of,
    rates_of,
    recent,
)

REFERENCE = reference()
CONFIG = DriftConfig(window_rows=4000, panes=4)


def faults(numeric: np.ndarray, carriers: list[str], min_rows: int = 100) -> dict[Key, str]:
    monitor = DriftMonitor(SIGNATURE, REFERENCE, CONFIG, lambda snapshot: None)
    monitor.observe(batch(numeric, carriers))
    return faults_of(REFERENCE, monitor.snapshot().tensors, CONFIG, min_rows)


def test_sound_rows_have_no_faults_however_far_they_drifted() -> None:
    assert not faults(*draw(np.random.default_rng(0), 900))
    assert not faults(*draw(np.random.default_rng(0), 900, shift=50.0))


def test_each_kind_of_fault_is_told_with_its_figures() -> None:
    numeric, carriers = draw(np.random.default_rng(0), 900)
    numeric[:450, 0] = np.nan
    numeric[:, 1] = 3
    carriers = ["ZZ"] * 300 + [""] * 300 + carriers[600:]
    found = faults(numeric, carriers)
    assert "missing in 50.0% of the rows, 0.0% in the reference" in found["input", "temp"]
    assert found["input", "wind"] == "all 900 values are 3, in the reference they vary"
    assert "missing in 33.3%" in found["input", "carrier"]
    assert "33.3% of the rows have categories" in found["input", "carrier"]


@pytest.mark.parametrize("factor", [1000.0, -1000.0])
def test_values_in_another_unit_are_a_fault_and_those_a_little_outside_are_drift(
    factor: float,
) -> None:
    values = np.random.default_rng(0).uniform(100, 200, 5000).astype(np.float32)
    feature = numeric_feature("distance", values)
    profile = ReferenceProfile(5000, (TensorReference("x", "input", (feature,)),))

    def counted(live: np.ndarray) -> TensorCounts:
        histogram = NumericHistogram([feature.edges], 1)
        histogram.update(live[:, None])
        return TensorCounts(histogram.window())

    (text,) = faults_of(profile, [counted(values * factor)], CONFIG, 100).values()
    assert "100.0% of the rows are far outside of 100.0" in text
    some = np.where(np.arange(5000) < 400, values * factor, values)
    assert not faults_of(profile, [counted(some)], CONFIG, 100)
    moved = values + 150
    assert not faults_of(profile, [counted(moved)], CONFIG, 100)
    rates = rates_of(profile.tensors[0], counted(moved).counts)
    assert rates.outside == [pytest.approx((moved > values.max()).mean())] and rates.far == [0]
    assert rates_of(profile.tensors[0], counted(some).counts).far == [pytest.approx(400 / 5000)]


def test_identifiers_are_unseen_by_nature_and_no_fault() -> None:
    """The reference of a column of identifiers says itself that new ones are to be expected."""
    feature = categorical_feature("tail", [str(index).encode() for index in range(20_000)])
    assert feature.expected_unseen > 0.9
    profile = ReferenceProfile(rows=20_000, tensors=(TensorReference("c", "input", (feature,)),))
    slots = np.zeros((1, len(feature.kept) + 3), np.uint64)
    slots[0, len(feature.kept) + 1] = 1000
    assert not faults_of(profile, [TensorCounts(slots)], CONFIG, 100)


def test_a_column_may_be_constant_where_the_reference_nearly_is() -> None:
    numeric, _ = draw(np.random.default_rng(0), 900)
    assert "'AA'" in faults(numeric, ["AA"] * 900)["input", "carrier"]
    assert not faults(numeric[:99], ["AA"] * 99), "too few rows to tell"


def of_column(
    values: np.ndarray, live: np.ndarray, effective: float | None = None
) -> dict[Key, str]:
    """Faults of a pane of one column whose reference has those values."""
    feature = numeric_feature("x", values.astype(np.float32))
    profile = ReferenceProfile(len(values), (TensorReference("numeric", "input", (feature,)),))
    histogram = NumericHistogram([feature.edges], 1, follow=[True])
    histogram.update(live.astype(np.float32)[:, None])
    counts = TensorCounts(histogram.window(), *histogram.extremes(1))
    shares = None if effective is None else {("input", "x"): effective}
    return faults_of(profile, [counts], CONFIG, 100, shares)


def test_a_stuck_column_is_told_from_few_rows_on_where_dependence_was_measured() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert not of_column(values, np.full(FEWEST, 0.25)), "nobody knows how alike neighbours are"
    (text,) = of_column(values, np.full(FEWEST, 0.25), effective=1.0).values()
    assert text == f"all {FEWEST} values are 0.25, in the reference they vary"
    assert not of_column(values, np.full(FEWEST - 1, 0.25), effective=1.0)
    varied = np.append(np.full(FEWEST - 1, 0.25), 0.26)
    assert not of_column(values, varied, effective=1.0)


def test_a_column_that_changes_once_an_hour_is_not_stuck_within_the_hour() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert not of_column(values, np.full(1000, 0.25), effective=1 / 500)
    assert of_column(values, np.full(1000, 0.25)), "unless the rows are taken as independent"


@pytest.mark.parametrize(("share", "rows", "stuck"), [(0.8, 100, False), (0.8, 140, True)])
def test_a_column_that_hardly_varies_needs_more_rows_to_be_stuck(
    share: float, rows: int, stuck: bool
) -> None:
    """0.8 to the power of 100 happens by chance in one of five thousand million panes."""
    values = np.random.default_rng(0).random(5000) >= share
    assert bool(of_column(values, np.zeros(rows))) == stuck
    assert bool(of_column(values, np.zeros(rows), effective=1.0)) == stuck


def test_missing_values_of_a_small_pane_are_no_fault_yet() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert not of_column(values, np.full(FEWEST, np.nan), effective=1.0)


def test_no_sound_column_is_stuck_in_thousands_of_small_panes() -> None:
    random = np.random.default_rng(0)
    values = random.poisson(0.2, 20_000)  # 82 % zeros
    feature = numeric_feature("x", values.astype(np.float32))
    profile = ReferenceProfile(20_000, (TensorReference("numeric", "input", (feature,)),))
    histogram = NumericHistogram([feature.edges], 1, follow=[True])
    alike = 0
    for _ in range(3000):
        histogram.advance()
        pane = random.poisson(0.2, FEWEST).astype(np.float32)
        alike += len(np.unique(pane)) == 1
        histogram.update(pane[:, None])
        counts = TensorCounts(histogram.window(), *histogram.extremes(1))
        assert not faults_of(profile, [counts], CONFIG, 100, {("input", "x"): 1.0})
    assert alike > 30, "panes with one value alone do come"


def test_faults_of_panes_are_counted_and_told_in_their_newest_words() -> None:
    key = ("input", "temp")
    assert recent([{}, {key: "half"}, {}, {key: "all"}], 10) == {
        key: "in 2 of the last 10 panes: all"
    }
    assert recent([], 10) == {}
