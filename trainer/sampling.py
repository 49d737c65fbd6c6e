"""Chooses the rows that a model is trained on from a stream of them, in bounded memory.

Only a row's time, key and place go through here, sixteen bytes a row. Rows of the window are either
the newest so many (`rows`) or those of the newest periods (`period_ms`); where the window has more
than may be taken, it is sampled, the same share of every stretch of time. Rows older than the window
may take a part of their own (`history`), the same share of all of them.

What is drawn are the rows with the smallest keys, and a key is a hash of the seed and of what names
the row. So the choice depends on neither the order in which rows come nor how they are batched, a
row that was drawn stays drawn while the share grows, and how many rows each one stands for is known:
its weight. Of rows of one time, the one that comes later in the stream counts as the newer.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

STRATA = 16  # of a period; a window goes back by whole ones
_SLICES = 64  # of a window that goes by rows, where it is sampled
_SLACK = 65_536  # rows beyond which a buffer is looked at
_ALL = 1 << 32  # above every key
_MAX_ROWS = (1 << 32) - 1


@dataclass(frozen=True)
class WindowPolicy:
    """Which rows are wanted. `limit`: rows taken at most, whatever the window."""

    rows: int
    limit: int
    period_ms: int = 0  # 0: the window is the newest `rows`
    periods: int = 4
    history: float = 0.0  # share of the taken rows that are older than the window
    seed: int = 0


@dataclass(frozen=True)
class Stratum:
    """A stretch of time, both ends included: its rows, and those that were taken."""

    from_ms: int
    to_ms: int
    rows: int
    taken: int

    @property
    def weight(self) -> float:
        """Rows that each taken one stands for."""
        return self.rows / self.taken if self.taken else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "time_from_ms": self.from_ms,
            "time_to_ms": self.to_ms,
            "rows": self.rows,
            "taken": self.taken,
            "weight": self.weight,
        }


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen rows' places, ascending, and for each how many rows it stands for."""

    places: NDArray[np.int64]
    weights: NDArray[np.float32]
    window: tuple[Stratum, ...]
    history: Stratum | None

    @property
    def sampled(self) -> bool:
        """Whether a row stands for others than itself."""
        return bool(len(self.weights)) and float(self.weights.max()) > 1.0

    def to_dict(self) -> dict[str, Any]:
        """For the lineage: how much was taken of what."""
        rows, taken = sum(s.rows for s in self.window), sum(s.taken for s in self.window)
        found: dict[str, Any] = {
            "window_rows": rows,
            "window_taken": taken,
            "rate": taken / rows if rows else 1.0,
        }
        if taken < rows:
            found["strata"] = [stratum.to_dict() for stratum in self.window]
        if self.history is not None:
            found["history"] = self.history.to_dict()
        return found


@dataclass(frozen=True, eq=False)
class _Rows:
    times: NDArray[np.int64]
    keys: NDArray[np.uint32]
    places: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.times)

    def where(self, chosen: NDArray[Any]) -> "_Rows":
        return _Rows(self.times[chosen], self.keys[chosen], self.places[chosen])


_NONE = _Rows(np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.uint32))


class _Buffer:
    """Rows as they came, joined when they are looked at."""

    def __init__(self) -> None:
        self._parts: list[_Rows] = []
        self.size = 0

    def add(self, rows: _Rows) -> None:
        if len(rows):
            self._parts.append(rows)
            self.size += len(rows)

    def take(self) -> _Rows:
        """All of them; the buffer is empty then."""
        parts, self._parts, self.size = self._parts, [], 0
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return _NONE
        return _Rows(
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.places for part in parts]),
        )


