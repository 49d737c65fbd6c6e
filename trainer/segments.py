"""How good a candidate is category by category, and against the champion in each.

A model that is better on the whole may have become worse for one airport. Segments are the values of
the categorical columns (or of those the recipe names) that have enough of the held-out rows; those
with the most come first, and there are at most `MOST`. Looking at many of them finds a bad one by
chance, so each difference has an interval that holds for all of them together (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset
from .recipe import Recipe
from .scores import HIGHER_IS_BETTER, PairedDifference, paired_difference, score

ROWS = 200  # held-out rows below which a category is not looked at
MOST = 20
_BLOCKS = 20  # of a segment's rows, for the interval
_LARGEST_SHARE = 0.95  # of the rows: a category with more is the whole


@dataclass(frozen=True)
class Segment:
    """The held-out rows in which a column has one value."""

    column: str
    value: str
    rows: int
    metric: float  # the candidate's
    difference: PairedDifference | None = None  # champion first; None without a champion

    @property
    def name(self) -> str:
        return f"{self.column} = {self.value!r}"


def segments_of(
    recipe: Recipe,
    newest: Dataset,
    prediction: NDArray[Any],
    champion: NDArray[Any] | None,
    classes: Sequence[Any],
) -> tuple[Segment, ...]:
    """The segments where the metric is defined, the largest first."""
    found: list[tuple[int, str, str, NDArray[np.bool_]]] = []
    for column in recipe.segments or recipe.categorical:
        values = newest.frame[column].to_numpy()
        names, counts = np.unique(values.astype(str), return_counts=True)
        for name, count in zip(names.tolist(), counts.tolist(), strict=True):
            if ROWS <= count <= _LARGEST_SHARE * len(newest):
                found.append((count, column, name, values == name))
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    chosen = found[:MOST]
    truth = newest.target()
    segments = []
    for count, column, name, rows in chosen:
        metric = score(recipe.metric, truth[rows], prediction[rows], classes)
        if not np.isfinite(metric):
            continue  # one class only, say
        difference = None
        if champion is not None:
            difference = paired_difference(
                recipe.metric,
                truth[rows],
                champion[rows],
                prediction[rows],
                classes,
                blocks=_BLOCKS,
                confidence=1 - 0.05 / len(chosen),
            )
        segments.append(Segment(column, name, count, metric, difference))
    return tuple(segments)


def worst_first(recipe: Recipe, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """By the candidate's metric."""
    sign = 1 if recipe.metric in HIGHER_IS_BETTER else -1
    return tuple(sorted(segments, key=lambda item: sign * item.metric))
