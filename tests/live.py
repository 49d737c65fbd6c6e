"""A served repository on a free port of 127.0.0.1, and a client that speaks raw messages."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.server.config import BatchingConfig, ListenConfig, ServerConfig
from trimtab.server.inference.observation import ObservedBatch
from trimtab.server.lifecycle.model_control import ModelControl
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.services.frontends import inference_frontend
from trimtab.server.services.inference_service import InferenceService
from trimtab.server.services.model_configuration import ModelConfigurationService
from trimtab.server.services.model_infer import ModelInfer
from trimtab.server.services.model_repository_service import ModelRepositoryService
from trimtab.server.services.model_statistics import ModelStatisticsService
from trimtab.server.services.portable_frontend import PortableFrontend
from trimtab.server.services.server_settings import ServerSettingsService
from trimtab.server.services.shared_memory import SharedMemoryService
from trimtab.server.services.transport_options import TransportOptions

if TYPE_CHECKING:
    from trimtab.server.services.native_frontend import NativeFrontend

_DATATYPES = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.bool_): "BOOL",
}


def unary(channel: grpc.aio.Channel, method: str) -> "grpc.aio.UnaryUnaryMultiCallable[Any, Any]":
    """Raw bytes in, raw bytes out."""
    return channel.unary_unary(method, None, None)


def stream(channel: grpc.aio.Channel, method: str) -> "grpc.aio.UnaryStreamMultiCallable[Any, Any]":
    return channel.unary_stream(method, None, None)


def conversation(channel: grpc.aio.Channel, method: str, **options: Any) -> Any:
    """An open stream of raw bytes both ways; the stubs want the requests with the call."""
    call: Any = channel.stream_stream(method, None, None)
    return call(**options)


class Client:
    """One channel; every method sends one message and returns the reply."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def call(
        self, method: str, message: Message, *, timeout: float | None = 30.0
    ) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        stub = unary(self.channel, f"/inference.GRPCInferenceService/{method}")
        return stub(message.SerializeToString(), timeout=timeout)

    async def infer(
        self, request: pb.ModelInferRequest, *, timeout: float | None = 30.0
    ) -> pb.ModelInferResponse:
        return pb.ModelInferResponse.FromString(
            await self.call("ModelInfer", request, timeout=timeout)
        )

    async def refusal(self, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
        """The status of a ModelInfer that fails."""
        try:
            reply = await self.infer(request)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"was answered: {reply}")


def infer_request(
    model: str,
    inputs: Mapping[str, NDArray[Any] | Sequence[bytes]],
    *,
    outputs: Sequence[str] = (),
    version: str = "",
    id: str = "",
) -> pb.ModelInferRequest:
    """A request with raw contents; bytes become a BYTES tensor [n, 1]."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            datatype, shape, raw = _DATATYPES[value.dtype], value.shape, value.tobytes()
        else:
            datatype, shape = "BYTES", (len(value), 1)
            raw = b"".join(len(item).to_bytes(4, "little") + item for item in value)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    for output in outputs:
        request.outputs.add(name=output)
    return request


@dataclass
class LiveServer:
    port: int
    manager: ModelManager
    service: InferenceService
    frontend: "NativeFrontend | PortableFrontend"
    client: Client
    observed: list[ObservedBatch]
    loop: asyncio.AbstractEventLoop


@contextlib.asynccontextmanager
async def live_server(
    models_dir: Path,
    *,
    batching: BatchingConfig | None = None,
    max_message_bytes: int = 1 << 20,
    model_control: bool = False,
    frontend: str = "portable",
) -> AsyncIterator[LiveServer]:
    batching = batching or BatchingConfig()
    observed: list[ObservedBatch] = []
    registry = Registry(models_dir)
    manager = ModelManager(
        registry,
        ServerConfig(models_dir, server=ListenConfig(watch=False), batching=batching),
        tap_factory=lambda servable: observed.append,
    )
    service = InferenceService(manager, server_name="trimtab", server_version="1.2.3")
    repository = ModelRepositoryService(
        manager, ModelControl(registry, manager), allowed=model_control
    )
    settings = ServerSettingsService(
        lambda model: manager.status(model) is not None, logging.getLogger("trimtab.tests.live")
    )
    handlers = {
        **service.handlers(),
        **ModelInfer(manager.plane).handlers(),
        **ModelConfigurationService(manager, batching).handlers(),
        **ModelStatisticsService(manager).handlers(),
        **repository.handlers(),
        **settings.handlers(),
        **SharedMemoryService().handlers(),
    }
    options = TransportOptions(max_message_bytes=max_message_bytes)
    transport, _ = inference_frontend(frontend, "127.0.0.1:0", handlers, options, manager.plane)
    manager.start()
    port = await transport.start()
    client = Client(port)
    try:
        loop = asyncio.get_running_loop()
        yield LiveServer(port, manager, service, transport, client, observed, loop)
    finally:
        await client.channel.close(None)
        service.stop_accepting()
        manager.stop_accepting()
        await transport.stop(5.0)
        manager.stop(5.0)


@contextlib.contextmanager
def served(models_dir: Path, **options: Any) -> Iterator[LiveServer]:
    """The same on a thread of its own, for tests that are no coroutines."""
    started: Future[LiveServer] = Future()
    stop = asyncio.Event()

    async def main() -> None:
        async with live_server(models_dir, **options) as server:
            started.set_result(server)
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  raised where the server was asked for
            if not started.done():
                started.set_exception(error)

    thread = threading.Thread(target=run, name="live server")
    thread.start()
    try:
        server = started.result(30)
        yield server
    finally:
        if started.done() and started.exception() is None:
            server.loop.call_soon_threadsafe(stop.set)
        thread.join(30)
