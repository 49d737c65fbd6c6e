"""The wire form of BYTES tensors, against a few lines of struct."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab._native import bytes_tensor

TEXTS = st.lists(st.text(max_size=12), max_size=24)


def wire(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@given(TEXTS)
def test_decode_and_encode_are_inverse(texts: list[str]) -> None:
    raw = wire([text.encode() for text in texts])
    decoded = bytes_tensor.decode(raw, len(texts))
    assert decoded.dtype == object
    assert decoded.tolist() == texts
    assert bytes_tensor.encode(decoded) == raw
    assert bytes_tensor.count(raw) == len(texts)


def test_encode_takes_bytes_as_they_are_and_any_shape_row_by_row() -> None:
    values = np.array([["ü", b"\xff"], ["", b""]], dtype=object)
    assert bytes_tensor.encode(values) == wire(["ü".encode(), b"\xff", b"", b""])
    assert bytes_tensor.encode(["a", b"b"]) == wire([b"a", b"b"])


def test_encode_names_the_element_that_is_no_string() -> None:
    with pytest.raises(TypeError, match="element 1 is int, not str or bytes"):
        bytes_tensor.encode(np.array(["a", 1], dtype=object))
    with pytest.raises(ValueError, match="element 0 has no UTF-8 form"):
        bytes_tensor.encode(["\ud800"])


def test_decode_names_the_element_that_is_not_utf8() -> None:
    with pytest.raises(ValueError, match=r"BYTES element 2 is not UTF-8: .* at byte 1"):
        bytes_tensor.decode(wire([b"a", b"b", b"c\xff"]), 3)


def test_decode_refuses_another_number_of_elements() -> None:
    with pytest.raises(ValueError, match="holds 2 elements, expected 3"):
        bytes_tensor.decode(wire([b"a", b"b"]), 3)


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=6), st.data())
def test_every_torn_prefix_is_refused(values: list[bytes], data: st.DataObject) -> None:
    raw = wire(values)
    ends = {len(wire(values[:i])) for i in range(len(values) + 1)}
    cut = data.draw(st.sampled_from(sorted(set(range(len(raw))) - ends)))
    for read in (
        bytes_tensor.count,
        lambda torn: bytes_tensor.decode(torn, len(values)),
        lambda torn: bytes_tensor.columns(torn, 1),
        lambda torn: bytes_tensor.split(torn, [len(values)], 1),
    ):
        with pytest.raises(ValueError, match=r"torn: element \d+ has \d+ of "):
            read(raw[:cut])


def test_a_length_beyond_the_end_is_torn_however_large() -> None:
    raw = wire([b"ab"]) + struct.pack("<I", 0xFFFFFFFF)
    with pytest.raises(ValueError, match="element 1 has 0 of its 4294967295 bytes"):
        bytes_tensor.count(raw)


@given(st.integers(1, 4), st.integers(0, 5), st.data())
def test_columns_are_arrow_buffers(width: int, rows: int, data: st.DataObject) -> None:
    size = width * rows
    values = data.draw(st.lists(st.binary(max_size=6), min_size=size, max_size=size))
    buffers = bytes_tensor.columns(wire(values), width)
    assert len(buffers) == width
    for column, (offsets, text) in enumerate(buffers):
        expected = values[column::width]
        assert offsets.dtype == np.int32
        assert [text[offsets[i] : offsets[i + 1]] for i in range(rows)] == expected
        assert offsets[-1] == len(text)


def test_columns_refuse_an_uneven_number_of_elements() -> None:
    with pytest.raises(ValueError, match="3 elements: no rows of 2 columns"):
        bytes_tensor.columns(wire([b"a", b"b", b"c"]), 2)
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        bytes_tensor.columns(b"", 0)


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(1, 3), st.data())
def test_split_cuts_what_concatenation_joined(
    row_counts: list[int], width: int, data: st.DataObject
) -> None:
    calls = [
        wire(data.draw(st.lists(st.binary(max_size=5), min_size=n * width, max_size=n * width)))
        for n in row_counts
    ]
    assert bytes_tensor.split(b"".join(calls), row_counts, width) == calls


def test_split_refuses_rows_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="holds 3 elements, 2 rows of 2 columns need 4"):
        bytes_tensor.split(wire([b"a"] * 3), [1, 1], 2)
    with pytest.raises(ValueError, match="must not be negative"):
        bytes_tensor.split(wire([b"a"]), [2, -1], 1)


def test_any_contiguous_buffer_is_read() -> None:
    raw = wire([b"a", b"bc"])
    for buffer in (bytearray(raw), memoryview(raw)):
        assert bytes_tensor.decode(buffer, 2).tolist() == ["a", "bc"]
