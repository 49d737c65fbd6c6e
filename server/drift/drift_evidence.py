"""Whether a difference can be chance at all, however often one looks: evidence that adds up over panes.

A window that is judged at every pane, for months, feature by feature, meets every coincidence there
is. So what a feature's rows showed since its version became champion is summed by an e-detector
(`_native/e_detector`), whose threshold is a number of rows: `false_alarm_rows` go by between two
false alarms on average, at least. The features share that: which of them have evidence is told by
e-BH, and the mean of all of them may have it where no single one has (`overall`).

Rows are handed in as they were counted, in any portions; a check is made of every `check_rows` of
them, a pane's. Where neighbouring panes differ more than independent rows would let them, a feature's
rows count for fewer (`effective`). The control loop's thread alone.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from trimtab._native.e_detector import EDetector, log_e_value
from trimtab._native.evidence import (
    EvidenceGroups,
    design_effect,
    e_bh,
    evidence_groups,
    global_log_evidence,
    log_threshold,
)
from trimtab._native.reference import ReferenceProfile

from .feature_faults import Key, TensorCounts

_PANES = 100  # that dependence is measured over
_TURNS = 32  # checks in which each feature's is measured once: 0.4 ms a feature

_NONE: Mapping[Key, float] = MappingProxyType({})


@dataclass(frozen=True)
class Evidence:
    """What was found by one moment; logarithms are natural."""

    threshold: float = 0.0  # log evidence from which chance is ruled out
    log_e: Mapping[Key, float] = field(default_factory=lambda: _NONE)
    found: frozenset[Key] = frozenset()  # the features that have enough, by e-BH
    overall: float = -np.inf  # log evidence of the mean over all features
    effective: Mapping[Key, float] = field(default_factory=lambda: _NONE)  # share of the rows

    @property
    def overall_found(self) -> bool:
        return bool(self.log_e) and self.overall >= self.threshold


class DriftEvidence:
    """One version's, from the moment that it became champion; see the module."""

    def __init__(
        self, profile: ReferenceProfile, check_rows: int, false_alarm_rows: int, *, deflate: bool
    ) -> None:
        self._check_rows = check_rows
        self._threshold = log_threshold(max(1.0, false_alarm_rows / check_rows))
        self._deflate = deflate
        self._tensors = [_Tensor(groups) for groups in _groups_of(profile)]
        self._keys = [key for key, _ in _features_of(profile)]
        self._rows = 0  # since the last check
        self._checks = 0
        self.latest = Evidence(self._threshold)

    def __repr__(self) -> str:
        return f"DriftEvidence({self._checks} checks, {len(self.latest.found)} features found)"

    def add(self, tensors: Sequence[TensorCounts | None]) -> None:
        """Rows that were not handed in before, in the reference's order; None: not watched."""
        rows = 0
        for tensor, counts in zip(self._tensors, tensors, strict=True):
            if counts is not None and len(counts.counts):
                tensor.add(counts)
                rows = max(rows, int(counts.counts[0].sum()))
        self._rows += rows
        if self._rows < self._check_rows:
            return
        self._rows = 0
        turn = self._checks % _TURNS if self._deflate else None
        self._checks += 1
        for tensor in self._tensors:
            tensor.check(turn)
        log_e = [each for tensor in self._tensors for each in tensor.log_e()]
        self.latest = _evidence(
            self._keys,
            log_e,
            self._threshold,
            [share for tensor in self._tensors for share in tensor.effective],
        )

    def reset(self) -> None:
        """What was found is past: features must show it anew."""
        self._rows = self._checks = 0
        for tensor in self._tensors:
            tensor.reset()
        self.latest = Evidence(self._threshold, effective=self.latest.effective)


def of_two_samples(
    profile: ReferenceProfile, tensors: Sequence[TensorCounts | None], alpha: float
) -> Evidence:
    """One look at all rows: the probability of any false finding is at most about `alpha`."""
    log_e: list[float] = []
    for groups, counts in zip(_groups_of(profile), tensors, strict=True):
        for index, group in enumerate(groups):
            if counts is None or len(group.masses) < 2:
                log_e.append(0.0)
                continue
            log_e.append(float(log_e_value(group.masses, group.count(counts.counts[index]))))
    keys = [key for key, _ in _features_of(profile)]
    return _evidence(keys, log_e, log_threshold(1 / alpha), [1.0] * len(keys))


class _Tensor:
    """The e-detectors of one tensor's features."""

    def __init__(self, groups: Sequence[EvidenceGroups]) -> None:
        self._groups = groups
        self._detector = EDetector([each.masses for each in groups]) if groups else None
        width = max((len(each.masses) for each in groups), default=0)
        self._open = np.zeros((len(groups), width))
        self._panes = np.zeros((_PANES, len(groups), width), np.float32)  # the newest, as a ring
        self._seen = 0
        self.effective = [1.0] * len(groups)

    def add(self, counts: TensorCounts) -> None:
        for row, group in enumerate(self._groups):
            self._open[row, : len(group.masses)] += group.count(counts.counts[row])

    def check(self, turn: int | None) -> None:
        """The rows since the last one; dependence is that of the panes before."""
        if self._detector is None:
            return
        if turn is not None and self._seen:
            oldest = self._seen % _PANES if self._seen > _PANES else 0
            in_order = np.roll(np.arange(min(self._seen, _PANES)), -oldest)
            for row in range(turn, len(self._groups), _TURNS):
                width = len(self._groups[row].masses)
                panes = self._panes[in_order, row, :width].astype(np.float64)
                self.effective[row] = 1 / design_effect(panes)
        self._detector.update(self._open * np.array(self.effective)[:, None])
        self._panes[self._seen % _PANES] = self._open
        self._seen += 1
        self._open[:] = 0

    def log_e(self) -> list[float]:
        return [] if self._detector is None else self._detector.log_evidence().tolist()

    def reset(self) -> None:
        self._open[:] = 0
        self._seen = 0
        if self._detector is not None:
            self._detector.reset()


def _evidence(
    keys: Sequence[Key], log_e: Sequence[float], threshold: float, effective: Sequence[float]
) -> Evidence:
    if not keys:
        return Evidence(threshold)
    values = np.array(log_e)
    found = e_bh(values, float(np.exp(-threshold)))
    return Evidence(
        threshold=threshold,
        log_e=MappingProxyType(dict(zip(keys, log_e, strict=True))),
        found=frozenset(keys[index] for index in found),
        overall=global_log_evidence(values),
        effective=MappingProxyType(dict(zip(keys, effective, strict=True))),
    )


@functools.lru_cache(maxsize=16)
def _groups_of(profile: ReferenceProfile) -> tuple[tuple[EvidenceGroups, ...], ...]:
    """Made once per profile: a version may become champion many times."""
    return tuple(
        tuple(evidence_groups(feature) for feature in each.features) for each in profile.tensors
    )


def _features_of(profile: ReferenceProfile) -> Iterator[tuple[Key, object]]:
    for tensor in profile.tensors:
        for feature in tensor.features:
            yield (tensor.role, feature.name), feature
