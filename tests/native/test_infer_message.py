"""Inference on the wire: every rule of the protocol, held against python-protobuf byte by byte.

python-protobuf decides what a message says. What may be computed is decided by the rules below,
one test each, and by `reference`, which is those rules in a few lines of Python.
"""

import math
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab._native import infer_message
from trimtab._native.infer_message import DecodedRequest, RefusedError
from trimtab.proto import open_inference_pb2 as pb

INVALID_ARGUMENT, UNIMPLEMENTED = 3, 12

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": np.uint16,  # numpy has none; two bytes
    "FP32": np.float32,
    "FP64": np.float64,
}
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

Spec = tuple[str, str, tuple[int, ...]]


class Schema(infer_message.Schema):
    """A schema that can be asked what it was made of."""

    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]
    batchable: bool
    limit: int


def schema(
    *inputs: Spec,
    outputs: tuple[str, ...] = ("y", "z"),
    batchable: bool = True,
    limit: int = 100,
    mirror: bool = False,
) -> Schema:
    made = Schema(
        "m",
        3,
        inputs,
        [(name, "FP32") for name in outputs],
        batchable=batchable,
        max_request_rows=limit,
        mirror_contents=mirror,
    )
    made.inputs, made.outputs, made.batchable, made.limit = inputs, outputs, batchable, limit
    return made


X: Spec = ("x", "FP32", (-1, 2))
S: Spec = ("s", "BYTES", (-1, 1))
ONE = schema(X)
TWO = schema(X, S)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def words(*values: bytes) -> bytes:
    return b"".join([struct.pack("<I", len(value)) + value for value in values])


def request(
    *inputs: tuple[str, str, list[int]], raw: tuple[bytes, ...] = ()
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def decode(message: pb.ModelInferRequest, target: Schema = ONE) -> DecodedRequest:
    return infer_message.decode(message.SerializeToString(), target)


def refused(message: bytes, target: Schema = ONE) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        infer_message.decode(message, target)
    return caught.value.code, str(caught.value)


def refusal(message: pb.ModelInferRequest, target: Schema = ONE) -> str:
    code, text = refused(message.SerializeToString(), target)
    assert code == INVALID_ARGUMENT
    return text


GOOD = request(("x", "FP32", [1, 2]), raw=(floats(1, 2),))


def changed(**fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    message.CopyFrom(GOOD)
    message.MergeFrom(pb.ModelInferRequest(**fields))
    return message


# -- what is taken


@pytest.mark.parametrize("datatype", DTYPES)
def test_raw_contents_of_every_numeric_datatype(datatype: str) -> None:
    raw = np.array([[0, 1], [1, 0]], dtype=DTYPES[datatype]).tobytes()
    target = schema(("x", datatype, (-1, 2)))
    decoded = decode(request(("x", datatype, [2, 2]), raw=(raw,)), target)
    assert decoded.inputs == {"x": (datatype, (2, 2), raw)}
    assert (decoded.rows, decoded.outputs) == (2, ())


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-128, 127]),
        ("INT16", [-32768, 32767]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT8", [0, 255]),
        ("UINT16", [0, 65535]),
        ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP32", [0.5, -1.5]),
        ("FP64", [0.1, -1e300]),
    ],
)
def test_typed_contents_of_every_datatype(datatype: str, values: list[Any]) -> None:
    message = request(("x", datatype, [1, 2]))
    getattr(message.inputs[0].contents, FIELDS[datatype]).extend(values)
    decoded = decode(message, schema(("x", datatype, (-1, 2))))
    raw = np.array(values, dtype=DTYPES[datatype]).tobytes()
    assert decoded.inputs == {"x": (datatype, (1, 2), raw)}


def test_strings_raw_and_typed_become_the_same_wire_form() -> None:
    raw = request(
        ("x", "FP32", [2, 2]), ("s", "BYTES", [2, 1]), raw=(floats(1, 2, 3, 4), words(b"a", b""))
    )
    typed = request(("x", "FP32", [2, 2]), ("s", "BYTES", [2, 1]))
    typed.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    typed.inputs[1].contents.bytes_contents.extend([b"a", b""])
    assert decode(raw, TWO).inputs["s"][2] == words(b"a", b"")
    assert decode(typed, TWO).inputs == decode(raw, TWO).inputs


def test_strings_need_not_be_utf8() -> None:
    target = schema(S)
    raw = words(b"\xff")
    assert decode(request(("s", "BYTES", [1, 1]), raw=(raw,)), target).inputs["s"][2] == raw


def test_any_bool_that_is_not_zero_is_true() -> None:
    target = schema(("x", "BOOL", (-1,)))
    decoded = decode(request(("x", "BOOL", [3]), raw=(b"\x00\x01\x02",)), target)
    assert decoded.inputs["x"][2] == b"\x00\x01\x01"


