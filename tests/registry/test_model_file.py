"""What a model file tells without a runtime, held against the onnx package."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trimtab.registry import model_file
from trimtab.registry.model_file import InvalidModelError

_MESSAGES: dict[str, Any] = {
    "model": onnx.ModelProto,
    "training": onnx.TrainingInfoProto,
    "function": onnx.FunctionProto,
    "graph": onnx.GraphProto,
    "node": onnx.NodeProto,
    "attribute": onnx.AttributeProto,
    "sparse": onnx.SparseTensorProto,
    "tensor": onnx.TensorProto,
    "entry": onnx.StringStringEntryProto,
}


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    *, initializers: tuple[TensorProto, ...] = (), nodes: tuple[Any, ...] = (), **parts: Any
) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), *nodes],
        "g",
        [values[0]],
        [values[1]],
        list(initializers),
    )
    return bytes(helper.make_model(graph, **parts).SerializeToString())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "model.onnx").write_bytes(data)
        return tmp_path / "model.onnx"

    return write


def test_every_way_to_a_tensor_that_onnx_has_is_known() -> None:
    kinds = {each.DESCRIPTOR.full_name: kind for kind, each in _MESSAGES.items()}
    for kind, fields in model_file._INSIDE.items():
        descriptor = _MESSAGES[kind].DESCRIPTOR
        there = {
            field.number: kinds[field.message_type.full_name]
            for field in descriptor.fields
            if field.message_type is not None
            and field.message_type.full_name in kinds
            and (kinds[field.message_type.full_name] != "entry" or field.name == "external_data")
        }
        assert there == dict(fields), kind


def test_a_whole_model_is_one_and_names_no_other_files(write: Callable[[bytes], Path]) -> None:
    path = write(model())
    model_file.check(path)
    assert model_file.external_files(path) == []


def test_files_are_found_wherever_onnx_allows_a_tensor(write: Callable[[bytes], Path]) -> None:
    def constant(name: str) -> Any:
        return helper.make_node("Constant", [], [name], value=external(name))

    branch = helper.make_graph([constant("in a branch")], "b", [], [])
    function = helper.make_function(
        "own", "f", [], ["o"], [constant("in a function")], [helper.make_opsetid("", 17)]
    )
    several = helper.make_node("Several", [], ["s"], domain="own")
    several.attribute.add(
        name="tensors", type=onnx.AttributeProto.TENSORS, tensors=[external("in a list")]
    )
    sparse = onnx.SparseTensorProto(values=external("sparse"), indices=external("indices"))
    path = write(
        model(
            initializers=(external("weights.bin"), external("weights.bin"), external("../é")),
            nodes=(
                constant("in a node"),
                helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
                helper.make_node("Constant", [], ["p"], sparse_value=sparse),
                several,
            ),
            functions=[function],
        )
    )
    model_file.check(path)
    assert model_file.external_files(path) == [
        *("../é", "in a branch", "in a function", "in a list", "in a node"),
        *("indices", "sparse", "weights.bin"),
    ]


def test_a_word_in_a_large_tensor_is_no_file(write: Callable[[bytes], Path]) -> None:
    raw = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[10_000])
    raw.raw_data = b"location" * 1250
    assert model_file.external_files(write(model(initializers=(raw, external("w"))))) == ["w"]


def test_a_model_that_is_cut_off_within_its_graph_is_told(write: Callable[[bytes], Path]) -> None:
    data = model(initializers=(external("w"),))
    graph = onnx.load_from_string(data).graph.SerializeToString()
    end = data.index(graph) + len(graph)
    for length in range(1, end):
        with pytest.raises(InvalidModelError, match="not an ONNX model, or cut off"):
            model_file.check(write(data[:length]))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (bytes(100), "at byte 0 there is no field"),
        (b"PK\x03\x04" + bytes(100), "cut off"),
        (b"<html><body>404</body></html>", "cut off"),
        (b"\x08\x07", "it has no graphs"),
        (b"\x3a\x00\x3a\x00", "it has 2 graphs"),
        (b"\x3a\x00", "it does not say which operators it uses"),
        (b"\xff" * 40, "at byte 0 there is no field"),
        (b"\x3b" * 40, "at byte 0 there is no field"),
    ],
)
def test_what_is_no_model_is_refused(
    write: Callable[[bytes], Path], data: bytes, problem: str
) -> None:
    with pytest.raises(InvalidModelError, match=problem):
        model_file.check(write(data))


def test_gigabytes_of_garbage_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", counted)
    path = tmp_path / "model.onnx"
    rest = 2_000_000_000
    length = bytes([rest & 0x7F | 0x80, rest >> 7 & 0x7F | 0x80, rest >> 14 & 0x7F | 0x80])
    length += bytes([rest >> 21 & 0x7F | 0x80, rest >> 28])
    for head, size, problem in (
        (b"", 2_000_000_000, "at byte 0 there is no field"),
        # Says that it has an operator set, and that the rest is a graph.
        (b"\x42\x00\x3a" + length, 8 + rest, "at byte 8 there is no field"),
        (b"", 2**31, "has 2147483648 bytes, and a model file at most 2147483647"),
    ):
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)
        with pytest.raises(InvalidModelError, match=problem):
            model_file.check(path)
    assert sum(read) < 1000


def test_gigabytes_of_tiny_fields_are_given_up(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes each, over and over, in the model and in its graph."""
    monkeypatch.setattr(model_file, "MAX_FIELDS", 1000)
    monkeypatch.setattr(model_file, "MAX_INNER_FIELDS", 5000)
    tiny = b"\x78\x00"  # a number, 0, of field 15
    whole = model()
    model_file.check(write(whole + 990 * tiny))
    with pytest.raises(InvalidModelError, match="one message has more than 1,000 fields"):
        model_file.check(write(whole + 1000 * tiny))
    graph = onnx.ModelProto.FromString(whole).graph.SerializeToString() + 1000 * tiny
    rest = onnx.ModelProto.FromString(whole)
    rest.ClearField("graph")
    length = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    with pytest.raises(InvalidModelError, match="more than 1,000 fields"):
        model_file.check(write(rest.SerializeToString() + b"\x3a" + length + graph))
    assert model_file.external_files(write(whole + 4000 * tiny)) == []
    with pytest.raises(InvalidModelError, match="more than 5,000 fields"):
        model_file.external_files(write(whole + 5000 * tiny))


def test_the_limits_leave_room_for_every_model_and_are_reached_in_seconds(
    write: Callable[[bytes], Path],
) -> None:
    """100,000 nodes, which is more than anything that is served has."""
    whole = onnx.ModelProto.FromString(model())
    node = whole.graph.node[0].SerializeToString()
    nodes = 100_000 * (b"\x0a" + bytes([len(node)]) + node)
    graph = nodes + whole.graph.SerializeToString()
    whole.ClearField("graph")
    size, length = len(graph), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    path = write(whole.SerializeToString() + b"\x3a" + length + bytes([size]) + graph)
    began = time.process_time()
    model_file.check(path)
    assert time.process_time() - began < 10  # some 0.3 s
    assert model_file.MAX_FIELDS >= 500_000


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InvalidModelError, match="not a regular file"):
            model_file.check(path)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_damage_is_refused_or_passed_over_and_never_fails_otherwise(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    data = bytearray(model(initializers=(external("weights.bin"),)))
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    for look in (model_file.check, model_file.external_files):
        try:
            look(path)
        except InvalidModelError as error:
            assert str(path) in str(error)
