import io
from collections.abc import Sequence
from typing import Any

import nanoarrow  # type: ignore[import-untyped]  # ships no types
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanoarrow.ipc import StreamWriter  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from trimtab.server.logs import arrow_frame
from trimtab.server.logs.arrow_frame import Columns

KINDS = sorted(set(arrow_frame.ARROW_TYPE.values()))


class Made:
    """Columns as arrow_frame takes them, and as nanoarrow does: (name, kind, buffers) of each."""

    def __init__(self, columns: Columns, arrays: Sequence[tuple[str, str, list[Any]]]) -> None:
        self.columns = columns
        self.arrays = arrays


def packed(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(bits, bitorder="little")


def string_buffers(values: Sequence[bytes]) -> list[Any]:
    return [np.cumsum([0, *map(len, values)], dtype=np.int32), b"".join(values)]


def number_buffer(values: NDArray[Any]) -> Any:
    return packed(values) if values.dtype == np.bool_ else np.ascontiguousarray(values)


@st.composite
def some_columns(draw: st.DrawFn, prefix: str, rows: int) -> Made:
    kind = draw(st.sampled_from(KINDS))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    valid = random.random(rows) < 0.7 if draw(st.booleans()) else None
    bitmap = None if valid is None else packed(valid)
    form = draw(st.sampled_from(["one", "table", "nulls"]))
    names = tuple(f"{prefix}.{index}" for index in range(draw(st.integers(1, 5))))
    if form == "nulls":
        empty = packed(np.zeros(rows, np.bool_))
        if kind == "string":
            buffers = string_buffers([b""] * rows)
        else:
            buffers = [number_buffer(np.zeros(rows, kind.rstrip("_")))]
        arrays = [(name, kind, [empty, *buffers]) for name in names]
        return Made(arrow_frame.nulls(names, kind, rows), arrays)
    if kind == "string":
        texts = draw(st.lists(st.text(max_size=5), min_size=rows, max_size=rows))
        values = [text.encode() for text in texts]
        buffers = string_buffers(values)
        if valid is None and form == "table":
            return Made(arrow_frame.texts(names[0], *buffers), [(names[0], kind, [None, *buffers])])
        return Made(
            arrow_frame.strings(names[0], values, valid), [(names[0], kind, [bitmap, *buffers])]
        )
    if kind == "bool_":
        matrix = random.random((rows, len(names))) < 0.5
    else:  # any bits: NaN and all
        item = np.dtype(kind).itemsize
        matrix = np.frombuffer(random.bytes(rows * len(names) * item), kind)
        matrix = matrix.reshape(rows, len(names))
    if form == "table":
        arrays = [
            (name, kind, [None, number_buffer(matrix[:, index])])
            for index, name in enumerate(names)
        ]
        return Made(arrow_frame.table(names, matrix), arrays)
    one = matrix[:, 0]
    return Made(
        arrow_frame.numbers(names[0], one, valid), [(names[0], kind, [bitmap, number_buffer(one)])]
    )


def nanoarrows_own(made: Sequence[Made], rows: int) -> bytes:
    """The stream that nanoarrow writes of the same columns."""
    arrays = [array for each in made for array in each.arrays]
    schema = nanoarrow.c_schema(
        nanoarrow.struct({name: getattr(nanoarrow, kind)() for name, kind, _ in arrays})
    )
    children = [
        nanoarrow.c_array_from_buffers(schema.child(index), rows, buffers)
        for index, (_, _, buffers) in enumerate(arrays)
    ]
    batch = nanoarrow.c_array_from_buffers(
        schema, rows, [None], null_count=0, children=children, move=True
    )
    stream = io.BytesIO()
    with StreamWriter.from_writable(stream) as writer:
        writer.serialize_stream(batch)
    return stream.getvalue()


def read_whole(payload: bytes) -> tuple[str, list[tuple[int, int, list[bytes]]]]:
    """The schema; of every column its rows, its nulls and its buffers."""
    stream = nanoarrow.c_array_stream(nanoarrow.ArrayStream.from_readable(io.BytesIO(payload)))
    schema = repr(nanoarrow.Schema(stream.get_schema()))
    (batch,) = stream
    children = [batch.child(index).view() for index in range(batch.n_children)]
    return schema, [
        (len(child), child.null_count, [bytes(buffer) for buffer in child.buffers])
        for child in children
    ]


@given(st.integers(0, 20), st.integers(1, 5), st.data())
def test_a_frame_holds_what_nanoarrow_would_have_written(
    rows: int, groups: int, data: st.DataObject
) -> None:
    made = [data.draw(some_columns(str(index), rows)) for index in range(groups)]
    written = arrow_frame.encode([each.columns for each in made], rows)
    expected = nanoarrows_own(made, rows)
    assert read_whole(written) == read_whole(expected)
    ours, theirs = (pl.read_ipc_stream(io.BytesIO(each)) for each in (written, expected))
    assert ours.schema == theirs.schema
    assert ours.equals(theirs)


def test_columns_that_contradict_each_other_are_no_frame() -> None:
    one = arrow_frame.numbers("a", np.zeros(3))
    with pytest.raises(ValueError, match="of 2 columns only 1 have names of their own"):
        arrow_frame.encode([one, one], 3)
    torn = Columns(("a",), "float64", (0, 24), ((np.zeros(2), 1, 8),))
    with pytest.raises(ValueError, match="not of the sizes they should be, 24"):
        arrow_frame.encode([torn], 3)


def test_every_kind_of_column_is_read_back_as_it_was() -> None:
    valid = np.array([True, False, True])
    columns = [
        arrow_frame.numbers("f", np.array([1.5, np.nan, -np.inf], np.float32)),
        arrow_frame.numbers("d", np.array([1, 2, 3], np.float64), valid),
        arrow_frame.numbers("h", np.array([1, 2, 3], np.float16)),
        arrow_frame.numbers("b", np.array([True, False, True])),
        *[
            arrow_frame.numbers(name, np.array([0, 1, np.iinfo(name).max], name))
            for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        ],
        arrow_frame.strings("s", [b"", "Zürich 日本".encode(), b"x" * 1000]),
        arrow_frame.strings("t", [b"a", b"", b""], valid),
        *[
            arrow_frame.nulls((f"null {kind}", f"{kind} null"), kind, 3)
            for kind in set(arrow_frame.ARROW_TYPE.values())
        ],
    ]
    frame = pl.read_ipc_stream(io.BytesIO(arrow_frame.encode(columns, 3)))
    assert frame.columns == [name for each in columns for name in each.names]
    assert np.array_equal(frame["f"].to_numpy(), [1.5, np.nan, -np.inf], equal_nan=True)
    assert frame["d"].to_list() == [1, None, 3]
    assert frame["h"].to_list() == [1, 2, 3]
    assert frame["b"].to_list() == [True, False, True]
    for name in ("int8", "int64", "uint32", "uint64"):
        assert frame[name].to_list() == [0, 1, np.iinfo(name).max]
    assert frame["s"].to_list() == ["", "Zürich 日本", "x" * 1000]
    assert frame["t"].to_list() == ["a", None, ""]
    for kind in arrow_frame.ARROW_TYPE.values():
        assert frame[f"null {kind}"].null_count() == frame[f"{kind} null"].null_count() == 3


def test_the_last_column_of_whole_numbers_is_read_back_without_arrow() -> None:
    random = np.random.default_rng(0)
    for rows in (1, 2, 3, 7, 8, 9, 63, 64, 65, 1000):
        valid = random.random(rows) < 0.5
        times = random.integers(-(2**62), 2**62, rows)
        payload = arrow_frame.encode(
            [
                arrow_frame.strings("s", [b"x" * (row % 5) for row in range(rows)], valid),
                arrow_frame.numbers("f", random.random(rows).astype(np.float32), valid),
                arrow_frame.numbers("t", times),
            ],
            rows,
        )
        assert arrow_frame.last_int64(payload, rows).tolist() == times.tolist()
        assert pl.read_ipc_stream(io.BytesIO(payload))["t"].to_list() == times.tolist()
