"""The gRPC transport that is always there: grpc.aio, in the event loop of whoever starts it.

It serves handlers of raw bytes by full method name. One generic handler looks methods up in a dict:
methods registered with the server cost an extra task per call in grpc.aio, and (de)serialisers would
build messages that the services read themselves. Errors become status codes here and nowhere else.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NoReturn

import grpc
import grpc.aio

from .errors import TrimtabError, status_of
from .handlers import CallContext, Handler, UnaryHandler

_logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[bytes, bytes]


class PortableFrontend:
    """A gRPC server on one address. `start` and `stop` in the same event loop."""

    def __init__(
        self, address: str, handlers: Mapping[str, Handler], *, max_message_bytes: int
    ) -> None:
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._methods = {
            name: grpc.unary_unary_rpc_method_handler(_unary(name, handler.handle))
            if isinstance(handler, UnaryHandler)
            else grpc.unary_stream_rpc_method_handler(_stream(name, handler.handle))
            for name, handler in handlers.items()
        }
        self._server: grpc.aio.Server | None = None

    def __repr__(self) -> str:
        return f"<PortableFrontend {self._address}, {len(self._methods)} methods>"

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError when the address cannot be had."""
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port must fail loudly
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", self._max_message_bytes),
            ]
        )
        server.add_generic_rpc_handlers((_ByName(self._methods),))
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
            await self._server.stop(grace_s)
            self._server = None


class _ByName(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stub only
    def __init__(self, methods: "Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]") -> None:
        self._methods = methods

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return self._methods.get(handler_call_details.method)


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


def _call_context(context: _Context) -> CallContext:
    remaining = context.time_remaining()
    return CallContext(
        deadline=None if remaining is None else time.monotonic() + remaining, peer=context.peer()
    )


async def _abort(name: str, context: _Context, error: Exception) -> NoReturn:
    if not isinstance(error, TrimtabError):
        _logger.error("%s failed", name, exc_info=error)
    await context.abort(status_of(error), str(error) or type(error).__name__)
