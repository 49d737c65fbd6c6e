"""Fits the recipe's pipeline (estimators.py), and predicts with it.

The same rows, seed and library versions give the same model, bit for bit, on one thread or many.

With early stopping, the number of trees is that after which the newest tenth of the rows gained no
more; then the pipeline is fitted to all of them with that number. scikit-learn's own would hold
back random rows, whose neighbours in time the model has learned: it would stop late or never.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from .dataset import Dataset
from .errors import DataError
from .estimators import boosting_of, make_pipeline
from .recipe import Recipe

_STOPPING_SHARE = 0.1


def fit(
    recipe: Recipe,
    data: Dataset | pl.DataFrame,
    *,
    trees: int | None = None,
) -> Pipeline:
    """A fitted pipeline. A plain frame has the recipe's columns and target as a file has them.

    `trees` is a number found by early stopping before, which spares finding it again.
    """
    rows = data if isinstance(data, Dataset) else Dataset.from_frame(recipe, data)
    pipeline = make_pipeline(recipe)
    boosting = boosting_of(pipeline)
    try:
        if recipe.estimator.early_stopping and boosting is not None:
            boosting.max_iter = trees or _enough_trees(recipe, pipeline, rows)
        return pipeline.fit(rows.features(), rows.target(), **_weighed(pipeline, rows))
    except (ValueError, TypeError) as error:
        raise DataError(f"the model cannot be fitted: {str(error).splitlines()[0]}") from error


def trees_of(pipeline: Pipeline) -> int | None:
    """The number of trees (per class) of a fitted boosting; None of any other model."""
    boosting = boosting_of(pipeline)
    return None if boosting is None else int(boosting.n_iter_)


def predict(recipe: Recipe, pipeline: Pipeline, data: Dataset | pl.DataFrame) -> NDArray[Any]:
    """Values in a regression, else the classes' probabilities with a column for each class."""
    rows = data if isinstance(data, Dataset) else Dataset.from_frame(recipe, data)
    features = rows.features()
    if recipe.classification:
        return np.asarray(pipeline.predict_proba(features), dtype=np.float64)
    return np.asarray(pipeline.predict(features), dtype=np.float64).reshape(len(rows))


def classes_of(pipeline: Pipeline) -> tuple[Any, ...]:
    """The classes in the order of the probabilities; empty in a regression."""
    model = pipeline[-1]
    return tuple(model.classes_.tolist()) if hasattr(model, "classes_") else ()


def _weighed(pipeline: Pipeline, rows: Dataset) -> dict[str, Any]:
    weights = rows.weights()
    return {} if weights is None else {f"{pipeline.steps[-1][0]}__sample_weight": weights}


def _enough_trees(recipe: Recipe, pipeline: Pipeline, rows: Dataset) -> int:
    """How many trees the newest tenth of the rows bears."""
    cut = len(rows) - max(1, round(len(rows) * _STOPPING_SHARE))
    older, newest = rows.slice(0, cut), rows.slice(cut)
    truth, kept = older.target(), newest.target()
    features = newest.features()
    if recipe.classification:  # of a class that only the newest have, nothing can be said
        there = np.isin(kept, np.unique(truth))
        features, kept = features.filter(there), kept[there]
    trial = clone(pipeline)
    prepare, boosting = trial[:-1], trial[-1]
    learned = prepare.fit_transform(older.features(), truth) if len(prepare) else older.features()
    checked = prepare.transform(features) if len(prepare) else features
    boosting.set_params(
        early_stopping=True,
        n_iter_no_change=recipe.estimator.early_stopping,
        scoring="loss",
    )
    boosting.fit(learned, truth, sample_weight=older.weights(), X_val=checked, y_val=kept)
    scores = np.asarray(boosting.validation_score_)  # before the first tree, then after each
    return max(1, int(np.argmax(scores)))
