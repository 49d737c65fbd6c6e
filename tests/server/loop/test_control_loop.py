"""The loop with a real registry and real logs, a trainer that obeys and a clock that stands still."""

import contextlib
import dataclasses
import fcntl
import gc
import inspect
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.loop_fakes import (
    FakeChild,
    FakePromoter,
    FakeServable,
    FakeTrainer,
    FakeWall,
    batch,
    draw,
    publish_version,
    reference,
    wait_until,
)
from trimtab.registry import durable
from trimtab.registry.directory import Registry
from trimtab.registry.errors import LockTimeoutError
from trimtab.server.config import (
    DriftConfig,
    ModelPolicy,
    PromotionConfig,
    ServerConfig,
    TrafficConfig,
    TriggerConfig,
)
from trimtab.server.errors import NotFoundError, PreconditionError
from trimtab.server.events import Event, EventBus
from trimtab.server.inference.servable import Servable
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.control_loop import ControlLoop
from trimtab.server.loop.loop_stats import TrainingStats
from trimtab.server.loop.loop_tap import LoopTap
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult, TrainingRun

POLICY = ModelPolicy(
    drift=DriftConfig(window_rows=1000, panes=5, min_rows=400, hysteresis_panes=2, judge_every_s=0),
    trigger=TriggerConfig(min_labels=50, cooldown_s=3600, max_failures=2),
    promotion=PromotionConfig(bake=False),  # what bakes do: tests/server/rollout
)
RECIPE = '[recipe]\ntask = "regression"\n'


class RecordingBus(EventBus):
    def __init__(self, registry: Registry, wall: FakeWall) -> None:
        super().__init__(registry.model, wall)
        self.events: list[Event] = []

    def _tell(self, event: Event) -> Event:
        event = super()._tell(event)
        if event.sequence:  # else it was told before
            self.events.append(event)
        return event


class World:
    """A server's cold half with one model, m, whose version 1 answers."""

    def __init__(self, path: Path, policy: ModelPolicy = POLICY, recipe: str = RECIPE) -> None:
        self.random = np.random.default_rng(7)
        self.registry = Registry(path)
        self.wall = FakeWall()
        self.reference_path = path / ".reference.npz"
        reference().save(self.reference_path)
        (path / "m").mkdir(exist_ok=True)
        (path / "m" / "trimtab.toml").write_text(recipe)
        self.directory = self.registry.model("m")
        if not self.directory.versions():
            publish_version(self.registry)
        self.config = ServerConfig(path, policy=policy, traffic=TrafficConfig(flush_ms=10_000))
        self.trainer = FakeTrainer()
        self.bus = RecordingBus(self.registry, self.wall)
        self.promoter = FakePromoter(
            self.registry, self.changed, reference_path=self.reference_path
        )
        self.loop = ControlLoop(
            self.registry,
            self.config,
            self.bus,
            wall=self.wall,
            spawn=self.trainer,
            tick_s=3600,
        )
        self.taps: dict[int, LoopTap] = {}
        self.loop.start(self.promoter)
        champion = self.directory.state().champion
        assert champion is not None
        self.changed("m", champion)
        self.settle()

    def changed(self, model: str, version: int) -> None:
        """What the lifecycle does as another version answers."""
        servable = FakeServable(model, version, reference_path=self.reference_path)
        self.taps[version] = self.loop.tap_for(servable)
        self.loop.champion_changed(model, servable)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.bus.events]

    @property
    def history(self) -> list[str]:
        history = self.directory.history()
        assert history.valid, history.error
        return [entry.kind for entry in history.entries]

    @property
    def model(self) -> Any:
        return self.loop.model("m")

    def last(self, kind: str) -> Event:
        return [event for event in self.bus.events if event.kind == kind][-1]

    def serve(
        self, rows: int, shift: float = 0.0, event_time_ms: int | None = None, version: int = 0
    ) -> None:
        version = version or self.model.observed.champion.version
        self.taps[version](
            batch(*draw(self.random, rows, shift), version=version, event_time_ms=event_time_ms)
        )

    def label(self, count: int, event_time_ms: int = 1) -> None:
        self.model.submit_labels(
            [Label("call-0", row, number=1.0) for row in range(count)], event_time_ms
        )

    def settle(self, rows: int | None = None) -> None:
        """Until everything that was served is dealt with; not to be used while something runs."""
        rows = self.model.observed.rows if rows is None else rows
        self.loop.settle("m", rows).future.result(20)
        assert self.loop.failures == 0

    def drain(self) -> None:
        """Until every message so far is dealt with, whatever runs."""
        for _ in range(3):  # what a message puts into the queue is dealt with too
            done = threading.Event()
            self.model.context.post(done.set)
            assert done.wait(20)
        assert self.loop.failures == 0

    def tick(self) -> None:
        self.model.context.post(self.model.on_tick)
        self.drain()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.loop.stop()


