"""Who may call the admin port, and in whose name: asked before a handler, which need not know.

With a tokens file every call carries a token, and its role says which methods are allowed. Without
one, and with certificates, whoever shows a certificate of the authority is an operator. With neither,
anybody who reaches the port is, and so it must be the loopback address. The name in a token or a
certificate is the actor of every change that its call makes, whatever the request says.

Health checks and reflection tell nothing that is worth a token, and probes have none: they pass.
A stream is asked for its token with each message, so one that was taken back ends the stream.
"""

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from ...config import ConfigError, ListenConfig
from ...errors import PermissionDeniedError, UnauthenticatedError
from ..handlers import CallContext, Handler, StreamHandler, UnaryHandler
from .tokens import TokensError, TokensFile

_log = logging.getLogger(__name__)

# What only asks. AwaitSettled may move a loop's clock, and whatever is not named changes something.
VIEWERS_METHODS = frozenset(
    {
        *("ListVersions", "DescribeVersion", "GetHistory", "GetDrift"),
        *("RolloutStatus", "TrainingStatus", "Verify", "WatchEvents"),
    }
)

_SCHEME = "bearer "


class Gate:
    """What stands before the handlers; used on one event loop."""

    def __init__(self, tokens: TokensFile | None = None, *, certificates: bool = False) -> None:
        """`certificates`: nobody connects without one."""
        self._tokens = tokens
        self._certificates = certificates

    @classmethod
    def of(cls, listen: ListenConfig) -> "Gate":
        """As the settings say. ConfigError if they would let in anybody, or cannot be followed."""
        certificates = bool(listen.admin_tls_client_ca)
        if not (listen.admin_tokens or certificates or is_loopback(listen.admin_host)):
            raise ConfigError(
                f"[server] admin_host = {listen.admin_host}: others can reach that address, so "
                "callers must be known: set admin_tokens, or admin_tls_client_ca with admin_tls_cert "
                "and admin_tls_key; or take 127.0.0.1"
            )
        if not listen.admin_tokens:
            return cls(certificates=certificates)
        if not (listen.admin_tls_cert or is_loopback(listen.admin_host)):
            _log.warning(
                "[server] admin_host = %s: without admin_tls_cert, tokens cross the network for "
                "everybody on the way to read",
                listen.admin_host,
            )
        try:
            return cls(TokensFile(Path(listen.admin_tokens)), certificates=certificates)
        except TokensError as error:
            raise ConfigError(f"[server] admin_tokens = {error}") from error

    def admit(self, method: str, context: CallContext) -> CallContext:
        """The call with its actor. UnauthenticatedError, PermissionDeniedError."""
        if self._tokens is None:
            if not self._certificates:
                return context
            return replace(
                context, actor=context.caller().certificate_name or "unnamed certificate"
            )
        authorization = context.caller().authorization
        if not authorization:
            raise UnauthenticatedError(
                "the admin port wants a token: `authorization: Bearer TOKEN` in the metadata of the "
                "call, --token or TRIMTAB_TOKEN on the command line"
            )
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError("authorization must be `Bearer TOKEN`")
        found = self._tokens.find(authorization[len(_SCHEME) :].strip())
        if found is None:
            _log.warning("%s: %s with a token that nobody knows", context.peer, method)
            raise UnauthenticatedError("the token is none of this server's")
        if found.role != "operator" and method.rpartition("/")[2] not in VIEWERS_METHODS:
            raise PermissionDeniedError(
                f"{found.name} has the role {found.role}: {method.rpartition('/')[2]} needs operator"
            )
        return replace(context, actor=found.name)

    def guard(self, handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
        """The same handlers, for callers that may."""
        return {name: self._guarded(name, handler) for name, handler in handlers.items()}

    def _guarded(self, name: str, handler: Handler) -> Handler:
        if isinstance(handler, UnaryHandler):
            answer = handler.handle

            async def call(request: bytes, context: CallContext) -> bytes:
                return await answer(request, self.admit(name, context))

            return UnaryHandler(call)
        if isinstance(handler, StreamHandler):
            tell = handler.handle

            def watch(request: bytes, context: CallContext) -> AsyncIterator[bytes]:
                try:
                    admitted = self.admit(name, context)
                except Exception as error:  # noqa: BLE001  told as the stream's end
                    return _Refused(error)
                return _Watched(tell(request, admitted), self, name, context)

            return StreamHandler(watch)
        raise TypeError(f"{name}: a stream of requests cannot be guarded")


class _Watched(AsyncIterator[bytes]):
    """A stream that is asked again with each message."""

    def __init__(
        self, replies: AsyncIterator[bytes], gate: Gate, name: str, context: CallContext
    ) -> None:
        self._replies = replies
        self._gate = gate
        self._name = name
        self._context = context

    async def __anext__(self) -> bytes:
        reply = await anext(self._replies)
        self._gate.admit(self._name, self._context)
        return reply

    async def aclose(self) -> None:
        close = getattr(self._replies, "aclose", None)
        if close is not None:
            await close()


class _Refused(AsyncIterator[bytes]):
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __anext__(self) -> bytes:
        raise self._error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; of a name, whatever it stands for."""
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return False  # the start will say what is wrong with it
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)
