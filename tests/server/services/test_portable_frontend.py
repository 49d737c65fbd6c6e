"""The transport: what a handler returns or raises, and what the client sees of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest

from tests.live import stream, unary
from trimtab.server import errors
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.services.handlers import CallContext, Handler, StreamHandler, UnaryHandler
from trimtab.server.services.portable_frontend import PortableFrontend

LIMIT = 4096


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


def run(
    handlers: dict[str, Handler], body: Callable[[grpc.aio.Channel, int], Awaitable[None]]
) -> None:
    async def main() -> None:
        frontend = PortableFrontend("127.0.0.1:0", handlers, max_message_bytes=LIMIT)
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await body(channel, port)
        await frontend.stop(1.0)

    asyncio.run(main())


def test_bytes_go_in_and_come_out() -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        assert await unary(channel, "/s/Echo")(b"abc") == b"abc"
        assert await unary(channel, "/s/Echo")(b"") == b""

    run({"/s/Echo": UnaryHandler(echo)}, body)


def test_a_method_that_is_not_served_is_unimplemented() -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Other")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run({"/s/Echo": UnaryHandler(echo)}, body)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequestError("a"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFoundError("b"), grpc.StatusCode.NOT_FOUND),
        (errors.UnavailableError("c"), grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlineExpiredError("d"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.PreconditionError("e"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ModelExecutionError("f"), grpc.StatusCode.INTERNAL),
        (errors.UnsupportedError("g"), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_an_error_becomes_its_status(error: Exception, code: grpc.StatusCode) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise error

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert (caught.value.code(), caught.value.details()) == (code, str(error))

    run({"/s/Fails": UnaryHandler(fails)}, body)


@pytest.mark.parametrize("character", ["m", " ", "%", "\n", "é", "漢", "🜁"])
def test_a_long_error_text_is_cut_and_keeps_its_status(character: str) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise errors.NotFoundError("unknown model: " + character * 1_000_000)

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        details = caught.value.details() or ""
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert details.startswith("unknown model: " + character * 200)
        assert details.endswith(character + "…") and len(details) <= 1001

    run({"/s/Fails": UnaryHandler(fails)}, body)


def test_an_error_text_that_is_no_unicode_is_sent_all_the_same() -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise errors.NotFoundError("no file \udcff")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no file ?"

    run({"/s/Fails": UnaryHandler(fails)}, body)


def test_a_bug_becomes_internal_and_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise ZeroDivisionError("oops")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL

    run({"/s/Fails": UnaryHandler(fails)}, body)
    (record,) = [each for each in caplog.records if each.name.startswith("trimtab")]
    assert record.exc_info is not None and "/s/Fails" in record.message


def test_the_deadline_and_the_peer_reach_the_handler() -> None:
    seen: list[CallContext] = []

    async def look(request: bytes, context: CallContext) -> bytes:
        seen.append(context)
        return b""

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        await unary(channel, "/s/Look")(b"", timeout=100.0)
        await unary(channel, "/s/Look")(b"")

    before = time.monotonic()
    run({"/s/Look": UnaryHandler(look)}, body)
    with_deadline, without = seen
    assert with_deadline.deadline is not None
    assert before < with_deadline.deadline < time.monotonic() + 101.0
    assert without.deadline is None
    assert with_deadline.peer.startswith("ipv4:127.0.0.1:")


def test_a_stream_is_sent_as_it_comes_and_its_error_after_it() -> None:
    async def count(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        for number in range(3):
            yield str(number).encode()
        raise errors.UnavailableError("no more")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        seen = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for reply in stream(channel, "/s/Count")(b""):
                seen.append(reply)
        assert seen == [b"0", b"1", b"2"]
        assert caught.value.details() == "no more"

    run({"/s/Count": StreamHandler(count)}, body)


def test_a_client_learns_that_its_stream_has_begun_before_the_first_reply() -> None:
    async def quiet(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        call = stream(channel, "/s/Quiet")(b"")
        await asyncio.wait_for(call.initial_metadata(), 10)
        call.cancel()

    run({"/s/Quiet": StreamHandler(quiet)}, body)


def test_a_stream_whose_client_leaves_is_closed() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def endless(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"tick"
                    await asyncio.Event().wait()
            finally:
                closed.set()

        frontend = PortableFrontend(
            "127.0.0.1:0", {"/s/Endless": StreamHandler(endless)}, max_message_bytes=LIMIT
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = stream(channel, "/s/Endless")(b"")
            assert await call.read() == b"tick"
            call.cancel()
            await asyncio.wait_for(closed.wait(), 30)
        await frontend.stop(1.0)

    asyncio.run(main())


def test_messages_beyond_the_limit_are_refused_both_ways() -> None:
    async def large(request: bytes, context: CallContext) -> bytes:
        return bytes(LIMIT + 1)

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        for method, request in [("/s/Echo", bytes(LIMIT + 1)), ("/s/Large", b"")]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, method)(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(channel, "/s/Echo")(b"small") == b"small"

    run({"/s/Echo": UnaryHandler(echo), "/s/Large": UnaryHandler(large)}, body)


def test_two_frontends_live_in_one_loop() -> None:
    async def main() -> None:
        frontends = [
            PortableFrontend("127.0.0.1:0", {name: UnaryHandler(echo)}, max_message_bytes=LIMIT)
            for name in ("/a/Echo", "/b/Echo")
        ]
        ports = [await frontend.start() for frontend in frontends]
        assert ports[0] != ports[1]
        for port, mine, other in [
            (ports[0], "/a/Echo", "/b/Echo"),
            (ports[1], "/b/Echo", "/a/Echo"),
        ]:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await unary(channel, mine)(b"x") == b"x"
                with pytest.raises(grpc.aio.AioRpcError):
                    await unary(channel, other)(b"x")
        for frontend in frontends:
            await frontend.stop(1.0)

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_oserror() -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        second = PortableFrontend(f"127.0.0.1:{port}", {}, max_message_bytes=LIMIT)
        with pytest.raises(
            OSError, match=f"cannot listen on 127.0.0.1:{port}: .* in use; choose another"
        ):
            await second.start()

    run({"/s/Echo": UnaryHandler(echo)}, body)


def test_stopping_lets_calls_finish_and_refuses_new_ones() -> None:
    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            begun.set()
            await go_on.wait()
            return b"done"

        frontend = PortableFrontend(
            "127.0.0.1:0", {"/s/Slow": UnaryHandler(slow)}, max_message_bytes=LIMIT
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = unary(channel, "/s/Slow")(b"")
            await begun.wait()
            stopping = asyncio.ensure_future(frontend.stop(30.0))
            await asyncio.sleep(0)
            for again in (unary(channel, "/s/Slow"), unary(channel, "/s/Other")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await again(b"")
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert caught.value.details() == SHUTTING_DOWN
            go_on.set()
            assert await call == b"done"
            await stopping
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, "/s/Slow")(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await frontend.stop()

    asyncio.run(main())
