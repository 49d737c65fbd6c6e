"""The commands: what they print, where they ask, how they fail."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from trimtab.proto import admin_pb2
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.commands import cli, serve_command, train_command
from trimtab.server.commands.admin_client import AdminClient, AdminError, as_dict, find_server
from trimtab.server.commands.report_tables import moment, sparkline
from trimtab.server.config import ConfigError
from trimtab.server.loop.training_run import TrainingResult

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


class FakeAdmin:
    """An admin service that answers what it was given and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.versions = admin_pb2.ListVersionsResponse(
            models=[
                admin_pb2.ModelVersions(
                    model_name="airtime",
                    managed=True,
                    revision=7,
                    champion=2,
                    previous=1,
                    versions=[
                        admin_pb2.VersionInfo(
                            version=1, role="previous", state="FAILED", reason="bad hash"
                        ),
                        admin_pb2.VersionInfo(
                            version=2,
                            role="champion",
                            state="READY",
                            created_ms=1_700_000_000_000,
                            metrics={"mae": 8.25},
                            requests=12,
                            rows=34_567,
                        ),
                    ],
                )
            ]
        )
        self.drift = admin_pb2.DriftReport(
            model_name="airtime",
            version=2,
            state="drift",
            reason="PSI of temp is 0.31",
            window_rows=10_000,
            reference_rows=26_398,
            observed_rows=123_456,
            reference="training",
            features=[
                admin_pb2.FeatureDrift(
                    name="temp",
                    kind="numeric",
                    role="input",
                    verdict="drift",
                    psi=0.3141,
                    ks_low=0.21,
                    ks_high=0.25,
                    missing_rate=0.5,
                    reference_missing_rate=0.1,
                    reference_shares=[0.5, 0.5, 0.0],
                    window_shares=[0.0, 0.0, 1.0],
                ),
                admin_pb2.FeatureDrift(
                    name="[carrier]", kind="categorical", role="output", verdict="ok"
                ),
            ],
        )
        self.events = [
            admin_pb2.Event(
                sequence=3,
                time_ms=1_700_000_000_000,
                model_name="airtime",
                kind="promoted",
                version=2,
                actor="loop",
                reason="every gate [passed]",
            ),
            admin_pb2.Event(sequence=4, model_name="airtime", kind="drift"),
        ]
        self.chain_valid = True

    def answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(request)
        self.may_answer.wait(30)
        if self.error:
            context.abort(*self.error)
        change = admin_pb2.ChangeResponse(revision=8, champion=3, previous=2, elapsed_ms=1.25)
        return {
            "ListVersions": self.versions,
            "Promote": change,
            "Rollback": change,
            "GetDrift": self.drift,
            "GetHistory": admin_pb2.GetHistoryResponse(
                entries=self.events, chain_valid=self.chain_valid
            ),
        }[name]

    def watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.asked.append(request)
        yield from self.events


