"""What an executor tells the loop, batch by batch: log, drift monitor, mirror, then the count.

One tap per loaded version. Rows of every version are logged; only those of the version that
answers are counted for drift. The order of the steps is what makes `settle` exact: a pane that a
batch filled, or ended by its time, is in the control loop's queue, and the batch in the mirror's,
before its rows show in `observed_rows`. All rows of a batch belong to one moment, that of the clock after its event times.

A tap keeps what its version needs to be watched (signature and reference profile, read when the
version was loaded), so that a change of champion reads no file.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab._native.reference import ReferenceProfile
from trimtab.registry.manifest import Signature

from ..drift.drift_evidence import DriftEvidence
from ..drift.drift_monitor import DriftMonitor
from ..drift.drift_report import FeatureDrift, WindowSnapshot
from ..drift.drift_state import DriftState
from ..drift.feature_faults import Key, recent
from ..drift.row_sampler import RowSampler
from ..inference.observation import ObservedBatch, ObservedCalls
from ..inference.tensor import Tensor
from ..logs.traffic_log import TrafficLog
from ..logs.traffic_rows import TrafficLayout
from .answered_rows import AnswerTap
from .loop_clock import LoopClock


class ChampionWatch:
    """The version that answers and its monitor; a new one, with an empty window, per change.

    `sampler` is the executor's: it chooses the rows that `monitor` counts.

    `state`, `features` and `window_rows` are the control loop's, of the last window that was
    judged, and so is `evidence`, of all of them. `pane_faults` are the faults of single panes, with the pane's number. The loop replaces
    them, anybody reads.
    """

    __slots__ = (
        "evidence",
        "features",
        "monitor",
        "pane_faults",
        "sampler",
        "state",
        "version",
        "window_rows",
    )

    def __init__(self, version: int) -> None:
        self.version = version
        self.monitor: DriftMonitor | None = None  # None: drift is not watched
        self.sampler: RowSampler | None = None  # None: every row is counted
        self.evidence: DriftEvidence | None = None  # from the first judged pane on
        self.state = DriftState()
        self.features: tuple[FeatureDrift, ...] = ()
        self.window_rows = 0
        self.pane_faults: tuple[tuple[int, Mapping[Key, str]], ...] = ()

    def faults_in(self, window: WindowSnapshot, panes: int) -> dict[Key, str]:
        """The faults of those panes that are in the window."""
        oldest = window.newest_pane - panes + 1
        return recent((faults for number, faults in self.pane_faults if number >= oldest), panes)

    def __repr__(self) -> str:
        return f"ChampionWatch({self.version}, {self.state.name}, {self.monitor!r})"


@dataclass(frozen=True)
class TapStats:
    """Counts of one model since the server started."""

    observed_rows: int
    failures: int  # batches that the log or the monitor failed on


class BatchSink(Protocol):
    """What takes batches to have another version compute them too, and never waits."""

    def offer(self, batch: ObservedBatch) -> None: ...


class Observed:
    """What all taps of one model share: the count of rows, the clock and the current champion.

    `champion` is replaced by the lifecycle's callback, `mirror` by the roll-out desk (None: nothing
    is rolled out); executors read both without a lock. `expects_labels` is set as a recipe is found or
    a label comes, and stays: until then no answer is remembered, for there is nobody to ask for it.
    """

    def __init__(self, clock: LoopClock, log: TrafficLog | None) -> None:
        self.clock = clock
        self.log = log
        self.champion: ChampionWatch | None = None
        self.mirror: BatchSink | None = None
        self.expects_labels = False
        self._lock = threading.Lock()  # guards the three below: several versions run at once
        self._rows = 0
        self._failures = 0
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    @property
    def rows(self) -> int:
        """Rows of every version that are in the log's queue and the monitor's counts."""
        return self._rows

    @property
    def stats(self) -> TapStats:
        with self._lock:
            return TapStats(self._rows, self._failures)

    def add(self, rows: int, *, failed: bool = False) -> None:
        """Rows were observed."""
        with self._lock:
            self._rows += rows
            self._failures += failed
            if not self._waiting:
                return
            reached = [call for wanted, call in self._waiting if wanted <= self._rows]
            self._waiting = [item for item in self._waiting if item[0] > self._rows]
        for call in reached:
            call()

    def when(self, rows: int, call: Callable[[], None]) -> None:
        """Calls once so many rows were observed, on the thread that notices; it must not block."""
        with self._lock:
            if self._rows < rows:
                self._waiting.append((rows, call))
                return
        call()

    def forget(self, call: Callable[[], None]) -> None:
        """Takes back what `when` was given; nothing happens if it was called already."""
        with self._lock:
            self._waiting = [item for item in self._waiting if item[1] is not call]


class LoopTap:
    """Called by one executor, on its thread."""

    def __init__(
        self,
        observed: Observed,
        signature: Signature,
        reference: ReferenceProfile | None,
        answers: AnswerTap | None = None,
    ) -> None:
        """`answers`: what is answered is remembered there, for its labels."""
        self._answers = answers
        self.signature = signature
        self.reference = reference
        self._observed = observed
        self._layout = TrafficLayout(signature)

    def __call__(self, batch: ObservedBatch) -> None:
        observed = self._observed
        failed = True
        try:
            if batch.latest_event_time_ms >= 0 and not observed.clock.seen(
                batch.latest_event_time_ms
            ):
                observed.clock.all_seen(batch.calls.event_time_ms)
            if observed.log is not None:
                observed.log.append(batch, self._layout)
            if self._answers is not None and observed.expects_labels:
                self._answers(batch)
            champion = observed.champion
            if (
                champion is not None
                and champion.version == batch.version
                and (monitor := champion.monitor) is not None
            ):
                if monitor.pane_ms:
                    now = observed.clock.reading()
                    monitor.advance(now.ms, is_event_time=now.is_event_time)
                monitor.observe(batch, champion.sampler)
            if (mirror := observed.mirror) is not None:
                mirror.offer(batch)
            failed = False
        finally:
            observed.add(batch.rows, failed=failed)

    def failed(self, model: str, version: int, inputs: Mapping[str, Tensor], rows: int) -> None:
        """A request could not be computed; it is neither logged nor counted, but may be mirrored."""
        mirror = self._observed.mirror
        if mirror is not None:
            mirror.offer(ObservedBatch(model, version, ObservedCalls.of([]), rows, inputs, {}, -1))


def evidence_of(features: tuple[FeatureDrift, ...], at_most: int = 5) -> list[dict[str, Any]]:
    """The strongest features as the history keeps them."""
    return [
        {
            "feature": feature.name,
            "role": feature.role,
            "verdict": feature.verdict,
            "psi": round(feature.psi, 4),
            "psi_low": round(feature.psi_low, 4),
            "ks": [round(feature.ks_low, 4), round(feature.ks_high, 4)],
            "log_evidence": _rounded(feature.log_evidence),
            "missing_rate": round(feature.missing_rate, 4),
            "unseen_rate": round(feature.unseen_rate, 4),
        }
        for feature in features[:at_most]
    ]


def _rounded(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
