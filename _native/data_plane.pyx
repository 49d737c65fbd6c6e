# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The data plane as Python sees it: a version's queue and batches, routes, and calls of an event loop.

The C++ beside this module does the work (plane.h, served_version.h, request_queue.h); here a
batch's memory becomes numpy arrays and computed arrays become replies. What may block or takes time
runs without the GIL. A call of this module costs per batch, never per request, except for
`LoopInference`, which is how a frontend in Python hands requests in.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF, Py_DECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as bool_t
from libcpp.map cimport map as cpp_map
from libcpp.memory cimport shared_ptr, unique_ptr, make_shared
from libcpp.string cimport string
from libcpp.utility cimport move, pair
from libcpp.vector cimport vector

import numpy as np


cdef extern from "call.h" namespace "trimtab" nogil:
    cdef enum class Code(int):
        ok
    cdef cppclass Status:
        Status()
        Code code
        string text
    cdef cppclass Call:
        void release()
    cdef cppclass Inference:
        void submit(Call *call)
        void cancel(Call *call)

cdef extern from "infer_request.h" namespace "trimtab" nogil:
    cdef enum class Datatype(unsigned char):
        BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64, BYTES
    cdef cppclass InputSpec:
        string name
        Datatype datatype
        vector[int64_t] shape
    cdef cppclass OutputSpec:
        string name
        Datatype datatype
    cdef cppclass Schema:
        string model
        int64_t version
        vector[InputSpec] inputs
        vector[OutputSpec] outputs
        bool_t batchable
        int64_t max_request_rows
        uint64_t max_string_bytes
        bool_t mirror_contents

cdef extern from "request_queue.h" namespace "trimtab" nogil:
    cdef cppclass QueueCounts:
        int64_t waiting_requests
        int64_t waiting_rows
        uint64_t rejected
        uint64_t cancelled
        uint64_t expired
    cdef cppclass RequestQueue:
        void close()

cdef extern from *:
    """
    #include <chrono>
    static inline std::chrono::nanoseconds trimtab_ns(double seconds) {
        return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
    }
    static inline std::chrono::steady_clock::time_point trimtab_time(double seconds) {
        // A deadline further away than the clock reaches is none.
        if (!(seconds < 9e9)) return std::chrono::steady_clock::time_point::max();
        return std::chrono::steady_clock::time_point(trimtab_ns(seconds));
    }
    """
    cdef cppclass nanoseconds "std::chrono::nanoseconds":
        pass
    cdef cppclass time_point "std::chrono::steady_clock::time_point":
        pass
    nanoseconds trimtab_ns(double seconds) nogil
    time_point trimtab_time(double seconds) nogil

cdef extern from "served_version.h" namespace "trimtab" nogil:
    cdef cppclass VersionLimits:
        int64_t max_batch_rows
        int64_t max_queue_rows
        nanoseconds linger
        int64_t default_timeout_us
    cdef cppclass Total:
        uint64_t count
        uint64_t ns
    cdef cppclass RunTotals:
        Total input
        Total infer
        Total output
    cdef enum:
        LATENCY_BUCKETS
        BATCH_BUCKETS
    cdef cppclass VersionCounts:
        int64_t last_inference_ms
        uint64_t rows
        uint64_t runs
        Total success
        Total fail
        Total queue
        RunTotals compute
        uint64_t failed
        uint64_t *latency_us
        uint64_t *batch_rows
        cpp_map[int64_t, RunTotals] runs_by_size
        QueueCounts queued
    cdef cppclass ObservedCalls:
        string ids
        vector[int32_t] id_ends
        vector[int64_t] rows
        vector[int64_t] event_time_ms
        vector[int64_t] received_ms
        int64_t latest_event_time_ms
    cdef cppclass KeptTensor "trimtab::Kept::Tensor":
        vector[uint8_t] data
        vector[int64_t] shape
    cdef cppclass Kept:
        Kept()
        int64_t rows
        vector[KeptTensor] inputs
        vector[KeptTensor] outputs
        ObservedCalls calls
    cdef cppclass ServedVersion:
        ServedVersion(Schema schema, VersionLimits limits)
        Schema schema
        RequestQueue queue
        Kept kept
        VersionCounts counts()
        void refuse_waiting(const Status &status)
    cdef cppclass Computed:
        const uint8_t *data
        size_t size
        vector[int64_t] shape
    cdef cppclass Gathered "trimtab::Batch::Gathered":
        shared_ptr[uint8_t] data
        size_t size
        vector[int64_t] shape
    cdef cppclass NativeBatch "trimtab::Batch":
        @staticmethod
        unique_ptr[NativeBatch] take(
            const shared_ptr[ServedVersion] &version, bool_t together, nanoseconds idle, bool_t &closed
        ) except +
        int64_t rows()
        size_t size()
        const vector[Gathered] &inputs()
        vector[uint32_t] wanted()
        void running()
        string reply(const vector[Computed] &outputs, const vector[uint32_t] &indexes) except +
        void fail(const Status &status) except +
        vector[unique_ptr[NativeBatch]] singles() except +
        const ObservedCalls &observed()
        bool_t keep(const vector[Computed] &outputs) except +