def test_drift_waits_for_labels_then_trains_and_the_new_version_is_promoted(world: World) -> None:
    world.serve(1000)
    world.settle()
    assert world.model.report().state == "ok" and not world.kinds.count("drift")
    world.serve(1000, shift=2.0)
    world.settle()
    assert world.kinds[-2:] == ["drift", "waiting"]
    drift, waiting = world.bus.events[-2:]
    assert "temp: PSI" in drift.reason and drift.evidence["features"][0]["feature"] in (
        "temp",
        "variable",
    )
    assert "0 of 50 labels" in waiting.reason
    world.label(49)
    world.settle()
    assert world.kinds[-1] == "waiting", "told once, however many panes and labels come"
    world.label(1)
    world.drain()
    (training,) = world.trainer.trainings
    assert training.started and world.kinds[-1] == "training_started"
    assert training.options["model"] == "m" and training.arguments[0] == "train"
    trigger = json.loads(training.options["trigger"])
    assert (trigger["signal"], trigger["labels"], trigger["champion"]) == ("drift", 50, 1)
    closed = world.model.context.traffic.closed_files() + world.model.context.labels.closed_files()
    assert len(closed) == 2, "both logs were finished first"
    assert publish_version(world.registry, actor="trimtab") == 2
    training.finish(TrainingResult("published", "MAE 7.9 against 12.3", version=2, rows=50))
    world.settle()
    state = world.directory.state()
    assert (state.champion, state.previous) == (2, 1)
    assert world.kinds[-2:] == ["published", "promoted"]
    promoted = world.last("promoted")
    assert "MAE 7.9" in promoted.reason and promoted.evidence["training_id"] == "m-1"
    assert world.history == [
        "published",
        "promoted",
        "drift",
        "training_started",
        "published",
        "promoted",
    ]
    report = world.model.report()
    assert (report.version, report.state, report.window_rows) == (2, "collecting", 0)


def test_somebody_who_promotes_meanwhile_is_not_overruled(world: World) -> None:
    training = start_training(world)
    publish_version(world.registry)  # by somebody else
    world.directory.promote(2, actor="ann", reason="I know better")
    world.changed("m", 2)
    publish_version(world.registry, actor="trimtab")
    training.finish(TrainingResult("published", "better", version=3))
    world.settle()
    assert world.directory.state().champion == 2
    held = world.last("held")
    assert held.version == 3 and "champion was changed meanwhile" in held.reason
    assert world.history[-1] == "held"
    assert world.last("promoted").actor == "ann", "told of though another process did it"


def test_a_manual_policy_holds(tmp_path: Path) -> None:
    policy = dataclasses.replace(POLICY, promotion=PromotionConfig(policy="manual"))
    world = World(tmp_path, policy)
    training = start_training(world)
    publish_version(world.registry)
    training.finish(TrainingResult("published", "better", version=2))
    world.settle()
    assert world.directory.state().champion == 1 and world.history[-1] == "held"
    world.loop.stop()


def test_a_version_that_does_not_load_is_held_with_the_reason(world: World) -> None:
    training = start_training(world)
    publish_version(world.registry)
    world.promoter.error = PreconditionError("version 2 of model 'm' cannot be loaded: bad hash")
    training.finish(TrainingResult("published", "better", version=2))
    world.settle()
    assert "could not be promoted: version 2" in world.last("held").reason
    assert world.directory.state().champion == 1


def test_a_refused_candidate_leaves_everything_as_it_was(world: World) -> None:
    training = start_training(world)
    gates = ({"name": "champion", "verdict": "fail", "reason": "worse", "figures": {"mae": 9}},)
    training.finish(TrainingResult("refused", "MAE 9 > 8", gates=gates))
    world.settle()
    refused = world.last("refused")
    assert refused.evidence["gates"][0]["figures"] == {"mae": 9}
    assert world.history[-1] == "refused" and world.directory.state().champion == 1
    assert world.last("waiting").sequence > refused.sequence, "drift is still there, labels are not"
    assert "0 of 50 labels; 0 s of 60 min cooldown" in world.last("waiting").reason


def test_failures_back_off_and_then_stop_until_an_operator_asks(world: World) -> None:
    training = start_training(world)
    training.finish(TrainingResult("failed", "column x is not there"))
    world.settle()
    assert "column x is not there (failure 1" in world.last("training_failed").reason
    assert "back-off after failure 1" in world.last("waiting").reason
    world.wall.advance(59)
    world.tick()
    assert len(world.trainer.trainings) == 1
    world.wall.advance(1)
    world.tick()
    assert len(world.trainer.trainings) == 2, "the same labels are good for another try"
    world.trainer.trainings[1].finish(TrainingResult("failed", "again"))
    world.settle()
    world.wall.advance(30 * 86_400)
    world.tick()
    assert len(world.trainer.trainings) == 2
    assert "stopped after 2 failed trainings" in world.last("waiting").reason
    assert world.loop.train("m", "ann", "fixed the column").result(10) == "m-3"
    world.trainer.trainings[2].finish(TrainingResult("refused", "worse"))
    world.settle()
    assert world.model.desk.past.failures == 0


