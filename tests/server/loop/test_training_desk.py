"""What operators do to trainings, and what is no failure: cancelled, skipped, broken data."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.loop_fakes import FakeChild, publish_version
from tests.server.loop.test_control_loop import POLICY, RECIPE, World, start_training
from trimtab.server.errors import NotFoundError, PreconditionError
from trimtab.server.loop.training_progress import TrainingStatus
from trimtab.server.loop.training_request import Cancelled
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult

KILLED = TrainingResult("failed", "the trainer was cancelled by ann: no", killed=True)
DRY = dataclasses.replace(POLICY, trigger=dataclasses.replace(POLICY.trigger, dry_run=True))
BROKEN = TrainingResult(
    "failed",
    "the data are broken, nothing was trained: size: far out",
    quality=(
        {"column": "size", "what": "far_out", "severity": "error", "reason": "far out"},
        {"column": "id", "what": "suspect", "severity": "warning", "reason": "tells all"},
    ),
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.loop.stop()


def cancel(world: World, training_id: str = "", reason: str = "no") -> Future[Cancelled]:
    answer = world.loop.cancel_training("m", training_id, "ann", reason)
    world.drain()
    return answer


def status(world: World) -> TrainingStatus:
    found = world.model.desk.status()
    assert isinstance(found, TrainingStatus)
    return found


def trained(child: Any, version: int) -> TrainingResult:
    """Publishes as the child would."""
    return TrainingResult("published", "better", version=version)


def test_a_training_is_cancelled_by_whom_and_why(world: World) -> None:
    child = start_training(world)
    child.on_progress(TrainingProgress("fit", 0.4, "fitting"))
    answer = cancel(world, reason="wrong data")
    assert child.killed == "was cancelled by ann: wrong data" and not answer.done()
    child.finish(KILLED)
    world.settle()
    assert answer.result(10) == Cancelled("m-1", "training m-1 (fit, 40%) was cancelled")
    told = world.last("training_cancelled")
    assert (told.actor, told.reason) == ("ann", "wrong data")
    assert told.evidence["training_id"] == "m-1" and list(told.evidence["stages_s"]) == ["fit"]
    assert world.history[-1] == "training_cancelled" and "training_failed" not in world.kinds
    assert world.model.stats().trainings.cancelled == 1
    assert world.directory.state().champion == 1


def test_a_cancelled_training_is_no_failure_but_counts_for_cooldown_labels_and_budget(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    child = start_training(world)
    cancel(world)
    child.finish(KILLED)
    world.settle()
    waiting = world.last("waiting")
    assert waiting.evidence["lacking"] == ["labels", "cooldown"], "and no back-off"
    past = world.model.desk.past
    assert (past.failures, past.labels_at_last, len(past.starts_ms)) == (0, 50, 1)
    world.loop.stop()
    again = World(tmp_path)
    assert again.model.desk.past == past
    again.loop.stop()


def test_a_cancellation_leaves_a_row_of_failures_as_it_is(world: World) -> None:
    start_training(world).finish(TrainingResult("failed", "column x is not there"))
    world.settle()
    world.loop.train("m", "bob", "again").result(10)
    cancel(world)
    world.trainer.trainings[1].finish(KILLED)
    world.settle()
    assert world.model.desk.past.failures == 1


def test_only_what_runs_can_be_cancelled(world: World) -> None:
    with pytest.raises(NotFoundError, match="no training of model 'm' runs or was asked for"):
        cancel(world).result(10)
    with pytest.raises(NotFoundError, match="'m-1' of model 'm' does not run: none does"):
        cancel(world, "m-1").result(10)
    child = start_training(world)
    with pytest.raises(PreconditionError, match="'m-7' of model 'm' does not run: m-1 does"):
        cancel(world, "m-7").result(10)
    assert not child.killed
    answers = [cancel(world, "m-1"), cancel(world)]
    child.finish(KILLED)
    assert [answer.result(10).training_id for answer in answers] == ["m-1", "m-1"]
    assert world.history.count("training_cancelled") == 1


def test_a_version_published_at_the_same_moment_is_held_and_not_promoted(world: World) -> None:
    child = start_training(world)
    answer = cancel(world)
    publish_version(world.registry, actor="trimtab")
    child.finish(TrainingResult("published", "better", version=2))
    world.settle()
    with pytest.raises(PreconditionError, match="had ended by then: it published version 2"):
        answer.result(10)
    held = world.last("held")
    assert held.version == 2 and "ann cancelled its training (no)" in held.reason
    assert world.directory.state().champion == 1 and "training_cancelled" not in world.kinds


def test_a_version_published_just_before_the_kill_is_held_as_well(world: World) -> None:
    child = start_training(world)
    answer = cancel(world)
    publish_version(world.registry, lineage={"trigger": {"training_id": "m-1"}})
    child.finish(KILLED)
    world.settle()
    with pytest.raises(PreconditionError, match="published version 2"):
        answer.result(10)
    assert world.last("held").version == 2 and world.directory.state().champion == 1


def test_a_training_that_ended_by_itself_at_the_same_moment_says_how(world: World) -> None:
    child = start_training(world)
    answer = cancel(world)
    child.finish(TrainingResult("refused", "MAE 9 > 8"))
    world.settle()
    with pytest.raises(PreconditionError, match="had ended by then: refused: MAE 9 > 8"):
        answer.result(10)
    assert world.history[-1] == "refused"


def test_a_request_that_waits_for_the_log_can_be_withdrawn(world: World) -> None:
    for _ in range(4):
        world.serve(10)
        world.model.context.finish_logs()
    world.tick()
    wanted = world.loop.train("m", "bob", "now")
    world.drain()
    assert "the log is being rolled" in status(world).waits
    done = cancel(world).result(10)
    assert done == Cancelled("", "what bob asked for had not begun and will not")
    with pytest.raises(PreconditionError, match="ann cancelled it before it had begun: no"):
        wanted.result(10)
    world.trainer.children[0].finish(TrainingResult("published"))
    world.settle()
    assert not world.trainer.trainings and world.history[-1] == "training_cancelled"
    past = world.model.desk.past
    assert past.of(world.directory.history().entries) == past and past.started == 0


def test_a_server_that_stops_answers_who_cancelled(tmp_path: Path) -> None:
    world = World(tmp_path)
    start_training(world)
    answer = cancel(world)
    world.loop.stop()
    assert answer.result(10).training_id == "m-1"
    assert world.history[-1] == "training_cancelled"


def test_progress_is_told_to_who_listens_and_kept_nowhere(world: World) -> None:
    async def main() -> None:
        subscription = world.bus.subscribe("m")
        events = subscription.events()
        child = start_training(world)
        for stage, fraction in (("read", 0.3), ("fit", 0.4), ("fit", 0.4)):
            child.on_progress(TrainingProgress(stage, fraction, f"doing {stage}", fraction + 0.1))
        world.drain()
        found = []
        async for event in events:
            found.append(event)
            if event.evidence.get("stage") == "fit":
                break
        told = [event for event in found if event.kind == "training_progress"]
        assert [event.evidence["stage"] for event in told] == ["read", "fit"]
        assert told[-1].evidence["training_id"] == "m-1"
        # Where a training is within a stage is told by the time that it takes.
        assert 0.4 <= told[-1].evidence["fraction"] <= 0.5
        assert told[-1].reason.startswith("m-1: fit, 4")
        assert told[-1].reason.endswith(" left: doing fit")
        assert {event.sequence for event in told} == {world.last("training_started").sequence}
        await events.aclose()
        later = world.bus.subscribe("m", after=0)
        assert later.lost == 0
        assert "training_progress" not in [event.kind for event in later.kept]
        later.close()
        child.finish(TrainingResult("refused", "worse"))

    asyncio.run(main())
    world.settle()
    assert "training_progress" not in world.history


def test_the_status_tells_what_runs_and_how_far_it_is(world: World) -> None:
    assert status(world) == TrainingStatus("m")
    child = start_training(world)
    assert world.model.stats().trainings.fraction == 0.0
    child.on_progress(TrainingProgress("fit", 0.4, "fitting", 0.5))
    world.drain()
    found = status(world)
    assert (found.training_id, found.actor, found.signal) == ("m-1", "trimtab", "drift")
    assert found.started_ms == world.wall.ms and "drift on" in found.reason
    assert found.progress.stage == "fit" and 0.4 <= found.progress.fraction <= 0.5
    assert found.progress.eta_s is not None
    assert 0.4 <= world.model.stats().trainings.fraction <= 0.5
    child.finish(TrainingResult("refused", "worse"))
    world.settle()
    found = status(world)
    assert found.training_id == "" and "0 of 50 labels" in found.waits
    assert world.model.stats().trainings.fraction == 0.0


def test_what_the_stages_of_a_version_took_is_known_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    child = start_training(world)
    for stage in ("fit", "publish"):
        child.on_progress(TrainingProgress(stage, 0.5, ""))
    publish_version(world.registry)
    child.finish(trained(child, 2))
    world.settle()
    stages = world.last("promoted").evidence["stages_s"]
    assert list(stages) == ["fit", "publish"]
    world.loop.stop()
    again = World(tmp_path)
    assert again.model.desk.past.stages_s == stages
    again.loop.stop()


def test_a_dry_run_decides_as_ever_and_trains_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, DRY)
    world.serve(1000, shift=2.0)
    world.label(50)
    world.settle()
    assert not world.trainer.children and status(world).dry_run
    skipped = world.last("training_skipped")
    assert skipped.reason.endswith("; nothing is trained: [trigger] dry_run")
    told = skipped.evidence
    assert (told["signal"], told["labels"], told["champion"]) == ("drift", 50, 1)
    assert told["drift"] and told["dry_run"] is True
    assert world.history[-1] == "training_skipped"
    world.tick()
    assert world.last("waiting").evidence["lacking"] == ["labels", "cooldown"]
    world.label(100)
    world.wall.advance(3600)
    world.tick()
    assert world.history.count("training_skipped") == 2, "as a training would, after the cooldown"
    assert world.model.stats().trainings.skipped == 2
    past = world.model.desk.past
    assert (past.started, len(past.starts_ms)) == (0, 2)
    world.loop.stop()
    again = World(tmp_path, DRY)
    assert again.model.desk.past == past
    again.loop.stop()


def test_an_operator_still_trains_in_a_dry_run(tmp_path: Path) -> None:
    world = World(tmp_path, DRY)
    assert world.loop.train("m", "ann", "now").result(10) == "m-1"
    world.trainer.trainings[0].finish(TrainingResult("refused", "worse"))
    world.settle()
    world.loop.stop()


def test_a_dry_run_follows_the_models_own_file(world: World) -> None:
    world.directory.recipe_path.write_text(RECIPE + "[trigger]\ndry_run = true\n")
    world.tick()
    world.serve(1000, shift=2.0)
    world.label(50)
    world.settle()
    assert "training_skipped" in world.kinds and not world.trainer.children


def test_broken_data_page_and_are_no_failure_of_the_trainer(tmp_path: Path) -> None:
    world = World(tmp_path)
    start_training(world).finish(BROKEN)
    world.settle()
    told = world.last("data_broken")
    assert "size: far out" in told.reason and told.evidence["columns"] == ["size"]
    assert [found["column"] for found in told.evidence["quality"]] == ["size", "id"]
    assert world.history[-1] == "data_broken" and "training_failed" not in world.kinds
    assert world.last("waiting").evidence["lacking"] == ["labels", "cooldown"]
    world.wall.advance(7200)
    world.tick()
    assert len(world.trainer.trainings) == 1, "the same labels are not tried again"
    assert world.last("waiting").evidence["lacking"] == ["labels"]
    assert world.model.stats().trainings.data_broken == 1
    past = world.model.desk.past
    assert past.failures == 0
    world.loop.stop()
    again = World(tmp_path)
    assert again.model.desk.past == past
    again.serve(1000, shift=2.0)
    again.wall.advance(7200)
    again.label(60)
    again.drain()
    assert len(again.trainer.trainings) == 1, "new labels are"
    again.trainer.trainings[0].finish(BROKEN)
    again.settle()
    assert again.model.desk.past.failures == 0, "however often"
    again.loop.stop()


FAULTS = [
    "the trainer was killed by SIGKILL, as the kernel does where memory runs out: it said nothing",
    "the trainer took longer than 3600 s",
    "[Errno 28] No space left on device: '/models/m/.tmp-1/model.onnx'",
    "the trainer could not be run: [Errno 12] Cannot allocate memory",
]


@pytest.mark.parametrize("reason", FAULTS)
def test_whatever_happens_to_the_trainer_is_one_event_and_the_champion_serves_on(
    world: World, reason: str
) -> None:
    child: FakeChild = start_training(world)
    child.finish(TrainingResult("failed", reason))
    world.settle()
    assert world.kinds.count("training_failed") == 1
    assert world.last("training_failed").reason == (
        f"{reason} (failure 1 in a row, automatic ones stop after 2)"
    )
    assert world.directory.state().champion == 1
    before = world.model.observed.rows
    world.serve(100)
    world.settle()
    assert world.model.observed.rows == before + 100
    assert json.loads(child.options["trigger"])["training_id"] == "m-1"
