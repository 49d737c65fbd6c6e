"""A receiver of webhooks on a free port of 127.0.0.1, which answers as the test says."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """A request."""

    path: str
    headers: dict[str, str]  # by lower-case name
    body: bytes


@dataclass
class FakeReceiver:
    """`answers` are used up one by one; then 204. What a client gets to see of each is a status and
    headers; None: nothing at all, until the receiver is closed."""

    port: int = 0
    answers: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    requests: list[Received] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def take(self, received: Received) -> tuple[int, dict[str, str]] | None:
        with self.arrived:
            answer = self.answers.pop(0) if self.answers else (204, {})
            self.requests.append(received)
            self.arrived.notify_all()
        return answer

    def wait_for(self, count: int) -> list[Received]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, 20), self.requests
            return list(self.requests)


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[FakeReceiver]:
    """Until the block ends."""
    receiver = FakeReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.take(Received(self.path, headers, self.rfile.read(length)))
            if answer is None:
                receiver.closing.wait(20)
                return
            status, fields = answer
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if status == 204 else b"as you say")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that leave, and TLS that is not to be

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.closing.set()
            server.shutdown()
            thread.join(20)