def test_an_operator_gets_an_id_or_the_reason_why_not(world: World) -> None:
    answer: Future[str] = world.loop.train("m", "ann", "because")
    assert answer.result(10) == "m-1"
    (training,) = world.trainer.trainings
    assert training.options["actor"] == "ann"
    training.on_progress(TrainingProgress("fit", 0.4, ""))
    with pytest.raises(PreconditionError, match=r"is running: m-1 \(fit, 40%\)"):
        world.loop.train("m", "bob", "me too").result(10)
    with pytest.raises(NotFoundError):
        world.loop.train("nobody", "ann", "")
    (world.directory.path / "trimtab.toml").unlink()
    training.finish(TrainingResult("refused", "worse"))
    with pytest.raises(PreconditionError, match="no \\[recipe\\]"):
        world.loop.train("m", "ann", "again").result(10)


def test_a_model_without_a_recipe_says_that_it_cannot_be_trained(tmp_path: Path) -> None:
    world = World(tmp_path, recipe="")
    world.label(100)
    world.serve(1000, shift=2.0)
    world.settle()
    assert world.kinds[-2:] == ["drift", "waiting"]
    assert "no [recipe]" in world.bus.events[-1].reason and not world.trainer.children
    world.loop.stop()


def test_a_feature_that_broke_pages_and_never_retrains(world: World) -> None:
    """Neither as it begins, half a window deep, nor through the outputs, nor as it ends."""
    world.label(1000)
    world.serve(2000)
    for _ in range(7):
        numeric, carriers = draw(world.random, 200, shift=2.0)
        shifted = batch(numeric, carriers)  # its outputs are what the fault makes of them
        numeric[:, 0] = np.nan
        mixed = batch(numeric, carriers)
        mixed.outputs = shifted.outputs
        world.taps[1](mixed)
        world.settle()
    assert world.kinds.count("data_quality") == 1 and "drift" not in world.kinds
    assert "temp: missing in 40.0% of the rows" in world.last("data_quality").reason
    (output,) = [f for f in world.model.report().features if f.role == "output"]
    assert output.verdict == "drift" and world.model.report().state == "ok"
    world.serve(800)
    world.settle()
    assert world.model.observed.champion.state.broken == {"temp"}, "it is still in the window"
    world.serve(1000)
    world.settle()
    assert world.kinds[-1] == "data_quality_cleared"
    assert not world.trainer.children
    assert world.history[-1] == "data_quality"


def test_a_column_that_is_stuck_is_told_in_a_small_window_before_it_looks_like_drift(
    tmp_path: Path,
) -> None:
    small = dataclasses.replace(POLICY.drift, window_rows=200, panes=10, min_rows=200)
    world = World(tmp_path, policy=dataclasses.replace(POLICY, drift=small))
    world.label(1000)
    world.serve(1200)
    world.settle()
    for _ in range(15):
        numeric, carriers = draw(world.random, 20)
        numeric[:, 1] = 0.5
        world.taps[1](batch(numeric, carriers))
        world.settle()
    assert "drift" not in world.kinds and not world.trainer.children
    assert "wind: in 2 of the last 10 panes: all 20 values are 0.5" in (
        world.last("data_quality").reason
    )
    world.loop.stop()


def test_drift_that_goes_away_is_cleared(world: World) -> None:
    world.serve(1000, shift=2.0)
    world.serve(3000)
    world.settle()
    kinds = [kind for kind in world.kinds if kind.startswith("drift")]
    assert kinds[0] == "drift" and kinds[-1] == "drift_cleared"


def test_a_warning_that_goes_away_is_no_drift_that_cleared(world: World) -> None:
    world.serve(3000, shift=0.35)
    world.serve(3000)
    world.settle()
    assert world.kinds == ["drift_warning", "drift_warning_cleared"]
    assert "drift_cleared" not in world.history


def test_drift_that_fades_over_a_warning_is_cleared_all_the_same(world: World) -> None:
    world.serve(3000, shift=0.5)
    world.serve(3000)
    world.settle()
    kinds = [kind for kind in world.kinds if kind.startswith("drift")]
    assert kinds == ["drift", "drift_warning", "drift_cleared"]
    assert world.history[-2:] == ["drift", "drift_cleared"]


def test_nothing_of_a_champion_that_was_replaced_waits_for_a_garbage_collection(
    world: World,
) -> None:
    world.serve(1000)
    world.settle()
    monitor = weakref.ref(world.model.observed.champion.monitor)
    publish_version(world.registry)
    world.directory.promote(2, actor="ann", reason="r")
    gc.disable()
    try:
        world.changed("m", 2)
        world.drain()
        assert monitor() is None
    finally:
        gc.enable()
    world.serve(3000, shift=2.0)
    world.settle()
    assert "drift" in world.kinds, "the new one is watched"


