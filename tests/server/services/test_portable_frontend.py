"""Both transports: what a handler returns or raises, and what the client sees of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest

from tests.live import stream, unary
from trimtab.server import errors
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.services.frontends import choose_frontend
from trimtab.server.services.handlers import (
    BidiHandler,
    CallContext,
    Handler,
    StreamHandler,
    UnaryHandler,
)
from trimtab.server.services.portable_frontend import PortableFrontend

FrontendClass: TypeAlias = type[PortableFrontend]

LIMIT = 4096
EOF = vars(grpc.aio)["EOF"]  # not in its stubs
FRONTENDS = sorted({"portable", choose_frontend("auto")[1]})


@pytest.fixture(params=FRONTENDS)
def frontend_class(request: pytest.FixtureRequest) -> FrontendClass:
    # Made, started and stopped alike; only the portable one is there for the type checker.
    return choose_frontend(request.param)[0]  # type: ignore[return-value]  # see above


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


def run(
    frontend_class: FrontendClass,
    handlers: dict[str, Handler],
    body: Callable[[grpc.aio.Channel, int], Awaitable[None]],
) -> None:
    async def main() -> None:
        frontend = frontend_class("127.0.0.1:0", handlers, max_message_bytes=LIMIT)
        port = await frontend.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await body(channel, port)
        finally:
            await frontend.stop(1.0)

    asyncio.run(main())


def test_bytes_go_in_and_come_out(frontend_class: FrontendClass) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        assert await unary(channel, "/s/Echo")(b"abc") == b"abc"
        assert await unary(channel, "/s/Echo")(b"") == b""

    run(frontend_class, {"/s/Echo": UnaryHandler(echo)}, body)


def test_a_method_that_is_not_served_is_unimplemented(frontend_class: FrontendClass) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Other")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(frontend_class, {"/s/Echo": UnaryHandler(echo)}, body)


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
def test_an_error_becomes_its_status(
    frontend_class: FrontendClass, error: Exception, code: grpc.StatusCode
) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise error

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert (caught.value.code(), caught.value.details()) == (code, str(error))

    run(frontend_class, {"/s/Fails": UnaryHandler(fails)}, body)


@pytest.mark.parametrize("character", ["m", " ", "%", "\n", "é", "漢", "🜁"])
def test_a_long_error_text_is_cut_and_keeps_its_status(
    frontend_class: FrontendClass, character: str
) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise errors.NotFoundError("unknown model: " + character * 1_000_000)

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        details = caught.value.details() or ""
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert details.startswith("unknown model: " + character * 200)
        assert details.endswith(character + "…") and len(details) <= 1001

    run(frontend_class, {"/s/Fails": UnaryHandler(fails)}, body)


def test_an_error_text_that_is_no_unicode_is_sent_all_the_same(
    frontend_class: FrontendClass,
) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise errors.NotFoundError("no file \udcff")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no file ?"

    run(frontend_class, {"/s/Fails": UnaryHandler(fails)}, body)


def test_a_bug_becomes_internal_and_is_logged_with_its_traceback(
    frontend_class: FrontendClass,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(request: bytes, context: CallContext) -> bytes:
        raise ZeroDivisionError("oops")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "/s/Fails")(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL

    run(frontend_class, {"/s/Fails": UnaryHandler(fails)}, body)
    (record,) = [each for each in caplog.records if each.name.startswith("trimtab")]
    assert record.exc_info is not None and "/s/Fails" in record.message


def test_the_deadline_and_the_peer_reach_the_handler(frontend_class: FrontendClass) -> None:
    seen: list[CallContext] = []

    async def look(request: bytes, context: CallContext) -> bytes:
        seen.append(context)
        return b""

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        await unary(channel, "/s/Look")(b"", timeout=100.0)
        await unary(channel, "/s/Look")(b"")

    before = time.monotonic()
    run(frontend_class, {"/s/Look": UnaryHandler(look)}, body)
    with_deadline, without = seen
    assert with_deadline.deadline is not None
    assert before < with_deadline.deadline < time.monotonic() + 101.0
    assert without.deadline is None
    assert with_deadline.peer.startswith("ipv4:127.0.0.1:")


def test_a_stream_is_sent_as_it_comes_and_its_error_after_it(frontend_class: FrontendClass) -> None:
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

    run(frontend_class, {"/s/Count": StreamHandler(count)}, body)


def test_a_client_learns_that_its_stream_has_begun_before_the_first_reply(
    frontend_class: FrontendClass,
) -> None:
    async def quiet(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        call = stream(channel, "/s/Quiet")(b"")
        await asyncio.wait_for(call.initial_metadata(), 10)
        call.cancel()

    run(frontend_class, {"/s/Quiet": StreamHandler(quiet)}, body)


def test_a_stream_whose_client_leaves_is_closed(frontend_class: FrontendClass) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def endless(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"tick"
                    await asyncio.Event().wait()
            finally:
                closed.set()

        frontend = frontend_class(
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


def test_messages_beyond_the_limit_are_refused_both_ways(frontend_class: FrontendClass) -> None:
    async def large(request: bytes, context: CallContext) -> bytes:
        return bytes(LIMIT + 1)

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        for method, request in [("/s/Echo", bytes(LIMIT + 1)), ("/s/Large", b"")]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, method)(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(channel, "/s/Echo")(b"small") == b"small"

    run(frontend_class, {"/s/Echo": UnaryHandler(echo), "/s/Large": UnaryHandler(large)}, body)


def test_two_frontends_live_in_one_loop(frontend_class: FrontendClass) -> None:
    async def main() -> None:
        frontends = [
            frontend_class("127.0.0.1:0", {name: UnaryHandler(echo)}, max_message_bytes=LIMIT)
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


def test_a_port_that_is_taken_is_an_oserror(frontend_class: FrontendClass) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        second = frontend_class(f"127.0.0.1:{port}", {}, max_message_bytes=LIMIT)
        with pytest.raises(
            OSError, match=f"cannot listen on 127.0.0.1:{port}: .* in use; choose another"
        ):
            await second.start()

    run(frontend_class, {"/s/Echo": UnaryHandler(echo)}, body)


def test_stopping_lets_calls_finish_and_refuses_new_ones(frontend_class: FrontendClass) -> None:
    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            begun.set()
            await go_on.wait()
            return b"done"

        frontend = frontend_class(
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


def bidi(channel: grpc.aio.Channel, method: str) -> Any:
    """A call whose requests `write` sends; the stub would have them with the call."""
    return channel.stream_stream(method, None, None)


async def shout(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.upper()
    yield b"END"


async def rest_of(call: Any) -> list[bytes]:
    replies = []
    while (reply := await call.read()) is not EOF:
        replies.append(reply)
    return replies


def test_requests_and_replies_of_a_stream_alternate_and_a_half_close_ends_them(
    frontend_class: FrontendClass,
) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        call = bidi(channel, "/s/Shout")()
        await asyncio.wait_for(call.initial_metadata(), 10)
        for message in (b"a", b"", b"bc"):
            await call.write(message)
            assert await call.read() == message.upper()
        await call.done_writing()
        assert await rest_of(call) == [b"END"]
        assert await call.code() is grpc.StatusCode.OK

    run(frontend_class, {"/s/Shout": BidiHandler(shout)}, body)


def test_a_stream_may_answer_before_it_is_asked_and_end_before_the_client_does(
    frontend_class: FrontendClass,
) -> None:
    async def early(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        yield b"first"
        async for request in requests:
            yield request
            if request == b"end":
                return
            if request == b"fail":
                raise errors.NotFoundError("gone")

    async def body(channel: grpc.aio.Channel, port: int) -> None:
        call = bidi(channel, "/s/Early")()
        assert await call.read() == b"first"
        await call.write(b"end")
        assert await rest_of(call) == [b"end"]
        assert await call.code() is grpc.StatusCode.OK

        call = bidi(channel, "/s/Early")()
        await call.write(b"fail")
        assert [await call.read(), await call.read()] == [b"first", b"fail"]
        assert (await call.code(), await call.details()) == (grpc.StatusCode.NOT_FOUND, "gone")

    run(frontend_class, {"/s/Early": BidiHandler(early)}, body)


def test_many_streams_of_many_messages_keep_their_order(frontend_class: FrontendClass) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        async def requests(name: int) -> AsyncIterator[bytes]:
            for number in range(100):
                yield b"%d-%d" % (name, number)

        async def every(call: Any) -> list[bytes]:
            return [reply async for reply in call]

        calls = [bidi(channel, "/s/Shout")(requests(name)) for name in range(20)]
        for name, replies in enumerate(await asyncio.gather(*map(every, calls))):
            assert replies == [*[b"%d-%d" % (name, number) for number in range(100)], b"END"]

    run(frontend_class, {"/s/Shout": BidiHandler(shout)}, body)


def _waits(kind: str, begun: asyncio.Event, ended: asyncio.Event) -> Handler:
    """A handler that begins, waits for ever and ends when it is cancelled."""

    async def wait() -> AsyncIterator[bytes]:
        begun.set()
        try:
            yield b"begun"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def answer(request: bytes, context: CallContext) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    def many(request: object, context: CallContext) -> AsyncIterator[bytes]:
        return wait()

    kinds: dict[str, Handler] = {
        "unary": UnaryHandler(answer),
        "stream": StreamHandler(many),
        "bidi": BidiHandler(many),
    }
    return kinds[kind]


@pytest.mark.parametrize("leave", ["cancel", "deadline", "channel"])
@pytest.mark.parametrize("kind", ["unary", "stream", "bidi"])
def test_a_handler_whose_client_leaves_is_cancelled(
    frontend_class: FrontendClass, kind: str, leave: str
) -> None:
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()
        frontend = frontend_class(
            "127.0.0.1:0", {"/s/Wait": _waits(kind, begun, ended)}, max_message_bytes=LIMIT
        )
        port = await frontend.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        timeout = 0.3 if leave == "deadline" else None
        if kind == "unary":
            call: Any = unary(channel, "/s/Wait")(b"", timeout=timeout)
        elif kind == "stream":
            call = stream(channel, "/s/Wait")(b"", timeout=timeout)
            assert await call.read() == b"begun"
        else:
            call = bidi(channel, "/s/Wait")(timeout=timeout)
            assert await call.read() == b"begun"
        await begun.wait()
        if leave == "cancel":
            call.cancel()
        elif leave == "channel":
            await channel.close(None)
        await asyncio.wait_for(ended.wait(), 30)
        await channel.close(None)
        await frontend.stop(1.0)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["stream", "bidi"])
def test_a_slow_client_holds_no_more_than_its_connection_does(
    frontend_class: FrontendClass, kind: str
) -> None:
    async def main() -> None:
        sent = 0
        message = bytes(256 << 10)

        async def many(request: Any, context: CallContext) -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1000:
                sent += 1
                yield message

        handler = StreamHandler(many) if kind == "stream" else BidiHandler(many)
        frontend = frontend_class("127.0.0.1:0", {"/s/Many": handler}, max_message_bytes=1 << 20)
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = (
                stream(channel, "/s/Many")(b"") if kind == "stream" else bidi(channel, "/s/Many")()
            )
            assert await call.read() == message
            before = -1
            while before != sent:  # until it stands still
                before = sent
                await asyncio.sleep(0.5)
            assert sent < 200
            while sent < 1000:
                assert await call.read() == message
            call.cancel()
        await frontend.stop(1.0)

    asyncio.run(main())


def test_stopping_ends_the_requests_of_a_stream_and_tells_why(
    frontend_class: FrontendClass,
) -> None:
    async def main() -> None:
        frontend = frontend_class(
            "127.0.0.1:0", {"/s/Shout": BidiHandler(shout)}, max_message_bytes=LIMIT
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = bidi(channel, "/s/Shout")()
            await call.write(b"a")
            assert await call.read() == b"A"
            stopping = asyncio.ensure_future(frontend.stop(30.0))
            assert await call.read() == b"END"
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert await call.details() == SHUTTING_DOWN
            await stopping

    asyncio.run(main())


def test_what_has_not_ended_within_the_grace_is_cancelled(frontend_class: FrontendClass) -> None:
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()
        frontend = frontend_class(
            "127.0.0.1:0", {"/s/Wait": _waits("stream", begun, ended)}, max_message_bytes=LIMIT
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = stream(channel, "/s/Wait")(b"")
            assert await call.read() == b"begun"
            await frontend.stop(0.1)
            await asyncio.wait_for(ended.wait(), 30)
            assert await call.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            )

    asyncio.run(main())


def test_requests_may_be_compressed(frontend_class: FrontendClass) -> None:
    async def body(channel: grpc.aio.Channel, port: int) -> None:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            call = channel.unary_unary("/s/Echo", None, None)(bytes(1000), compression=compression)
            assert await call == bytes(1000)

    run(frontend_class, {"/s/Echo": UnaryHandler(echo)}, body)
