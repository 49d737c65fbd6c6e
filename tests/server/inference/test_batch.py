"""Joining calls into a batch and giving every call its rows back."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.server.inference.batch import chunks, join, split
from trimtab.server.inference.tensor import BYTES, DTYPES, Tensor


def strings(rows: list[list[bytes]]) -> Tensor:
    raw = b"".join(struct.pack("<I", len(item)) + item for row in rows for item in row)
    return Tensor(BYTES, (len(rows), len(rows[0])), raw)


@st.composite
def calls(draw: st.DrawFn) -> list[dict[str, Tensor]]:
    datatype = draw(st.sampled_from([name for name in DTYPES if name != BYTES]))
    tail = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    width = draw(st.integers(1, 3))
    made = []
    for rows in draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)):
        shape = (rows, *tail)
        numbers = np.arange(int(np.prod(shape))).reshape(shape).astype(DTYPES[datatype])
        words = draw(
            st.lists(
                st.lists(st.binary(max_size=5), min_size=width, max_size=width),
                min_size=rows,
                max_size=rows,
            )
        )
        made.append({"numbers": Tensor(datatype, shape, numbers), "words": strings(words)})
    return made


def same(one: Tensor, other: Tensor) -> bool:
    return (one.datatype, one.shape, one.wire()) == (other.datatype, other.shape, other.wire())


@given(calls())
def test_splitting_a_joined_batch_gives_the_calls_back(parts: list[dict[str, Tensor]]) -> None:
    rows = [part["words"].shape[0] for part in parts]
    joined = join(parts)
    assert joined["numbers"].shape[0] == sum(rows)
    for part, back in zip(parts, split(joined, rows), strict=True):
        assert all(same(part[name], back[name]) for name in part)


@given(calls(), st.integers(1, 4))
def test_chunks_joined_again_are_the_whole(parts: list[dict[str, Tensor]], limit: int) -> None:
    whole = join(parts)
    rows = whole["words"].shape[0]
    pieces = list(chunks(whole, rows, limit))
    assert all(1 <= piece["words"].shape[0] <= limit for piece in pieces)
    again = join(pieces)
    assert all(same(whole[name], again[name]) for name in whole)


def test_a_lone_call_is_not_copied() -> None:
    array: Any = np.zeros((2, 3), dtype=np.float32)
    part = {"x": Tensor("FP32", (2, 3), array)}
    joined = join([part])
    assert joined["x"].data is array
    assert split(joined, [2])[0]["x"].data is array


def test_a_tensor_without_a_first_dimension_can_only_travel_alone() -> None:
    scalar = {"x": Tensor("FP32", (), np.array(1, dtype=np.float32))}
    assert split(join([scalar]), [1])[0]["x"].shape == ()
    with pytest.raises(IndexError):
        join([scalar, scalar])