def test_only_the_champion_is_watched_but_every_version_is_logged(world: World) -> None:
    publish_version(world.registry)
    servable = FakeServable("m", 2, reference_path=world.reference_path)
    world.taps[2] = world.loop.tap_for(servable)
    world.serve(300, version=2)
    world.serve(200, version=1)
    world.settle()
    assert world.model.report().observed_rows == 200
    assert world.model.observed.rows == 500
    assert world.model.context.traffic.stats.rows_logged == 500


def test_the_loop_runs_on_event_time_where_requests_carry_it(world: World) -> None:
    january = 1_357_000_000_000
    training = start_training(world, event_time_ms=january)
    assert training.options["event-time-ms"] == str(january)
    training.finish(TrainingResult("refused", "worse"))
    world.settle()
    world.label(100, event_time_ms=january)
    world.wall.advance(7 * 86_400)
    world.tick()
    assert len(world.trainer.trainings) == 1, "the wall clock does not end a cooldown in event time"
    world.label(1, event_time_ms=january + 3600_000)
    world.drain()
    assert len(world.trainer.trainings) == 2
    assert world.last("training_started").event_time_ms == january + 3600_000


def test_settling_waits_for_rows_panes_and_trainings(world: World) -> None:
    settling = world.loop.settle("m", 1000)
    world.serve(999)
    world.drain()
    assert not settling.future.done() and str(settling) == "999 of 1,000 rows were observed"
    world.serve(1)
    settling.future.result(20)
    training = start_training(world)
    settling = world.loop.settle("m", world.model.observed.rows)
    world.drain()
    assert not settling.future.done() and "training m-1" in str(settling)
    publish_version(world.registry)
    training.finish(TrainingResult("published", "better", version=2))
    settling.future.result(20)
    assert world.directory.state().champion == 2, "the roll-out is part of it"
    abandoned = world.loop.settle("m", 10**9)
    assert abandoned.future.cancel()


def test_the_pasts_cooldown_budget_and_labels_hold_across_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    training = start_training(world)
    training.finish(TrainingResult("refused", "worse"))
    world.settle()
    world.label(7)
    world.loop.stop()
    again = World(tmp_path)
    again.serve(1000, shift=2.0)
    again.settle()
    assert "7 of 50 labels; 0 s of 60 min cooldown" in again.last("waiting").reason
    assert again.last("recovered").reason == "label log: 7 rows in 1 frames kept"
    again.loop.stop()


MATURING = dataclasses.replace(
    POLICY, trigger=dataclasses.replace(POLICY.trigger, label_maturity_s=86_400.0, cooldown_s=0)
)


def test_a_training_waits_until_enough_labels_are_mature(tmp_path: Path) -> None:
    world = World(tmp_path, MATURING)
    world.serve(1000, shift=2.0)
    world.label(40, event_time_ms=world.wall.ms)
    world.wall.advance(3600)
    world.label(20, event_time_ms=world.wall.ms)
    world.settle()
    waiting = world.last("waiting")
    assert waiting.evidence["lacking"] == ["labels"]
    assert "0 of 50 mature labels (" in waiting.reason and "younger than 24 h" in waiting.reason
    world.wall.advance(86_400 - 3600)
    world.tick()
    assert not world.trainer.trainings, "40 of 50"
    world.wall.advance(3600 - 1)
    world.tick()
    assert not world.trainer.trainings
    world.wall.advance(1)
    world.tick()
    (training,) = world.trainer.trainings
    trigger = json.loads(training.options["trigger"])
    assert (trigger["labels"], trigger["labels_total"]) == (60, 60)
    assert training.options["label-maturity-s"] == "86400.0"
    assert training.options["event-time-ms"] == str(world.wall.ms)
    training.finish(TrainingResult("refused", "worse"))
    world.settle()
    assert "0 of 50 mature labels (0 are younger" in world.last("waiting").reason
    world.loop.stop()


def test_labels_that_were_young_at_a_training_count_for_the_next_one(tmp_path: Path) -> None:
    world = World(tmp_path, MATURING)
    world.serve(1000, shift=2.0)
    world.label(50, event_time_ms=world.wall.ms)
    world.wall.advance(86_400)
    world.model.context.labels.append([Label("x", 0, number=1.0)] * 49, world.wall.ms)
    world.tick()
    world.trainer.trainings[-1].finish(TrainingResult("refused", "worse"))
    world.settle()
    assert "0 of 50 mature labels (49 are younger" in world.last("waiting").reason
    world.label(1, event_time_ms=world.wall.ms)
    world.settle()
    assert len(world.trainer.trainings) == 1
    world.wall.advance(86_400)
    world.tick()
    assert len(world.trainer.trainings) == 2
    world.loop.stop()


