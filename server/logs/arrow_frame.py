"""Columns of numbers and strings become one Arrow IPC stream, the payload of a frame.

The schema's message is nanoarrow's, made once per schema. The record batch's message is written
here: its table is always of the same form, only its two vectors grow with the columns, and numpy
fills those. So a frame costs Python a few steps a tensor, not a few a column, and its body is laid
out in one native pass that holds no interpreter lock: 4,096 rows of 30 floats and an id take
0.1 ms, where nanoarrow took 1.2 (`encode_us` of benchmarks/watching.py). The format is Arrow's:
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc

Any thread may call this; nothing is kept between calls but the schemas.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nanoarrow  # type: ignore[import-untyped]  # ships no types
import numpy as np
from nanoarrow.c_array_stream import CArrayStream  # type: ignore[import-untyped]  # ships no types
from nanoarrow.ipc import StreamWriter  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from trimtab._native import columns as native

ARROW_TYPE = {
    "BOOL": "bool_",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float32",  # readers of half floats are rare
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "string",
}
"""What a tensor's datatype is in the log; datatypes that are not here are not logged."""

# Asking a dtype for its name takes 2 µs.
_KINDS = {np.dtype(kind): kind for kind in {*ARROW_TYPE.values()} - {"bool_", "string"}}
_END = b"\xff\xff\xff\xff\0\0\0\0"

# A record batch's message up to its vectors: what stands before every message, the flatbuffer's
# root, and the tables Message and RecordBatch, each behind the table of its fields' places. All
# places are such that every number lies at a multiple of its size.
_MESSAGE = struct.Struct(
    "<Ii"  # a message begins; the bytes of its flatbuffer
    "I6H"  # where the root is; Message: sizes of its place table and itself, places of 4 fields
    "iIqhBx"  # Message: its place table, header, body's length, version, kind of header
    "5H2x"  # RecordBatch: sizes of its place table and itself, places of 3 fields
    "iIqI"  # RecordBatch: its place table, nodes, rows, buffers
)
_MESSAGE_BEGINS = 0xFFFFFFFF
_V5 = 4
_RECORD_BATCH = 3
_TABLES = _MESSAGE.size - 8  # bytes of the flatbuffer before its vectors


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns side by side, alike in all but their names and values.

    `kind` is a nanoarrow type's name. `sizes` are the bytes of each of a column's Arrow buffers,
    the validity first (0: no nulls). `parts` hold the buffers of all columns in order, as
    `_native.columns.join` takes them.
    """

    names: tuple[str, ...]
    kind: str
    sizes: tuple[int, ...]
    parts: tuple[tuple[Any, int, int], ...]
    nulls: int = 0  # of each column


def numbers(name: str, values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Columns:
    """A column from a one-dimensional array; its dtype says the type."""
    data, kind = _plain(values)
    return _column(name, kind, (data,), valid)


def table(names: tuple[str, ...], values: NDArray[Any]) -> Columns:
    """The columns of a two-dimensional array of so many; none has nulls."""
    data, kind = _plain(values)
    rows, width = data.shape
    return Columns(names, kind, (0, rows * data.itemsize), ((data, width, data.itemsize),))


def strings(name: str, values: Sequence[bytes], valid: NDArray[np.bool_] | None = None) -> Columns:
    """A column of UTF-8 strings, one bytes object each."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
    return _column(name, "string", (offsets, b"".join(values)), valid)


def texts(name: str, offsets: NDArray[np.int32], data: bytes) -> Columns:
    """A column of UTF-8 strings from Arrow's own buffers."""
    return _column(name, "string", (offsets, data), None)


def nulls(names: tuple[str, ...], kind: str, rows: int) -> Columns:
    """Columns without a single value."""
    validity = (rows + 7) // 8
    if kind == "string":
        sizes: tuple[int, ...] = (validity, 4 * (rows + 1), 0)
    elif kind == "bool_":
        sizes = (validity, validity)
    else:
        sizes = (validity, rows * np.dtype(kind).itemsize)
    zeros = bytes(len(names) * sum(_padded(size) for size in sizes))
    return Columns(names, kind, sizes, ((zeros, 1, 1),), rows)


