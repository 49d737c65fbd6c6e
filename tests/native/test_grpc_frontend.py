"""ModelInfer and ModelStreamInfer over libgrpc++, answered by an echo in place of the data plane."""

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from trimtab.proto import open_inference_pb2 as pb

native = pytest.importorskip("trimtab._native.grpc_frontend", exc_type=ImportError)

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WINDOW = 64
LARGE = 32 << 20
EOF = vars(grpc.aio)["EOF"]  # not in its stubs
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Server:
    def __init__(self, *, max_message_bytes: int = LARGE) -> None:
        self.echo = native.EchoInference()
        self.frontend = native.Frontend(
            "127.0.0.1:0", {}, self.echo, max_message_bytes=max_message_bytes
        )
        self.port: int = self.frontend.start()
        self.channel = self.connect()
        self.infer: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = self.channel.unary_unary(
            INFER, None, None
        )
        # Its stub would have the requests with the call, where `write` is to send them.
        self._stream: Any = self.channel.stream_stream(STREAM, None, None)

    def connect(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=CHANNEL_OPTIONS)

    def stream(
        self, timeout: float | None = None, **metadata: str
    ) -> "grpc.aio.StreamStreamCall[Any, Any]":
        call: grpc.aio.StreamStreamCall[Any, Any] = self._stream(
            timeout=timeout, metadata=tuple(metadata.items())
        )
        return call

    async def until(self, holds: Callable[[], bool]) -> None:
        """What happens on gRPC's threads can only be looked for."""
        ends = time.monotonic() + 30.0
        while not holds():
            assert time.monotonic() < ends
            await asyncio.sleep(0.001)

    async def stop(self, grace_s: float = 0.0, patience_s: float = 30.0) -> bool:
        stopped: bool = await asyncio.to_thread(self.frontend.stop, grace_s, patience_s)
        return stopped


def run(body: Callable[[Server], Awaitable[None]], *, max_message_bytes: int = LARGE) -> None:
    async def main() -> None:
        server = Server(max_message_bytes=max_message_bytes)
        try:
            await body(server)
        finally:
            await server.channel.close(None)
            assert await server.stop()
            assert server.frontend.open_calls == 0
            assert server.echo.waiting == 0

    asyncio.run(main())


def request(id: str, size: int = 0) -> bytes:
    message = pb.ModelInferRequest(model_name="m" * size, id=id)
    return message.SerializeToString()


async def read(stream: "grpc.aio.StreamStreamCall[Any, Any]") -> pb.ModelStreamInferResponse:
    reply = await asyncio.wait_for(stream.read(), 30)
    assert isinstance(reply, bytes), reply
    return pb.ModelStreamInferResponse.FromString(reply)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


# --- ModelInfer


@pytest.mark.parametrize("size", [0, 1, 23, 24, 200, 70_000, 20 << 20])
def test_a_request_of_any_size_is_echoed(size: int) -> None:
    async def body(server: Server) -> None:
        message = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert await server.infer(message) == message

    run(body)


def test_ten_thousand_requests_at_once_are_each_given_their_own_reply() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        calls = [server.infer(b"%d" % number) for number in range(10_000)]
        replies = asyncio.gather(*calls)
        await server.until(lambda: server.echo.waiting == len(calls))
        assert server.frontend.open_calls == len(calls)
        server.echo.release_held(last_first=True)
        assert await replies == [b"%d" % number for number in range(10_000)]

    run(body)


