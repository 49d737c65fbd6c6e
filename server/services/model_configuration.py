"""ModelConfig of the Open Inference Protocol: a model as Triton would describe it.

What the model's config.pbtxt says is repeated, and whatever it leaves open is filled in from the
loaded version and the server's settings. Where both speak, the loaded version is right: the file was
checked against it. `dims` leave the batch dimension out where max_batch_size is more than 0, and
ModelMetadata's shapes have it as -1.
"""

from collections.abc import Mapping
from typing import Protocol

from trimtab.proto import model_config_pb2
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.manifest import TensorSpec

from ..config import BatchingConfig
from ..inference.onnx_session import PLATFORM
from ..inference.servable import MODEL_FILE, Servable
from ..lifecycle.model_config import BACKEND, data_type
from ..lifecycle.version_plan import ModelStatus, VersionState
from .handlers import CallContext, Handler
from .protocol import SERVICE, parse, unary


class Running(Protocol):
    """What the service needs of an Executor."""

    servable: Servable


class Models(Protocol):
    """What the service needs of the ModelManager."""

    def resolve(self, model: str, version: str) -> Running: ...

    def status(self, model: str) -> ModelStatus | None: ...


class ModelConfigurationService:
    """The handler of the method."""

    def __init__(self, models: Models, batching: BatchingConfig) -> None:
        self._models = models
        self._batching = batching

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return unary(SERVICE, {"ModelConfig": self._model_config})

    async def _model_config(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.ModelConfigRequest, request)
        servable = self._models.resolve(asked.name, asked.version).servable
        config = config_of(servable, self._batching)
        status = self._models.status(asked.name)
        if status is not None and status.managed:
            ready = [each.version for each in status.versions if each.state is VersionState.READY]
            config.version_policy.specific.versions[:] = ready
        return pb.ModelConfigResponse(config=config).SerializeToString()


def config_of(servable: Servable, server: BatchingConfig) -> model_config_pb2.ModelConfig:
    """The configuration of a loaded version; `server` is the batching that it was loaded with."""
    settings = servable.settings
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(settings.written)
    config.name = servable.model
    config.platform = PLATFORM
    config.backend = BACKEND
    config.default_model_filename = MODEL_FILE
    if settings.max_batch_size is not None:
        config.max_batch_size = settings.max_batch_size
    else:
        config.max_batch_size = server.max_request_rows if servable.batchable else 0
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    batched = config.max_batch_size > 0
    inputs = {tensor.name: tensor for tensor in settings.written.input}
    del config.input[:]
    for spec in servable.signature.inputs:
        made = config.input.add()
        if spec.name in inputs:
            made.CopyFrom(inputs[spec.name])
        _describe(made, spec, batched)
    outputs = {tensor.name: tensor for tensor in settings.written.output}
    del config.output[:]
    for spec in servable.signature.outputs:
        given = config.output.add()
        if spec.name in outputs:
            given.CopyFrom(outputs[spec.name])
        _describe(given, spec, batched)
    if servable.batchable:
        linger_us = round(settings.batching(server).linger_ms * 1000)
        config.dynamic_batching.max_queue_delay_microseconds = linger_us
    else:
        config.ClearField("dynamic_batching")
    return config


def _describe(
    tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput,
    spec: TensorSpec,
    batched: bool,
) -> None:
    tensor.name = spec.name
    tensor.data_type = data_type(spec.datatype)
    tensor.dims[:] = spec.shape[1:] if batched else spec.shape
    tensor.ClearField("reshape")  # tensors travel in the model's own shape
