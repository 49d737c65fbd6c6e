"""What every method of the admin service shares: decoding, errors, who changes something and why.

A handler decodes, asks the registry, the lifecycle or the control loop, and encodes. All of these may
wait for a disk or a model to load, so they are asked on a thread.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from trimtab.registry.directory import ModelDirectory, Registry, Why
from trimtab.registry.errors import (
    InvalidNameError,
    LockTimeoutError,
    RegistryError,
    VersionNotFoundError,
)

from ...errors import InvalidRequestError, NotFoundError, PreconditionError, UnavailableError
from ...lifecycle.version_plan import ModelStatus
from ..handlers import CallContext, UnaryHandler

_MAX_TEXT = 4096  # characters of an actor or a reason

_Request = TypeVar("_Request", bound=Message)


class Lifecycle(Protocol):
    """Of the ModelManager, what tells of models."""

    def status(self, model: str) -> ModelStatus | None: ...
    def statuses(self) -> tuple[ModelStatus, ...]: ...


class Models:
    """The models by name, as the lifecycle and the registry have them; NotFoundError."""

    def __init__(self, registry: Registry, lifecycle: Lifecycle) -> None:
        self.registry = registry
        self._lifecycle = lifecycle

    @property
    def path(self) -> Path:
        return self.registry.path

    def status(self, model: str) -> ModelStatus:
        """What is loaded of it."""
        status = self._lifecycle.status(model)
        if status is None:
            raise unknown(model)
        return status

    def statuses(self) -> tuple[ModelStatus, ...]:
        return self._lifecycle.statuses()

    def directory(self, model: str) -> ModelDirectory:
        """What there is of it, loaded or not."""
        try:
            if model in self.registry.models():
                return self.registry.model(model)
        except InvalidNameError:
            pass  # unknown, then
        raise unknown(model)


def unknown(model: str) -> NotFoundError:
    return NotFoundError(f"Request for unknown model: '{model}' is not found")


def unary(
    kind: type[_Request], handle: Callable[[_Request, CallContext], Awaitable[Message]], path: Path
) -> UnaryHandler:
    """A handler of raw bytes; `path` is the models directory."""

    async def call(request: bytes, context: CallContext) -> bytes:
        with refusals(path):
            reply = await handle(decode(kind, request), context)
        return reply.SerializeToString()

    return UnaryHandler(call)


def on_thread(
    kind: type[_Request], read: Callable[[_Request], Message], path: Path
) -> UnaryHandler:
    """A handler that only reads, and that on a thread."""

    async def call(request: _Request, _: CallContext) -> Message:
        return await asyncio.to_thread(read, request)

    return unary(kind, call, path)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """The registry's errors, and a disk's, become those that a caller is told."""
    try:
        yield
    except LockTimeoutError as error:
        raise UnavailableError(str(error)) from error
    except VersionNotFoundError as error:
        raise NotFoundError(str(error)) from error
    except RegistryError as error:
        raise PreconditionError(str(error)) from error
    except OSError as error:
        raise UnavailableError(f"the models directory {path} cannot be used: {error}") from error


def decode(kind: type[_Request], request: bytes) -> _Request:
    """The message of a call. Raises InvalidRequestError."""
    message = kind()
    try:
        message.ParseFromString(request)
    except DecodeError as error:
        raise InvalidRequestError(f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return message


def why(request: Any, context: CallContext, event_time_ms: int | None = None) -> Why:
    """Who wants a change and why, as it goes into the history; a credential tells better who.

    `request` has the fields actor and reason, and may have expected_revision. InvalidRequestError.
    """
    actor, reason = author(request, context)
    expected = getattr(request, "expected_revision", 0)
    found = Why(actor=actor, reason=reason, event_time_ms=event_time_ms)
    if expected:
        found["expected_revision"] = expected
    return found


def author(request: Any, context: CallContext) -> tuple[str, str]:
    """Who and why alone."""
    for what, text in (("actor", request.actor), ("reason", request.reason)):
        if len(text) > _MAX_TEXT:
            raise InvalidRequestError(f"{what} of {len(text):,} characters exceeds {_MAX_TEXT:,}")
        if "\0" in text:
            raise InvalidRequestError(f"{what} has a NUL character")
    return context.actor or request.actor or "operator", request.reason or "no reason given"


def version_of(request: Any) -> int:
    """The version that a request names. InvalidRequestError."""
    if request.version < 1:
        raise InvalidRequestError(f"version {request.version} must be a number above 0")
    return int(request.version)
