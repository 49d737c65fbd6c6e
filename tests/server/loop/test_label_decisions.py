"""What the loop decides as labels come few, late, never, of the wrong type, for nobody, or twice."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.loop_fakes import batch, draw
from tests.server.loop.test_label_monitor import CLASSES, CONFIG, NUMBER
from tests.server.loop.test_label_monitor import World as MonitorWorld
from tests.server.loop.test_quality_loop import LabelledWorld
from trimtab.proto import feedback_pb2 as pb
from trimtab.server.errors import InvalidRequestError
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.label_monitor import EARLY_S
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.services.feedback_service import FeedbackService
from trimtab.server.services.handlers import CallContext, UnaryHandler

Rows = tuple[str, NDArray[np.float64]]


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class DecidingWorld(LabelledWorld):
    """Rows are answered first; their labels come when, and if, the test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.clock = Clock()
        self.model.context.quality._clock = self.clock

    def predict(self, rows: int, sign: float = 1.0, shift: float = 0.0) -> Rows:
        numeric, carriers = draw(self.random, rows, shift)
        truth = sign * 2 * numeric[:, 0] + self.random.normal(size=rows, scale=0.3)
        self.requests += 1
        self.taps[1](batch(numeric, carriers, prefix=f"p{self.requests}"))
        return f"p{self.requests}-0", truth

    def tell(self, rows: Rows, step: int = 1) -> None:
        """Every `step`th row's label comes."""
        name, truth = rows
        told = [Label(name, row, number=float(truth[row])) for row in range(0, len(truth), step)]
        self.model.submit_labels(told, self.wall.ms)
        self.drain()

    def send(self, labels: list[pb.Label]) -> int:
        """By RPC."""
        service = FeedbackService(
            lambda model: True, lambda model: self.model, max_request_rows=65_536, wall=self.wall
        )
        handler = service.handlers()["/trimtab.v1.Feedback/SubmitLabels"]
        assert isinstance(handler, UnaryHandler)
        request = pb.SubmitLabelsRequest(model_name="m", labels=labels).SerializeToString()

        async def call() -> bytes:
            return await handler.handle(request, CallContext())

        return pb.SubmitLabelsResponse.FromString(asyncio.run(call())).accepted

    @property
    def outcomes(self) -> dict[str, int]:
        self.clock.s += EARLY_S
        self.tick()
        return {k: v for k, v in self.model.stats().quality.outcomes.items() if v}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DecidingWorld]:
    world = DecidingWorld(tmp_path)
    yield world
    world.loop.stop()


def test_a_tenth_of_the_labels_is_enough_for_the_right_decision(world: DecidingWorld) -> None:
    for _ in range(16):
        world.tell(world.predict(1_000), step=10)
    assert world.outcomes == {"joined": 1_600}
    assert world.model.stats().quality.quality.state == "ok"
    assert not {"quality", "training_started"} & set(world.kinds)
    for _ in range(10):
        world.tell(world.predict(1_000, sign=-1), step=10)
    (training,) = world.trainer.trainings
    assert json.loads(training.options["trigger"])["signal"] == "quality"
    assert world.outcomes == {"joined": 2_600}


def test_labels_that_are_a_period_late_lead_to_the_same_decision_a_period_later(
    world: DecidingWorld,
) -> None:
    late: list[Rows] = []
    for period in range(12):
        late.append(world.predict(400, sign=1 if period < 6 else -1))
        if period >= 4:
            world.tell(late[period - 4])
        assert bool(world.trainer.trainings) == (period >= 10), period
    assert world.outcomes == {"joined": 3_200}
    assert world.last("quality").evidence["rows"] == 1_000


def test_drift_without_labels_waits_and_says_for_what(world: DecidingWorld) -> None:
    for shift in (0.0, 3.0):
        for _ in range(5):
            world.predict(400, shift=shift)
    world.drain()
    assert "drift" in world.kinds and not world.trainer.trainings
    waiting = world.last("waiting")
    assert waiting.evidence == {"signal": "drift", "lacking": ["labels"]}
    assert "0 of 50 labels" in waiting.reason
    for _ in range(20):
        world.tick()
    assert world.kinds.count("waiting") == 1, "told once"
    assert world.model.stats().quality.quality.state == "collecting"


def test_labels_of_the_wrong_type_are_refused_and_start_nothing(world: DecidingWorld) -> None:
    name, _ = world.predict(400)
    for _ in range(4):
        world.predict(400)
    for _ in range(5):
        world.predict(400, shift=3.0)
    with pytest.raises(InvalidRequestError, match=r"'1\.5' is a text, and what model 'm' answers"):
        world.send([pb.Label(id=name, row=r, text="1.5") for r in range(200)])
    for number in (float("nan"), float("inf"), 1e300):
        with pytest.raises(InvalidRequestError, match=r"label 1 .*(not a number|beyond float32)"):
            world.send([pb.Label(id=name, number=1), pb.Label(id=name, number=number)])
    assert world.outcomes == {} and not world.trainer.trainings
    assert "0 of 50 labels" in world.last("waiting").reason
    assert world.send([pb.Label(id=name, row=r, number=1.5) for r in range(50)]) == 50
    world.drain()
    assert world.outcomes == {"joined": 50} and len(world.trainer.trainings) == 1


def test_labels_for_nobody_are_counted_and_say_nothing_of_the_quality(
    world: DecidingWorld,
) -> None:
    world.tell(world.predict(400))
    before = world.model.stats().quality.quality
    world.tell(("another system's", np.full(1_000, 1e6)))
    assert world.outcomes == {"joined": 400, "unknown": 1_000}
    assert world.model.stats().quality.quality == before
    assert not {"quality", "training_started"} & set(world.kinds)