cdef extern from "plane.h" namespace "trimtab" nogil:
    cdef cppclass Route:
        Route()
        shared_ptr[ServedVersion] answers
        Status refusal
        shared_ptr[ServedVersion] challenger
        uint32_t share
        cpp_map[int64_t, shared_ptr[ServedVersion]] versions
        cpp_map[int64_t, Status] refusals
    cdef cppclass NativePlane "trimtab::DataPlane":
        NativePlane(string id_prefix)
        void submit(Call *call)
        void cancel(Call *call)
        void set_route(const string &model, Route route) except +
        void remove_route(const string &model) except +
        void set_unknown(Code code, const string &suffix) except +
        void refuse(Status status)
        void limit(int64_t max_calls, int64_t max_bytes)
        int64_t calls_in_flight()
        int64_t bytes_in_flight()

cdef extern from "loop_calls.h" namespace "trimtab" nogil:
    cdef cppclass LoopCalls:
        LoopCalls()
        int file()
        vector[LoopCall *] take()
    cdef cppclass LoopCall:
        LoopCall(shared_ptr[LoopCalls] calls, const char *bytes, size_t size, void *waiter) except +
        void retain()
        void release()
        time_point deadline
        void *waiter
        Status status
        uint8_t *reply
        size_t reply_size


cdef dict _DATATYPES = {
    "BOOL": Datatype.BOOL, "UINT8": Datatype.UINT8, "UINT16": Datatype.UINT16,
    "UINT32": Datatype.UINT32, "UINT64": Datatype.UINT64, "INT8": Datatype.INT8,
    "INT16": Datatype.INT16, "INT32": Datatype.INT32, "INT64": Datatype.INT64,
    "FP16": Datatype.FP16, "BF16": Datatype.BF16, "FP32": Datatype.FP32,
    "FP64": Datatype.FP64, "BYTES": Datatype.BYTES,
}
# BF16 has no dtype in numpy: its bits.
cdef dict _DTYPES = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32), "UINT64": np.dtype(np.uint64), "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16), "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16), "BF16": np.dtype(np.uint16), "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64), "BYTES": None,
}


cdef Status _status(int code, str text) except *:
    cdef Status status
    status.code = <Code> code
    status.text = text.encode(errors="replace")
    return status


cdef class _Memory:
    """A batch's input: keeps the memory that numpy arrays are views of. Nobody writes to it."""

    cdef shared_ptr[uint8_t] _data
    cdef Py_ssize_t _size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._data.get(), self._size, 1, flags)