def test_inputs_come_out_in_the_order_of_the_schema() -> None:
    two = request(("s", "BYTES", [1, 1]), ("x", "FP32", [1, 2]), raw=(words(b"a"), floats(1, 2)))
    decoded = decode(two, TWO)
    assert list(decoded.inputs.values()) == [
        ("FP32", (1, 2), floats(1, 2)),
        ("BYTES", (1, 1), words(b"a")),
    ]


def test_a_scalar_input_counts_as_one_row() -> None:
    target = schema(("x", "FP32", ()), batchable=False)
    decoded = decode(request(("x", "FP32", []), raw=(floats(1),)), target)
    assert (decoded.rows, decoded.inputs["x"][1]) == (1, ())


def test_inputs_of_unequal_first_dimensions_count_as_one_row_where_there_is_no_batch() -> None:
    target = schema(("a", "FP32", (2,)), ("b", "FP32", (3,)), batchable=False)
    message = request(("a", "FP32", [2]), ("b", "FP32", [3]), raw=(floats(1, 2), floats(1, 2, 3)))
    assert decode(message, target).rows == 1


def test_other_dimensions_may_be_empty() -> None:
    target = schema(("x", "FP32", (-1, -1)))
    assert decode(request(("x", "FP32", [2, 0]), raw=(b"",)), target).rows == 2
    assert decode(request(("x", "FP32", [2, 0])), target).rows == 2


def test_requested_outputs_keep_their_order() -> None:
    message = changed(outputs=[{"name": "z"}, {"name": "y"}])
    assert decode(message).outputs == ("z", "y")


def test_the_id_is_taken_and_may_be_as_long_as_its_limit_in_characters() -> None:
    assert decode(GOOD).id == ""
    assert decode(changed(id="ü" * 256)).id == "ü" * 256


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


def test_an_event_time_may_be_zero() -> None:
    message = changed()
    message.parameters["event_time"].int64_param = 0
    assert decode(message).event_time_ms == 0


def test_a_priority_may_be_signed() -> None:
    message = changed()
    message.parameters["priority"].int64_param = 1
    assert decode(message).rows == 1


def test_a_request_may_say_that_it_belongs_to_no_sequence() -> None:
    message = changed()
    message.parameters["sequence_id"].int64_param = 0
    message.parameters["sequence_start"].bool_param = False
    message.parameters["sequence_end"].bool_param = False
    assert decode(message).rows == 1
    message.parameters["sequence_id"].string_param = ""
    assert decode(message).rows == 1


def test_typed_requests_are_mirrored_where_the_schema_says_so() -> None:
    typed = request(("x", "FP32", [1, 2]))
    typed.inputs[0].contents.fp32_contents.extend([1, 2])
    assert decode(typed, schema(X, mirror=True)).mirror
    assert not decode(GOOD, schema(X, mirror=True)).mirror
    assert not decode(typed).mirror


def test_the_addressee() -> None:
    message = changed(model_version="7")
    assert infer_message.read_addressee(message.SerializeToString()) == ("m", "7")
    assert infer_message.read_addressee(b"") == ("", "")
    for torn in (b"\x0a\x02m", b"\x0a\x01\xff"):
        with pytest.raises(RefusedError, match="the request is not a inference"):
            infer_message.read_addressee(torn)


# -- what is refused, and in which words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("event_time", "int64_param"),
        ("timeout", "int64_param"),
        ("priority", "int64_param or uint64_param"),
        ("triton_enable_empty_final_response", "bool_param"),
        ("sequence_id", "int64_param or string_param"),
        ("sequence_start", "bool_param"),
        ("sequence_end", "bool_param"),
    ],
)
def test_a_parameter_of_the_wrong_kind(name: str, expected: str) -> None:
    text = f"invalid value type for '{name}' parameter, expected {expected}."
    message = changed()
    message.parameters[name].double_param = 7
    assert refusal(message) == text
    message.parameters[name].ClearField("double_param")
    assert refusal(message) == text


@pytest.mark.parametrize("value", [-1, 2**62])
def test_an_event_time_that_is_no_time(value: int) -> None:
    message = changed()
    message.parameters["event_time"].int64_param = value
    assert refusal(message) == (
        f"event_time = {value}: must be milliseconds since 1970, from 0 to 253402300799999"
    )


def test_a_negative_timeout() -> None:
    message = changed()
    message.parameters["timeout"].int64_param = -1
    assert refusal(message) == "timeout = -1: must be microseconds, at least 0"


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("sequence_id", "int64_param", 1),
        ("sequence_id", "string_param", "a"),
        ("sequence_start", "bool_param", True),
        ("sequence_end", "bool_param", True),
    ],
)
def test_sequences_are_refused_and_not_ignored(name: str, kind: str, value: Any) -> None:
    message = changed()
    setattr(message.parameters[name], kind, value)
    assert refused(message.SerializeToString()) == (
        UNIMPLEMENTED,
        f"parameter '{name}' of the request is not supported",
    )


