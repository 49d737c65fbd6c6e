"""What can be told of a model.onnx without a runtime: whether it is one, and which files it names.

Files come from anywhere, so nothing of one is believed or held in memory: `check` walks over the
outer fields and is done with garbage after some bytes; `external_files` looks for the weights
that a model keeps in files beside it. Both read protobuf's wire format as far as that needs, with
the field numbers of onnx.proto (github.com/onnx/onnx), and pass over all that they do not know.
"""

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import RegistryError

MAX_BYTES = 2**31 - 1  # protobuf reads no larger message
# Gigabytes of fields of two bytes would keep a reader busy for an hour. Graphs have some ten
# thousands of nodes and tensors; an attribute may have a field for each of its numbers.
MAX_FIELDS = 1_000_000  # of the model and its graph, some seconds' worth
MAX_INNER_FIELDS = 10_000_000  # of all that may name a file

_VARINT, _BYTES = 0, 2  # wire types
_FIXED: Mapping[int, int] = {1: 8, 5: 4}  # of so many bytes
_HEAD_BYTES = 20  # a key and a number have at most ten each
_GRAPH, _OPSET = 7, 8  # in the model
_LFS_POINTER = b"version https://git-lfs."

# Where tensors are: per message its fields that hold messages on the way to one.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # in an entry
_LOCATION = b"location"  # the entry that names a file
_SEARCHED_BYTES = 4096  # a tensor or attribute above this is searched for the word first


class InvalidModelError(RegistryError):
    """The file is no ONNX model, or not all of one; the message says where that shows."""


def check(path: Path) -> None:
    """InvalidModelError unless the file looks like a whole model; OSError.

    Reads a few bytes for each node and tensor of its graph, of which there may be MAX_FIELDS.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for ever
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise InvalidModelError(f"{path}: is empty")
        if status.st_size > MAX_BYTES:
            raise InvalidModelError(
                f"{path}: has {status.st_size} bytes, and a model file at most {MAX_BYTES}; larger "
                "weights belong into files beside it (external data)"
            )
        if os.pread(fd, len(_LFS_POINTER), 0) == _LFS_POINTER:
            raise InvalidModelError(
                f"{path}: is a Git LFS pointer, not the model; `git lfs pull` fetches that"
            )
        try:
            _check_message(fd, status.st_size)
        except ValueError as error:
            raise InvalidModelError(f"{path}: not an ONNX model, or cut off: {error}") from None
    finally:
        os.close(fd)


def _check_message(fd: int, size: int) -> None:
    """ValueError unless it has what every model must have."""
    graphs = []
    opsets = 0
    for number, wire, begin, end in _fields_of(fd, 0, size):
        if number == _GRAPH and wire == _BYTES:
            graphs.append((begin, end))
        opsets += number == _OPSET and wire == _BYTES
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs) or 'no'} graphs")
    if not opsets:
        raise ValueError("it does not say which operators it uses")
    for _ in _fields_of(fd, *graphs[0]):
        pass


def _fields_of(fd: int, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message, as in `_field`, whose contents are not read."""
    at = start
    count = 0
    while at < end:
        count += 1
        if count > MAX_FIELDS:
            raise ValueError(f"one message has more than {MAX_FIELDS:,} fields")
        head = os.pread(fd, min(_HEAD_BYTES, end - at), at)
        number, wire, begin, stop = _field(head, 0, len(head), at)
        if at + stop > end:
            raise ValueError(
                f"the field at byte {at} has {stop - begin} bytes, and its message ends after "
                f"{end - at - begin}"
            )
        yield number, wire, at + begin, at + stop
        at += stop


def external_files(path: Path) -> list[str]:
    """The names of files, as they are written, that the model keeps weights in; in order, once.

    InvalidModelError if the file is damaged, or has more than MAX_INNER_FIELDS to look into. It must
    not be changed meanwhile: it is mapped.
    """
    found: dict[str, None] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        waiting = [("model", 0, len(data))]
        count = 0
        try:
            while waiting:
                kind, start, end = waiting.pop()
                if kind == "entry":
                    if location := _location(data, start, end):
                        found[location] = None
                    continue
                large = end - start > _SEARCHED_BYTES and kind in ("attribute", "tensor")
                if large and data.find(_LOCATION, start, end) < 0:
                    continue
                inside = _INSIDE[kind]
                for number, wire, begin, stop in _fields(data, start, end):
                    count += 1
                    if count > MAX_INNER_FIELDS:
                        raise ValueError(f"it has more than {MAX_INNER_FIELDS:,} fields")
                    if wire == _BYTES and number in inside:
                        waiting.append((inside[number], begin, stop))
        except ValueError as error:
            raise InvalidModelError(f"{path}: not an ONNX model: {error}") from None
    return sorted(found)


def _location(data: mmap.mmap, start: int, end: int) -> str:
    """The value of an entry whose key says that it is a location; else empty."""
    if end - start > _SEARCHED_BYTES:  # no path is so long
        return ""
    parts = {number: data[begin:stop] for number, _, begin, stop in _fields(data, start, end)}
    if parts.get(_KEY) != _LOCATION:
        return ""
    return parts.get(_VALUE, b"").decode("utf-8", "surrogateescape")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    at = start
    while at < end:
        number, wire, begin, at = _field(data, at, end, 0)
        if at > end:
            raise ValueError(f"the field at byte {begin} goes beyond its message")
        yield number, wire, begin, at


def _field(data: bytes | mmap.mmap, at: int, end: int, offset: int) -> tuple[int, int, int, int]:
    """(number, wire type, where its value begins, where it ends) of the field at `at`.

    Messages call positions by their distance from `offset` bytes before the data.
    """
    begin = at
    key, at = _varint(data, at, end)
    number, wire = (key or 0) >> 3, (key or 0) & 7
    if wire == _BYTES:
        length, at = _varint(data, at, end)
        stop = None if length is None else at + length
    elif wire == _VARINT:
        value, stop = _varint(data, at, end)
        stop = None if value is None else stop
    else:
        stop = at + _FIXED.get(wire, 0)
    if not number or stop is None or wire not in (_VARINT, _BYTES, *_FIXED):
        raise ValueError(f"at byte {offset + begin} there is no field")
    return number, wire, at, stop


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int | None, int]:
    """A number and where it ends; None: there is none."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return None, at
