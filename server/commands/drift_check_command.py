"""What `trimtab drift-check` does: judges one file's rows against another's as live rows are judged.

The trainer's side reads and counts the files in a process of its own, since only it may import
Polars; the counts are judged here (drift_comparison.py), which is imported late for its numpy.
"""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..config import DriftConfig, TrainingConfig
from ..loop.training_run import TrainingProgress, TrainingResult, TrainingRun
from .command_options import Json, out, print_json

_NO_LIMIT_S = 365 * 86_400.0  # somebody waits: Ctrl-C ends it
_DEFAULTS = DriftConfig()


class DriftCheckError(Exception):
    """The files cannot be compared; the text says why."""


def check_drift(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCE",
            help="Rows to compare with (.parquet, .csv, .tsv), a reference.npz, or the directory "
            "of a version.",
        ),
    ],
    current: Annotated[
        Path, typer.Argument(metavar="CURRENT", help="Rows to judge (.parquet, .csv, .tsv).")
    ],
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="Compare these columns only.", show_default=False)
    ] = "",
    bins: Annotated[
        int | None,
        typer.Option(
            min=2, max=256, help="Bins of a numeric column, 64 by default; a profile has its own."
        ),
    ] = None,
    psi: Annotated[
        float, typer.Option(min=0, help="PSI of a column from which it has drifted.")
    ] = _DEFAULTS.psi,
    ks: Annotated[
        float, typer.Option(min=0, max=1, help="Lower KS bound from which it has drifted.")
    ] = _DEFAULTS.ks,
    min_rows: Annotated[
        int, typer.Option(min=1, help="With fewer rows in CURRENT nothing is judged.")
    ] = 100,
    limit: Annotated[int, typer.Option(min=1, help="How many columns to show.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show every column.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two files as the server compares live rows with a version's reference.

    The figures are those that a server would report with CURRENT as its window. Ends with exit
    code 3 when a column drifted or broke.

    `trimtab drift-check january.parquet july.parquet`

    `trimtab drift-check models/airtime/3 july.parquet --columns temp,wind --psi 0.1`
    """
    from . import drift_comparison

    names = [name for name in columns.split(",") if name]
    if bins is not None and (reference.is_dir() or reference.name.endswith(".npz")):
        raise typer.BadParameter(
            f"{reference} is a profile, whose bins are laid already", param_hint="--bins"
        )
    arguments = [str(reference), str(current)]
    arguments += [part for name in names for part in ("--column", name)]
    arguments += ["--bins", str(bins)] if bins is not None else []
    config = dataclasses.replace(_DEFAULTS, psi=psi, ks=ks, min_rows=min_rows)
    with tempfile.TemporaryDirectory(prefix="trimtab-drift-check-") as directory:
        run_counting([*arguments, "--out", directory], Console(stderr=True))
        comparison = drift_comparison.judge(Path(directory), config)
    for note in comparison.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(drift_comparison.as_json(reference, current, comparison))
    else:
        shown = 0 if show_all else limit
        out().print(drift_comparison.view(reference, current, comparison, shown))
    if comparison.exit_code:
        raise typer.Exit(comparison.exit_code)


def run_counting(arguments: Sequence[str], console: Console) -> None:
    """Runs the trainer's side to its end, with a bar that vanishes; DriftCheckError."""
    results: list[TrainingResult] = []
    limits = TrainingConfig(timeout_s=_NO_LIMIT_S, nice=0, threads=os.cpu_count() or 1)
    with Progress(
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # else an empty line is left
    ) as bar:
        task = bar.add_task("starting", total=1.0)

        def watch(step: TrainingProgress) -> None:
            bar.update(task, completed=step.fraction, description=step.message)

        run = TrainingRun(
            ["drift-counts", *arguments, "--exit-with-parent"],
            limits,
            results.append,
            watch,
            needs_result=False,
        )
        run.start()
        try:
            run.join()
        except KeyboardInterrupt:
            run.kill("was interrupted")
            run.join()
            raise
    if results[0].outcome == "failed":
        raise DriftCheckError(results[0].reason)
