"""ModelInferRequest to tensors and tensors to ModelInferResponse: the protocol's rules on contents.

A request is checked here against the model's signature completely, so that whatever reaches a queue
can be computed together with its neighbours. (One check is left to the executor: that a string is
UTF-8, which costs a pass that decoding makes anyhow.) Error texts are Triton's where it has one.

Copies: protobuf makes one of `raw_input_contents`; the tensors are views of it.

Replies are written by hand, field by field: the message is small and flat, its contents are bytes
already, and building it from protobuf objects takes three times as long (a reply of two outputs:
3.2 µs against 9.8 µs). `tests/server/inference/test_wire.py` holds the two equal byte by byte.
"""

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab._native import bytes_tensor
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.manifest import TensorSpec

from ..errors import InvalidRequestError, UnsupportedError
from .servable import Servable
from .tensor import BYTES, DTYPES, Tensor, shape_text

MAX_ID_LENGTH = 256
# As many as the longest message that gRPC has could carry at one byte each. An empty tensor carries
# nothing, and numpy and onnxruntime still multiply its other dimensions.
MAX_ELEMENTS = 2**31 - 1
_SHOWN_DIMENSIONS = 16
_MAX_EVENT_TIME_MS = 253_402_300_799_999  # the last millisecond of the year 9999

# Typed contents: the field that carries each datatype. FP16 travels as raw contents only.
_CONTENTS = {
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
    BYTES: "bytes_contents",
}
_UNSERVED_INPUT_PARAMETERS = ("shared_memory_region",)
_UNSERVED_OUTPUT_PARAMETERS = ("shared_memory_region", "classification")


@dataclass(slots=True)
class InferRequest:
    """A request that can be computed."""

    inputs: dict[str, Tensor]
    rows: int
    group: Hashable  # requests of equal groups can share a run
    outputs: tuple[str, ...]  # in the order of the reply
    event_time_ms: int | None
    timeout_us: int  # 0: none


def decode_request(
    message: pb.ModelInferRequest, servable: Servable, max_rows: int
) -> InferRequest:
    """Raises InvalidRequestError or UnsupportedError."""
    model = servable.model
    if len(message.id) > MAX_ID_LENGTH:
        raise InvalidRequestError(
            f"the id of {len(message.id)} characters exceeds the limit of {MAX_ID_LENGTH}"
        )
    event_time_ms = None
    timeout_us = 0
    if message.parameters:
        event_time_ms = _int64_parameter(message, "event_time")
        timeout_us = _int64_parameter(message, "timeout") or 0
        if event_time_ms is not None and not 0 <= event_time_ms <= _MAX_EVENT_TIME_MS:
            raise InvalidRequestError(
                f"event_time = {event_time_ms}: must be milliseconds since 1970, "
                f"from 0 to {_MAX_EVENT_TIME_MS}"
            )
        if timeout_us < 0:
            raise InvalidRequestError(f"timeout = {timeout_us}: must be microseconds, at least 0")
    outputs = _requested_outputs(message, servable) if message.outputs else servable.output_names

    specs = servable.inputs
    given = message.inputs
    raws = message.raw_input_contents
    # One more than the model has is enough to tell why there are too many.
    names = [each.name for each in given[: len(specs) + 1]]
    if names != servable.input_names:
        _check_names(names, servable)
    inputs: dict[str, Tensor] = {}
    if raws:
        if len(raws) > len(given):
            raise InvalidRequestError(
                f"got {len(raws)} raw_input_contents for {len(given)} inputs of model '{model}'"
            )
        for index, (name, each) in enumerate(zip(names, given, strict=True)):
            if each.HasField("contents"):
                raise InvalidRequestError(
                    "contents field must not be specified when using raw_input_contents "
                    f"for '{name}' for model '{model}'"
                )
            shape = _checked_shape(each, specs[name], model)
            if index >= len(raws):
                raise _no_data(name, model)
            inputs[name] = _from_raw(raws[index], shape, specs[name], model)
    else:
        for name, each in zip(names, given, strict=True):
            shape = _checked_shape(each, specs[name], model)
            if not each.HasField("contents") and 0 not in shape:
                raise _no_data(name, model)
            inputs[name] = _from_contents(each.contents, shape, specs[name], model)
    rows = _rows(inputs, servable, max_rows)
    if len(inputs) == 1:
        (tensor,) = inputs.values()
        group: Hashable = tensor.shape[1:]
    else:
        # In the signature's order: two clients may name the inputs in different orders.
        inputs = {name: inputs[name] for name in specs}
        group = tuple([tensor.shape[1:] for tensor in inputs.values()])
    return InferRequest(inputs, rows, group, outputs, event_time_ms, timeout_us)


