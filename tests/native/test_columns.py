"""Rows become columns, against numpy's transpose and a loop."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab._native import columns

DTYPES = [np.dtype(name) for name in ("uint8", "uint16", "float32", "float64")]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def by_column(rows: NDArray[Any]) -> bytes:
    return b"".join(padded(column.tobytes()) for column in rows.T)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.integers(0, 70), st.integers(1, 40)), max_size=4
    ),
    st.integers(0, 1000),
)
def test_parts_are_turned_and_padded_one_after_another(
    parts: list[tuple[np.dtype[Any], int, int]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    tables = [
        np.frombuffer(random.bytes(rows * width * dtype.itemsize), dtype).reshape(rows, width)
        for dtype, rows, width in parts
    ]
    joined = columns.join(
        b"headhead", [(each, each.shape[1], each.itemsize) for each in tables], b"end"
    )
    assert joined == b"headhead" + b"".join(map(by_column, tables)) + b"end"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(63, 31), (64, 32), (65, 33), (200, 100), (1, 4096), (4096, 1)])
def test_tables_larger_than_a_tile_are_turned_whole(
    dtype: np.dtype[Any], shape: tuple[int, int]
) -> None:
    table = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    assert columns.join(b"", [(table, shape[1], table.itemsize)], b"") == by_column(table)


def test_any_contiguous_buffer_is_taken_and_let_go() -> None:
    grown = bytearray(struct.pack("<4i", 1, 2, 3, 4))
    for buffer in (grown, bytes(grown), memoryview(grown)):
        assert columns.join(b"", [(buffer, 2, 4)], b"") == struct.pack("<4i", 1, 3, 2, 4)
    del buffer
    grown.extend(b"it can grow again")
    with pytest.raises(ValueError, match="contiguous"):
        columns.join(b"", [(np.zeros((4, 4))[:, :2], 2, 8)], b"")


@pytest.mark.parametrize(
    ("head", "part", "message"),
    [
        (b"", (b"12345", 1, 4), "5 bytes are no rows of 1 values of 4 bytes"),
        (b"", (b"12345678", 3, 1), "8 bytes are no rows of 3 values of 1 bytes"),
        (b"", (b"", 0, 4), "no table has 0 columns of values of 4 bytes"),
        (b"", (b"123", 1, 3), "no table has 1 columns of values of 3 bytes"),
        (b"odd", (b"", 1, 1), "a head of 3 bytes does not end at a multiple of 8"),
    ],
)
def test_what_is_no_table_is_refused_and_let_go(
    head: bytes, part: tuple[bytes, int, int], message: str
) -> None:
    buffer = bytearray(part[0])
    with pytest.raises(ValueError, match=message):
        columns.join(head, [(b"12345678", 1, 8), (buffer, *part[1:])], b"")
    buffer.extend(b"it can grow again")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 9), st.integers(0, 9)), max_size=9))
def test_every_row_has_its_number_and_the_times_of_its_call(
    calls: list[tuple[int, int, int]],
) -> None:
    arrays = [np.array([call[index] for call in calls], np.int64) for index in range(3)]
    total = sum(rows for rows, _, _ in calls)
    row, event_time, received = columns.per_row(arrays[0], arrays[1], arrays[2], total)
    assert [each.dtype.name for each in (row, event_time, received)] == ["uint32", "int64", "int64"]
    assert list(zip(row.tolist(), event_time.tolist(), received.tolist(), strict=True)) == [
        (index, came if event < 0 else event, came)
        for rows, event, came in calls
        for index in range(rows)
    ]


def test_calls_that_do_not_add_up_are_refused() -> None:
    one, two = np.ones(1, np.int64), np.ones(2, np.int64)
    with pytest.raises(ValueError, match="2 calls have 2 rows, their batches 3"):
        columns.per_row(two, two, two, 3)
    for wrong in (-1, 4, 2**62):
        with pytest.raises(ValueError, match=f"call 1 has {wrong} of 3 rows"):
            columns.per_row(np.array([1, wrong]), two, two, 3)
    with pytest.raises(ValueError, match="2 calls have 1 event times and 2 times of receipt"):
        columns.per_row(two, one, two, 2)
