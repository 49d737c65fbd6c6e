"""The gRPC transport that is always there: grpc.aio, in the event loop of whoever starts it.

It serves handlers of raw bytes by full method name. One generic handler looks methods up in a dict:
methods registered with the server cost an extra task per call in grpc.aio, and (de)serialisers would
build messages that the services read themselves. Errors become status codes in refusals.py and
nowhere else.

gRPC reads calls ahead of the handlers, and cancels those when its server stops. So every new call is
refused for a moment first, and then the server is stopped: a client is told, and never cut off. A
stream of requests that a client keeps open ends there and then for its handler, which answers what
it has; the client is told why.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from ..errors import UnavailableError
from ..inference.executor import SHUTTING_DOWN
from .handlers import BidiHandler, CallContext, Caller, Handler, StreamHandler, UnaryHandler
from .listen_address import check_free
from .refusals import refusal
from .transport_options import Certificates, TransportOptions

# By level, since a level is matched with what the client accepts, and an algorithm is not: the lowest
# is gzip where the client has it, the highest deflate.
_COMPRESSION_LEVELS = {"gzip": 1, "deflate": 3}

_REFUSING_S = 0.2  # enough for some thousand calls that were read ahead

_Context = grpc.aio.ServicerContext[bytes, bytes]


class PortableFrontend:
    """A gRPC server on one address. `start` and `stop` in the same event loop."""

    def __init__(
        self,
        address: str,
        handlers: Mapping[str, Handler],
        *,
        options: TransportOptions | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        """`max_message_bytes` is short for options with nothing else."""
        self._address = address
        self._options = options or TransportOptions.of_size(max_message_bytes)
        self._streams: set[_Requests] = set()
        self._methods = _Methods(
            {name: self._method(name, handler) for name, handler in handlers.items()}
        )
        self._server: grpc.aio.Server | None = None

    def __repr__(self) -> str:
        return f"<PortableFrontend {self._address}{' stopping' * self._methods.refusing}>"

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError when the address cannot be had."""
        check_free(self._address)
        certificates = self._options.certificates()
        server = grpc.aio.server(options=_channel_options(self._options))
        server.add_generic_rpc_handlers((self._methods,))
        try:
            if certificates is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, _credentials(certificates))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: {error}") from error
        if port == 0:
            raise OSError(f"cannot listen on {self._address}")
        await server.start()
        self._server = server
        return port

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuses new calls, lets those under way finish for `grace_s`, cancels the rest."""
        if self._server is not None:
            self._methods.refusing = True
            for stream in list(self._streams):
                stream.cut()
            pause = min(_REFUSING_S, grace_s or 0.0)
            await asyncio.sleep(pause)
            await self._server.stop(grace_s and grace_s - pause)
            self._server = None

    def _method(self, name: str, handler: Handler) -> "grpc.RpcMethodHandler[bytes, bytes]":
        match handler:
            case UnaryHandler():
                return grpc.unary_unary_rpc_method_handler(_unary(name, handler.handle))
            case StreamHandler():
                return grpc.unary_stream_rpc_method_handler(_stream(name, handler.handle))
            case BidiHandler():
                call = _stream(name, handler.handle, self._streams)
                return grpc.stream_stream_rpc_method_handler(call)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stub only
    def __init__(self, methods: "Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]") -> None:
        self._methods = methods
        self._refusal = grpc.unary_unary_rpc_method_handler(_unary("refusal", _refuse))
        self._stream_refusal = grpc.stream_stream_rpc_method_handler(
            _stream("refusal", _refuse_stream, set())
        )
        self.refusing = False

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        method = self._methods.get(handler_call_details.method)
        if not self.refusing:
            return method
        # A unary handler waits for its request, and a stream's may never come.
        streaming = method is not None and method.request_streaming
        return self._stream_refusal if streaming else self._refusal


class _Requests:
    """The requests of one stream as its handler reads them."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._reader: asyncio.Task[Any] | None = None  # waits for the next one
        self._ended = False  # the client has sent all that it wanted
        self.was_cut = False

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> bytes:
        if self.was_cut:
            raise StopAsyncIteration
        self._reader = reader = asyncio.current_task()
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            self._ended = True
            raise
        except asyncio.CancelledError:
            if reader is None or not self.was_cut or reader.uncancel():
                raise
            raise StopAsyncIteration from None
        finally:
            self._reader = None

    def cut(self) -> None:
        """The stream ends here for its handler, whatever the client still sends."""
        if not self._ended:
            self.was_cut = True
            if self._reader is not None:
                self._reader.cancel()


