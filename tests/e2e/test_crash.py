"""kill -9 at bad moments: what was published and decided stays, and the next start says what it found."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests import models
from tests.served import Served, served
from trimtab.registry.directory import ModelDirectory

pytestmark = pytest.mark.e2e

X = np.array([[1, 2], [3, 4]], np.float32)


def publish(directory: ModelDirectory, factor: float) -> int:
    return models.publish(directory.path.parent, directory.name, models.scaled(factor))


def factor_of(server: Served) -> float:
    reply = server.infer("m", {"x": X})
    return float(np.frombuffer(reply.raw_output_contents[0], np.float32)[0])


def test_a_killed_server_loses_no_version_no_decision_and_no_flushed_row(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    directory = ModelDirectory(models_dir / "m")
    directory.path.mkdir(parents=True)
    publish(directory, 2.0)
    publish(directory, 5.0)
    options = ("--set", "traffic.flush_rows=2", "--set", "traffic.flush_ms=10")
    with served(models_dir, *options) as server:
        assert factor_of(server) == 2.0
        server.admin.promote("m", 2, actor="test", reason="better")
        server.label("m", {("a", 0): 1.0, ("a", 1): 2.0}, 1000)
        for request in range(50):
            server.infer("m", {"x": X}, id=f"r{request}")
        server.settle("m", 52)
        server.kill()
    state = directory.state()

    with served(models_dir, *options) as server:
        assert factor_of(server) == 5.0
        history = server.admin.history("m")
        assert history.chain_valid
        assert [entry.kind for entry in history.entries].count("promoted") == 2
        assert directory.state() == state
        assert server.stop() == 0

    said = (tmp_path / "models.stderr").read_text()
    assert "recovered" in said


def test_a_torn_tail_of_the_traffic_log_costs_that_frame_alone(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    directory = ModelDirectory(models_dir / "m")
    directory.path.mkdir(parents=True)
    publish(directory, 2.0)
    options = ("--set", "traffic.flush_rows=2", "--set", "traffic.flush_ms=10")
    log = models_dir / ".trimtab" / "m" / "traffic" / "active.frames"
    with served(models_dir, *options) as server:
        for request in range(20):
            server.infer("m", {"x": X}, id=f"r{request}")
        server.settle("m", 40)
        deadline = time.monotonic() + 20
        while not log.exists() or log.stat().st_size == 0:
            assert time.monotonic() < deadline
        server.kill()
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:37])

    with served(models_dir, *options) as server:
        assert factor_of(server) == 2.0
        assert server.stop() == 0

    said = (tmp_path / "models.stderr").read_text()
    assert "37" in said[said.index("recovered") :]


@pytest.mark.parametrize("stage", ["read", "fit", "export", "publish"])
def test_a_killed_trainer_leaves_nothing_published_and_the_next_one_works(
    tmp_path: Path, stage: str
) -> None:
    models_dir = tmp_path / "models"
    folder = models_dir / "m"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    x = random.normal(size=3000)
    pl.DataFrame({"x": x, "y": 2 * x, "t": np.arange(3000)}).write_parquet(folder / "d.parquet")
    (folder / "trimtab.toml").write_text(
        '[recipe]\ntask = "regression"\ntarget = "y"\nnumeric = ["x"]\ntime = "t"\n'
        'files = ["d.parquet"]\n'
    )
    command = [
        sys.executable, "-m", "trimtab.trainer", "train",
        "--models-dir", str(models_dir), "--model", "m", "--progress", "json",
    ]  # fmt: skip
    directory = ModelDirectory(folder)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if f'"stage": "{stage}"' in line:
                trainer.send_signal(signal.SIGKILL)
                break
        else:
            raise AssertionError(f"the trainer never said it was at {stage}")
    assert directory.versions() in ([], [1])  # at "publish" it may have been quicker

    directory.recover()
    before = directory.versions()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # Trained already on all there is: then there are no newer rows to compare on.
    assert again.returncode == (3 if before else 0), again.stdout + again.stderr
    assert directory.versions() == [1]
    assert directory.verify(1)
    assert not list(folder.glob(".tmp-*"))
