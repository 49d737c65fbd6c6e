"""`inference.GRPCInferenceService`: the Open Inference Protocol, version 2.

A ModelInfer in steps: decode the message, look up the version, check the request against it, queue
it, wait, encode the reply. All of that runs on the event loop; the model runs on the version's own
thread, which brings the outcomes of a whole batch back with one wake-up of the loop.

A version may be retired between the look-up and the queue. Then the queue says so and the request
is looked up again, checked against the version that took over, and answered by that: a swap fails
nobody.
"""

import asyncio
import itertools
import secrets
import time
import weakref
from collections.abc import Mapping
from typing import Protocol

from google.protobuf.message import DecodeError, Message

from trimtab.proto import open_inference_pb2 as pb

from ..errors import (
    DeadlineExpiredError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from ..inference.executor import SHUTTING_DOWN, Executor
from ..inference.onnx_session import PLATFORM
from ..inference.request_queue import Call, Outcome, QueueClosedError
from ..inference.wire import ReplyEncoder, decode_request
from ..lifecycle.version_plan import ModelStatus, VersionState
from .handlers import CallContext, Handler, UnaryHandler
from .protocol import SERVICE

SERVER_NAME = "trimtab"
EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
_LOOKUPS = 100  # swaps that one request may meet; each takes a load, so never


class Models(Protocol):
    """What the service needs of the lifecycle's ModelManager."""

    def resolve(self, model: str, version: str) -> Executor: ...

    def ready(self) -> bool: ...

    def status(self, model: str) -> ModelStatus | None: ...


class _AsyncCall(Call):
    """A call that an asyncio task waits for."""

    __slots__ = ("future",)
    future: "asyncio.Future[Outcome]"

    def finish(self, outcome: Outcome) -> None:
        if not self.future.done():  # cancelled while it was computed
            self.future.set_result(outcome)


class _LoopSink:
    """Brings outcomes to one event loop, with one wake-up however many they are."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __call__(self, outcomes: list[tuple[Call, Outcome]]) -> None:
        try:
            self.loop.call_soon_threadsafe(_finish, outcomes)
        except RuntimeError:
            if not self.loop.is_closed():
                raise


def _finish(outcomes: list[tuple[Call, Outcome]]) -> None:
    for call, outcome in outcomes:
        call.finish(outcome)


class InferenceService:
    """The handlers of the service; all run on one event loop."""

    def __init__(self, models: Models, *, max_request_rows: int, server_version: str) -> None:
        self._models = models
        self._max_request_rows = max_request_rows
        self._server_version = server_version
        self._accepting = True
        self._sink: _LoopSink | None = None
        self._encoders: weakref.WeakKeyDictionary[Executor, ReplyEncoder] = (
            weakref.WeakKeyDictionary()
        )
        # Ids are unique across restarts: labels that come tomorrow name predictions of today.
        self._id_prefix = secrets.token_hex(8)
        self._id_counter = itertools.count(1)

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {
            f"/{SERVICE}/{name}": UnaryHandler(handle)
            for name, handle in {
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": self._server_metadata,
                "ModelMetadata": self._model_metadata,
                "ModelInfer": self._model_infer,
            }.items()
        }

    def ready(self) -> bool:
        """Whether predictions are answered, by every model that should."""
        return self._accepting and self._models.ready()

    def stop_accepting(self) -> None:
        """From now on predictions are refused; those under way are finished."""
        self._accepting = False

    async def _model_infer(self, request: bytes, context: CallContext) -> bytes:
        received_ms = time.time_ns() // 1_000_000
        message = pb.ModelInferRequest()
        _parse(message, request)
        for _ in range(_LOOKUPS):
            if not self._accepting:
                raise UnavailableError(SHUTTING_DOWN)
            executor = self._models.resolve(message.model_name, message.model_version)
            decoded = decode_request(message, executor.servable, self._max_request_rows)
            timeout_us = executor.servable.settings.timeout_us(decoded.timeout_us)
            deadline, expiry = _limit(context.deadline, timeout_us)
            call = _AsyncCall(
                id=message.id or f"{self._id_prefix}-{next(self._id_counter):x}",
                inputs=decoded.inputs,
                rows=decoded.rows,
                group=decoded.group,
                outputs=decoded.outputs,
                received_ms=received_ms,
                event_time_ms=decoded.event_time_ms,
                deadline=deadline,
                expiry=expiry,
                sink=self._sink_of_this_loop(),
            )
            call.future = asyncio.get_running_loop().create_future()
            try:
                executor.submit(call)
            except QueueClosedError:
                continue
            try:
                outcome = await call.future
            except asyncio.CancelledError:
                executor.cancel(call)
                raise
            if isinstance(outcome, Exception):
                raise outcome
            return self._encoder(executor).encode(call.id, outcome)
        raise UnavailableError(f"model '{message.model_name}' is being replaced over and over")

    def _sink_of_this_loop(self) -> _LoopSink:
        loop = asyncio.get_running_loop()
        if self._sink is None or self._sink.loop is not loop:
            self._sink = _LoopSink(loop)
        return self._sink

    def _encoder(self, executor: Executor) -> ReplyEncoder:
        encoder = self._encoders.get(executor)
        if encoder is None:
            encoder = self._encoders[executor] = ReplyEncoder(executor.servable)
        return encoder

    async def _server_live(self, request: bytes, context: CallContext) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def _server_ready(self, request: bytes, context: CallContext) -> bytes:
        return pb.ServerReadyResponse(ready=self.ready()).SerializeToString()

    async def _model_ready(self, request: bytes, context: CallContext) -> bytes:
        message = pb.ModelReadyRequest()
        _parse(message, request)
        try:
            self._models.resolve(message.name, message.version)
            ready = self._accepting
        except (NotFoundError, UnavailableError):
            ready = False
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def _server_metadata(self, request: bytes, context: CallContext) -> bytes:
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=self._server_version, extensions=EXTENSIONS
        ).SerializeToString()

    async def _model_metadata(self, request: bytes, context: CallContext) -> bytes:
        message = pb.ModelMetadataRequest()
        _parse(message, request)
        servable = self._models.resolve(message.name, message.version).servable
        status = self._models.status(message.name)
        ready = (
            [each.version for each in status.versions if each.state is VersionState.READY]
            if status is not None
            else [servable.version]
        )
        reply = pb.ModelMetadataResponse(
            name=servable.model,
            versions=[str(servable.version)] if message.version else list(map(str, ready)),
            platform=PLATFORM,
        )
        for field, specs in (
            (reply.inputs, servable.signature.inputs),
            (reply.outputs, servable.signature.outputs),
        ):
            for spec in specs:
                field.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return reply.SerializeToString()


def _limit(deadline: float | None, timeout_us: int) -> tuple[float | None, Exception | None]:
    """Until when a request may wait, and what its caller is told then: the gRPC deadline or the
    parameter `timeout`, whichever comes first."""
    if timeout_us:
        timeout = time.monotonic() + timeout_us / 1e6
        if deadline is None or timeout < deadline:
            return timeout, UnavailableError("Request timeout expired")
    if deadline is None:
        return None, None
    return deadline, DeadlineExpiredError("the deadline passed before the request was run")


def _parse(message: Message, request: bytes) -> None:
    try:
        message.ParseFromString(request)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a {message.DESCRIPTOR.full_name}: {error}"
        ) from error