def encode(columns: Sequence[Columns], rows: int) -> bytes:
    """The Arrow IPC stream of one record batch."""
    sizes: list[int] = []
    null_counts: list[int] = []
    for each in columns:
        sizes += each.sizes * len(each.names)
        null_counts += (each.nulls,) * len(each.names)
    head = _schema(tuple((each.names, each.kind) for each in columns))
    message, body_size = _message(rows, null_counts, sizes)
    parts = [part for each in columns for part in each.parts]
    payload = native.join(head + message, parts, _END)
    if len(payload) != len(head) + len(message) + body_size + len(_END):
        raise ValueError(f"the columns' buffers are not of the sizes they should be, {body_size}")
    return payload


def last_int64(payload: bytes, rows: int) -> NDArray[np.int64]:
    """The last column of what `encode` made, where that is int64 without nulls.

    Its values end where the stream's end mark, of 8 bytes, begins. A general reader takes 50 µs for
    a frame, and a log of labels may have a million that hold one each.
    """
    return np.frombuffer(payload, np.int64, rows, len(payload) - 8 - 8 * rows)


def _plain(values: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Values as Arrow has them, contiguous, and its type."""
    if values.dtype == np.bool_:
        return np.packbits(values, axis=0, bitorder="little"), "bool_"
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return np.ascontiguousarray(values), _KINDS[values.dtype]


def _column(
    name: str, kind: str, buffers: tuple[Any, ...], valid: NDArray[np.bool_] | None
) -> Columns:
    null_count, validity = 0, b""
    if valid is not None:
        null_count = int(valid.size - np.count_nonzero(valid))
        validity = np.packbits(valid, bitorder="little").tobytes()
    parts = tuple((buffer, 1, 1) for buffer in (validity, *buffers))
    sizes = tuple(memoryview(buffer).nbytes for buffer, _, _ in parts)
    return Columns((name,), kind, sizes, parts, null_count)


def _padded(size: int) -> int:
    return (size + 7) & -8


def _message(rows: int, null_counts: Sequence[int], sizes: Sequence[int]) -> tuple[bytes, int]:
    """The record batch's message and the length of the body that follows it.

    Its vectors are (rows, nulls) of each column and (offset, size) of each buffer, each behind its
    length; the second one's is padded on its left.
    """
    nodes = np.empty((len(null_counts), 2), np.int64)
    nodes[:, 0] = rows
    nodes[:, 1] = null_counts
    buffers = np.empty((len(sizes), 2), np.int64)
    buffers[:, 1] = sizes
    ends = np.cumsum((buffers[:, 1] + 7) & -8)
    buffers[0, 0] = 0
    buffers[1:, 0] = ends[:-1]
    body_size = int(ends[-1])
    first = _TABLES  # where each vector begins, with its length
    second = first + 4 + nodes.nbytes + 4
    tables = _MESSAGE.pack(
        *(_MESSAGE_BEGINS, second + 4 + buffers.nbytes),
        *(16, 12, 20, 16, 18, 4, 8),
        *(12, 48 - 20, body_size, _V5, _RECORD_BATCH),
        *(10, 20, 8, 4, 16),
        *(12, first - 52, rows, second - 64),
    )
    lengths = struct.pack("<I", len(nodes)), struct.pack("<4xI", len(buffers))
    vectors = lengths[0], nodes.tobytes(), lengths[1], buffers.tobytes()
    return b"".join((tables, *vectors)), body_size


@lru_cache(maxsize=64)
def _schema(columns: tuple[tuple[tuple[str, ...], str], ...]) -> bytes:
    """The message that begins a stream of those names and kinds."""
    fields = [(name, kind) for names, kind in columns for name in names]
    types = {name: getattr(nanoarrow, kind)() for name, kind in fields}
    if len(types) != len(fields):
        raise ValueError(f"of {len(fields)} columns only {len(types)} have names of their own")
    schema = nanoarrow.c_schema(nanoarrow.struct(types))
    stream = io.BytesIO()
    with StreamWriter.from_writable(stream) as writer:
        writer.serialize_stream(CArrayStream.from_c_arrays([], schema, validate=False))
    return stream.getvalue().removesuffix(_END)
