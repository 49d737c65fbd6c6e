"""Requests into tensors with every rule of the protocol, tensors into replies."""

import contextlib
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from tests.fakes import FakeSession
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.errors import InvalidRequestError, TrimtabError, UnsupportedError
from trimtab.server.inference.onnx_session import open_session
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.tensor import BYTES, DTYPES, Tensor
from trimtab.server.inference.wire import InferRequest, ReplyEncoder, decode_request


def servable(
    *inputs: TensorSpec, outputs: tuple[str, ...] = ("y", "z"), batchable: bool = True
) -> Servable:
    return Servable(
        model="m",
        version=3,
        session=FakeSession(),
        signature=Signature(
            inputs=inputs,
            outputs=tuple(TensorSpec(name, "FP32", (-1, 1), ()) for name in outputs),
        ),
        batchable=batchable,
    )


X = TensorSpec("x", "FP32", (-1, 2), ())
S = TensorSpec("s", BYTES, (-1, 1), ())
ONE = servable(X)
TWO = servable(X, S)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def words(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def request(
    *inputs: tuple[str, str, list[int]], raw: tuple[bytes, ...] = ()
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def decode(message: pb.ModelInferRequest, target: Servable = ONE, limit: int = 100) -> InferRequest:
    return decode_request(message, target, limit)


def refusal(message: pb.ModelInferRequest, target: Servable = ONE, limit: int = 100) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        decode(message, target, limit)
    return str(caught.value)


GOOD = request(("x", "FP32", [1, 2]), raw=(floats(1, 2),))


def changed(**fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    message.CopyFrom(GOOD)
    message.MergeFrom(pb.ModelInferRequest(**fields))
    return message


# -- what is taken


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != BYTES])
def test_raw_contents_of_every_numeric_datatype(datatype: str) -> None:
    values = np.array([[0, 1], [1, 0]], dtype=DTYPES[datatype])
    target = servable(TensorSpec("x", datatype, (-1, 2), ()))
    decoded = decode(request(("x", datatype, [2, 2]), raw=(values.tobytes(),)), target)
    array = decoded.inputs["x"].array()
    assert array.dtype == DTYPES[datatype] and array.flags.c_contiguous
    assert array.tolist() == values.tolist()
    assert (decoded.rows, decoded.outputs) == (2, ("y", "z"))


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.5]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
    ],
)
def test_typed_contents_of_every_datatype(datatype: str, field: str, values: list[Any]) -> None:
    message = request(("x", datatype, [1, 2]))
    getattr(message.inputs[0].contents, field).extend(values)
    decoded = decode(message, servable(TensorSpec("x", datatype, (-1, 2), ())))
    assert decoded.inputs["x"].array().tolist() == [values]
    assert decoded.inputs["x"].array().dtype == DTYPES[datatype]


def test_strings_raw_and_typed_become_the_same_wire_form() -> None:
    raw = request(
        ("x", "FP32", [2, 2]), ("s", BYTES, [2, 1]), raw=(floats(1, 2, 3, 4), words(b"a", b""))
    )
    typed = request(("x", "FP32", [2, 2]), ("s", BYTES, [2, 1]))
    typed.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    typed.inputs[1].contents.bytes_contents.extend([b"a", b""])
    assert decode(raw, TWO).inputs["s"].data == words(b"a", b"")
    assert decode(typed, TWO).inputs["s"].data == words(b"a", b"")


def test_any_bool_that_is_not_zero_is_true() -> None:
    target = servable(TensorSpec("x", "BOOL", (-1,), ()))
    decoded = decode(request(("x", "BOOL", [3]), raw=(b"\x00\x01\x02",)), target)
    assert decoded.inputs["x"].array().tobytes() == b"\x00\x01\x01"


def test_inputs_in_another_order_can_share_a_batch() -> None:
    one = request(("x", "FP32", [1, 2]), ("s", BYTES, [1, 1]), raw=(floats(1, 2), words(b"a")))
    two = request(("s", BYTES, [1, 1]), ("x", "FP32", [1, 2]), raw=(words(b"a"), floats(1, 2)))
    assert decode(one, TWO).group == decode(two, TWO).group
    assert list(decode(two, TWO).inputs) == ["x", "s"]


def test_other_trailing_shapes_cannot_share_a_batch() -> None:
    target = servable(TensorSpec("x", "FP32", (-1, -1), ()))
    one = decode(request(("x", "FP32", [1, 2]), raw=(floats(1, 2),)), target)
    two = decode(request(("x", "FP32", [1, 1]), raw=(floats(1),)), target)
    assert one.group != two.group