def _int64_parameter(message: pb.ModelInferRequest, name: str) -> int | None:
    if name not in message.parameters:
        return None
    parameter = message.parameters[name]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidRequestError(
            f"invalid value type for '{name}' parameter, expected int64_param."
        )
    return int(parameter.int64_param)


def _requested_outputs(message: pb.ModelInferRequest, servable: Servable) -> tuple[str, ...]:
    names = []
    for each in message.outputs:
        name = each.name
        if name not in servable.output_names:
            raise InvalidRequestError(
                f"unexpected inference output '{name}' for model '{servable.model}'"
            )
        if name in names:
            raise InvalidRequestError(
                f"output '{name}' for model '{servable.model}' is requested more than once"
            )
        if each.parameters:
            _refuse(each.parameters, _UNSERVED_OUTPUT_PARAMETERS, f"output '{name}'")
        names.append(name)
    return tuple(names)


def _check_names(given: list[str], servable: Servable) -> None:
    """Every input of the model, once, and nothing else, in any order."""
    specs = servable.inputs
    seen: set[str] = set()
    for name in given:
        if name not in specs:
            raise InvalidRequestError(
                f"unexpected inference input '{name}' for model '{servable.model}'"
            )
        if name in seen:
            raise InvalidRequestError(
                f"input '{name}' for model '{servable.model}' is given more than once"
            )
        seen.add(name)
    missing = [name for name in specs if name not in seen]
    if missing:
        raise InvalidRequestError(
            f"expected {len(specs)} inputs but got {len(given)} inputs for model "
            f"'{servable.model}'. Got input(s) {_quoted(given)}, but missing required input(s) "
            f"{_quoted(missing)}. Please provide all required input(s)."
        )


def _quoted(names: Sequence[str]) -> str:
    return "[" + ",".join([f"'{name}'" for name in names]) + "]"


def _no_data(name: str, model: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"unable to find data for input tensor '{name}' for model '{model}' in request."
    )


def _refuse(parameters: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if name in parameters:
            raise UnsupportedError(f"parameter '{name}' of {where} is not supported")


def _checked_shape(
    given: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec, model: str
) -> tuple[int, ...]:
    if given.datatype != spec.datatype:
        raise InvalidRequestError(
            f"inference input '{spec.name}' data-type is '{given.datatype}', "
            f"but model '{model}' expects '{spec.datatype}'"
        )
    wanted = spec.shape
    shape = tuple(given.shape[: len(wanted) + 1])
    if not _fits(shape, wanted):
        raise InvalidRequestError(
            f"unexpected shape for input '{spec.name}' for model '{model}'. "
            f"Expected {shape_text(wanted)}, got {_shown(given.shape)}"
        )
    if math.prod(filter(None, shape)) > MAX_ELEMENTS:
        raise InvalidRequestError(
            f"shape {_shown(given.shape)} of input '{spec.name}' for model '{model}' exceeds the limit of "
            f"{MAX_ELEMENTS} elements, dimensions of size 0 aside"
        )
    if given.parameters:
        _refuse(given.parameters, _UNSERVED_INPUT_PARAMETERS, f"input '{spec.name}'")
    return shape


def _shown(shape: Sequence[int]) -> str:
    """A client's shape for a message: it may have any number of dimensions."""
    if len(shape) <= _SHOWN_DIMENSIONS:
        return shape_text(shape)
    first = ",".join(map(str, shape[:_SHOWN_DIMENSIONS]))
    return f"[{first},…] of {len(shape)} dimensions"


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):
        if size < 0 or (size != want and want >= 0):
            return False
    return True


def _from_raw(raw: bytes, shape: tuple[int, ...], spec: TensorSpec, model: str) -> Tensor:
    datatype = spec.datatype
    elements = math.prod(shape)
    if datatype == BYTES:
        try:
            count = bytes_tensor.count(raw)
        except ValueError as error:
            raise InvalidRequestError(
                f"input '{spec.name}' for model '{model}': {error}"
            ) from error
        if count != elements:
            raise _wrong_count(elements, count, spec.name, model)
        return Tensor(datatype, shape, raw)
    dtype = DTYPES[datatype]
    expected = elements * dtype.itemsize
    if len(raw) != expected:
        raise _wrong_size(expected, len(raw), spec.name, model)
    if datatype == "BOOL":
        # Any other value than 0 and 1 in a bool is undefined behaviour in C++.
        array = np.frombuffer(raw, dtype=np.uint8) != 0
    else:
        array = np.frombuffer(raw, dtype=dtype)
    return Tensor(datatype, shape, array.reshape(shape))


