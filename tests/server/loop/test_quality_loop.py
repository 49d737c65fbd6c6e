"""The loop acts on what labels tell: a loss of quality trains, a broken feature holds that up."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.loop_fakes import batch, draw, reference
from tests.server.loop.test_control_loop import POLICY, World
from trimtab._native.reference import TensorReference, numeric_feature
from trimtab.server.config import LabelsConfig
from trimtab.server.logs.label_log import Label

LABELS = LabelsConfig(
    remember_rows=20_000, window_rows=1_000, panes=5, min_rows=400, false_alarm_rows=1_000_000
)


class LabelledWorld(World):
    """The truth is 2·temp with some noise; version 1 was tested on that."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, dataclasses.replace(POLICY, labels=LABELS))
        losses = np.abs(self.random.normal(size=5_000, scale=0.3))
        feature = numeric_feature("absolute_error", losses)
        known = dataclasses.replace(
            reference(), losses=(TensorReference("loss", "loss", (feature,)),)
        )
        known.save(self.reference_path)
        self.changed("m", 1)
        self.requests = 0

    def answer(self, rows: int, sign: float = 1.0, *, missing: bool = False) -> None:
        """Rows are answered, and their labels come."""
        numeric, carriers = draw(self.random, rows)
        truth = sign * 2 * numeric[:, 0] + self.random.normal(size=rows, scale=0.3)
        self.requests += 1
        prefix = f"labelled{self.requests}"
        answered = batch(numeric, carriers, prefix=prefix)
        if missing:
            answered.inputs["numeric"].array()[:, 1] = np.nan
        self.taps[1](answered)
        labels = [Label(f"{prefix}-0", row, number=float(y)) for row, y in enumerate(truth)]
        self.model.submit_labels(labels, self.wall.ms)
        self.drain()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LabelledWorld]:
    world = LabelledWorld(tmp_path)
    yield world
    world.loop.stop()


def test_a_loss_of_quality_without_drift_starts_a_training_that_says_so(
    world: LabelledWorld,
) -> None:
    for _ in range(5):
        world.answer(400)
    assert "quality" not in world.kinds and not world.trainer.trainings
    for _ in range(3):
        world.answer(400, sign=-1)
    assert "drift" not in world.kinds
    told = world.last("quality")
    assert "absolute error" in told.reason and told.evidence["increase"] > 1
    assert "quality" in world.history
    (training,) = world.trainer.trainings
    trigger = json.loads(training.options["trigger"])
    assert trigger["signal"] == "quality" and trigger["quality"]["metric"] == "absolute_error"
    assert training.options["reason"].startswith("loss of quality: absolute error")
    stats = world.model.stats()
    assert stats.quality.outcomes["joined"] == 3_200
    assert stats.quality.quality.state == "degraded"


def test_a_loss_of_quality_beside_a_broken_feature_waits(world: LabelledWorld) -> None:
    for _ in range(8):
        world.answer(400, sign=-1, missing=True)
    assert {"quality", "data_quality"} <= set(world.kinds)
    world.trainer.children.clear()
    world.tick()
    assert "a training would learn what is wrong with wind" in world.last("waiting").reason


def test_answers_are_remembered_from_the_first_label_on_where_nothing_else_asks_for_them(
    tmp_path: Path,
) -> None:
    policy = dataclasses.replace(POLICY, labels=LABELS)
    world = World(tmp_path, policy, recipe="")
    try:

        def label(prefix: str) -> dict[str, int]:
            world.taps[1](batch(*draw(world.random, 10), prefix=prefix))
            world.model.submit_labels([Label(f"{prefix}-0", 3, number=1.0)], world.wall.ms)
            world.wall.advance(10)
            world.model.context.quality.look(world.wall.ms)
            return dict(world.model.stats().quality.outcomes)

        early, late = label("early"), label("late")
        assert early["joined"] == 0
        assert late["joined"] == 1
    finally:
        world.loop.stop()


def test_with_a_recipe_answers_are_remembered_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, dataclasses.replace(POLICY, labels=LABELS))
    try:
        world.taps[1](batch(*draw(world.random, 10), prefix="a"))
        world.model.submit_labels([Label("a-0", 3, number=1.0)], world.wall.ms)
        world.model.context.quality.look(world.wall.ms)
        assert world.model.stats().quality.outcomes["joined"] == 1
    finally:
        world.loop.stop()
