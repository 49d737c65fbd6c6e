"""How good a candidate is part by part of the rows, and against the champion in each.

A model that is better on the whole may have become worse for one airport, or for long distances.
Segments are the values of the categorical columns and the quarters of the numeric ones (or of those
that the recipe names) that have enough of the held-out rows. The `MOST` largest categories are
compared, and the `MOST` quarters in which the candidate looks worst. Looking at many of them finds
a bad one by chance, so each difference has an interval that holds for all that were looked at
together (Bonferroni), also for those quarters that were passed over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset
from .recipe import Recipe
from .scores import HIGHER_IS_BETTER, PairedDifference, paired_difference, score

ROWS = 200  # held-out rows below which a segment is not looked at
MOST = 20  # of each kind
_COLUMNS = 100  # numeric ones that are looked at, the first of the recipe's
_BLOCKS = 20  # of a segment's rows, for the interval
_LARGEST_SHARE = 0.95  # of the rows: a segment with more is the whole

Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Segment:
    """The held-out rows in which a column has one value, or values of one quarter."""

    column: str
    value: str  # a category, or what is true of the number: "from 2 to 5", "= 3", "missing"
    rows: int
    metric: float  # the candidate's
    difference: PairedDifference | None = None  # champion first; None without a champion
    numeric: bool = False

    @property
    def name(self) -> str:
        return f"{self.column} {self.value}" if self.numeric else f"{self.column} = {self.value!r}"


def segments_of(
    recipe: Recipe,
    newest: Dataset,
    prediction: NDArray[Any],
    champion: NDArray[Any] | None,
    classes: Sequence[Any],
) -> tuple[Segment, ...]:
    """The segments where the metric is defined: categories, then quarters, the largest first."""
    truth = newest.target()

    def figure(rows: Rows, answers: NDArray[Any]) -> float:
        return score(recipe.metric, truth[rows], answers[rows], classes)

    def advantage(rows: Rows, metric: float) -> float:
        """Of the candidate over the champion, as a share of its metric; without one its own."""
        sign = 1 if recipe.metric in HIGHER_IS_BETTER else -1
        if champion is None:
            return sign * metric
        theirs = figure(rows, champion)
        return sign * (metric - theirs) / max(abs(theirs), 1e-30)

    wanted = recipe.segments or recipe.features
    chosen = _categories(recipe, newest, wanted)
    looked_at = len(chosen)
    quarters: list[tuple[float, _Part]] = []  # those in which the candidate looks worst
    for part in _quarters(recipe, newest, wanted):
        metric = figure(part.rows, prediction)
        if np.isfinite(metric):
            looked_at += 1
            quarters.append((advantage(part.rows, metric), part))
            quarters.sort(key=lambda item: item[0])
            del quarters[MOST:]
    chosen += sorted((part for _, part in quarters), key=_Part.order)
    segments = []
    for part in chosen:
        rows = part.rows
        metric = figure(rows, prediction)
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
                confidence=1 - 0.05 / looked_at,
            )
        numeric = part.column in recipe.numeric
        segments.append(Segment(part.column, part.value, part.size, metric, difference, numeric))
    return tuple(segments)


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows that have something in common."""

    column: str
    value: str
    size: int
    rows: Rows

    def order(self) -> tuple[int, str, str]:
        return -self.size, self.column, self.value


def _categories(recipe: Recipe, newest: Dataset, wanted: Sequence[str]) -> list[_Part]:
    """The `MOST` largest, the largest first."""
    found: list[tuple[int, str, str]] = []
    for column in (name for name in wanted if name in recipe.categorical):
        counts = newest.frame[column].value_counts()
        found += [
            (-count, column, name)
            for name, count in counts.iter_rows()
            if ROWS <= count <= _LARGEST_SHARE * len(newest)
        ]
    return [
        _Part(column, name, -count, (newest.frame[column] == name).to_numpy())
        for count, column, name in sorted(found)[:MOST]
    ]


def _quarters(recipe: Recipe, newest: Dataset, wanted: Sequence[str]) -> Iterator[_Part]:
    """Equal values stay together, so a column of few values has fewer quarters, and uneven ones."""
    columns = [name for name in wanted if name in recipe.numeric]
    for column in columns[:_COLUMNS]:
        values = newest.frame[column].to_numpy()
        missing = np.isnan(values)
        edges = np.zeros(0)
        if not missing.all():
            edges = np.unique(np.quantile(values[~missing], (0.25, 0.5, 0.75), method="lower"))
        places = np.where(missing, -1, np.searchsorted(edges, values, side="left"))
        for place in range(-1, len(edges) + 1):
            rows = places == place
            size = int(rows.sum())
            if ROWS <= size <= _LARGEST_SHARE * len(newest):
                low, high = float(values[rows].min()), float(values[rows].max())
                said = f"= {low:g}" if low == high else f"from {low:g} to {high:g}"
                yield _Part(column, "missing" if place < 0 else said, size, rows)


def worst_first(recipe: Recipe, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """By the candidate's metric."""
    sign = 1 if recipe.metric in HIGHER_IS_BETTER else -1
    return tuple(sorted(segments, key=lambda item: sign * item.metric))
