"""Two files compared: a server's figures, exit codes for a script, and words for a person."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from tests.loop_fakes import strings
from trimtab._native.reference import ReferenceProfile
from trimtab.registry.manifest import Signature
from trimtab.server.commands import cli, drift_check_command, drift_comparison
from trimtab.server.commands.drift_check_command import DriftCheckError, run_counting
from trimtab.server.commands.drift_comparison import Comparison
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_evidence import of_two_samples
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import evaluate
from trimtab.server.drift.yardstick import Yardstick
from trimtab.server.inference.observation import ObservedBatch, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.trainer.drift_counts import CountRequest, count
from trimtab.trainer.errors import DataError

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
NUMERIC = ("temp", "wind", "seats", "constant")


def frame(rows: int, shift: float = 0.0, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    wind = random.gamma(2, size=rows)
    wind[random.random(rows) < 0.05] = np.nan
    wind[:3] = np.inf, -np.inf, 1e30
    return pl.DataFrame(
        {
            "temp": random.normal(size=rows) + shift,
            "wind": wind,
            "seats": random.integers(0, 5, rows).astype(np.float32),
            "constant": np.where(np.arange(rows) % 2, 1.0, 2.0 - bool(shift)),
            "carrier": random.choice(["AA", "DL", "UA", "", *(["ZZ"] if shift else [])], rows),
        }
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's side without a process of its own."""

    def counting(arguments: Sequence[str], console: Console) -> None:
        reference, current, *rest = arguments
        options = list(zip(rest[::2], rest[1::2], strict=True))
        named = dict(options)
        columns = tuple(value for option, value in options if option == "--column")
        request = CountRequest(
            Path(reference), Path(current), columns, int(named.get("--bins", "64"))
        )
        try:
            count(request).save(Path(named["--out"]))
        except DataError as error:
            raise DriftCheckError(str(error)) from error

    monkeypatch.setattr(drift_check_command, "run_counting", counting)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference, rows like it, and rows of which `temp` moved."""
    frame(5_000).write_parquet(tmp_path / "reference.parquet")
    frame(3_000, seed=1).write_parquet(tmp_path / "same.parquet")
    frame(3_000, 0.8, seed=2).write_parquet(tmp_path / "moved.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, ["drift-check", *map(str, arguments)])


def matrix(rows: pl.DataFrame) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows.select(NUMERIC).to_numpy(), np.float32)


def batch(rows: pl.DataFrame) -> ObservedBatch:
    carriers = rows["carrier"].to_list()
    inputs = {
        "numeric": Tensor("FP32", (len(rows), len(NUMERIC)), matrix(rows)),
        "categorical": Tensor("BYTES", (len(rows), 1), strings(carriers)),
    }
    return ObservedBatch("m", 1, ObservedCalls.of([]), len(rows), inputs, {})


@pytest.mark.parametrize("current", ["same", "moved"])
def test_the_figures_are_those_of_a_server_that_was_sent_the_rows(
    files: Path, current: str
) -> None:
    found = count(CountRequest(files / "reference.parquet", files / f"{current}.parquet"))
    found.save(files)
    config = DriftConfig(window_rows=3_000, min_rows=100, judge_every_s=0)
    offline = drift_comparison.judge(files, config)

    rows = pl.read_parquet(files / f"{current}.parquet")
    monitor = DriftMonitor(Signature((), ()), found.reference, config, lambda snapshot: None)
    for start in range(0, 3_000, 7 * 64):
        monitor.observe(batch(rows[start : start + 7 * 64]))
    window = monitor.snapshot()
    evidence = of_two_samples(found.reference, window.tensors, 0.01)
    online = evaluate(Yardstick(found.reference), window, config, evidence=evidence)

    assert {feature.name for feature in online} == {*NUMERIC, "carrier"}
    assert repr(offline.features) == repr(online)  # every figure and word, to the last bit
    verdicts = {feature.name: feature.verdict for feature in online}
    if current == "moved":
        assert verdicts["temp"] == "drift"
        assert verdicts["constant"] == "data_quality"
    else:
        assert set(verdicts.values()) == {"ok"}


@pytest.mark.usefixtures("in_process")
def test_rows_like_the_reference_end_with_0(files: Path) -> None:
    result = run("reference.parquet", "same.parquet")
    assert result.exit_code == 0, result.output
    head, text, columns, *lines = result.stdout.splitlines()
    assert head == "same.parquet: ok"
    assert text == "3,000 rows against 5,000 of reference.parquet"
    assert columns.split()[:3] == ["feature", "verdict", "PSI"]
    assert {line.split()[0] for line in lines} == {*NUMERIC, "carrier"}
    assert result.stderr == ""


@pytest.mark.usefixtures("in_process")
def test_drift_ends_with_3_and_is_named(files: Path) -> None:
    result = run("reference.parquet", "moved.parquet", "--columns", "temp,seats")
    assert result.exit_code == 3
    assert result.stdout.startswith("moved.parquet: drift — temp: ")
    assert "carrier" not in result.stdout
    table = [line.split() for line in result.stdout.splitlines()[2:]]
    (temp,) = [line for line in table if line[0] == "temp"]
    assert temp[1] == "drift" and "█" in temp[-1] and "█" not in temp[-2]
    chosen = run("reference.parquet", "moved.parquet", "--columns", "temp", "--limit", "1")
    assert "more; --all" not in chosen.stdout
    limited = run("reference.parquet", "moved.parquet", "--limit", "1")
    assert "4 more; --all shows them" in limited.stdout


@pytest.mark.usefixtures("in_process")
def test_thresholds_decide_and_bins_are_the_files_own(files: Path) -> None:
    arguments = ("reference.parquet", "moved.parquet", "--columns", "temp")
    assert run(*arguments, "--psi", "5", "--ks", "0.9").exit_code == 0
    assert run(*arguments, "--psi", "5", "--ks", "0.1").exit_code == 3
    fine, coarse = (
        json.loads(run(*arguments, "--json", "--bins", bins).stdout)["features"][0]
        for bins in (256, 4)
    )
    assert fine["ks_high"] - fine["ks_low"] < 0.02 < coarse["ks_high"] - coarse["ks_low"]
    assert len(coarse["reference_shares"]) == 5


@pytest.mark.usefixtures("in_process")
def test_json_is_one_object_with_every_figure(files: Path) -> None:
    result = run("reference.parquet", "moved.parquet", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["state"] == "drift"
    assert (document["reference_rows"], document["current_rows"]) == (5_000, 3_000)
    assert document["reference"] == "reference.parquet"
    first = document["features"][0]
    assert {"name", "verdict", "reason", "psi", "ks_low", "ks_high", "unseen_rate"} <= set(first)


@pytest.mark.usefixtures("in_process")
def test_few_rows_are_not_judged_until_they_are_asked_to_be(files: Path) -> None:
    frame(60, 3.0, seed=3).write_parquet(files / "few.parquet")
    few = run("reference.parquet", "few.parquet", "--json")
    assert few.exit_code == 0
    assert json.loads(few.stdout)["features"][0]["reason"] == "only 60 rows, 100 are judged"
    judged = run("reference.parquet", "few.parquet", "--min-rows", "50")
    assert judged.exit_code == 3


@pytest.mark.usefixtures("in_process")
def test_a_column_that_is_gone_or_of_another_kind_is_broken_and_says_so(files: Path) -> None:
    changed = frame(3_000, seed=1).drop("wind").with_columns(pl.lit("five").alias("seats"))
    changed.with_columns(pl.lit(1).alias("new")).write_parquet(files / "changed.parquet")
    result = run("reference.parquet", "changed.parquet", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["state"] == "data_quality"
    told = {
        feature["name"]: (feature["verdict"], feature["reason"]) for feature in document["features"]
    }
    assert told["wind"] == ("data_quality", "changed.parquet has no such column")
    assert told["seats"] == (
        "data_quality",
        "changed.parquet holds String there, the reference numbers",
    )
    assert told["temp"][0] == "ok"
    assert result.stderr == "note: not in reference.parquet, and not compared: new\n"


@pytest.mark.usefixtures("in_process")
def test_the_reference_may_be_a_version(files: Path) -> None:
    found = count(CountRequest(files / "reference.parquet", files / "same.parquet"))
    version = files / "models" / "m" / "3"
    version.mkdir(parents=True)
    found.reference.save(version / "reference.npz")
    for reference in (version, version / "reference.npz"):
        assert run(reference, "same.parquet").exit_code == 0
        assert run(reference, "moved.parquet").exit_code == 3
        refused = run(reference, "same.parquet", "--bins", "10")
        assert refused.exit_code == 2
        assert "whose bins are laid already" in " ".join(refused.stderr.replace("│", " ").split())


@pytest.mark.usefixtures("in_process")
def test_what_cannot_be_compared_ends_with_1_and_one_sentence(files: Path) -> None:
    for arguments, message in (
        (("reference.parquet", "gone.parquet"), "gone.parquet: no such file"),
        (("gone.csv", "same.parquet"), "gone.csv: no such file"),
        (("reference.parquet", "same.parquet", "--columns", "tmp"), "has no column 'tmp'"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert message in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("verdict", "code"), [("ok", 0), ("warning", 0), ("drift", 3), ("data_quality", 3)]
)
def test_exit_codes_follow_the_state(verdict: str, code: int) -> None:
    assert Comparison(verdict, "", 1, 1, ()).exit_code == code


def test_the_trainers_side_is_a_process_whose_sentence_is_passed_on(
    files: Path, tmp_path: Path
) -> None:
    quiet = Console(stderr=True)
    run_counting(["reference.parquet", "same.parquet", "--column", "temp", "--out", "."], quiet)
    assert ReferenceProfile.load(tmp_path / "reference.npz").rows == 5_000
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(DriftCheckError, match=r"^broken\.parquet: cannot be read: "):
        run_counting(["reference.parquet", "broken.parquet", "--out", "."], quiet)


def test_the_command_as_a_person_runs_it(files: Path) -> None:
    command = [sys.executable, "-m", "trimtab.server", "drift-check"]
    done = subprocess.run(
        [*command, "reference.parquet", "moved.parquet", "--columns", "temp,carrier"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=files,
        env={**os.environ, "COLUMNS": "150"},
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("moved.parquet: drift — ")
    assert done.stderr == ""
    assert sorted(path.name for path in files.iterdir()) == [
        "moved.parquet",
        "reference.parquet",
        "same.parquet",
    ]
