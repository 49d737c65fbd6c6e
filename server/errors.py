"""What can go wrong with a request, and the gRPC status that each kind becomes.

Handlers raise these and never choose a status code themselves; a frontend turns them into
`status_of(error)` and `str(error)`. Anything else that escapes a handler is a bug and becomes
INTERNAL. Messages name the thing, the value and the limit; where Triton has a text for the
situation it is Triton's, since clients match on it.
"""

import grpc


class TrimtabError(Exception):
    """Base of every error that a caller is told about."""


class InvalidRequestError(TrimtabError):
    """The request contradicts the model's signature, the protocol or a limit."""


class NotFoundError(TrimtabError):
    """No such model, version or method."""


class UnavailableError(TrimtabError):
    """Cannot be answered now, may be later: loading, queue full, shutting down."""


class DeadlineExpiredError(TrimtabError):
    """The deadline passed before the request was run."""


class PreconditionError(TrimtabError):
    """The state is not what the caller expected: a lost compare-and-swap, nothing to roll back to."""


class AbortedError(TrimtabError):
    """Others kept changing the same thing; the caller may try again."""


class UnauthenticatedError(TrimtabError):
    """The caller did not say who it is, or nobody knows it."""


class PermissionDeniedError(TrimtabError):
    """The caller is known and may not do this."""


class ModelExecutionError(TrimtabError):
    """onnxruntime failed on these inputs."""


class ModelLoadError(TrimtabError):
    """A model that an operator asked for cannot be loaded."""


class UnsupportedError(TrimtabError):
    """The protocol has it, this server does not."""


class RefusedError(TrimtabError):
    """The data plane refused the request, with a gRPC status of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


_STATUS: dict[type[TrimtabError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    AbortedError: grpc.StatusCode.ABORTED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ModelExecutionError: grpc.StatusCode.INTERNAL,
    ModelLoadError: grpc.StatusCode.INTERNAL,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
}


_BY_CODE = {status.value[0]: status for status in grpc.StatusCode}


def code_of(error: BaseException) -> int:
    """The number of an error's gRPC status."""
    return int(status_of(error).value[0])


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL for whatever is not a TrimtabError."""
    if isinstance(error, RefusedError):
        return _BY_CODE[error.code]
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.INTERNAL
