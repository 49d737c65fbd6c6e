"""The metrics port as a scraper sees it, and that no scraper can hold it up."""

import gzip
import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from tests.fakes import FakeClock
from tests.loop_fakes import wait_until
from trimtab.server.services import metrics_server
from trimtab.server.services.metrics_server import MetricsServer

LINE = b'nv_inference_count{model="m",version="1"} 5.0'
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


class FakeCollector(Collector):
    """Shows two families, or fails, or waits inside a scrape."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def collect(self) -> Iterable[Metric]:
        self.entered.set()
        assert self.go_on.wait(30), "nobody let the scrape go on"
        if self.error is not None:
            raise self.error
        counter = UnknownMetricFamily("nv_inference_count", "Rows", labels=("model", "version"))
        counter.add_metric(("m", "1"), 5)
        return [counter, GaugeMetricFamily("g", "Of nothing", 1)]


@pytest.fixture
def collector() -> FakeCollector:
    return FakeCollector()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(collector: FakeCollector, clock: FakeClock) -> Iterator[MetricsServer]:
    made = MetricsServer("127.0.0.1", 0, collector, limit_s=10.0, clock=clock)
    yield made
    collector.go_on.set()
    made.stop()


@pytest.fixture
def port(server: MetricsServer) -> int:
    return server.start()


def get(
    port: int,
    path: str = "/metrics",
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    host: str = "127.0.0.1",
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def ended(connection: socket.socket) -> bool:
    """Once the server has cut it off."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_scrape_gets_the_text_format(port: int) -> None:
    status, headers, body = get(port)
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Length"] == str(len(body))
    assert "Content-Encoding" not in headers
    assert LINE in body.splitlines()
    assert b"# TYPE nv_inference_count counter" in body.splitlines()
    assert b"# TYPE g gauge" in body.splitlines()


def test_prometheus_gets_openmetrics_with_the_same_names(port: int) -> None:
    status, headers, body = get(port, headers={"Accept": OPENMETRICS})
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert LINE in body.splitlines()
    assert b"# TYPE nv_inference_count unknown" in body.splitlines()
    assert body.endswith(b"# EOF\n")


def test_a_body_is_gzipped_for_who_takes_that(port: int) -> None:
    plain = get(port)[2]
    status, headers, body = get(port, headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert headers["Content-Length"] == str(len(body))
    assert gzip.decompress(body) == plain


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=x", "text/plain;version=", "*/*", ",;,"]
)
def test_an_accept_header_of_any_kind_gets_an_answer(port: int, accept: str) -> None:
    status, _, body = get(port, headers={"Accept": accept})
    assert status == 200 and LINE in body


def test_other_paths(port: int) -> None:
    status, headers, body = get(port, "/")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert body.count(b"\n") == 2 and b"/metrics" in body
    assert get(port, "/metrics?name[]=g")[0] == 200
    for path in ("/metric", "/metrics/", "/v2/health/live", "/favicon.ico"):
        status, _, body = get(port, path)
        assert status == 404 and b"/metrics" in body
    assert get(port, method="POST")[0] == 501


def test_a_scrape_that_fails_is_told_and_logged(
    port: int, collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.error = RuntimeError("broken")
    status, _, body = get(port)
    assert status == 500 and b"broken" not in body
    assert "RuntimeError: broken" in caplog.text
    collector.error = None
    assert get(port)[0] == 200


def test_a_taken_port_is_named(port: int, collector: FakeCollector) -> None:
    second = MetricsServer("127.0.0.1", port, collector)
    with pytest.raises(
        OSError, match=rf"cannot listen on 127\.0\.0\.1:{port} for metrics: .*0 for"
    ):
        second.start()
    second.stop()
    assert get(port)[0] == 200, "the first one is as it was"


def test_an_address_of_another_machine_is_named(collector: FakeCollector) -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0 for metrics: \w+"):
        MetricsServer("192.0.2.1", 0, collector).start()


def test_a_port_can_be_had_again_after_a_stop(port: int, server: MetricsServer) -> None:
    get(port)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    again = MetricsServer("127.0.0.1", port, FakeCollector())
    assert again.start() == port
    assert get(port)[0] == 200
    again.stop()


def test_a_stop_does_not_wait_for_scrapers(
    port: int, server: MetricsServer, collector: FakeCollector
) -> None:
    silent = connect(port)
    half = connect(port, b"GET /metrics HTTP/1.1\r\nHost: ")
    collector.go_on.clear()
    computing = connect(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert collector.entered.wait(30)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 2
    for connection in (silent, half, computing):
        with connection:
            assert ended(connection)
    collector.go_on.set()


def test_who_takes_too_long_is_cut_off(port: int, clock: FakeClock) -> None:
    slow = connect(port, b"GET /metrics HTTP/1.1\r\n")
    assert get(port)[0] == 200, "so the one before it was accepted as well"
    clock.advance(9.9)
    assert get(port)[0] == 200
    slow.sendall(b"X-More: to come\r\n")  # which does not prolong it
    clock.advance(0.2)
    with slow:
        assert ended(slow)
    assert get(port)[0] == 200


def test_more_connections_than_there_is_room_for_are_closed_at_once(port: int) -> None:
    many = [connect(port) for _ in range(metrics_server._MAX_CONNECTIONS)]
    with connect(port, b"GET /metrics HTTP/1.1\r\n\r\n") as refused:
        assert ended(refused)
    for connection in many:
        connection.close()

    def answered() -> bool:
        try:
            return get(port)[0] == 200
        except (ConnectionError, http.client.HTTPException):
            return False  # the threads of those that were closed are still at it

    wait_until(answered, "room for another connection")


def test_who_goes_away_leaves_no_noise(
    port: int, collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.go_on.clear()
    connection = connect(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert collector.entered.wait(30)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()  # with a reset
    collector.go_on.set()
    with caplog.at_level(logging.INFO):
        assert get(port)[0] == 200
    assert not caplog.records


def test_it_listens_on_ipv6(collector: FakeCollector) -> None:
    server = MetricsServer("[::1]", 0, collector)
    try:
        port = server.start()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    assert get(port, host="::1")[0] == 200
    server.stop()