async def _refuse(request: bytes, context: CallContext) -> bytes:
    raise UnavailableError(SHUTTING_DOWN)


async def _refuse_stream(
    requests: AsyncIterator[bytes], context: CallContext
) -> AsyncIterator[bytes]:
    raise UnavailableError(SHUTTING_DOWN)
    yield b""  # what makes it an iterator


def _unary(
    name: str, handle: Callable[[bytes, CallContext], Awaitable[bytes]]
) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def call(request: bytes, context: _Context) -> bytes:
        try:
            return await handle(request, _call_context(context))
        except Exception as error:  # noqa: BLE001  an edge: the client is told
            failure = error
        # Outside of the handler above, so that the abort is not chained to the error.
        await _abort(name, context, failure)

    return call


def _stream(
    name: str,
    handle: Callable[[Any, CallContext], AsyncIterator[bytes]],
    streams: set[_Requests] | None = None,
) -> Callable[[Any, _Context], AsyncIterator[bytes]]:
    """Many replies, to one request or, where `streams` keeps the open ones, to a stream of them."""

    async def call(request: Any, context: _Context) -> AsyncIterator[bytes]:
        requests = None if streams is None else _Requests(request)
        if streams is not None and requests is not None:
            streams.add(requests)
            request = requests
        replies = handle(request, _call_context(context))
        try:
            # grpc.aio sends it with the first reply otherwise, and a client that waits for it
            # could not know from when on it misses nothing.
            await context.send_initial_metadata(())
            async for reply in replies:
                yield reply
            if requests is None or not requests.was_cut:
                return
            failure: Exception = UnavailableError(SHUTTING_DOWN)
        except Exception as error:  # noqa: BLE001  an edge: the client is told
            failure = error
        finally:
            if streams is not None and requests is not None:
                streams.discard(requests)
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()
        await _abort(name, context, failure)

    return call


def _channel_options(options: TransportOptions) -> list[tuple[str, int]]:
    found = [
        ("grpc.so_reuseport", 0),  # a second server on the port must fail loudly
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1e3)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_s * 1e3)),
    ]
    if options.max_concurrent_streams:
        found.append(("grpc.max_concurrent_streams", options.max_concurrent_streams))
        # It counts calls that have ended for the client, which would be refused the next one.
        found.append(("grpc.http.overload_protection", 0))
    if options.compression != "none":
        level = _COMPRESSION_LEVELS[options.compression]
        found.append(("grpc.default_compression_level", level))
    return found


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(certificates.key, certificates.cert)],
        root_certificates=certificates.client_ca or None,
        require_client_auth=bool(certificates.client_ca),
    )


def _call_context(context: _Context) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(
        deadline=None if remaining is None else time.monotonic() + remaining,
        peer=context.peer(),
        caller=functools.partial(_caller, context),
    )


def _caller(context: _Context) -> Caller:
    told = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    shown = context.auth_context()
    names = [*shown.get("x509_common_name", ()), *shown.get("x509_subject_alternative_name", ())]
    return Caller(
        authorization=str(told[0]) if len(told) == 1 else "",
        certificate_name=names[0].decode(errors="replace") if names else "",
    )


async def _abort(name: str, context: _Context, error: Exception) -> NoReturn:
    await context.abort(*refusal(name, error))
