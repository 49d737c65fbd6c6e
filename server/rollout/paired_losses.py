"""Both versions' losses on the rows whose labels came, paired row by row.

A row is kept with what both answered until it is forgotten; a label finds it by its key. Rows are
kept in two halves: as one is full the other is forgotten as a whole, so memory is bounded and no
row costs anything by itself. What was labelled by then stays counted. Labels that come before their
row was compared are kept for it, the latest `_MAX_EARLY` of them. A later label of a row replaces
the earlier one.

The interval around the mean difference takes rows for alike that are: those of one request, and
those that were compared between two looks (`next_block`). Of the two standard errors over such
clusters the larger one holds (Cameron and Miller, Journal of Human Resources 50, 2015, for the
formula). Not thread-safe by itself.

A loss has no upper limit, and one label that is not of this world (1e30 for 10) would be all that the
means show. So a loss counts for ten times what 99 of 100 of the earlier version's losses stay below at
most.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inference.observation import ObservedCalls
from ..inference.tensor import Tensor
from ..logs.label_log import Label
from . import row_keys
from .loss import Loss

MAX_BYTES = 64 * 1024 * 1024  # of the answers that are kept
_MAX_EARLY = 50_000
_MIN_BLOCKS = 10  # fewer say nothing about how much they differ
_MAX_BLOCKS = 4096
_Z_95 = 1.959964
_USUAL, _LARGEST = 0.99, 10.0  # see the module
_ENOUGH = 100  # losses that tell what is usual


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """Mean losses on the labelled rows, and how much the newer version's is the lower."""

    metric: str = ""  # empty: no label can be held against what the model answers
    rows: int = 0
    version: float = math.nan
    against: float = math.nan
    improvement: float = math.nan  # against less version: positive is better
    error: float = math.nan  # its standard error
    forgotten: int = 0  # rows whose label can no longer come

    @property
    def low(self) -> float:
        """Of the 95 % interval."""
        return self.improvement - _Z_95 * self.error

    @property
    def high(self) -> float:
        return self.improvement + _Z_95 * self.error


