"""How wrong one version's answers are, as labels tell, beside the rows that it was tested on.

Losses (one number a labelled row, lower is better) go into panes of `window_rows / panes` rows; as
a pane ends, the window (that pane and those before it) is judged. Quality is lost where three
things hold: the window has `min_rows` rows; the mean loss is higher than the reference's by
`min_loss_increase` of it, and by more than nothing with 95 % confidence; and chance is ruled out
however often one looks, by an e-detector over the losses' distribution as for drift
(drift_evidence.py). The state follows with patience, as that of drift does:

    collecting → ok ↔ degraded      (`hysteresis_panes` windows in a row on the other side)

A correction changes the window's mean, also of a pane that has ended; what that pane was counted
for as evidence stays.

An absolute error has no upper limit, and a label that is not of this world (1e30 for 10) would hide
any loss of quality behind a variance as large. So it counts for ten times the reference's largest at
most: still an error like no other, and one row in a thousand of them moves the mean of a normal
distribution's by some 5 %. The control loop's thread alone.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trimtab._native.e_detector import EDetector
from trimtab._native.evidence import design_effect, evidence_groups, log_threshold
from trimtab._native.losses import ABSOLUTE_ERROR
from trimtab._native.reference import NumericFeature, numeric_feature

from ..config import LabelsConfig
from ..drift.drift_state import COLLECTING

OK, DEGRADED = "ok", "degraded"

_Z_95 = 1.959964
_EVIDENCE_PANES = 100  # that dependence is measured over
_LARGEST = 10.0  # absolute error that counts, in the reference's largest
_USUAL = 0.99  # of the rows that become a reference: the largest one of these is not made up

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """One version as its last judged window showed it. NaN: not known."""

    version: int
    metric: str
    state: str = COLLECTING
    reason: str = ""
    reference: str = "none"  # training, bootstrap or none
    rows: int = 0  # in the window
    effective_rows: float = 0.0  # that many independent rows would say as much
    mean: float = math.nan
    low: float = math.nan  # of the mean's 95 % interval
    high: float = math.nan
    reference_mean: float = math.nan
    reference_rows: int = 0
    increase: float = math.nan  # of the mean over the reference's, as a share of that
    increase_low: float = math.nan
    increase_high: float = math.nan
    log_evidence: float = -math.inf  # against chance
    threshold: float = math.inf
    worse: bool = False  # the three things hold

    def evidence(self) -> dict[str, object]:
        """As the history keeps it."""
        return {
            "metric": self.metric,
            "rows": self.rows,
            "effective_rows": round(self.effective_rows),
            "mean": _rounded(self.mean),
            "interval": [_rounded(self.low), _rounded(self.high)],
            "reference": self.reference,
            "reference_mean": _rounded(self.reference_mean),
            "reference_rows": self.reference_rows,
            "increase": _rounded(self.increase),
            "increase_interval": [_rounded(self.increase_low), _rounded(self.increase_high)],
            "log_evidence": _rounded(self.log_evidence),
            "threshold": _rounded(self.threshold),
        }


@dataclass(frozen=True, slots=True)
class LossWindow:
    """Losses of some rows: how many, their mean and variance."""

    rows: int
    mean: float
    variance: float


def judge(
    window: LossWindow,
    reference: NumericFeature,
    config: LabelsConfig,
    *,
    log_evidence: float,
    threshold: float,
    effective: float = 1.0,
) -> Quality:
    """The figures of a window, and whether it is worse; version, state and origin are left open.

    `effective`: the share of its rows that independent ones would be.
    """
    rows = reference.moment_rows()
    error = math.sqrt(window.variance / max(window.rows * effective, 1.0))
    apart = _Z_95 * math.hypot(error, reference.std / math.sqrt(max(rows, 1)))
    rise = window.mean - reference.mean
    found = Quality(
        version=0,
        metric=reference.name,
        rows=window.rows,
        effective_rows=window.rows * effective,
        mean=window.mean,
        low=window.mean - _Z_95 * error,
        high=window.mean + _Z_95 * error,
        reference_mean=reference.mean,
        reference_rows=rows,
        increase=_share(rise, reference.mean),
        increase_low=_share(rise - apart, reference.mean),
        increase_high=_share(rise + apart, reference.mean),
        log_evidence=log_evidence,
        threshold=threshold,
    )
    large = found.increase >= config.min_loss_increase and found.increase_low > 0
    worse = large and window.rows >= config.min_rows and log_evidence >= threshold
    return replace(found, worse=worse, reason=_reason(found, config, large, worse))


class LossGroups:
    """The groups of the e-detector of a loss; see `evidence_groups`.

    A reference that leaves one group (of which fewer than 50 rows are wrong at all) is parted into
    the least loss and any higher one. Of the m + 1 intervals that m rows leave, what lies above
    all of them counts for the upper part, which makes a rise no likelier than it is.
    """

    def __init__(self, reference: NumericFeature) -> None:
        self._edges = reference.edges
        self._groups = evidence_groups(reference)
        self.masses: _Floats = self._groups.masses
        self._above: np.float32 | None = None
        if len(self.masses) < 2:
            lowest = np.float32(reference.minimum)
            higher = self._edges[self._edges > lowest]
            self._above = higher[0] if len(higher) else np.nextafter(lowest, np.float32(np.inf))
            bins = int(np.searchsorted(self._edges, self._above, "right"))
            most = float(reference.counts[:bins].sum())
            if not len(higher):  # one bin holds them all
                most = float(reference.counts.sum())
            rest = float(reference.counts.sum()) - most
            self.masses = np.array([max(most, 1.0), rest + 1])

    def count(self, losses: _Floats) -> _Floats:
        """Rows per group."""
        values = losses.astype(np.float32)
        if self._above is not None:
            higher = int((values >= self._above).sum())
            return np.array([len(values) - higher, higher], np.float64)
        bins = np.searchsorted(self._edges, values, "right")
        slots = np.bincount(bins, minlength=len(self._edges) + 2).astype(np.float64)
        return self._groups.count(slots)


class _Pane:
    __slots__ = ("groups", "id", "rows", "squares", "total")

    def __init__(self, pane_id: int, groups: int) -> None:
        self.id = pane_id
        self.rows = 0
        self.total = 0.0
        self.squares = 0.0  # of the losses' distances from the reference's mean
        self.groups = np.zeros(groups)


class VersionQuality:
    """See the module. Panes have ids of their own among all versions, from `pane_ids`."""

    def __init__(
        self,
        version: int,
        metric: str,
        reference: NumericFeature | None,
        config: LabelsConfig,
        pane_ids: Iterator[int] | None = None,
    ) -> None:
        """Without a reference, or with that of another loss, the first `window_rows` labelled rows
        become it."""
        self.config = config
        self.pane_rows = max(1, config.window_rows // config.panes)
        if config.min_rows > self.pane_rows * config.panes:
            self.config = replace(config, min_rows=self.pane_rows * config.panes)
        self._ids = itertools.count() if pane_ids is None else pane_ids
        self._kept: list[_Floats] = []  # towards a reference
        self._kept_id = next(self._ids)  # of the pane that these count as
        self._streak = 0  # windows in a row that disagree with the state
        self.latest = Quality(version, metric)
        self._limit = math.inf  # of a loss
        self._reference: NumericFeature | None = None
        if reference is not None and reference.name == metric and reference.moment_rows() > 1:
            self._begin(reference, "training")

    def __repr__(self) -> str:
        return f"VersionQuality({self.latest.version}, {self.latest.state})"

    def add(self, losses: _Floats) -> tuple[NDArray[np.int64], list[Quality]]:
        """Labelled rows; the id of the pane of each, and what the state became on the way, each time
        it changed."""
        panes = np.full(len(losses), self._kept_id, np.int64)
        changes: list[Quality] = []
        done = 0
        if self._reference is None:
            done = self._keep(losses)
        losses = np.minimum(losses, self._limit)
        while done < len(losses) and self._reference is not None:
            part = losses[done : done + self.pane_rows - self._open.rows]
            panes[done : done + len(part)] = self._open.id
            self._count(part)
            done += len(part)
            if self._open.rows == self.pane_rows and self._end_pane():
                changes.append(self.latest)
        return panes, changes

    def correct(self, pane_id: int, was: float, now: float) -> None:
        """A row's loss turned out another; of a pane that has left the window nothing is kept."""
        if self._reference is None:
            if pane_id == self._kept_id:
                self._correct_kept(was, now)
            return
        was, now = min(was, self._limit), min(now, self._limit)
        for pane in (*self._panes, self._open):
            if pane.id == pane_id:
                centre = self._reference.mean
                pane.total += now - was
                pane.squares += (now - centre) ** 2 - (was - centre) ** 2
                if pane is self._open:
                    pane.groups += self._groups.count(np.array([now]))
                    pane.groups -= self._groups.count(np.array([was]))

    def _correct_kept(self, was: float, now: float) -> None:
        """Any row of that loss will do: what becomes of them does not know their order."""
        for part in self._kept:
            at = np.flatnonzero(part == was)
            if len(at):
                part[at[0]] = now
                return

    def forget(self) -> None:
        """The rows so far say nothing of the quality: the window begins anew, the state stays."""
        if self._reference is not None:
            self._clear()

    def window(self) -> LossWindow:
        """The rows of the window, the pane that is filling included."""
        if self._reference is None:
            losses = np.concatenate(self._kept) if self._kept else np.empty(0)
            if not len(losses):
                return LossWindow(0, math.nan, math.nan)
            return LossWindow(len(losses), float(losses.mean()), float(losses.var()))
        return self._window((*self._panes, self._open), self._reference.mean)

    def _keep(self, losses: _Floats) -> int:
        wanted = self.config.window_rows - sum(map(len, self._kept))
        self._kept.append(losses[:wanted].copy())
        kept = self.config.window_rows - wanted + len(self._kept[-1])
        self.latest = replace(
            self.latest,
            reason=f"{kept:,} of the {self.config.window_rows:,} labelled rows that become the "
            "reference",
        )
        if kept == self.config.window_rows:
            first = np.concatenate(self._kept)
            if self.latest.metric == ABSOLUTE_ERROR:
                first = np.minimum(first, _limit(float(np.quantile(first, _USUAL))))
            self._kept = []
            self._begin(numeric_feature(self.latest.metric, first), "bootstrap")
        return min(wanted, len(losses))

    def _begin(self, reference: NumericFeature, origin: str) -> None:
        self._reference = reference
        if reference.name == ABSOLUTE_ERROR:
            self._limit = _limit(reference.maximum)
        self._groups = LossGroups(reference)
        self._detector = EDetector([self._groups.masses])
        self._threshold = log_threshold(max(1.0, self.config.false_alarm_rows / self.pane_rows))
        self.latest = replace(
            self.latest,
            reference=origin,
            reference_mean=reference.mean,
            reference_rows=reference.moment_rows(),
            threshold=self._threshold,
            reason="",
        )
        self._clear()

    def _clear(self) -> None:
        self._panes: deque[_Pane] = deque(maxlen=self.config.panes)
        self._past: deque[_Floats] = deque(maxlen=_EVIDENCE_PANES)
        self._open = _Pane(next(self._ids), len(self._groups.masses))
        self._detector.reset()
        self._streak = 0

    def _count(self, losses: _Floats) -> None:
        assert self._reference is not None
        pane = self._open
        pane.rows += len(losses)
        pane.total += float(losses.sum())
        pane.squares += float(((losses - self._reference.mean) ** 2).sum())
        pane.groups += self._groups.count(losses)

    def _end_pane(self) -> bool:
        """Judges the window; whether the state changed."""
        assert self._reference is not None
        effective = 1.0
        if self.config.deflate and self._past:
            effective = 1 / design_effect(np.stack(self._past))  # of the panes before
        self._detector.update((self._open.groups * effective)[None])
        self._past.append(self._open.groups)
        self._panes.append(self._open)
        self._open = _Pane(next(self._ids), len(self._groups.masses))
        before = self.latest
        judged = judge(
            self._window(self._panes, self._reference.mean),
            self._reference,
            self.config,
            log_evidence=float(self._detector.log_evidence()[0]),
            threshold=self._threshold,
            effective=effective,
        )
        state = self._next_state(judged)
        self.latest = replace(
            judged, version=before.version, reference=before.reference, state=state
        )
        better = judged.log_evidence >= self._threshold and judged.increase_high < 0
        if better or before.state == DEGRADED != state:
            self._detector.reset()  # it is told of what is past, or of a change for the better
        return state != before.state and (before.state, state) != (COLLECTING, OK)

    def _next_state(self, judged: Quality) -> str:
        state = self.latest.state
        if judged.rows < self.config.min_rows:
            return state
        if judged.worse == (state == DEGRADED):
            self._streak = 0
            return OK if state == COLLECTING else state
        self._streak += 1
        if self._streak < self.config.hysteresis_panes:
            return OK if state == COLLECTING else state
        self._streak = 0
        return DEGRADED if judged.worse else OK

    @staticmethod
    def _window(panes: "tuple[_Pane, ...] | deque[_Pane]", centre: float) -> LossWindow:
        rows = sum(pane.rows for pane in panes)
        if not rows:
            return LossWindow(0, math.nan, math.nan)
        mean = math.fsum(pane.total for pane in panes) / rows
        squares = math.fsum(pane.squares for pane in panes) / rows
        return LossWindow(rows, mean, max(squares - (mean - centre) ** 2, 0.0))


def _reason(found: Quality, config: LabelsConfig, large: bool, worse: bool) -> str:
    if found.rows < config.min_rows:
        return f"{found.rows:,} labelled rows in the window, it is judged from {config.min_rows:,}"
    name = found.metric.replace("_", " ")
    text = (
        f"{name} {found.mean:.4g} on {found.rows:,} labelled rows, {found.reference_mean:.4g} in "
        f"the reference: {_percent(found.increase)} "
        f"(95 %: {_percent(found.increase_low)} to {_percent(found.increase_high)})"
    )
    if large and not worse:
        return f"{text}; it may be chance yet"
    return text


def _limit(largest: float) -> float:
    """What a loss counts for at most; where all are 0 there is no measure."""
    return _LARGEST * largest if largest > 0 else math.inf


def _percent(share: float) -> str:
    return f"{share:+.1%}"


def _share(rise: float, mean: float) -> float:
    """Of a mean of 0 every rise is more than any share, and no rise is none."""
    if mean > 0:
        return rise / mean
    return math.copysign(math.inf, rise) if rise else 0.0


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
