"""Sums of counters that would rather fail than wrap around.

A uint64 that wraps is a small count where there is an enormous one, and nobody would ever know.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 2**64 - 1


def add(what: str, one: int, other: int) -> int:
    """The sum of two counters; OverflowError names them if it does not fit into 64 bits."""
    total = one + other
    if total > LIMIT:
        raise OverflowError(f"{what}: {one} + {other} exceeds 2^64 - 1")
    return total


def add_arrays(what: str, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.uint64]:
    """Element by element, of two uint64 arrays of one shape; `what` names them in the error."""
    total: NDArray[np.uint64] = one + other
    wrapped = np.flatnonzero((total < one).ravel())
    if len(wrapped):
        place = int(wrapped[0])
        add(f"{what}, count {place}", int(one.ravel()[place]), int(other.ravel()[place]))
    return total
