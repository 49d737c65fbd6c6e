"""Permutation importances: how much worse the metric gets when one column is shuffled.

On a few thousand held-out rows and once a column: they rank columns for a reader of the report, and
drifted ones by what they are worth to the model (reference_profile.py). Those around zero, on
either side of it, are noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from .dataset import Dataset
from .fit import predict
from .recipe import Recipe
from .scores import HIGHER_IS_BETTER, score

ROWS = 2_000


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
    for name in recipe.features:
        order = random.permutation(len(data))
        shuffled = data.frame.with_columns(data.frame[name].gather(order))
        changed = Dataset(recipe, shuffled)
        worse = score(recipe.metric, truth, predict(recipe, pipeline, changed), classes)
        found[name] = sign * (worse - whole)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