def test_labels_mature_in_event_time_as_rows_labels_and_settling_move_it(tmp_path: Path) -> None:
    january = 1_357_000_000_000
    world = World(tmp_path, MATURING)
    world.serve(1000, shift=2.0, event_time_ms=january)
    world.label(50, event_time_ms=january)
    world.wall.advance(7 * 86_400)
    world.tick()
    assert not world.trainer.trainings, "the wall clock ripens nothing in event time"
    world.serve(1, shift=2.0, event_time_ms=january + 86_400_000 - 1)
    world.settle()
    assert not world.trainer.trainings
    world.serve(1, shift=2.0, event_time_ms=january + 86_400_000)
    settling = world.loop.settle("m", world.model.observed.rows)
    world.drain()
    (training,) = world.trainer.trainings
    assert training.options["event-time-ms"] == str(january + 86_400_000)
    training.finish(TrainingResult("refused", "worse"))
    settling.future.result(20)
    world.loop.stop()


def test_the_ages_of_labels_hold_across_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, MATURING)
    world.label(50, event_time_ms=world.wall.ms)
    world.wall.advance(86_400)
    world.label(30, event_time_ms=world.wall.ms)
    world.serve(1000, shift=2.0)
    world.drain()
    world.trainer.trainings[-1].finish(TrainingResult("refused", "worse"))
    world.settle()
    world.label(7, event_time_ms=world.wall.ms)
    world.loop.stop()
    for path in world.model.context.labels.closed_files():
        path.unlink()  # rolled
    again = World(tmp_path, MATURING)
    again.wall.advance(86_400)
    again.serve(1000, shift=2.0)
    again.settle()
    assert "0 of 50 mature labels (37 are younger than 24 h)" in again.last("waiting").reason
    again.wall.advance(86_400)
    again.label(13, event_time_ms=again.wall.ms - 86_400_000)
    again.drain()
    assert len(again.trainer.trainings) == 1
    again.loop.stop()


def test_a_maturity_that_is_set_while_it_runs_holds_for_the_labels_that_are_there(
    world: World,
) -> None:
    world.label(60, event_time_ms=world.wall.ms)
    (world.directory.recipe_path).write_text(RECIPE + "[trigger]\nlabel_maturity_s = 3600\n")
    world.tick()
    world.serve(1000, shift=2.0)
    world.settle()
    assert "0 of 50 mature labels (60 are younger than 60 min)" in world.last("waiting").reason
    world.wall.advance(3600)
    world.tick()
    assert len(world.trainer.trainings) == 1


def test_a_stop_ends_the_training_and_does_not_count_it_as_failed(tmp_path: Path) -> None:
    world = World(tmp_path)
    training = start_training(world)
    world.loop.stop()
    assert training.killed == "was ended: the server stopped"
    assert world.history[-1] == "training_failed"
    again = World(tmp_path)
    assert again.model.desk.past.failures == 0 and again.model.desk.past.started == 1
    again.loop.stop()


def test_a_training_that_a_killed_server_left_is_closed_at_the_next_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    start_training(world)
    world.model.context.close()  # and no more: as if killed
    again = World(tmp_path)
    assert "the server ended while a training ran" in again.last("training_failed").reason
    assert again.history[-1] == "training_failed"
    again.loop.stop()
    world.loop._queue.put(None)


def test_finished_log_files_are_rolled_while_nothing_trains(world: World) -> None:
    for _ in range(4):
        world.serve(10)
        world.model.context.finish_logs()
    world.tick()
    (roll,) = world.trainer.children
    assert roll.arguments[0] == "roll" and not roll.needs_result
    assert roll.options["keep-days"] == str(world.config.traffic.keep_days)
    world.tick()
    assert len(world.trainer.children) == 1
    answer = world.loop.train("m", "ann", "now")
    settling = world.loop.settle("m", 0)
    world.drain()
    assert not answer.done() and not settling.future.done()
    assert "waits for the log to be rolled" in str(settling)
    roll.finish(TrainingResult("published"))
    assert answer.result(10) == "m-1"
    world.trainer.trainings[0].finish(TrainingResult("refused", "worse"))
    settling.future.result(20)


def test_a_roll_that_fails_is_not_tried_again_at_once(world: World) -> None:
    for _ in range(4):
        world.serve(10)
        world.model.context.finish_logs()
    world.tick()
    world.trainer.children[0].finish(TrainingResult("failed", "disk full"))
    world.drain()
    world.tick()
    assert len(world.trainer.children) == 1


def test_the_policy_follows_its_file_and_survives_a_broken_one(world: World) -> None:
    path = world.directory.recipe_path
    path.write_text(RECIPE + "[trigger]\nmin_labels = 5\n")
    world.tick()
    assert world.model.context.policy.trigger.min_labels == 5
    path.write_text("[trigger]\nmin_label = 7\n")
    world.tick()
    world.tick()
    assert world.model.context.policy.trigger.min_labels == 5
    assert world.kinds.count("load_failed") == 1
    assert "did you mean min_labels" in world.last("load_failed").reason


