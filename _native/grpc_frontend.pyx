# cython: language_level=3, binding=False
"""The native frontend for Python: a gRPC server whose predictions never meet the interpreter.

Messages are bytes in and bytes out. Whatever may wait or send runs without the GIL. `start` and `stop`
may be called by any thread; `drain` and the methods of a GenericCall belong to the event loop's.
What the parts are and who owns a call is written in frontend.h and the headers it names.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp cimport bool as c_bool
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector


cdef extern from "<chrono>" namespace "std::chrono" nogil:
    cdef cppclass milliseconds:
        milliseconds(int64_t)


cdef extern from "call.h" namespace "trimtab" nogil:
    cdef enum class Code(int):
        ok
        cancelled

    cdef cppclass Status:
        Code code
        string text

    cdef cppclass Inference:
        pass


cdef extern from "frontend.h" namespace "trimtab" nogil:
    cdef enum class CMethodKind "trimtab::MethodKind"(int):
        pass

    cdef enum class CCompression "trimtab::Compression"(int):
        pass

    cdef cppclass CMethod "trimtab::Method":
        string name
        CMethodKind kind

    cdef cppclass CFrontendOptions "trimtab::FrontendOptions":
        int max_message_bytes
        CCompression compression
        string tls_cert
        string tls_key
        string tls_client_ca
        int keepalive_ms
        int keepalive_timeout_ms
        int max_concurrent_streams

    cdef cppclass CGenericCall "trimtab::GenericCall":
        uint64_t id()
        const string &method()
        string peer() except +
        double deadline()
        const uint8_t *message(size_t &size)
        void drop_message()
        void read()
        void send_initial_metadata()
        c_bool write(const uint8_t *data, size_t size)
        void reply(const uint8_t *data, size_t size)
        void finish(Code code, const string &text)
        void retain()
        void release()

    cdef cppclass CEvent "trimtab::Event":
        int kind
        CGenericCall *of

    cdef cppclass CFrontend "trimtab::Frontend":
        CFrontend(string, CFrontendOptions, vector[CMethod], Inference *) except +
        int start() except +
        void refuse() except +
        c_bool stop(milliseconds grace, milliseconds patience) except +
        int event_fd()
        void drain(vector[CEvent] &events) except +
        int64_t open_calls()

    string grpc_version() except +


cdef extern from "echo_inference.h" namespace "trimtab" nogil:
    cdef cppclass CCounts "trimtab::EchoInference::Counts":
        int64_t submitted
        int64_t cancelled
        int64_t waiting

    cdef cppclass CEchoInference "trimtab::EchoInference"(Inference):
        CEchoInference() except +
        void behave(double delay_s, Status status) except +
        void release_held(c_bool last_first) except +
        CCounts counts() except +


cdef const char *_CAPSULE = "trimtab.Inference"

UNARY, STREAM, BIDI = range(3)
CALL, MESSAGE, HALF_CLOSE, WRITTEN, BROKEN, GONE, DONE = range(7)
_COMPRESSIONS = {"none": 0, "gzip": 1, "deflate": 2}


def version() -> str:
    return grpc_version().decode()


cdef bytes _message(CGenericCall *call):
    cdef size_t size = 0
    cdef const uint8_t *data = call.message(size)
    result = PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> size)
    call.drop_message()
    return result


cdef class GenericCall:
    """One reference to a call that Python answers, and to its frontend."""

    cdef CGenericCall *_call
    cdef Frontend _frontend

    def __cinit__(self) -> None:
        self._call = NULL

    def __dealloc__(self) -> None:
        if self._call is not NULL:
            self._call.release()

    @property
    def id(self) -> int:
        return self._call.id()

    @property
    def method(self) -> str:
        return self._call.method().decode("utf-8", "replace")

    @property
    def peer(self) -> str:
        return self._call.peer().decode("utf-8", "replace")

    @property
    def deadline(self) -> float | None:
        cdef double deadline = self._call.deadline()
        return None if deadline < 0.0 else deadline

    def take_message(self) -> bytes:
        return _message(self._call)

    def read(self) -> None:
        with nogil:
            self._call.read()

    def send_initial_metadata(self) -> None:
        with nogil:
            self._call.send_initial_metadata()

    def write(self, bytes message not None) -> bool:
        cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(message)
        cdef size_t size = PyBytes_GET_SIZE(message)
        cdef c_bool accepted
        with nogil:
            accepted = self._call.write(data, size)
        return accepted

    def reply(self, bytes message not None) -> None:
        cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(message)
        cdef size_t size = PyBytes_GET_SIZE(message)
        with nogil:
            self._call.reply(data, size)

    def finish(self, int code, str text not None) -> None:
        cdef string encoded = text.encode(errors="replace")
        with nogil:
            self._call.finish(<Code> code, encoded)


cdef GenericCall _wrap(CGenericCall *call, Frontend frontend):
    cdef GenericCall wrapped = GenericCall.__new__(GenericCall)
    call.retain()
    wrapped._call = call
    wrapped._frontend = frontend
    return wrapped


cdef class Frontend:
    """A server on one address."""

    cdef CFrontend *_frontend
    cdef object _plane  # what the inference rests on
    cdef c_bool _left  # a call never ended: nothing that it may use can be freed

    def __cinit__(
        self,
        str address not None,
        object methods not None,
        object plane,
        *,
        int max_message_bytes,
        str compression not None = "none",
        bytes tls_cert not None = b"",
        bytes tls_key not None = b"",
        bytes tls_client_ca not None = b"",
        double keepalive_s = 7200.0,
        double keepalive_timeout_s = 20.0,
        int max_concurrent_streams = 0,
    ) -> None:
        cdef CFrontendOptions options
        cdef vector[CMethod] known
        cdef CMethod method
        cdef Inference *inference = NULL
        cdef int kind
        options.max_message_bytes = max_message_bytes
        kind = _COMPRESSIONS[compression]
        options.compression = <CCompression> kind
        options.tls_cert = tls_cert
        options.tls_key = tls_key
        options.tls_client_ca = tls_client_ca
        options.keepalive_ms = <int> (keepalive_s * 1e3)
        options.keepalive_timeout_ms = <int> (keepalive_timeout_s * 1e3)
        options.max_concurrent_streams = max_concurrent_streams
        for name, kind in methods.items():
            method.name = name.encode()
            method.kind = <CMethodKind> kind
            known.push_back(method)
        if plane is not None:
            inference = <Inference *> PyCapsule_GetPointer(plane.inference, _CAPSULE)
        self._plane = plane
        self._frontend = new CFrontend(address.encode(), move(options), move(known), inference)

    def __dealloc__(self) -> None:
        if self._frontend is NULL or self._left:
            return
        with nogil:
            del self._frontend

    def start(self) -> int:
        cdef int port
        with nogil:
            port = self._frontend.start()
        return port

    def refuse(self) -> None:
        with nogil:
            self._frontend.refuse()

    def stop(self, double grace_s, double patience_s) -> bool:
        cdef c_bool stopped
        cdef int64_t grace = <int64_t> (grace_s * 1e3)
        cdef int64_t patience = <int64_t> (patience_s * 1e3)
        with nogil:
            stopped = self._frontend.stop(milliseconds(grace), milliseconds(patience))
        if not stopped and not self._left:
            self._left = True
            _left_behind.append((self, self._plane))
        return stopped

    def fileno(self) -> int:
        return self._frontend.event_fd()

    @property
    def open_calls(self) -> int:
        return self._frontend.open_calls()

    def drain(self) -> list[tuple[int, int, GenericCall | bytes | None]]:
        cdef vector[CEvent] events
        cdef CEvent event
        cdef list result = []
        with nogil:
            self._frontend.drain(events)
        try:
            for event in events:
                if event.kind == 0:
                    result.append((event.kind, event.of.id(), _wrap(event.of, self)))
                elif event.kind == 1:
                    result.append((event.kind, event.of.id(), _message(event.of)))
                else:
                    result.append((event.kind, event.of.id(), None))
        finally:
            for event in events:
                event.of.release()
        return result


_left_behind: list[object] = []


cdef class EchoInference:
    """Answers each request with its own bytes: a stand-in for tests, and to measure a transport alone."""

    cdef CEchoInference *_echo

    def __cinit__(self) -> None:
        self._echo = new CEchoInference()

    def __dealloc__(self) -> None:
        with nogil:
            del self._echo

    @property
    def inference(self) -> object:
        return PyCapsule_New(<void *> <Inference *> self._echo, _CAPSULE, NULL)

    def behave(self, *, double delay_s = 0.0, int code = 0, str text not None = "") -> None:
        cdef Status status
        status.code = <Code> code
        status.text = text.encode()
        with nogil:
            self._echo.behave(delay_s, status)

    def release_held(self, *, c_bool last_first = False) -> None:
        with nogil:
            self._echo.release_held(last_first)

    @property
    def submitted(self) -> int:
        return self._echo.counts().submitted

    @property
    def cancelled(self) -> int:
        return self._echo.counts().cancelled

    @property
    def waiting(self) -> int:
        return self._echo.counts().waiting