def test_a_reserved_parameter_that_nobody_defined() -> None:
    message = changed()
    message.parameters["triton_z"].bool_param = True
    message.parameters["triton_a"].bool_param = True
    message.parameters["trito"].bool_param = True
    assert refusal(message).startswith("parameter 'triton_a' is not known: ")


def test_missing_inputs() -> None:
    three = schema(X, S, ("t", "INT64", (-1,)))
    message = request(("s", "BYTES", [1, 1]), raw=(words(b"a"),))
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


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def test_of_too_many_inputs_no_more_are_looked_at_than_the_model_has() -> None:
    many = request(*[(str(number), "FP32", [1]) for number in range(40_000)])
    same = request(*[("x", "FP32", [1])] * 40_000)
    assert refusal(many) == "unexpected inference input '0' for model 'm'"
    assert refusal(same) == "input 'x' for model 'm' is given more than once"
    for message in (many, same):
        assert seconds(partial(refused, message.SerializeToString())) < 0.1


def test_names_are_checked_in_a_time_that_grows_with_their_number() -> None:
    names = [f"input {number}" for number in range(5_000)]
    wide = schema(*[(name, "FP32", (-1,)) for name in names], outputs=tuple(names))
    message = request(*[(name, "FP32", [1]) for name in names[:0:-1]])
    for name in reversed(names):
        message.outputs.add(name=name)
    encoded = message.SerializeToString()
    assert "but missing required input(s) ['input 0']" in refused(encoded, wide)[1]
    assert seconds(partial(refused, encoded, wide)) < 0.1


@pytest.mark.parametrize(
    "repeated",
    [
        b"\x22\x00",  # parameters
        b"\x22\x0e\x0a\x0atriton_aaa\x12\x00",
        b"\x2a\x00",  # inputs
        b"\x32\x00",  # outputs
        b"\x3a\x00",  # raw contents
        b"\x9b\x06" * 50 + b"\x9c\x06" * 50,  # groups
    ],
)
def test_any_number_of_anything_takes_a_time_that_grows_with_it(repeated: bytes) -> None:
    message = repeated * (4_000_000 // len(repeated))
    assert seconds(partial(refused, message)) < 1


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
    assert refusal(request(("x", "FP32", [1] * 16), raw=(floats(1, 2),))).endswith("1,1,1]")


@pytest.mark.parametrize(
    "shape",
    [[2**62, 0, 1], [1, 2**62, 0], [1, 0, 2**31], [2**31 - 1, 2**31 - 1, 0], [2**63 - 1] * 3],
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_shape_that_no_array_can_have(shape: list[int], datatype: str) -> None:
    target = schema(("x", datatype, (-1, -1, -1)), limit=2**63 - 1)
    message = request(("x", datatype, shape), raw=(b"",))
    assert refusal(message, target) == (
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
        ("x", "FP32", [1, 2]), ("s", "BYTES", [1, 1]), raw=(floats(1, 2), words(b"a", b"b"))
    )
    text = "expected 1 string elements for inference input 's' for model 'm', got 2"
    assert refusal(message, TWO) == text
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend([1, 2])
    message.inputs[1].contents.bytes_contents.extend([b"a", b"b"])
    assert refusal(message, TWO) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x05", "element 0 has 1 of the 4 bytes of its length"),
        (b"\x05\0\0\0abc", "element 0 has 3 of its 5 bytes"),
        (words(b"a") + b"\0", "element 1 has 1 of the 4 bytes of its length"),
        (b"\xff\xff\xff\xff", "element 0 has 0 of its 4294967295 bytes"),
    ],
)
def test_torn_strings(raw: bytes, text: str) -> None:
    message = request(("x", "FP32", [1, 2]), ("s", "BYTES", [1, 1]), raw=(floats(1, 2), raw))
    assert refusal(message, TWO) == f"input 's' for model 'm': BYTES data is torn: {text}"


def test_no_data_at_all() -> None:
    assert refusal(request(("x", "FP32", [1, 2]))) == (
        "unable to find data for input tensor 'x' for model 'm' in request."
    )