cdef class Version:
    cdef shared_ptr[ServedVersion] _native
    cdef readonly str model
    cdef readonly int64_t version
    cdef tuple _dtypes  # of the inputs
    cdef tuple _output_dtypes

    def __init__(
        self,
        str model not None,
        int64_t version,
        inputs not None,
        outputs not None,
        *,
        bint batchable,
        int64_t max_request_rows,
        int64_t max_batch_rows,
        int64_t max_queue_rows,
        double linger_s = 0.0,
        int64_t default_timeout_us = 0,
        uint64_t max_string_bytes = 0xFFFFFFFF,
        bint mirror_contents = False,
    ):
        cdef Schema schema
        cdef VersionLimits limits
        cdef InputSpec input
        cdef OutputSpec output
        self.model = model
        self.version = version
        schema.model = model.encode()
        schema.version = version
        for name, datatype, shape in inputs:
            input.name = (<str?> name).encode()
            input.datatype = <Datatype> (<unsigned char> _DATATYPES[datatype])
            input.shape = shape
            schema.inputs.push_back(input)
        for name, datatype in outputs:
            output.name = (<str?> name).encode()
            output.datatype = <Datatype> (<unsigned char> _DATATYPES[datatype])
            schema.outputs.push_back(output)
        schema.batchable = batchable
        schema.max_request_rows = max_request_rows
        schema.max_string_bytes = max_string_bytes
        schema.mirror_contents = mirror_contents
        limits.max_batch_rows = max_batch_rows
        limits.max_queue_rows = max_queue_rows
        limits.linger = trimtab_ns(linger_s)
        limits.default_timeout_us = default_timeout_us
        self._native = make_shared[ServedVersion](schema, limits)
        self._dtypes = tuple([_DTYPES[datatype] for _, datatype, _ in inputs])
        self._output_dtypes = tuple([_DTYPES[datatype] for _, datatype in outputs])

    def __repr__(self):
        return f"<Version {self.model}/{self.version}>"

    def take(self, bint together = True, double idle_s = 0.0):
        cdef unique_ptr[NativeBatch] native
        cdef nanoseconds idle = trimtab_ns(idle_s)
        cdef bool_t closed = False
        with nogil:
            native = NativeBatch.take(self._native, together, idle, closed)
        if native.get() == NULL:
            return None if closed else IDLE
        return _batch(self, move(native))

    @property
    def kept_rows(self):
        return self._native.get().kept.rows

    def take_kept(self):
        cdef Kept *kept = &self._native.get().kept
        cdef list inputs = [
            _kept(kept.inputs[index], self._dtypes[index]) for index in range(kept.inputs.size())
        ]
        cdef list outputs = [
            _kept(kept.outputs[index], self._output_dtypes[index])
            for index in range(kept.outputs.size())
        ]
        taken = (kept.rows, inputs, outputs, _columns(kept.calls), kept.calls.latest_event_time_ms)
        self._native.get().kept = Kept()
        return taken

    def close(self):
        with nogil:
            self._native.get().queue.close()

    def refuse_waiting(self, int code, str text not None):
        cdef Status status = _status(code, text)
        with nogil:
            self._native.get().refuse_waiting(status)

    def counts(self):
        cdef VersionCounts counts
        cdef int index
        cdef pair[int64_t, RunTotals] run
        with nogil:
            counts = self._native.get().counts()
        return {
            "last_inference_ms": counts.last_inference_ms,
            "rows": counts.rows,
            "runs": counts.runs,
            "success": _total(counts.success),
            "fail": _total(counts.fail),
            "queue": _total(counts.queue),
            "compute": _run(counts.compute),
            "failed": counts.failed,
            "rejected": counts.queued.rejected,
            "cancelled": counts.queued.cancelled,
            "expired": counts.queued.expired,
            "waiting_requests": counts.queued.waiting_requests,
            "waiting_rows": counts.queued.waiting_rows,
            "latency_us": tuple([counts.latency_us[index] for index in range(LATENCY_BUCKETS)]),
            "batch_rows": tuple([counts.batch_rows[index] for index in range(BATCH_BUCKETS)]),
            "runs_by_size": [(run.first, _run(run.second)) for run in counts.runs_by_size],
        }


