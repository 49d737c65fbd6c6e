"""Holds labels against what was answered, so that a loss of quality shows where drift does not.

What a version answered is remembered by the executor's tap (`AnswerTap`), in a table of the newest
`remember_rows` rows. A label finds its row there, whatever version answered it; how wrong that
answer was is a loss, and losses go into the version's window (quality.py) in the order in which
labels come, or, where labels must mature, in the order of predictions once they have. A later label
of the same row is a duplicate or a correction, which replaces the loss.

Every label that was offered is counted under exactly one outcome, in a tally of its own as well
where it was offered with one. One that finds nothing is tried
again for `EARLY_S`, since it may have overtaken the tap. Where the labels of a classification are
all of one class over `min_rows` rows while the model expects others among as many of its answers,
only one side is told of: nothing can be said of the quality, and nothing is judged.

`AnswerTap` is called by executors, `offer`, `watch` and `stats` by any thread, everything else by
the control loop's.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native.prediction_table import FOUND, LEFT_OUT
from trimtab._native.reference import NumericFeature, ReferenceProfile
from trimtab.registry.manifest import Signature

from ..config import LabelsConfig
from ..logs.label_log import Label
from ..rollout.loss import loss_of
from .answered_rows import AnsweredRows, AnswerTap, truths
from .label_lags import LabelLags
from .label_stats import (
    CORRECTED,
    DUPLICATE,
    JOINED,
    NO_ANSWER,
    SKIPPED,
    UNKNOWN,
    UNREAD,
    WRONG_TYPE,
    LabelStats,
    LabelTally,
    QualityEvent,
    VersionLabels,
)
from .quality import DEGRADED, OK, Quality, VersionQuality

EARLY_S = 2.0
_MAX_WAITING = 500_000  # labels that wait to be looked at
_MAX_EARLY = 50_000
_MAX_FORMS = 2  # tables, each of versions that answer in one form
_MAX_VERSIONS = 4  # with a window


@dataclass(slots=True)
class _Version:
    tap: AnswerTap
    reference: NumericFeature | None
    form: AnsweredRows
    quality: VersionQuality
    labelled: int = 0


@dataclass(frozen=True, slots=True)
class _Early:
    """Labels that found nothing, and are tried again until then."""

    labels: list[Label]
    known_ms: NDArray[np.int64]
    deadline: float
    tally: LabelTally | None


class LabelMonitor:
    """One model's. See the module for who calls what."""

    def __init__(
        self,
        config: LabelsConfig,
        label_maturity_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._maturity_ms = round(label_maturity_s * 1000)
        self._clock = clock
        self._lock = threading.Lock()  # guards the four below
        self._forms: list[AnsweredRows] = []  # the newest last
        self._versions: dict[int, _Version] = {}
        self._inbox: deque[tuple[Sequence[Label], int, LabelTally | None]] = deque()
        self._waiting = 0
        self._early: list[_Early] = []
        self._pane_ids = itertools.count()
        self._total = LabelTally()
        self._tally: LabelTally | None = None  # of the labels that are being looked at
        self._lags = LabelLags()
        self._champion: int | None = None
        self._events: list[QualityEvent] = []

    def __repr__(self) -> str:
        return f"LabelMonitor(champion={self._champion}, {self._forms!r})"

    def watch(
        self, version: int, signature: Signature, reference: ReferenceProfile | None
    ) -> AnswerTap | None:
        """A version is being loaded; None: labels say nothing of its answers."""
        loss = loss_of(signature) if self.config.watch else None
        if loss is None:
            return None
        losses = reference.losses if reference is not None else ()
        known = [f for each in losses for f in each.features if isinstance(f, NumericFeature)]
        with self._lock:
            form = next((each for each in self._forms if each.outputs == signature.outputs), None)
            if form is None:
                form = AnsweredRows(signature, loss, self.config)
                self._forms = [*self._forms, form][-_MAX_FORMS:]
            tap = AnswerTap(version, loss, form.table)
            reference_loss = known[0] if known else None
            quality = self._quality(version, form, reference_loss)
            self._versions.pop(version, None)
            self._versions[version] = _Version(tap, reference_loss, form, quality)
            for old in [v for v in self._versions if v != self._champion][: -_MAX_VERSIONS + 1]:
                del self._versions[old]
        return tap

    @property
    def takes_text(self) -> bool | None:
        """Whether labels are texts, for every version that answers; None: either will do."""
        with self._lock:
            wanted = {form.takes_text for form in self._forms}
        return wanted.pop() if len(wanted) == 1 else None

    def offer(
        self, labels: Sequence[Label], known_ms: int, tally: LabelTally | None = None
    ) -> None:
        """Labels that became known then, to be looked at; `tally`: where to count them besides."""
        with self._lock:
            if self._waiting + len(labels) > _MAX_WAITING:
                for each in (self._total, tally):
                    if each is not None:
                        each.outcomes[UNREAD] += len(labels)
                return
            self._inbox.append((labels, known_ms, tally))
            self._waiting += len(labels)

    def follow(self, config: LabelsConfig, label_maturity_s: float) -> None:
        """The policy may have changed: windows that begin from now on go by it."""
        self.config = config
        self._maturity_ms = round(label_maturity_s * 1000)

    def champion_changed(self, version: int | None) -> None:
        """Its window begins anew, whatever it was before."""
        self._champion = version
        watched = self._versions.get(version) if version is not None else None
        if watched is not None:
            watched.quality = self._quality(watched.tap.version, watched.form, watched.reference)

    @property
    def quality(self) -> Quality | None:
        """The champion's; None: labels say nothing of what it answers."""
        watched = self._versions.get(self._champion) if self._champion is not None else None
        return watched.quality.latest if watched is not None else None

    def look(self, now_ms: int) -> list[QualityEvent]:
        """Looks at the labels that were offered, and at those that have matured by then."""
        with self._lock:
            offered, self._inbox = list(self._inbox), deque()
            self._waiting = 0
            forms = self._forms[::-1]
        now = self._clock()
        early, self._early = self._early, []
        for each in early:
            self._tally = each.tally
            self._join(forms, each.labels, each.known_ms, now_ms, each.deadline, now)
        for self._tally, of_one in itertools.groupby(offered, key=lambda offer: offer[2]):
            some = list(of_one)
            together = [label for labels, _, _ in some for label in labels]
            known = np.repeat(
                np.array([at for _, at, _ in some], np.int64),
                [len(labels) for labels, _, _ in some],
            )
            deadline = now + EARLY_S if forms else now
            self._join(forms, together, known, now_ms, deadline, now)
        for form in forms:
            self._mature(form, now_ms)
        events, self._events = self._events, []
        return events

    def stats(self) -> LabelStats:
        """On any thread; figures may be of a moment apart."""
        with self._lock:
            versions, forms = list(self._versions.values()), list(self._forms)
            early, waiting = list(self._early), self._waiting
            counts = dict(self._total.outcomes)
        lags = [self._lags.quantile(share) for share in (0.5, 0.9, 0.99)]
        p50, p90, p99 = lags
        return LabelStats(
            outcomes=MappingProxyType(counts),
            waiting=waiting + sum(len(each.labels) for each in early),
            young=sum(form.young_rows for form in forms),
            remembered=sum(len(form.table) for form in forms),
            forgotten=sum(form.table.forgotten for form in forms),
            one_sided=any(form.one_sided for form in forms),
            lag_ms=None if p50 is None or p90 is None or p99 is None else (p50, p90, p99),
            versions=tuple(
                VersionLabels(each.quality.latest, each.tap.answered, each.labelled)
                for each in versions
            ),
            champion=self._champion,
        )

    # Everything below is the control loop's.

    def _quality(
        self, version: int, form: AnsweredRows, reference: NumericFeature | None
    ) -> VersionQuality:
        return VersionQuality(version, form.metric, reference, self.config, self._pane_ids)

    def _join(
        self,
        forms: Sequence[AnsweredRows],
        labels: list[Label],
        known_ms: NDArray[np.int64],
        now_ms: int,
        deadline: float,
        now: float,
    ) -> None:
        """Finds each label's row in one of the forms' tables; the rest waits or is unknown."""
        left_out = np.zeros(len(labels), np.bool_)
        for form in forms:
            if not labels:
                return
            found, *row = form.find(labels)
            left_out |= found == LEFT_OUT
            hits = np.flatnonzero(found == FOUND)
            if len(hits):
                columns = [column[hits] for column in row]
                self._take(form, [labels[at] for at in hits], known_ms[hits], columns, now_ms)
            rest = np.flatnonzero(found != FOUND)
            labels = [labels[at] for at in rest]
            known_ms, left_out = known_ms[rest], left_out[rest]
        self._add(SKIPPED, int(left_out.sum()))
        rest = np.flatnonzero(~left_out)
        missing = len(rest)
        room = _MAX_EARLY - sum(len(each.labels) for each in self._early)
        if missing and deadline > now and room > 0:
            held = [labels[at] for at in rest[:room]]
            self._early.append(_Early(held, known_ms[rest[:room]], deadline, self._tally))
            missing = max(0, missing - room)
        self._add(UNKNOWN, missing)

    def _take(
        self,
        form: AnsweredRows,
        labels: list[Label],
        known_ms: NDArray[np.int64],
        row: Sequence[NDArray[Any]],
        now_ms: int,
    ) -> None:
        """Labels of rows that are known: sequence, version, time and answer of each."""
        sequence, version, time_ms, answers = row
        losses = form.loss.of(answers, labels)
        right = form.right_type(labels)
        known = right & np.isfinite(losses)
        self._add(WRONG_TYPE, int((~right).sum()))
        self._add(NO_ANSWER, int((right & ~known).sum()))
        truth = truths(labels)
        order = np.flatnonzero(known)
        while len(order):  # of several labels of one row each is taken after the one before
            _, first = np.unique(sequence[order], return_index=True)
            at = order[np.sort(first)]
            order = np.delete(order, first)
            earlier = form.earlier(sequence[at])
            new, old = at[~earlier], at[earlier]
            same = form.truth[sequence[old] % form.capacity] == truth[old]
            self._add(JOINED, len(new))
            self._add(DUPLICATE, int(same.sum()))
            self._correct(form, sequence[old[~same]], version, old[~same], truth, losses)
            if not len(new):
                continue
            self._lags.add(known_ms[new] - time_ms[new])
            form.enter(sequence[new], truth[new], losses[new])
            form.follow_run(truth[new], labels[new[-1]])
            ids, counts = np.unique(version[new], return_counts=True)
            for each, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if (watched := self._versions.get(each)) is not None:
                    watched.labelled += count
            ready_ms = time_ms[new] + self._maturity_ms
            young = ready_ms > now_ms if self._maturity_ms else np.zeros(len(new), np.bool_)
            form.wait(
                ready_ms[young], sequence[new[young]], version[new[young]], losses[new[young]]
            )
            grown = new[~young]
            if len(grown):
                self._count(form, sequence[grown], version[grown], losses[grown])

    def _correct(
        self,
        form: AnsweredRows,
        sequence: NDArray[np.int64],
        version: NDArray[np.int64],
        at: NDArray[np.intp],
        truth: NDArray[np.int64],
        losses: NDArray[np.float64],
    ) -> None:
        self._add(CORRECTED, len(at))
        for row, index in zip((sequence % form.capacity).tolist(), at.tolist(), strict=True):
            watched = self._versions.get(int(version[index]))
            if watched is not None and form.pane[row] >= 0:
                pane = int(form.pane[row])
                watched.quality.correct(pane, float(form.losses[row]), float(losses[index]))
            form.truth[row], form.losses[row] = truth[index], losses[index]

    def _mature(self, form: AnsweredRows, now_ms: int) -> None:
        sequence, version, losses = form.ready(now_ms)
        if len(sequence):
            self._count(form, sequence, version, losses)

    def _count(
        self,
        form: AnsweredRows,
        sequence: NDArray[np.int64],
        version: NDArray[np.int64],
        losses: NDArray[np.float64],
    ) -> None:
        """Rows whose label counts go into their versions' windows."""
        if (reason := self._one_sided(form)) is not None:
            if reason:
                self._tell("labels_one_sided", reason, {"rows": form.run_rows})
            return
        for each in np.unique(version).tolist():
            watched = self._versions.get(each)
            if watched is None or watched.form is not form:
                continue
            mine = np.flatnonzero(version == each)
            panes, changes = watched.quality.add(losses[mine])
            form.note_panes(sequence[mine], panes)
            if each != self._champion:
                continue
            for change in changes:
                kind = {DEGRADED: "quality", OK: "quality_cleared"}[change.state]
                self._tell(kind, change.reason, change.evidence())

    def _one_sided(self, form: AnsweredRows) -> str | None:
        """Whether labels are of one class where others are expected; what to say if that is new."""
        was = form.one_sided
        form.one_sided = form.is_one_sided(self.config.min_rows)
        if form.one_sided != was:
            for watched in list(self._versions.values()):
                if watched.form is form:
                    watched.quality.forget()
        if form.one_sided:
            text = f"all of the last {form.run_rows:,} labels are of one class, {form.run_name()}"
            why = "nothing can be said of the quality"
            return "" if was else f"{text}, where the model expects others as well: {why}"
        if was:
            self._tell("labels_two_sided", "labels are of several classes again", {})
        return None

    def _add(self, outcome: str, count: int) -> None:
        self._total.outcomes[outcome] += count
        if self._tally is not None:
            self._tally.outcomes[outcome] += count

    def _tell(self, kind: str, reason: str, evidence: Mapping[str, Any]) -> None:
        if self._champion is not None:
            self._events.append(QualityEvent(kind, self._champion, reason, evidence))
