"""The strategies that a managed service is held against, and the metrics of all of them."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from trimtab.registry.manifest import Manifest, Signature, TensorSpec
from trimtab.trainer import backtest_baselines
from trimtab.trainer.backtest_baselines import (
    clean,
    empty_scores,
    metric_of,
    places,
    retrained_scores,
    score_output,
)
from trimtab.trainer.backtest_data import DataRequest, Dataset, prepare
from trimtab.trainer.fit import fit
from trimtab.trainer.recipe import Recipe

ROWS = 600
DAY_MS = 86_400_000


def dataset(target: list[Any]) -> Dataset:
    """Two rows a day over ten months."""
    frame = pl.DataFrame(
        {
            "when": [datetime(2020, 1, 1) + timedelta(hours=12 * row) for row in range(ROWS)],
            "y": target,
            "x": [float(row) if row % 50 else None for row in range(ROWS)],
            "kind": ["ab"[row % 2] if row % 70 else None for row in range(ROWS)],
        }
    )
    return prepare(frame, DataRequest(path=Path("d.parquet"), target="y", time="when"))


def recipe(data: Dataset, **changes: Any) -> Recipe:
    table = {
        "task": data.task,
        "target": data.target,
        "time": data.time,
        "numeric": list(data.numeric),
        "categorical": list(data.categorical),
        "min_rows": 40,
        "estimator": {"max_iter": 2},
        **changes,
    }
    return Recipe.parse(table)


def manifest(task: str, *outputs: TensorSpec) -> Manifest:
    return Manifest(
        format=1,
        model="m",
        created_ms=0,
        files={},
        signature=Signature((), outputs),
        task=task,
        lineage={},
        metrics={},
    )


def probabilities(rows: int, width: int) -> NDArray[np.float64]:
    raw = np.random.default_rng(0).random((rows, width))
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def test_metrics_of_a_regression_are_those_of_scikit_learn() -> None:
    data = dataset([row * 0.5 for row in range(ROWS)])
    truth = data.frame["y"].to_numpy()
    scores = truth[:, None] + np.random.default_rng(0).normal(size=(ROWS, 1))
    period = data.periods[2]
    rows = slice(period.start, period.stop)
    mae = metric_of("mae", data, scores, period)
    rmse = metric_of("rmse", data, scores, slice(0, ROWS))
    assert mae == pytest.approx(metrics.mean_absolute_error(truth[rows], scores[rows, 0]))
    assert rmse == pytest.approx(metrics.root_mean_squared_error(truth, scores[:, 0]))


@pytest.mark.parametrize("names", [("no", "yes"), (0, 1)])
def test_metrics_of_two_classes_are_those_of_scikit_learn(names: tuple[Any, Any]) -> None:
    data = dataset([names[row % 3 == 0] for row in range(ROWS)])
    truth = data.frame["y"].to_numpy()
    scores = probabilities(ROWS, 2)
    everything = slice(0, ROWS)
    assert metric_of("roc_auc", data, scores, everything) == pytest.approx(
        metrics.roc_auc_score(truth, scores[:, 1])
    )
    assert metric_of("log_loss", data, scores, everything) == pytest.approx(
        metrics.log_loss(truth, scores)
    )
    predicted = np.array(names, dtype=truth.dtype)[scores.argmax(axis=1)]
    assert metric_of("accuracy", data, scores, everything) == pytest.approx(
        metrics.accuracy_score(truth.tolist(), predicted.tolist())
    )


def test_metrics_of_many_classes_are_those_of_scikit_learn() -> None:
    data = dataset(["cab"[row % 3] for row in range(ROWS)])
    scores = probabilities(ROWS, 3)
    expected = metrics.log_loss(data.frame["y"].to_list(), scores, labels=["a", "b", "c"])
    assert metric_of("log_loss", data, scores, slice(0, ROWS)) == pytest.approx(expected)


def test_rows_that_were_not_answered_do_not_count() -> None:
    data = dataset([row * 0.5 for row in range(ROWS)])
    scores = empty_scores(data)
    assert metric_of("mae", data, scores, slice(0, ROWS)) is None
    scores[10, 0] = 7.0
    assert metric_of("mae", data, scores, slice(0, ROWS)) == pytest.approx(2.0)


def test_a_metric_that_is_not_defined_is_none() -> None:
    data = dataset([int(row % 400 == 0 or row == 1) for row in range(ROWS)])
    only_zeros = slice(10, 300)
    assert metric_of("roc_auc", data, probabilities(ROWS, 2), only_zeros) is None


def test_a_versions_scores_are_found_by_the_names_of_its_classes() -> None:
    spec = TensorSpec("probabilities", "FP32", (-1, 2), ("probabilities[c]", "probabilities[a]"))
    version = manifest("multiclass", TensorSpec("label", "BYTES", (-1,)), spec)
    assert score_output(version) == spec
    assert places(version, ("a", "b", "c")).tolist() == [2, 0]
    value = TensorSpec("variable", "FP32", (-1, 1), ("y",))
    assert places(manifest("regression", value), ()).tolist() == [0]


def test_missing_values_are_nan_and_empty_text() -> None:
    data = dataset([row * 0.5 for row in range(ROWS)])
    features = clean(recipe(data), data.frame)
    assert features.columns == ["x", "kind"]
    assert features["x"].is_nan().sum() == 12
    assert (features["kind"] == "").sum() == 9


def test_retraining_every_period_knows_no_label_before_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = dataset([row * 0.5 for row in range(ROWS)])
    windows: list[tuple[int, int, int]] = []
    real = fit

    def spy(made: Recipe, rows: pl.DataFrame) -> Any:
        times = rows["when"]
        windows.append((rows.height, int(times[0]), int(times[-1])))
        return real(made, rows)

    monkeypatch.setattr(backtest_baselines, "fit", spy)
    steps: list[tuple[int, int]] = []
    scores = retrained_scores(
        recipe(data, window_rows=100),
        data,
        label_delay_ms=3 * DAY_MS,
        on_progress=lambda done, of: steps.append((done, of)),
    )
    later = data.periods[1:]
    assert len(windows) == len(later)
    for (rows, _, newest), period in zip(windows, later, strict=True):
        assert newest == data.times_ms[period.start] - 3 * DAY_MS
        assert rows == min(100, period.start - 5)
    assert np.isnan(scores[: data.periods[0].stop]).all()
    assert not np.isnan(scores[data.periods[0].stop :]).any()
    assert steps[-1] == (len(later), len(later))


def test_a_period_without_enough_known_rows_has_no_retrained_model() -> None:
    data = dataset([row * 0.5 for row in range(ROWS)])
    scores = retrained_scores(recipe(data, min_rows=100), data, label_delay_ms=0)
    first, second = data.periods[1:3]
    assert np.isnan(scores[first.start : first.stop]).all()
    assert not np.isnan(scores[second.start : second.stop]).any()


def test_a_class_that_the_window_lacks_has_the_probability_zero() -> None:
    data = dataset(["ab"[row % 2] if row < 300 else "abc"[row % 3] for row in range(ROWS)])
    scores = retrained_scores(recipe(data, window_rows=50), data, label_delay_ms=0)
    second = data.periods[1]
    assert np.isnan(scores[second.start, 2])
    loss = metric_of("log_loss", data, scores, slice(second.start, ROWS))
    assert loss is not None
    assert np.isfinite(loss)
