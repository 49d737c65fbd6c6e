"""ModelInfer and ModelStreamInfer for frontends that live in an event loop.

A request's bytes go into the data plane as they came, and the reply's bytes come back: decoding,
queueing and encoding are C++. What finishes is announced through a file descriptor that the loop
watches, once for all that finished meanwhile, so that the loop wakes up per batch and not per call.

The replies of a stream leave in the order of its requests, an error among them does not end it, and
a client that does not read its replies has at most `_UNDER_WAY` requests under way: beyond that its
stream is not read.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping

from google.protobuf.message import DecodeError

from trimtab._native.data_plane import DataPlane, LoopInference
from trimtab.proto import open_inference_pb2 as pb

from ..errors import RefusedError
from .handlers import BidiHandler, CallContext, Handler, UnaryHandler

_METHOD = "/inference.GRPCInferenceService/"
_UNDER_WAY = 64

# The parameter that says so, as a field of a ModelInferResponse, of which a message has it appended:
# clients of a stream look for it, since a model of Triton's may answer a request more than once.
_FINAL = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01"


class ModelInfer:
    """The handlers of both methods; one event loop at a time."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: LoopInference | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {
            f"{_METHOD}ModelInfer": UnaryHandler(self.infer),
            f"{_METHOD}ModelStreamInfer": BidiHandler(self.stream),
        }

    async def infer(self, request: bytes, context: CallContext) -> bytes:
        """Raises RefusedError."""
        calls = self._calls_of_this_loop()
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        deadline = math.inf if context.deadline is None else context.deadline
        ticket = calls.submit(request, deadline, outcome)
        try:
            return await outcome
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    async def stream(
        self, requests: AsyncIterator[bytes], context: CallContext
    ) -> AsyncIterator[bytes]:
        """One ModelStreamInferResponse per request."""
        under_way: asyncio.Queue[tuple[bytes, asyncio.Task[bytes]] | None] = asyncio.Queue(
            _UNDER_WAY
        )
        tasks: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            async for request in requests:
                task = asyncio.ensure_future(self.infer(request, context))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await under_way.put((request, task))
            await under_way.put(None)

        reader = asyncio.ensure_future(read())
        try:
            while True:
                item = await under_way.get()
                if item is None:
                    break
                request, task = item
                try:
                    yield _streamed(await task)
                except RefusedError as error:
                    yield _stream_error(request, error)
            await reader
        finally:
            reader.cancel()
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def _calls_of_this_loop(self) -> LoopInference:
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._calls is None:
            self._calls = LoopInference(self._plane)
            self._loop = loop
            loop.add_reader(self._calls.fileno(), _drain, self._calls)
        return self._calls


def _drain(calls: LoopInference) -> None:
    for outcome, code, body in calls.drain():
        if outcome.done():  # cancelled while it was computed
            continue
        if isinstance(body, bytes):
            outcome.set_result(body)
        else:
            outcome.set_exception(RefusedError(code, body))


def _streamed(reply: bytes) -> bytes:
    """The reply as field 2 of a ModelStreamInferResponse."""
    size = len(reply) + len(_FINAL)
    lead = bytearray(b"\x12")
    while size >= 128:
        lead.append(size & 127 | 128)
        size >>= 7
    lead.append(size)
    return bytes(lead) + reply + _FINAL


def _stream_error(request: bytes, error: RefusedError) -> bytes:
    """The client matches replies by id, so an error carries its request's."""
    asked = pb.ModelInferRequest()
    with contextlib.suppress(DecodeError):  # of a torn message that is kept which came before
        asked.MergeFromString(request)
    return pb.ModelStreamInferResponse(
        error_message=str(error), infer_response=pb.ModelInferResponse(id=asked.id)
    ).SerializeToString()
