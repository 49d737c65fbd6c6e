"""Rows of one version are gathered and become the columns of a frame of the traffic log.

`gather` copies a batch's bytes and keeps nothing of the batch, whose memory the next run of the
model uses again: rows that wait as batches would each hold theirs. `columns` makes of what was
gathered `id`, `row`, `event_time`, `received`, `version`, then `in.<column>` of every input and
`out.<column>` of every output that is rows of columns. Both work on whole tensors: Python touches
a batch once, never a request or a value; columns are made by arrow_frame.py, strings in one native
pass.

`shape_of` and `gather` run on an executor's thread, so nothing there depends on the number of
columns: their names are made where columns are.
"""

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native import columns as native
from trimtab.registry.manifest import Signature, TensorSpec

from ..drift.row_columns import declared_width, names_of, width_of
from ..inference.observation import ObservedBatch
from ..inference.tensor import BYTES, DTYPES
from . import arrow_frame
from .arrow_frame import Columns

MAX_COLUMNS = 4096  # of one tensor: a wider one is no table, and a column costs whatever its rows
_KEPT_SHAPES = 64  # of a version: some models take rows of any width
_CALL_BYTES = 4 + 3 * 8  # what is gathered of a call beside its id


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor's columns in a frame; `present` says whether the batches have it."""

    spec: TensorSpec
    is_input: bool
    datatype: str
    width: int
    present: bool


