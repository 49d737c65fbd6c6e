"""What `trimtab train` does: runs one training as a child process and shows how far it is.

What is trained, checked and published is the trainer's business, and the server's side never
imports it; this is the same `TrainingRun` that the loop uses, at normal priority, on every
processor and with a bar on the terminal.
"""

import json
import os
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from trimtab.registry.directory import Registry

from ..config import ModelPolicy, TrainingConfig, load_model_policy
from ..loop.training_progress import TrainingPace, span
from ..loop.training_run import TrainingResult, TrainingRun
from .command_options import out
from .report_tables import gates_table

PUBLISHED, REFUSED = 0, 3  # exit codes
_LOOK_S = 0.25  # between two looks at how far it is
_NO_LIMIT_S = 365 * 86_400.0  # somebody watches: Ctrl-C ends it


class TrainingFailedError(Exception):
    """The training ended without a version; the text is the trainer's reason."""


def train(models_dir: Path, model: str, *, actor: str, reason: str, as_json: bool) -> int:
    """One training; returns the exit code. TrainingFailedError, ConfigError."""
    policy = load_model_policy(Registry(models_dir).model(model).recipe_path, ModelPolicy())
    arguments = ["train", "--models-dir", str(models_dir), "--model", model]
    arguments += ["--actor", actor, "--reason", reason, "--progress", "json"]
    arguments += ["--label-maturity-s", str(policy.trigger.label_maturity_s)]
    # No server keeps the history for it, and if this process dies it goes as well.
    arguments += ["--record", "--exit-with-parent"]
    result = run_training(arguments, Console(stderr=True))
    if result.outcome == "failed":
        raise TrainingFailedError(result.reason)
    if as_json:
        print(json.dumps(_as_dict(result)))
    else:
        _show(models_dir, model, result, out())
    return PUBLISHED if result.outcome == "published" else REFUSED


def run_training(arguments: list[str], console: Console) -> TrainingResult:
    """Runs the trainer to its end, with a bar that vanishes."""
    results: list[TrainingResult] = []
    limits = TrainingConfig(timeout_s=_NO_LIMIT_S, nice=0, threads=os.cpu_count() or 1)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<10}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=1.0, stage="", left="")
        pace = TrainingPace(time.monotonic(), {})
        run = TrainingRun(
            arguments, limits, results.append, lambda step: pace.stage(step, time.monotonic())
        )
        run.start()
        try:
            while not run.join(_LOOK_S):
                now = pace.reading(time.monotonic())
                bar.update(
                    task,
                    completed=now.fraction,
                    stage=now.stage,
                    left="" if now.eta_s is None else f"{span(now.eta_s)} left",
                    description=now.message or "starting",
                )
        except KeyboardInterrupt:
            run.kill("was interrupted")
            run.join()
            raise
    return results[0]


def _show(models_dir: Path, model: str, result: TrainingResult, console: Console) -> None:
    if result.gates:
        console.print(gates_table(result.gates))
        console.print()
    if result.outcome == "published":
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        text = f"published version {result.version}, trained on {result.rows:,} rows"
        text += f": {metrics}" if metrics else ""
        if result.version is not None and result.version > 1:
            text += f"\nit waits for: trimtab promote {models_dir} {model} {result.version}"
    else:
        text = f"refused: {result.reason}"
    console.print(text, style="bold", markup=False, highlight=False)


def _as_dict(result: TrainingResult) -> dict[str, object]:
    return {
        "outcome": result.outcome,
        "version": result.version,
        "reason": result.reason,
        "gates": [dict(gate) for gate in result.gates],
        "metrics": dict(result.metrics),
        "rows": result.rows,
        "elapsed_s": round(result.elapsed_s, 3),
        "quality": [dict(found) for found in result.quality],
    }
