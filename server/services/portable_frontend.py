"""The gRPC transport that is always there: grpc.aio, in the event loop of whoever starts it.

It serves handlers of raw bytes by full method name. One generic handler looks methods up in a dict:
methods registered with the server cost an extra task per call in grpc.aio, and (de)serialisers would
build messages that the services read themselves. Errors become status codes here and nowhere else.

gRPC reads calls ahead of the handlers, and cancels those when its server stops. So every new call is
refused for a moment first, and then the server is stopped: a client is told, and never cut off.
"""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from errno import EADDRINUSE
from typing import NoReturn

import grpc
import grpc.aio

from ..errors import TrimtabError, UnavailableError, status_of
from ..inference.executor import SHUTTING_DOWN
from .handlers import CallContext, Handler, UnaryHandler

_logger = logging.getLogger(__name__)

# Bytes of an error's text; gRPC makes up to three of one when it percent-encodes, and clients drop a
# reply whose trailing metadata exceed 8 KiB: they would see RESOURCE_EXHAUSTED in place of the status.
_MAX_DETAILS = 1000

_REFUSING_S = 0.2  # enough for some thousand calls that were read ahead

_Context = grpc.aio.ServicerContext[bytes, bytes]


class PortableFrontend:
    """A gRPC server on one address. `start` and `stop` in the same event loop."""

    def __init__(
        self, address: str, handlers: Mapping[str, Handler], *, max_message_bytes: int
    ) -> None:
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._methods = _Methods(
            {
                name: grpc.unary_unary_rpc_method_handler(_unary(name, handler.handle))
                if isinstance(handler, UnaryHandler)
                else grpc.unary_stream_rpc_method_handler(_stream(name, handler.handle))
                for name, handler in handlers.items()
            }
        )
        self._server: grpc.aio.Server | None = None

    def __repr__(self) -> str:
        return f"<PortableFrontend {self._address}{' stopping' * self._methods.refusing}>"

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError when the address cannot be had."""
        _check_free(self._address)
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port must fail loudly
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", self._max_message_bytes),
            ]
        )
        server.add_generic_rpc_handlers((self._methods,))
        try:
            port = server.add_insecure_port(self._address)
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
            pause = min(_REFUSING_S, grace_s or 0.0)
            await asyncio.sleep(pause)
            await self._server.stop(grace_s and grace_s - pause)
            self._server = None


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stub only
    def __init__(self, methods: "Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]") -> None:
        self._methods = methods
        self._refusal = grpc.unary_unary_rpc_method_handler(_unary("refusal", _refuse))
        self.refusing = False

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if self.refusing:
            return self._refusal
        return self._methods.get(handler_call_details.method)


async def _refuse(request: bytes, context: CallContext) -> bytes:
    raise UnavailableError(SHUTTING_DOWN)


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
    name: str, handle: Callable[[bytes, CallContext], AsyncIterator[bytes]]
) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
    async def call(request: bytes, context: _Context) -> AsyncIterator[bytes]:
        replies = handle(request, _call_context(context))
        try:
            # grpc.aio sends it with the first reply otherwise, and a client that waits for it
            # could not know from when on it misses nothing.
            await context.send_initial_metadata(())
            async for reply in replies:
                yield reply
            return
        except Exception as error:  # noqa: BLE001  an edge: the client is told
            failure = error
        finally:
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()
        await _abort(name, context, failure)

    return call


def _check_free(address: str) -> None:
    """Says why an address cannot be had, which gRPC only writes to standard error."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, target in found[:1]:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
    except OSError as error:
        hint = "; choose another port, or 0 for a free one" if error.errno == EADDRINUSE else ""
        raise OSError(f"cannot listen on {address}: {error.strerror}{hint}") from error


def _call_context(context: _Context) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(
        deadline=None if remaining is None else time.monotonic() + remaining, peer=context.peer()
    )


async def _abort(name: str, context: _Context, error: Exception) -> NoReturn:
    if not isinstance(error, TrimtabError):
        _logger.error("%s failed", name, exc_info=error)
    await context.abort(status_of(error), _details(str(error) or type(error).__name__))


def _details(text: str) -> str:
    """The text, cut where it is too long: it may quote what a client sent."""
    encoded = text[:_MAX_DETAILS].encode(errors="replace")[:_MAX_DETAILS]
    shown = encoded.decode(errors="ignore")
    return shown + "…" if len(shown) < len(text) else shown
