"""The two strategies that the managed service is held against, and every period's metric.

Frozen: the first version's ONNX file, run here without a server. Retrained every period: at the
begin of each period the recipe is fitted to the newest rows whose labels are known by then, as
many as the service may train on, and predicts that period. Neither sees a label early.

A prediction is one column in a regression, else one per class of the whole data set, so that
versions which know fewer classes can be compared with the others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from trimtab.registry.manifest import Manifest, TensorSpec

from .backtest_data import Dataset, Period
from .dataset import tensors
from .errors import TrainingError
from .export import OnnxModel
from .fit import classes_of, fit, predict
from .recipe import Metric, Recipe
from .scores import score

_SLICE = 8192

Scores = NDArray[np.float64]  # (rows, width); NaN where there is no prediction


def score_output(manifest: Manifest) -> TensorSpec:
    """The output that holds the scores of a version."""
    wanted = "variable" if manifest.task == "regression" else "probabilities"
    for spec in manifest.signature.outputs:
        if spec.name == wanted:
            return spec
    names = ", ".join(spec.name for spec in manifest.signature.outputs)
    raise TrainingError(f"the version of {manifest.model} has no output {wanted}, but {names}")


def places(manifest: Manifest, classes: Sequence[Any]) -> NDArray[np.intp]:
    """For each column of a version's scores, the column of the data set's scores."""
    if manifest.task == "regression":
        return np.zeros(1, dtype=np.intp)
    spec = score_output(manifest)
    where = {f"{spec.name}[{name}]": place for place, name in enumerate(classes)}
    return np.array([where[column] for column in spec.columns], dtype=np.intp)


def frozen_scores(
    model: Path, manifest: Manifest, recipe: Recipe, dataset: Dataset, start: int
) -> Scores:
    """What the first model says of every row from `start` on."""
    found = empty_scores(dataset)
    session = OnnxModel((model / "model.onnx").read_bytes())
    columns = places(manifest, dataset.classes)
    for first in range(start, dataset.frame.height, _SLICE):
        part = clean(recipe, dataset.frame.slice(first, _SLICE))
        answer = session.predict(tensors(recipe, part))
        found[first : first + part.height, columns] = answer.reshape(part.height, -1)
    return found


def retrained_scores(
    recipe: Recipe,
    dataset: Dataset,
    label_delay_ms: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Scores:
    """What a model says that is fitted anew for every period but the first."""
    found = empty_scores(dataset)
    times = dataset.times_ms
    later = dataset.periods[1:]
    for number, period in enumerate(later):
        on_progress(number, len(later))
        begin = times[period.start] - label_delay_ms
        known = min(period.start, int(np.searchsorted(times, begin, side="right")))
        first = max(0, known - recipe.window_rows)
        rows = dataset.frame.slice(first, known - first)
        if rows.height < recipe.min_rows:
            continue
        try:
            with threadpool_limits(1):  # see backtest_settings: more are slower here
                pipeline = fit(recipe, rows)
                answer = predict(recipe, pipeline, dataset.frame.slice(period.start, period.rows))
        except TrainingError:
            continue  # one class only, say: no model could be had for this period
        names = [str(name) for name in classes_of(pipeline)]
        where = {str(name): place for place, name in enumerate(dataset.classes)}
        columns = [where[name] for name in names] or [0]
        found[period.start : period.stop, columns] = answer.reshape(period.rows, -1)
    on_progress(len(later), len(later))
    return found


def empty_scores(dataset: Dataset) -> Scores:
    """No predictions yet. A class that a model does not know has the probability 0."""
    return np.full((dataset.frame.height, max(1, len(dataset.classes))), np.nan)


def metric_of(
    metric: Metric, dataset: Dataset, scores: Scores, rows: Period | slice
) -> float | None:
    """The metric of the rows that have a prediction; None where it is not defined."""
    part = slice(rows.start, rows.stop)
    answers = scores[part]
    there = ~np.isnan(answers).all(axis=1)
    if not there.any():
        return None
    truth = dataset.frame[dataset.target][part].to_numpy()[there]
    known = np.nan_to_num(answers[there])
    prediction = known if dataset.classes else known[:, 0]
    value = score(metric, truth, prediction, dataset.classes)
    return value if np.isfinite(value) else None


def clean(recipe: Recipe, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame's features as a model takes them: NaN and "" where there is no value."""
    return frame.select(
        *(pl.col(name).cast(pl.Float32).fill_null(float("nan")) for name in recipe.numeric),
        *(pl.col(name).fill_null("") for name in recipe.categorical),
    )