class Idle:
    """There is one, IDLE."""


IDLE = Idle()


cdef tuple _kept(const KeptTensor &tensor, dtype):
    cdef size_t axis
    shape = tuple([tensor.shape[axis] for axis in range(tensor.shape.size())])
    data = PyBytes_FromStringAndSize(<const char *> tensor.data.data(), tensor.data.size())
    return shape, data if dtype is None else np.frombuffer(data, dtype).reshape(shape)


cdef tuple _columns(const ObservedCalls &calls):
    cdef Py_ssize_t count = calls.rows.size(), index
    ids = PyBytes_FromStringAndSize(calls.ids.data(), calls.ids.size())
    id_ends = np.empty(count, np.int32)
    numbers = np.empty((3, count), np.int64)
    cdef int32_t[::1] ends = id_ends
    cdef int64_t[:, ::1] out = numbers
    for index in range(count):
        ends[index] = calls.id_ends[index]
        out[0, index] = calls.rows[index]
        out[1, index] = calls.event_time_ms[index]
        out[2, index] = calls.received_ms[index]
    return ids, id_ends, numbers[0], numbers[1], numbers[2]


cdef tuple _total(Total total):
    return (total.count, total.ns)


cdef tuple _run(RunTotals run):
    return (_total(run.input), _total(run.infer), _total(run.output))


cdef Batch _batch(Version version, unique_ptr[NativeBatch] native):
    cdef Batch batch = Batch.__new__(Batch)
    batch._version = version
    batch._native = move(native)
    batch.rows = batch._native.get().rows()
    batch.requests = batch._native.get().size()
    return batch


cdef class Batch:
    cdef unique_ptr[NativeBatch] _native
    cdef Version _version
    cdef readonly int64_t rows
    cdef readonly Py_ssize_t requests
    cdef readonly bint kept

    def __dealloc__(self):
        # Calls that were not answered are told so, and that may block.
        with nogil:
            self._native.reset()

    def __repr__(self):
        return f"<Batch of {self.requests} requests, {self.rows} rows>"

    def inputs(self):
        cdef const Gathered *gathered = self._native.get().inputs().data()
        cdef size_t count = self._native.get().inputs().size()
        cdef _Memory memory
        cdef size_t index, axis
        cdef list arrays = []
        for index in range(count):
            shape = tuple([gathered[index].shape[axis] for axis in range(gathered[index].shape.size())])
            dtype = self._version._dtypes[index]
            if dtype is None:
                data = PyBytes_FromStringAndSize(
                    <const char *> gathered[index].data.get(), gathered[index].size
                )
            else:
                memory = _Memory.__new__(_Memory)
                memory._data = gathered[index].data
                memory._size = gathered[index].size
                data = np.ndarray(shape, dtype, memory)
            arrays.append((shape, data))
        return arrays

    def wanted(self):
        cdef vector[uint32_t] indexes = self._native.get().wanted()
        return tuple(indexes)

    def running(self):
        self._native.get().running()

    def reply(self, outputs not None, bint keep = False):
        cdef Py_ssize_t count = len(outputs), held = 0, position
        cdef vector[Py_buffer] views
        cdef vector[Computed] computed
        cdef vector[uint32_t] indexes
        cdef string problem
        views.resize(count)
        computed.resize(count)
        self.kept = False
        try:
            for position, (index, shape, data) in enumerate(outputs):
                PyObject_GetBuffer(data, &views[position], PyBUF_SIMPLE)
                held += 1
                indexes.push_back(index)
                computed[position].data = <const uint8_t *> views[position].buf
                computed[position].size = views[position].len
                computed[position].shape = shape
            with nogil:
                problem = self._native.get().reply(computed, indexes)
                if keep and problem.empty():
                    self.kept = self._native.get().keep(computed)
        finally:
            for position in range(held):
                PyBuffer_Release(&views[position])
        return problem.decode(errors="replace")

    def fail(self, int code, str text not None):
        cdef Status status = _status(code, text)
        with nogil:
            self._native.get().fail(status)

    def singles(self):
        cdef vector[unique_ptr[NativeBatch]] natives
        cdef size_t index
        with nogil:
            natives = self._native.get().singles()
        return [_batch(self._version, move(natives[index])) for index in range(natives.size())]

    @property
    def latest_event_time_ms(self):
        return self._native.get().observed().latest_event_time_ms

    def observed(self):
        return _columns(self._native.get().observed())


