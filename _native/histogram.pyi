"""Counts of live values per feature, in a ring of panes that forms a sliding window.

One thread updates and advances; `window` and `total` may be called from any other at the same time
and see whole updates only. An update may end panes: the open pane takes `room` rows of the batch, it
is closed as another row comes, and every pane after it takes `pane_rows`. Without `room` the open
pane takes them all. No method waits or counts with the GIL held. A batch that is refused has
counted nothing.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Histogram:
    """What both histograms share: `panes` panes of uint64 counts, `columns` rows of `slots`."""

    @property
    def columns(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def panes(self) -> int: ...
    def advance(self) -> None:
        """Closes the open pane, forgets the oldest and opens the next."""

    def window(self) -> NDArray[np.uint64]:
        """The sum of the panes, the open one included: (columns, slots)."""

    def total(self) -> NDArray[np.uint64]:
        """Everything since construction or `reset`, forgotten panes included."""

    def reset(self) -> None:
        """Forgets everything."""

@final
class NumericHistogram(Histogram):
    """One histogram per column of a numeric tensor.

    `edges` per column ascend strictly (±inf may be among them), at most 255. Bin i holds
    edges[i - 1] <= x < edges[i], of x rounded to float32 once; -inf is in the first bin, +inf in
    the last. Slots of a column: its len(edges) + 1 bins, unused ones if another column has more
    edges, and in the row's last slot, [-1], the missing values (NaN).
    """

    def __init__(
        self,
        edges: Sequence[NDArray[np.float32]],
        panes: int,
        *,
        follow: Sequence[bool] | NDArray[np.bool_] | None = None,
    ) -> None:
        """`follow`: the columns whose extremes are wanted; None: of none."""

    def update(self, batch: NDArray[Any], room: int = -1, pane_rows: int = 0) -> None:
        """Counts the rows of a (rows, columns) array of bool, integers or floats of 32 or 64 bits, each
        row contiguous; ValueError if it is anything else."""

    def extremes(self, panes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest value per followed column in the newest panes, the open one
        included: exact while they are equal, after that only known to differ. NaN: no value."""

@final
class CategoryHistogram(Histogram):
    """Counts of categories per column of a BYTES tensor.

    Slots of a column: one for each of its k kept categories, then [k] other (any of `rare`),
    [k + 1] unseen (in neither list), [k + 2] missing (zero length); unused ones follow if another
    column keeps more.
    """

    def __init__(
        self, kept: Sequence[Sequence[bytes]], rare: Sequence[Sequence[bytes]], panes: int
    ) -> None: ...
    def update(self, raw: Buffer, rows: int, room: int = -1, pane_rows: int = 0) -> None:
        """Counts a BYTES tensor in its wire form; ValueError if torn or not that many rows."""