def test_an_error_of_the_data_plane_is_its_status() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(code=5, text="Request for unknown model: 'é%\n' is not found")
        code, text = await refused(server.infer(b"x"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert text == "Request for unknown model: 'é%\n' is not found"

    run(body)


@pytest.mark.parametrize("character", ["m", "%", "\n", "é", "漢", "🜁"])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_a_long_error_text_is_cut_between_characters(character: str, offset: int) -> None:
    async def body(server: Server) -> None:
        server.echo.behave(code=13, text="-" * offset + character * 5000)
        code, text = await refused(server.infer(b""))
        assert code is grpc.StatusCode.INTERNAL
        assert text.startswith("-" * offset + character * 200)
        assert text.endswith(character + "…")
        assert 996 < len(text.removesuffix("…").encode()) <= 1000

    run(body)


def test_a_cancelled_request_is_given_up() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        call = server.infer(b"x")
        other = server.infer(b"y")
        await server.until(lambda: server.echo.waiting == 2)
        call.cancel()
        await server.until(lambda: server.echo.cancelled == 1)
        server.echo.release_held()
        assert await other == b"y"
        await server.until(lambda: server.frontend.open_calls == 0)

    run(body)


def test_a_request_past_its_deadline_is_given_up() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        code, _ = await refused(server.infer(b"x", timeout=0.05))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        await server.until(lambda: server.echo.cancelled == 1)

    run(body)


def test_clients_that_leave_leave_nothing_behind() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        async with server.connect() as channel:
            infer = channel.unary_unary(INFER, None, None)
            calls = [infer(b"%d" % number) for number in range(500)]
            await server.until(lambda: server.echo.waiting == 500)
        assert all(call.cancelled() for call in calls)
        await server.until(lambda: server.frontend.open_calls == 0)
        assert server.echo.cancelled == 500

    run(body)


def test_messages_beyond_the_limit_are_refused() -> None:
    async def body(server: Server) -> None:
        assert await server.infer(bytes(4096)) == bytes(4096)
        code, text = await refused(server.infer(bytes(4097)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4097 vs. 4096" in text
        assert await server.infer(b"small") == b"small"

    run(body, max_message_bytes=4096)


# --- ModelStreamInfer


def test_replies_of_a_stream_leave_in_the_order_of_its_requests() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        stream = server.stream()
        for number in range(20):
            await stream.write(request(str(number), size=number))
        await server.until(lambda: server.echo.waiting == 20)
        server.echo.release_held(last_first=True)
        for number in range(20):
            reply = await read(stream)
            assert reply.error_message == ""
            assert reply.infer_response.id == str(number)
            assert reply.infer_response.model_name == "m" * number
            assert reply.infer_response.parameters["triton_final_response"].bool_param
        await stream.done_writing()
        assert await stream.read() is EOF
        assert await stream.code() is grpc.StatusCode.OK

    run(body)


@pytest.mark.parametrize("size", [0, 10, 97, 98, 99, 200, 16_300, 16_384, 5 << 20])
def test_a_reply_of_any_size_is_wrapped(size: int) -> None:
    async def body(server: Server) -> None:
        stream = server.stream()
        await stream.write(request("i", size))
        assert (await read(stream)).infer_response.model_name == "m" * size
        stream.cancel()

    run(body)


def test_an_error_within_a_stream_names_its_request_and_keeps_it_open() -> None:
    async def body(server: Server) -> None:
        stream = server.stream()
        for number in range(6):
            server.echo.behave(**({"code": 3, "text": f"bad {number}"} if number % 2 else {}))
            await stream.write(request(str(number)))
            reply = await read(stream)
            assert reply.infer_response.id == str(number)
            assert reply.error_message == (f"bad {number}" if number % 2 else "")
        server.echo.behave(code=3, text="no protobuf")
        await stream.write(b"\xff\xff")
        reply = await read(stream)
        assert (reply.error_message, reply.infer_response.id) == ("no protobuf", "")
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK

    run(body)


def test_a_stream_whose_client_asks_for_it_ends_with_the_status_of_the_first_error() -> None:
    async def body(server: Server) -> None:
        stream = server.stream(triton_grpc_error="true")
        server.echo.behave(delay_s=-1.0)
        await stream.write(request("0"))
        await server.until(lambda: server.echo.waiting == 1)
        server.echo.behave(code=5, text="no such model")
        await stream.write(request("1"))
        await server.until(lambda: server.echo.submitted == 2)
        server.echo.behave(delay_s=-1.0)
        await stream.write(request("2"))
        await server.until(lambda: server.echo.waiting == 2)
        server.echo.release_held()
        assert (await read(stream)).infer_response.id == "0"
        assert await refused(stream.read()) == (grpc.StatusCode.NOT_FOUND, "no such model")
        await server.until(lambda: server.frontend.open_calls == 0)

    run(body)


def test_a_cancelled_stream_gives_up_all_that_waits() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        stream = server.stream()
        for number in range(10):
            await stream.write(request(str(number)))
        await server.until(lambda: server.echo.waiting == 10)
        stream.cancel()
        await server.until(lambda: server.echo.cancelled == 10)
        await server.until(lambda: server.frontend.open_calls == 0)

    run(body)


def test_the_deadline_of_a_stream_is_that_of_its_requests() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        stream = server.stream(timeout=0.3)
        await stream.write(request("0"))
        await server.until(lambda: server.echo.waiting == 1)
        assert (await refused(stream.read()))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await server.until(lambda: server.echo.cancelled == 1)

    run(body)


def test_a_stream_that_is_never_read_is_not_read_further_and_stalls_nobody() -> None:
    async def body(server: Server) -> None:
        stream = server.stream()

        # Some fit into the connection's buffers; then a window of replies waits, and no more is read.
        stalled: asyncio.Future[None] | None = None
        while stalled is None:
            write = asyncio.ensure_future(stream.write(request("x", 256 << 10)))
            if not (await asyncio.wait([write], timeout=1.0))[0]:
                stalled = write
        assert WINDOW <= server.echo.submitted < 3 * WINDOW
        assert await asyncio.wait_for(server.infer(b"another"), 30) == b"another"
        # Another connection too.
        async with server.connect() as channel:
            assert await channel.unary_unary(INFER, None, None)(b"x") == b"x"
        stream.cancel()
        await asyncio.wait([stalled])
        await server.until(lambda: server.frontend.open_calls == 0)

    run(body)


def test_a_stream_of_many_requests_goes_on_beyond_the_window() -> None:
    async def body(server: Server) -> None:
        async def requests() -> AsyncIterator[bytes]:
            for number in range(50 * WINDOW):
                yield request(str(number))

        call = server.channel.stream_stream(STREAM, None, None)(requests())
        ids = [
            pb.ModelStreamInferResponse.FromString(reply).infer_response.id async for reply in call
        ]
        assert ids == [str(number) for number in range(50 * WINDOW)]

    run(body)


def test_a_half_closed_stream_ends_after_its_last_reply() -> None:
    async def body(server: Server) -> None:
        server.echo.behave(delay_s=-1.0)
        stream = server.stream()
        await stream.write(request("0"))
        await stream.done_writing()
        await server.until(lambda: server.echo.waiting == 1)
        server.echo.release_held()
        assert (await read(stream)).infer_response.id == "0"
        assert await stream.read() is EOF
        assert await stream.code() is grpc.StatusCode.OK

        empty = server.stream()
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.OK

    run(body)


def test_a_reply_beyond_the_limit_is_an_error_of_its_request_only() -> None:
    async def body(server: Server) -> None:
        stream = server.stream()
        await stream.write(request("0", 4085))  # it fits, its reply does not
        reply = await read(stream)
        assert reply.infer_response.id == "0"
        assert reply.error_message.startswith("Sent message larger than max (")
        await stream.write(request("1"))
        assert (await read(stream)).infer_response.id == "1"
        await stream.done_writing()

    run(body, max_message_bytes=4096)


# --- the server


def test_stopping_lets_predictions_finish_and_refuses_new_ones() -> None:
    async def main() -> None:
        server = Server()
        server.echo.behave(delay_s=-1.0)
        call = server.infer(b"x")
        stream, idle = server.stream(), server.stream()
        await stream.write(request("0"))
        await idle.initial_metadata()
        await server.until(lambda: server.echo.waiting == 2)
        stopping = asyncio.ensure_future(server.stop(30.0))
        shutting_down = "GRPC server is shutting down and has stopped accepting new requests."
        # A stream with nothing under way ends at once, a new one too.
        for each in (idle, server.stream()):
            assert await refused(each.read()) == (grpc.StatusCode.UNAVAILABLE, shutting_down)
        refusal = await refused(server.infer(b"y"))
        assert refusal == (grpc.StatusCode.UNAVAILABLE, shutting_down)
        server.echo.release_held()
        assert await call == b"x"
        assert (await read(stream)).infer_response.id == "0"
        assert await refused(stream.read()) == (grpc.StatusCode.UNAVAILABLE, shutting_down)
        assert await stopping
        assert server.frontend.open_calls == 0
        assert await server.stop()  # again: nothing to do
        await server.channel.close(None)

    asyncio.run(main())


def test_what_has_not_finished_within_the_grace_is_cancelled() -> None:
    async def main() -> None:
        server = Server()
        server.echo.behave(delay_s=-1.0)
        call, stream = server.infer(b"x"), server.stream()
        await stream.write(request("0"))
        await server.until(lambda: server.echo.waiting == 2)
        assert await server.stop(0.3)
        assert server.echo.cancelled == 2
        assert (await refused(call))[0] in (
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNAVAILABLE,
        )
        await server.channel.close(None)

    asyncio.run(main())


def test_a_second_stop_shortens_the_grace_of_the_first() -> None:
    async def main() -> None:
        server = Server()
        server.echo.behave(delay_s=-1.0)
        call = server.infer(b"x")
        await server.until(lambda: server.echo.waiting == 1)
        first = asyncio.ensure_future(server.stop(3600.0))
        await asyncio.sleep(0)
        assert await server.stop(0.0)
        assert await first
        call.cancel()
        await server.channel.close(None)

    asyncio.run(main())


def test_a_second_server_on_the_port_does_not_start() -> None:
    async def body(server: Server) -> None:
        second = native.Frontend(
            f"127.0.0.1:{server.port}", {}, server.echo, max_message_bytes=LARGE
        )
        assert second.start() == 0
        assert second.stop(0.0, 1.0)

    run(body)


def test_a_frontend_that_is_dropped_without_a_stop_ends_by_itself() -> None:
    async def main() -> None:
        server = Server()
        server.echo.behave(delay_s=-1.0)
        call = server.infer(b"x")
        await server.until(lambda: server.echo.waiting == 1)
        port = server.port
        del server.frontend
        gc.collect()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(INFER, None, None)(b"")
        await server.channel.close(None)

    asyncio.run(main())


def test_a_frontend_that_never_started_can_be_stopped_and_dropped() -> None:
    frontend = native.Frontend("127.0.0.1:0", {}, None, max_message_bytes=LARGE)
    assert frontend.stop(1.0, 1.0)
    assert frontend.open_calls == 0


def test_only_a_capsule_with_an_inference_is_taken() -> None:
    class Wrong:
        inference = object()

    with pytest.raises(ValueError, match="PyCapsule"):
        native.Frontend("127.0.0.1:0", {}, Wrong(), max_message_bytes=LARGE)


@pytest.mark.parametrize("first", ["grpc", "trimtab._native.grpc_frontend"])
def test_it_lives_beside_grpcio_in_whatever_order_they_are_imported(first: str) -> None:
    """Both are gRPC, of other versions; grpcio's client and server and ours work in one process."""
    script = f"""
import {first}
import grpc
from concurrent.futures import ThreadPoolExecutor
from trimtab._native import grpc_frontend

assert grpc_frontend.version()
echo = grpc_frontend.EchoInference()
frontend = grpc_frontend.Frontend("127.0.0.1:0", {{}}, echo, max_message_bytes=1 << 20)
ours = frontend.start()
server = grpc.server(ThreadPoolExecutor(1))
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {{"Echo": handler}})])
theirs = server.add_insecure_port("127.0.0.1:0")
server.start()
for port, method in ((ours, {INFER!r}), (theirs, "/s/Echo")):
    with grpc.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        call = channel.unary_unary(method, None, None)
        assert [call(b"%d" % n) for n in range(200)] == [b"%d" % n for n in range(200)]
        try:
            call(b"x" * (5 << 20))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
assert frontend.stop(0.0, 10.0)
server.stop(0).wait()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