cdef class DataPlane:
    cdef unique_ptr[NativePlane] _native

    def __init__(self, str id_prefix not None):
        self._native.reset(new NativePlane(id_prefix.encode()))

    def __repr__(self):
        return f"<DataPlane {self.requests_in_flight} requests under way>"

    @property
    def inference(self):
        return PyCapsule_New(<void *> <Inference *> self._native.get(), "trimtab.Inference", NULL)

    @property
    def requests_in_flight(self):
        return self._native.get().calls_in_flight()

    @property
    def bytes_in_flight(self):
        return self._native.get().bytes_in_flight()

    def set_route(
        self,
        str model not None,
        Version answers,
        refusal,
        versions not None,
        refusals not None,
        Version challenger = None,
        uint32_t share = 0,
    ):
        cdef Route route
        cdef string name = model.encode()
        cdef Version version
        if answers is not None:
            route.answers = answers._native
        else:
            route.refusal = _status(refusal[0], refusal[1])
        if challenger is not None:
            route.challenger = challenger._native
            route.share = share
        for version in versions:
            route.versions[version.version] = version._native
        for number, (code, text) in refusals.items():
            route.refusals[<int64_t> number] = _status(code, text)
        with nogil:
            self._native.get().set_route(name, move(route))

    def remove_route(self, str model not None):
        cdef string name = model.encode()
        with nogil:
            self._native.get().remove_route(name)

    def set_unknown(self, int code, str suffix not None):
        self._native.get().set_unknown(<Code> code, suffix.encode())

    def refuse(self, int code, str text not None):
        self._native.get().refuse(_status(code, text))

    def limit(self, int64_t max_requests, int64_t max_bytes):
        self._native.get().limit(max_requests, max_bytes)


cdef class LoopTicket:
    """A request that was handed in; `cancel` when nobody waits any more."""

    cdef LoopCall *_call
    cdef DataPlane _plane

    def __dealloc__(self):
        if self._call != NULL:
            self._call.release()

    def cancel(self):
        with nogil:
            self._plane._native.get().cancel(<Call *> self._call)


cdef class LoopInference:
    cdef DataPlane _plane
    cdef shared_ptr[LoopCalls] _calls

    def __init__(self, DataPlane plane not None):
        self._plane = plane
        self._calls = make_shared[LoopCalls]()
        if self._calls.get().file() < 0:
            raise OSError("no eventfd is left for the event loop")

    def fileno(self):
        return self._calls.get().file()

    def submit(self, bytes request not None, double deadline_s, waiter not None):
        cdef LoopTicket ticket = LoopTicket.__new__(LoopTicket)
        cdef LoopCall *call = new LoopCall(
            self._calls, PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), <void *> waiter
        )
        Py_INCREF(waiter)  # given back when the call was drained
        call.deadline = trimtab_time(deadline_s)
        ticket._call = call
        ticket._plane = self._plane
        with nogil:
            self._plane._native.get().submit(<Call *> call)
        return ticket

    def drain(self):
        cdef vector[LoopCall *] calls
        cdef LoopCall *call
        cdef list finished = []
        calls = self._calls.get().take()
        for call in calls:
            waiter = <object> call.waiter
            Py_DECREF(waiter)
            code = <int> call.status.code
            if code == 0:
                body = PyBytes_FromStringAndSize(<const char *> call.reply, call.reply_size)
            else:
                body = call.status.text.decode(errors="replace")
            finished.append((waiter, code, body))
            call.release()
        return finished
