"""One model's loop at a moment, as the metrics report it. Values only; `ModelLoop.stats` makes them."""

from dataclasses import dataclass, replace

from ..drift.drift_report import FeatureDrift
from ..logs.traffic_log import TrafficStats
from ..rollout.status import RolloutStatus
from .label_stats import LabelStats


@dataclass(frozen=True, slots=True)
class DriftStats:
    """The champion as its last judged window showed it."""

    version: int
    state: str  # collecting, ok, warning or drift
    window_rows: int = 0  # in that window; 0: none was judged
    features: tuple[FeatureDrift, ...] = ()  # of that window, the strongest drift first
    broken: int = 0  # features with an open data-quality alarm
    passed_over_rows: int = 0  # since it became champion: not counted, by the limits of [drift]


@dataclass(frozen=True, slots=True)
class TrainingStats:
    """Trainings since the server started; one that the server's end cuts short has no outcome."""

    started: int = 0
    published: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    data_broken: int = 0
    skipped: int = 0  # would have begun, but for [trigger] dry_run
    running: bool = False
    fraction: float = 0.0  # of the one that runs: how much of its time is over

    def ended(self, action: str) -> "TrainingStats":
        """After the decision (rollout.py) on the one that ran."""
        over = replace(self, running=False, fraction=0.0)
        if action == "fail":
            return replace(over, failed=self.failed + 1)
        if action == "refuse":
            return replace(over, refused=self.refused + 1)
        if action == "cancel":
            return replace(over, cancelled=self.cancelled + 1)
        if action == "data broken":
            return replace(over, data_broken=self.data_broken + 1)
        return replace(over, published=self.published + 1)


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
    rollout: RolloutStatus | None = None  # None: there was none since the server started
