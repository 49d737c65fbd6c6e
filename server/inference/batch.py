"""Rows of several calls as one run of the model, and back.

The copies of the data plane are here: one from the requests into the batch when several calls share
it (a lone call is computed on the request's own memory), and none out of it for numbers (a reply
gets a view of its rows) or one for BYTES.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trimtab._native import bytes_tensor

from .tensor import Tensor


def join(parts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The tensors of `parts`, equal in names, datatypes and trailing shapes, one below the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: _stack([part[name] for part in parts]) for name in parts[0]}


def split(tensors: Mapping[str, Tensor], rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """The inverse of `join`: the tensors of each part, given how many rows each has."""
    if len(rows) == 1:
        return [dict(tensors)]
    parts: list[dict[str, Tensor]] = [{} for _ in rows]
    for name, tensor in tensors.items():
        tail = tensor.shape[1:]
        if isinstance(tensor.data, bytes):
            raws = bytes_tensor.split(tensor.data, rows, math.prod(tail))
            for part, count, raw in zip(parts, rows, raws, strict=True):
                part[name] = Tensor(tensor.datatype, (count, *tail), raw)
        else:
            start = 0
            for part, count in zip(parts, rows, strict=True):
                part[name] = Tensor(
                    tensor.datatype, (count, *tail), tensor.data[start : start + count]
                )
                start += count
    return parts


def chunks(
    tensors: Mapping[str, Tensor], rows: int, max_rows: int
) -> Iterator[Mapping[str, Tensor]]:
    """`rows` rows in runs of at most `max_rows`."""
    whole, rest = divmod(rows, max_rows)
    yield from split(tensors, [max_rows] * whole + [rest] * bool(rest))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    if isinstance(first.data, bytes):
        return Tensor(first.datatype, shape, b"".join([tensor.wire() for tensor in tensors]))
    return Tensor(first.datatype, shape, np.concatenate([tensor.array() for tensor in tensors]))
