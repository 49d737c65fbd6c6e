"""`inference.GRPCInferenceService` beside inference itself: liveness, readiness, metadata, index."""

from collections.abc import Mapping
from typing import Protocol

from google.protobuf.message import DecodeError, Message

from trimtab.proto import open_inference_pb2 as pb

from ..errors import (
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from ..inference.executor import Executor
from ..inference.onnx_session import PLATFORM
from ..lifecycle.version_plan import ModelStatus, VersionState
from .handlers import CallContext, Handler, UnaryHandler
from .protocol import SERVICE

EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)


class Models(Protocol):
    """What the service needs of the lifecycle's ModelManager."""

    def resolve(self, model: str, version: str) -> Executor: ...

    def ready(self) -> bool: ...

    def status(self, model: str) -> ModelStatus | None: ...


class InferenceService:
    """The handlers of the service; all run on one event loop."""

    def __init__(self, models: Models, *, server_name: str, server_version: str) -> None:
        self._models = models
        self._server_name = server_name
        self._server_version = server_version
        self._accepting = True

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
            }.items()
        }

    def ready(self) -> bool:
        """Whether predictions are answered, by every model that should."""
        return self._accepting and self._models.ready()

    def stop_accepting(self) -> None:
        """From now on nothing is ready."""
        self._accepting = False

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
            name=self._server_name, version=self._server_version, extensions=EXTENSIONS
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


def _parse(message: Message, request: bytes) -> None:
    try:
        message.ParseFromString(request)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a {message.DESCRIPTOR.full_name}: {error}"
        ) from error
