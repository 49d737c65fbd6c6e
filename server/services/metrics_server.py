"""The metrics port: GET /metrics over HTTP, for Prometheus and whoever else scrapes.

A server of threads of its own, since collecting is Python and must not stand in the event loop's
way. One thread accepts, one per connection answers one request; all are daemons. However slow a
client is, its connection is cut off after `limit_s` seconds, at most `_MAX_CONNECTIONS` are open at
once, and `stop` cuts off all: no scraper holds up serving or a shutdown.

The format is what the client asks for, as prometheus_client negotiates it: the text format or
OpenMetrics, gzipped or not. The names of the series are the same in each (metric_families.py).
"""

import contextlib
import gzip
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from errno import EADDRINUSE
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 16
_LIMIT_S = 10.0  # Prometheus itself gives up after 10 s
_POLL_S = 0.5  # how often is looked for connections to cut off
_PAGE = b"Trimtab, a gRPC inference server.\nIts metrics are at /metrics.\n"
_TEXT = "text/plain; charset=utf-8"
# Triton's counters are `unknown` families (metric_families.py), which this format calls untyped.
_UNTYPED = re.compile(rb"^(# TYPE nv_\w+ )untyped$", re.MULTILINE)


def exposition(collector: Collector, accept: str) -> tuple[bytes, str]:
    """What there is now in the format that an Accept header asks for, and its content type."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")
    body = encode(collector)
    if content_type.startswith("text/plain"):
        body = _UNTYPED.sub(rb"\1counter", body)
    return body, content_type


class MetricsServer:
    """`start` once, `stop` from any thread and any number of times."""

    def __init__(
        self,
        host: str,
        port: int,
        collector: Collector,
        *,
        limit_s: float = _LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._port = port
        self._collector = collector
        self._limit_s = limit_s
        self._clock = clock
        self._http: _HttpServer | None = None

    def __repr__(self) -> str:
        return f"MetricsServer({self._host!r}, {self._port}, {self._http and 'started'})"

    def start(self) -> int:
        """Listens; returns the port. Raises OSError when the address cannot be had."""
        host = self._host.strip("[]")
        try:
            found = socket.getaddrinfo(
                host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            self._http = _HttpServer(family, address, self._collector, self._limit_s, self._clock)
        except OSError as error:
            hint = "; choose another port, or 0 for a free one" if error.errno == EADDRINUSE else ""
            shown = f"[{host}]" if ":" in host else host
            raise OSError(
                f"cannot listen on {shown}:{self._port} for metrics: {error.strerror}{hint}"
            ) from error
        threading.Thread(
            target=self._http.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
        ).start()
        return int(self._http.server_address[1])

    def stop(self) -> None:
        """Closes the port and every connection."""
        http, self._http = self._http, None
        if http is not None:
            # Wakes the thread that accepts, which would else notice as late as `_POLL_S`.
            with contextlib.suppress(OSError):
                http.socket.shutdown(socket.SHUT_RDWR)
            http.shutdown()
            http.server_close()
            http.cut_off(float("inf"))


class _HttpServer(ThreadingMixIn, TCPServer):
    """Not http.server's HTTPServer, which asks the DNS for its own name as it starts."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True  # of connections that linger; not of a port that is listened on
    allow_reuse_port = False
    request_queue_size = _MAX_CONNECTIONS

    def __init__(
        self,
        family: int,
        address: Any,
        collector: Collector,
        limit_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.address_family = family
        self.collector = collector
        self._limit_s = limit_s
        self._clock = clock
        self._lock = threading.Lock()  # guards _open
        self._open: dict[Any, float] = {}  # connections, and when they are cut off
        super().__init__(address, _Scrape)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            return len(self._open) < _MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = self._clock() + self._limit_s
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.cut_off(self._clock())

    def cut_off(self, now: float) -> None:
        """Ends connections that are open for too long; their threads notice at once."""
        with self._lock:
            late = [request for request, until in self._open.items() if until <= now]
        for request in late:
            with contextlib.suppress(OSError):  # it ended meanwhile
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], OSError):
            _log.debug("metrics: %s went away", client_address, exc_info=True)
        else:
            _log.exception("metrics: a request of %s failed", client_address)


class _Scrape(BaseHTTPRequestHandler):
    """One request."""

    server: _HttpServer
    server_version = "trimtab"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send_metrics()
        elif path == "/":
            self._send(200, _PAGE, _TEXT)
        else:
            self._send(404, b"Not found; the metrics are at /metrics.\n", _TEXT)

    def log_message(self, format: str, *arguments: Any) -> None:
        _log.debug("metrics: %s: %s", self.address_string(), format % arguments)

    def _send_metrics(self) -> None:
        try:
            body, content_type = exposition(self.server.collector, self._header("Accept"))
        except Exception:  # noqa: BLE001  an edge
            _log.exception("metrics: the scrape of %s failed", self.address_string())
            self._send(
                500, b"The metrics could not be written; the server's log says why.\n", _TEXT
            )
            return
        headers = {}
        if gzip_accepted(self._header("Accept-Encoding")):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        self._send(200, body, content_type, headers)

    def _header(self, name: str) -> str:
        """All headers of that name as one."""
        return ",".join(self.headers.get_all(name) or ())

    def _send(
        self, code: int, body: bytes, content_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
