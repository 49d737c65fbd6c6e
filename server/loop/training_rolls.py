"""Has the logs' finished files rolled into Parquet, by a child process of the trainer's side.

It is worth a process when a few files are there; one that failed is tried again later, and later yet.
On the control loop's thread.
"""

import logging
import time
from collections.abc import Callable

from ..config import TrainingConfig
from .model_context import ModelContext
from .training_run import TrainingResult
from .training_underway import Child, Spawn

_log = logging.getLogger(__name__)

_ROLL_AT = 4  # finished files of a log that are worth a process
_FIRST_RETRY_S, _MAX_RETRY_S = 60.0, 3600.0


class LogRolls:
    """One model's; see the module. `on_end` is called when one has ended."""

    def __init__(self, context: ModelContext, spawn: Spawn, on_end: Callable[[], None]) -> None:
        self._context = context
        self._spawn = spawn
        self._on_end = on_end
        self._failures = 0
        self._not_before = 0.0  # time.monotonic()
        self.child: Child | None = None  # that rolls now

    def __repr__(self) -> str:
        return f"LogRolls({self._context.name}, failures={self._failures})"

    def begin_if_due(self) -> None:
        """Where none is under way; the caller knows that nothing trains."""
        context = self._context
        if self.child is not None or time.monotonic() < self._not_before:
            return
        traffic = len(context.traffic.closed_files()) if context.traffic is not None else 0
        if max(traffic, len(context.labels.closed_files())) < _ROLL_AT:
            return
        self.child = self._spawn(
            [
                "roll",
                f"--models-dir={context.directory.path.parent}",
                f"--model={context.name}",
                f"--keep-days={context.config.traffic.keep_days}",
                "--exit-with-parent",
            ],
            TrainingConfig(timeout_s=context.policy.training.timeout_s),
            lambda result: context.post(self._ended, result),
            needs_result=False,
        )
        self.child.start()

    def _ended(self, result: TrainingResult) -> None:
        self.child = None
        if result.outcome == "failed":
            wait_s = min(_FIRST_RETRY_S * 2.0**self._failures, _MAX_RETRY_S)
            self._failures = min(self._failures + 1, 10)
            self._not_before = time.monotonic() + wait_s
            _log.error(
                "model '%s': its log could not be rolled, next try in %.0f s: %s",
                self._context.name,
                wait_s,
                result.reason,
            )
        else:
            self._failures = 0
        self._on_end()
