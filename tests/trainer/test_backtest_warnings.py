"""What is told of data that are too few for a verdict."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trimtab.trainer.backtest_data import DataRequest, Dataset, prepare
from trimtab.trainer.backtest_warnings import psi_by_chance, warnings_of


def dataset(rows: int, periods: int, *, rare: int = 0) -> Dataset:
    """Rows in periods of equal size; `rare`: as many rows of a third class, else two classes."""
    classes = ["c" if row < rare else "ab"[row % 2] for row in range(rows)]
    frame = pl.DataFrame(
        {
            "when": [datetime(2020, 1, 1) + timedelta(minutes=row) for row in range(rows)],
            "part": [f"p{row * periods // rows}" for row in range(rows)],
            "y": classes,
            "x": [float(row % 7) for row in range(rows)],
        }
    )
    return prepare(frame, DataRequest(Path("d.parquet"), target="y", time="when", period="part"))


def tables(window_rows: int, **recipe: Any) -> dict[str, dict[str, Any]]:
    return {"drift": {"window_rows": window_rows}, "recipe": recipe}


def test_a_gate_that_is_left_out_is_told() -> None:
    (told,) = warnings_of(dataset(20_000, 5), tables(1_300, baseline="report"))
    assert "not asked to be better than a constant guess" in told


def test_enough_data_are_nothing_to_warn_of() -> None:
    assert warnings_of(dataset(20_000, 5), tables(1_300)) == ()


def test_a_small_window_is_told_with_what_chance_does() -> None:
    window, period = warnings_of(dataset(1_500, 5), tables(200))
    assert "up to 0.14" in window
    assert "A period has 300 rows" in period


def test_few_periods_and_rare_classes_are_told() -> None:
    found = " ".join(warnings_of(dataset(9_000, 3, rare=12), tables(1_000)))
    assert "There are 3 periods" in found
    assert "fewer than 30 rows in the first period: c" in found


def test_chance_is_that_of_the_chi_square_distribution() -> None:
    """Two samples of 200 and 10,000 rows, 10 groups: mean 9 / 196; its 95 % point 16.92 / 196."""
    assert psi_by_chance(200, 10_000) == pytest.approx(16.919 * (1 / 200 + 1 / 10_000), rel=1e-4)
