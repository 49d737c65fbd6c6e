"""The trainer as its callers see it: a process with exit codes, JSON lines and one sentence."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.trainer.trainer_lock import trainer_lock

FrameMaker = Callable[..., pl.DataFrame]
RECIPE = """
[recipe]
target = "value"
numeric = ["size", "age"]
categorical = ["colour"]
time = "when"
files = ["history.parquet"]
min_rows = 100
"""


@pytest.fixture
def models(tmp_path: Path, make_frame: FrameMaker) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "trimtab.toml").write_text(RECIPE)
    make_frame(400).write_parquet(tmp_path / "m" / "history.parquet")
    return tmp_path


def command(models: Path, name: str, *arguments: str) -> list[str]:
    base = [sys.executable, "-m", "trimtab.trainer", name, "--models-dir", str(models)]
    return [*base, "--model", "m", *arguments]


def run(models: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(models, name, *arguments), capture_output=True, text=True, check=False, timeout=60
    )


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_json_progress_ends_with_the_result_and_a_second_run_is_refused(models: Path) -> None:
    done = run(models, "train", "--progress", "json", "--trigger", '{"kind": "drift"}')
    assert done.returncode == 0
    *progress, last = lines(done.stdout)
    assert [line["progress"]["stage"] for line in progress] == [
        *("start", "read", "fit", "compare", "refit"),
        *("export", "parity", "reference", "card", "publish"),
    ]
    fractions = [line["progress"]["fraction"] for line in progress]
    assert fractions == sorted(fractions)
    assert last["result"]["outcome"] == "published"
    assert last["result"]["version"] == 1
    assert done.stderr == ""
    assert ModelDirectory(models / "m").manifest(1).lineage["trigger"] == {"kind": "drift"}

    again = run(models, "train", "--record")
    assert again.returncode == 3
    assert again.stderr.splitlines()[-1].startswith("refused by the gate champion: 0 labelled rows")
    assert ModelDirectory(models / "m").history().entries[-1].kind == "refused"


def test_a_failure_is_one_sentence_on_standard_error(models: Path) -> None:
    (models / "m" / "history.parquet").write_bytes(b"not parquet")
    done = run(models, "train", "--progress", "json", "--record")
    assert done.returncode == 1
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith(f"error: {models}/m/history.parquet cannot be read")
    result = lines(done.stdout)[-1]["result"]
    assert (result["outcome"], result["version"]) == ("failed", None)
    assert f"error: {result['reason']}" == sentence
    assert ModelDirectory(models / "m").version_directories() == []
    assert ModelDirectory(models / "m").history().entries[-1].kind == "training_failed"


@pytest.mark.parametrize(
    "arguments", [["--trigger", "not json"], ["--trigger", "[1]"], ["--progress", "loud"]]
)
def test_wrong_usage_is_exit_code_2(models: Path, arguments: list[str]) -> None:
    assert run(models, "train", *arguments).returncode == 2


def test_roll_reports_and_waits_for_nobody(models: Path, write_frames: Callable[..., None]) -> None:
    data = Registry(models).data_path("m")
    rows = pl.DataFrame({"id": ["a"], "row": [0], "event_time": [0]})
    write_frames(data / "traffic/closed-00000001.frames", [rows])
    with trainer_lock(data, "m"):
        busy = run(models, "roll")
    assert busy.returncode == 1
    assert f"(pid {os.getpid()}) is training m or rolling its log" in busy.stderr
    done = run(models, "roll", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "files": 1,
        "rows": 1,
        "torn_bytes": 0,
        "removed_days": [],
    }


def test_a_trainer_killed_while_it_publishes_leaves_a_whole_version_or_none(models: Path) -> None:
    process = subprocess.Popen(
        command(models, "train", "--progress", "json"), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("progress", {}).get("stage") == "publish":
            process.kill()
            break
    process.stdout.close()
    assert process.wait(60) in (0, -signal.SIGKILL)
    directory = ModelDirectory(models / "m")
    directory.recover()
    for version in directory.version_directories():
        directory.verify(version)
    assert list(directory.path.glob(".tmp-*")) == []


def test_a_trainer_told_so_ends_with_its_parent(models: Path) -> None:
    process = subprocess.Popen(
        command(models, "train", "--progress", "json", "--exit-with-parent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert process.stdout is not None
    assert "result" not in process.stdout.read()
    process.stdout.close()
    assert ModelDirectory(models / "m").version_directories() == []


def test_a_training_that_finds_another_one_is_not_recorded(models: Path) -> None:
    with trainer_lock(Registry(models).data_path("m"), "m"):
        busy = run(models, "train", "--record")
    assert busy.returncode == 1 and "is training m" in busy.stderr
    assert not ModelDirectory(models / "m").history().entries


def test_the_maturity_of_labels_goes_by_the_time_that_it_is_told(
    models: Path,
    make_frame: FrameMaker,
    write_frames: Callable[..., None],
    served: Callable[..., pl.DataFrame],
    labels: Callable[..., pl.DataFrame],
) -> None:
    data = Registry(models).data_path("m")
    live = make_frame(100, seed=2, start_ms=1_800_000_000_000)
    write_frames(data / "traffic/active.frames", [served(live, "a")])
    write_frames(data / "labels/active.frames", [labels(live, "a")])
    now = int(live["when"][-1])
    done = run(models, "train", "--event-time-ms", str(now), "--label-maturity-s", "60.0")
    assert done.returncode == 0, done.stderr
    found = ModelDirectory(models / "m").manifest(1).lineage["data"]
    assert (found["rows"], found["dropped"]) == (
        440,
        {"served rows younger than label_maturity_s": 60},
    )
    assert run(models, "train", "--label-maturity-s", "-1").returncode == 2


def test_broken_data_fail_with_every_finding_in_the_result(
    models: Path, make_frame: FrameMaker
) -> None:
    assert run(models, "train").returncode == 0
    later = make_frame(400, start_ms=1_710_000_000_000).with_columns(pl.col("size") * 1_000)
    pl.concat([make_frame(400), later]).write_parquet(models / "m" / "history.parquet")
    done = run(models, "train", "--progress", "json", "--record")
    assert done.returncode == 1
    assert "the data are broken, nothing was trained: size: " in done.stderr
    result = lines(done.stdout)[-1]["result"]
    [finding] = [item for item in result["quality"] if item["severity"] == "error"]
    assert (finding["column"], finding["what"]) == ("size", "far_out")
    assert ModelDirectory(models / "m").versions() == [1]
    assert "size" in ModelDirectory(models / "m").history().entries[-1].reason