def test_a_scalar_input_counts_as_one_row() -> None:
    target = servable(TensorSpec("x", "FP32", (), ()), batchable=False)
    decoded = decode(request(("x", "FP32", []), raw=(floats(1),)), target)
    assert (decoded.rows, decoded.inputs["x"].shape) == (1, ())


def test_inputs_of_unequal_first_dimensions_count_as_one_row_where_there_is_no_batch() -> None:
    a, b = TensorSpec("a", "FP32", (2,), ()), TensorSpec("b", "FP32", (3,), ())
    target = servable(a, b, batchable=False)
    message = request(("a", "FP32", [2]), ("b", "FP32", [3]), raw=(floats(1, 2), floats(1, 2, 3)))
    assert decode(message, target).rows == 1


def test_other_dimensions_may_be_empty() -> None:
    target = servable(TensorSpec("x", "FP32", (-1, -1), ()))
    assert decode(request(("x", "FP32", [2, 0]), raw=(b"",)), target).rows == 2
    assert decode(request(("x", "FP32", [2, 0])), target).rows == 2


def test_requested_outputs_keep_their_order() -> None:
    message = changed(outputs=[{"name": "z"}, {"name": "y"}])
    assert decode(message).outputs == ("z", "y")


def test_parameters_event_time_and_timeout_are_read_and_others_ignored() -> None:
    message = changed()
    message.parameters["event_time"].int64_param = 1_357_000_000_000
    message.parameters["timeout"].int64_param = 5
    message.parameters["triton_enable_empty_final_response"].bool_param = False
    message.parameters["priority"].uint64_param = 1
    message.parameters["mine"].string_param = "x"
    decoded = decode(message)
    assert (decoded.event_time_ms, decoded.timeout_us) == (1_357_000_000_000, 5)
    assert decode(GOOD).event_time_ms is None


# -- what is refused, and in which words


@pytest.mark.parametrize("name", ["event_time", "timeout"])
def test_a_parameter_of_the_wrong_kind(name: str) -> None:
    message = changed()
    message.parameters[name].string_param = "7"
    assert refusal(message) == (f"invalid value type for '{name}' parameter, expected int64_param.")


@pytest.mark.parametrize("value", [-1, 2**62])
def test_an_event_time_that_is_no_time(value: int) -> None:
    message = changed()
    message.parameters["event_time"].int64_param = value
    assert refusal(message).startswith(f"event_time = {value}: must be milliseconds since 1970")


def test_a_negative_timeout() -> None:
    message = changed()
    message.parameters["timeout"].int64_param = -1
    assert refusal(message) == "timeout = -1: must be microseconds, at least 0"


def test_missing_inputs() -> None:
    three = servable(X, S, TensorSpec("t", "INT64", (-1,), ()))
    message = request(("s", BYTES, [1, 1]), raw=(words(b"a"),))
    assert refusal(message, three) == (
        "expected 3 inputs but got 1 inputs for model 'm'. Got input(s) ['s'], but missing "
        "required input(s) ['x','t']. Please provide all required input(s)."
    )


def test_an_extra_input() -> None:
    message = request(("x", "FP32", [1, 2]), ("extra", "FP32", [1]), raw=(floats(1, 2), floats(1)))
    assert refusal(message) == "unexpected inference input 'extra' for model 'm'"


def test_a_misspelt_input() -> None:
    message = request(("X", "FP32", [1, 2]), raw=(floats(1, 2),))
    assert refusal(message) == "unexpected inference input 'X' for model 'm'"


def test_a_duplicate_input() -> None:
    message = request(("x", "FP32", [1, 2]), ("x", "FP32", [1, 2]), raw=(floats(1, 2),) * 2)
    assert refusal(message) == "input 'x' for model 'm' is given more than once"
    assert refusal(message, TWO) == "input 'x' for model 'm' is given more than once"


def test_of_too_many_inputs_no_more_are_looked_at_than_the_model_has() -> None:
    many = request(*[(str(number), "FP32", [1]) for number in range(40_000)])
    same = request(*[("x", "FP32", [1])] * 40_000)
    began = time.perf_counter()
    assert refusal(many) == "unexpected inference input '0' for model 'm'"
    assert refusal(same) == "input 'x' for model 'm' is given more than once"
    assert time.perf_counter() - began < 0.1


