"""The gRPC transport on libgrpc++, where it was built: predictions never meet the interpreter.

ModelInfer and ModelStreamInfer go from the wire to the data plane and back on gRPC's own threads.
Every other method is answered here, by the handlers that serve the portable frontend too: its calls
come as events, which the event loop fetches, all that there are, whenever a descriptor is readable.
Each call gets a task; one whose client left, or whose deadline passed, is cancelled. When the server
stops, a stream of requests ends there and then for its handler, which answers what it has; the client
is told why.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import grpc

from trimtab._native import grpc_frontend

from ..errors import UnavailableError
from ..inference.executor import SHUTTING_DOWN
from .handlers import BidiHandler, CallContext, Handler, StreamHandler, UnaryHandler
from .listen_address import check_free
from .refusals import refusal
from .transport_options import TransportOptions

_logger = logging.getLogger(__name__)

# The data plane answers these, not a handler.
INFERENCE_METHODS = frozenset(
    f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")
)

# How long cancelled calls may take to end, beyond the grace; then they are left behind.
_PATIENCE_S = 10.0

_OK = 0
_CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]


class DataPlane(Protocol):
    """What answers predictions; kept alive for as long as calls may use it."""

    @property
    def inference(self) -> object:
        """A PyCapsule named trimtab.Inference."""


class NativeFrontend:
    """A gRPC server on one address. `start` and `stop` in the same event loop."""

    def __init__(
        self,
        address: str,
        handlers: Mapping[str, Handler],
        *,
        options: TransportOptions | None = None,
        max_message_bytes: int | None = None,
        inference: DataPlane | None = None,
    ) -> None:
        """Without `inference` every method is served by its handler; with it, the two of
        INFERENCE_METHODS are not. `max_message_bytes` is short for options with nothing else."""
        self._address = address
        self._options = options or TransportOptions.of_size(max_message_bytes)
        self._inference = inference
        self._handlers = {
            name: handler
            for name, handler in handlers.items()
            if inference is None or name not in INFERENCE_METHODS
        }
        self._server: grpc_frontend.Frontend | None = None
        self._conversations: dict[int, _Conversation] = {}
        self._stopping = False

    def __repr__(self) -> str:
        return f"<NativeFrontend {self._address}{' stopping' * self._stopping}>"

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError when the address or a file cannot be had."""
        check_free(self._address)
        options = self._options
        certificates = options.certificates()
        server = grpc_frontend.Frontend(
            self._address,
            {name: _KINDS[type(handler)] for name, handler in self._handlers.items()},
            self._inference,
            max_message_bytes=options.max_message_bytes,
            compression=options.compression,
            tls_cert=certificates.cert if certificates else b"",
            tls_key=certificates.key if certificates else b"",
            tls_client_ca=certificates.client_ca if certificates else b"",
            keepalive_s=options.keepalive_s,
            keepalive_timeout_s=options.keepalive_timeout_s,
            max_concurrent_streams=options.max_concurrent_streams,
        )
        loop = asyncio.get_running_loop()
        self._server = server
        loop.add_reader(server.fileno(), self._drain)
        port = await asyncio.to_thread(server.start)
        if port == 0:
            loop.remove_reader(server.fileno())
            self._server = None
            raise OSError(f"cannot listen on {self._address}")
        return port

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuses new calls, lets those under way finish for `grace_s`, cancels the rest.

        Called once more meanwhile, it may shorten the grace.
        """
        server = self._server
        if server is None:
            return
        self._stopping = True
        server.refuse()
        for conversation in self._conversations.values():
            conversation.cut()
        if not await asyncio.to_thread(server.stop, grace_s or 0.0, _PATIENCE_S):
            _logger.error("%s: %d calls did not end and are left", self, server.open_calls)
        if self._server is None:
            return  # the other caller was first
        self._server = None
        asyncio.get_running_loop().remove_reader(server.fileno())
        self._drain_from(server)
        tasks = [each.task for each in self._conversations.values()]
        if tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_PATIENCE_S)

    def _drain(self) -> None:
        if self._server is not None:
            self._drain_from(self._server)

    def _drain_from(self, server: grpc_frontend.Frontend) -> None:
        for kind, number, what in server.drain():
            if kind == grpc_frontend.CALL:
                assert isinstance(what, grpc_frontend.GenericCall)
                self._begin(number, what)
                continue
            conversation = self._conversations.get(number)
            if conversation is None:
                continue
            if kind == grpc_frontend.GONE:
                conversation.task.cancel()
            elif kind == grpc_frontend.DONE:
                conversation.done = True
                if conversation.task.done():
                    del self._conversations[number]
            elif kind in (grpc_frontend.WRITTEN, grpc_frontend.BROKEN):
                conversation.has_written(kind == grpc_frontend.WRITTEN)
            else:
                assert not isinstance(what, grpc_frontend.GenericCall)
                conversation.has_read(what)

    def _begin(self, number: int, call: grpc_frontend.GenericCall) -> None:
        conversation = _Conversation(call)
        self._conversations[number] = conversation
        handler = self._handlers[call.method]
        if self._stopping:
            conversation.cut()
        task = asyncio.get_running_loop().create_task(_serve(handler, conversation))
        conversation.task = task
        task.add_done_callback(lambda task: self._end(number, conversation, task))

    def _end(self, number: int, conversation: "_Conversation", task: "asyncio.Task[None]") -> None:
        # Whatever became of the task, and be it cancelled before it ran: the client gets an end.
        conversation.call.finish(_CANCELLED, "the call was cancelled")
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("%s failed", conversation.call.method, exc_info=error)
        if conversation.done:
            self._conversations.pop(number, None)


class _Conversation:
    """One call: what it waits for, and its task. It is the iterator of a bidi handler's requests."""

    __slots__ = ("_cut", "_ended", "_reading", "_writing", "call", "done", "task")
    task: "asyncio.Task[None]"

    def __init__(self, call: grpc_frontend.GenericCall) -> None:
        self.call = call
        self.done = False  # gRPC has finished with it
        self._reading: asyncio.Future[bytes | None] | None = None
        self._writing: asyncio.Future[bool] | None = None
        self._ended = False  # the client has sent all that it wanted
        self._cut = False

    @property
    def was_cut(self) -> bool:
        """The server stopped before the client had sent all that it wanted."""
        return self._cut and not self._ended

    def cut(self) -> None:
        """The requests end here for the handler, whatever the client still sends."""
        self._cut = True
        self._resolve_read(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._cut or self._ended:
            raise StopAsyncIteration
        if self._reading is None:  # else the read of an iteration that was broken off
            self._reading = asyncio.get_running_loop().create_future()
            self.call.read()
        message = await asyncio.shield(self._reading)
        self._reading = None
        if message is None:
            raise StopAsyncIteration
        return message

    def has_read(self, message: bytes | None) -> None:
        if not self._cut:
            self._ended = message is None
        self._resolve_read(message)

    def _resolve_read(self, message: bytes | None) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(message)

    async def write(self, message: bytes) -> bool:
        """Returns once it has left, so that a slow client holds one message. False: it will not."""
        self._writing = asyncio.get_running_loop().create_future()
        return self.call.write(message) and await self._writing

    def has_written(self, arrived: bool) -> None:
        if self._writing is not None and not self._writing.done():
            self._writing.set_result(arrived)


async def _serve(handler: Handler, conversation: _Conversation) -> None:
    call = conversation.call
    context = CallContext(deadline=call.deadline, peer=call.peer)
    try:
        if isinstance(handler, UnaryHandler):
            call.reply(await handler.handle(call.take_message(), context))
            return
        if isinstance(handler, StreamHandler):
            replies = handler.handle(call.take_message(), context)
        else:
            replies = handler.handle(conversation, context)
        await _send(replies, conversation)
        if isinstance(handler, BidiHandler) and conversation.was_cut:
            raise UnavailableError(SHUTTING_DOWN)
        call.finish(_OK, "")
    except Exception as error:  # noqa: BLE001  an edge: the client is told
        code, text = refusal(call.method, error)
        call.finish(code.value[0], text)


async def _send(replies: AsyncIterator[bytes], conversation: _Conversation) -> None:
    try:
        # At once: a client that waits for it could not know otherwise from when on it misses nothing.
        conversation.call.send_initial_metadata()
        async for reply in replies:
            if not await conversation.write(reply):
                return
    finally:
        close = getattr(replies, "aclose", None)
        if close is not None:
            await close()


_KINDS: Mapping[type, int] = {
    UnaryHandler: grpc_frontend.UNARY,
    StreamHandler: grpc_frontend.STREAM,
    BidiHandler: grpc_frontend.BIDI,
}
