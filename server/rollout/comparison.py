"""What is known of two versions that computed the same rows.

`version` is the newer one, which is judged, `against` the one that it is held against; which of
them answered does not matter here. A request fails on a version if the run does, or if a number of
its answer is not finite. Outputs are compared on the rows that neither failed on.

All counts are of rows or requests, so that they are the same however rows were batched; compute
times are of single runs, both versions on the same batch. The mirror's thread adds, handlers label
and the control loop asks, under one lock that no executor ever takes.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trimtab._native.reference import ReferenceProfile
from trimtab.registry.manifest import Signature

from ..inference import batch as rows_of
from ..inference.observation import ObservedCalls
from ..inference.tensor import Tensor
from ..logs.label_log import Label
from .loss import loss_of
from .output_pair import OutputFigures, OutputPair
from .paired_losses import LabelFigures, PairedLosses

Tensors = Mapping[str, Tensor]

_MAX_PAIRS = 4096  # compute times that are kept
_Z = 4.0  # of the median's bounds: once in 30,000 by chance


@dataclass(frozen=True, slots=True)
class Latency:
    """Compute time of `version` beside `against`, medians over the batches that both ran."""

    runs: int = 0
    ratio: float = math.nan
    ratio_low: float = math.nan  # what it is at least
    more_ms: float = math.nan  # per run
    more_ms_low: float = math.nan


@dataclass(frozen=True, slots=True)
class Figures:
    """All of a comparison at a moment."""

    rows: int = 0  # that both computed
    answered: int = 0  # of them: by `version`
    requests: int = 0  # that both were given
    failed_version: int = 0  # requests
    failed_against: int = 0
    failed_both: int = 0
    latency: Latency = field(default_factory=Latency)
    outputs: tuple[OutputFigures, ...] = ()
    labels: LabelFigures = field(default_factory=LabelFigures)

    @property
    def agreement(self) -> float:
        """Of the output that agrees least."""
        return min((each.agreement for each in self.outputs if each.rows), default=math.nan)

    @property
    def worst(self) -> OutputFigures:
        """The output whose distributions differ most."""
        known = [each for each in self.outputs if each.rows]
        return max(known, key=lambda each: (each.psi_low, each.psi), default=OutputFigures(""))


class Comparison:
    """See the module."""

    def __init__(
        self,
        version: Signature,
        against: Signature,
        reference: ReferenceProfile | None,
        *,
        tolerance: float,
        capacity: int,
    ) -> None:
        """`reference`: of the outputs; `capacity`: rows that labels are waited for at least."""
        self._lock = threading.Lock()  # guards every field below
        theirs = {spec.name: spec for spec in against.outputs}
        self._outputs = [
            OutputPair(spec, reference, tolerance)
            for spec in version.outputs
            if spec.name in theirs and spec.datatype == theirs[spec.name].datatype
        ]
        self._losses: PairedLosses | None = None
        losses = loss_of(version), loss_of(against)
        if losses[0] is not None and losses[1] is not None and losses[0].name == losses[1].name:
            self._losses = PairedLosses(losses[0], losses[1], capacity)
        self._rows = self._answered = self._requests = 0
        self._failed = [0, 0, 0]  # version, against, both
        self._times: list[tuple[int, int]] = []

    def add(
        self,
        calls: ObservedCalls | Sequence[int],
        version: Tensors | None,
        against: Tensors | None,
        *,
        answered: bool,
    ) -> None:
        """What both answered to these calls; None: the run failed. `calls` without ids: their rows.

        `answered`: the callers got `version`'s answer.
        """
        each = calls.rows if isinstance(calls, ObservedCalls) else np.asarray(calls, np.int64)
        rows = int(each.sum())
        failed = [_failed(outputs, each) for outputs in (version, against)]
        with self._lock:
            self._rows += rows
            self._answered += rows * answered
            self._requests += len(each)
            for side, mask in enumerate((*failed, failed[0] & failed[1])):
                self._failed[side] += int(mask.sum())
            if version is None or against is None:
                return
            good = ~(failed[0] | failed[1])
            if not good.all():
                calls, rows = _chosen(calls, each, good), int(each[good].sum())
                version, against = (_rows_of(side, each, good) for side in (version, against))
            if not rows:
                return
            for output in self._outputs:
                if output.name in version and output.name in against:
                    output.add(version[output.name], against[output.name], rows)
            if self._losses is not None and isinstance(calls, ObservedCalls):
                self._losses.add(calls, version, against, rows)

    def add_times(self, version_ns: int, against_ns: int) -> None:
        """How long both computed the same batch."""
        with self._lock:
            if len(self._times) < _MAX_PAIRS:
                self._times.append((max(version_ns, 1), max(against_ns, 1)))

    def label(self, labels: Sequence[Label]) -> None:
        """Labels became known, of whatever rows."""
        with self._lock:
            if self._losses is not None:
                self._losses.label(labels)

    def figures(self) -> Figures:
        """As of now. Whoever asks has taken a look: see paired_losses.py on blocks."""
        with self._lock:
            losses = self._losses
            figures = Figures(
                rows=self._rows,
                answered=self._answered,
                requests=self._requests,
                failed_version=self._failed[0],
                failed_against=self._failed[1],
                failed_both=self._failed[2],
                latency=_latency(self._times),
                outputs=tuple(output.figures() for output in self._outputs),
                labels=LabelFigures() if losses is None else losses.figures(),
            )
            if losses is not None:
                losses.next_block()
            return figures


def _failed(outputs: Tensors | None, calls: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which calls have no answer, or one that is not finite."""
    if outputs is None:
        return np.ones(len(calls), np.bool_)
    failed = np.zeros(len(calls), np.bool_)
    rows = int(calls.sum())
    for tensor in outputs.values():
        if isinstance(tensor.data, bytes) or tensor.data.dtype.kind != "f":
            continue
        if np.isfinite(tensor.data).all():
            continue
        if not tensor.shape or tensor.shape[0] != rows:
            failed[:] = True  # of which call it is cannot be told
            continue
        bad = ~np.isfinite(tensor.data).reshape(rows, -1).all(axis=1)
        failed |= np.bincount(np.repeat(np.arange(len(calls)), calls), bad, len(calls)) > 0
    return failed


