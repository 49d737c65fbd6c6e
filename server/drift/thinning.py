"""Fewer rows of a batch: at most so many of each request, or every n-th.

Rows of one request are often of one kind. A request of 10,000 rows, a night's backlog of one
customer, would be all that a window holds. With a limit every request has a say, and the rows that
are left are nearer to independent.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor

from ..inference.observation import ObservedBatch, ObservedCalls
from ..inference.tensor import BYTES, Tensor

_NO_CALLS = ObservedCalls.of([])


def thinned(batch: ObservedBatch, at_most: int) -> ObservedBatch:
    """At most that many rows of each request, evenly spread over it; the same batch if none has
    more. Tensors without a row per row are left as they are."""
    if batch.rows <= at_most:
        return batch
    calls = batch.calls
    rows = calls.rows
    if int(rows.max(initial=0)) <= at_most:
        return batch
    starts = np.cumsum(rows) - rows
    kept = np.minimum(rows, at_most)
    chosen = np.concatenate(
        [
            start + np.arange(keep) * count // keep
            for start, count, keep in zip(starts, rows, kept, strict=True)
            if keep
        ]
    )
    return ObservedBatch(
        batch.model,
        batch.version,
        ObservedCalls(calls.ids, calls.id_ends, kept, calls.event_time_ms, calls.received_ms),
        len(chosen),
        _chosen(batch.inputs, chosen, batch.rows),
        _chosen(batch.outputs, chosen, batch.rows),
        batch.latest_event_time_ms,
    )


def every(batch: ObservedBatch, chosen: slice) -> ObservedBatch:
    """Those rows of a batch, without the calls that they are of; the same batch if it is all."""
    rows = len(range(*chosen.indices(batch.rows)))
    if rows == batch.rows:
        return batch
    return ObservedBatch(
        batch.model,
        batch.version,
        _NO_CALLS,
        rows,
        _chosen(batch.inputs, chosen, batch.rows),
        _chosen(batch.outputs, chosen, batch.rows),
        batch.latest_event_time_ms,
    )


def rows_of(tensor: Tensor, chosen: NDArray[np.int64] | slice) -> Tensor:
    """Those of a tensor's rows; the same tensor if it is all."""
    rows = tensor.shape[0]
    if isinstance(chosen, slice) and chosen.indices(rows) == (0, rows, 1):
        return tensor
    if tensor.datatype != BYTES:
        array = np.ascontiguousarray(tensor.array()[chosen])
        return Tensor(tensor.datatype, array.shape, array)
    width = tensor.elements // rows
    kept = np.arange(rows)[chosen]
    # The rows themselves and those between, so that the latter are not taken apart.
    ends = np.column_stack([kept, kept + 1]).ravel()
    pieces = np.diff(ends, prepend=0, append=rows)
    each = bytes_tensor.split(tensor.wire(), pieces.tolist(), width)
    return Tensor(BYTES, (len(kept), *tensor.shape[1:]), b"".join(each[1::2]))


def _chosen(
    tensors: Mapping[str, Tensor], chosen: NDArray[np.int64] | slice, rows: int
) -> dict[str, Tensor]:
    return {
        name: rows_of(tensor, chosen) if tensor.shape and tensor.shape[0] == rows else tensor
        for name, tensor in tensors.items()
    }
