"""There is no shared memory, and who tidies up before using it is not turned away."""

import asyncio

import pytest

from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.errors import InvalidRequestError, UnsupportedError
from trimtab.server.services.handlers import CallContext, UnaryHandler
from trimtab.server.services.shared_memory import SharedMemoryService


def call(method: str, request: bytes) -> bytes:
    handler = SharedMemoryService().handlers()[f"/inference.GRPCInferenceService/{method}"]
    assert isinstance(handler, UnaryHandler)

    async def handled() -> bytes:
        assert isinstance(handler, UnaryHandler)
        return await handler.handle(request, CallContext())

    return asyncio.run(handled())


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_there_are_no_regions_to_show_or_to_remove(kind: str) -> None:
    for name in ("", "mine"):
        request = pb.SystemSharedMemoryStatusRequest(name=name).SerializeToString()
        assert call(f"{kind}SharedMemoryStatus", request) == b""
        assert call(f"{kind}SharedMemoryUnregister", request) == b""


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_none_can_be_made(kind: str) -> None:
    request = pb.SystemSharedMemoryRegisterRequest(name="mine", key="/k", byte_size=64)
    with pytest.raises(UnsupportedError, match=r"^shared memory is not supported$"):
        call(f"{kind}SharedMemoryRegister", request.SerializeToString())


def test_a_message_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"not a inference\.SystemSharedMemoryStatus"):
        call("SystemSharedMemoryStatus", b"\xff")
