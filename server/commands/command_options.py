"""Arguments and options that several commands share, and what they do with them."""

import getpass
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..config import ConfigError

ModelsDir = Annotated[
    Path, typer.Argument(metavar="MODELS_DIR", help="Directory that holds one directory per model.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
Actor = Annotated[
    str | None, typer.Option(help="Who; kept in the history. By default the login name.")
]
Revision = Annotated[
    int,
    typer.Option(
        "--expected-revision",
        min=0,
        help="Refuse unless this is the model's revision still (`trimtab models` shows it). "
        "0: whatever it is.",
    ),
]


def known_directory(models_dir: Path) -> None:
    if not models_dir.is_dir():
        raise ConfigError(f"{models_dir}: no such directory; it holds one directory per model")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def out() -> Console:
    """Standard output; a pipe is no reason for 80 columns."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if wide else 120)


def login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a passwd entry
        return f"uid {os.getuid()}"
