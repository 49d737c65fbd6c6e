"""How a service offers its methods to a frontend: full method name to a handler of raw bytes.

A service decodes its own requests and encodes its own replies, so that one set of handlers serves
every transport, and a transport knows no message. A handler raises a `TrimtabError` for what the
caller should be told and leaves status codes to the frontend. Handlers run on the frontend's event
loop and must not block it; a call that the client cancelled, or whose deadline passed, is cancelled
as an asyncio task.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call says of who makes it. TLS has checked the certificate, nobody the rest."""

    authorization: str = ""  # the metadata of that name, if there is one and no second
    certificate_name: str = ""  # of the client's certificate; empty: it showed none


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a handler may know about a call beyond its message."""

    deadline: float | None = None  # time.monotonic() seconds; None: the client set none
    peer: str = ""
    caller: Callable[[], Caller] = Caller  # a function, as most services never ask
    actor: str = ""  # who calls, by a credential that was checked; empty: none was asked for


@dataclass(frozen=True, slots=True)
class UnaryHandler:
    """One request, one reply."""

    handle: Callable[[bytes, CallContext], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class StreamHandler:
    """One request, any number of replies; the iterator is closed when the client leaves."""

    handle: Callable[[bytes, CallContext], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class BidiHandler:
    """Any number of requests, any number of replies; both iterators end when the client leaves."""

    handle: Callable[[AsyncIterator[bytes], CallContext], AsyncIterator[bytes]]


Handler = UnaryHandler | StreamHandler | BidiHandler


def services_of(methods: Iterable[str]) -> set[str]:
    """The full names of the services that full method names belong to."""
    return {method.split("/")[1] for method in methods}
