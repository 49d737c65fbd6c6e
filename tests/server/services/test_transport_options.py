"""TLS, compression and limits of connections, over both transports."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.certificates import Files, make_certificates
from tests.live import unary
from trimtab.server.config import ListenConfig
from trimtab.server.services.frontends import choose_frontend
from trimtab.server.services.handlers import CallContext, UnaryHandler
from trimtab.server.services.transport_options import TransportOptions

FRONTENDS = sorted({"portable", choose_frontend("auto")[1]})
ZEROS = bytes(1 << 20)


async def echo(request: bytes, context: CallContext) -> bytes:
    return request


@pytest.fixture(params=FRONTENDS)
def frontend_class(request: pytest.FixtureRequest) -> Any:
    return choose_frontend(request.param)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def run(
    frontend_class: Any, options: TransportOptions, body: Callable[[int], Awaitable[None]]
) -> None:
    async def main() -> None:
        frontend = frontend_class("127.0.0.1:0", {"/s/Echo": UnaryHandler(echo)}, options=options)
        port = await frontend.start()
        try:
            await body(port)
        finally:
            await frontend.stop(1.0)

    asyncio.run(main())


async def call_over_tls(port: int, files: Files, client: str | None = None) -> None:
    credentials = grpc.ssl_channel_credentials(
        files.read("ca.pem"),
        files.read(f"{client}.key") if client else None,
        files.read(f"{client}.pem") if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        assert await unary(channel, "/s/Echo")(b"secret", timeout=10) == b"secret"


def test_a_certificate_makes_it_tls(frontend_class: Any, files: Files) -> None:
    async def body(port: int) -> None:
        await call_over_tls(port, files)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(channel, "/s/Echo")(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    options = TransportOptions(tls_cert=files.path("server.pem"), tls_key=files.path("server.key"))
    run(frontend_class, options, body)


def test_a_client_authority_lets_only_its_own_clients_in(frontend_class: Any, files: Files) -> None:
    async def body(port: int) -> None:
        await call_over_tls(port, files, "client")
        for client in (None, "stranger"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_over_tls(port, files, client)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    options = TransportOptions(
        tls_cert=files.path("server.pem"),
        tls_key=files.path("server.key"),
        tls_client_ca=files.path("ca.pem"),
    )
    run(frontend_class, options, body)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_cert": "server.pem"}, r"tls_cert = .*server\.pem: needs tls_key beside it"),
        ({"tls_key": "server.key"}, r"tls_key = .*server\.key: needs tls_cert beside it"),
        ({"tls_client_ca": "ca.pem"}, r"tls_client_ca = .*ca\.pem: needs tls_cert beside it"),
        (
            {"tls_cert": "absent.pem", "tls_key": "server.key"},
            r"tls_cert = .*absent\.pem: cannot be read: No such file",
        ),
        (
            {"tls_cert": "server.pem", "tls_key": "client.key"},
            r"tls_cert = .*server\.pem, tls_key = .*client\.key: cannot be used: .*MISMATCH",
        ),
        (
            {"tls_cert": "garbage.pem", "tls_key": "server.key"},
            r"tls_cert = .*garbage\.pem, .*: cannot be used",
        ),
        (
            {"tls_cert": "server.pem", "tls_key": "encrypted.key"},
            r"encrypted\.key: cannot be used: the key is encrypted",
        ),
        (
            {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "garbage.pem"},
            r"tls_client_ca = .*garbage\.pem: cannot be used",
        ),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    frontend_class: Any, files: Files, settings: dict[str, str], message: str
) -> None:
    async def body(port: int) -> None:
        raise AssertionError("it listens")

    options = TransportOptions(**{name: files.path(file) for name, file in settings.items()})  # type: ignore[arg-type]  # all of them are files
    with pytest.raises(OSError, match=message):
        run(frontend_class, options, body)


class Wire:
    """Passes one connection on to a port and counts the bytes of the replies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self.received = 0

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, client: asyncio.StreamReader, replies: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._pass(client, requests, count=False), self._pass(server, replies, count=True)
        )

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, count: bool
    ) -> None:
        while data := await source.read(1 << 16):
            self.received += len(data) * count
            sink.write(data)
            await sink.drain()
        sink.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


@pytest.mark.parametrize(
    ("compression", "accepted", "compressed"),
    [
        ("none", ("gzip", "deflate"), False),
        ("gzip", ("gzip", "deflate"), True),
        ("deflate", ("gzip", "deflate"), True),
        ("gzip", (), False),  # a client that understands none
        ("gzip", ("gzip",), True),
    ],
)
def test_replies_are_compressed_for_clients_that_accept_it(
    frontend_class: Any, compression: Any, accepted: tuple[str, ...], compressed: bool
) -> None:
    bits = 1 | sum({"deflate": 2, "gzip": 4}[name] for name in accepted)

    async def body(port: int) -> None:
        wire = Wire(port)
        options = [
            ("grpc.compression_enabled_algorithms_bitset", bits),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{await wire.start()}", options=options
        ) as channel:
            assert await unary(channel, "/s/Echo")(ZEROS) == ZEROS
        await wire.close()
        assert (wire.received < len(ZEROS) // 10) is compressed

    run(frontend_class, TransportOptions(compression=compression), body)


def test_a_connection_has_no_more_calls_at_once_than_it_may(frontend_class: Any) -> None:
    async def main() -> None:
        begun, most, go_on = 0, 0, asyncio.Event()

        async def slow(request: bytes, context: CallContext) -> bytes:
            nonlocal begun, most
            begun += 1
            most = max(most, begun)
            await go_on.wait()
            begun -= 1
            return request

        frontend = frontend_class(
            "127.0.0.1:0",
            {"/s/Slow": UnaryHandler(slow), "/s/Echo": UnaryHandler(echo)},
            options=TransportOptions(max_concurrent_streams=3),
        )
        port = await frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await unary(channel, "/s/Echo")(b"")  # from here on the client knows the limit
            calls = [unary(channel, "/s/Slow")(b"x") for _ in range(20)]
            replies = asyncio.gather(*calls)
            while begun < 3:
                await asyncio.sleep(0.001)
            go_on.set()
            assert await replies == [b"x"] * 20
        assert most == 3
        await frontend.stop(1.0)

    asyncio.run(main())


def test_the_defaults_are_those_of_the_settings() -> None:
    assert TransportOptions.of(ListenConfig()) == TransportOptions()
