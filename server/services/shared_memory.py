"""The shared-memory methods of the Open Inference Protocol: there is none, and clients that tidy up
first (perf_analyzer unregisters everything before it registers anything) are answered so."""

from collections.abc import Mapping

from trimtab.proto import open_inference_pb2 as pb

from ..errors import UnsupportedError
from .handlers import CallContext, Handler
from .protocol import SERVICE, parse, unary


class SharedMemoryService:
    """The handlers; they have no state."""

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return unary(
            SERVICE,
            {
                "SystemSharedMemoryStatus": _system_status,
                "SystemSharedMemoryRegister": _register,
                "SystemSharedMemoryUnregister": _system_unregister,
                "CudaSharedMemoryStatus": _cuda_status,
                "CudaSharedMemoryRegister": _register,
                "CudaSharedMemoryUnregister": _cuda_unregister,
            },
        )


async def _system_status(request: bytes, _: CallContext) -> bytes:
    parse(pb.SystemSharedMemoryStatusRequest, request)
    return pb.SystemSharedMemoryStatusResponse().SerializeToString()


async def _cuda_status(request: bytes, _: CallContext) -> bytes:
    parse(pb.CudaSharedMemoryStatusRequest, request)
    return pb.CudaSharedMemoryStatusResponse().SerializeToString()


async def _register(request: bytes, _: CallContext) -> bytes:
    raise UnsupportedError("shared memory is not supported")


async def _system_unregister(request: bytes, _: CallContext) -> bytes:
    parse(pb.SystemSharedMemoryUnregisterRequest, request)
    return pb.SystemSharedMemoryUnregisterResponse().SerializeToString()


async def _cuda_unregister(request: bytes, _: CallContext) -> bytes:
    parse(pb.CudaSharedMemoryUnregisterRequest, request)
    return pb.CudaSharedMemoryUnregisterResponse().SerializeToString()