def _chosen(
    calls: ObservedCalls | Sequence[int], rows: NDArray[np.int64], good: NDArray[np.bool_]
) -> ObservedCalls | Sequence[int]:
    if not isinstance(calls, ObservedCalls):
        return list(map(int, rows[good]))
    bounds = [0, *calls.id_ends.tolist()]
    ids = [calls.ids[a:b] for (a, b), keep in zip(pairwise(bounds), good, strict=True) if keep]
    return ObservedCalls(
        b"".join(ids),
        np.cumsum([len(each) for each in ids], dtype=np.int32),
        calls.rows[good],
        calls.event_time_ms[good],
        calls.received_ms[good],
    )


def _rows_of(outputs: Tensors, calls: NDArray[np.int64], good: NDArray[np.bool_]) -> Tensors:
    """The tensors' rows of some calls; those without a row each are left out."""
    rows = int(calls.sum())
    tensors = {k: t for k, t in outputs.items() if t.shape and t.shape[0] == rows}
    parts = rows_of.split(tensors, calls.tolist())
    kept = [part for part, keep in zip(parts, good, strict=True) if keep]
    return rows_of.join(kept) if kept else {}


def _latency(times: Sequence[tuple[int, int]]) -> Latency:
    if not times:
        return Latency()
    version, against = np.array(times, np.float64).T
    ratio, ratio_low = _median(version / against)
    more, more_low = _median((version - against) / 1e6)
    return Latency(len(times), ratio, ratio_low, more, more_low)


def _median(values: NDArray[np.float64]) -> tuple[float, float]:
    """The median and its lower bound, by order statistics; -inf of too few values."""
    ordered = np.sort(values)
    rank = math.floor(len(ordered) / 2 - _Z * math.sqrt(len(ordered)) / 2)
    return float(np.median(ordered)), float(ordered[rank]) if rank >= 0 else -math.inf
