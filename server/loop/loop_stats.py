"""One model's loop at a moment, as the metrics report it. Values only; `ModelLoop.stats` makes them."""

from dataclasses import dataclass, replace

from ..drift.drift_report import FeatureDrift
from ..logs.traffic_log import TrafficStats
from .label_stats import LabelStats


@dataclass(frozen=True, slots=True)
class DriftStats:
    """The champion as its last judged window showed it."""

    version: int
    state: str  # collecting, ok, warning or drift
    window_rows: int = 0  # in that window; 0: none was judged
    features: tuple[FeatureDrift, ...] = ()  # of that window, the strongest drift first
    broken: int = 0  # features with an open data-quality alarm


@dataclass(frozen=True, slots=True)
class TrainingStats:
    """Trainings since the server started; one that the server's end cuts short has no outcome."""

    started: int = 0
    published: int = 0
    refused: int = 0
    failed: int = 0
    running: bool = False

    def ended(self, action: str) -> "TrainingStats":
        """After the decision (rollout.py) on the one that ran."""
        if action == "fail":
            return replace(self, failed=self.failed + 1, running=False)
        if action == "refuse":
            return replace(self, refused=self.refused + 1, running=False)
        return replace(self, published=self.published + 1, running=False)


@dataclass(frozen=True, slots=True)
class LoopStats:
    """Counts since the server started, where nothing else is said."""

    model: str
    observed_rows: int = 0
    labels: int = 0  # in the label log, those of earlier processes included
    drift: DriftStats | None = None  # None: nothing answers, or drift is not watched
    traffic: TrafficStats | None = None  # None: there is no traffic log
    trainings: TrainingStats = TrainingStats()
    quality: LabelStats | None = None  # None: labels are not held against answers
