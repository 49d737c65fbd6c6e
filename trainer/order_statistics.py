"""The edges of quantile bins of a column that does not fit into memory, exactly.

A float32 is a number of 32 bits in the order of its values, once its sign is dealt with. So three
passes find any order statistic: the first counts values by their upper 16 bits and tells in which
of those ranges each quantile lies, the second and third narrow the ranges by 8 bits each. That
takes 512 kB a column whatever the number of rows, and the edges are those that `quantile_edges`
finds in the sorted column, to the bit.
"""

import numpy as np
from numpy.typing import NDArray

from trimtab._native.binning import closed_edges, quantile_ranks

_DIGITS = (16, 8, 8)  # bits per pass


class QuantileEdges:
    """One column. Call `add` with every value and then `end_pass`, until that is False."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._pass = 0
        self._prefixes = np.zeros(1, np.uint32)  # the ranges that are looked into, ascending
        self._counts = np.zeros((1, 1 << _DIGITS[0]), np.int64)  # per prefix and next digit
        self._targets = np.empty(0, np.uint32)  # per quantile its range …
        self._ranks = np.empty(0, np.int64)  # … and its rank in there
        self._distinct: NDArray[np.float32] | None = np.empty(0, np.float32)  # None: too many
        self._smallest, self._largest = np.float32(np.inf), np.float32(-np.inf)
        self.edges = np.empty(0, np.float32)  # strictly ascending; of use after the last pass

    def add(self, values: NDArray[np.float32]) -> None:
        """Values in any order; NaN and infinities take no part."""
        finite = values[np.isfinite(values)] + np.float32(0)  # -0.0 is 0.0
        if not len(finite):
            return
        if self._pass == 0:
            self._smallest = min(self._smallest, finite.min())
            self._largest = max(self._largest, finite.max())
            if self._distinct is not None:
                # A small piece tells of most columns that they have more values than bins.
                for piece in (finite[:1024], finite[1024:]):
                    if self._distinct is not None:
                        found = np.union1d(self._distinct, piece)
                        self._distinct = found if len(found) < self._bins - 1 else None
        bits = finite.view(np.uint32)
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        below = np.uint32(32 - sum(_DIGITS[: self._pass + 1]))
        digit = _DIGITS[self._pass]
        if self._pass == 0:
            found = (keys >> below).astype(np.int64)
        else:
            prefixes = keys >> np.uint32(below + digit)
            place = np.searchsorted(self._prefixes, prefixes)
            place = np.minimum(place, len(self._prefixes) - 1)
            inside = self._prefixes[place] == prefixes
            digits = (keys[inside] >> below) & np.uint32((1 << digit) - 1)
            found = place[inside] * (1 << digit) + digits
        self._counts += np.bincount(found, minlength=self._counts.size).reshape(self._counts.shape)

    def end_pass(self) -> bool:
        """Whether another pass over the same values is needed."""
        if self._pass == 0:
            values = int(self._counts.sum())
            if self._distinct is not None:
                if values:
                    self.edges = self._closed(self._distinct)
                return False
            self._ranks = quantile_ranks(values, self._bins)
            self._targets = np.zeros(len(self._ranks), np.uint32)
        upto = self._counts.cumsum(axis=1)
        digit = np.uint32(_DIGITS[self._pass])
        for at, rank in enumerate(self._ranks.tolist()):
            row = upto[np.searchsorted(self._prefixes, self._targets[at])]
            step = int(np.searchsorted(row, rank, side="right"))
            self._ranks[at] = rank - (row[step - 1] if step else 0)
            self._targets[at] = (self._targets[at] << digit) | np.uint32(step)
        self._pass += 1
        if self._pass < len(_DIGITS):
            self._prefixes = np.unique(self._targets)
            self._counts = np.zeros((len(self._prefixes), 1 << _DIGITS[self._pass]), np.int64)
            return True
        keys = np.unique(self._targets)
        bits = np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys)
        self.edges = self._closed(bits.view(np.float32))
        return False

    def _closed(self, edges: NDArray[np.float32]) -> NDArray[np.float32]:
        return closed_edges(edges, self._smallest, self._largest, self._bins)
