"""What only the native transport does; the rest is in test_portable_frontend.py, for both."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.live import unary
from trimtab.server.config import ConfigError
from trimtab.server.services import frontends
from trimtab.server.services.frontends import choose_frontend
from trimtab.server.services.handlers import BidiHandler, CallContext, UnaryHandler
from trimtab.server.services.portable_frontend import PortableFrontend

native = pytest.importorskip("trimtab._native.grpc_frontend", exc_type=ImportError)

from trimtab.server.services.native_frontend import NativeFrontend

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


async def shout(request: bytes, context: CallContext) -> bytes:
    return request.upper()


async def never(requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
    raise AssertionError("the data plane answers this")
    yield b""


def test_predictions_go_to_the_data_plane_and_the_rest_to_handlers() -> None:
    async def main() -> None:
        echo = native.EchoInference()
        frontend = NativeFrontend(
            "127.0.0.1:0",
            {
                INFER: UnaryHandler(shout),
                STREAM: BidiHandler(never),
                "/inference.GRPCInferenceService/ServerLive": UnaryHandler(shout),
            },
            inference=echo,
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await unary(channel, INFER)(b"a") == b"a"
            live = unary(channel, "/inference.GRPCInferenceService/ServerLive")
            assert await live(b"a") == b"A"
            call: Any = channel.stream_stream(STREAM, None, None)
            stream = call()
            await stream.write(b"")
            assert isinstance(await stream.read(), bytes)
        assert echo.submitted == 2
        await frontend.stop(1.0)

    asyncio.run(main())


def test_without_a_data_plane_every_method_is_a_handlers() -> None:
    async def main() -> None:
        frontend = NativeFrontend("127.0.0.1:0", {INFER: UnaryHandler(shout)})
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await unary(channel, INFER)(b"a") == b"A"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, STREAM)(b"a")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await frontend.stop(1.0)

    asyncio.run(main())


def test_predictions_and_handlers_under_load_are_each_given_their_own_reply() -> None:
    async def main() -> None:
        frontend = NativeFrontend(
            "127.0.0.1:0", {"/s/Shout": UnaryHandler(shout)}, inference=native.EchoInference()
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = [
                unary(channel, method)(b"n%d" % number)
                for number in range(1000)
                for method in (INFER, "/s/Shout")
            ]
            replies = await asyncio.gather(*calls)
        expected = [text % number for number in range(1000) for text in (b"n%d", b"N%d")]
        assert replies == expected
        await frontend.stop(1.0)

    asyncio.run(main())


def test_a_stop_waits_for_predictions_and_a_second_one_ends_the_grace() -> None:
    async def main() -> None:
        echo = native.EchoInference()
        echo.behave(delay_s=-1.0)
        frontend = NativeFrontend("127.0.0.1:0", {}, inference=echo)
        assert repr(frontend) == "<NativeFrontend 127.0.0.1:0>"
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = unary(channel, INFER)(b"a")
            while not echo.waiting:
                await asyncio.sleep(0.001)
            stopping = asyncio.ensure_future(frontend.stop(3600.0))
            await asyncio.sleep(0)
            assert repr(frontend) == "<NativeFrontend 127.0.0.1:0 stopping>"
            await frontend.stop(0.0)
            await stopping
            assert echo.cancelled == 1
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        await frontend.stop()

    asyncio.run(main())


def test_a_stop_that_is_cancelled_can_be_asked_for_again() -> None:
    """As a second signal does with the stop of the first."""

    async def main() -> None:
        echo = native.EchoInference()
        echo.behave(delay_s=-1.0)
        frontend = NativeFrontend("127.0.0.1:0", {}, inference=echo)
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = unary(channel, INFER)(b"a")
            while not echo.waiting:
                await asyncio.sleep(0.001)
            stopping = asyncio.ensure_future(frontend.stop(3600.0))
            await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.wait([stopping])
            await asyncio.wait_for(frontend.stop(0.0), 30)
            call.cancel()

    asyncio.run(main())


def test_a_frontend_that_cannot_listen_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first = NativeFrontend("127.0.0.1:0", {})
        port = await first.start()
        second = NativeFrontend(f"127.0.0.1:{port}", {})
        # As if the port had been taken after it was found free.
        monkeypatch.setattr(
            sys.modules[NativeFrontend.__module__], "check_free", lambda address: None
        )
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await second.start()
        await second.stop()
        await first.stop()

    asyncio.run(main())


def test_auto_takes_native_where_it_was_built() -> None:
    assert choose_frontend("auto") == (NativeFrontend, "native")
    assert choose_frontend("native") == (NativeFrontend, "native")
    assert choose_frontend("portable") == (PortableFrontend, "portable")


def test_auto_takes_portable_where_native_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontends, "_MODULE", "trimtab._native.no_such_module")
    monkeypatch.setitem(sys.modules, NativeFrontend.__module__, None)  # as a failed import
    assert choose_frontend("auto") == (PortableFrontend, "portable")
    with pytest.raises(ConfigError, match=r"frontend = native: it was not built here\. Install"):
        choose_frontend("native")


def test_auto_says_why_native_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, NativeFrontend.__module__, None)
    assert choose_frontend("auto") == (PortableFrontend, "portable")
    assert "the native frontend cannot be loaded" in caplog.text
    with pytest.raises(ConfigError, match=r"frontend = native: it cannot be loaded: "):
        choose_frontend("native")