class PairedLosses:
    """See the module."""

    def __init__(self, version: Loss, against: Loss, capacity: int) -> None:
        """`capacity`: rows that are kept at least, if MAX_BYTES allows it."""
        self._losses = (version, against)
        width = sum(loss.width * np.dtype(loss.dtype).itemsize for loss in self._losses)
        self._half = max(1024, min(capacity, MAX_BYTES // (2 * width)))
        self._halves = [_Rows(self._half, self._losses)]
        self._sums = _Sums()  # of forgotten halves
        self._calls = 0
        self._block = 0
        self._forgotten = 0
        self._early: dict[int, Label] = {}

    def next_block(self) -> None:
        """A look was taken: rows that come from now on are of another block."""
        newest = self._halves[-1]
        if newest.count and newest.block[newest.count - 1] == self._block:
            self._block = min(self._block + 1, _MAX_BLOCKS - 1)

    def add(
        self,
        calls: ObservedCalls,
        version: Mapping[str, Tensor],
        against: Mapping[str, Tensor],
        rows: int,
    ) -> None:
        """What both answered to the rows of these calls."""
        answers = [
            loss.answers(outputs, rows)
            for loss, outputs in zip(self._losses, (version, against), strict=True)
        ]
        if answers[0] is None or answers[1] is None or int(calls.rows.sum()) != rows:
            return
        keys = row_keys.of_calls(calls.ids, calls.id_ends, calls.rows)
        call = np.repeat(np.arange(self._calls, self._calls + len(calls)), calls.rows)
        self._calls += len(calls)
        done = 0
        while done < rows:
            newest = self._halves[-1]
            room = self._half - newest.count
            if not room:
                self._halves.append(_Rows(self._half, self._losses))
                if len(self._halves) > 2:
                    oldest = self._halves.pop(0)
                    self._forgotten += oldest.count - oldest.labelled
                    self._sums.add(oldest, self._limit())
                continue
            part = slice(done, done + room)
            newest.add(keys[part], answers[0][part], answers[1][part], call[part], self._block)
            done += room
        if self._early:
            wanted = self._early.keys() & set(keys.tolist())
            found = [(key, self._early.pop(key)) for key in keys.tolist() if key in wanted]
            if found:
                self._label([key for key, _ in found], [label for _, label in found])

    def label(self, labels: Sequence[Label]) -> None:
        """Labels came; those of other rows are let be."""
        keys = row_keys.of_rows([each.id for each in labels], [each.row for each in labels])
        self._label(keys.tolist(), labels)

    def figures(self) -> LabelFigures:
        sums = self._sums.copy()
        limit = self._limit()
        for half in self._halves:
            sums.add(half, limit)
        metric = self._losses[1].name
        if not sums.rows:
            return LabelFigures(metric, forgotten=self._forgotten)
        mean = sums.difference / sums.rows
        return LabelFigures(
            metric=metric,
            rows=sums.rows,
            version=sums.version / sums.rows,
            against=sums.against / sums.rows,
            improvement=mean,
            error=max(sums.by_call.error(mean), sums.block_error(mean)),
            forgotten=self._forgotten,
        )

    def _limit(self) -> float:
        """Of a loss, from those of the earlier version that are kept."""
        kept = np.concatenate([half.loss[1, : half.count] for half in self._halves])
        known = kept[~np.isnan(kept)]
        if len(known) < _ENOUGH:
            return math.inf
        # `lower`: of a hundred losses the quantile is not the largest one.
        usual = float(np.quantile(known, _USUAL, method="lower"))
        return _LARGEST * usual if usual > 0 else math.inf

    def _label(self, keys: Sequence[int], labels: Sequence[Label]) -> None:
        latest = dict(zip(keys, labels, strict=True))
        for half in self._halves:
            found = latest.keys() & half.places.keys()
            if found:
                chosen = [key for key in latest if key in found]
                places = np.array([half.places[key] for key in chosen], np.intp)
                half.label(places, [latest.pop(key) for key in chosen], self._losses)
        for key, label in latest.items():
            self._early[key] = label
        excess = max(0, len(self._early) - _MAX_EARLY)
        for key in list(itertools.islice(self._early, excess)):
            del self._early[key]


class _Rows:
    """A half: rows in the order in which they were compared."""

    def __init__(self, capacity: int, losses: Sequence[Loss]) -> None:
        self.count = 0
        self.places: dict[int, int] = {}  # by key
        self.answers = [np.empty((capacity, loss.width), loss.dtype) for loss in losses]
        self.call = np.empty(capacity, np.int64)
        self.block = np.empty(capacity, np.int64)
        self.loss = np.full((2, capacity), math.nan)  # NaN: no label yet

    @property
    def labelled(self) -> int:
        return int((~np.isnan(self.loss[0, : self.count])).sum())

    def add(
        self,
        keys: NDArray[np.uint64],
        version: NDArray[Any],
        against: NDArray[Any],
        call: NDArray[np.int64],
        block: int,
    ) -> None:
        start, end = self.count, self.count + len(keys)
        self.places.update(zip(keys.tolist(), range(start, end), strict=True))
        self.answers[0][start:end] = version
        self.answers[1][start:end] = against
        self.call[start:end] = call
        self.block[start:end] = block
        self.count = end

    def label(
        self, places: NDArray[np.intp], labels: Sequence[Label], losses: Sequence[Loss]
    ) -> None:
        found = np.stack(
            [loss.of(self.answers[side][places], labels) for side, loss in enumerate(losses)]
        )
        found[:, np.isnan(found).any(axis=0)] = math.nan
        self.loss[:, places] = found


class _Clusters:
    """Of groups of alike rows: Σ of squared sums, of size times sum, of squared sizes."""

    def __init__(self) -> None:
        self.squares = self.crossed = self.sizes = 0.0
        self.rows = self.number = 0

    def add(self, cluster: NDArray[np.int64], difference: NDArray[np.float64]) -> None:
        _, index = np.unique(cluster, return_inverse=True)
        sums, sizes = np.bincount(index, difference), np.bincount(index).astype(np.float64)
        self.squares += float(sums @ sums)
        self.crossed += float(sums @ sizes)
        self.sizes += float(sizes @ sizes)
        self.rows += len(cluster)
        self.number += len(sums)

    def error(self, mean: float) -> float:
        """The standard error of the mean, of rows that are alike within each cluster."""
        if self.number < 2:
            return math.inf
        spread = self.squares - 2 * mean * self.crossed + mean * mean * self.sizes
        spread *= self.number / (self.number - 1)
        return math.sqrt(max(spread, 0.0)) / self.rows


class _Sums:
    """What is known of labelled rows whether or not they are kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.version = self.against = self.difference = 0.0
        self.by_call = _Clusters()
        self.block_sums = np.zeros(_MAX_BLOCKS)
        self.block_sizes = np.zeros(_MAX_BLOCKS)

    def copy(self) -> "_Sums":
        other = _Sums()
        other.rows, other.difference = self.rows, self.difference
        other.version, other.against = self.version, self.against
        other.by_call.__dict__.update(vars(self.by_call))
        other.block_sums = self.block_sums.copy()
        other.block_sizes = self.block_sizes.copy()
        return other

    def add(self, half: _Rows, limit: float) -> None:
        known = np.flatnonzero(~np.isnan(half.loss[0, : half.count]))
        if not len(known):
            return
        version, against = np.minimum(half.loss[:, known], limit)
        difference = against - version
        self.rows += len(known)
        self.version += float(version.sum())
        self.against += float(against.sum())
        self.difference += float(difference.sum())
        self.by_call.add(half.call[known], difference)
        self.block_sums += np.bincount(half.block[known], difference, _MAX_BLOCKS)
        self.block_sizes += np.bincount(half.block[known], minlength=_MAX_BLOCKS)

    def block_error(self, mean: float) -> float:
        """As the clusters' error; 0 while there are too few blocks to tell."""
        there = np.flatnonzero(self.block_sizes)
        if len(there) < _MIN_BLOCKS:
            return 0.0
        spread = float(((self.block_sums[there] - mean * self.block_sizes[there]) ** 2).sum())
        return math.sqrt(spread * len(there) / (len(there) - 1)) / self.rows
