"""`trimtab approve` and `trimtab reject` against a real server."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests import models
from tests.admin_port import LISTEN, serving
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.server.commands import cli
from trimtab.server.commands.version_views import rollout_view
from trimtab.server.events import wall_ms
from trimtab.server.rollout.approval import Waiting

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def models_dir(tmp_path: Path) -> Iterator[Path]:
    """A served model whose version 2 has waited for approval since an earlier server."""
    folder = tmp_path / "models"
    folder.mkdir()
    for factor in (1.0, 2.0):
        models.publish(folder, "m", models.scaled(factor))
    (folder / "m" / "trimtab.toml").write_text("[promotion]\napproval = true\nbake = false\n")
    waiting = Waiting(2, 1, 1, "drift; MAE 1 against 2", wall_ms(), wall_ms() + 7_300_000, {})
    Registry(folder).model("m").record(
        "approval_wanted", actor="trimtab", reason="", version=2, evidence=waiting.recorded()
    )
    with serving(folder, LISTEN):
        yield folder


def test_a_version_that_waits_is_shown_and_approved(models_dir: Path) -> None:
    shown = run("rollout", models_dir, "m").stdout
    assert "m: version 2 waits for approval" in shown
    assert "version 2 waits for approval, 2 h left: drift; MAE 1 against 2" in shown
    assert "rows compared" not in shown
    wrong = run("approve", models_dir, "m", 1)
    assert (wrong.exit_code, wrong.stderr) == (
        1,
        "error: version 1 of model 'm' does not wait for approval: version 2 does\n",
    )
    done = run("approve", models_dir, "m", 2, "--reason", "checked", "--actor", "ann")
    assert (done.exit_code, done.stdout) == (0, "m: version 2 is champion\n")
    history = Registry(models_dir).model("m").history().entries
    assert [(each.kind, each.actor, each.version) for each in history[-2:]] == [
        ("approved", "ann", 2),
        ("promoted", "trimtab", 2),
    ]
    assert "approved by ann: checked" in history[-1].reason


def test_a_version_that_waits_is_rejected(models_dir: Path) -> None:
    done = run("reject", models_dir, "m", 2, "--reason", "the strike", "--json")
    told = json.loads(done.stdout)
    assert (told["champion"], told["text"]) == (1, "version 2 was refused and is blocked")
    assert "the strike" in Registry(models_dir).model("m").state().blocked[2]
    assert run("reject", models_dir, "m", 2).exit_code == 1


def test_what_waits_beside_a_bake_is_shown_with_it() -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    status = pb.RolloutStatusResponse(
        model_name="m",
        phase="bake",
        version=2,
        against=1,
        reason="800 of 1,000 rows; version 3 waits for approval, 2 h left",
        awaiting_approval=3,
    )
    console.print(rollout_view(status))
    shown = console.export_text()
    assert "bake of version 2 against 1" in shown and "version 3 waits for approval" in shown
