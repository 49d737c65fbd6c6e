"""The strategies that the managed service is held against, and every period's metric.

Frozen: the first version's ONNX file, run here without a server. Retrained every period: at the
begin of each period the recipe is fitted to the newest rows whose labels are known by then, as
many as the service may train on, and predicts that period. Neither sees a label early.

The oracle does: each third of a period is predicted by the recipe fitted to its other two thirds,
drawn at random. It says what the features could tell of a period to somebody who had lived through
it; nobody can serve it. Of small periods it learns from fewer rows than the others, and can lose.

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
_FOLDS = 3  # of a period, for the oracle

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
    rows = slice(start, dataset.frame.height)
    found[rows] = version_scores(model, manifest, recipe, dataset, rows)
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
        answer = _fitted(recipe, dataset, rows, dataset.frame.slice(period.start, period.rows))
        if answer is not None:
            found[period.start : period.stop] = answer
    on_progress(len(later), len(later))
    return found


def oracle_scores(
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Scores:
    """What a model says of each row of every period but the first that learned the others of it."""
    found = empty_scores(dataset)
    later = dataset.periods[1:]
    for number, period in enumerate(later):
        on_progress(number, len(later))
        folds = np.random.default_rng([seed, 3, number]).permutation(period.rows) % _FOLDS
        frame = dataset.frame.slice(period.start, period.rows)
        for fold in range(_FOLDS):
            others = frame.filter(folds != fold)
            if others.height < recipe.estimator.min_samples_leaf * 2:
                continue
            answer = _fitted(recipe, dataset, others, frame.filter(folds == fold))
            if answer is not None:
                found[period.start + np.flatnonzero(folds == fold)] = answer
    on_progress(len(later), len(later))
    return found


def _fitted(
    recipe: Recipe, dataset: Dataset, rows: pl.DataFrame, asked: pl.DataFrame
) -> Scores | None:
    """The scores of a model of `rows` for the rows asked; None where there can be no model."""
    answer = np.full((asked.height, max(1, len(dataset.classes))), np.nan)
    try:
        with threadpool_limits(1):  # see backtest_settings: more are slower here
            pipeline = fit(recipe, rows)
            predicted = predict(recipe, pipeline, asked)
    except TrainingError:  # one class only, say
        return None
    where = {str(name): place for place, name in enumerate(dataset.classes)}
    columns = [where[str(name)] for name in classes_of(pipeline)] or [0]
    answer[:, columns] = predicted.reshape(asked.height, -1)
    return answer


def version_scores(
    model: Path, manifest: Manifest, recipe: Recipe, dataset: Dataset, rows: slice
) -> Scores:
    """What a version's ONNX file says of these rows: one row of scores for each."""
    found = empty_scores(dataset)[rows]
    session = OnnxModel((model / "model.onnx").read_bytes())
    columns = places(manifest, dataset.classes)
    for first in range(rows.start, rows.stop, _SLICE):
        part = clean(recipe, dataset.frame.slice(first, min(_SLICE, rows.stop - first)))
        answer = session.predict(tensors(recipe, part))
        at = first - rows.start
        found[at : at + part.height, columns] = answer.reshape(part.height, -1)
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
