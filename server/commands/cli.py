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
from . import admin_commands
from .admin_client import AdminError
from .command_options import (
    Actor,
    Json,
    Model,
    ModelsDir,
    Reason,
    known_directory,
    login_name,
    print_json,
)
from .drift_check_command import DriftCheckError, check_drift
from .serve_command import serve_models
from .train_command import TrainingFailedError, train
from .verify_command import verify

_EXPECTED = (
    AdminError,
    AlreadyServedError,
    ConfigError,
    DriftCheckError,
    RegistryError,
    TrainingFailedError,
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


@app.command("verify")
def verify_models(
    models_dir: ModelsDir,
    as_json: Json = False,
) -> None:
    """Look for what a server would refuse: settings, damaged or altered files. Changes nothing.

    `trimtab verify models`
    """
    known_directory(models_dir)
    whole, wrong = verify(models_dir)
    if as_json:
        print_json({"whole": whole, "wrong": wrong})
    else:
        for line in whole:
            typer.echo(f"ok: {line}")
    for line in wrong:
        typer.echo(f"error: {line}", err=True)
    if wrong:
        raise typer.Exit(1)


app.command("models")(admin_commands.list_models)
app.command("promote")(admin_commands.promote_version)
app.command("rollback")(admin_commands.roll_back)
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