class _History:
    """The `size` rows with the smallest keys of all that came, and how many those were."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = _Buffer()
        self.rows = 0
        self.first, self.last = 0, 0  # times

    def add(self, rows: _Rows, count: int | None = None) -> None:
        """`count`: how many those were, where some of them were dropped for their keys before."""
        if len(rows):
            first, last = int(rows.times.min()), int(rows.times.max())
            self.first = min(self.first, first) if self.rows else first
            self.last = max(self.last, last) if self.rows else last
        self.rows += len(rows) if count is None else count
        if self._size:
            self._buffer.add(rows)
            if self._buffer.size > 4 * self._size + _SLACK:
                self._buffer.add(_smallest(self._buffer.take(), self._size))

    def taken(self) -> _Rows:
        return _smallest(self._buffer.take(), self._size)


class RowChooser:
    """Takes every row that could be trained on, batch by batch, and then chooses."""

    def __init__(self, policy: WindowPolicy) -> None:
        self._policy = policy
        self._history = _History(round(policy.limit * policy.history))
        self._window = _Newest(policy.rows) if not policy.period_ms else _Periods(policy)

    def add(
        self,
        times: NDArray[np.int64],
        keys: NDArray[np.uint32],
        places: NDArray[np.int64],
    ) -> None:
        """Times in ms, keys as `row_keys` makes them; a place is the row's number in the stream."""
        if len(places) and int(places[-1]) > _MAX_ROWS:
            raise DataError(f"there are more than {_MAX_ROWS:,} rows: give fewer files")
        for older, count in self._window.add(_Rows(times, keys, places.astype(np.uint32))):
            self._history.add(older, count)

    @property
    def kept(self) -> int:
        """Rows that are in memory, but for those of the history."""
        return self._window.kept

    def choose(self) -> Choice:
        """To be called once."""
        for older, count in self._window.close():
            self._history.add(older, count)
        old = self._history.taken()
        rows, strata, counts = self._window.strata()
        # Without a history that is large enough, its part goes to the window.
        wanted = allotted(counts, self._policy.limit - len(old))
        taken: list[_Rows] = []
        told: list[Stratum] = []
        weights: list[NDArray[np.float32]] = []
        for number, count in enumerate(counts):
            inside = rows.where(strata == number)
            first, last = int(inside.times.min()), int(inside.times.max())
            drawn = _smallest(inside, wanted[number])
            told.append(Stratum(first, last, count, len(drawn)))
            taken.append(drawn)
            weights.append(np.full(len(drawn), told[-1].weight, np.float32))
        history = None
        if len(old):
            history = Stratum(self._history.first, self._history.last, self._history.rows, len(old))
            taken.append(old)
            weights.append(np.full(len(old), history.weight, np.float32))
        places = np.concatenate([part.places for part in taken] or [_NONE.places]).astype(np.int64)
        order = np.argsort(places)
        weight = np.concatenate(weights or [np.empty(0, np.float32)])
        return Choice(places[order], weight[order], tuple(told), history)


