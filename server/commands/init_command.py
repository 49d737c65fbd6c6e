"""What `trimtab init` does: a first recipe for data that nobody prepared.

The trainer's side looks at the data in a process of its own, since only it may import Polars, and
writes the recipe; what it found comes back as a file of JSON and is shown here.
"""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..config import TrainingConfig
from ..loop.training_run import TrainingResult, TrainingRun
from .command_options import Json, out, print_json

_NO_LIMIT_S = 365 * 86_400.0  # somebody waits: Ctrl-C ends it


class InitError(Exception):
    """No recipe was written; the text says why."""


def init_model(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Labelled rows: .parquet, .csv or .tsv.")
    ],
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="What is to be predicted.", show_default=False)
    ],
    time: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="When each row was; by default the only column of times, if there is one.",
        ),
    ] = None,
    task: Annotated[
        Literal["auto", "regression", "binary", "multiclass"],
        typer.Option(help="auto: by what the target holds."),
    ] = "auto",
    into: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="MODELS_DIR/MODEL",
            help="The model's directory; by default models/ and the file's name.",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy DATA there; by default the recipe refers to it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the trimtab.toml that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a commented recipe, trimtab.toml, for a file of labelled rows.

    Types, roles and the task are read off the data; what is left out as a feature is told with the
    reason. Then `trimtab train` makes a version of it, and `trimtab backtest` shows what the loop
    would have done.

    `trimtab init flights.csv --target air_time`
    """
    directory = into if into is not None else Path("models") / model_name(data)
    request = {
        "data": str(data),
        "target": target,
        "out": str(directory),
        "time": time,
        "task": None if task == "auto" else task,
        "copy": copy,
        "force": force,
    }
    with tempfile.TemporaryDirectory(prefix="trimtab-init-") as scratch:
        asked, found = Path(scratch) / "request.json", Path(scratch) / "found.json"
        asked.write_text(json.dumps(request))
        run_looking([str(asked), "--out", str(found)])
        told: dict[str, Any] = json.loads(found.read_text())
    told["next"] = next_commands(data, directory, told)
    if as_json:
        print_json(told)
    else:
        _show(told, out())


def run_looking(arguments: Sequence[str]) -> None:
    """Runs the trainer's side to its end; InitError."""
    results: list[TrainingResult] = []
    limits = TrainingConfig(timeout_s=_NO_LIMIT_S, nice=0, threads=os.cpu_count() or 1)
    arguments = ["init", *arguments, "--exit-with-parent"]
    run = TrainingRun(arguments, limits, results.append, needs_result=False)
    run.start()
    try:
        run.join()
    except KeyboardInterrupt:
        run.kill("was interrupted")
        run.join()
        raise
    if results[0].outcome == "failed":
        raise InitError(results[0].reason)


def model_name(data: Path) -> str:
    """A name for the model of a data file that the registry takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", data.name.split(".", 1)[0]).strip("_") or "model"


def next_commands(data: Path, directory: Path, told: Mapping[str, Any]) -> list[str]:
    """What to type next, in a shell."""
    models, model = shlex.quote(str(directory.parent)), shlex.quote(directory.name)
    commands = [f"trimtab train {models} {model}", f"trimtab serve {models}"]
    if told["time"]:
        backtest = ["trimtab", "backtest", str(data), "--target", told["target"]]
        backtest += ["--time", told["time"], "--task", told["task"]]
        for role in ("numeric", "categorical"):
            names = [item["column"] for item in told["columns"] if item["role"] == role]
            backtest += [f"--{role}", ",".join(names)] if names else []
        commands.append(shlex.join(backtest))
    return commands


def _show(told: Mapping[str, Any], console: Console) -> None:
    lines = [f"wrote {told['recipe']} for {told['rows']:,} rows"]
    lines += told["notes"]
    for role, title in (("numeric", "Numeric"), ("categorical", "Categorical")):
        names = [item["column"] for item in told["columns"] if item["role"] == role]
        lines.append(f"{title}: {', '.join(names) or 'none'}.")
    if left := [item for item in told["columns"] if item["role"] == "out"]:
        lines.append("Left out:")
        lines += [f"  {item['column']}: {item['reason']}" for item in left]
    lines += ["next:", *(f"  {command}" for command in told["next"])]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
