"""gRPC server reflection, so that grpcurl and its like need no .proto files.

It lists the services of one port and gives out the files that describe them, from the descriptor
pool of our own messages. A file comes with everything that it imports. What is asked for and not
there is an answer of its own; the stream goes on.
"""

from collections.abc import AsyncIterator, Iterable, Mapping

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from trimtab.proto import reflection_pb2 as pb
from trimtab.proto import reflection_v1alpha_pb2

from .handlers import BidiHandler, CallContext, Handler, services_of
from .protocol import parse

SERVICES = tuple(
    file.services_by_name["ServerReflection"].full_name
    for file in (pb.DESCRIPTOR, reflection_v1alpha_pb2.DESCRIPTOR)
)


class ReflectionService:
    """The handlers of the service in both its versions; their messages are the same."""

    def __init__(self, methods: Iterable[str], pool: DescriptorPool = pb.DESCRIPTOR.pool) -> None:
        """`methods`: the full names of whatever else the port serves."""
        self._services = sorted({*services_of(methods), *SERVICES})
        self._pool = pool

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {f"/{name}/ServerReflectionInfo": BidiHandler(self._info) for name in SERVICES}

    async def _info(self, requests: AsyncIterator[bytes], _: CallContext) -> AsyncIterator[bytes]:
        async for request in requests:
            asked = parse(pb.ServerReflectionRequest, request)
            reply = pb.ServerReflectionResponse(valid_host=asked.host, original_request=asked)
            self._answer(asked, reply)
            yield reply.SerializeToString()

    def _answer(
        self, asked: pb.ServerReflectionRequest, reply: pb.ServerReflectionResponse
    ) -> None:
        kind = asked.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    reply.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                _describe(reply, self._pool.FindFileByName(asked.file_by_filename))
            elif kind == "file_containing_symbol":
                _describe(reply, self._file_of(asked.file_containing_symbol))
            elif kind == "all_extension_numbers_of_type":
                name = asked.all_extension_numbers_of_type
                self._pool.FindMessageTypeByName(name)
                reply.all_extension_numbers_response.base_type_name = name  # proto3 has none
            elif kind == "file_containing_extension":
                raise KeyError
            else:
                _refuse(reply, grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing")
        except KeyError:
            wanted = str(getattr(asked, kind or "")).strip()
            _refuse(reply, grpc.StatusCode.NOT_FOUND, f"not found: {wanted}")

    def _file_of(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:  # the pool finds no methods
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            found.methods_by_name[method]
            return found.file


def _describe(reply: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    files: dict[str, FileDescriptor] = {}
    left = [file]
    while left:
        each = left.pop()
        if each.name not in files:
            files[each.name] = each
            left += each.dependencies
    reply.file_descriptor_response.file_descriptor_proto[:] = [
        each.serialized_pb for each in files.values()
    ]


def _refuse(reply: pb.ServerReflectionResponse, code: grpc.StatusCode, text: str) -> None:
    reply.error_response.error_code = code.value[0]
    reply.error_response.error_message = text
