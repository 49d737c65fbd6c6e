"""Rows become columns: the body of a frame of the traffic log, made in one piece without the GIL.

Stateless; any thread may call anything.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def join(
    head: bytes, parts: Iterable[tuple[Buffer | NDArray[Any], int, int]], tail: bytes
) -> bytes:
    """`head`, the columns of every part in order, and `tail`.

    A part is (rows, width, size): a contiguous buffer of rows of `width` values of 1, 2, 4 or 8
    bytes. Its columns come one after another, each with zeros behind it up to a multiple of 8
    bytes. ValueError: a buffer is not whole rows, or `head` does not end at such a multiple.
    """

def per_row(
    rows: NDArray[np.int64],
    event_time: NDArray[np.int64],
    received: NDArray[np.int64],
    expected: int,
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Of each row of all calls: its number within its call, its event time, when it was received.

    `rows` are the calls' numbers of rows; a call whose event time is negative has none, and was
    received instead. ValueError: the rows do not add up to `expected`.
    """
