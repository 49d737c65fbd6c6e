"""How a training tells what it is doing: JSON lines for a program, a bar for a person, or nothing.

JSON lines go to standard output, the bar to standard error; the last line of either is the result.
What is told is the stage that begins and the shares of a usual training's time at which it begins and
ends. A bar says how long it will take as well: the time so far, divided by the share that is over, is the
whole; not before the libraries are loaded, which takes the same time whatever is trained.
"""

import json
import math
import sys
import time
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


def share_of(stage: str) -> tuple[float, float]:
    """The shares of the time at which a stage begins and ends; 0 and 1 for one that is not known."""
    names = list(_BEGINS)
    if stage not in _BEGINS:
        return 0.0, 1.0
    later = names.index(stage) + 1
    return _BEGINS[stage], _BEGINS[names[later]] if later < len(names) else 1.0


def remaining_s(stage: str, elapsed_s: float) -> float | None:
    """Seconds until the end as a stage begins; None: not known yet."""
    begins, _ = share_of(stage)
    return elapsed_s * (1 - begins) / begins if begins > _BEGINS["read"] else None


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
        begins, ends = share_of(name)
        told = {"stage": name, "fraction": begins, "until": ends, "message": message}
        print(json.dumps({"progress": told}), flush=True)

    def close(self) -> None:
        pass


class RichProgress:
    """A bar on a terminal; a line for each stage where standard error is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._began = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.fields[stage]:<9}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=1.0, stage="", left="")
            self._bar.start()

    def stage(self, name: str, message: str) -> None:
        done, _ = share_of(name)
        remaining = remaining_s(name, time.monotonic() - self._began)
        left = "" if remaining is None else f"about {remaining:,.0f} s left"
        if self._bar is None:
            said = f"{message}; {left}" if left else message
            print(f"{name:<9} {done:>4.0%}  {said}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._task, completed=done, description=message, stage=name, left=left)

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