def test_labels_that_come_twice_count_once(world: DecidingWorld) -> None:
    once, twice = [], []
    for _ in range(10):
        rows = world.predict(400)
        world.tell(rows)
        once.append(world.model.stats().quality.quality)
        world.tell(rows)
        twice.append(world.model.stats().quality.quality)
    assert once == twice
    assert world.outcomes == {"joined": 4_000, "duplicate": 4_000}
    assert not {"quality", "training_started"} & set(world.kinds)


@pytest.mark.parametrize("reference", ["of the training", "of the first rows"])
def test_a_few_labels_that_are_not_of_this_world_hide_no_loss_of_quality(reference: str) -> None:
    """And make none: five rows in a thousand, corrected to something as absurd meanwhile."""
    random = np.random.default_rng(3)
    losses = np.abs(random.normal(size=10_000)) if reference == "of the training" else None
    world = MonitorWorld(NUMBER, CONFIG, losses)
    kinds: list[str] = []

    def period(spread: float) -> None:
        truth = random.normal(size=500)
        names = world.answer(truth + random.normal(size=500, scale=spread))
        truth[:2] = 3e38, -1e30
        kinds.extend(world.tell(names, truth))
        kinds.extend(world.tell(names[1:3], [1e38, 2e25]))

    for _ in range(12):
        period(1.0)
    assert kinds == [] and world.stats.quality is not None and world.stats.quality.state == "ok"
    for _ in range(6):
        period(1.6)
    assert kinds == ["quality"]
    assert world.stats.quality is not None and world.stats.quality.mean < 3


def test_labels_beyond_all_numbers_do_not_stop_the_loop() -> None:
    """What a log of earlier days might hold; nothing lets such a label in any more."""
    random = np.random.default_rng(3)
    world = MonitorWorld(NUMBER, CONFIG, np.abs(random.normal(size=10_000)))
    names = world.answer(np.zeros(1_000))
    world.tell(names, np.where(np.arange(1_000) == 7, 1e300, 0.5))
    world.tell(names[7:8], [-1e308])
    assert world.counted() == {"joined": 1_000, "corrected": 1}
    assert np.isfinite(world.window_mean())


def test_a_class_that_was_never_seen_is_as_wrong_as_can_be_and_no_error() -> None:
    random = np.random.default_rng(0)
    losses = -np.log(np.clip(random.beta(8, 2, size=5_000), 1e-4, 1))
    world = MonitorWorld(CLASSES, dataclasses.replace(CONFIG, deflate=False), losses)
    kinds: list[str] = []
    for _ in range(6):
        p = random.beta(8, 2, size=400)
        truth = random.random(400) < p
        names = world.answer(np.stack([1 - p, p], axis=1))
        kinds += world.tell(names, [7.0] * 40 + truth[40:].astype(float).tolist())
    assert world.counted() == {"joined": 2_400}
    assert kinds == ["quality"], "a tenth of the rows is of a class that the model cannot name"


@pytest.fixture
def binary(tmp_path: Path) -> Iterator[LabelledWorld]:
    """Model m answers with the probabilities of two classes."""
    world = LabelledWorld(tmp_path)
    world.model.context.quality.watch(1, CLASSES, None)
    yield world
    world.loop.stop()


def classes_told(
    world: LabelledWorld, rows: int, of: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> None:
    """Answers by the second of the monitor's forms, and labels as `of` makes them."""
    monitor = world.model.context.quality
    version = monitor._versions[1]
    p = world.random.beta(2, 6, size=rows)
    sender = MonitorWorld(CLASSES)
    sender.taps[1] = version.tap
    world.requests += 1
    sender.calls = 1_000 + world.requests
    names = sender.answer(np.stack([1 - p, p], axis=1))
    told = [Label(n, r, number=float(y)) for (n, r), y in zip(names, of(p), strict=True)]
    world.model.submit_labels(told, world.wall.ms)
    world.drain()


def test_a_binary_model_whose_labels_are_all_one_warns_and_does_not_train_by_itself(
    binary: LabelledWorld,
) -> None:
    world = binary
    for _ in range(4):
        classes_told(world, 400, lambda p: world.random.random(len(p)) < p)
    assert not {"labels_one_sided", "quality"} & set(world.kinds)
    for _ in range(10):
        classes_told(world, 400, lambda p: np.ones(len(p)))
    assert world.kinds.count("labels_one_sided") == 1 and "quality" not in world.kinds
    told = world.last("labels_one_sided")
    assert "labels are of one class, 1, where the model expects others as well" in told.reason
    assert "labels_one_sided" in world.history
    assert not world.trainer.trainings and world.model.stats().quality.one_sided
    classes_told(world, 400, lambda p: world.random.random(len(p)) < p)
    assert world.kinds[-1] == "labels_two_sided"


def test_a_training_that_labels_of_one_side_made_fail_is_told_with_the_trainers_sentence(
    world: DecidingWorld,
) -> None:
    """What the trainer says of such data: tests/trainer/test_poisoned_labels.py."""
    world.tell(world.predict(400))
    future = world.loop.train("m", "ann", "now")
    world.drain()
    assert future.result(5)
    sentence = "the target 'y' has 1 different values, and a binary task needs exactly 2"
    world.trainer.trainings[0].finish(TrainingResult("failed", sentence))
    world.drain()
    assert sentence in world.last("training_failed").reason
    assert world.directory.state().champion == 1
