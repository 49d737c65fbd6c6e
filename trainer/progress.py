"""How a training tells what it is doing: JSON lines for a program, a bar for a person, or nothing.

JSON lines go to standard output, the bar to standard error; the last line of either is the result.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, Protocol

# The share of a training's time that is over when a stage begins (flights, one core).
_BEGINS = {
    "start": 0.0,
    "read": 0.3,
    "fit": 0.4,
    "compare": 0.55,
    "refit": 0.6,
    "export": 0.75,
    "parity": 0.8,
    "reference": 0.88,
    "card": 0.92,
    "publish": 0.98,
}


class Progress(Protocol):
    """Told of each stage as it begins."""

    def stage(self, name: str, message: str) -> None: ...
    def close(self) -> None: ...


class SilentProgress:
    def stage(self, name: str, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class JsonProgress:
    def stage(self, name: str, message: str) -> None:
        told = {"stage": name, "fraction": _BEGINS.get(name, 0.0), "message": message}
        print(json.dumps({"progress": told}), flush=True)

    def close(self) -> None:
        pass


class RichProgress:
    """A bar on a terminal; a line for each stage where standard error is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.fields[stage]:<9}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=1.0, stage="")
            self._bar.start()

    def stage(self, name: str, message: str) -> None:
        if self._bar is None:
            print(f"{name:<9} {message}", file=sys.stderr, flush=True)
        else:
            done = _BEGINS.get(name, 0.0)
            self._bar.update(self._task, completed=done, description=message, stage=name)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def progress_of(mode: str) -> Progress:
    """For json, rich or none."""
    kinds: dict[str, type[Progress]] = {
        "json": JsonProgress,
        "rich": RichProgress,
        "none": SilentProgress,
    }
    return kinds[mode]()


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities, which it has not, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