def test_names_are_checked_in_a_time_that_grows_with_their_number() -> None:
    names = [f"input {number}" for number in range(5_000)]
    wide = servable(*[TensorSpec(name, "FP32", (-1,), ()) for name in names])
    message = request(*[(name, "FP32", [1]) for name in names[:0:-1]])
    began = time.perf_counter()
    assert "but missing required input(s) ['input 0']" in refusal(message, wide)
    assert time.perf_counter() - began < 0.5


def test_a_wrong_datatype() -> None:
    message = request(("x", "FP64", [1, 2]), raw=(bytes(16),))
    assert refusal(message) == (
        "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'"
    )


@pytest.mark.parametrize("shape", [[1, 3], [2], [1, 2, 1], [], [-1, 2]])
def test_a_wrong_shape(shape: list[int]) -> None:
    message = request(("x", "FP32", shape), raw=(floats(1, 2),))
    assert refusal(message) == (
        "unexpected shape for input 'x' for model 'm'. "
        f"Expected [-1,2], got [{','.join(map(str, shape))}]"
    )


def test_a_shape_of_very_many_dimensions_is_not_quoted_whole() -> None:
    text = refusal(request(("x", "FP32", [1] * 1_000_000), raw=(floats(1, 2),)))
    assert text == (
        "unexpected shape for input 'x' for model 'm'. "
        f"Expected [-1,2], got [{'1,' * 16}…] of 1000000 dimensions"
    )


@pytest.mark.parametrize(
    "shape",
    [[2**62, 0, 1], [1, 2**62, 0], [1, 0, 2**31], [2**31 - 1, 2**31 - 1, 0], [2**63 - 1] * 3],
)
@pytest.mark.parametrize("datatype", ["FP32", BYTES])
def test_a_shape_that_no_array_can_have(shape: list[int], datatype: str) -> None:
    target = servable(TensorSpec("x", datatype, (-1, -1, -1), ()))
    message = request(("x", datatype, shape), raw=(b"",))
    assert refusal(message, target, limit=2**63) == (
        f"shape [{','.join(map(str, shape))}] of input 'x' for model 'm' exceeds the limit of "
        "2147483647 elements, dimensions of size 0 aside"
    )


@pytest.mark.parametrize("size", [0, 7, 12])
def test_a_wrong_byte_count(size: int) -> None:
    message = request(("x", "FP32", [1, 2]), raw=(bytes(size),))
    assert refusal(message) == (
        f"input byte size mismatch for input 'x' for model 'm'. Expected 8, got {size}"
    )


def test_a_wrong_number_of_typed_values() -> None:
    message = request(("x", "FP32", [1, 2]))
    message.inputs[0].contents.fp32_contents.append(1)
    assert refusal(message) == (
        "input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4"
    )


def test_a_wrong_number_of_strings() -> None:
    message = request(
        ("x", "FP32", [1, 2]), ("s", BYTES, [1, 1]), raw=(floats(1, 2), words(b"a", b"b"))
    )
    text = "expected 1 string elements for inference input 's' for model 'm', got 2"
    assert refusal(message, TWO) == text
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    message.inputs[1].contents.bytes_contents.extend([b"a", b"b"])
    assert refusal(message, TWO) == text


@pytest.mark.parametrize("raw", [b"\x05", b"\x05\0\0\0abc", words(b"a") + b"\0"])
def test_torn_strings(raw: bytes) -> None:
    message = request(("x", "FP32", [1, 2]), ("s", BYTES, [1, 1]), raw=(floats(1, 2), raw))
    assert refusal(message, TWO).startswith("input 's' for model 'm': ")


def test_no_data_at_all() -> None:
    assert refusal(request(("x", "FP32", [1, 2]))) == (
        "unable to find data for input tensor 'x' for model 'm' in request."
    )


def test_fewer_raw_contents_than_inputs() -> None:
    message = request(("x", "FP32", [1, 2]), ("s", BYTES, [1, 1]), raw=(floats(1, 2),))
    assert refusal(message, TWO) == (
        "unable to find data for input tensor 's' for model 'm' in request."
    )


def test_more_raw_contents_than_inputs() -> None:
    message = request(("x", "FP32", [1, 2]), raw=(floats(1, 2), b""))
    assert refusal(message) == "got 2 raw_input_contents for 1 inputs of model 'm'"


def test_raw_and_typed_contents_together() -> None:
    message = changed()
    message.inputs[0].contents.fp32_contents.append(1)
    assert refusal(message) == (
        "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"
    )


def test_contents_in_the_wrong_field() -> None:
    message = request(("x", "FP32", [1, 2]))
    message.inputs[0].contents.fp64_contents.extend([1, 2])
    assert refusal(message) == (
        "input 'x' for model 'm' is FP32, which is carried by fp32_contents, not by fp64_contents"
    )


