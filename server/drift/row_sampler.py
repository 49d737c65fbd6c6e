"""Which rows are counted where more come than a limit per second.

A window of 10,000 rows that is judged twice a second sees no more at a million rows a second than at a
hundred thousand, spread over the same time; what more costs is CPU that serving could have. So
beyond the limit every row has the same chance: some batches are passed over, and of the others
every n-th row is taken, from a random one on. Rows of one request are thus spread out, which
whole batches would not do.
"""

import random
import time
from collections.abc import Callable

_PERIOD_S = 0.1  # over which the rate is measured
_MAX_STEP = 4  # a batch has a price of its own: rather fewer batches than fewer rows of each


class RowSampler:
    """Keeps about that many rows per second, and all while no more come; used by one thread."""

    def __init__(
        self, max_rows_per_s: int, *, seed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max = max_rows_per_s
        self._random = random.Random(seed).random
        self._clock = clock
        self._since = clock()
        self._came = 0
        self._share = 1.0

    def __repr__(self) -> str:
        return f"RowSampler({self._max} rows/s, takes {self._share:.1%})"

    @property
    def share(self) -> float:
        """Of the rows, that is counted at the moment."""
        return self._share

    def choose(self, rows: int) -> slice | None:
        """Which rows of a batch of so many to count; None: none of them."""
        now = self._clock()
        self._came += rows
        passed = now - self._since
        if passed >= _PERIOD_S:
            self._share = min(1.0, self._max * passed / self._came) if self._came else 1.0
            self._since, self._came = now, 0
        share = self._share
        if share == 1.0:
            return slice(0, rows)
        step = min(_MAX_STEP, int(1 / share))
        if self._random() >= share * step:
            return None
        first = int(self._random() * step)
        return slice(first, rows, step) if first < rows else None
