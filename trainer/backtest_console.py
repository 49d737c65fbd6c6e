"""Shows how far a backtest is: one live line on a terminal, a line now and then elsewhere.

Everything goes to standard error; standard output is for the result.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from .backtest_report import shortened, without_signal

# Events that are worth a line while they happen; the others are in the report.
_TOLD = {
    "drift": "drift",
    "data_quality": "data quality",
    "quality": "loss of quality",
    "training_started": "training started",
    "training_failed": "training failed",
    "refused": "refused",
    "held": "held for a human",
    "promoted": "promoted",
    "rolled_back": "rolled back",
    "load_failed": "load failed",
}
_PLAIN_STEPS = 10  # lines that a replay writes where there is no terminal


class ConsoleObserver:
    """A backtest's Observer; a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("starting", total=None, rate="", state="")
        self._replay_began: float | None = None
        self._next_step = 0
        self._signal = ""  # why the latest training began

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def stage(self, text: str) -> None:
        self._say(f"• {escape(text)}")
        self._bar.reset(self._task, total=None, description="", rate="", state="")

    def training(self, stage: str, fraction: float, message: str) -> None:
        self._bar.update(
            self._task, total=1.0, completed=fraction, description=stage, state=message
        )

    def replaying(self, rows: int, of: int, state: str) -> None:
        now = time.monotonic()
        if self._replay_began is None:
            self._replay_began = now
            self._bar.update(self._task, total=of, completed=rows, description="replay")
            return
        elapsed = max(1e-6, now - self._replay_began)
        rate = f"{rows / elapsed:,.0f} rows/s, {_minutes(elapsed / rows * (of - rows))} left"
        self._bar.update(
            self._task, total=of, completed=rows, description="replay", rate=rate, state=state
        )
        step = rows * _PLAIN_STEPS // of
        if not self._live and step > self._next_step:
            self._next_step = step
            self._say(f"  {rows:,} of {of:,} rows, {rate}, {escape(state)}")

    def happened(self, when: str, kind: str, version: int, reason: str) -> None:
        if kind not in _TOLD:
            return
        if kind == "training_started":
            self._signal = reason
            self._bar.update(self._task, state="training")
        else:
            reason = without_signal(reason, self._signal)
        text = _TOLD[kind] + (f" version {version}" if version else "")
        self._say(f"  [dim]{when}[/]  [bold]{text}[/]  {escape(shortened(reason, 160))}")

    def fitting(self, done: int, of: int) -> None:
        self._bar.update(self._task, total=of, completed=done, description="fits")

    def _say(self, markup: str) -> None:
        self._console.print(markup, highlight=False, soft_wrap=not self._live)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