def _from_contents(
    contents: pb.InferTensorContents, shape: tuple[int, ...], spec: TensorSpec, model: str
) -> Tensor:
    datatype = spec.datatype
    field = _CONTENTS.get(datatype)
    for other, values in contents.ListFields():
        if other.name != field and len(values):
            raise InvalidRequestError(
                f"input '{spec.name}' for model '{model}' is {datatype}, which is carried by "
                f"{field or 'raw_input_contents only'}, not by {other.name}"
            )
    if field is None:
        raise _no_data(spec.name, model)
    values = getattr(contents, field)
    elements = math.prod(shape)
    if datatype == BYTES:
        if len(values) != elements:
            raise _wrong_count(elements, len(values), spec.name, model)
        raw = b"".join([len(value).to_bytes(4, "little") + value for value in values])
        return Tensor(datatype, shape, raw)
    dtype = DTYPES[datatype]
    if len(values) != elements:
        size = dtype.itemsize
        raise _wrong_size(elements * size, len(values) * size, spec.name, model)
    try:
        array = np.array(list(values), dtype=dtype)
    except OverflowError as error:
        raise InvalidRequestError(
            f"input '{spec.name}' for model '{model}' has a value beyond {datatype}: {error}"
        ) from error
    return Tensor(datatype, shape, array.reshape(shape))


def _wrong_count(expected: int, got: int, name: str, model: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"expected {expected} string elements for inference input '{name}' "
        f"for model '{model}', got {got}"
    )


def _wrong_size(expected: int, got: int, name: str, model: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"input byte size mismatch for input '{name}' for model '{model}'. "
        f"Expected {expected}, got {got}"
    )


def _rows(inputs: Mapping[str, Tensor], servable: Servable, max_rows: int) -> int:
    """How many predictions the request asks for; 1 where the model has no rows."""
    model = servable.model
    first_name, first = next(iter(inputs.items()))
    rows = first.shape[0] if first.shape else 1
    for name, tensor in inputs.items():
        if tensor.shape and tensor.shape[0] == 0:
            raise InvalidRequestError(
                f"input '{name}' for model '{model}' has zero rows: {shape_text(tensor.shape)}"
            )
        if (tensor.shape[0] if tensor.shape else 1) != rows:
            if servable.batchable:
                raise InvalidRequestError(
                    f"input '{name}' for model '{model}' has {tensor.shape[0]} rows, "
                    f"but '{first_name}' has {rows}"
                )
            rows = 1
            break
    if rows > max_rows:
        raise InvalidRequestError(
            f"request of {rows} rows for model '{model}' exceeds the limit of {max_rows} rows "
            "(max_request_rows)"
        )
    return rows


class ReplyEncoder:
    """Writes the replies of one version. Not for two threads at once."""

    def __init__(self, servable: Servable) -> None:
        self._prefix = _field(1, servable.model.encode()) + _field(
            2, str(servable.version).encode()
        )
        self._outputs: dict[tuple[str, tuple[int, ...]], bytes] = {}

    def encode(self, id: str, outputs: Mapping[str, Tensor]) -> bytes:
        """One reply, always with raw contents, one per output, in the order of `outputs`."""
        id_bytes = id.encode()
        parts = [self._prefix]
        if id_bytes:
            parts += _lead(3, len(id_bytes)), id_bytes
        contents: list[bytes] = []
        for name, tensor in outputs.items():
            key = (name, tensor.shape)
            description = self._outputs.get(key)
            if description is None:
                if len(self._outputs) >= _REMEMBERED:
                    self._outputs.clear()
                description = self._outputs[key] = _describe(name, tensor)
            parts.append(description)
            data = tensor.data
            raw = data if isinstance(data, bytes) else data.tobytes()
            contents += _lead(6, len(raw)), raw
        return b"".join(parts + contents)


_REMEMBERED = 256  # shapes whose description is kept


def _varint(value: int) -> bytes:
    if value < 0:
        value += 1 << 64
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@functools.lru_cache(maxsize=4096)
def _lead(number: int, size: int) -> bytes:
    """What precedes the payload of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(size)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field; nothing when empty, as proto3 has it."""
    return _lead(number, len(payload)) + payload if payload else b""


def _describe(name: str, tensor: Tensor) -> bytes:
    """An InferOutputTensor as field 5 of the reply."""
    shape = b"".join([_varint(size) for size in tensor.shape])
    return _field(
        5, _field(1, name.encode()) + _field(2, tensor.datatype.encode()) + _field(3, shape)
    )
