"""The serving benchmark runs, and a server that fails requests cannot look fast."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serving_report
from contestants import Counters
from echo_program import infer_proto
from load import Load, Sent
from serving import CASES, check_bytes, check_counters
from serving_models import WrongAnswerError

ROOT = Path(__file__).parents[2]
LOAD = Load(2, 4)
WATCHED, UNWATCHED = CASES[0], CASES[1]


def test_answers_of_the_right_length_pass() -> None:
    check_bytes(Sent(1000, 1000, 1000 * 105), 100, 100, LOAD)
    check_bytes(Sent(1000, 1000, 1008 * 107), 100, 102, LOAD)  # ids grew; eight were under way


@pytest.mark.parametrize("data_bytes", [0, 995 * 105, 1009 * 105])
def test_requests_without_a_message_are_noticed(data_bytes: int) -> None:
    with pytest.raises(WrongAnswerError, match="not all of them"):
        check_bytes(Sent(1000, 1000, data_bytes), 100, 100, LOAD)


def test_the_servers_own_counters_must_agree() -> None:
    none = Counters(0, 0, 0, 0, 0)
    check_counters(none, Counters(100, 100, 100, 100, 0), 100, WATCHED)
    check_counters(none, Counters(100, 100, 0, 0, 0), 100, UNWATCHED)
    for case, counters, complaint in (
        (WATCHED, Counters(99, 99, 99, 99, 0), "counted 99 requests"),
        (WATCHED, Counters(100, 100, 0, 100, 0), "drift monitor counted 0"),
        (WATCHED, Counters(100, 100, 100, 0, 0), "traffic log counted 0"),
        (UNWATCHED, Counters(100, 100, 0, 100, 0), "though it is off"),
    ):
        with pytest.raises(WrongAnswerError, match=complaint):
            check_counters(none, counters, 100, case)


def _figures(cpu: float, rate: float) -> dict[str, float]:
    return {
        "cpu_us_per_request": cpu,
        "requests_per_s": rate,
        "p50_us": 1e6 / rate,
        "p99_us": 2e6 / rate,
        "resident_mb": 100.0,
    }


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    ours = serving_report.medians([_figures(50, 100), _figures(60, 50), _figures(300, 10)])
    echo = serving_report.medians([_figures(25, 200), _figures(20, 200), _figures(150, 20)])
    off = serving_report.medians([_figures(40, 100), _figures(60, 50), _figures(200, 10)])
    assert ours["cpu_us_per_request"] == 60
    found = serving_report.ratios(
        {
            "x": {"trimtab_native": ours, "cpp_echo": echo, "grpc_aio_echo": {"absent": "no"}},
            "x_no_drift": {"trimtab_native": off},
            "x_every_row": {"trimtab_native": ours},
        }
    )
    assert found == {
        "x": {
            "trimtab_native cpu_us_per_request / cpp_echo": 2.0,
            "trimtab_native cpu_us_per_request / not watched": 1.25,
        },
        "x_every_row": {"trimtab_native cpu_us_per_request / not watched": 1.25},
    }


@pytest.mark.skipif(shutil.which("protoc") is None, reason="no protoc")
def test_the_echos_protocol_is_whole(tmp_path: Path) -> None:
    text = infer_proto((ROOT / "proto" / "open_inference.proto").read_text())
    (tmp_path / "infer.proto").write_text(text)
    command = ["protoc", f"-I{tmp_path}", f"--cpp_out={tmp_path}", "infer.proto"]
    subprocess.run(command, check=True, timeout=60)


SERVERS = "trimtab_portable,grpc_aio_echo"
COMMAND = [sys.executable, "benchmarks/serving.py", "--rounds", "1", "--warm-up", "0"]
COMMAND += ["--cases", "one_row_8x32", "--servers", SERVERS, "--memory-requests", "2560"]
needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="no h2load")


@pytest.mark.e2e
@needs_h2load
def test_a_short_run_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with _started("--seconds", "1", "--json", str(file)) as run:
        said, complaints = run.communicate(timeout=150)
    assert run.returncode == 0, said + complaints
    found = json.loads(file.read_text())
    assert found["environment"]["cores"]
    assert list(found["cases"]) == ["one_row_8x32"]
    assert set(found["cases"]["one_row_8x32"]) == set(SERVERS.split(","))
    for figures in found["cases"]["one_row_8x32"].values():
        assert all(figures[name] > 0 for name in _figures(1, 1))
    assert len(found["memory"]["trimtab_portable"]["samples_mb"]) == 10
    assert "trimtab_portable" in said
    assert not _processes_of(run)


@pytest.mark.e2e
@needs_h2load
def test_an_interrupted_run_leaves_nothing_behind() -> None:
    with _started("--seconds", "100", "--no-memory") as run:
        deadline = time.monotonic() + 120
        while not any("h2load" in command for command in _processes_of(run)):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said = "".join(run.communicate(timeout=60))
    assert run.returncode == 130, said
    assert not _processes_of(run)
    assert not list((ROOT / "build" / "bench").glob(f"run-{run.pid}-*"))


@contextmanager
def _started(*options: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    run = subprocess.Popen([*COMMAND, *options], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        yield run
    finally:
        run.terminate()
        run.communicate(timeout=60)


def _processes_of(run: subprocess.Popen[str]) -> list[str]:
    """The commands that were started in the run's folder, or are told of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            folder = str((process / "cwd").readlink())
        except OSError:  # it has just ended
            continue
        if f"run-{run.pid}-" in command + folder:
            found.append(command)
    return found
