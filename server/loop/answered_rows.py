"""Answers of versions that answer in one form, and what is known of their labels.

The answers are in a native table, in which a label finds its row (`AnswerTap` puts them there, on an
executor's thread). Beside it are arrays with a place for each of the table's, made as the first
label comes: the label of a row, its loss, the pane of a window that the loss is in. Rows whose
labels are to mature wait here, and here is noticed that labels are all of one class. All but the tap
is the control loop's.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native.losses import ABSOLUTE_ERROR, ERROR, LOG_LOSS
from trimtab._native.prediction_table import PredictionTable
from trimtab.registry.manifest import Signature

from ..config import LabelsConfig
from ..inference.observation import ObservedBatch
from ..inference.tensor import BYTES
from ..logs.label_log import Label
from ..rollout.loss import Loss

_LATEST = 1_000  # answers that tell what the model expects
_EXPECTED = 10.0  # labels of other classes: none of them by chance has a probability of 1 in 20,000
_MAX_PARTS = 64  # of the rows that wait
_METRICS = {"absolute error": ABSOLUTE_ERROR, "log loss": LOG_LOSS, "wrong labels": ERROR}


class AnswerTap:
    """Remembers what one version answers; called on its executor's thread."""

    def __init__(self, version: int, loss: Loss, table: PredictionTable) -> None:
        self.version = version
        self.answered = 0
        self._loss = loss
        self._table = table

    def __call__(self, batch: ObservedBatch) -> None:
        answers = self._loss.answers(batch.outputs, batch.rows)
        if answers is None or not batch.rows:
            return
        calls = batch.calls
        self.answered += self._table.put(
            calls.ids,
            calls.id_ends,
            calls.rows,
            calls.event_time_ms,
            calls.received_ms,
            batch.version,
            np.ascontiguousarray(answers, self._loss.dtype),
        )


