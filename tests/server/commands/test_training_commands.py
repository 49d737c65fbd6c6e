"""`trimtab retrain`, `cancel` and `trainings`, against a real server with a trainer that obeys."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests import models
from tests.admin_port import LISTEN, serving
from tests.loop_fakes import FakeChild, FakeTrainer, wait_until
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.server import app
from trimtab.server.commands import cli, training_commands
from trimtab.server.commands.training_view import (
    TrainingRecord,
    in_the_last,
    progress_text,
    status_line,
    summary,
    trainings_of,
    trainings_view,
)
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
DAY_MS = 86_400_000
KILLED = TrainingResult("failed", "the trainer was cancelled", killed=True)


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    models.publish(folder, "m", models.scaled(1.0))
    (folder / "m" / "trimtab.toml").write_text('[recipe]\ntask = "regression"\n')
    return folder


@pytest.fixture
def trainer(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTrainer]:
    trainer = FakeTrainer()
    monkeypatch.setattr(app, "TrainingRun", trainer)
    monkeypatch.setattr(training_commands, "_LOOK_S", 0.01)
    with serving(models_dir, LISTEN):
        yield trainer


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def child_of(trainer: FakeTrainer) -> FakeChild:
    wait_until(lambda: bool(trainer.trainings), "the training's start")
    return trainer.trainings[-1]


def test_a_training_is_begun_and_cancelled(models_dir: Path, trainer: FakeTrainer) -> None:
    begun = run("retrain", models_dir, "m", "--reason", "new columns", "--actor", "bob")
    assert (begun.exit_code, begun.stdout) == (0, "m: training m-1 began\n")
    child = child_of(trainer)
    assert (child.options["actor"], child.options["reason"]) == ("bob", "new columns")
    other = run("cancel", models_dir, "m", "--id", "m-7")
    assert (other.exit_code, other.stderr) == (
        1,
        "error: training 'm-7' of model 'm' does not run: m-1 does\n",
    )

    def end() -> None:
        wait_until(lambda: bool(child.killed), "the kill")
        child.finish(KILLED)

    thread = meanwhile(end)
    done = run("cancel", models_dir, "m", "--reason", "wrong data", "--actor", "ann")
    thread.join(10)
    assert (done.exit_code, done.stdout) == (0, "m: training m-1 was cancelled\n")
    again = run("cancel", models_dir, "m")
    assert again.exit_code == 1 and "no training of model 'm' runs" in again.stderr
    shown = run("trainings", models_dir, "m")
    assert "m: 1 training in the last 7 days (1 cancelled)" in shown.stdout
    assert "new columns → wrong data" in shown.stdout


@pytest.mark.parametrize(
    ("result", "code", "outcome"),
    [
        (TrainingResult("refused", "MAE 9 > 8"), 3, "refused: MAE 9 > 8"),
        (TrainingResult("failed", "column x is not there"), 1, "failed: column x is not there"),
        (
            TrainingResult("published", "better", version=2),
            0,
            "promoted: asked for by hand; better",
        ),
    ],
)
def test_who_waits_for_a_training_sees_how_far_it_is_and_how_it_ends(
    models_dir: Path,
    trainer: FakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    result: TrainingResult,
    code: int,
    outcome: str,
) -> None:
    said = threading.Event()  # that it fits

    def text(status: pb.TrainingStatusResponse) -> str:
        if status.stage == "fit":
            said.set()
        return progress_text(status)

    monkeypatch.setattr(training_commands, "progress_text", text)

    def act() -> None:
        child = child_of(trainer)
        try:
            child.on_progress(TrainingProgress("fit", 0.4, "fitting to 100 rows", 0.41))
            assert said.wait(20)
            if result.outcome == "published":
                models.publish(models_dir, "m", models.scaled(2.0))
        finally:
            child.finish(result)

    thread = meanwhile(act)
    done = run("retrain", models_dir, "m", "--wait", "--json")
    thread.join(20)
    assert done.exit_code == code, done.output
    told = json.loads(done.stdout)
    assert f"{told['outcome']}: {told['detail']}".startswith(outcome)
    assert told["training_id"] == "m-1" and told["version"] == (2 if code == 0 else 0)
    assert "m-1: fit 4" in done.stderr and "fitting to 100 rows" in done.stderr


def test_without_a_server_the_history_tells(models_dir: Path) -> None:
    model = Registry(models_dir).model("m")
    for labels in (100, 200, 300):
        evidence = {"signal": "drift", "reason": "drift on temp", "labels_total": labels}
        model.record("training_skipped", actor="trimtab", reason="dry run", evidence=evidence)
    shown = run("trainings", models_dir, "m")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == (
        "m: 0 trainings in the last 7 days; would have trained 3 times (dry run)"
    )
    document = json.loads(run("trainings", models_dir, "m", "--json", "--days", 1).stdout)
    assert (document["served"], document["status"]) == (False, None)
    assert (document["trained"], document["would_have_trained"]) == (0, 3)
    assert document["trainings"][0]["signal"] == "drift"
    assert run("cancel", models_dir, "m").exit_code == 1


def entry(kind: str, time_ms: int, training_id: str = "", **evidence: Any) -> pb.Event:
    if training_id:
        evidence["training_id"] = training_id
    return pb.Event(
        sequence=time_ms,
        history_sequence=time_ms,
        time_ms=time_ms,
        kind=kind,
        actor="trimtab",
        reason=f"why {kind}",
        version=int(evidence.pop("version", 0)),
        evidence_json=json.dumps(evidence),
    )


def test_a_history_becomes_a_list_of_trainings() -> None:
    found = trainings_of(
        [
            entry("published", 1, version=1),  # by hand
            entry("training_started", 2, "m-1", signal="drift"),
            entry("published", 3, "m-1", version=2),
            entry("training_failed", 4),  # by hand, beside it
            entry("promoted", 5, "m-1", version=2),
            entry("training_skipped", 6, signal="schedule"),
            entry("training_started", 7, "m-2"),
            entry("training_failed", 8, interrupted=True),
            entry("training_started", 9, "m-3"),
            entry("data_broken", 10, "m-3"),
            entry("training_cancelled", 11, begun=False),
            entry("training_started", 12, "m-4"),
        ]
    )
    assert [(each.training_id, each.outcome, each.version, each.ended_ms) for each in found] == [
        ("m-1", "promoted", 2, 3),
        ("", "would have trained", 0, 6),
        ("m-2", "interrupted", 0, 8),
        ("m-3", "data broken", 0, 10),
        ("m-4", "running", 0, 0),
    ]
    assert found[0].signal == "drift" and found[0].detail == "why promoted"


def test_the_summary_counts_what_was_and_what_would_have_been() -> None:
    def record(days_ago: float, outcome: str, training_id: str = "m-1") -> TrainingRecord:
        began = round(100 * DAY_MS - days_ago * DAY_MS)
        return TrainingRecord(training_id, began, "drift", "trimtab", "why", outcome, "so")

    records = [
        record(8, "refused"),
        record(6, "promoted"),
        record(5, "promoted"),
        record(4, "failed"),
        record(3, "would have trained", ""),
    ]
    week = in_the_last(records, 7, 100 * DAY_MS)
    assert summary("m", week, 7) == (
        "m: 3 trainings in the last 7 days (2 promoted, 1 failed); "
        "would have trained 1 time (dry run)"
    )
    assert summary("m", records[:1], 0) == "m: 1 training (1 refused)"
    assert summary("m", [], 1) == "m: 0 trainings in the last 1 day"
    assert len(in_the_last(records, 0, 100 * DAY_MS)) == 5


def test_what_runs_or_waits_is_one_line() -> None:
    runs = pb.TrainingStatusResponse(training_id="m-2", stage="fit", fraction=0.43, eta_s=75)
    assert status_line(runs) == "m-2 runs: fit 43%, about 75 s left"
    assert status_line(pb.TrainingStatusResponse(training_id="m-2")) == "m-2 runs: starting 0%"
    assert status_line(pb.TrainingStatusResponse(waits="3 of 5 labels")) == "waits: 3 of 5 labels"
    dry = pb.TrainingStatusResponse(dry_run=True)
    assert status_line(dry) == "dry run: nothing is trained by itself"
    console = Console(width=120)
    with console.capture() as captured:
        console.print(trainings_view("m", [], 7, dry))
    assert captured.get().splitlines() == ["m: 0 trainings in the last 7 days", status_line(dry)]
