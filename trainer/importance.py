"""Permutation importances: how much worse the metric gets when one column is shuffled.

On a few thousand held-out rows and once a column: they rank columns for a reader of the report, and
drifted ones by what they are worth to the model (reference_profile.py). Those around zero, on
either side of it, are noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from .dataset import Dataset
from .fit import predict
from .recipe import Recipe
from .scores import HIGHER_IS_BETTER, score

ROWS = 2_000
_AT_ONCE = 16  # columns


def importances(
    recipe: Recipe, pipeline: Pipeline, data: Dataset, classes: Sequence[Any], rows: int = ROWS
) -> dict[str, float]:
    """The loss of the metric by column, the most important first; positive: the column helps."""
    random = np.random.default_rng(recipe.seed)
    if len(data) > rows:
        data = data.take(random.choice(len(data), rows, replace=False))
    truth = data.target()
    if recipe.classification and tuple(pipeline[-1].classes_.tolist()) != tuple(classes):
        return {}  # a class that only the newest rows have: nothing here would be comparable
    sign = -1.0 if recipe.metric in HIGHER_IS_BETTER else 1.0
    whole = score(recipe.metric, truth, predict(recipe, pipeline, data), classes)
    found: dict[str, float] = {}
    for start in range(0, len(recipe.features), _AT_ONCE):
        names = recipe.features[start : start + _AT_ONCE]
        frames = [
            data.frame.with_columns(data.frame[name].gather(random.permutation(len(data))))
            for name in names
        ]
        # One call for several columns: what a call costs whatever its rows is half of the work.
        together = predict(recipe, pipeline, Dataset(recipe, pl.concat(frames)))
        for name, prediction in zip(names, np.split(together, len(names)), strict=True):
            found[name] = sign * (score(recipe.metric, truth, prediction, classes) - whole)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
