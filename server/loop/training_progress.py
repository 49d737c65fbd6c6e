"""How far a training is and how long it will take, from the stages that it tells of.

A trainer says which stage begins, not how far it is within it, so time fills in the rest. How long each
stage takes is known from the model's last training that published (`usual`): what is left of this stage and those
after it, scaled by how much slower or faster the stages before went. Of a first training there are
only the shares of time that the trainer tells with each stage: the time so far, divided by
the share that is over, is the whole; a stage that outlasts its share stays at its end, and
the whole grows with it. Nothing is promised before the first stage is over.

`TrainingPace` is changed by one thread and read by any. Times are seconds of a
monotonic clock, which the caller reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .training_run import TrainingProgress

_TELL_S = 5.0  # between two progress events at most
_TELL_FRACTION = 0.05  # that is worth one sooner
_MOST = 0.99  # that a training is over before it is


@dataclass(frozen=True, slots=True)
class ProgressReading:
    """Where a training is at one moment."""

    stage: str = ""  # empty: the trainer has not told yet
    message: str = ""
    fraction: float = 0.0  # of its time that is over
    elapsed_s: float = 0.0
    eta_s: float | None = None  # until it ends; None: not known yet

    def __str__(self) -> str:
        left = "" if self.eta_s is None else f", about {span(self.eta_s)} left"
        return f"{self.stage or 'starting'}, {self.fraction:.0%}{left}"


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """What an operator sees of a model's trainings at one moment."""

    model: str
    training_id: str = ""  # empty: none runs
    actor: str = ""
    signal: str = ""
    reason: str = ""
    started_ms: int = 0  # wall clock
    progress: ProgressReading = ProgressReading()
    waits: str = ""  # why one that is wanted has not begun
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Stage:
    """The stage that runs."""

    told: TrainingProgress
    began_s: float


class TrainingPace:
    """Of one training; see the module."""

    def __init__(self, began_s: float, usual: Mapping[str, float]) -> None:
        """`usual`: seconds of each stage of an earlier training, in order; empty: not known."""
        self._began_s = began_s
        self._usual = dict(usual)
        self._stage: _Stage | None = None  # replaced, never changed
        self._durations: dict[str, float] = {}
        self._highest = 0.0
        self._told: tuple[float, ProgressReading] | None = None

    def __repr__(self) -> str:
        return f"TrainingPace({self._stage})"

    def stage(self, told: TrainingProgress, now_s: float) -> None:
        """A stage begins, and the one before it is over."""
        self._end_stage(now_s)
        self._stage = _Stage(told, now_s)

    def reading(self, now_s: float) -> ProgressReading:
        """As it is now; the fraction never goes back. On any thread."""
        elapsed = max(0.0, now_s - self._began_s)
        stage = self._stage
        if stage is None:
            return ProgressReading(elapsed_s=elapsed)
        told = stage.told
        whole = self._whole_s(stage, elapsed)
        fraction = told.fraction if whole is None else elapsed / whole
        self._highest = fraction = min(_MOST, max(fraction, self._highest))
        eta = None if whole is None else max(0.0, whole - elapsed)
        return ProgressReading(told.stage, told.message, fraction, elapsed, eta)

    def news(self, now_s: float) -> ProgressReading | None:
        """The reading if it is worth an event: another stage, 5 % more, or 5 seconds later."""
        if self._stage is None:
            return None
        found = self.reading(now_s)
        if self._told is not None:
            told_s, last = self._told
            moved = found.fraction - last.fraction >= _TELL_FRACTION - 1e-9
            if found.stage == last.stage and not moved and now_s - told_s < _TELL_S:
                return None
        self._told = now_s, found
        return found

    def durations(self, now_s: float) -> dict[str, float]:
        """Seconds of each stage, the one that runs included, as the training ends."""
        self._end_stage(now_s)
        self._stage = None
        return {name: round(seconds, 3) for name, seconds in self._durations.items()}

    def _end_stage(self, now_s: float) -> None:
        if (stage := self._stage) is not None:
            spent = self._durations.get(stage.told.stage, 0.0)
            self._durations[stage.told.stage] = spent + max(0.0, now_s - stage.began_s)

    def _whole_s(self, stage: _Stage, elapsed: float) -> float | None:
        """Seconds that the training takes in all; None: nobody knows."""
        before = stage.began_s - self._began_s
        if stage.told.stage in self._usual:
            names = list(self._usual)
            place = names.index(stage.told.stage)
            usually_before = sum(self._usual[name] for name in names[:place])
            pace = before / usually_before if before > 0 and usually_before > 0 else 1.0
            here = max(0.0, pace * self._usual[stage.told.stage] - (elapsed - before))
            later = pace * sum(self._usual[name] for name in names[place + 1 :])
            return elapsed + here + later or None
        share, until = stage.told.fraction, stage.told.until
        if not 0 < share < 1 or before <= 0:
            return None
        whole = before / share
        return max(whole, elapsed / until) if share < until <= 1 else max(whole, elapsed)


def span(seconds: float) -> str:
    """A time in words, as exact as it is known."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
