"""BYTES tensors in their wire form: per element a little-endian u32 length, then the bytes.

Every function raises ValueError for data that is torn or has the wrong number of elements, and
says which element. Stateless; any thread may call anything.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def count(raw: Buffer) -> int:
    """The number of elements."""

def decode(raw: Buffer, expected: int) -> NDArray[np.object_]:
    """A flat array of `expected` str, as onnxruntime takes it: it would turn bytes into "b'..'".

    ValueError names the element that is not UTF-8.
    """

def encode(values: NDArray[np.object_] | Sequence[str | bytes]) -> bytes:
    """The wire form of str (as UTF-8) or bytes elements, row-major, whatever the shape."""

def columns(raw: Buffer, columns: int) -> list[tuple[NDArray[np.int32], bytes]]:
    """Per column the buffers of an Arrow string array: `rows + 1` offsets, and the text."""

def split(raw: Buffer, row_counts: Sequence[int], columns: int) -> list[bytes]:
    """Cuts the tensor of a batch into those of its calls; their rows must add up to the batch."""

def repeat(
    data: bytes, ends: NDArray[np.int32], times: NDArray[np.int64]
) -> tuple[NDArray[np.int32], bytes]:
    """Arrow's offsets and bytes of strings that lie one after another in `data`, each repeated.

    Raises ValueError where the strings do not lie in `data`, or beyond 2 GiB.
    """
