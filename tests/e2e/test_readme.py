"""The README's commands, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests import models
from tests.served import served
from trimtab.registry.directory import ModelDirectory

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.e2e


def block(heading: str, language: str, index: int = 0) -> str:
    """The n-th code block of a language below a heading."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return str(re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[index])


def commands(text: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def shell(command: str, cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PATH": path, "COLUMNS": "160"},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_two_commands_are_targets_and_ci_runs_the_second() -> None:
    makefile = (ROOT / "Makefile").read_text()
    names = [command.removeprefix("make ") for command in commands(block("Two commands", "sh"))]
    assert names == ["demo", "test"]
    for name in names:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_an_onnx_file_is_served_in_three_commands(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(models.scaled(3.0))
    *prepare, serve = commands(block("Serve your own ONNX file", "sh"))
    assert serve == "trimtab serve models"
    for command in prepare:
        shell(command, tmp_path)

    with served(tmp_path / "models") as server:
        x = np.array([[1, 2], [3, 4]], np.float32)
        reply = server.infer("mine", {"x": x})

        assert np.frombuffer(reply.raw_output_contents[0], np.float32).tolist() == [3, 6, 9, 12]
        assert reply.model_version == "1"
        assert server.stop() == 0


def test_a_model_is_trained_served_and_steered(tmp_path: Path) -> None:
    recipe = block("Train your own model", "toml")
    train, serve = commands(block("Train your own model", "sh", 0))
    client = commands(block("Train your own model", "sh", 1))
    steer = commands(block("Train your own model", "sh", 2))
    folder = tmp_path / "models" / "price"
    folder.mkdir(parents=True)
    (folder / "trimtab.toml").write_text(recipe)
    random = np.random.default_rng(0)
    rows = 3000
    pl.DataFrame(
        {
            "rooms": random.integers(1, 9, rows),
            "area": random.normal(80, 20, rows),
            "year": random.integers(1900, 2020, rows),
            "city": random.choice(["Ghent", "Turin"], rows),
            "heating": random.choice(["gas", "heat pump", ""], rows),
            "sold_at": 1_600_000_000_000 + 3_600_000 * np.arange(rows),
        }
    ).with_columns(price=pl.col("area") * 3 + pl.col("rooms") * 10).write_parquet(
        folder / "history.parquet"
    )

    assert "version 1" in shell(train, tmp_path)
    publish_a_copy(ModelDirectory(folder))
    assert serve == "trimtab serve models"
    with served(tmp_path / "models") as server:
        asked, told = (
            shell(f"{command} --server {server.banner['inference']}", ROOT) for command in client
        )
        shown = {command.split()[1]: shell(command, tmp_path) for command in steer}
        assert server.stop() == 0

    assert "id sale-1, answered by version 1" in asked
    assert "labels taken: 1" in told
    assert "champion" in shown["models"]
    assert "area" in shown["drift"]
    for word in ("published", "promoted", "rolled back", "checked by hand", "support tickets"):
        assert word in shown["history"].replace("_", " ")


def publish_a_copy(directory: ModelDirectory) -> None:
    """Version 2, as if another training had made it."""
    manifest = directory.manifest(1)
    with directory.stage() as staged:
        for name in manifest.files:
            shutil.copy(directory.version_path(1) / name, staged.path / name)
        staged.publish(
            signature=manifest.signature,
            task=manifest.task,
            lineage={},
            metrics=dict(manifest.metrics),
            actor="test",
            reason="a copy",
        )


@pytest.mark.timeout(600)
def test_the_demo_runs_on_the_first_two_months(tmp_path: Path) -> None:
    """The same target, on a slice of the year; the whole year is `make demo`."""
    out = tmp_path / "demo"
    done = subprocess.run(
        ["make", "demo", f"DEMO_DIR={out}", "DEMO_MONTHS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.json").is_file()
    assert (out / "report.png").is_file()