@contextlib.contextmanager
def running(fake: FakeAdmin, models_dir: Path | None = None) -> Iterator[str]:
    """Serves the fake; writes the file by which a server on `models_dir` is found."""
    requests = {
        "ListVersions": admin_pb2.ListVersionsRequest,
        "Promote": admin_pb2.PromoteRequest,
        "Rollback": admin_pb2.RollbackRequest,
        "GetDrift": admin_pb2.GetDriftRequest,
        "GetHistory": admin_pb2.GetHistoryRequest,
    }

    def unary(name: str, kind: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: fake.answer(name, request, context),
            kind.FromString,
            lambda reply: reply.SerializeToString(),
        )

    methods = {name: unary(name, kind) for name, kind in requests.items()}
    methods["WatchEvents"] = grpc.unary_stream_rpc_method_handler(
        fake.watch,
        admin_pb2.WatchEventsRequest.FromString,
        lambda event: event.SerializeToString(),
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.method_handlers_generic_handler("trimtab.v1.Admin", methods)
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    if models_dir:
        tell(models_dir, os.getpid(), address)
    try:
        yield address
    finally:
        server.stop(None).wait()


def tell(models_dir: Path, pid: int, admin: str) -> None:
    folder = models_dir / ".trimtab"
    folder.mkdir(exist_ok=True)
    content = {"pid": pid, "inference": "127.0.0.1:1", "admin": admin}
    (folder / "server.json").write_text(json.dumps(content))


def publish(models_dir: Path, name: str = "airtime") -> ModelDirectory:
    model = ModelDirectory(models_dir / name)
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        staged.publish(
            signature=Signature((TensorSpec("x", "FP32", (-1, 1)),), ()),
            task="regression",
            lineage={},
            metrics={"mae": 8.5},
            actor="ann",
            reason="first",
        )
    return model


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    ["serve", "train", "verify", "models", "promote", "rollback", "drift", "history", "events"],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"trimtab {command} models" in result.output


def test_the_overview_names_every_command_and_where_to_start() -> None:
    result = run("--help")
    for word in ("serve", "backtest", "promote", "rollback", "trimtab serve MODELS_DIR"):
        assert word in result.output


def test_a_models_command_asks_the_server_that_runs_on_the_directory(tmp_path: Path) -> None:
    fake = FakeAdmin()
    with running(fake, tmp_path):
        table = run("models", tmp_path)
        document = run("models", tmp_path, "airtime", "--json")
    assert table.exit_code == 0
    title, _, champion, previous = table.output.splitlines()
    assert title == "airtime  champion 2, revision 7"
    words = ["2", "champion", "READY", "34,567", "2023-11-14", "22:13", "mae", "8.25"]
    assert champion.split() == words
    assert "FAILED: bad hash" in previous
    content = json.loads(document.output)
    assert content["served"] is True
    assert content["models"][0]["versions"][1]["metrics"] == {"mae": 8.25}
    assert fake.asked[-1].model_name == "airtime"


def test_verify_finds_what_a_server_would_refuse(tmp_path: Path) -> None:
    model = publish(tmp_path)
    result = run("verify", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "ok: airtime: 1 version, champion 1\n")
    (model.version_path(1) / "model.onnx").write_bytes(b"onny")
    model.recipe_path.write_text("[drift]\npsi = -1\n")
    result = run("verify", tmp_path)
    assert result.exit_code == 3
    policy, version = result.stderr.splitlines()
    assert policy == f"error: {model.recipe_path}: [drift] psi = -1.0: must be at least 0"
    assert "model.onnx" in version
    assert len(json.loads(run("verify", tmp_path, "--json").stdout)["wrong"]) == 2


def test_without_a_server_models_and_history_read_the_directory(tmp_path: Path) -> None:
    publish(tmp_path)
    models = run("models", tmp_path, "--json")
    content = json.loads(models.stdout)
    assert content["served"] is False
    (model,) = content["models"]
    assert (model["managed"], model["champion"]) == (True, 1)
    assert model["versions"][0]["metrics"] == {"mae": 8.5}
    table = run("models", tmp_path)
    assert "no server runs on" in table.stderr
    assert "champion" in table.stdout
    history = json.loads(run("history", tmp_path, "airtime", "--json").stdout)
    assert [entry["kind"] for entry in history["entries"]] == ["published", "promoted"]
    assert history["chain_valid"] is True
    assert "published" in run("history", tmp_path, "airtime").stdout


def test_a_server_that_was_killed_counts_as_none(tmp_path: Path) -> None:
    publish(tmp_path)
    tell(tmp_path, dead_pid(), "127.0.0.1:1")
    assert run("models", tmp_path).exit_code == 0
    result = run("promote", tmp_path, "airtime", 1)
    assert result.exit_code == 1
    assert "no server runs on" in result.stderr


def test_an_unknown_model_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    publish(tmp_path)
    result = run("history", tmp_path, "airtme")
    assert result.exit_code == 1
    assert result.stderr == f"error: no model 'airtme' in {tmp_path}; there are airtime\n"


@pytest.mark.parametrize(
    "arguments",
    [("promote", "airtime", 1), ("rollback", "airtime"), ("drift", "airtime"), ("events",)],
)
def test_what_needs_a_server_says_how_to_start_one(
    tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    result = run(arguments[0], tmp_path, *arguments[1:])
    assert result.exit_code == 1
    assert f"start one with `trimtab serve {tmp_path}`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for command in (["models"], ["promote", "m", 1], ["serve"], ["train", "m"]):
        result = run(command[0], tmp_path / "nowhere", *command[1:])
        assert result.exit_code == 1
        assert f"{tmp_path / 'nowhere'}: no such directory" in result.stderr


def test_an_address_by_hand_goes_before_the_directory(tmp_path: Path) -> None:
    fake = FakeAdmin()
    with running(fake) as address:
        result = run("models", tmp_path / "elsewhere", "--admin", address)
    assert result.exit_code == 0
    assert len(fake.asked) == 1
    refused = run("models", tmp_path, "--admin", "127.0.0.1:1")
    assert refused.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in refused.stderr
    assert run("models", tmp_path, "--admin", "localhost").exit_code == 2


def test_promote_and_rollback_carry_who_why_and_the_expected_revision(tmp_path: Path) -> None:
    fake = FakeAdmin()
    options = ["--reason", "approved", "--actor", "ann", "--expected-revision", "7"]
    with running(fake, tmp_path):
        promoted = run("promote", tmp_path, "airtime", 3, *options)
        rolled_back = run("rollback", tmp_path, "airtime", *options, "--json")
        run("rollback", tmp_path, "airtime")
    assert promoted.output == (
        "airtime: version 3 is champion, version 2 is kept ready for a rollback "
        "(revision 8, took 1.2 ms)\n"
    )
    assert json.loads(rolled_back.output)["champion"] == 3
    ask, back, plain = fake.asked
    assert (ask.model_name, ask.version, ask.expected_revision) == ("airtime", 3, 7)
    assert (ask.actor, ask.reason) == ("ann", "approved")
    assert (back.actor, back.reason, back.expected_revision) == ("ann", "approved", 7)
    assert plain.actor
    assert plain.expected_revision == 0


def test_a_refusal_of_the_server_is_one_sentence(tmp_path: Path) -> None:
    fake = FakeAdmin()
    fake.error = (grpc.StatusCode.FAILED_PRECONDITION, "model 'airtime' is at revision 8")
    with running(fake, tmp_path):
        result = run("promote", tmp_path, "airtime", 3)
    assert (result.exit_code, result.stderr) == (1, "error: model 'airtime' is at revision 8\n")


def test_drift_shows_both_histograms_on_one_scale(tmp_path: Path) -> None:
    with running(FakeAdmin(), tmp_path):
        result = run("drift", tmp_path, "airtime")
        short = run("drift", tmp_path, "airtime", "--limit", 1)
        document = run("drift", tmp_path, "airtime", "--json")
    assert "airtime version 2: drift — PSI of temp is 0.31" in result.output
    row = next(line for line in result.output.splitlines() if line.startswith("temp"))
    assert " ".join(row.split()) == "temp drift 0.314 0.000 0.21 10% → 50% ▅▅▁ ▁▁█"
    assert "[carrier] (output)" in result.output
    assert "1 more; --all shows them" in short.output
    assert json.loads(document.output)["features"][0]["window_shares"] == [0.0, 0.0, 1.0]


def test_an_altered_history_is_shown_and_fails(tmp_path: Path) -> None:
    fake = FakeAdmin()
    with running(fake, tmp_path):
        assert run("history", tmp_path, "airtime").exit_code == 0
        fake.chain_valid = False
        result = run("history", tmp_path, "airtime", "--limit", 5)
    assert result.exit_code == 1
    assert "every gate [passed]" in result.stdout
    assert "was altered" in result.stderr
    assert fake.asked[-1].limit == 5


def test_events_end_after_the_count_and_are_json_lines_on_demand(tmp_path: Path) -> None:
    fake = FakeAdmin()
    with running(fake, tmp_path):
        lines = run("events", tmp_path)
        one = run("events", tmp_path, "airtime", "--count", 1, "--json")
    assert "promoted version 2: every gate [passed]  (loop)" in lines.output
    assert len(lines.output.splitlines()) == 2
    assert [json.loads(line)["sequence"] for line in one.output.splitlines()] == [3]
    assert fake.asked[-1].model_name == "airtime"


def test_serve_options_become_settings_over_the_file_and_the_set_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        serve_command, "serve", lambda config, **options: served.append((config, options))
    )
    monkeypatch.setattr(serve_command, "configure_logging", lambda level: None)
    file = tmp_path / "trimtab.toml"
    file.write_text("[server]\nport = 1\nhost = '::'\n[drift]\npsi = 0.5\npanes = 4\n")
    result = run(
        *("serve", tmp_path, "--config", file, "--port", 9001, "--no-watch", "--json"),
        *("--set", "drift.psi=0.4", "--set", "drift.panes=5", "--set", "server.frontend=portable"),
        *("--promotion", "manual", "--psi", "0.1", "--cooldown", "60", "--no-train-on-drift"),
        *("--no-metrics", "--metrics-port", 9002, "--model-control"),
    )
    assert result.exit_code == 0, result.output
    ((config, options),) = served
    assert config.server.model_control
    assert (config.server.port, config.server.host, config.server.watch) == (9001, "::", False)
    assert config.server.frontend == "portable"
    assert (config.server.metrics, config.server.metrics_port) == (False, 9002)
    assert (config.policy.drift.psi, config.policy.drift.panes) == (0.1, 5)
    assert config.policy.promotion.policy == "manual"
    assert (config.policy.trigger.cooldown_s, config.policy.trigger.on_drift) == (60.0, False)
    assert options == {"as_json": True, "until_eof": False}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("drift.pxi=1", "did you mean psi?"),
        ("drift", "must be SECTION.KEY=VALUE"),
        ("recipe.task=1", "no such section"),
        ("drift.psi=-1", "must be at least 0"),
        ("drift.psi=high", "must be a number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, assignment: str, message: str) -> None:
    result = run("serve", tmp_path, "--set", assignment)
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_usage_is_checked() -> None:
    assert run("serve").exit_code == 2
    assert run("promote", ".", "m", "0").exit_code == 2
    assert run("promote", ".", "m", "x").exit_code == 2
    assert run("models", ".", "--nonsense").exit_code == 2
    assert run("serve", ".", "--frontend", "quantum").exit_code == 2


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [
        ("published", 0, "published version 4, trained on 1,234 rows: mae 8.25"),
        ("refused", 3, "refused: not better"),
        ("failed", 1, ""),
    ],
)
def test_train_ends_as_the_trainer_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, code: int, text: str
) -> None:
    asked: list[list[str]] = []

    def fake_run(arguments: list[str], console: Any) -> TrainingResult:
        asked.append(arguments)
        return TrainingResult(
            outcome,
            "not better",
            version=4,
            gates=({"name": "comparison", "verdict": "fail", "reason": "[worse]"},),
            metrics={"mae": 8.25},
            rows=1_234,
        )

    monkeypatch.setattr(train_command, "run_training", fake_run)
    result = run("train", tmp_path, "m", "--actor", "ann", "--reason", "new columns")
    assert result.exit_code == code
    assert text in result.stdout
    if outcome == "failed":
        assert result.stderr == "error: not better\n"
    else:
        assert "[worse]" in result.stdout
    (arguments,) = asked
    assert arguments[:1] == ["train"]
    for option, value in (("--actor", "ann"), ("--reason", "new columns"), ("--model", "m")):
        assert arguments[arguments.index(option) + 1] == value
    assert arguments[arguments.index("--label-maturity-s") + 1] == "0.0"
    document = run("train", tmp_path, "m", "--json")
    if outcome != "failed":
        assert json.loads(document.stdout)["outcome"] == outcome