def test_half_floats_travel_as_raw_contents_only() -> None:
    message = request(("x", "FP16", [1]))
    message.inputs[0].contents.fp32_contents.append(1)
    text = refusal(message, servable(TensorSpec("x", "FP16", (-1,), ())))
    assert "carried by raw_input_contents only" in text


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [("INT8", "int_contents", 128), ("UINT16", "uint_contents", 65536)],
)
def test_a_typed_value_beyond_its_datatype(datatype: str, field: str, value: int) -> None:
    message = request(("x", datatype, [1]))
    getattr(message.inputs[0].contents, field).append(value)
    text = refusal(message, servable(TensorSpec("x", datatype, (-1,), ())))
    assert text.startswith(f"input 'x' for model 'm' has a value beyond {datatype}: ")


def test_zero_rows() -> None:
    message = request(("x", "FP32", [0, 2]), raw=(b"",))
    assert refusal(message) == "input 'x' for model 'm' has zero rows: [0,2]"


def test_too_many_rows() -> None:
    message = request(("x", "FP32", [3, 2]), raw=(floats(*range(6)),))
    assert refusal(message, limit=2) == (
        "request of 3 rows for model 'm' exceeds the limit of 2 rows (max_request_rows)"
    )


def test_inputs_of_unequal_rows() -> None:
    message = request(
        ("x", "FP32", [1, 2]), ("s", BYTES, [2, 1]), raw=(floats(1, 2), words(b"a", b"b"))
    )
    assert refusal(message, TWO) == "input 's' for model 'm' has 2 rows, but 'x' has 1"


def test_an_unknown_output() -> None:
    assert refusal(changed(outputs=[{"name": "nope"}])) == (
        "unexpected inference output 'nope' for model 'm'"
    )


def test_an_output_requested_twice() -> None:
    assert refusal(changed(outputs=[{"name": "y"}, {"name": "y"}])) == (
        "output 'y' for model 'm' is requested more than once"
    )


def test_an_id_that_is_too_long() -> None:
    assert refusal(changed(id="x" * 257)) == "the id of 257 characters exceeds the limit of 256"


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
def test_extensions_that_are_not_served_are_refused_and_not_ignored(name: str) -> None:
    message = changed(outputs=[{"name": "y"}])
    message.outputs[0].parameters[name].int64_param = 1
    with pytest.raises(UnsupportedError, match=f"parameter '{name}' of output 'y'"):
        decode(message)


def test_input_in_shared_memory_is_refused() -> None:
    message = changed()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(UnsupportedError, match="parameter 'shared_memory_region' of input 'x'"):
        decode(message)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(noise: bytes) -> None:
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(GOOD.SerializeToString() + noise)
    except DecodeError:
        return
    for target in (ONE, TWO):
        with contextlib.suppress(TrimtabError):
            decode(message, target)


# -- replies


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    made = {}
    names = draw(st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True))
    for name in names:
        datatype = draw(st.sampled_from(sorted(DTYPES)))
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 130]), max_size=2)))
        count = int(np.prod(shape))
        if datatype == BYTES:
            made[name] = Tensor(BYTES, shape, words(*[b"ab"] * count))
        else:
            values = np.arange(count).astype(DTYPES[datatype]).reshape(shape)
            made[name] = Tensor(datatype, shape, values)
    return made


@given(tensors(), st.text(max_size=200))
def test_a_reply_is_what_protobuf_would_have_written(outputs: dict[str, Tensor], id: str) -> None:
    expected = pb.ModelInferResponse(model_name="m", model_version="3", id=id)
    for name, tensor in outputs.items():
        expected.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        expected.raw_output_contents.append(tensor.wire())
    encoder = ReplyEncoder(ONE)
    for _ in range(2):  # the second one from what the first one remembered
        assert encoder.encode(id, outputs) == expected.SerializeToString(deterministic=True)


def test_an_encoder_does_not_remember_without_bound() -> None:
    encoder = ReplyEncoder(ONE)
    for rows in range(1000):
        encoder.encode("", {"y": Tensor("FP32", (rows,), np.zeros(rows, dtype=np.float32))})
    assert len(encoder._outputs) <= 256


def test_a_request_for_a_real_model(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(models.flights())
    opened = open_session(file)
    assert opened.batch_dimension
    assert [(spec.name, spec.datatype, spec.shape) for spec in opened.signature.inputs] == [
        ("numeric", "FP32", (-1, 2)),
        ("categorical", "BYTES", (-1, 1)),
    ]