def test_fewer_raw_contents_than_inputs() -> None:
    message = request(("x", "FP32", [1, 2]), ("s", "BYTES", [1, 1]), raw=(floats(1, 2),))
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


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_as_raw_contents_only(datatype: str) -> None:
    message = request(("x", datatype, [1]))
    target = schema(("x", datatype, (-1,)))
    message.inputs[0].contents.SetInParent()
    assert refusal(message, target) == (
        "unable to find data for input tensor 'x' for model 'm' in request."
    )
    message.inputs[0].contents.fp32_contents.append(1)
    assert refusal(message, target) == (
        f"input 'x' for model 'm' is {datatype}, which is carried by raw_input_contents only, "
        "not by fp32_contents"
    )


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128),
        ("INT8", -129),
        ("INT16", 32768),
        ("INT16", -(2**31)),
        ("UINT8", 256),
        ("UINT16", 65536),
        ("UINT16", 2**32 - 1),
    ],
)
def test_a_typed_value_beyond_its_datatype(datatype: str, value: int) -> None:
    message = request(("x", datatype, [2]))
    getattr(message.inputs[0].contents, FIELDS[datatype]).extend([1, value])
    text = refusal(message, schema(("x", datatype, (-1,))))
    assert text == f"input 'x' for model 'm' has a value beyond {datatype}: {value}"


def test_zero_rows() -> None:
    message = request(("x", "FP32", [0, 2]), raw=(b"",))
    assert refusal(message) == "input 'x' for model 'm' has zero rows: [0,2]"


def test_too_many_rows() -> None:
    message = request(("x", "FP32", [3, 2]), raw=(floats(*range(6)),))
    assert refusal(message, schema(X, limit=2)) == (
        "request of 3 rows for model 'm' exceeds the limit of 2 rows (max_request_rows)"
    )