def test_a_version_without_a_reference_gets_one_from_its_first_rows(tmp_path: Path) -> None:
    drift = dataclasses.replace(POLICY.drift, bootstrap_rows=1000)
    world = World(tmp_path, dataclasses.replace(POLICY, drift=drift))
    publish_version(world.registry)
    servable = FakeServable("m", 2)
    world.taps[2] = world.loop.tap_for(servable)
    world.loop.champion_changed("m", servable)
    world.serve(999)
    world.settle()
    report = world.model.report()
    assert (report.reference, report.state) == ("none", "collecting")
    assert "999 of the 1,000 rows" in report.reason
    world.serve(1)
    world.settle()
    world.serve(1000)
    world.serve(1000, shift=2.0)
    world.settle()
    report = world.model.report()
    assert (report.reference, report.state) == ("bootstrap", "drift")
    assert report.features[0].name in ("temp", "variable")
    world.loop.stop()


def test_a_log_that_cannot_be_opened_is_told_of_and_done_without(tmp_path: Path) -> None:
    (tmp_path / ".trimtab" / "m").mkdir(parents=True)
    (tmp_path / ".trimtab" / "m" / "traffic").write_text("not a directory")
    world = World(tmp_path)
    world.serve(1000)
    world.settle()
    assert world.kinds[0] == "log_failed"
    assert world.model.report().window_rows == 1000
    world.loop.stop()


def test_unknown_models_are_not_taken_up(world: World) -> None:
    for name in ("nobody", "../m", ""):
        with pytest.raises(NotFoundError):
            world.loop.model(name)
    world.loop.champion_changed("m", None)
    assert world.model.report().reason == "no version answers"


def test_an_operator_is_told_that_the_state_cannot_be_read(world: World) -> None:
    path = world.directory.path / "state.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    with pytest.raises(PreconditionError, match=r"cannot be trained: .*state\.json"):
        world.loop.train("m", "ann", "now").result(10)
    world.serve(1000, shift=2.0)
    world.label(50)
    for _ in range(3):
        world.tick()
    waiting = [event for event in world.bus.events if event.kind == "waiting"]
    assert waiting[-1].evidence["lacking"] == ["state"] and "state.json" in waiting[-1].reason
    assert len(waiting) <= 2, "told once per change"
    assert not world.model.context.labels.closed_files() and not world.trainer.children
    path.write_bytes(good)
    world.tick()
    assert len(world.trainer.trainings) == 1


def test_a_request_that_waited_is_told_that_the_state_cannot_be_read(world: World) -> None:
    for _ in range(4):
        world.serve(10)
        world.model.context.finish_logs()
    world.tick()
    answer = world.loop.train("m", "ann", "now")
    world.drain()
    (world.directory.path / "state.json").write_bytes(b"{")
    world.trainer.children[0].finish(TrainingResult("published"))
    with pytest.raises(PreconditionError, match=r"state\.json"):
        answer.result(10)


def test_a_result_is_not_lost_with_the_state(world: World) -> None:
    path = world.directory.path / "state.json"
    training = start_training(world)
    publish_version(world.registry)
    good = path.read_bytes()
    path.write_bytes(b"{")
    training.finish(TrainingResult("published", "better", version=2))
    world.drain()
    held = world.last("held")
    assert held.version == 2 and "state.json" in held.reason
    path.write_bytes(good)
    world.loop.train("m", "ann", "again").result(10)
    path.write_bytes(b"{")
    world.trainer.trainings[1].finish(TrainingResult("failed", "column x is not there"))
    world.drain()
    assert "column x is not there" in world.last("training_failed").reason
    assert world.model.desk.past.failures == 1


def test_a_published_version_is_known_to_be_of_its_training(tmp_path: Path) -> None:
    """A server that was killed between the publication and the roll-out counts it as a training."""
    world = World(tmp_path)
    training = start_training(world)
    publish_version(world.registry)  # by hand, meanwhile
    trigger = json.loads(training.options["trigger"])
    assert world.model.desk.past.of(world.directory.history().entries).open_id == "m-1"
    publish_version(world.registry, lineage={"trigger": trigger})
    assert world.directory.history().entries[-1].evidence["training_id"] == "m-1"
    world.model.context.close()  # and no more: as if killed
    again = World(tmp_path)
    past = again.model.desk.past
    assert past.open_ms is None and past.labels_at_last == 50
    assert "training_failed" not in again.history
    again.loop.stop()
    world.loop._queue.put(None)


