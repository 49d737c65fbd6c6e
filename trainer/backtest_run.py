"""Runs a backtest for the command line, once for each seed, and writes what was asked for.

The outcome of every seed is written as soon as it is there, so that an interruption loses one.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from trimtab.registry.errors import RegistryError

from .backtest import Backtest, BacktestError
from .backtest_console import ConsoleObserver
from .backtest_data import load
from .backtest_html import write_html
from .backtest_processes import ChildError
from .backtest_report import BacktestReport, report_table
from .backtest_seeds import summary_of, summary_table
from .backtest_settings import BacktestSettings
from .errors import TrainingError
from .replay import ReplayError

_MARK = ".trimtab-backtest"  # in a directory of models that a backtest made and may replace
_STDOUT = Path("-")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Outputs:
    """Where results go; None: nowhere."""

    json: Path | None = None  # - is standard output
    plot: Path | None = None
    html: Path | None = None
    out: Path | None = None  # a directory for all of them, the models and the server's log

    def of_seed(self, seed: int) -> "Outputs":
        """The same for one of several seeds: beneath the directory alone."""
        return Outputs(out=self.out / f"seed-{seed}" if self.out else None)

    def targets(self, given: Path | None, name: str) -> list[Path]:
        return [*([given] if given else []), *([self.out / name] if self.out else [])]


def run_all(settings: BacktestSettings, seeds: Sequence[int], outputs: Outputs) -> int:
    """The exit code of the process."""
    console = Console(stderr=True)
    stdout = _wide(Console(stderr=outputs.json == _STDOUT))
    reports: list[tuple[int, BacktestReport]] = []
    try:
        for seed in seeds:
            of_seed = dataclasses.replace(
                settings, data=dataclasses.replace(settings.data, seed=seed)
            )
            if len(seeds) == 1:
                reports.append((seed, _once(of_seed, outputs, console, stdout)))
            else:
                console.print(f"[bold]seed {seed}[/]")
                here = outputs.of_seed(seed)
                reports.append((seed, _once(of_seed, here, console, stdout)))
        if len(seeds) > 1:
            summary = summary_of(reports)
            stdout.print()
            stdout.print(summary_table(summary))
            _write_text(summary.to_json(), outputs.targets(outputs.json, "summary.json"))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; the server and the trainer were ended")
        return 130
    except (
        BacktestError,
        ChildError,
        ReplayError,
        TrainingError,
        RegistryError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    bad = [report for _, report in reports if _went_wrong(report)]
    for report in bad:
        reasons = "; ".join(report.environment["failures"])
        print(
            f"error: {report.overall.failed_requests} requests failed and "
            f"{report.overall.wrong_shapes} replies had the wrong shape: {reasons}",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _once(
    settings: BacktestSettings, outputs: Outputs, console: Console, stdout: Console
) -> BacktestReport:
    dataset = load(settings.data)
    for note in dataset.notes:
        console.print(note, markup=False, highlight=False)
    with _directory(outputs.out) as directory, ConsoleObserver(console) as observer:
        backtest = Backtest(dataset, settings, directory, observer)
        for warning in backtest.warnings:
            console.print(f"warning: {warning}", markup=False, highlight=False)
        report = asyncio.run(_interruptible(backtest.run()))
    documents = outputs.targets(outputs.json, "report.json")
    pictures = outputs.targets(outputs.plot, "report.png")
    pages = outputs.targets(outputs.html, "report.html")
    _write_text(report.to_json(), documents)
    if pictures:
        from .backtest_plot import plot

        for path in pictures:
            plot(report, path)
    for path in pages:
        write_html(report, path)
    stdout.print()
    stdout.print(report_table(report))
    for what, paths in (("Report", [*pages, *documents]), ("Plot", pictures)):
        for path in paths:
            if path != _STDOUT:
                stdout.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
    if outputs.out is not None:
        models = outputs.out / "models"
        text = f"Models: {models} (serve them: trimtab serve {models})"
        stdout.print(text, markup=False, highlight=False, soft_wrap=True)
    return report


def _write_text(text: str, paths: Sequence[Path]) -> None:
    for path in paths:
        if path == _STDOUT:
            sys.stdout.write(text)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _went_wrong(report: BacktestReport) -> bool:
    return bool(report.overall.failed_requests or report.overall.wrong_shapes)


def _wide(console: Console) -> Console:
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=console.stderr, width=140)


@contextlib.contextmanager
def _directory(out: Path | None) -> Iterator[Path]:
    """Where the models and the server's log are: in `out`, else in a directory that vanishes."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="trimtab-backtest-") as path:
            (Path(path) / "models").mkdir()
            yield Path(path)
        return
    models = out / "models"
    if models.exists():
        if not (models / _MARK).exists():
            raise BacktestError(
                f"{models} exists and was not made by a backtest; give another --out"
            )
        shutil.rmtree(models)
    models.mkdir(parents=True)
    (models / _MARK).touch()
    yield out


async def _interruptible(work: Coroutine[object, object, _T]) -> _T:
    """SIGTERM ends the work in order, as Ctrl-C does."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
