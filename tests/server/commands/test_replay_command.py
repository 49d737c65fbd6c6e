"""The hidden command that a fast backtest starts its server with."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab.server.commands import cli, replay_command
from trimtab.server.loop.warm_trainings import WarmTrainings

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(replay_command, "serve", lambda *args, **rest: found.append((args, rest)))
    monkeypatch.setattr(replay_command, "configure_logging", lambda level: None)
    return found


def test_it_serves_with_the_trainer_that_it_is_given(served: list[Any], tmp_path: Path) -> None:
    arguments = ["serve-replay", str(tmp_path), "--trainer-command", '["run", "it"]']
    arguments += ["--trainer-threads", "2", "--set", "server.port=0"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    (((config,), rest),) = served
    assert config.server.port == 0
    assert (rest["as_json"], rest["until_eof"]) == (True, True)
    assert isinstance(rest["spawn"], WarmTrainings)
    assert repr(rest["spawn"]) == "WarmTrainings(run it, threads=2)"


@pytest.mark.parametrize("command", ["run", "[]", '"run"', "[1]"])
def test_a_trainer_that_is_no_command_is_refused(
    served: list[Any], tmp_path: Path, command: str
) -> None:
    arguments = ["serve-replay", str(tmp_path), "--trainer-command", command]
    result = runner.invoke(cli.app, [*arguments, "--trainer-threads", "1"])
    assert result.exit_code == 1
    assert f"error: --trainer-command {command}: " in result.output
    assert not served


def test_it_is_not_shown_to_people() -> None:
    shown = runner.invoke(cli.app, ["--help"]).output
    assert "serve-replay" not in shown
    assert "serve" in shown