def test_train_takes_the_maturity_of_labels_from_the_models_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def fake_run(arguments: list[str], console: Any) -> TrainingResult:
        asked.append(arguments)
        return TrainingResult("failed")

    monkeypatch.setattr(train_command, "run_training", fake_run)
    policy = tmp_path / "m" / "trimtab.toml"
    policy.parent.mkdir()
    policy.write_text("[recipe]\n[trigger]\nlabel_maturity_s = 1234567.5\n")
    run("train", tmp_path, "m")
    (arguments,) = asked
    assert arguments[arguments.index("--label-maturity-s") + 1] == "1234567.5"
    policy.write_text("[trigger]\nlabel_maturity = 1\n")
    result = run("train", tmp_path, "m")
    assert result.exit_code == 1 and len(asked) == 1
    assert "label_maturity: unknown setting; did you mean label_maturity_s?" in result.stderr


def test_backtest_has_its_own_help_in_its_own_process() -> None:
    command = [sys.executable, "-m", "trimtab.server", "backtest", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: trimtab backtest" in done.stdout
    assert "one hour of weather is one sample" in " ".join(done.stdout.replace("│", " ").split())


def test_the_command_line_imports_nothing_of_the_trainers_side() -> None:
    code = (
        "import sys; import trimtab.server.commands.cli; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('polars', 'sklearn', 'skl2onnx', 'matplotlib', 'onnxruntime') "
        "or m.startswith('trimtab.trainer')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_damaged_address_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".trimtab").mkdir()
    (tmp_path / ".trimtab" / "server.json").write_text("{")
    with pytest.raises(AdminError, match=r"server\.json: cannot be read"):
        find_server(tmp_path)


def test_a_client_that_gets_no_answer_in_time_says_so() -> None:
    fake = FakeAdmin()
    fake.may_answer.clear()
    with running(fake) as address, AdminClient(address, timeout_s=0.2) as client:
        with pytest.raises(AdminError, match="did not answer") as caught:
            client.list_versions()
        fake.may_answer.set()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_messages_become_plain_values_with_their_numbers() -> None:
    event = as_dict(admin_pb2.Event(sequence=2**63, time_ms=-5, kind="drift"))
    assert (event["sequence"], event["time_ms"], event["kind"]) == (2**63, -5, "drift")
    assert event["version"] == 0


def test_set_values_are_toml_or_text() -> None:
    assert serve_command.read_settings(["a.b=1", "a.c = true", "a.d=x y", 'a.e="1"']) == {
        "a.b": 1,
        "a.c": True,
        "a.d": "x y",
        "a.e": "1",
    }
    with pytest.raises(ConfigError):
        serve_command.read_settings(["a.b.c=1"])


def test_sparklines_and_moments() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.5, 0.5], top=1.0) == "▅▅"
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert moment(0) == ""
    assert moment(1_700_000_000_000) == "2023-11-14 22:13:20"
    assert moment(10**18) == f"{10**18} ms"
