"""The operator's commands against a real server, and against a directory without one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from tests import models
from tests.admin_port import LISTEN, serving
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.server.commands import cli
from trimtab.server.commands.version_views import rollout_view

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object, token: str | None = None) -> Any:
    return runner.invoke(
        cli.app, [str(argument) for argument in arguments], env={"TRIMTAB_TOKEN": token}
    )


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for factor in (1.0, 2.0, 3.0):
        models.publish(folder, "m", models.scaled(factor))
    return folder


@pytest.fixture(params=["server", "directory"])
def either(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[Path]:
    """A directory with a server, and one without: what is the registry's alone is the same."""
    if request.param == "directory":
        yield models_dir
        return
    with serving(models_dir, LISTEN):
        yield models_dir


def model(models_dir: Path) -> ModelDirectory:
    return Registry(models_dir).model("m")


def test_every_command_that_asks_a_server_has_an_example_and_the_same_options() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]  # it is a group
    asking = {
        name: command
        for name, command in commands.items()
        if any(each.name == "admin" for each in command.params)
    }
    assert set(asking) == {
        *("models", "describe", "history", "events", "drift", "rollout", "promote", "rollback"),
        *("freeze", "unfreeze", "pin", "unpin", "block", "unblock", "gc", "verify"),
        *("approve", "reject", "retrain", "cancel", "trainings"),
    }
    for name, command in asking.items():
        assert f"`trimtab {name} models" in command.help
        options = {option for each in command.params for option in each.opts}
        assert options > {"--token", "--tls-ca", "--tls-cert", "--tls-key", "--tls-name", "--json"}
    shown = run("freeze", "--help").output
    assert "--tls-ca" in shown and "TRIMTAB_TOKEN" in shown


def test_freezing_pinning_and_blocking_are_shown_and_undone(either: Path) -> None:
    why = ("--reason", "because", "--actor", "ann")
    for arguments, text in (
        (("freeze", either, "m"), "m is frozen"),
        (("pin", either, "m", 1), "m: version 1 is pinned"),
        (("block", either, "m", 2), "m: version 2 is blocked"),
    ):
        assert run(*arguments, *why).stdout == f"{text}\n"
        assert run(*arguments, *why).stdout == f"{text}, as it was\n"
    shown = run("models", either).stdout
    assert "frozen: because" in shown
    assert "champion, pinned" in shown and "blocked (because)" in shown
    state = model(either).state()
    assert (state.frozen, set(state.pinned), dict(state.blocked)) == (True, {1}, {2: "because"})
    for arguments, text in (
        (("unfreeze", either, "m"), "m is not frozen"),
        (("unpin", either, "m", 1), "m: version 1 is not pinned"),
        (("unblock", either, "m", 2), "m: version 2 is not blocked"),
    ):
        assert run(*arguments, *why).stdout == f"{text}\n"
    assert model(either).state() == replace(state, **_NOTHING)  # type: ignore[arg-type]  # by name
    entries = model(either).history().entries[-6:]
    assert {(each.actor, each.reason) for each in entries} == {("ann", "because")}
    lost = run("pin", either, "m", 1, "--expected-revision", 7)
    assert lost.exit_code == 1
    assert lost.stderr == "error: model 'm' is at revision 1, not at the expected 7\n"
    assert run("pin", either, "m", 9).exit_code == 1


_NOTHING = {"frozen": False, "frozen_reason": "", "pinned": frozenset(), "blocked": {}}


def test_old_versions_go_and_those_that_are_needed_stay(either: Path) -> None:
    run("pin", either, "m", 2)
    dry = run("gc", either, "m", "--keep", 1, "--dry-run")
    assert dry.stdout.splitlines() == [
        "m: version 1 stays: the champion",
        "m: version 2 stays: pinned",
        "m: nothing to remove",
    ]
    run("unpin", either, "m", 2)
    document = json.loads(run("gc", either, "m", "--keep", 1, "--dry-run", "--json").stdout)
    assert (document["dry_run"], document["removed"]) == (True, [2])
    assert model(either).versions() == [1, 2, 3]
    assert run("gc", either, "m", "--keep", 1).stdout.startswith("m: version 2 removed\n")
    assert model(either).versions() == [1, 3]
    assert model(either).history().entries[-1].reason == "not one of the newest 1"
    assert run("gc", either, "m").exit_code == 2


