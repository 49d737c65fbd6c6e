"""What goes wrong around a real training, as the server that supervises it sees it: one reason each."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest

from tests.loop_fakes import wait_until
from trimtab.registry.directory import ModelDirectory
from trimtab.server.config import TrainingConfig
from trimtab.server.loop.training_run import TrainingResult, TrainingRun

FrameMaker = Callable[..., pl.DataFrame]
RECIPE = """
[recipe]
target = "value"
numeric = ["size", "age"]
time = "when"
files = ["history.parquet"]
min_rows = 100
"""
TRAINER = (sys.executable, "-m", "trimtab.trainer")
SMALL_FILES = (  # as a full disk: a write in the middle of staging fails
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    "runpy.run_module('trimtab.trainer', run_name='__main__', alter_sys=True)"
)


@pytest.fixture
def models(tmp_path: Path, make_frame: FrameMaker) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "trimtab.toml").write_text(RECIPE)
    make_frame(400).write_parquet(tmp_path / "m" / "history.parquet")
    return tmp_path


def supervised(
    models: Path, limits: TrainingConfig | None = None, command: Sequence[str] = TRAINER
) -> TrainingResult:
    """One training under the server's own supervision."""
    results: list[TrainingResult] = []
    arguments = ["train", f"--models-dir={models}", "--model=m", "--progress=json"]
    child = TrainingRun(
        [*arguments, "--exit-with-parent"],
        limits or TrainingConfig(timeout_s=300, nice=0),
        results.append,
        command=command,
    )
    child.start()
    assert child.join(330)
    assert ModelDirectory(models / "m").version_directories() == []
    [result] = results
    assert result.outcome == "failed" and not result.killed
    return result


def test_a_disk_that_is_full_as_a_version_is_staged_leaves_nothing(models: Path) -> None:
    result = supervised(models, command=[sys.executable, "-c", SMALL_FILES])
    assert result.reason == f"nothing more can be written below {models}: File too large"
    assert list((models / "m").glob(".tmp-*")) == []


def test_too_little_memory_is_told_before_anything_is_tried(models: Path) -> None:
    result = supervised(models, TrainingConfig(timeout_s=300, memory_mb=600))
    assert result.reason.startswith("600 MiB of address space are too little memory")
    assert "memory_mb must be at least 1,400, or 0" in result.reason


def test_the_kernel_ends_an_orphan_that_comes_to_no_turn_any_more(tmp_path: Path) -> None:
    """A thread that holds Python's lock for ever keeps the others from seeing that the server died."""
    orphan = (
        "import ctypes, os; from trimtab.trainer.__main__ import _follow_parent; "
        "_follow_parent(True); os.write(1, b'ready'); ctypes.PyDLL(None).sleep(600)"
    )
    server = (
        "import signal, subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {orphan!r}], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE); child.stdout.read(5); print(child.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        pid = int(process.stdout.readline())
        watchdog.cancel()
        os.kill(pid, 0)
        process.send_signal(signal.SIGKILL)

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state.rpartition(")")[2].split()[0] == "Z"  # its reaper may be slow

    wait_until(gone, "the orphan's end")
