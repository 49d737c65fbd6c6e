"""Where the bins of a numeric feature lie, and which of them PSI takes together.

Edges are values of the reference itself, so that ties collapse into one bin with the mass that it
really has. A column of few distinct values has a bin for each. Where the outermost edge is the
extreme value itself, the bin beyond it is empty in the reference and shows what never was there:
without it a constant column could change and stay in its bin.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 256


def quantile_edges(ordered: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """At most bins - 1 edges, strictly ascending, for finite values in ascending order."""
    if not len(ordered):
        return np.empty(0, np.float32)
    distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    if len(distinct) < bins - 1:
        return closed_edges(distinct, ordered[-1], bins)
    quantiles = ordered[quantile_ranks(len(ordered), bins)]
    return closed_edges(np.unique(quantiles), ordered[-1], bins)


def quantile_ranks(values: int, bins: int) -> NDArray[np.int64]:
    """Which of so many values in ascending order, from 0 on, are the edges of equal bins."""
    return np.arange(1, bins, dtype=np.int64) * values // bins


def closed_edges(edges: NDArray[np.float32], largest: np.float32, bins: int) -> NDArray[np.float32]:
    """Those edges, and one above the largest value if that is the last edge and there is room."""
    if edges[-1] == largest and len(edges) < bins - 1:
        with np.errstate(over="ignore"):  # after the largest float32 comes inf
            edges = np.append(edges, np.nextafter(edges[-1], np.float32(np.inf)))
    return edges


def groups(counts: NDArray[Any] | Sequence[int], at_most: int = 10) -> NDArray[np.intp]:
    """Starts of at most that many runs of neighbouring bins of about equal reference mass.

    Made for `np.add.reduceat`. No more than `at_most` bins are a group each. Otherwise a group
    has mass, unless no bin has any; a bin too heavy for its group makes groups fewer, not uneven.
    """
    mass = np.asarray(counts, np.float64)
    if mass.ndim != 1 or not len(mass):
        raise ValueError(f"counts have shape {mass.shape}, expected (bins,)")
    if at_most < 1:
        raise ValueError(f"at_most must be at least 1, not {at_most}")
    if len(mass) <= at_most:
        return np.arange(len(mass))
    before = np.concatenate([[0.0], np.cumsum(mass)[:-1]])  # mass before each bin
    total = before[-1] + mass[-1]
    targets = total * np.arange(1, at_most) / at_most
    after = np.clip(np.searchsorted(before, targets), 1, len(mass) - 1)
    nearest = np.where(targets - before[after - 1] <= before[after] - targets, after - 1, after)
    starts = np.unique(np.searchsorted(before, before[nearest]))  # the first of equals
    return np.concatenate([[0], starts[(before[starts] > 0) & (before[starts] < total)]])