def test_a_version_is_described(either: Path) -> None:
    result = run("describe", either, "m", 1)
    assert result.exit_code == 0
    for text in (
        "m version 1",
        "champion",
        "model.onnx",
        "FP32 [-1, 2]",
        "published",
        "not signed",
    ):
        assert text in result.stdout
    document = json.loads(run("describe", either, "m", "--json").stdout)
    assert (document["info"]["version"], document["info"]["role"]) == (1, "champion")
    gone = run("describe", either, "m", 8)
    assert (gone.exit_code, gone.stderr) == (1, "error: model 'm' has no version 8\n")


def test_the_history_says_who_was_champion_at_a_time(either: Path) -> None:
    first = model(either).history().champion_at(2**53)
    assert first is not None
    at = datetime.fromtimestamp(first.time_ms / 1000 + 1, UTC)
    result = run("history", either, "m", "--at", at.isoformat())
    assert result.stdout.startswith("m: version 1 was champion at ")
    assert f"promoted {at:%Y-%m-%d}" in result.stdout
    before = run("history", either, "m", "--at", "2001-01-01")
    assert before.stdout == "m had no champion at 2001-01-01 00:00:00 UTC\n"
    document = json.loads(run("history", either, "m", "--at", at.isoformat(), "--json").stdout)
    assert document["champion_at"]["version"] == 1
    assert json.loads(run("history", either, "m", "--json").stdout)["champion_at"] is None
    wrong = run("history", either, "m", "--at", "noon")
    assert wrong.exit_code == 2 and "'noon' is not a time" in wrong.stderr
    none = run("history", either, "m", "--since", "2999-01-01T00:00Z")
    assert none.stdout == "m has no history that fits\n"
    of_two = json.loads(run("history", either, "m", "--version", 2, "--json").stdout)
    assert {each["version"] for each in of_two["entries"]} == {2}


def test_a_rollback_may_name_an_earlier_champion(models_dir: Path) -> None:
    with serving(models_dir, LISTEN):
        for version in (2, 3):
            assert run("promote", models_dir, "m", version).exit_code == 0
        result = run("rollback", models_dir, "m", "--to", 1, "--reason", "complaints")
        assert result.stdout.startswith("m: version 1 is champion, version 3 is kept ready")
        refused = run("rollback", models_dir, "m", "--to", 1)
        assert refused.exit_code == 1 and "not among the earlier champions" in refused.stderr
        rollout = run("rollout", models_dir, "m", "--json")
        assert rollout.exit_code == 0 and json.loads(rollout.stdout)["model_name"] == "m"
        assert run("rollout", models_dir, "m").stdout.startswith("m: ")


def test_events_go_on_where_the_last_call_ended(models_dir: Path, tmp_path: Path) -> None:
    kept = tmp_path / "events.at"
    follow = ("events", models_dir, "--json", "--resume-file", kept, "--count")
    with serving(models_dir, LISTEN) as listening:
        with grpc.insecure_channel(listening.admin) as channel:
            watch = channel.unary_stream(
                "/trimtab.v1.Admin/WatchEvents",
                pb.WatchEventsRequest.SerializeToString,
                pb.Event.FromString,
            )
            events = watch(pb.WatchEventsRequest(), timeout=30)
            events.initial_metadata()  # from here on it misses nothing
            run("freeze", models_dir, "m", "--reason", "one")
            one = next(event for event in events if event.kind == "frozen")
            assert (one.reason, one.history_sequence) == ("one", 5)
        kept.write_text(one.resume_token)
        run("pin", models_dir, "m", 1, "--reason", "two")
    run("pin", models_dir, "m", 2, "--reason", "three")  # while no server runs
    with serving(models_dir, LISTEN):
        lines = [json.loads(line) for line in run(*follow, 3).stdout.splitlines()]
        assert [line["kind"] for line in lines] == ["events_lost", "pinned", "pinned"]
        assert [line["reason"] for line in lines[1:]] == ["two", "three"]
        assert kept.read_text().strip() == lines[-1]["resume_token"]
        run("unpin", models_dir, "m", 2, "--reason", "four")
        (line,) = run(*follow, 1).stdout.splitlines()
        assert json.loads(line)["resume_token"] != lines[-1]["resume_token"]
    kept.write_text("nonsense")
    with serving(models_dir, LISTEN):
        wrong = run(*follow, 1)
        assert wrong.exit_code == 1 and "resume_token is none" in wrong.stderr


