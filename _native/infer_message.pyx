# cython: language_level=3
# distutils: language = c++
"""The wire form of inference (infer_message.h) for Python: for tests, tools and fuzzers.

The data plane calls the same functions without Python in between. Bytes are in and new objects are
out; nothing keeps a view of what it was given. A schema never changes, so any thread may use it.
"""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "<string_view>" namespace "std" nogil:
    cppclass string_view:
        string_view()
        string_view(const char *, size_t)
        const char *data()
        size_t size()


cdef extern from "infer_message.h" namespace "trimtab" nogil:
    ctypedef enum Code:
        pass

    cppclass Status:
        Code code
        string text
        cbool ok()

    ctypedef enum Datatype:
        pass

    cppclass InputSpec:
        string name
        Datatype datatype
        vector[int64_t] shape

    cppclass OutputSpec:
        string name
        Datatype datatype

    cppclass CSchema "trimtab::Schema":
        string model
        int64_t version
        vector[InputSpec] inputs
        vector[OutputSpec] outputs
        cbool batchable
        int64_t max_request_rows
        cbool mirror_contents

    cppclass InputData:
        const uint8_t *data
        size_t size
        vector[int64_t] shape

    cppclass InferRequest:
        string id
        vector[InputData] inputs
        vector[uint32_t] outputs
        int64_t rows
        int64_t event_time_ms
        int64_t timeout_us
        cbool mirror

    cppclass Addressee:
        string_view model
        string_view version

    cppclass OutputData:
        const uint8_t *data
        size_t size
        const int64_t *shape
        size_t rank

    string_view datatype_name(Datatype)
    cbool datatype_of(string_view, Datatype &)
    Status c_read_addressee "trimtab::read_addressee"(
        const uint8_t *, size_t, Addressee &) except +
    Status decode_request(const uint8_t *, size_t, const CSchema &, InferRequest &) except +
    string reply_prefix(const CSchema &) except +
    size_t reply_size(
        const CSchema &, const string &, const InferRequest &, const OutputData *,
        const uint32_t *, size_t)
    void write_reply(
        uint8_t *, const CSchema &, const string &, const InferRequest &, const OutputData *,
        const uint32_t *, size_t)


class RefusedError(Exception):
    """A request that cannot be computed; `code` is gRPC's number."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


DecodedRequest = namedtuple(
    "DecodedRequest",
    ("id", "inputs", "rows", "outputs", "event_time_ms", "timeout_us", "mirror"),
)


cdef object _text(string_view view):
    return view.data()[:view.size()].decode()


cdef Datatype _datatype(str name) except *:
    cdef Datatype datatype = <Datatype> 0
    encoded = name.encode()
    if not datatype_of(string_view(PyBytes_AS_STRING(encoded), len(encoded)), datatype):
        raise ValueError(f"'{name}' is no datatype")
    return datatype


cdef int _check(const Status &status) except -1:
    if not status.ok():
        raise RefusedError(<int> status.code, status.text.decode())
    return 0


cdef class Schema:
    """What a version takes and gives."""

    cdef CSchema _schema
    cdef string _prefix

    def __init__(
        self, model not None, version, inputs not None, outputs not None, *,
        batchable, max_request_rows, mirror_contents=False,
    ):
        cdef InputSpec input
        cdef OutputSpec output
        self._schema.model = model.encode()
        self._schema.version = version
        self._schema.inputs.clear()
        for name, datatype, shape in inputs:
            input.name = name.encode()
            input.datatype = _datatype(datatype)
            input.shape = shape
            self._schema.inputs.push_back(input)
        self._schema.outputs.clear()
        for name, datatype in outputs:
            output.name = name.encode()
            output.datatype = _datatype(datatype)
            self._schema.outputs.push_back(output)
        self._schema.batchable = batchable
        self._schema.max_request_rows = max_request_rows
        self._schema.mirror_contents = mirror_contents
        self._prefix = reply_prefix(self._schema)


def read_addressee(bytes message not None):
    cdef Addressee addressee
    _check(
        c_read_addressee(
            <const uint8_t *> PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), addressee
        )
    )
    return _text(addressee.model), _text(addressee.version)


def decode(bytes message not None, Schema schema not None):
    cdef InferRequest request
    cdef size_t index
    _check(
        decode_request(
            <const uint8_t *> PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message),
            schema._schema, request,
        )
    )
    inputs = {}
    for index in range(request.inputs.size()):
        inputs[schema._schema.inputs[index].name.decode()] = (
            _text(datatype_name(schema._schema.inputs[index].datatype)),
            tuple(request.inputs[index].shape),
            PyBytes_FromStringAndSize(
                <const char *> request.inputs[index].data, request.inputs[index].size
            ),
        )
    return DecodedRequest(
        request.id.decode(),
        inputs,
        request.rows,
        tuple([schema._schema.outputs[place].name.decode() for place in request.outputs]),
        None if request.event_time_ms < 0 else request.event_time_ms,
        request.timeout_us,
        request.mirror,
    )


def encode(Schema schema not None, request_id not None, outputs not None, *, mirror=False):
    cdef InferRequest request
    cdef vector[OutputData] data
    cdef vector[vector[int64_t]] shapes
    cdef vector[uint32_t] indexes
    cdef size_t index, size
    cdef bytes raw
    request.id = request_id.encode()
    request.mirror = mirror
    names = [spec.name.decode() for spec in schema._schema.outputs]
    given = list(outputs.items())  # keeps what the pointers point into
    data.resize(len(given))
    shapes.resize(len(given))
    for index, (name, (shape, contents)) in enumerate(given):
        raw = contents
        indexes.push_back(names.index(name))
        shapes[index] = shape
        data[index].data = <const uint8_t *> PyBytes_AS_STRING(raw)
        data[index].size = PyBytes_GET_SIZE(raw)
        data[index].shape = shapes[index].data()
        data[index].rank = shapes[index].size()
    size = reply_size(
        schema._schema, schema._prefix, request, data.data(), indexes.data(), data.size()
    )
    reply = PyBytes_FromStringAndSize(NULL, size)
    write_reply(
        <uint8_t *> PyBytes_AS_STRING(reply), schema._schema, schema._prefix, request,
        data.data(), indexes.data(), data.size(),
    )
    return reply
