"""Which rows go into which request, in what order, and when their labels become known.

Pure and seeded: the same data and seed give the same requests, chunk for chunk. A chunk holds
exactly the rows of one pane of the drift monitor's window, so that a pane closes when a chunk
has been answered and never in its midst: whatever the order in which concurrent requests
are answered, each pane counts the same rows.
"""

from dataclasses import dataclass

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


def plan(
    start: int, stop: int, *, chunk_rows: int, rows_per_request: int, seed: int
) -> tuple[Chunk, ...]:
    """Rows start to stop in requests of 1 to 2 * rows_per_request - 1 rows, in chunks.

    A chunk's last request takes what is left of it; the last chunk may be a shorter one.
    """
    source = np.random.default_rng([seed, 2])
    chunks = []
    for first in range(start, stop, chunk_rows):
        last = min(first + chunk_rows, stop)
        requests = []
        at = first
        while at < last:
            size = int(source.integers(1, 2 * rows_per_request))
            requests.append(PlannedRequest(at, min(at + size, last)))
            at += size
        chunks.append(Chunk(first, last, tuple(requests)))
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
