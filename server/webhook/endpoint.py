"""One receiver, over HTTP: a message out, a reply back, within a limit of time in all.

Nothing but the standard library: a connection for each attempt (events are rare), the system's
authorities for HTTPS, no redirects, no proxy. Credentials in the URL become basic authentication.
What may be secret of a URL (credentials, path, query) is in no log: `shown` is.

`post` on one thread, `close` on any.
"""

import base64
import contextlib
import http.client
import socket
import ssl
import threading
from importlib.metadata import version
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from ..config import WebhookConfig
from . import signature
from .message import Message
from .retry import Reply

_MAX_TEXT = 1000  # bytes of a reply that are read


class Endpoint:
    """See the module."""

    def __init__(self, config: WebhookConfig, context: ssl.SSLContext | None = None) -> None:
        """`context`: instead of the system's authorities."""
        self._url = urlsplit(config.url)
        self._timeout_s = config.timeout_s
        self._secret_file = Path(config.secret_file) if config.secret_file else None
        self._context = context
        self._agent = f"trimtab/{version('trimtab')}"
        self._lock = threading.Lock()  # guards the two below
        self._socket: socket.socket | None = None
        self._aborted = ""  # why the attempt under way was ended
        self._closed = False

    def __repr__(self) -> str:
        return f"Endpoint({self.shown})"

    @property
    def shown(self) -> str:
        """Where it is, as others may see it."""
        return shown(self._url)

    def check(self) -> None:
        """Raises SecretError if messages to it cannot be signed."""
        if self._secret_file is not None:
            signature.read_keys(self._secret_file)

    def post(self, message: Message, now_s: float) -> Reply:
        """One attempt. Never raises for what the network or the other side does."""
        with self._lock:
            self._aborted = "the server stops" if self._closed else ""
        try:
            keys = signature.read_keys(self._secret_file) if self._secret_file else []
        except signature.SecretError as error:
            return Reply(error=str(error))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            "Connection": "close",
            **signature.headers(keys, message.id, int(now_s), message.body),
        }
        if self._url.username is not None:
            pair = f"{unquote(self._url.username)}:{unquote(self._url.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        limit = threading.Timer(
            self._timeout_s, self._abort, (f"no reply within {self._timeout_s:g} s",)
        )
        limit.daemon = True
        limit.start()
        connection = self._connection()
        try:
            return self._exchange(connection, message.body, headers)
        except Exception as error:  # noqa: BLE001  an edge: whatever a peer may do to a client
            with self._lock:
                return Reply(error=self._aborted or f"{type(error).__name__}: {error}")
        finally:
            limit.cancel()
            with self._lock:
                self._socket = None
            connection.close()

    def close(self) -> None:
        """Ends the attempt under way, and makes no other."""
        self._closed = True
        self._abort("the server stops")

    def _abort(self, why: str) -> None:
        with self._lock:
            self._aborted = self._aborted or why
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> http.client.HTTPConnection:
        url = self._url
        assert url.hostname is not None, "the settings were checked"
        if url.scheme == "http":
            return http.client.HTTPConnection(url.hostname, url.port, timeout=self._timeout_s)
        if self._context is None:
            self._context = ssl.create_default_context()
        return http.client.HTTPSConnection(
            url.hostname, url.port, timeout=self._timeout_s, context=self._context
        )

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> Reply:
        connection.connect()
        with self._lock:
            self._socket = connection.sock
            if self._aborted:
                raise TimeoutError(self._aborted)
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        text = b""
        with contextlib.suppress(OSError, http.client.HTTPException):  # the status is what counts
            text = response.read(_MAX_TEXT)
        retry_after = response.getheader("Retry-After") or ""
        return Reply(response.status, retry_after, text=text.decode(errors="replace"))


def shown(url: SplitResult) -> str:
    """A URL without its credentials, path and query."""
    host = url.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{url.port}" if url.port is not None else ""
    return f"{url.scheme}://{host}{port}" + ("/…" if url.path.strip("/") or url.query else "")
