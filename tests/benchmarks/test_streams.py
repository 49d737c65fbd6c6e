"""The streams have what they are said to have, and their checks tell a right report from a wrong one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import streams
from streams import CHANGE, PERIOD, STREAMS


def report(*events: tuple[int, str, list[str]], **overall: Any) -> Any:
    """A report of one period with events of (row of the data, kind, features)."""
    figures = {
        "drift_alarms": sum(kind == "drift" for _, kind, _ in events),
        "data_quality_alarms": sum(kind == "data_quality" for _, kind, _ in events),
        "trainings": sum(kind == "training_started" for _, kind, _ in events),
        "promotions": 0,
        "refused": 0,
        "metric_managed": 0.8,
        "metric_frozen": 0.6,
        "verdicts": {"promoted": {"wrong": 0}},
    }
    told = [
        {"kind": kind, "after_rows": row - PERIOD, "features": names} for row, kind, names in events
    ]
    return SimpleNamespace(
        periods=[SimpleNamespace(events=told, rows=9 * PERIOD)],
        settings={"first_period": {"rows": PERIOD}},
        overall=SimpleNamespace(**figures | overall),
        decisions=(),
    )


@pytest.mark.parametrize(
    ("events", "holds"),
    [
        ([(CHANGE + 900, "quality"), (CHANGE + 950, "training_started")], True),
        ([(CHANGE + 900, "quality")], False),
        ([(CHANGE + 950, "training_started")], False),
        ([(CHANGE - 1, "quality"), (CHANGE + 950, "training_started")], False),
        (
            [
                (CHANGE + 900, "quality"),
                (CHANGE + 950, "training_started"),
                (CHANGE + 990, "drift"),
            ],
            False,
        ),
    ],
)
def test_concept_drift_must_be_told_by_the_labels_alone(
    events: list[tuple[int, str]], holds: bool
) -> None:
    found = streams.caught_by_labels({"": report(*((row, kind, []) for row, kind in events))})
    assert found.holds == holds
    if holds:
        assert "told after 900 rows of it" in found.observed


def test_drift_without_loss_must_be_told_and_nothing_promoted() -> None:
    drift = (CHANGE + 200, "drift", ["idle"])
    assert streams.refused({"": report(drift, refused=3)}).holds
    assert not streams.refused({"": report(drift, refused=3, promotions=1)}).holds
    assert not streams.refused({"": report(drift)}).holds, "nobody was refused"
    early = (CHANGE - 200, "drift", ["idle"])
    assert not streams.refused({"": report(early, drift, refused=3)}).holds


def test_a_broken_column_must_be_named_and_never_trained_on() -> None:
    check = streams.named_and_not_trained("size")
    alarm = (CHANGE + 40, "data_quality", ["size"])
    assert check({"": report(alarm)}).holds
    assert not check({"": report((CHANGE + 40, "data_quality", ["x"]))}).holds
    assert not check({"": report(alarm, (CHANGE + 60, "training_started", []))}).holds


def rows_of(name: str) -> pl.DataFrame:
    [stream] = [each for each in STREAMS if each.name == name]
    return stream.make(np.random.default_rng(1), 9_000)


@pytest.mark.parametrize("name", [each.name for each in STREAMS])
def test_a_stream_has_ten_periods_of_rows_in_the_order_of_time(name: str) -> None:
    frame = streams.slices(rows_of(name))
    assert frame["when"].is_sorted()
    assert frame["period"].n_unique() == streams.PERIODS
    assert frame["y"].null_count() == 0


def test_each_column_breaks_as_it_is_said_to_and_not_before_its_row() -> None:
    null, unit, stuck, swapped = (
        rows_of(f"broken: {how}") for how in ("all null", "× 1000", "constant", "swapped columns")
    )
    half = 4_500
    assert null["size"].slice(half).null_count() == half
    assert null["size"].head(half).null_count() == 0
    assert np.median(unit["size"].slice(half).to_numpy()) > 500 * np.median(
        unit["size"].head(half).to_numpy()
    )
    assert stuck["size"].slice(half).n_unique() == 1 < stuck["size"].head(half).n_unique()
    assert (
        np.min(swapped["x"].slice(half).to_numpy()) > 0 > np.min(swapped["x"].head(half).to_numpy())
    )


def test_labels_alone_show_the_concept_drift() -> None:
    frame = rows_of("concept drift")
    before, after = frame.head(CHANGE), frame.slice(CHANGE)
    for column in ("x", "z", "idle"):
        assert abs(np.mean(before[column].to_numpy()) - np.mean(after[column].to_numpy())) < 0.1
    for part, sign in ((before, 1), (after, -1)):
        red = part.filter(pl.col("kind") == "red")
        assert sign * np.corrcoef(red["x"], red["y"])[0, 1] > 0.5
