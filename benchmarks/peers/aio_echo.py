"""A bare grpc.aio server that sends every message back as it came: `python aio_echo.py`.

What a Python gRPC server costs before it does anything. It prints its port and runs until killed.
"""

import asyncio

import grpc
import grpc.aio


class _Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stub only
    def __init__(self) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(_same)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return self._handler


async def _same(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    return request


async def main() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
