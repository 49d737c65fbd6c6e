"""From the bus and the histories to the receivers, across restarts and crashes."""

import dataclasses
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loop_fakes import publish_version, wait_until
from trimtab.registry.directory import Registry
from trimtab.server.commands.admin_client import as_dict
from trimtab.server.config import ConfigError, WebhookConfig
from trimtab.server.events import KINDS, Event, EventBus
from trimtab.server.services.admin.event_stream import event_message
from trimtab.server.webhook import webhooks as module
from trimtab.server.webhook.message import Message, data
from trimtab.server.webhook.retry import Reply
from trimtab.server.webhook.webhooks import Webhooks, outbox_path

DOCS = Path(__file__).parents[3] / "docs"
OPS = WebhookConfig("https://ops.example/hook")


class FakeReceiver:
    """Takes everything, unless it is held up or down."""

    def __init__(self, config: WebhookConfig) -> None:
        self.shown = config.url
        self.down = False
        self.messages: list[Message] = []
        self.failed = 0
        self.arrived = threading.Condition()
        self.open = threading.Event()
        self.open.set()

    def post(self, message: Message, now_s: float) -> Reply:
        assert self.open.wait(20)
        with self.arrived:
            if self.down:
                self.failed += 1
            else:
                self.messages.append(message)
            self.arrived.notify_all()
            return Reply(500 if self.down else 200)

    def close(self) -> None:
        self.open.set()

    def kinds(self, count: int) -> list[str]:
        """Of the first so many messages, once they are there."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.messages) >= count, 20), self.messages
            return [each.kind for each in self.messages]

    def wait_for_failure(self) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.failed > 0, 20)


class Server:
    """What of a server tells webhooks; its bus tells of a moment before, as one may."""

    def __init__(self, path: Path, *configs: WebhookConfig, down: bool = False) -> None:
        self.registry = Registry(path)
        self.bus = EventBus(self.registry.model)
        self.bus._began_ms -= 10_000
        self.receivers: list[FakeReceiver] = []
        self.webhooks = Webhooks(configs or [OPS], self.registry, self.bus, receiver=self.make)
        for receiver in self.receivers:
            receiver.down = down
        self.webhooks.start()
        for model in self.registry.models():
            self.bus.follow(model, self.registry.model(model).history().entries)

    def make(self, config: WebhookConfig) -> FakeReceiver:
        self.receivers.append(FakeReceiver(config))
        return self.receivers[-1]

    @property
    def receiver(self) -> FakeReceiver:
        return self.receivers[0]

    def tell(self, kind: str, *, record: bool = True, model: str = "m", **more: Any) -> Event:
        return self.bus.publish(kind, model, reason="so", record=record, **more)

    def stop(self) -> None:
        self.webhooks.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / ".trimtab").mkdir()
    publish_version(Registry(tmp_path))
    return tmp_path


Start = Callable[..., Server]


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    made: list[Server] = []

    def run(*configs: WebhookConfig, **options: Any) -> Server:
        made.append(Server(path, *configs, **options))
        return made[-1]

    yield run
    for each in made:
        each.stop()


def test_what_a_person_wants_to_hear_of_is_sent_and_nothing_else(start: Start) -> None:
    server = start()
    server.tell("drift")
    server.tell("waiting", record=False)
    server.tell("training_started")
    server.tell("load_failed", record=False)
    server.tell("approval_wanted", version=2)
    assert server.receiver.kinds(3) == ["drift", "load_failed", "approval_wanted"]
    server.stop()
    (stats,) = server.webhooks.stats()
    assert (stats.name, stats.delivered, stats.pending) == ("ops.example", 3, 0)


def test_all_is_every_kind_but_what_comes_many_times_a_minute(start: Start) -> None:
    server = start(dataclasses.replace(OPS, events=("all",)))
    for kind in ("waiting", "training_progress", "something_new"):
        server.tell(kind, record=False)
    server.tell("drift")
    assert server.receiver.kinds(3) == ["waiting", "something_new", "drift"]


def test_a_body_has_the_event_as_the_command_line_shows_it(start: Start) -> None:
    server = start()
    event = server.tell("load_failed", version=3, evidence={"psi": 0.4}, record=False)
    server.receiver.kinds(1)
    body = json.loads(server.receiver.messages[0].body)
    assert set(body) == {"type", "timestamp", "data"} and body["type"] == "load_failed"
    assert re.fullmatch(r"20..-..-..T..:..:..\.\d{3}Z", body["timestamp"])
    assert body["data"] == data(event)
    for each in (event, server.tell("drift", event_time_ms=12)):
        shown = as_dict(event_message(each))
        assert shown.pop("resume_token") == "", "which is a stream's"
        assert data(each) == shown


def test_a_new_webhook_begins_with_what_happens_from_now_on(path: Path, start: Start) -> None:
    Registry(path).model("m").record("drift", actor="trimtab", reason="a moment ago")
    server = start()
    server.tell("refused")
    assert server.receiver.kinds(1) == ["refused"]


def test_what_was_not_delivered_is_sent_by_the_next_server_with_the_same_id(start: Start) -> None:
    killed = start(down=True)
    killed.tell("drift")
    failed = killed.tell("load_failed", record=False)
    wait_until(lambda: killed.webhooks.stats()[0].pending == 2, "both are in the outbox")
    ended = start(down=True)  # beside it: nobody ended the one before
    ended.receiver.wait_for_failure()
    ended.stop()
    server = start()
    assert server.receiver.kinds(2) == ["drift", "load_failed"]
    entry = server.registry.model("m").history().entries[-1]
    first, second = server.receiver.messages
    assert first.id == f"evt_{entry.hash[:32]}"
    assert second.id == f"evt_{killed.bus.run}_{failed.sequence}"


def test_what_was_recorded_while_no_server_ran_is_sent_once(path: Path, start: Start) -> None:
    start().stop()
    directory = Registry(path).model("m")
    version = publish_version(Registry(path))
    directory.promote(version, actor="ann", reason="by hand")
    directory.record("drift_cleared", actor="trimtab", reason="not asked for")
    server = start()
    assert server.receiver.kinds(1) == ["promoted"]
    server.tell("refused")
    assert server.receiver.kinds(2) == ["promoted", "refused"]
    server.stop()
    again = start()
    again.tell("held")
    assert again.receiver.kinds(1) == ["held"]


def test_a_model_that_came_while_no_server_ran_is_told_of(path: Path, start: Start) -> None:
    start().stop()
    publish_version(Registry(path), "other")
    server = start()
    assert server.receiver.kinds(1) == ["promoted"]
    assert json.loads(server.receiver.messages[0].body)["data"]["model_name"] == "other"


@pytest.mark.parametrize("running", [True, False])
def test_a_history_that_began_anew_is_told_from_its_beginning(
    path: Path, start: Start, running: bool
) -> None:
    server = start()
    for _ in range(3):
        server.tell("drift")
    server.receiver.kinds(3)
    if not running:
        server.stop()
    shutil.rmtree(path / "m")
    publish_version(Registry(path))
    if running:
        server.bus.follow("m", ())
        for entry in Registry(path).model("m").history().entries:
            server.bus.publish_entry("m", entry)
        assert server.receiver.kinds(4)[3:] == ["promoted"]
    else:
        assert start().receiver.kinds(1) == ["promoted"]


def test_what_is_queued_as_the_server_stops_is_written_down(start: Start) -> None:
    server = start(down=True)
    for _ in range(50):
        server.tell("load_failed", record=False)
    server.stop()
    assert server.webhooks.stats()[0].pending == 50
    assert len(start().receiver.kinds(50)) == 50


def test_a_queue_that_overflows_loses_nothing_that_a_history_has(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_QUEUED", 3)
    server = start()
    server.tell("drift")
    server.receiver.kinds(1)
    release = threading.Event()
    real = server.webhooks._take

    def slow(events: Any) -> None:
        assert release.wait(20)
        real(events)

    monkeypatch.setattr(server.webhooks, "_take", slow)
    for _ in range(20):
        server.tell("refused")
        server.tell("load_failed", record=False)
    release.set()
    server.stop()
    again = start()
    again.tell("held")
    stats = server.webhooks.stats()[0]
    left = [each.kind for each in server.receiver.messages]
    sent = left + again.receiver.kinds(1 + stats.pending)
    assert sent.count("refused") == 20 and sent.count("drift") == 1
    assert sent.count("load_failed") + server.webhooks.lost == 20
    assert stats.no_room == server.webhooks.lost > 0


def test_a_receiver_that_hangs_holds_up_nobody_else(start: Start) -> None:
    server = start(dataclasses.replace(OPS, name="dead"), dataclasses.replace(OPS, name="well"))
    dead, well = server.receivers
    dead.open.clear()
    for _ in range(5):
        server.tell("drift")
    assert len(well.kinds(5)) == 5 and dead.messages == []
    assert server.webhooks.stats()[0].pending == 5


def test_a_disk_that_fails_is_no_reason_not_to_tell(path: Path, start: Start) -> None:
    (path / ".trimtab").chmod(0o700)
    shutil.rmtree(path / ".trimtab")
    server = start()
    server.tell("drift")
    assert server.receiver.kinds(1) == ["drift"]


def test_without_a_webhook_nothing_runs(path: Path) -> None:
    registry = Registry(path)
    webhooks = Webhooks([], registry, EventBus(registry.model))
    webhooks.start()
    assert webhooks.stats() == [] and webhooks._thread.ident is None
    webhooks.stop()
    assert not list((path / ".trimtab").iterdir())


def test_a_secret_that_cannot_be_used_stops_the_start(path: Path) -> None:
    registry = Registry(path)
    config = WebhookConfig("https://ops.example/hook", secret_file=str(path / "none"))
    with pytest.raises(ConfigError, match=r"webhook 'ops.example': secret_file = .*none: cannot"):
        Webhooks([config], registry, EventBus(registry.model))


def test_a_kind_that_nobody_knows_is_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(path)
    config = dataclasses.replace(OPS, events=("promotd", "drift"))
    with caplog.at_level(logging.WARNING):
        Webhooks([config], registry, EventBus(registry.model))
    assert "no event is of the kind 'promotd'; did you mean promoted?" in caplog.text


def test_the_outbox_is_called_after_the_webhook(path: Path, start: Start) -> None:
    start(dataclasses.replace(OPS, name="pager"))
    assert outbox_path(path / ".trimtab", "pager").name == "webhook-pager.outbox"
    assert outbox_path(path / ".trimtab", "pager").exists()


def test_every_kind_that_the_docs_name_is_known() -> None:
    table = (DOCS / "loop.md").read_text().split("## Events")[1].split("\n## ")[0]
    named = {
        kind
        for line in table.splitlines()
        if line.startswith("| `")
        for kind in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named and named <= {*KINDS}
    assert {*WebhookConfig().events} <= {*KINDS}
