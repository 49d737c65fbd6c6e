"""How much the training rows changed between the first and the last third of their time.

A model learns from all of them at once. Where a column moved within the window already, the rows it
will answer are likely to be further off than the held-out ones were.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trimtab._native.divergence import psi, psi_critical

from .dataset import TARGET, Dataset
from .recipe import Recipe

_BINS = 10
_CATEGORIES = 30


@dataclass(frozen=True)
class ColumnDrift:
    """The PSI of a column between the two thirds, and what chance alone exceeds once in 20 times."""

    column: str
    psi: float
    critical: float


def window_drift(recipe: Recipe, window: Dataset) -> tuple[ColumnDrift, ...]:
    """Every input column and the target, the most changed first."""
    third = len(window) // 3
    first, last = window.frame.head(third), window.frame.tail(third)
    found = []
    for name in (*recipe.features, TARGET):
        older, newer = first[name], last[name]
        text = older.dtype == pl.String or (name == TARGET and recipe.classification)
        counts = _categories(older, newer) if text else _numbers(older, newer)
        known = [counts[side][counts.sum(axis=0) > 0] for side in (0, 1)]
        found.append(
            ColumnDrift(
                recipe.target if name == TARGET else name,
                psi(known[0], known[1]),
                psi_critical(third, third, len(known[0])),
            )
        )
    return tuple(sorted(found, key=lambda item: -item.psi))


def _numbers(older: pl.Series, newer: pl.Series) -> NDArray[np.float64]:
    """Counts in the deciles of the older values, the missing ones last."""
    sides = [side.to_numpy() for side in (older, newer)]
    known = sides[0][np.isfinite(sides[0])]
    edges = np.zeros(0)
    if known.size:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = np.zeros((2, len(edges) + 2))
    for row, values in enumerate(sides):
        missing = np.isnan(values)
        places = np.searchsorted(edges, values[~missing], side="left")
        counts[row, :-1] = np.bincount(places, minlength=len(edges) + 1)
        counts[row, -1] = missing.sum()
    return counts


def _categories(older: pl.Series, newer: pl.Series) -> NDArray[np.float64]:
    """Counts of the most frequent values, the others last."""
    sides = [side.cast(pl.String) for side in (older, newer)]
    names = pl.concat(sides).value_counts().sort("count", older.name, descending=[True, False])
    kept = {name: place for place, name in enumerate(names[older.name].head(_CATEGORIES))}
    counts = np.zeros((2, len(kept) + 1))
    for row, side in enumerate(sides):
        for name, count in side.value_counts().iter_rows():
            counts[row, kept.get(name, len(kept))] += count
    return counts
