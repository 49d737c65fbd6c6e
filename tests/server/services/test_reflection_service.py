"""Reflection, as grpcurl uses it: list, describe, and then call what was described."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.live import conversation, unary
from trimtab.proto import (
    admin_pb2,
    feedback_pb2,
    health_pb2,
    open_inference_pb2,
)
from trimtab.proto import reflection_pb2 as pb
from trimtab.server.services.handlers import CallContext, UnaryHandler
from trimtab.server.services.portable_frontend import PortableFrontend
from trimtab.server.services.reflection_service import SERVICES, ReflectionService

LIVE = "/inference.GRPCInferenceService/ServerLive"
Ask = Callable[..., Coroutine[Any, Any, pb.ServerReflectionResponse]]


async def live(request: bytes, context: CallContext) -> bytes:
    return open_inference_pb2.ServerLiveResponse(live=True).SerializeToString()


class Stream:
    """One conversation with the service."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        self._call = conversation(channel, f"/{service}/ServerReflectionInfo")

    async def ask(self, **fields: Any) -> pb.ServerReflectionResponse:
        await self._call.write(pb.ServerReflectionRequest(**fields).SerializeToString())
        return pb.ServerReflectionResponse.FromString(await self._call.read())

    async def close(self) -> None:
        await self._call.done_writing()
        assert not await self._call.read()  # the end, which is a value of its own
        assert await self._call.code() is grpc.StatusCode.OK


def run(
    body: Callable[[grpc.aio.Channel, Stream], Coroutine[Any, Any, None]],
    service: str = SERVICES[0],
) -> None:
    async def main() -> None:
        handlers = {LIVE: UnaryHandler(live), "/trimtab.v1.Admin/Train": UnaryHandler(live)}
        frontend = PortableFrontend(
            "127.0.0.1:0",
            {**handlers, **ReflectionService(handlers).handlers()},
            max_message_bytes=1 << 20,
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = Stream(channel, service)
            await body(channel, stream)
            await stream.close()
        await frontend.stop(1.0)

    asyncio.run(main())


def files_of(response: pb.ServerReflectionResponse) -> list[descriptor_pb2.FileDescriptorProto]:
    assert response.HasField("file_descriptor_response"), response
    return [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in response.file_descriptor_response.file_descriptor_proto
    ]


def test_both_names_of_the_service_are_served() -> None:
    assert SERVICES == (
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    )


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_listed_in_either_version(service: str) -> None:
    async def body(channel: grpc.aio.Channel, stream: Stream) -> None:
        reply = await stream.ask(host="here", list_services="*")
        assert [each.name for each in reply.list_services_response.service] == [
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "inference.GRPCInferenceService",
            "trimtab.v1.Admin",
        ]
        assert reply.valid_host == "here"
        assert reply.original_request == pb.ServerReflectionRequest(host="here", list_services="*")

    run(body, service)


def test_a_client_without_proto_files_calls_what_was_described() -> None:
    async def body(channel: grpc.aio.Channel, stream: Stream) -> None:
        reply = await stream.ask(file_containing_symbol="inference.GRPCInferenceService")
        pool = descriptor_pool.DescriptorPool()
        for file in reversed(files_of(reply)):  # what is imported comes last
            pool.Add(file)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        method = service.methods_by_name["ServerLive"]
        request = message_factory.GetMessageClass(method.input_type)()
        raw = await unary(channel, f"/{service.full_name}/{method.name}")(
            request.SerializeToString()
        )
        answer: Any = message_factory.GetMessageClass(method.output_type).FromString(raw)
        assert answer.live

    run(body)


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("inference.GRPCInferenceService", open_inference_pb2),
        ("inference.GRPCInferenceService.ModelInfer", open_inference_pb2),
        ("inference.ModelInferRequest.InferInputTensor", open_inference_pb2),
        ("grpc.health.v1.Health", health_pb2),
        ("trimtab.v1.Admin", admin_pb2),
        ("trimtab.v1.Feedback.SubmitLabels", feedback_pb2),
        (SERVICES[0], pb),
    ],
)
def test_a_symbol_leads_to_its_file_and_a_file_name_too(symbol: str, file: Any) -> None:
    async def body(channel: grpc.aio.Channel, stream: Stream) -> None:
        found = files_of(await stream.ask(file_containing_symbol=symbol))
        assert found[0].name == file.DESCRIPTOR.name
        names = {each.name for each in found}
        assert all(set(each.dependency) <= names for each in found)
        assert files_of(await stream.ask(file_by_filename=found[0].name)) == found

    run(body)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"file_containing_symbol": "inference.Nope"}, "inference.Nope"),
        ({"file_containing_symbol": "inference.GRPCInferenceService.Nope"}, "Nope"),
        ({"file_containing_symbol": ""}, ""),
        ({"file_by_filename": "nope.proto"}, "nope.proto"),
        ({"all_extension_numbers_of_type": "inference.Nope"}, "inference.Nope"),
        (
            {
                "file_containing_extension": pb.ExtensionRequest(
                    containing_type="inference.ModelInferRequest", extension_number=1
                )
            },
            "inference.ModelInferRequest",
        ),
    ],
)
def test_what_is_not_there_is_an_answer_and_the_stream_goes_on(
    fields: dict[str, Any], wanted: str
) -> None:
    async def body(channel: grpc.aio.Channel, stream: Stream) -> None:
        error = (await stream.ask(**fields)).error_response
        assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert error.error_message.startswith("not found") and wanted in error.error_message
        assert (await stream.ask(list_services="")).HasField("list_services_response")

    run(body)


def test_an_empty_request_and_a_message_without_extensions() -> None:
    async def body(channel: grpc.aio.Channel, stream: Stream) -> None:
        error = (await stream.ask()).error_response
        assert error.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        name = "inference.ModelInferRequest"
        reply = await stream.ask(all_extension_numbers_of_type=name)
        assert reply.all_extension_numbers_response == pb.ExtensionNumberResponse(
            base_type_name=name
        )

    run(body)


def test_a_message_that_is_none_ends_the_stream() -> None:
    async def main() -> None:
        frontend = PortableFrontend(
            "127.0.0.1:0", ReflectionService([]).handlers(), max_message_bytes=4096
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = conversation(channel, f"/{SERVICES[0]}/ServerReflectionInfo")
            await call.write(b"\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await frontend.stop(1.0)

    asyncio.run(main())
