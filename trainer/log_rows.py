"""The served rows of the traffic log that have a label, in two passes over it.

The first pass reads keys, times and labels only, and gives what a row chooser needs; the second
reads the columns of the rows that were chosen. A row is known by (id, row); in between it goes by a
64-bit hash of those, and labels are joined exactly in the end. So memory holds eight bytes for each
label and whole rows only of what was chosen. The hashes are those of the installed Polars.

A later label replaces an earlier one, and a row that was logged twice counts once, the later one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .columns import compacted
from .errors import DataError
from .log_reader import LogSnapshot
from .recipe import Recipe
from .sampling import row_keys

_KEYS = ["id", "row"]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: neighbours lie far apart
LABEL = "trimtab.label"  # what was told about a row, as it was told


@dataclass
class LogFacts:
    """What the log held, for the report."""

    served: int = 0  # rows with every column of the recipe and old enough
    labels: int = 0  # of the right type; several of one row are several
    rows: dict[str, int] = field(default_factory=dict)  # by file
    duplicates: int = 0  # rows that were taken and were in the log twice


class LabelledLog:
    """The traffic and labels of one model, as they are when it is made."""

    def __init__(self, recipe: Recipe, data: Path, mature_until_ms: int | None) -> None:
        self._recipe = recipe
        self._data = data
        self._mature_until_ms = mature_until_ms
        self._traffic = LogSnapshot(data / "traffic")
        self._labels = LogSnapshot(data / "labels")
        self._value = "number"
        self._known: NDArray[np.uint64] = np.empty(0, np.uint64)  # labelled rows, ascending
        self.facts = LogFacts()
        self.dropped: dict[str, int] = {}

    def close(self) -> None:
        self._traffic.close()
        self._labels.close()

    def read_labels(self, text: bool | None) -> bool:
        """Whether there are any. `text`: whether classes are strings; None: by the labels."""
        found: dict[str, list[NDArray[np.uint64]]] = {"number": [], "text": []}
        rows = 0
        for _, frame in self._labels.frames([*_KEYS, "number", "text"]):
            rows += frame.height
            for name, parts in found.items():
                told = frame.filter(pl.col(name).is_not_null())
                if told.height:
                    parts.append(_hashes(told))
        if text is None:
            text = self._recipe.classification and bool(found["text"])
        self._value = "text" if text else "number"
        parts = found.pop(self._value)
        found.clear()
        self._known = np.concatenate(parts) if parts else self._known
        self.facts.labels = len(self._known)
        if rows > len(self._known):
            self.dropped["labels of the other type"] = rows - len(self._known)
        self._known.sort()
        return rows > 0

    def candidates(
        self,
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]]:
        """Times, keys and places of the labelled rows; places count all rows of the log."""
        columns = [f"in.{name}" for name in self._recipe.features]
        young = older = 0
        place = 0
        for path, frame in self._traffic.frames([*_KEYS, "event_time"], needed=columns):
            name = str(path.relative_to(self._data))
            self.facts.rows[name] = self.facts.rows.get(name, 0) + frame.height
            first, place = place, place + frame.height
            if not set(_KEYS) < set(frame.columns):
                older += frame.height
                continue
            times = frame["event_time"].cast(pl.Int64)
            keep = times.is_not_null().to_numpy()
            if self._mature_until_ms is not None:
                # Labelled or not: those whose labels come early are not like the others.
                is_young = (times > self._mature_until_ms).fill_null(False).to_numpy()
                young += int(is_young.sum())
                keep = keep & ~is_young
            self.facts.served += int(keep.sum())
            hashes = _hashes(frame)
            keep = keep & _are_in(hashes, self._known)
            at = np.flatnonzero(keep)
            keys = row_keys(self._recipe.seed, hashes[at])
            yield times.to_numpy()[at].astype(np.int64), keys, at + first
        if older:
            self.dropped["served rows without a column of the recipe"] = older
        if young:
            self.dropped["served rows younger than label_maturity_s"] = young

    def rows(self, places: NDArray[np.int64], extra: Sequence[pl.Series]) -> pl.DataFrame | None:
        """The rows at these places, ascending, with their labels, and `extra` columns of them."""
        columns = [*_KEYS, "event_time", *(f"in.{name}" for name in self._recipe.features)]
        parts: list[pl.DataFrame] = []
        first = 0
        for _, frame in self._traffic.frames(columns, needed=columns):
            start, stop = np.searchsorted(places, (first, first + frame.height)).tolist()
            if start < stop:
                taken = compacted(frame[places[start:stop] - first])
                parts.append(taken.with_columns(column[start:stop] for column in extra))
            first += frame.height
        served = _joined(parts, "the traffic log")
        if served is None:
            return None
        once = served.unique(_KEYS, keep="last", maintain_order=True)
        self.facts.duplicates = served.height - once.height
        return once.join(self._labels_of(once), on=_KEYS, how="inner", maintain_order="left")

    def _labels_of(self, served: pl.DataFrame) -> pl.DataFrame:
        wanted = np.unique(_hashes(served))
        parts: list[pl.DataFrame] = []
        for _, frame in self._labels.frames([*_KEYS, self._value]):
            # After that: a label of the other type must not take the place of a right one.
            told = frame.filter(pl.col(self._value).is_not_null())
            if told.height:
                parts.append(compacted(told.filter(pl.Series(_are_in(_hashes(told), wanted)))))
        labels = _joined(parts, "the log of labels")
        if labels is None:
            raise DataError("the log of labels changed while it was read")
        latest = labels.unique(_KEYS, keep="last", maintain_order=True)
        return latest.select(*_KEYS, pl.col(self._value).alias(LABEL))


def _hashes(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """Of (id, row)."""
    hashes = frame["id"].cast(pl.String).hash(seed=0).to_numpy()
    rows = frame["row"].cast(pl.UInt64).to_numpy()
    with np.errstate(over="ignore"):
        mixed: NDArray[np.uint64] = hashes ^ ((rows + np.uint64(1)) * _GOLDEN)
    return mixed


def _are_in(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the hashes are among `known`, which ascends."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == hashes
    return found


def _joined(frames: Sequence[pl.DataFrame], origin: str) -> pl.DataFrame | None:
    frames = [frame for frame in frames if frame.height]
    try:
        return pl.concat(frames, how="diagonal_relaxed") if frames else None
    except pl.exceptions.PolarsError as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{origin} has columns that changed their type: {why}") from error