class AnsweredRows:
    """See the module. Those of one form of answer."""

    def __init__(self, signature: Signature, loss: Loss, config: LabelsConfig) -> None:
        self.outputs = signature.outputs
        self.loss = loss
        self.metric = _METRICS[loss.name]
        one = 24 + 32 + 32 + loss.width * np.dtype(loss.dtype).itemsize  # row, index, label, answer
        self.capacity = max(1_000, min(config.remember_rows, config.remember_mb * 2**20 // one))
        self.table = PredictionTable(
            self.capacity, loss.width, loss.dtype, keep=config.remember_share
        )
        self.takes_text = _takes_text(signature, self.metric)
        self._sequence: NDArray[np.int64] | None = None  # of the row at that place, plus 1
        self.losses: NDArray[np.float64]
        self.truth: NDArray[np.int64]
        self.pane: NDArray[np.int64]  # id of the window's pane, -1: in none
        self._young: list[tuple[NDArray[Any], ...]] = []  # ready_ms, sequence, version, loss
        self.young_rows = 0
        self._run: int | None = None  # the class of the newest labels
        self._run_label: Label | None = None
        self._run_checked = 0  # its length when it was last held against the model's answers
        self.run_rows = 0
        self.one_sided = False

    def __repr__(self) -> str:
        return f"<{self.metric}, {self.table!r}>"

    def find(self, labels: Sequence[Label]) -> tuple[NDArray[Any], ...]:
        ids = [label.id.encode() for label in labels]
        ends = np.cumsum([len(each) for each in ids], dtype=np.int64).astype(np.int32)
        rows = np.fromiter((label.row for label in labels), np.int64, len(labels))
        return self.table.get(b"".join(ids), ends, rows)

    def right_type(self, labels: Sequence[Label]) -> NDArray[np.bool_]:
        if self.takes_text is None:
            return np.ones(len(labels), np.bool_)
        wanted = self.takes_text
        right = ((label.number is None) == wanted for label in labels)
        return np.fromiter(right, np.bool_, len(labels))

    def earlier(self, sequence: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows have a label."""
        if self._sequence is None:
            self._sequence = np.zeros(self.capacity, np.int64)
            self.losses = np.empty(self.capacity)
            self.truth = np.empty(self.capacity, np.int64)
            self.pane = np.empty(self.capacity, np.int64)
        return np.asarray(self._sequence[sequence % self.capacity] == sequence + 1, np.bool_)

    def enter(
        self,
        sequence: NDArray[np.int64],
        truth: NDArray[np.int64],
        losses: NDArray[np.float64],
    ) -> None:
        assert self._sequence is not None
        at = sequence % self.capacity
        self._sequence[at] = sequence + 1
        self.truth[at], self.losses[at], self.pane[at] = truth, losses, -1

    def note_panes(self, sequence: NDArray[np.int64], panes: NDArray[np.int64]) -> None:
        there = self.earlier(sequence)
        self.pane[sequence[there] % self.capacity] = panes[there]

    def wait(self, *young: NDArray[Any]) -> None:
        """Rows whose labels are to mature; of more than the table has the oldest are let go."""
        if len(young[0]):
            self._young.append(young)
            self.young_rows += len(young[0])
        if len(self._young) > _MAX_PARTS or self.young_rows > self.capacity:
            joined = self._sorted_young()
            self._young = [tuple(column[-self.capacity :] for column in joined)]
            self.young_rows = len(self._young[0][0])

    def ready(
        self, now_ms: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Sequence, version and loss of the rows that have matured, as corrected meanwhile."""
        if not any(int(young[0].min()) <= now_ms for young in self._young):
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        ready_ms, sequence, version, losses = self._sorted_young()
        count = int(np.searchsorted(ready_ms, now_ms, "right"))
        rest = tuple(column[count:] for column in (ready_ms, sequence, version, losses))
        self._young = [rest] if len(rest[0]) else []
        self.young_rows = len(rest[0])
        sequence, losses = sequence[:count], losses[:count].copy()
        there = self.earlier(sequence)
        losses[there] = self.losses[sequence[there] % self.capacity]
        return sequence, version[:count], losses

    def _sorted_young(self) -> tuple[NDArray[Any], ...]:
        columns = [np.concatenate(column) for column in zip(*self._young, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return tuple(column[order] for column in columns)

    def follow_run(self, truth: NDArray[np.int64], newest: Label) -> None:
        """How many of the newest labels are of one class."""
        if self.metric == ABSOLUTE_ERROR:
            return
        changes = np.flatnonzero(truth[1:] != truth[:-1])
        if len(changes):
            self.run_rows = len(truth) - int(changes[-1]) - 1
        elif int(truth[0]) == self._run:
            self.run_rows += len(truth)
        else:
            self.run_rows = len(truth)
        self._run, self._run_label = int(truth[-1]), newest

    def run_name(self) -> str:
        label = self._run_label
        assert label is not None
        return repr(label.text) if label.number is None else f"{label.number:g}"

    def is_one_sided(self, min_rows: int) -> bool:
        """Whether the run is longer than the model's own answers let one expect."""
        if self._run_label is None or self.run_rows < min_rows:
            return False
        if self._run_checked <= self.run_rows < 1.1 * self._run_checked:
            return self.one_sided  # a thousand labels are not held against answers for each new one
        self._run_checked = self.run_rows
        _, answers = self.table.latest(_LATEST)
        losses = self.loss.of(answers, [self._run_label] * len(answers))
        others = losses if self.metric == ERROR else 1 - np.exp(-losses)
        return bool(np.mean(others) * self.run_rows >= _EXPECTED)


def _takes_text(signature: Signature, metric: str) -> bool | None:
    """Whether labels are texts; None: either will do."""
    if metric == ABSOLUTE_ERROR:
        return False
    singles = [
        spec
        for spec in signature.outputs
        if len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] == 1)
    ]
    if any(spec.datatype == BYTES for spec in singles):
        return True
    return False if any("INT" in spec.datatype for spec in singles) else None


def truths(labels: Sequence[Label]) -> NDArray[np.int64]:
    """A number for each label, equal where labels are."""
    return np.fromiter(
        (
            hash(each.text)
            if each.number is None
            else struct.unpack("<q", struct.pack("<d", each.number + 0.0))[0]
            for each in labels
        ),
        np.int64,
        len(labels),
    )
