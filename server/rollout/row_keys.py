"""Keys of 64 bits for predictions, which are named by (id, row): made in bulk, found by a label.

Two rows share a key with a probability of 2⁻⁶⁴; such a pair could give a row another's label, and
nothing worse. Stateless.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab._native.prediction_table import call_keys, row_keys

Keys = NDArray[np.uint64]

of_calls = call_keys
"""The key of each row of calls that follow one another; arguments as in ObservedCalls."""


def of_rows(ids: Sequence[str], rows: Sequence[int]) -> Keys:
    """The key of each (id, row)."""
    encoded = [each.encode() for each in ids]
    ends = np.cumsum([len(each) for each in encoded], dtype=np.int64).astype(np.int32)
    return row_keys(b"".join(encoded), ends, np.asarray(rows, np.int64))


def of_text(texts: Sequence[str]) -> Keys:
    """One of each text, for comparing many of them."""
    return of_rows(texts, [0] * len(texts))
