"""A gRPC server on libgrpc++ whose predictions never meet the interpreter.

`Frontend.start` and `stop` block, with the GIL released, and may be called by any thread; everything
else belongs to the thread of the event loop. The module is absent where it was not built.
"""

from collections.abc import Mapping
from typing import Protocol

# Kinds of methods.
UNARY: int
STREAM: int
BIDI: int

# Kinds of events.
CALL: int  # a new call; unary and stream: its message is there to be taken
MESSAGE: int  # what `read` asked for
HALF_CLOSE: int  # likewise: there are no more
WRITTEN: int  # what `write` sent has left
BROKEN: int  # likewise: it will not arrive
GONE: int  # the client has left or its deadline has passed; `finish` is still owed
DONE: int  # nothing more will be heard of the call

class _Plane(Protocol):
    @property
    def inference(self) -> object: ...

def version() -> str:
    """Of the libgrpc++ that is linked."""

class GenericCall:
    """A call that Python answers. Each needs one end, `reply` or `finish`, if only because its client
    left; the first one counts, and nothing happens after it."""

    @property
    def id(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def deadline(self) -> float | None:
        """In seconds of time.monotonic()."""

    def take_message(self) -> bytes:
        """The one message of a unary or stream call. Once."""

    def read(self) -> None:
        """Asks for the next message: one MESSAGE or HALF_CLOSE follows. Not again before it."""

    def send_initial_metadata(self) -> None: ...
    def write(self, message: bytes) -> bool:
        """Sends a message: one WRITTEN or BROKEN follows, and nothing if this was False. Not again
        before it."""

    def reply(self, message: bytes) -> None:
        """The only message, and the end with status OK."""

    def finish(self, code: int, text: str) -> None:
        """The end, with one of gRPC's codes."""

class Frontend:
    """A server on one address. Methods are by full name; those that it does not know are refused."""

    def __init__(
        self,
        address: str,
        methods: Mapping[str, int],
        plane: _Plane | None,
        *,
        max_message_bytes: int,
        compression: str = "none",
        tls_cert: bytes = b"",
        tls_key: bytes = b"",
        tls_client_ca: bytes = b"",
        keepalive_s: float = 7200.0,
        keepalive_timeout_s: float = 20.0,
        max_concurrent_streams: int = 0,
    ) -> None:
        """`plane` answers ModelInfer and ModelStreamInfer; None: they are methods like others."""

    def start(self) -> int:
        """Listens; the port, or 0 where the address or the certificate cannot be had. Once."""

    def refuse(self) -> None:
        """New calls are refused from now on; the first part of `stop`, which does not block."""

    def stop(self, grace_s: float, patience_s: float) -> bool:
        """Refuses new calls, lets those under way finish for the grace, cancels the rest and waits
        for their end, for which events must be drained meanwhile. False: some did not end within
        `patience_s`, and are left with all that they may use."""

    def fileno(self) -> int:
        """Readable when there are events."""

    @property
    def open_calls(self) -> int: ...
    def drain(self) -> list[tuple[int, int, GenericCall | bytes | None]]:
        """The events since the last time: kind, id of the call, and the new call or the message."""

class EchoInference:
    """Answers each request with its own bytes: a stand-in for tests, and to measure a transport alone."""

    @property
    def inference(self) -> object: ...
    def behave(self, *, delay_s: float = 0.0, code: int = 0, text: str = "") -> None:
        """How requests are answered from now on; a delay below 0: not until `release_held`."""

    def release_held(self, *, last_first: bool = False) -> None: ...
    @property
    def submitted(self) -> int: ...
    @property
    def cancelled(self) -> int:
        """Of those that waited."""

    @property
    def waiting(self) -> int: ...
