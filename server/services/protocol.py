"""What the handlers of the Open Inference Protocol share, however many modules they are in."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ..errors import InvalidRequestError
from .handlers import CallContext, Handler, UnaryHandler

SERVICE = "inference.GRPCInferenceService"

_Request = TypeVar("_Request", bound=Message)


def parse(kind: type[_Request], request: bytes) -> _Request:
    """The message of a call. Raises InvalidRequestError."""
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a {kind.DESCRIPTOR.full_name}: {error}"
        ) from error


def unary(
    service: str, methods: Mapping[str, Callable[[bytes, CallContext], Awaitable[bytes]]]
) -> dict[str, Handler]:
    """Handlers by full method name, of functions by a method's own."""
    return {f"/{service}/{name}": UnaryHandler(handle) for name, handle in methods.items()}
