"""Observed batches of one version become the columns of a frame of the traffic log.

The columns: `id`, `row`, `event_time`, `received`, `version`, then `in.<column>` of every input
and `out.<column>` of every output that is rows of columns. All of it works on whole arrays: a
numeric tensor is joined and transposed once, strings go from the wire to Arrow's offsets and bytes
in one native pass; Python touches a batch, never a request or a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab.registry.manifest import Signature, TensorSpec

from ..drift.row_columns import declared_width, names_of, width_of
from ..inference.observation import ObservedBatch
from ..inference.tensor import BYTES, Tensor
from . import arrow_frame
from .arrow_frame import Column

MAX_COLUMNS = 4096  # of one tensor: a wider one is no table, and a column costs whatever its rows
_KEPT_NAMES = 64  # of tensors, by width: some take rows of any


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor's columns in a frame; `present` says whether the batches have it."""

    tensor: str
    datatype: str
    names: tuple[str, ...]  # as in the frame, with their prefix
    is_input: bool
    present: bool


Shape = tuple[_Part, ...]
"""The columns that a batch has beside the fixed ones; batches of equal shape make one frame."""


class TrafficLayout:
    """What the columns of one version are called; built once, when the version is loaded."""

    def __init__(self, signature: Signature) -> None:
        self._specs = [(spec, True) for spec in signature.inputs]
        self._specs += [(spec, False) for spec in signature.outputs]
        self._names: dict[tuple[str, bool, int], tuple[str, ...]] = {}

    def shape_of(self, batch: ObservedBatch) -> Shape:
        """Which columns the batch has. A tensor that is absent keeps its columns, all null."""
        parts: list[_Part] = []
        used: set[str] = set()
        for spec, is_input in self._specs:
            tensor = (batch.inputs if is_input else batch.outputs).get(spec.name)
            width = declared_width(spec) if tensor is None else width_of(tensor, batch.rows)
            datatype = spec.datatype if tensor is None else tensor.datatype
            if width is None or width > MAX_COLUMNS or datatype not in arrow_frame.ARROW_TYPE:
                continue
            names = self._column_names(spec, is_input, width)
            if not used.isdisjoint(names):  # two tensors that call their columns alike
                prefix = "in" if is_input else "out"
                names = tuple(f"{prefix}.{spec.name}.{name.partition('.')[2]}" for name in names)
            used.update(names)
            parts.append(_Part(spec.name, datatype, names, is_input, tensor is not None))
        return tuple(parts)

    def _column_names(self, spec: TensorSpec, is_input: bool, width: int) -> tuple[str, ...]:
        key = (spec.name, is_input, width)
        if key not in self._names:
            if len(self._names) >= _KEPT_NAMES:
                self._names.clear()
            prefix = "in" if is_input else "out"
            self._names[key] = tuple(f"{prefix}.{name}" for name in names_of(spec, width))
        return self._names[key]


def columns_of(shape: Shape, batches: Sequence[ObservedBatch]) -> list[Column]:
    """The frame's columns; every batch has that shape and the same version."""
    rows = sum(batch.rows for batch in batches)
    columns = _request_columns(batches, rows)
    for part in shape:
        if not part.present:
            kind = arrow_frame.ARROW_TYPE[part.datatype]
            columns += (arrow_frame.nulls(name, kind, rows) for name in part.names)
            continue
        tensors = [_tensors(batch, part)[part.tensor] for batch in batches]
        columns += _tensor_columns(part, tensors, rows)
    return columns


def _tensors(batch: ObservedBatch, part: _Part) -> Mapping[str, Tensor]:
    return batch.inputs if part.is_input else batch.outputs


def _request_columns(batches: Sequence[ObservedBatch], rows: int) -> list[Column]:
    per_call = _joined([batch.calls.rows for batch in batches])
    if per_call.sum() != rows:
        raise ValueError(f"{len(per_call)} calls have {per_call.sum()} rows, their batches {rows}")
    received = _joined([batch.calls.received_ms for batch in batches])
    event_time = _joined([batch.calls.event_time_ms for batch in batches])
    event_time = np.where(event_time < 0, received, event_time)
    starts = np.cumsum(per_call) - per_call
    row = np.arange(rows, dtype=np.int64) - np.repeat(starts, per_call)
    return [
        Column("id", "string", _ids(batches, per_call)),
        arrow_frame.numbers("row", row.astype(np.uint32)),
        arrow_frame.numbers("event_time", np.repeat(event_time, per_call)),
        arrow_frame.numbers("received", np.repeat(received, per_call)),
        arrow_frame.numbers("version", np.full(rows, batches[0].version, np.int64)),
    ]


def _ids(
    batches: Sequence[ObservedBatch], per_call: NDArray[np.int64]
) -> tuple[NDArray[np.int32], bytes]:
    ends = []
    before = 0
    for batch in batches:
        ends.append(batch.calls.id_ends + np.int32(before))
        before += len(batch.calls.ids)
    return bytes_tensor.repeat(
        b"".join([batch.calls.ids for batch in batches]), np.concatenate(ends), per_call
    )


def _joined(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(columns)


def _tensor_columns(part: _Part, tensors: Sequence[Tensor], rows: int) -> list[Column]:
    width = len(part.names)
    if part.datatype == BYTES:
        raw = b"".join([tensor.wire() for tensor in tensors])  # copy: the batches' strings, joined
        buffers = bytes_tensor.columns(raw, width)
        return [
            Column(name, "string", (offsets, data))
            for name, (offsets, data) in zip(part.names, buffers, strict=True)
        ]
    arrays: list[NDArray[Any]] = [tensor.array().reshape(-1, width) for tensor in tensors]
    joined = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]  # copy: the batches, joined
    by_column = np.ascontiguousarray(joined.T)  # copy: rows to columns
    assert by_column.shape == (width, rows), f"{part.tensor}: {by_column.shape}"
    return [
        arrow_frame.numbers(name, column)
        for name, column in zip(part.names, by_column, strict=True)
    ]
