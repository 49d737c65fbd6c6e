"""Fewer rows of a request that has many: rows of one request are often of one kind.

A request of 10,000 rows, a night's backlog of one customer, would be all that a window holds. With a
limit every request has a say, and the rows that are left are nearer to independent.
"""

import numpy as np

from trimtab._native import bytes_tensor

from ..inference.observation import ObservedBatch, ObservedCalls
from ..inference.tensor import BYTES, Tensor


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
        {name: _rows(tensor, chosen, batch.rows) for name, tensor in batch.inputs.items()},
        {name: _rows(tensor, chosen, batch.rows) for name, tensor in batch.outputs.items()},
        batch.latest_event_time_ms,
    )


def _rows(tensor: Tensor, chosen: np.ndarray, rows: int) -> Tensor:
    if not tensor.shape or tensor.shape[0] != rows:
        return tensor
    shape = (len(chosen), *tensor.shape[1:])
    if tensor.datatype != BYTES:
        return Tensor(tensor.datatype, shape, tensor.array()[chosen])
    width = tensor.elements // rows
    each = bytes_tensor.split(tensor.wire(), [1] * rows, width)
    return Tensor(BYTES, shape, b"".join([each[row] for row in chosen]))
