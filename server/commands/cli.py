"""The command `trimtab`: which commands there are, and their exit codes.

Each command is thin: it reads options, asks a running server, the directory or a child process,
and prints. Exit codes: 0 done; 1 failed, with one sentence on standard error; 2 usage; 3 a
gate refused the candidate, or drift was found. Nothing heavy is imported before a command needs it,
and the trainer's side (Polars, scikit-learn, matplotlib) never: `train`, `backtest` and what reads
files for `drift-check` are processes of their own.
"""

import os
import sys
from importlib.metadata import version as package_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trimtab.registry.errors import RegistryError

from ..config import ConfigError
from ..errors import TrimtabError
from ..server_lock import AlreadyServedError
from ..services.admin.tokens import TokensError
from ..webhook.signature import SecretError
from . import admin_commands, change_commands, training_commands
from .admin_client import AdminError
from .command_options import (
    Actor,
    Json,
    Model,
    ModelsDir,
    Reason,
    known_directory,
    login_name,
)
from .drift_check_command import DriftCheckError, check_drift
from .export_command import export_version
from .import_command import import_model
from .init_command import InitError, init_model
from .keys_command import keys
from .labels_command import LabelsError, submit_labels
from .replay_command import serve_replay
from .serve_command import serve_models
from .token_command import token
from .train_command import TrainingFailedError, train
from .verify_command import verify_models
from .webhook_command import webhook

_EXPECTED = (
    AdminError,
    AlreadyServedError,
    ConfigError,
    DriftCheckError,
    InitError,
    LabelsError,
    RegistryError,
    TokensError,
    TrainingFailedError,
    SecretError,
    TrimtabError,
    OSError,
)


class _Commands(TyperGroup):
    """Turns the errors that are expected into one sentence on standard error and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader left, as in `trimtab events … | head`: not our error
        except _EXPECTED as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Serves ONNX models over gRPC, watches every prediction for drift and, when the world "
    "moves, retrains, checks, promotes and rolls back by itself.",
    epilog="Start with `trimtab serve MODELS_DIR` for a directory that holds `MODEL/1/model.onnx`, "
    "or see what it would do for your own data with `trimtab backtest DATA.parquet --target COLUMN "
    "--time COLUMN`.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"trimtab {package_version('trimtab')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass


app.command("serve")(serve_models)
app.command("serve-replay", hidden=True)(serve_replay)


@app.command("train")
def train_model(
    models_dir: ModelsDir,
    model: Model,
    reason: Reason = "trained by hand",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Run MODEL's recipe once and publish the version that it makes.

    The recipe is in `MODELS_DIR/MODEL/trimtab.toml`. The candidate is exported to ONNX, held
    against scikit-learn and against the champion, and published if every gate lets it pass; a
    server that runs on MODELS_DIR loads it. The first version becomes champion by itself, a
    later one by `trimtab promote`. Ends with exit code 3 when a gate refused the candidate.

    `trimtab train models airtime --reason "new columns"`
    """
    known_directory(models_dir)
    code = train(models_dir, model, actor=actor or login_name(), reason=reason, as_json=as_json)
    if code:
        raise typer.Exit(code)


app.command("init")(init_model)
app.command("verify")(verify_models)
app.command("import")(import_model)
app.command("export")(export_version)
app.command("labels")(submit_labels)
app.add_typer(keys, name="keys")
app.command("models")(admin_commands.list_models)
app.command("describe")(admin_commands.describe_version)
app.command("promote")(change_commands.promote_version)
app.command("rollback")(change_commands.roll_back)
app.command("approve")(change_commands.approve)
app.command("reject")(change_commands.reject)
app.command("rollout")(admin_commands.show_rollout)
app.command("retrain")(training_commands.retrain)
app.command("cancel")(training_commands.cancel_training)
app.command("trainings")(training_commands.list_trainings)
app.command("freeze")(change_commands.freeze)
app.command("unfreeze")(change_commands.unfreeze)
app.command("pin")(change_commands.pin)
app.command("unpin")(change_commands.unpin)
app.command("block")(change_commands.block)
app.command("unblock")(change_commands.unblock)
app.command("gc")(change_commands.remove_old)
app.add_typer(token, name="token")
app.add_typer(webhook, name="webhook")
app.command("drift")(admin_commands.show_drift)
app.command("drift-check")(check_drift)
app.command("history")(admin_commands.show_history)
app.command("events")(admin_commands.watch_events)


@app.command(
    "backtest",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def backtest(ctx: typer.Context) -> None:
    """Replay your labelled history through a real server and see what the loop would have done.

    `trimtab backtest DATA.parquet --target COLUMN --time COLUMN` trains on the first period,
    replays the rest with labels that arrive late, and reports, period by period, a model that is
    never retrained, the managed service, and one retrained every period.
    `trimtab backtest --help` lists its options.
    """
    sys.stdout.flush()
    command = [sys.executable, "-m", "trimtab.trainer", "backtest", *ctx.args]
    os.execv(sys.executable, command)


def main() -> None:
    """Entry point of the script `trimtab`."""
    app(prog_name="trimtab")
