"""What was answered lately, to be found by (request id, row) once the label comes.

A row has a key of 64 bits, hashed from its request's id and its place in the request, so that an
id costs no Python object. Two rows share a key with a probability of 2⁻⁶⁴: of a million rows and a
label one in 10¹³ finds a wrong row, and nothing notices.

Memory is taken as rows come, up to `nbytes`: 24 bytes a row and its values, and 20 to 32 more once
a label came.
"""

from typing import Any, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

UNKNOWN: int  # what `get` tells of a row: never put, or forgotten
FOUND: int
LEFT_OUT: int  # not among those that are kept

def row_keys(ids: bytes, id_ends: NDArray[np.int32], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each (id, row); the same in every process and version."""

def call_keys(
    ids: bytes, id_ends: NDArray[np.int32], rows: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """The keys of the rows of calls that follow one another; `rows`: how many each call has."""

@final
class PredictionTable:
    """The newest `capacity` rows; the oldest are forgotten. Any thread may call anything.

    A row that is put under a name that is there takes its place; the earlier one is not found
    again. `put` and `get` work without the GIL; a `get` of many rows lets `put`s through. The first
    `get` after many rows takes longer: it is `get` that enters them into the index.
    """

    capacity: int
    width: int
    dtype: np.dtype[Any]
    keep: float

    def __init__(
        self, capacity: int, width: int, dtype: DTypeLike = ..., keep: float = 1.0
    ) -> None:
        """Rows of `width` values. `keep`: the share of rows that is kept, chosen by their keys, so
        that the table reaches further back, and a label's key tells whether its row was."""

    def __len__(self) -> int:
        """Rows that are there, those whose name was given again included."""

    @property
    def rows(self) -> int:
        """Ever put and kept: those that are there and those forgotten."""

    @property
    def forgotten(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Memory at most."""

    def put(
        self,
        ids: bytes,
        id_ends: NDArray[np.int32],
        rows: NDArray[np.int64],
        event_time_ms: NDArray[np.int64],
        received_ms: NDArray[np.int64],
        version: int,
        values: NDArray[Any],
    ) -> int:
        """The rows of some requests (columns as in ObservedCalls), one after another, with their
        values (rows, width); how many were kept. A row's time is its request's event time, or of
        receipt where that is negative. ValueError: the columns do not go together.
        """

    def get(
        self, ids: bytes, id_ends: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> tuple[
        NDArray[np.uint8],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[Any],
    ]:
        """For each (id, row): UNKNOWN, FOUND or LEFT_OUT; and of those found the sequence (how many
        rows were kept before it), the version, the time and the values; else -1 and zeros."""

    def latest(self, at_most: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Versions and values of the newest rows, the newest first."""
