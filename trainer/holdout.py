"""The newest rows, which a candidate is judged on, and what it answers to rows it has not learned.

The window is cut in two by time, and the newer rows are never those that the champion has learned.
What will be published is fitted again to all of the window, so a candidate fitted to the older rows
alone is judged too low, most of all after an abrupt change: it knows nothing yet of what came. So
the newer rows are answered in parts, each by a model that has learned every row before that part
(prequential: A. P. Dawid, *Journal of the Royal Statistical Society* A 147, 1984). No answer comes
from a model that has seen its row or a later one. Each part costs a fit. Four of them, since with
the settings as they come a training may begin as a third of the newest rows are from after a change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from .dataset import Dataset
from .fit import classes_of, fit, predict
from .recipe import Recipe


@dataclass(frozen=True)
class Holdout:
    """The window cut in two by time, and whether the champion has learned of the newer part."""

    window: Dataset
    cut: int
    unseen: bool

    @property
    def older(self) -> Dataset:
        return self.window.slice(0, self.cut)

    @property
    def newest(self) -> Dataset:
        return self.window.slice(self.cut)


@dataclass(frozen=True)
class Judged:
    """A candidate on the newest rows: its answers, and the models that gave the first and last."""

    prediction: NDArray[Any]
    first: Pipeline  # has learned none of them
    last: Pipeline  # has learned all but the last part


def hold_out(recipe: Recipe, window: Dataset, learned_until_ms: int | None) -> Holdout:
    """The newest share, or less of it where the champion has learned a part of that already."""
    cut = len(window) - max(1, round(len(window) * recipe.holdout))
    unseen = True
    if learned_until_ms is not None:
        first_new = int(np.searchsorted(window.times(), learned_until_ms, side="right"))
        if first_new > cut:
            unseen = len(window) - first_new >= recipe.min_holdout_rows
            cut = first_new if unseen else cut
    return Holdout(window, cut, unseen)


def judged(recipe: Recipe, holdout: Holdout, classes: Sequence[Any]) -> Judged:
    """Fits the recipe once for each part of the newest rows, and has it answer that part."""
    window, models, answers = holdout.window, [], []
    for start, stop in pairwise(_bounds(recipe, holdout)):
        model = fit(recipe, window.slice(0, start))
        part = window.slice(start, stop)
        answers.append(aligned(predict(recipe, model, part), model, classes))
        models.append(model)
    return Judged(np.concatenate(answers), models[0], models[-1])


def aligned(prediction: NDArray[Any], pipeline: Pipeline, classes: Sequence[Any]) -> NDArray[Any]:
    """Probabilities with a column for each of `classes`: 0 for one the pipeline has not seen."""
    known = classes_of(pipeline)
    if known == tuple(classes):
        return prediction
    full = np.zeros((len(prediction), len(classes)))
    full[:, [list(classes).index(value) for value in known]] = prediction
    return full


def _bounds(recipe: Recipe, holdout: Holdout) -> list[int]:
    """Where the parts begin, and the end. There are as many as are wanted where the rows are enough
    for a comparison, else fewer. Rows of one time, as those of one request, stay together."""
    cut, stop = holdout.cut, len(holdout.window)
    # What is published without a second fit is the model that is judged here: one part.
    most = recipe.holdout_parts if recipe.refit else 1
    parts = max(1, min(most, most * (stop - cut) // recipe.min_holdout_rows))
    times = holdout.window.times()
    bounds = [cut]
    for place in np.linspace(cut, stop, parts + 1).astype(int)[1:-1].tolist():
        together = int(np.searchsorted(times, times[place], side="left"))
        start = together if together > bounds[-1] else place
        if start > bounds[-1]:
            bounds.append(start)
    return [*bounds, stop]