class Shape:
    """What rows have in common that may share a frame: their version and tensors; one per frame.

    Two batches have the same shape if they have the same object: it is compared and hashed as such.
    """

    __slots__ = ("_names", "parts", "row_bytes", "texts", "version")

    def __init__(self, version: int, parts: tuple[_Part, ...]) -> None:
        self.version = version
        self.parts = parts
        present = [part for part in parts if part.present]
        self.texts = tuple(part for part in present if part.datatype == BYTES)
        self.row_bytes = sum(
            part.width * DTYPES[part.datatype].itemsize
            for part in present
            if part.datatype != BYTES
        )
        self._names: list[tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        return f"<Shape of version {self.version}, {len(self.parts)} tensors>"

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The columns' names of every part; the log's thread asks for them."""
        if self._names is None:
            names: list[tuple[str, ...]] = []
            used: set[str] = set()
            for part in self.parts:
                prefix = "in" if part.is_input else "out"
                own = names_of(part.spec, part.width)
                named = tuple(f"{prefix}.{name}" for name in own)
                if not used.isdisjoint(named):  # two tensors that call their columns alike
                    named = tuple(f"{prefix}.{part.spec.name}.{name}" for name in own)
                used.update(named)
                names.append(named)
            self._names = names
        return self._names

    def size_of(self, batch: ObservedBatch) -> int:
        """The bytes that `Rows.gather` will copy of a batch of this shape."""
        calls = batch.calls
        size = batch.rows * self.row_bytes + len(calls.ids) + len(calls.rows) * _CALL_BYTES
        for part in self.texts:
            size += len((batch.inputs if part.is_input else batch.outputs)[part.spec.name].data)
        return size


class TrafficLayout:
    """Which columns a version's batches have; built once, when the version is loaded.

    One thread at a time may ask: the log's lock sees to that.
    """

    def __init__(self, signature: Signature) -> None:
        self._specs = [(spec, True) for spec in signature.inputs]
        self._specs += [(spec, False) for spec in signature.outputs]
        self._shapes: dict[tuple[Any, ...], Shape] = {}

    def shape_of(self, batch: ObservedBatch) -> Shape:
        """The shape of the batch. A tensor that is absent keeps its columns, all null."""
        rows = batch.rows
        key: list[Any] = [batch.version]
        for tensors in (batch.inputs, batch.outputs):
            key.append(None)
            for name, tensor in tensors.items():
                shape = tensor.shape
                has_rows = shape and shape[0] == rows
                key += (name, tensor.datatype, shape[1:]) if has_rows else (name,)
        known = tuple(key)
        found = self._shapes.get(known)
        if found is None:
            if len(self._shapes) >= _KEPT_SHAPES:
                self._shapes.clear()
            found = self._shapes[known] = Shape(batch.version, self._parts(batch))
        return found

    def _parts(self, batch: ObservedBatch) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        for spec, is_input in self._specs:
            tensor = (batch.inputs if is_input else batch.outputs).get(spec.name)
            width = declared_width(spec) if tensor is None else width_of(tensor, batch.rows)
            datatype = spec.datatype if tensor is None else tensor.datatype
            if width is None or width > MAX_COLUMNS or datatype not in arrow_frame.ARROW_TYPE:
                continue
            parts.append(_Part(spec, is_input, datatype, width, tensor is not None))
        return tuple(parts)


class Rows:
    """Rows of one shape, gathered until there are enough for a frame."""

    __slots__ = ("_calls", "_first_calls", "_tensors", "began", "rows", "shape", "size")

    def __init__(self, shape: Shape, began: float) -> None:
        """`began`: when the first of them came, for whoever gathers them."""
        self.shape = shape
        self.began = began
        self.rows = 0
        self.size = 0  # bytes
        # ids, id_ends, rows, event_time_ms and received_ms of the calls, one batch after another
        self._calls = tuple(bytearray() for _ in range(5))
        self._first_calls = array("q")  # which call is the first one of each batch
        self._tensors = [
            (part.is_input, part.spec.name, bytearray()) for part in shape.parts if part.present
        ]

    def __repr__(self) -> str:
        return f"<Rows: {self.rows} of {self.shape!r}, {self.size} bytes>"

    def gather(self, batch: ObservedBatch, size: int) -> None:
        """Copies the rows of a batch of this shape; `size` is what `Shape.size_of` says."""
        calls = batch.calls
        ids, id_ends, rows, event_time, received = self._calls
        self._first_calls.append(len(rows) // 8)
        ids.extend(calls.ids)
        id_ends.extend(calls.id_ends)
        rows.extend(calls.rows)
        event_time.extend(calls.event_time_ms)
        received.extend(calls.received_ms)
        for is_input, name, gathered in self._tensors:
            gathered.extend((batch.inputs if is_input else batch.outputs)[name].data)
        self.rows += batch.rows
        self.size += size

    def columns(self) -> list[Columns]:
        """The frame's columns; ValueError: a batch was not what it said it is."""
        columns = self._request_columns()
        gathered = iter(self._tensors)
        for part, names in zip(self.shape.parts, self.shape.names, strict=True):
            if not part.present:
                columns.append(
                    arrow_frame.nulls(names, arrow_frame.ARROW_TYPE[part.datatype], self.rows)
                )
                continue
            _, _, data = next(gathered)
            if part.datatype == BYTES:
                columns += self._texts(names, data)
            else:
                values = np.frombuffer(data, DTYPES[part.datatype]).reshape(self.rows, part.width)
                columns.append(arrow_frame.table(names, values))
        return columns

    def _request_columns(self) -> list[Columns]:
        rows, event_time, received = (np.frombuffer(data, np.int64) for data in self._calls[2:])
        row, event_time, by_row = native.per_row(rows, event_time, received, self.rows)
        offsets, ids = bytes_tensor.repeat(bytes(self._calls[0]), self._id_ends(), rows)
        return [
            arrow_frame.texts("id", offsets, ids),
            arrow_frame.numbers("row", row),
            arrow_frame.numbers("event_time", event_time),
            arrow_frame.numbers("received", by_row),
            arrow_frame.numbers("version", np.full(self.rows, self.shape.version, np.int64)),
        ]

    def _id_ends(self) -> NDArray[np.int32]:
        """Where each id ends among all of them; what was gathered begins anew with each batch."""
        ends = np.frombuffer(self._calls[1], np.int32)
        first = np.frombuffer(self._first_calls, np.int64)
        lengths = ends.copy()
        lengths[1:] -= ends[:-1]
        lengths[first] = ends[first]
        return np.cumsum(lengths, dtype=np.int32)

    def _texts(self, names: tuple[str, ...], data: bytearray) -> list[Columns]:
        buffers = bytes_tensor.columns(data, len(names))
        if len(buffers[0][0]) != self.rows + 1:
            raise ValueError(f"{len(buffers[0][0]) - 1} rows of {names[0]}, of others {self.rows}")
        return [
            arrow_frame.texts(name, offsets, text)
            for name, (offsets, text) in zip(names, buffers, strict=True)
        ]