def test_a_lock_that_is_not_let_go_of_does_not_stop_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "LOCK_LIMIT_S", 0.05)
    with (world.directory.path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        training = start_training(world)
        training.finish(TrainingResult("published", "better", version=1))
        world.settle()
        assert world.kinds.count("training_started") == 1, "told, if not recorded"
        with pytest.raises(LockTimeoutError):
            world.promoter.promote("m", 1, actor="ann", reason="")
    assert world.bus.stats.not_recorded >= 2
    world.tick()


def test_a_model_that_was_removed_lets_go_of_its_logs(world: World) -> None:
    model = world.model
    shutil.rmtree(world.directory.path)
    world.loop._call(world.loop._let_go, ())
    assert world.loop.models() == [model], "a version of it still answers"
    world.loop.champion_changed("m", None)
    world.drain()
    assert len(open_files(world.registry.data_path("m"))) == 2
    model.context.post(world.loop._let_go)
    wait_until(lambda: not world.loop.models(), "the model is let go of")
    wait_until(lambda: not open_files(world.registry.data_path("m")), "its logs are closed")
    world.loop.champion_changed("m", None)
    with pytest.raises(NotFoundError):
        world.loop.model("m")
    world.directory.path.mkdir()
    publish_version(world.registry)
    assert world.loop.model("m") is not model
    assert world.loop.failures == 0


def test_whoever_no_longer_waits_to_settle_is_forgotten(world: World) -> None:
    settlings = [world.loop.settle("m", 10**9) for _ in range(10)]
    assert len(world.model.observed._waiting) == 10
    for settling in settlings:
        settling.future.cancel()
    assert not world.model.observed._waiting
    world.loop.settle("m", 0).future.result(10)


def test_a_report_names_broken_features_first(world: World) -> None:
    world.serve(1000)
    numeric, carriers = draw(world.random, 200)
    numeric[:, 0] = np.nan
    sane = batch(np.zeros((200, 2)) + draw(world.random, 200)[0], carriers)
    mixed = batch(numeric, carriers)
    mixed.outputs = sane.outputs
    world.taps[1](mixed)
    world.settle()
    reason = world.model.report().reason
    assert reason.startswith("temp: missing in") and reason.endswith(
        "otherwise distributed as the reference"
    )


def test_the_stats_show_the_last_judged_window_and_what_became_of_trainings(world: World) -> None:
    stats = world.model.stats()
    assert (stats.observed_rows, stats.labels, stats.trainings) == (0, 0, TrainingStats())
    assert (stats.drift.version, stats.drift.state, stats.drift.window_rows) == (1, "collecting", 0)

    world.serve(1000, shift=2.0)
    world.label(50)
    world.drain()
    stats = world.model.stats()
    assert (stats.observed_rows, stats.labels, stats.traffic.rows_logged) == (1000, 50, 1000)
    assert (stats.drift.state, stats.drift.window_rows) == ("drift", 1000)
    assert stats.drift.features[0].name in ("temp", "variable")
    assert stats.trainings == TrainingStats(started=1, running=True)
    world.serve(100, shift=2.0)
    world.drain()
    assert world.model.stats().drift.window_rows == 1000, "of a window that was judged"

    for result in (
        TrainingResult("failed", "out of memory"),
        TrainingResult("refused", "no better"),
        TrainingResult("published", "better", version=2),
    ):
        if result.version is not None:
            publish_version(world.registry, actor="trimtab")
        world.trainer.trainings[-1].finish(result)
        world.drain()
        world.loop.train("m", "ana", "once more").result(20)
    assert world.model.stats().trainings == TrainingStats(4, 1, 1, 1, running=True)


def test_the_fakes_take_what_the_real_ones_take() -> None:
    def parameters(function: Any) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    real = parameters(TrainingRun.__init__)
    fake = [field.name for field in dataclasses.fields(FakeChild)][:5]
    assert fake == real[:5]
    for name in ("start", "kill", "join"):
        assert parameters(getattr(FakeChild, name)) == parameters(getattr(TrainingRun, name))
    for name in ("promote", "hold", "split"):
        assert parameters(getattr(FakePromoter, name)) == parameters(getattr(ModelManager, name))
    taken, real = parameters(FakePromoter.rollback), parameters(ModelManager.rollback)
    assert set(taken) <= set(real)
    assert {field.name for field in dataclasses.fields(FakeServable)} <= {
        *vars(Servable),
        *parameters(Servable.__init__),
    }


def open_files(folder: Path) -> list[str]:
    """What this process has open in a folder."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return [name for name in found if name.startswith(f"{folder}/")]


def start_training(world: World, event_time_ms: int | None = None) -> Any:
    """Drift and labels, and the child that they started."""
    world.serve(1000, shift=2.0, event_time_ms=event_time_ms)
    world.label(50)
    world.drain()
    assert world.trainer.trainings, world.bus.events
    return world.trainer.trainings[-1]


BY_TIME = dataclasses.replace(  # panes of a second, which rows never end
    POLICY, drift=dataclasses.replace(POLICY.drift, window_rows=100_000, window_s=5.0)
)


@pytest.fixture
def timed(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, BY_TIME)
    yield world
    world.loop.stop()


def pass_s(world: World, seconds: float) -> None:
    world.wall.advance(seconds)
    world.tick()


def test_a_pane_ends_by_the_wall_clock_though_no_row_comes(timed: World) -> None:
    for _ in range(2):
        timed.serve(500, shift=2.0)
        assert "drift" not in timed.kinds
        pass_s(timed, 1)
    assert timed.kinds[-2:] == ["drift", "waiting"]
    assert timed.last("drift").evidence["window_rows"] == 1000
    assert timed.last("drift").event_time_ms == timed.wall.ms


def test_panes_without_rows_speak_neither_for_a_change_of_state_nor_against_it(
    timed: World,
) -> None:
    timed.serve(500, shift=2.0)
    pass_s(timed, 1)
    state = timed.model.observed.champion.state
    assert (state.name, state.streak) == ("ok", 1)
    for seconds in (1, 1, 60):
        pass_s(timed, seconds)
    assert timed.model.observed.champion.state == state
    timed.serve(500, shift=2.0)
    pass_s(timed, 1)
    assert timed.model.observed.champion.state.name == "drift", "the second pane with rows"


def test_after_a_silence_the_state_stays_and_the_report_says_how_little_it_sees(
    timed: World,
) -> None:
    for _ in range(2):
        timed.serve(500, shift=2.0)
        pass_s(timed, 1)
    assert timed.model.report().window_rows == 1000
    timed.wall.advance(3600)
    report = timed.model.report()
    assert (report.state, report.window_rows, report.observed_rows) == ("drift", 0, 1000)
    assert (
        report.reason == "0 rows in the window, it is judged from 400; until then the state stays"
    )
    assert {feature.verdict for feature in report.features} == {"ok"}
    timed.serve(300)
    pass_s(timed, 1)
    assert timed.model.report().state == "drift", "300 rows are too few to judge"
    for _ in range(2):
        timed.serve(300)
        pass_s(timed, 1)
    assert timed.kinds[-1] == "drift_cleared"


def test_a_fault_leaves_with_its_pane_when_time_takes_it(timed: World) -> None:
    numeric, carriers = draw(timed.random, 500)
    numeric[:, 0] = np.nan
    timed.taps[1](batch(numeric, carriers))
    pass_s(timed, 1)
    broken = [f.name for f in timed.model.report().features if f.verdict == "data_quality"]
    assert "temp" in broken
    timed.wall.advance(4)
    report = timed.model.report()
    assert report.window_rows == 0
    assert not [feature for feature in report.features if feature.verdict == "data_quality"]
    timed.serve(500)
    pass_s(timed, 1)
    assert timed.model.observed.champion.features[0].verdict == "ok"


def test_a_watermark_ends_the_pane_and_all_that_it_causes_before_settling_answers(
    timed: World,
) -> None:
    start = 1_400_000_000_000
    timed.label(100)
    timed.serve(500, shift=2.0, event_time_ms=start + 200)
    timed.serve(500, shift=2.0, event_time_ms=start + 1900)
    timed.settle()
    assert timed.model.observed.champion.state.streak == 1, "the second pane is still open"
    rows = timed.model.observed.rows
    settling = timed.loop.settle("m", rows, start + 1999)
    settling.future.result(20)
    assert timed.model.observed.champion.state.streak == 1, "the watermark lies in its slot"
    settling = timed.loop.settle("m", rows, start + 7000)
    timed.drain()
    assert timed.kinds[-2:] == ["drift", "training_started"]
    assert timed.last("drift").event_time_ms == start + 7000
    assert not settling.future.done(), "the training is part of what the pane caused"
    publish_version(timed.registry)
    timed.trainer.trainings[0].finish(TrainingResult("published", "better", version=2))
    settling.future.result(20)
    assert timed.directory.state().champion == 2
    assert timed.model.report().window_rows == 0, "the new champion begins with an empty pane"
    timed.serve(500, event_time_ms=start + 7999)
    timed.settle()
    assert timed.model.observed.champion.state.name == "collecting"
    timed.loop.settle("m", timed.model.observed.rows, start + 8000).future.result(20)
    assert timed.model.observed.champion.state.name == "ok"


def test_a_watermark_waits_for_what_is_under_way(timed: World) -> None:
    start = 1_400_000_000_000
    timed.label(100)
    timed.loop.train("m", "ann", "").result(10)
    timed.serve(500, event_time_ms=start)
    settling = timed.loop.settle("m", timed.model.observed.rows, start + 1000)
    timed.drain()
    assert timed.model.context.clock.reading().ms == start
    timed.trainer.trainings[0].finish(TrainingResult("refused", "worse"))
    settling.future.result(20)
    assert timed.model.context.clock.reading().ms == start + 1000
    assert timed.model.observed.champion.state.name == "ok", "the pane was judged"


def test_a_watermark_does_not_move_a_clock_that_is_the_walls(timed: World) -> None:
    timed.serve(500)
    timed.loop.settle("m", 500, timed.wall.ms + 60_000).future.result(20)
    assert timed.model.context.clock.reading().ms == timed.wall.ms
    assert timed.model.report().window_rows == 500
