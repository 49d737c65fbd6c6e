"""One attempt at a time, against a real receiver."""

import base64
import hashlib
import hmac
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from tests.certificates import make_certificates
from tests.server.webhook.receiver import receiving
from trimtab.server.config import WebhookConfig
from trimtab.server.webhook.endpoint import Endpoint
from trimtab.server.webhook.message import Message
from trimtab.server.webhook.retry import Reply
from trimtab.server.webhook.signature import new_secret

MESSAGE = Message("evt_1", "drift", 5, b'{"type":"drift"}')


def post(url: str, **settings: Any) -> Reply:
    return Endpoint(WebhookConfig(url, **settings)).post(MESSAGE, 1_700_000_000.9)


def test_a_message_arrives_whole_and_its_signature_holds(tmp_path: Path) -> None:
    secret = new_secret(tmp_path / "secret")
    with receiving() as receiver:
        reply = post(receiver.url("/a/b?c=d"), secret_file=str(tmp_path / "secret"))
        (got,) = receiver.requests
    assert reply.status == 204 and (got.path, got.body) == ("/a/b?c=d", MESSAGE.body)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "evt_1"
    assert got.headers["webhook-timestamp"] == "1700000000"
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, b"evt_1.1700000000." + MESSAGE.body, hashlib.sha256).digest()
    assert got.headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
    assert "authorization" not in got.headers


def test_credentials_in_the_url_are_sent_and_not_shown() -> None:
    with receiving() as receiver:
        url = receiver.url("/token").replace("//", "//ann:p%40ss@")
        endpoint = Endpoint(WebhookConfig(url))
        assert endpoint.post(MESSAGE, 0).status == 204
        (got,) = receiver.requests
        assert got.headers["authorization"] == "Basic " + base64.b64encode(b"ann:p@ss").decode()
        assert endpoint.shown == f"http://127.0.0.1:{receiver.port}/…"
        assert "p@ss" not in repr(endpoint) and "token" not in repr(endpoint)


def test_a_redirect_is_not_followed() -> None:
    with receiving() as receiver:
        receiver.answers.append((307, {"Location": receiver.url("/elsewhere")}))
        assert post(receiver.url()).status == 307
        assert [each.path for each in receiver.requests] == ["/hook"]


def test_what_a_reply_says_is_kept_in_part() -> None:
    with receiving() as receiver:
        receiver.answers.append((503, {"Retry-After": "30"}))
        reply = post(receiver.url())
    assert (reply.status, reply.retry_after, reply.text) == (503, "30", "as you say")


def test_nobody_there_is_an_error_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reply = post(f"http://127.0.0.1:{port}")
    assert reply.status == 0 and "refused" in reply.error


def test_a_receiver_that_does_not_answer_has_the_time_that_was_set() -> None:
    with receiving() as receiver:
        receiver.answers.append(None)
        reply = post(receiver.url(), timeout_s=0.1)
        assert reply.status == 0
        assert reply.error in ("no reply within 0.1 s", "TimeoutError: timed out")


def test_a_receiver_that_drips_has_no_longer() -> None:
    """Each byte comes in time; the reply never does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            peer, _ = listener.accept()
            with peer:
                try:
                    while not ended.wait(0.02):
                        peer.sendall(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        reply = post(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)
        ended.set()
        thread.join(20)
    assert (reply.status, reply.error) == (0, "no reply within 0.3 s")


def test_an_end_breaks_an_attempt_off() -> None:
    with receiving() as receiver:
        receiver.answers.append(None)
        endpoint = Endpoint(WebhookConfig(receiver.url(), timeout_s=60))
        replies: list[Reply] = []
        thread = threading.Thread(target=lambda: replies.append(endpoint.post(MESSAGE, 0)))
        thread.start()
        receiver.wait_for(1)
        endpoint.close()
        thread.join(20)
        assert [each.error for each in replies] == ["the server stops"]
        assert endpoint.post(MESSAGE, 0).status == 0, "and there is no other"


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.path("server.pem"), files.path("server.key"))
    with receiving(serving) as receiver:
        config = WebhookConfig(f"https://127.0.0.1:{receiver.port}/hook")
        stranger = Endpoint(config).post(MESSAGE, 0)
        assert stranger.status == 0 and "CERTIFICATE_VERIFY_FAILED" in stranger.error
        trusting = ssl.create_default_context(cafile=files.path("ca.pem"))
        assert Endpoint(config, trusting).post(MESSAGE, 0).status == 204
        assert len(receiver.requests) == 1


def test_a_secret_that_went_bad_is_an_attempt_that_failed(tmp_path: Path) -> None:
    with receiving() as receiver:
        reply = post(receiver.url(), secret_file=str(tmp_path / "gone"))
        assert reply.status == 0 and "cannot be read" in reply.error
        assert receiver.requests == [], "nothing goes out unsigned"
