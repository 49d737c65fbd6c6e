"""How long after its prediction a label became known: counts over lags, eight to the doubling.

Quantiles are the upper ends of these steps, so at most 9 % too high. One thread.
"""

import numpy as np
from numpy.typing import NDArray

_STEPS = 8
_DOUBLINGS = 40  # from a millisecond to 34 years


class LabelLags:
    """See the module."""

    def __init__(self) -> None:
        self._counts = np.zeros(_STEPS * _DOUBLINGS + 1, np.int64)  # the first one: no lag

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __repr__(self) -> str:
        return f"LabelLags({len(self)} labels)"

    def add(self, lags_ms: NDArray[np.int64]) -> None:
        """A label that is known before its prediction (two clocks that differ) has no lag."""
        steps = np.zeros(len(lags_ms), np.int64)
        late = lags_ms > 0
        steps[late] = np.ceil(np.log2(lags_ms[late].astype(np.float64)) * _STEPS - 1e-9) + 1
        np.add.at(self._counts, np.minimum(steps, len(self._counts) - 1), 1)

    def quantile(self, share: float) -> float | None:
        """In milliseconds; None: there was no label."""
        total = len(self)
        if not total:
            return None
        step = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return float(2.0 ** ((step - 1) / _STEPS)) if step else 0.0
