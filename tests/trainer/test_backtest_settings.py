"""The trimtab.toml that a backtest makes of its data and options."""

import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.loop_fakes import SIGNATURE
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.trainer.backtest_data import DataRequest, Dataset, prepare
from trimtab.trainer.backtest_settings import (
    BacktestSettings,
    model_name,
    pane_ms,
    pane_rows,
    parse_duration_ms,
    parse_overrides,
    tables_for,
    to_toml,
)
from trimtab.trainer.errors import DataError, RecipeError

REQUEST = DataRequest(path=Path("data.parquet"), target="y", time="when", seed=7)


def dataset(rows: int) -> Dataset:
    start = datetime(2020, 1, 1)
    frame = pl.DataFrame(
        {
            "when": [start + timedelta(days=300 * row / rows) for row in range(rows)],
            "y": [row * 0.5 for row in range(rows)],
            'a "quoted" ü\\name': [float(row % 7) for row in range(rows)],
        }
    )
    return prepare(frame, REQUEST)


def settings(**changes: Any) -> BacktestSettings:
    return BacktestSettings(data=REQUEST, model="m", **changes)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1d", 86_400_000),
        ("1.5h", 5_400_000),
        ("30 m", 1_800_000),
        ("2min", 120_000),
        ("45s", 45_000),
        ("2w", 1_209_600_000),
        ("7ms", 7),
        ("0", 0),
    ],
)
def test_durations_are_a_number_and_a_unit(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "d", "5", "-1d", "1 fortnight", "1d2h"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration_ms(text)


def test_overrides_are_typed_by_their_form() -> None:
    tables = parse_overrides(
        [
            "drift.psi=0.1",
            "trigger.on_drift=false",
            "promotion.policy=manual",
            "recipe.seed = 3",
            "recipe.estimator.max_iter=50",
        ]
    )
    assert tables == {
        "drift": {"psi": 0.1},
        "trigger": {"on_drift": False},
        "promotion": {"policy": "manual"},
        "recipe": {"seed": 3},
        "recipe.estimator": {"max_iter": 50},
    }


@pytest.mark.parametrize("text", ["psi=1", "drift.psi", "server.port=1", "drift.=1"])
def test_an_override_without_a_known_section_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be SECTION\.KEY=VALUE"):
        parse_overrides([text])


@pytest.mark.parametrize(("rows", "window"), [(3_000, 200), (30_000, 1_000), (600_000, 10_000)])
def test_the_tables_are_toml_and_sizes_follow_the_data(rows: int, window: int) -> None:
    data = dataset(rows)
    tables = tables_for(data, settings())
    assert tomllib.loads(to_toml(tables)) == tables
    assert tables["drift"]["window_rows"] == window
    assert pane_rows(tables) * tables["drift"]["panes"] == window
    assert tables["recipe"]["numeric"] == list(data.numeric)
    assert tables["recipe"]["metric"] == "mae"
    assert tables["recipe"]["seed"] == 7


def test_a_window_by_time_takes_all_rows_of_its_span_and_is_judged_from_half_its_usual_ones() -> (
    None
):
    data = dataset(30_000)  # a hundred a day
    tables = tables_for(data, settings(window_ms=10 * 86_400_000))
    drift = tables["drift"]
    assert drift["window_s"] == 864_000
    assert drift["min_rows"] == 500
    assert pane_ms(tables) == 86_400_000
    _, rows = np.unique(data.times_ms // pane_ms(tables), return_counts=True)
    assert pane_rows(tables) == rows.max(), "time ends every pane, or does so as it fills"
    assert tomllib.loads(to_toml(tables)) == tables
    assert pane_ms(tables_for(data, settings())) == 0


@pytest.mark.parametrize(("window_s", "panes"), [(0, 10), (10, 3), (0.0005, 10), (86_400.25, 7)])
def test_panes_are_those_of_the_server(window_s: float, panes: int) -> None:
    tables: Any = {"drift": {"window_rows": 1_000, "window_s": window_s, "panes": panes}}
    config = DriftConfig(**tables["drift"])
    monitor = DriftMonitor(SIGNATURE, None, config, lambda snapshot: None)
    assert (pane_rows(tables), pane_ms(tables)) == (monitor.pane_rows, monitor.pane_ms)


def test_overrides_win() -> None:
    overrides = parse_overrides(["drift.panes=5", "recipe.estimator.max_iter=50"])
    tables = tables_for(dataset(3_000), settings(overrides=overrides, metric="rmse"))
    assert tables["drift"]["panes"] == 5
    assert tables["recipe"]["estimator"] == {"max_iter": 50}
    assert tables["recipe"]["metric"] == "rmse"
    assert tomllib.loads(to_toml(tables)) == tables


def test_the_maturity_of_labels_is_a_setting_of_the_policy() -> None:
    data = dataset(3_000)
    assert tables_for(data, settings())["trigger"]["label_maturity_s"] == 0.0
    maturing = settings(label_maturity_ms=7 * 86_400_000)
    assert tables_for(data, maturing)["trigger"]["label_maturity_s"] == 7 * 86_400.0


def test_an_unknown_key_of_the_recipe_is_refused_before_anything_starts() -> None:
    overrides = parse_overrides(["recipe.window_row=5"])
    with pytest.raises(RecipeError, match="window_rows"):
        tables_for(dataset(3_000), settings(overrides=overrides))


def test_a_first_period_that_is_too_short_to_train_on_is_named() -> None:
    overrides = parse_overrides(["recipe.min_rows=500"])
    with pytest.raises(DataError, match=r"the first period, 2020-01, has 310 rows.*at least 500"):
        tables_for(dataset(3_000), settings(overrides=overrides))


def test_a_models_name_is_plain() -> None:
    assert model_name(Path("/data/My flights (2013).csv.gz")) == "My_flights_2013"
    assert model_name(Path("….parquet")) == "model"


def test_a_first_model_of_few_rows_need_not_beat_a_constant_guess() -> None:
    assert tables_for(dataset(3_000), settings())["recipe"]["baseline"] == "report"
    assert "baseline" not in tables_for(dataset(60_000), settings())["recipe"]
    told = settings(overrides={"recipe": {"baseline": "better"}})
    assert tables_for(dataset(3_000), told)["recipe"]["baseline"] == "better"


def test_a_section_that_has_no_sizes_can_be_set_too() -> None:
    told = settings(overrides=parse_overrides(["labels.on_loss=false"]))
    assert tables_for(dataset(3_000), told)["labels"] == {"on_loss": False}
