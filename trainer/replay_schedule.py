"""Which rows go into which request, in what order, and when their labels become known.

Pure and seeded: the same data and seed give the same requests, chunk for chunk. A chunk holds
exactly the rows of one pane of the drift monitor's window, so that a pane closes when a chunk
has been answered and never in its midst: whatever the order in which concurrent requests
are answered, each pane counts the same rows. Where the window has a span, panes also end between
two slots of time, and so do chunks; the server then has to be told that the time has come before
anything of the next slot is sent.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """Rows start (inclusive) to stop (exclusive) in one request."""

    start: int
    stop: int

    @property
    def id(self) -> str:
        return f"row-{self.start}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Requests that may be under way together; nothing else is, while the loop decides."""

    start: int
    stop: int
    requests: tuple[PlannedRequest, ...]
    ends_slot: bool = False  # the row after it lies in a later slot


def plan(
    start: int,
    stop: int,
    *,
    chunk_rows: int,
    rows_per_request: int,
    seed: int,
    slots: NDArray[np.int64] | None = None,
) -> tuple[Chunk, ...]:
    """Rows start to stop in requests of 1 to 2 * rows_per_request - 1 rows, in chunks.

    A chunk's last request takes what is left of it. The last chunk may be a shorter one, and so may
    the last one of each slot, where `slots` tells which slot of time every row of the frame is in.
    """
    source = np.random.default_rng([seed, 2])
    begins = [start]
    if slots is not None:
        begins += (start + 1 + np.flatnonzero(np.diff(slots[start:stop]))).tolist()
    chunks = []
    for begin, end in pairwise([*begins, stop]):
        for first in range(begin, end, chunk_rows):
            last = min(first + chunk_rows, end)
            requests = []
            at = first
            while at < last:
                size = int(source.integers(1, 2 * rows_per_request))
                requests.append(PlannedRequest(at, min(at + size, last)))
                at += size
            chunks.append(Chunk(first, last, tuple(requests), ends_slot=last == end < stop))
    return tuple(chunks)


class LabelSchedule:
    """Tells which labels are known by now: those of rows that happened `delay_ms` ago or earlier.

    Rows are in time order, so the labels that are known are always a prefix of the rows.
    """

    def __init__(self, times_ms: NDArray[np.int64], start: int, delay_ms: int) -> None:
        self._times_ms = times_ms
        self._delay_ms = delay_ms
        self._next = start

    def due(self, clock_ms: int, sent: int) -> tuple[int, int]:
        """Rows (from, to) whose labels are known at `clock_ms`, were sent, and were not told yet."""
        known = int(np.searchsorted(self._times_ms, clock_ms - self._delay_ms, side="right"))
        first, last = self._next, max(self._next, min(known, sent))
        self._next = last
        return first, last
