"""Trainings that a process started beforehand carries out, for a server that replays history.

Whoever starts such a server keeps the trainer warm, and gives a command that stands for one run of
it: it takes the limits in JSON, then the trainer's arguments, and ends as the trainer would. So
runs are supervised as ever. The limits are told, as they must hold for the run and not
for what stands for it. The warm process has a fixed number of threads: a run that may use another
number is a process of its own.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..config import TrainingConfig
from .training_run import TrainingResult, TrainingRun


class WarmTrainings:
    """Makes runs, with TrainingRun's parameters: a training desk's `Spawn`."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._command = tuple(command)
        self._threads = threads

    def __repr__(self) -> str:
        return f"WarmTrainings({' '.join(self._command)}, threads={self._threads})"

    def __call__(
        self,
        arguments: Sequence[str],
        limits: TrainingConfig,
        on_finished: Callable[[TrainingResult], None],
        *rest: Any,
        **options: Any,
    ) -> TrainingRun:
        if limits.threads == self._threads:
            told = json.dumps({"nice": limits.nice, "memory_mb": limits.memory_mb})
            options["command"] = (*self._command, told)
        return TrainingRun(arguments, limits, on_finished, *rest, **options)
