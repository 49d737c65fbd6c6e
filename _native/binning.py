"""Where the bins of a numeric feature lie, and which of them PSI takes together.

Edges are values of the reference itself, so that ties collapse into one bin with the mass that it
really has. A column of few distinct values has a bin for each. The bins beyond the extreme values
are empty in the reference and show what never was there: without them a constant column could
change and stay in its bin. Where there is room for it another edge on either side parts what is a
little beyond from what is far out, in another unit perhaps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 256
FAR = 9.0  # ranges of the reference beyond its extremes

_CLOSING = 4  # edges that are no quantiles
_LEAST_CLOSED = 16  # bins from which on there are such edges


def quantile_edges(ordered: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """At most bins - 1 edges, strictly ascending, for finite values in ascending order."""
    if not len(ordered):
        return np.empty(0, np.float32)
    distinct = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    if len(distinct) < bins - 1:
        return closed_edges(distinct, ordered[0], ordered[-1], bins)
    quantiles = ordered[quantile_ranks(len(ordered), bins)]
    return closed_edges(np.unique(quantiles), ordered[0], ordered[-1], bins)


def quantile_ranks(values: int, bins: int) -> NDArray[np.int64]:
    """Which of so many values in ascending order, from 0 on, are the edges of equal bins."""
    equal = bins - _CLOSING if bins >= _LEAST_CLOSED else bins
    return np.arange(1, equal, dtype=np.int64) * values // equal


def closed_edges(
    edges: NDArray[np.float32], smallest: np.float32, largest: np.float32, bins: int
) -> NDArray[np.float32]:
    """Those edges, and as far as there is room one above the largest value, one at the smallest and
    one far out on either side."""
    if len(edges) < bins - 1 and (edges[-1] == largest or bins >= _LEAST_CLOSED):
        with np.errstate(over="ignore"):  # after the largest float32 comes inf
            edges = np.append(edges, np.nextafter(largest, np.float32(np.inf)))
    if bins < _LEAST_CLOSED:
        return edges
    if len(edges) < bins - 1 and edges[0] != smallest:
        edges = np.insert(edges, 0, smallest)
    low, high = far_out(float(smallest), float(largest))
    if len(edges) < bins - 2 and low < edges[0] and edges[-1] < high:
        edges = np.concatenate([[low], edges, [high]]).astype(np.float32)
    return edges


def far_out(smallest: float, largest: float) -> tuple[np.float32, np.float32]:
    """Where values are far below and far above those of the reference; infinite where that is
    beyond float32, and both the value itself of a constant one."""
    reach = FAR * (largest - smallest)
    with np.errstate(over="ignore"):
        return np.float32(smallest - reach), np.float32(largest + reach)


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
