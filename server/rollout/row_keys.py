"""Keys of 64 bits for predictions, which are named by (id, row): made in bulk, found by a label.

A sum of the id's bytes, each times a random number of its place, then mixed with the row. Two ids
of at most 1,024 bytes (labels have no longer ones) share a key with a probability of about 2⁻⁵⁷;
such a pair could give a row another's label, and nothing worse. Stateless.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_PLACES = 1024
_WEIGHTS = np.random.default_rng(0x7121).integers(1, 2**64, _PLACES, np.uint64) | np.uint64(1)
_STEP = np.uint64(0x9E3779B97F4A7C15)  # these three are splitmix64's
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def of_calls(ids: bytes, id_ends: NDArray[np.int32], rows: NDArray[np.int64]) -> Keys:
    """The key of each row of calls that follow one another; arguments as in ObservedCalls."""
    starts = np.cumsum(rows) - rows
    within = np.arange(int(rows.sum()), dtype=np.int64) - np.repeat(starts, rows)
    return _mixed(np.repeat(_of_ids(ids, id_ends), rows), within)


def of_rows(ids: Sequence[str], rows: Sequence[int]) -> Keys:
    """The key of each (id, row)."""
    encoded = [each.encode() for each in ids]
    ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
    return _mixed(_of_ids(b"".join(encoded), ends), np.asarray(rows, np.int64))


def of_text(texts: Sequence[str]) -> Keys:
    """One of each text, for comparing many of them."""
    return of_rows(texts, [0] * len(texts))


def _of_ids(ids: bytes, ends: NDArray[np.int32] | NDArray[np.int64]) -> Keys:
    if not len(ends):
        return np.empty(0, np.uint64)
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    places = np.arange(len(ids)) - np.repeat(starts, lengths)
    # One is added, so that bytes of 0 count.
    values = (np.frombuffer(ids, np.uint8).astype(np.uint64) + np.uint64(1)) * _WEIGHTS[
        places % _PLACES
    ]
    sums = np.zeros(len(ends), np.uint64)
    filled = lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[filled])
    return sums


def _mixed(keys: Keys, rows: NDArray[np.int64]) -> Keys:
    mixed = keys + (rows.astype(np.uint64) + np.uint64(1)) * _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
