"""One receiver's messages: in order, again and again, until they are taken or too old."""

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes import FakeClock
from tests.loop_fakes import FakeWall
from trimtab.server.webhook.delivery import Delivery
from trimtab.server.webhook.message import Message
from trimtab.server.webhook.outbox import Outbox
from trimtab.server.webhook.retry import Reply


@dataclass
class FakeEndpoint:
    """Answers as it is told to, else 200."""

    answers: list[Reply] = field(default_factory=list)
    posted: list[str] = field(default_factory=list)
    shown: str = "https://hooks.example/…"
    arrived: threading.Event = field(default_factory=threading.Event)

    def post(self, message: Message, now_s: float) -> Reply:
        self.posted.append(message.id)
        self.arrived.set()
        return self.answers.pop(0) if self.answers else Reply(200)

    def close(self) -> None:
        pass


class World:
    def __init__(self, path: Path) -> None:
        self.wall, self.clock = FakeWall(1_000_000), FakeClock()
        self.outbox = Outbox(path / "o", 1 << 20)
        self.outbox.open()
        self.endpoint = FakeEndpoint()
        self.delivery = Delivery(
            "ops",
            self.outbox,
            self.endpoint,
            max_age_s=3600,
            wall=self.wall,
            monotonic=self.clock,
            draw=lambda: 0.0,
        )

    def add(self, *names: str) -> None:
        self.outbox.add([Message(name, "drift", self.wall.ms, b"{}") for name in names], {})

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.clock.advance(seconds)

    def run(self) -> float | None:
        """Steps until there is something to wait for."""
        while (wait_s := self.delivery.step()) == 0.0:
            pass
        return wait_s


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_messages_are_delivered_in_order_and_then_there_is_nothing_to_do(world: World) -> None:
    world.add("a", "b", "c")
    assert world.run() is None
    assert world.endpoint.posted == ["a", "b", "c"]
    stats = world.delivery.stats
    assert (stats.delivered, stats.failed, stats.pending, stats.dropped) == (3, 0, 0, 0)


def test_the_next_message_waits_for_the_one_before(world: World) -> None:
    world.endpoint.answers = [Reply(500), Reply(error="refused"), Reply(500)]
    world.add("a", "b")
    assert world.run() == 1.0
    assert world.run() == 1.0, "not before its time"
    world.advance(1)
    assert world.run() == 2.0
    world.advance(2)
    assert world.run() == 4.0
    assert world.endpoint.posted == ["a", "a", "a"]
    assert world.delivery.stats.problem == "HTTP 500"
    world.advance(4)
    assert world.run() is None
    assert world.endpoint.posted == ["a", "a", "a", "a", "b"]
    stats = world.delivery.stats
    assert (stats.delivered, stats.failed, stats.problem) == (2, 3, "")


def test_a_message_that_nobody_takes_is_given_up_when_it_is_too_old(world: World) -> None:
    world.endpoint.answers = [Reply(500)] * 100
    world.add("a")
    world.advance(1800)
    world.add("b")
    while world.endpoint.answers and world.delivery.stats.too_old == 0:
        world.advance(world.run() or 0)
    first = world.outbox.first()
    assert first is not None and first.id == "b"
    world.endpoint.answers = []
    world.advance(600)
    assert world.run() is None
    stats = world.delivery.stats
    assert (stats.too_old, stats.dropped, stats.delivered, stats.pending) == (1, 1, 1, 0)


def test_a_message_that_is_refused_for_what_it_is_does_not_block_the_next(world: World) -> None:
    world.endpoint.answers = [Reply(400)] * 5
    world.add("a", "b")
    while (wait_s := world.run()) is not None:
        world.advance(wait_s)
    assert world.endpoint.posted == ["a"] * 5 + ["b"]
    assert (world.delivery.stats.refused, world.delivery.stats.delivered) == (1, 1)


def test_a_receiver_that_is_gone_is_sent_nothing_until_the_next_start(
    world: World, tmp_path: Path
) -> None:
    world.endpoint.answers = [Reply(410)]
    world.add("a", "b")
    assert world.run() is None
    world.add("c")
    assert world.run() is None and world.endpoint.posted == ["a"]
    assert world.delivery.stats.pending == 3
    assert World(tmp_path).run() is None
    again = World(tmp_path)
    assert again.outbox.pending == 0, "the next start has sent them"


def test_a_receiver_says_how_long_it_wants_to_be_let_alone(world: World) -> None:
    world.endpoint.answers = [Reply(429, "120")]
    world.add("a")
    assert world.run() == 120.0


def test_a_failure_is_logged_once_and_its_end_too(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.endpoint.answers = [Reply(500)] * 5
    world.add("a")
    with caplog.at_level(logging.INFO, "trimtab.server.webhook"):
        while (wait_s := world.run()) is not None:
            world.advance(wait_s)
    texts = [each.getMessage() for each in caplog.records]
    assert texts == [
        "webhook 'ops': https://hooks.example/… cannot be sent a (drift): HTTP 500",
        "webhook 'ops': https://hooks.example/… takes messages again",
    ]


def test_the_thread_delivers_what_comes_and_ends(world: World) -> None:
    world.delivery.start()
    world.add("a")
    world.delivery.wake()
    assert world.endpoint.arrived.wait(20)
    world.delivery.stop()
    assert world.endpoint.posted == ["a"] and not world.delivery._thread.is_alive()
    assert world.delivery.stats.delivered == 1, "its reply counts"
