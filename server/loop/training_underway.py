"""The training that runs: whose it is, what it is for, where it is, who wants it to end.

On the control loop's thread, except `pace.reading` (any).
"""

from collections.abc import Callable
from typing import Protocol

from trimtab.registry.state import State

from .training_progress import TrainingPace
from .training_request import CancelRequest
from .training_run import TrainingProgress


class Child(Protocol):
    """A process of the trainer's side, as TrainingRun is one."""

    def start(self) -> None: ...
    def kill(self, reason: str) -> None: ...
    def join(self, timeout_s: float | None = None) -> bool: ...


Spawn = Callable[..., Child]
"""Makes one, with TrainingRun's parameters."""


class Underway:
    """One training, from its start to its result."""

    def __init__(
        self,
        training_id: str,
        *,
        actor: str,
        signal: str,
        reason: str,
        started_ms: int,
        state: State,
        pace: TrainingPace,
    ) -> None:
        self.id = training_id
        self.actor = actor
        self.signal = signal
        self.reason = reason
        self.started_ms = started_ms  # wall clock
        self.state = state  # of the registry, as it began
        self.pace = pace
        self.cancels: list[CancelRequest] = []
        self.run: Child
        self._where = ""

    def __str__(self) -> str:
        return f"{self.id}{self._where}"

    def progressed(self, progress: TrainingProgress, now_s: float) -> None:
        """It told of a stage."""
        self.pace.stage(progress, now_s)
        reading = self.pace.reading(now_s)
        self._where = f" ({reading.stage}, {reading.fraction:.0%})"

    def cancel(self, request: CancelRequest) -> None:
        """Ends the child, gently first; the request is answered as its result comes."""
        self.cancels.append(request)
        self.run.kill(f"was cancelled by {request.actor}: {request.reason}")
