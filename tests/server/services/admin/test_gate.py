"""Who is let through to which method, in whose name; and which addresses need somebody at the gate."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from trimtab.proto import admin_pb2
from trimtab.server.config import ConfigError, ListenConfig
from trimtab.server.errors import PermissionDeniedError, UnauthenticatedError
from trimtab.server.services.admin.gate import VIEWERS_METHODS, Gate, is_loopback
from trimtab.server.services.admin.tokens import TokensFile, new_token
from trimtab.server.services.handlers import (
    BidiHandler,
    CallContext,
    Caller,
    StreamHandler,
    UnaryHandler,
)

METHODS = {each.name for each in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods}


def call(authorization: str = "", certificate_name: str = "") -> CallContext:
    return CallContext(peer="ipv4:1", caller=lambda: Caller(authorization, certificate_name))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_viewer_may_ask_and_an_operator_may_everything(path: Path) -> None:
    viewer, operator = new_token(path, "vera", "viewer"), new_token(path, "otto", "operator")
    gate = Gate(TokensFile(path))
    for name in METHODS:
        method = f"/trimtab.v1.Admin/{name}"
        assert gate.admit(method, call(f"Bearer {operator}")).actor == "otto"
        if name in VIEWERS_METHODS:
            assert gate.admit(method, call(f"bearer  {viewer} ")).actor == "vera"
        else:
            with pytest.raises(PermissionDeniedError, match=f"vera has .* viewer: {name} needs"):
                gate.admit(method, call(f"Bearer {viewer}"))


def test_what_changes_something_is_no_viewers_method() -> None:
    assert VIEWERS_METHODS < METHODS
    asks = ("List", "Describe", "Get", "Watch", "Verify", "RolloutStatus", "TrainingStatus")
    assert {name for name in METHODS if name.startswith(asks)} == VIEWERS_METHODS


def test_without_a_token_that_is_known_nobody_is_let_in(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = new_token(path, "ann", "operator")
    gate = Gate(TokensFile(path), certificates=True)
    for authorization, message in (
        ("", "wants a token"),
        (f"Basic {token}", "must be `Bearer TOKEN`"),
        (token, "must be `Bearer TOKEN`"),
        (f"Bearer {token}x", "none of this server's"),
        ("Bearer ", "none of this server's"),
    ):
        with pytest.raises(UnauthenticatedError, match=message) as caught:
            gate.admit("/s/ListVersions", call(authorization, certificate_name="client"))
        assert token not in str(caught.value)
    assert "ipv4:1: /s/ListVersions with a token that nobody knows" in caplog.text
    assert token not in caplog.text


def test_a_certificate_alone_makes_an_operator_of_its_name() -> None:
    gate = Gate(certificates=True)
    assert gate.admit("/s/Promote", call(certificate_name="client")).actor == "client"
    assert gate.admit("/s/Promote", call()).actor == "unnamed certificate"


def test_without_credentials_the_actor_is_the_requests() -> None:
    assert Gate().admit("/s/Promote", call("Bearer x", "y")).actor == ""


def test_handlers_are_guarded_and_a_token_taken_back_ends_a_stream(path: Path) -> None:
    token = new_token(path, "ann", "operator")
    closed = []

    async def echo(request: bytes, context: CallContext) -> bytes:
        return request + context.actor.encode()

    async def count(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        try:
            for number in range(10):
                yield b"%d" % number
        finally:
            closed.append(context.actor)

    handlers = Gate(TokensFile(path)).guard(
        {"/s/Echo": UnaryHandler(echo), "/s/Count": StreamHandler(count)}
    )
    unary, stream = handlers["/s/Echo"], handlers["/s/Count"]
    assert isinstance(unary, UnaryHandler) and isinstance(stream, StreamHandler)

    async def main() -> None:
        assert await unary.handle(b"by ", call(f"Bearer {token}")) == b"by ann"
        with pytest.raises(UnauthenticatedError):
            await unary.handle(b"", call())
        with pytest.raises(UnauthenticatedError):
            await anext(stream.handle(b"", call()))
        replies = stream.handle(b"", call(f"Bearer {token}"))
        assert await anext(replies) == b"0"
        path.write_text("# nobody\n")
        with pytest.raises(UnauthenticatedError):
            await anext(replies)
        await replies.aclose()  # type: ignore[attr-defined]  # as a frontend does, where it is
        assert closed == ["ann"]

    asyncio.run(main())
    with pytest.raises(TypeError, match="cannot be guarded"):
        Gate().guard({"/s/Talk": BidiHandler(lambda requests, context: requests)})


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("no such host.invalid", False),
    ],
)
def test_loopback_addresses_are_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_address_that_others_reach_needs_credentials(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate.of(ListenConfig(admin_host="0.0.0.0"))
    for word in ("[server] admin_host = 0.0.0.0", "admin_tokens", "admin_tls_client_ca"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError):  # TLS that asks for no certificate lets anybody in
        Gate.of(ListenConfig(admin_host="::", admin_tls_cert="x", admin_tls_key="y"))
    Gate.of(ListenConfig())
    tls = ListenConfig(
        admin_host="0.0.0.0", admin_tls_cert="x", admin_tls_key="y", admin_tls_client_ca="z"
    )
    Gate.of(tls)
    new_token(path, "ann", "viewer")
    assert not caplog.records
    Gate.of(ListenConfig(admin_host="0.0.0.0", admin_tokens=str(path)))
    assert "without admin_tls_cert, tokens cross the network" in caplog.text
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"\[server\] admin_tokens = .*tokens: has mode 644"):
        Gate.of(ListenConfig(admin_tokens=str(path)))
    with pytest.raises(ConfigError, match=r"admin_tokens = .*absent: cannot be read"):
        Gate.of(ListenConfig(admin_tokens=str(path.with_name("absent"))))
