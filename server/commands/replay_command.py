"""`trimtab serve-replay`: the server as a backtest starts it when it shall be fast.

It is `trimtab serve` but for one thing: trainings are run by a command that the caller gives, which
has the trainer's libraries loaded already. Hidden, since it is of no use without such a caller.
"""

import json
from typing import Annotated

import typer

from ..config import ConfigError
from ..loop.warm_trainings import WarmTrainings
from .command_options import ModelsDir
from .serve_command import configure_logging, make_config, serve


def serve_replay(
    models_dir: ModelsDir,
    trainer_command: Annotated[
        str, typer.Option(help="Runs the trainer: a JSON list, to which limits and arguments come.")
    ],
    trainer_threads: Annotated[int, typer.Option(min=1, help="That the command's runs have.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting.")
    ] = None,
) -> None:
    """Serve MODELS_DIR for a replay until standard input ends; prints JSON when it listens."""
    command = _command(trainer_command)
    config = make_config(models_dir, None, {}, assignments or [])
    configure_logging("info")
    spawn = WarmTrainings(command, trainer_threads)
    serve(config, as_json=True, until_eof=True, spawn=spawn)


def _command(text: str) -> list[str]:
    try:
        command = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--trainer-command {text}: not JSON: {error}") from error
    if not (isinstance(command, list) and command and all(isinstance(p, str) for p in command)):
        raise ConfigError(f"--trainer-command {text}: must be a list of strings, and not empty")
    return command