def test_a_token_is_shown_once_and_lets_its_owner_in(models_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = run("token", "new", "otto", "--role", "operator", "--file", file)
    token = made.stdout.strip()
    assert made.exit_code == 0 and "not shown again" in made.stderr
    assert token not in file.read_text()
    viewer = json.loads(run("token", "new", "vera", "--file", file, "--json").stdout)
    assert viewer["role"] == "viewer"
    with serving(models_dir, replace(LISTEN, admin_tokens=str(file))):
        assert run("models", models_dir, "--token", viewer["token"]).exit_code == 0
        for command in (("models", models_dir), ("freeze", models_dir, "m")):
            refused = run(*command)
            assert refused.exit_code == 1 and "--token or TRIMTAB_TOKEN" in refused.stderr
        refused = run("freeze", models_dir, "m", token=viewer["token"])
        assert refused.stderr == "error: vera has the role viewer: Freeze needs operator\n"
        assert run("freeze", models_dir, "m", "--actor", "x", token=token).exit_code == 0
        assert model(models_dir).history().entries[-1].actor == "otto"
        away = run("models", models_dir, "--admin", "no-such-host.invalid:1", token=token)
        assert away.exit_code == 1 and "without --tls-ca the token goes to" in away.stderr
    wrong = run("token", "new", "o t", "--file", file)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)
    assert run("models", models_dir, "--tls-cert", file).exit_code == 2


def test_a_server_verifies_its_own_directory(models_dir: Path, tmp_path: Path) -> None:
    with serving(models_dir, LISTEN) as listening:
        verify = ("verify", tmp_path / "not here", "--admin", listening.admin)
        assert run(*verify).stdout == "ok: m: 3 versions, champion 1\n"
        (model(models_dir).version_path(2) / "model.onnx").write_bytes(b"another")
        result = run(*verify, "--json")
        assert result.exit_code == 3
        (wrong,) = json.loads(result.stdout)["wrong"]
        assert (wrong["model"], wrong["version"]) == ("m", 2) and "model.onnx" in wrong["text"]
        assert run(*verify, "x").exit_code == 1
        assert run(*verify, "--trusted-key", tmp_path / "key").exit_code == 2


def test_what_only_a_server_can_do_says_so(models_dir: Path) -> None:
    for command in (("promote", models_dir, "m", 2), ("rollback", models_dir, "m")):
        result = run(*command)
        assert result.exit_code == 1 and "no server runs on" in result.stderr
    assert run("rollout", models_dir, "m").exit_code == 1


def test_a_roll_out_is_told_with_what_is_known_of_it() -> None:
    def shown(status: pb.RolloutStatusResponse) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(rollout_view(status))
        return capture.get()

    status = pb.RolloutStatusResponse(
        model_name="m",
        phase="canary",
        version=4,
        against=3,
        since_ms=1_700_000_000_000,
        share=0.05,
        rows_wanted=5000,
        rows_compared=1234,
        rows_dropped=7,
        requests_failed={3: 0, 4: 2},
        latency_ratio=1.25,
        agreement=0.875,
        metric="log loss",
        improvement=0.5,
        low=0.25,
        high=0.75,
        labelled_rows=100,
        reason="waits for labels",
    )
    text = shown(status)
    for words in (
        *("m: canary of version 4 against 3", "waits for labels", "5.0% of requests"),
        *("1,234 of 5,000; 7 not compared", "2 of version 4", "1.25 times", "87.50%"),
        "better by 0.5 [0.25, 0.75] on 100 rows",
    ):
        assert words in text
    assert "PSI" not in text and "of version 3" not in text
    assert "no roll-out since the server" in shown(pb.RolloutStatusResponse(model_name="m"))