class _Newest:
    """The newest rows; of those of one time, the ones that came last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = _Buffer()

    @property
    def kept(self) -> int:
        return self._buffer.size

    def add(self, rows: _Rows) -> Iterator[tuple[_Rows, int]]:
        """Gives the rows that are too old for the window, and how many they are."""
        self._buffer.add(rows)
        if self._buffer.size > self._size + max(_SLACK, self._size // 4):
            yield from self.close()

    def close(self) -> Iterator[tuple[_Rows, int]]:
        rows = self._buffer.take()
        if len(rows) > self._size:
            newer = self._newest(rows)
            older = rows.where(~newer)
            yield older, len(older)
            rows = rows.where(newer)
        self._buffer.add(rows)

    def strata(self) -> tuple[_Rows, NDArray[np.int64], list[int]]:
        """Slices of about equally many rows, in the order of time."""
        rows = self._buffer.take()
        if not len(rows):
            return rows, np.empty(0, np.int64), []
        rows = rows.where(np.lexsort((rows.places, rows.times)))
        slices = min(_SLICES, len(rows))
        number = np.arange(len(rows), dtype=np.int64) * slices // len(rows)
        return rows, number, np.bincount(number, minlength=slices).tolist()

    def _newest(self, rows: _Rows) -> NDArray[np.bool_]:
        cut = np.partition(rows.times, len(rows) - self._size)[len(rows) - self._size]
        newer: NDArray[np.bool_] = rows.times > cut
        tied = np.flatnonzero(rows.times == cut)
        missing = self._size - int(newer.sum())
        newer[tied[np.argsort(rows.places[tied])[len(tied) - missing :]]] = True
        return newer


class _Periods:
    """The rows of the newest periods, each of which keeps those with the smallest keys."""

    def __init__(self, policy: WindowPolicy) -> None:
        self._grid_ms = max(1, policy.period_ms // STRATA)
        self._strata = STRATA * policy.periods
        self._most = 2 * policy.limit + _SLACK  # rows that a period keeps
        self._buckets: dict[int, _Buffer] = {}
        self._below: dict[int, int] = {}  # the keys that a period still takes
        self._counts: dict[int, int] = {}  # rows by stratum

    @property
    def kept(self) -> int:
        return sum(bucket.size for bucket in self._buckets.values())

    def add(self, rows: _Rows) -> Iterator[tuple[_Rows, int]]:
        """Gives the rows that are too old for the window, and how many they were."""
        stratum = rows.times // self._grid_ms
        numbers, counts = np.unique(stratum, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._counts[number] = self._counts.get(number, 0) + count
        period = stratum // STRATA
        for number in np.unique(period).tolist():
            inside = rows.where(period == number)
            bucket = self._buckets.setdefault(number, _Buffer())
            bucket.add(inside.where(inside.keys < self._below.setdefault(number, _ALL)))
            while bucket.size > self._most:
                self._below[number] //= 2
                kept = bucket.take()
                bucket.add(kept.where(kept.keys < self._below[number]))
        yield from self._leave()

    def close(self) -> Iterator[tuple[_Rows, int]]:
        """Gives what of the oldest period is too old."""
        yield from self._leave()
        for number, bucket in self._buckets.items():
            first = self._first()
            if number * STRATA < first:
                rows = bucket.take()
                old = rows.times // self._grid_ms < first
                bucket.add(rows.where(~old))
                yield rows.where(old), self._forget(number * STRATA, first)

    def strata(self) -> tuple[_Rows, NDArray[np.int64], list[int]]:
        joined = _Buffer()
        for bucket in self._buckets.values():
            joined.add(bucket.take())
        rows = joined.take()
        numbers = sorted(self._counts)
        where = np.searchsorted(np.array(numbers, np.int64), rows.times // self._grid_ms)
        there = np.bincount(where, minlength=len(numbers)) if numbers else np.empty(0, np.int64)
        # One whose rows all have large keys stands empty; its neighbour's take their place.
        counts: list[int] = []
        renumbered = np.zeros(len(numbers), np.int64)
        waiting = 0
        for at, number in enumerate(numbers):
            if there[at]:
                renumbered[at] = len(counts)
                counts.append(self._counts[number] + waiting)
                waiting = 0
            else:
                waiting += self._counts[number]
        if waiting and counts:
            counts[-1] += waiting
        return rows, renumbered[where], counts

    def _first(self) -> int:
        """The oldest stratum of the window."""
        return max(self._counts, default=0) - self._strata + 1

    def _leave(self) -> Iterator[tuple[_Rows, int]]:
        """Periods that ended before the window."""
        first = self._first()
        for number in [n for n in self._buckets if (n + 1) * STRATA <= first]:
            rows = self._buckets.pop(number).take()
            self._below.pop(number)
            yield rows, self._forget(number * STRATA, (number + 1) * STRATA)

    def _forget(self, start: int, stop: int) -> int:
        return sum(self._counts.pop(number, 0) for number in range(start, stop))


def row_keys(seed: int, hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """What is drawn by: evenly spread over 32 bits, of the seed and a number that names the row."""
    with np.errstate(over="ignore"):
        mixed = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def allotted(counts: list[int], total: int) -> list[int]:
    """`total` spread over the strata by their rows, whole numbers, none beyond its rows."""
    rows = sum(counts)
    if rows <= total:
        return list(counts)
    upto = [0, *(count * total // rows for count in itertools.accumulate(counts))]
    return [stop - start for start, stop in itertools.pairwise(upto)]


def _smallest(rows: _Rows, size: int) -> _Rows:
    """The rows with the smallest keys; of those of one key, the ones that came first."""
    if len(rows) <= size:
        return rows
    if not size:
        return _NONE
    cut = np.partition(rows.keys, size - 1)[size - 1]
    below = rows.keys < cut
    tied = np.flatnonzero(rows.keys == cut)
    missing = size - int(below.sum())
    below[tied[np.argsort(rows.places[tied])[:missing]]] = True
    return rows.where(below)
