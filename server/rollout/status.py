"""One model's roll-out at a moment, as RPC, command line and metrics report it. Values only.

`RolloutDesk.status` makes one whenever something changed, on the control loop's thread; anybody may
read it. Figures that nothing is known of are NaN, and 0 rows were compared where none could be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["none", "approval", "shadow", "canary", "bake"]
Outcome = Literal["pass", "fail", "inconclusive", ""]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """`version` is the newer one, which is judged; `against` the champion it is compared with.

    In a shadow or a canary `against` answers (but for the canary's share); in a bake `version`
    does, and `against` is the champion before it. After the end `phase` is "none", and the
    figures, verdict and reason are those of the phase that ended last. While a version waits for
    approval and no other phase is under way, the phase is "approval", and its times are the wall
    clock's.
    """

    model: str
    phase: Phase = "none"
    version: int = 0  # 0: there was no roll-out since the server started
    against: int = 0
    since_ms: int = 0  # loop time at which the phase began
    deadline_ms: int = 0  # loop time at which it ends at the latest; 0: never by time
    share: float = 0.0  # of the requests that the canary answers
    rows_wanted: int = 0  # that the phase compares
    rows_compared: int = 0  # rows that both versions computed
    rows_dropped: int = 0  # rows that only the answering one computed, for want of time
    requests_failed: Mapping[int, int] = field(default_factory=dict)  # rows each version failed on
    latency_ratio: float = math.nan  # compute time of `version` ÷ `against`, on the same rows
    agreement: float = math.nan  # share of rows with the same answer
    prediction_psi: float = math.nan  # between the two on the same rows, of the worst output
    psi_output: str = ""  # which output that is
    metric: str = (
        ""  # of the labels: "absolute error", "log loss" or "wrong labels"; empty: none yet
    )
    improvement: float = math.nan  # loss of `against` less loss of `version`, mean of labelled rows
    low: float = math.nan  # of its 95 % interval
    high: float = math.nan
    labelled_rows: int = 0
    verdict: Outcome = ""  # empty: none yet
    reason: str = ""  # of the verdict, or what the phase still waits for
    awaiting_approval: int = 0  # version, whatever phase of another one is under way; 0: none

    def evidence(self) -> dict[str, Any]:
        """The figures as the history keeps them: rounded, and none that are not known."""
        known = {
            "rows_compared": self.rows_compared,
            "rows_dropped": self.rows_dropped,
            "requests_failed": {str(version): n for version, n in self.requests_failed.items()},
            "latency_ratio": self.latency_ratio,
            "agreement": self.agreement,
            "prediction_psi": self.prediction_psi,
            "psi_output": self.psi_output,
            "metric": self.metric if self.labelled_rows else "",
            "improvement": self.improvement,
            "low": self.low,
            "high": self.high,
            "labelled_rows": self.labelled_rows,
        }
        return {
            name: float(f"{value:.5g}") if isinstance(value, float) else value
            for name, value in known.items()
            if value != "" and not (isinstance(value, float) and not math.isfinite(value))
        }