def test_inputs_of_unequal_rows() -> None:
    message = request(
        ("x", "FP32", [1, 2]), ("s", "BYTES", [2, 1]), raw=(floats(1, 2), words(b"a", b"b"))
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
    for letter in "xü":
        assert refusal(changed(id=letter * 257)) == (
            "the id of 257 characters exceeds the limit of 256"
        )


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
def test_extensions_that_are_not_served_are_refused_and_not_ignored(name: str) -> None:
    message = changed(outputs=[{"name": "y"}])
    message.outputs[0].parameters[name].int64_param = 1
    assert refused(message.SerializeToString()) == (
        UNIMPLEMENTED,
        f"parameter '{name}' of output 'y' is not supported",
    )


def test_input_in_shared_memory_is_refused() -> None:
    message = changed()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert refused(message.SerializeToString()) == (
        UNIMPLEMENTED,
        "parameter 'shared_memory_region' of input 'x' is not supported",
    )


def test_long_strings_of_the_client_are_quoted_in_part() -> None:
    name = "x" * 199 + "€" * 100_000
    cut = "x" * 199 + "…"
    assert refusal(request((name, "FP32", [1]))) == (
        f"unexpected inference input '{cut}' for model 'm'"
    )
    assert refusal(changed(outputs=[{"name": name}])) == (
        f"unexpected inference output '{cut}' for model 'm'"
    )
    assert refusal(request(("x", name, [1]), raw=(b"",))) == (
        f"inference input 'x' data-type is '{cut}', but model 'm' expects 'FP32'"
    )
    message = changed()
    message.parameters["triton_" + name].bool_param = True
    assert refusal(message).startswith(f"parameter 'triton_{'x' * 193}…' is not known")
    assert "'" + "x" * 200 + "'" in refusal(request(("x" * 200, "FP32", [1])))


def test_a_long_list_of_names_is_quoted_in_part() -> None:
    names = [f"input {number}" for number in range(1000)]
    text = refusal(GOOD, schema(X, *[(name, "FP32", (-1,)) for name in names]))
    assert "but missing required input(s) ['input 0','input 1'," in text
    assert ",…]. Please" in text and len(text) < 2300


# -- what is a ModelInferRequest


def varint(value: int, excess: int = 0) -> bytes:
    """`excess` bytes more than it needs."""
    encoded = bytearray()
    while value >= 128 or excess:
        excess -= value < 128
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def groups(depth: int, inner: bytes = b"") -> bytes:
    return varint(99 << 3 | 3) * depth + inner + varint(99 << 3 | 4) * depth


def entry(*fields: bytes) -> bytes:
    return field(4, b"".join(fields))


TIMEOUT = field(1, b"timeout")
SEVEN = field(2, b"\x10\x07")

MESSAGES = {
    "field 0": b"\x02\x00",
    "field 0 in a group": groups(1, b"\x00\x00"),
    "type 6": b"\x0e",
    "type 7": b"\x0f",
    "tag of 5 bytes": varint(10, 4) + b"\x01a",
    "tag of 6 bytes": varint(10, 5) + b"\x01a",
    "tag beyond 32 bits": varint(1 << 32 | 10) + b"\x01a",
    "largest tag": varint((1 << 29) - 1 << 3) + b"\x01",
    "size of 5 bytes": b"\x0a" + varint(1, 4) + b"a",
    "size of 6 bytes": b"\x0a" + varint(1, 5) + b"a",
    "size beyond the message": b"\x0a\x02a",
    "size beyond 32 bits": b"\x0a" + varint(1 << 32 | 1) + b"a",
    "size beyond 64 bits": b"\x0a" + b"\xff" * 9 + b"\x7f" + b"a",
    "unknown varint of 10 bytes": varint(99 << 3) + b"\xff" * 9 + b"\x7f",
    "unknown varint of 11 bytes": varint(99 << 3) + b"\xff" * 10 + b"\x01",
    "torn varint": b"\x08\x80",
    "torn fixed32": varint(99 << 3 | 5) + b"abc",
    "torn fixed64": varint(99 << 3 | 1) + b"abcdefg",
    "string as a number": b"\x08\x05\x09abcdefgh\x0dabcd",
    "groups as deep as may be": groups(100),
    "groups that are too deep": groups(101),
    "groups as deep as may be in an input": field(5, groups(99)),
    "groups that are too deep in an input": field(5, groups(100)),
    "groups as deep as may be in a parameter": entry(field(2, groups(98))),
    "groups that are too deep in a parameter": entry(field(2, groups(99))),
    "groups as deep as may be in contents": field(5, field(5, groups(98))),
    "groups that are too deep in contents": field(5, field(5, groups(99))),
    "group without an end": b"\x9b\x06",
    "end without a group": b"\x9c\x06",
    "end of another group": b"\x9b\x06\x94\x06",
    "end of a group in an input": field(5, b"\x9c\x06"),
    "known number as a group": b"\x0b\x0c",
    "string that is not UTF-8": field(1, b"\xff"),
    "the same, then another": field(1, b"\xff") + field(1, b"m"),
    "surrogate": field(3, b"\xed\xa0\x80"),
    "overlong character": field(3, b"\xc0\x80"),
    "overlong character of 3": field(3, b"\xe0\x9f\xbf"),
    "overlong character of 4": field(3, b"\xf0\x8f\xbf\xbf"),
    "character beyond the last": field(3, b"\xf4\x90\x80\x80"),
    "last characters": field(3, b"\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\0"),
    "torn character": field(3, b"\xe2\x82"),
    "torn character after eight": field(3, b"12345678\xe2\x82"),
    "key that is not UTF-8": entry(field(1, b"\xff")),
    "value that is not UTF-8": entry(field(2, field(3, b"\xff"))),
    "name that is not UTF-8": field(5, field(1, b"\xff")),
    "datatype that is not UTF-8": field(5, field(2, b"\xff")),
    "output that is not UTF-8": field(6, field(1, b"\xff")),
    "empty entry": entry(),
    "entry without a key": entry(SEVEN),
    "entry without a value": entry(TIMEOUT),
    "entry": entry(TIMEOUT, SEVEN),
    "entry with an unknown field": entry(TIMEOUT, field(2, b""), field(9, b"")),
    "value with an unknown field": entry(TIMEOUT, field(2, b"\x10\x07" + field(9, b""))),
    "value twice": entry(TIMEOUT, SEVEN, field(2, b"")),
    "value twice, of two kinds": entry(TIMEOUT, SEVEN, field(2, b"\x08\x01")),
    "key twice": entry(TIMEOUT, field(2, b"")) + entry(TIMEOUT, SEVEN),
    "key twice, the second unknown": entry(TIMEOUT, SEVEN) + entry(TIMEOUT, field(9, b"")),
    "kinds of one value": entry(TIMEOUT, field(2, b"\x08\x01" + field(3, b"a") + b"\x10\x07")),
    "wrong type of a kind": entry(TIMEOUT, field(2, b"\x10\x07\x0d1234")),
    "packed numbers that overrun": field(5, field(5, field(2, b"\x80") + b"\x01")),
    "packed floats that are torn": field(5, field(5, field(6, b"abc"))),
    "packed doubles that are torn": field(5, field(5, field(7, b"abcd"))),
    "dimension of 10 bytes": field(5, b"\x18" + b"\x80" * 9 + b"\x03"),
    "dimension of 11 bytes": field(5, b"\x18" + b"\x80" * 10 + b"\x00"),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_message_is_taken_or_refused_as_protobuf_has_it(message: bytes) -> None:
    for encoded in (message + GOOD.SerializeToString(), GOOD.SerializeToString() + message):
        agree(encoded, ONE)


def test_a_malformed_message_says_what_and_where() -> None:
    prefix = "the request is not a inference.ModelInferRequest: "
    assert refused(field(1, b"m") + b"\x1a\x05ab") == (
        INVALID_ARGUMENT,
        prefix + "a field that is longer than the message, at byte 5",
    )
    assert refused(field(1, b"m") + field(3, b"\xff")) == (
        INVALID_ARGUMENT,
        prefix + "a string that is not UTF-8, at byte 5",
    )


def test_a_message_that_is_malformed_anywhere_is_refused_for_that_first() -> None:
    message = changed(id="x" * 300).SerializeToString()
    _, text = refused(message + field(6, field(1, b"\xff")))
    assert text.startswith("the request is not a inference.ModelInferRequest: ")


# -- against protobuf and the rules in Python


def rows_of(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def reference(message: pb.ModelInferRequest, target: Schema) -> DecodedRequest | None:
    """What is to be computed; None: nothing."""
    parameters = {
        name: (value.WhichOneof("parameter_choice"), value)
        for name, value in message.parameters.items()
    }
    numbers = {}
    for name, kinds in {
        "event_time": ["int64_param"],
        "timeout": ["int64_param"],
        "priority": ["int64_param", "uint64_param"],
        "triton_enable_empty_final_response": ["bool_param"],
        "sequence_id": ["int64_param", "string_param"],
        "sequence_start": ["bool_param"],
        "sequence_end": ["bool_param"],
    }.items():
        if name in parameters:
            kind, parameter = parameters.pop(name)
            if kind not in kinds:
                return None
            numbers[name] = getattr(parameter, kind)
    event_time, timeout = numbers.get("event_time"), numbers.get("timeout", 0)
    outputs = [each.name for each in message.outputs]
    specs = {name: (datatype, shape) for name, datatype, shape in target.inputs}
    given = [each.name for each in message.inputs]
    raws = message.raw_input_contents
    if (
        len(message.id) > 256
        or not 0 <= (event_time or 0) < 253_402_300_800_000
        or timeout < 0
        or any(numbers.get(f"sequence_{name}") for name in ("id", "start", "end"))
        or any(name.startswith("triton_") for name in parameters)
        or not set(outputs) <= set(target.outputs)
        or len(set(outputs)) != len(outputs)
        or any("shared_memory_region" in each.parameters for each in message.outputs)
        or any("classification" in each.parameters for each in message.outputs)
        or sorted(given) != sorted(specs)
        or len(raws) not in (0, len(given))
    ):
        return None
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for index, each in enumerate(message.inputs):
        datatype, wanted = specs[each.name]
        shape = tuple(each.shape)
        if (
            each.datatype != datatype
            or len(shape) != len(wanted)
            or any(s < 0 or (s != w and w >= 0) for s, w in zip(shape, wanted, strict=True))
            or math.prod([size for size in shape if size]) >= 2**31
            or "shared_memory_region" in each.parameters
            or (raws and each.HasField("contents"))
        ):
            return None
        raw = raws[index] if raws else raw_form(each, datatype)
        if raw is None:
            return None
        if datatype == "BYTES":
            fits = elements(raw) == math.prod(shape)
        else:
            fits = len(raw) == math.prod(shape) * np.dtype(DTYPES[datatype]).itemsize
        if not fits:
            return None
        if datatype == "BOOL":
            raw = bytes(map(bool, raw))
        tensors[each.name] = (datatype, shape, raw)
    rows = {rows_of(shape) for _, shape, _ in tensors.values()}
    if 0 in rows or (target.batchable and len(rows) > 1):
        return None
    count = rows.pop() if len(rows) == 1 else 1
    if count > target.limit:
        return None
    inputs = {name: tensors[name] for name in specs}
    return DecodedRequest(message.id, inputs, count, tuple(outputs), event_time, timeout, False)


def raw_form(given: pb.ModelInferRequest.InferInputTensor, datatype: str) -> bytes | None:
    carried = FIELDS.get(datatype)
    if carried is None or any(
        len(values) for other, values in given.contents.ListFields() if other.name != carried
    ):
        return None
    values = getattr(given.contents, carried)
    if datatype == "BYTES":
        return words(*values)
    try:
        return np.array(list(values), dtype=DTYPES[datatype]).tobytes()
    except OverflowError:
        return None


def elements(raw: bytes) -> int:
    at = count = 0
    while at < len(raw):
        at += 4 + int.from_bytes(raw[at : at + 4], "little")
        count += 1
    return count if at == len(raw) else -1


def outcome(message: bytes, target: Schema) -> DecodedRequest | tuple[int, str]:
    try:
        return infer_message.decode(message, target)
    except RefusedError as error:
        return error.code, str(error)


def agree(encoded: bytes, target: Schema) -> None:
    """Holds what we make of a message against what protobuf and the rules make of it."""
    ours = outcome(encoded, target)
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(encoded)
    except DecodeError:
        assert not isinstance(ours, DecodedRequest)
        assert ours[1].startswith("the request is not a inference.ModelInferRequest: ")
        return
    assert infer_message.read_addressee(encoded) == (message.model_name, message.model_version)
    expected = reference(message, target)
    assert ours == expected if expected else not isinstance(ours, DecodedRequest)
    # The same message as protobuf writes it is refused in the same words.
    message.DiscardUnknownFields()
    assert outcome(message.SerializeToString(deterministic=True), target) == ours


TARGETS = (
    ONE,
    TWO,
    schema(("b", "BOOL", (-1,)), ("i", "INT8", (-1, -1)), limit=2),
    schema(("u", "UINT16", (-1,)), ("l", "INT64", (-1,)), ("d", "FP64", (-1, 1))),
    schema(("h", "FP16", (-1,)), ("g", "BF16", (2,)), ("q", "UINT64", ()), batchable=False),
)
PARAMETERS = (
    "event_time",
    "timeout",
    "priority",
    "triton_enable_empty_final_response",
    "sequence_id",
    "sequence_start",
    "triton_other",
    "mine",
)
NUMBERS = {
    "bool_contents": st.booleans(),
    "int_contents": st.sampled_from([0, 1, -1, 127, 128, -129, 2**31 - 1]),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.sampled_from([0, 1, 255, 256, 65535, 65536, 2**32 - 1]),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32, allow_nan=False),
    "fp64_contents": st.floats(allow_nan=False),
    "bytes_contents": st.binary(max_size=3),
}


def rarely(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 24)) == 12


def fill_parameter(draw: st.DrawFn, parameter: pb.InferParameter) -> None:
    kind = draw(st.sampled_from(["int64_param", "bool_param", "string_param", "uint64_param", ""]))
    if kind == "string_param":
        parameter.string_param = draw(st.text(max_size=2))
    elif kind:
        setattr(parameter, kind, draw(st.integers(0, 1)))


@st.composite
def requests(draw: st.DrawFn, target: Schema) -> pb.ModelInferRequest:
    """A request that is nearly right for the schema, most often."""
    message = pb.ModelInferRequest(model_name="m", model_version=draw(st.sampled_from(["", "3"])))
    message.id = "ü" * 257 if rarely(draw) else draw(st.sampled_from(["", "id", "ü" * 256]))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        fill_parameter(draw, message.parameters[draw(st.sampled_from(PARAMETERS))])
    for name in draw(st.permutations(target.outputs)):
        if draw(st.booleans()):
            message.outputs.add(name=name)
    raw, rows = draw(st.booleans()), draw(st.integers(1, 2))
    for name, datatype, wanted in draw(st.permutations(target.inputs)):
        if rarely(draw):
            continue
        shape = [rows if size < 0 else size for size in wanted]
        if rarely(draw):
            shape.append(draw(st.integers(-1, 2)))
        each = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if rarely(draw):
            fill_parameter(draw, each.parameters["shared_memory_region"])
        count = max(0, math.prod(shape)) + rarely(draw)
        if raw:
            size = 1 if datatype == "BYTES" else np.dtype(DTYPES[datatype]).itemsize
            data = draw(st.binary(min_size=count * size, max_size=count * size))
            message.raw_input_contents.append(
                words(*[bytes([byte]) for byte in data]) if datatype == "BYTES" else data
            )
        else:
            carried = FIELDS.get(datatype, "fp32_contents")
            values = st.lists(NUMBERS[carried], min_size=count, max_size=count)
            getattr(each.contents, carried).extend(draw(values))
    return message


def fields_of(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(the tag, the whole field) of each field; of a message that is not malformed."""
    at = 0
    while at < len(message):
        began = at
        tag, at = number_at(message, at)
        if tag & 7 == 0:
            _, at = number_at(message, at)
        elif tag & 7 == 2:
            size, at = number_at(message, at)
            at += size
        else:
            at += {1: 8, 5: 4}[tag & 7]
        yield tag, message[began:at]


def number_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def payload(whole: bytes) -> bytes:
    _, at = number_at(whole, 0)
    size, at = number_at(whole, at)
    return whole[at : at + size]


NESTED: dict[str, dict[int, str]] = {
    "request": {4: "entry", 5: "input", 6: "output"},
    "entry": {2: "parameter"},
    "output": {2: "entry"},
    "input": {4: "entry", 5: "contents"},
}
PACKED = {"input": {3: 0}, "contents": {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 4, 7: 8}}
UNKNOWN = (
    varint(99 << 3) + varint(2**64 - 1),
    field(2000, b"\xff"),
    groups(2, field(1, b"\xff")),
    varint(1 << 3 | 5) + b"abcd",
)


def rewritten(draw: st.DrawFn, message: bytes, kind: str) -> bytes:
    """The message with its fields in another order, twice, apart, unpacked and among others."""
    parts: list[bytes] = []
    for tag, whole in fields_of(message):
        number = tag >> 3
        if inside := NESTED.get(kind, {}).get(number):
            inner = rewritten(draw, payload(whole), inside)
            split = draw(st.booleans()) and inside in ("contents", "parameter")
            cuts = [part for _, part in fields_of(payload(whole))] if split else [inner]
            parts += [field(number, cut) for cut in cuts] or [whole]
        elif (size := PACKED.get(kind, {}).get(number)) is not None and draw(st.booleans()):
            packed = payload(whole)
            while packed:
                end = size or number_at(packed, 0)[1]
                parts.append(varint(number << 3 | {0: 0, 4: 5, 8: 1}[size]) + packed[:end])
                packed = packed[end:]
        else:
            parts.append(whole)
    if parts and rarely(draw):
        parts.append(draw(st.sampled_from(parts)))
    if rarely(draw):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(UNKNOWN)))
    if rarely(draw):
        parts = draw(st.permutations(parts))
    return b"".join(parts)


@st.composite
def encoded_requests(draw: st.DrawFn) -> tuple[bytes, Schema]:
    target = draw(st.sampled_from(TARGETS))
    encoded = draw(requests(target)).SerializeToString()
    encoded = rewritten(draw, encoded, "request")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(encoded)))
        end = at + draw(st.integers(0, 2))
        encoded = encoded[:at] + draw(st.binary(max_size=2)) + encoded[end:]
    if rarely(draw):
        encoded = encoded[: draw(st.integers(0, len(encoded)))]
    return encoded, target


@settings(max_examples=1000, deadline=None)
@given(encoded_requests())
def test_a_request_is_what_protobuf_and_the_rules_make_of_it(case: tuple[bytes, Schema]) -> None:
    agree(*case)


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_anything_else_than_protobuf_takes_them_for(noise: bytes) -> None:
    for target in TARGETS:
        agree(noise, target)
        agree(GOOD.SerializeToString() + noise, target)


# -- replies

Outputs = dict[str, tuple[str, tuple[int, ...], bytes]]


@st.composite
def outputs(draw: st.DrawFn, datatypes: list[str]) -> Outputs:
    made = {}
    names = draw(st.lists(st.text(max_size=8), max_size=4, unique=True))
    for name in names:
        datatype = draw(st.sampled_from(datatypes))
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 130]), max_size=2)))
        count = math.prod(shape)
        if datatype == "BYTES":
            raw = words(*[b"ab" * (index % 3) for index in range(count)])
        else:
            scale = 1 if datatype == "FP16" else draw(st.sampled_from([1, 7919]))
            values = (np.arange(count, dtype=np.int64) - 3) * scale
            raw = values.astype(DTYPES[datatype]).tobytes()
        made[name] = (datatype, shape, raw)
    return made


def reply(id: str, outputs: Outputs, *, mirror: bool) -> bytes:
    made = infer_message.Schema(
        "m",
        3,
        [],
        [(name, datatype) for name, (datatype, _, _) in reversed(outputs.items())],
        batchable=False,
        max_request_rows=1,
    )
    tensors = {name: (shape, raw) for name, (_, shape, raw) in outputs.items()}
    return infer_message.encode(made, id, tensors, mirror=mirror)


def expected_reply(id: str, outputs: Outputs, *, typed: bool) -> bytes:
    expected = pb.ModelInferResponse(model_name="m", model_version="3", id=id)
    for name, (datatype, shape, raw) in outputs.items():
        output = expected.outputs.add(name=name, datatype=datatype, shape=shape)
        if not typed:
            expected.raw_output_contents.append(raw)
            continue
        output.contents.SetInParent()
        if datatype == "BYTES":
            values: list[Any] = []
            while raw:
                end = 4 + int.from_bytes(raw[:4], "little")
                values.append(raw[4:end])
                raw = raw[end:]
        else:
            values = np.frombuffer(raw, dtype=DTYPES[datatype]).tolist()
        getattr(output.contents, FIELDS[datatype]).extend(values)
    return expected.SerializeToString(deterministic=True)


@given(outputs([*DTYPES, "BYTES"]), st.text(max_size=200))
def test_a_reply_is_what_protobuf_would_have_written(outputs: Outputs, id: str) -> None:
    assert reply(id, outputs, mirror=False) == expected_reply(id, outputs, typed=False)


@given(outputs(list(FIELDS)), st.text(max_size=200))
def test_so_is_a_typed_reply(outputs: Outputs, id: str) -> None:
    assert reply(id, outputs, mirror=True) == expected_reply(id, outputs, typed=True)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_answered_raw_and_so_is_all_beside_them(datatype: str) -> None:
    outputs: Outputs = {"y": ("FP32", (1,), floats(1)), "h": (datatype, (1,), b"\1\2")}
    assert reply("", outputs, mirror=True) == expected_reply("", outputs, typed=False)


def test_a_datatype_that_is_none() -> None:
    with pytest.raises(ValueError, match="'FP8' is no datatype"):
        schema(("x", "FP8", (-1,)))
