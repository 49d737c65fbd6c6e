"""The options of a backtest, its errors, and the real thing end to end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from trimtab.trainer import backtest_command

runner = CliRunner(env={"COLUMNS": "160", "TERM": "dumb"})
ROWS = 12_000


def run(*arguments: object) -> Any:
    return runner.invoke(backtest_command.app, [str(argument) for argument in arguments])


def write_data(path: Path, rows: int = ROWS) -> Path:
    """Six months; in the third the world moves: x shifts and y depends on it otherwise."""
    source = np.random.default_rng(5)
    when = [datetime(2021, 1, 1) + timedelta(minutes=21.5 * row) for row in range(rows)]
    later = np.arange(rows) > rows * 2 // 5
    x = source.normal(size=rows) + 1.5 * later
    z = source.normal(size=rows)
    kind = source.choice(["red", "green", "blue"], rows)
    slope = np.where(later, -2.0, 2.0)
    y = slope * x + z + (kind == "red") + source.normal(scale=0.1, size=rows)
    frame = pl.DataFrame({"when": when, "y": y, "x": x, "z": z, "kind": kind})
    frame.write_parquet(path)
    return path


def test_the_help_explains_every_option_and_why_to_shuffle() -> None:
    result = run("--help")
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    for option in (
        "--target",
        "--label-delay",
        "--window",
        "--order",
        "--set",
        "--json",
        "--plot",
        "--out",
    ):
        assert option in text
    assert "--label-maturity" in text
    assert "one hour of weather is one sample" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["data.parquet"],
        ["data.parquet", "--target", "y"],
        ["data.parquet", "--target", "y", "--time", "t", "--label-delay", "soon"],
        ["data.parquet", "--target", "y", "--time", "t", "--window", "wide"],
        ["data.parquet", "--target", "y", "--time", "t", "--label-maturity", "7"],
        ["data.parquet", "--target", "y", "--time", "t", "--set", "psi=1"],
        ["data.parquet", "--target", "y", "--time", "t", "--task", "clustering"],
        ["data.parquet", "--target", "y", "--time", "t", "--rows-per-request", "0"],
        ["data.parquet", "--target", "y", "--time", "t", "--last-period", "1"],
        ["data.parquet", "--target", "y", "--time", "t", "--seeds", "1,two"],
        ["data.parquet", "--target", "y", "--time", "t", "--seeds", "1,-2"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_what_is_wrong_with_the_data_is_one_sentence(tmp_path: Path) -> None:
    path = write_data(tmp_path / "d.parquet", 400)
    for options, message in (
        (["--target", "price", "--time", "when"], "no column 'price'"),
        (["--target", "y", "--time", "x"], "must be a time, a date or a whole number"),
        (["--target", "y", "--time", "when", "--period", "kind"], "is not one stretch of time"),
        (["--target", "y", "--time", "when", "--every", "9y"], "there is one period only"),
        (["--target", "y", "--time", "when", "--set", "recipe.min_row=1"], "did you mean"),
    ):
        result = run(path, *options)
        assert result.exit_code == 1
        (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
        assert message in line


def test_a_directory_of_models_that_no_backtest_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "models" / "precious").mkdir(parents=True)
    path = write_data(tmp_path / "d.parquet", 400)
    result = run(path, "--target", "y", "--time", "when", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "exists and was not made by a backtest" in result.stderr
    assert (tmp_path / "out" / "models" / "precious").is_dir()


def test_columns_may_be_repeated_or_separated_by_commas() -> None:
    assert backtest_command._columns(["a, b", "c", "a"]) == ("a", "b", "c")
    assert backtest_command._columns(None) == ()


def test_seeds_are_told_once_each_and_one_seed_is_the_default() -> None:
    assert backtest_command._seeds("3,1,3", 7) == (3, 1)
    assert backtest_command._seeds(None, 7) == (7,)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "trimtab.trainer", "backtest", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def without_timings(report: Any) -> Any:
    overall = {key: value for key, value in report["overall"].items() if not key.endswith("_ms")}
    return {name: report[name] for name in ("periods", "decisions")} | {"overall": overall}


@pytest.mark.e2e
def test_a_world_that_moves_is_noticed_and_the_service_follows(tmp_path: Path) -> None:
    path = write_data(tmp_path / "moving.parquet")
    options = [path, "--target", "y", "--time", "when", "--seed", 3, "--label-delay", "6h"]
    options += ["--set", "recipe.estimator.max_iter=40"]
    with started(*options, "--out", tmp_path / "out", "--json", "-") as process:
        stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    overall = report["overall"]
    assert overall["failed_requests"] == overall["wrong_shapes"] == 0
    assert overall["rows"] == sum(period["rows"] for period in report["periods"])
    assert overall["promotions"] >= 1
    assert overall["metric_managed"] < 0.7 * overall["metric_frozen"]
    assert 0 < overall["rollback_ms"] < 10_000
    assert 0 < overall["promote_ms"] < 10_000
    assert overall["metric_oracle"] < overall["metric_frozen"]
    decisions = report["decisions"]
    judged = [each["verdict"] for each in decisions if each["kind"] == "promoted"]
    assert judged.count("right") == overall["verdicts"]["promoted"]["right"] >= 1
    assert len(judged) == overall["promotions"]
    found = report["environment"]["training_rows_reproduced"]
    assert found["matching"] == found["of"] == overall["promotions"]
    assert "</html>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    kinds = [event["kind"] for period in report["periods"] for event in period["events"]]
    assert kinds.index("drift") < kinds.index("training_started") < kinds.index("promoted")
    assert report["periods"][-1]["champion_version"] >= 2
    worst = max(period["drift"]["psi"] for period in report["periods"] if period["drift"])
    assert worst > 0.2
    assert "The task is regression" in stderr
    assert not (tmp_path / "out" / "models" / ".trimtab" / "server.json").exists()

    with started(*options, "--fast", "--json", tmp_path / "again.json") as process:
        _, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert (report["environment"]["fast"], again["environment"]["fast"]) == (False, True)
    assert without_timings(again) == without_timings(report)


@pytest.mark.e2e
def test_a_window_by_time_sees_it_too_and_the_same_twice(tmp_path: Path) -> None:
    """Each half day fills one pane of rows and begins another; the two runs hinder each other."""
    path = write_data(tmp_path / "moving.parquet", 3_000)
    options = [path, "--target", "y", "--time", "when", "--seed", 3, "--label-delay", "6h"]
    options += ["--every", "15d", "--window", "5d", "--rows-per-request", 4]
    for setting in ("drift.window_rows=300", "drift.min_rows=100", "trigger.cooldown_s=6e5"):
        options += ["--set", setting]
    options += ["--set", "recipe.estimator.max_iter=10"]
    options += ["--no-oracle"]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    with started(*options, "--json", files[0]) as one, started(*options, "--json", files[1]) as two:
        for process in (one, two):
            _, stderr = process.communicate(timeout=150)
            assert process.returncode == 0, stderr
            assert "warning: The drift window has 300 rows" in stderr
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["overall"]["metric_oracle"] is None
    assert first["settings"]["policy"]["drift"]["window_s"] == 5 * 86_400
    assert first["overall"]["promotions"] >= 1
    times = [
        datetime.fromisoformat(event["time"])
        for period in first["periods"]
        for event in period["events"]
        if event["kind"].startswith("drift")
    ]
    by_time = [when for when in times if (when.hour % 12, when.minute // 22) == (0, 0)]
    assert 0 < len(by_time) < len(times), "panes were ended by time and by rows"
    assert without_timings(first) == without_timings(second)


@pytest.mark.e2e
def test_an_interruption_ends_the_server_and_the_trainer(tmp_path: Path) -> None:
    path = write_data(tmp_path / "moving.parquet")
    out = tmp_path / "out"
    options = [path, "--target", "y", "--time", "when", "--out", out]
    with started(*options) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "replaying" in line:
                break
        told = json.loads((out / "models" / ".trimtab" / "server.json").read_text())
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(told["pid"], 0)
