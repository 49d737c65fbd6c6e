"""Counts two files for `trimtab drift-check`: the profile of one, and the other over its bins.

The reference is a file of rows or the profile of a version; the current rows are counted by the same
native histograms as live ones. Both are read in batches, so memory depends on the columns and on
how many different categories they have, not on the rows: quantiles are found in passes
(order_statistics.py), and a batch's counts are added to those of the batches before. What comes out
are three small files (`Found.save`); judging them is the server side's affair.

A column that is missing from the current file, or of another kind there, is a fault of that column:
its rows count as missing and the others are compared. A reference that cannot be used at all, or a
file without rows, is a DataError.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.histogram import CategoryHistogram, NumericHistogram
from trimtab._native.live_counts import LiveCounts
from trimtab._native.reference import (
    CategoricalFeature,
    Feature,
    NumericFeature,
    ReferenceFormatError,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)

from .columns import require_column
from .data_file import DataFile, Kind, kind_of
from .errors import DataError
from .order_statistics import QuantileEdges

MAX_CATEGORIES = (
    1_000_000  # different values of one column that are counted; more are no categories
)
_NOUNS = {"numeric": "numbers", "categorical": "text"}

Tell = Callable[[float, str], None]
"""Takes the share that is done and what comes next."""


@dataclass(frozen=True)
class CountRequest:
    """What to compare. `reference` may also be a reference.npz, or a directory that has one."""

    reference: Path
    current: Path
    columns: tuple[str, ...] = ()  # none: all that can be compared
    bins: int = 64


@dataclass(frozen=True)
class Fault:
    """A column that cannot be compared with its reference, and why."""

    role: str
    feature: str
    reason: str


@dataclass(frozen=True, eq=False)
class Found:
    """The two sides as counts, and what there is to say about their columns."""

    reference: ReferenceProfile
    current: LiveCounts
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, directory: Path) -> None:
        """Writes reference.npz, current.npz and notes.json; OSError."""
        self.reference.save(directory / "reference.npz")
        self.current.save(directory / "current.npz")
        told = {"faults": [vars(fault) for fault in self.faults], "notes": list(self.notes)}
        (directory / "notes.json").write_text(json.dumps(told, ensure_ascii=False) + "\n")


def count(request: CountRequest, tell: Tell = lambda done, message: None) -> Found:
    """Reads both files and counts them; DataError, OSError."""
    profile_path = _profile_path(request.reference)
    notes: list[str] = []
    if profile_path is None:
        file = DataFile(request.reference)
        current = DataFile(request.current, _text_columns(file))
        if current.typed and not file.typed:
            file = DataFile(request.reference, _text_columns(current))
        reference = _count_reference(request, file, current, notes, tell)
    else:
        try:
            reference = ReferenceProfile.load(profile_path)
        except ReferenceFormatError as error:
            raise DataError(str(error)) from error
        current = DataFile(request.current, _categories_of(reference))
        reference = _chosen(request, reference, current, notes)
    tell(0.8, f"counting {request.current}")
    live, faults = _count_current(reference, current)
    return Found(reference, live, tuple(faults), tuple(notes))


def _profile_path(path: Path) -> Path | None:
    """Where the profile is; None: the reference is a file of rows."""
    if path.is_dir():
        if not (path / "reference.npz").is_file():
            raise DataError(f"{path}: a directory without a reference.npz")
        return path / "reference.npz"
    return path if path.name.endswith(".npz") else None


def _text_columns(file: DataFile) -> list[str]:
    return [name for name, dtype in file.schema.items() if kind_of(dtype) == "categorical"]


def _categories_of(profile: ReferenceProfile) -> list[str]:
    return [
        column
        for tensor in profile.tensors
        for feature in tensor.features
        if isinstance(feature, CategoricalFeature)
        for column in _names(tensor.role, feature.name)
    ]


def _names(role: str, feature: str) -> tuple[str, ...]:
    """Under which names a file may have a feature: its own, or that of the traffic log.

    An output's own name is often that of the target, which is another thing than what was answered.
    """
    return (feature, f"in.{feature}") if role == "input" else (f"out.{feature}",)


# The reference


def _count_reference(
    request: CountRequest, file: DataFile, current: DataFile, notes: list[str], tell: Tell
) -> ReferenceProfile:
    kinds = _kinds(request, file, current, notes)
    numeric = [name for name, kind in kinds.items() if kind == "numeric"]
    categorical = [name for name, kind in kinds.items() if kind == "categorical"]
    tell(0.05, f"reading {file.path}")
    rows, edges, categories = _learn(request, file, numeric, categorical, tell)
    if not rows:
        raise DataError(f"{file.path}: has no rows")
    tell(0.6, f"counting {file.path}")
    counted: dict[str, NumericFeature] = {}
    for frame in file.batches(numeric, ()) if numeric else ():
        for name in numeric:
            part = numeric_feature(name, frame[name].to_numpy(), edges=edges[name])
            counted[name] = counted[name] + part if name in counted else part
    kept: list[Feature] = []
    for name, found in categories.items():
        if found is None:
            notes.append(
                f"{name} is not compared: it has more than {MAX_CATEGORIES:,} different texts"
            )
        else:
            kept.append(categorical_feature(name, found))
    tensors = [
        TensorReference(name, "input", tuple(features))
        for name, features in (("numeric", [*counted.values()]), ("categorical", kept))
        if features
    ]
    if not tensors:
        raise DataError(f"{file.path}: no column is left to compare; {'; '.join(notes)}")
    return ReferenceProfile(rows, tuple(tensors))


def _kinds(
    request: CountRequest, file: DataFile, current: DataFile, notes: list[str]
) -> dict[str, Kind]:
    """The columns that are compared, in the file's order."""
    for name in request.columns:
        require_column(list(file.schema), name, str(file.path))
    kinds: dict[str, Kind] = {}
    for name, dtype in file.schema.items():
        if request.columns and name not in request.columns:
            continue
        kind = kind_of(dtype)
        if kind == "empty":  # then the other file tells what it is
            kind = kind_of(current.schema.get(name, pl.Null()))
        if kind in ("numeric", "categorical"):
            kinds[name] = kind
        elif kind == "empty":
            notes.append(f"{name} is not compared: it has no values")
        elif request.columns:
            raise DataError(f"{file.path}: {name} holds {dtype}, neither numbers nor text")
        else:
            notes.append(f"{name} is not compared: it holds {dtype}, neither numbers nor text")
    if not kinds:
        raise DataError(f"{file.path}: no column is left to compare; {'; '.join(notes)}")
    new = [name for name in current.schema if name not in file.schema]
    if new and not request.columns:
        notes.append(f"not in {file.path}, and not compared: {', '.join(new)}")
    return kinds


def _learn(
    request: CountRequest,
    file: DataFile,
    numeric: Sequence[str],
    categorical: Sequence[str],
    tell: Tell,
) -> tuple[int, dict[str, NDArray[np.float32]], dict[str, Counter[Any] | None]]:
    """The number of rows, the bins' edges, and each category with its rows; None: too many."""
    rows = 0
    found = {name: QuantileEdges(request.bins) for name in numeric}
    categories: dict[str, Counter[Any] | None] = {name: Counter() for name in categorical}
    for frame in file.batches(numeric, categorical):
        rows += frame.height
        for name in numeric:
            found[name].add(frame[name].to_numpy())
        for name, counts in categories.items():
            if counts is not None:
                values = frame[name].value_counts(name="trimtab.rows")
                counts.update(dict(values.iter_rows()))
                if len(counts) > MAX_CATEGORIES:
                    categories[name] = None
    open_columns = [name for name in numeric if found[name].end_pass()]
    while open_columns:
        tell(0.3, f"finding quantiles in {file.path}")
        for frame in file.batches(open_columns, ()):
            for name in open_columns:
                found[name].add(frame[name].to_numpy())
        open_columns = [name for name in open_columns if found[name].end_pass()]
    return rows, {name: column.edges for name, column in found.items()}, categories


def _chosen(
    request: CountRequest, profile: ReferenceProfile, current: DataFile, notes: list[str]
) -> ReferenceProfile:
    """What is compared of a version's profile: the columns asked for, and outputs if they are there."""
    known = [feature.name for tensor in profile.tensors for feature in tensor.features]
    for name in request.columns:
        require_column(known, name, str(request.reference))
    left_out = []
    tensors = []
    for tensor in profile.tensors:
        features = []
        for feature in tensor.features:
            there = any(name in current.schema for name in _names(tensor.role, feature.name))
            if request.columns and feature.name not in request.columns:
                continue
            if tensor.role == "output" and not there:
                left_out.append(feature.name)
                continue
            features.append(feature)
        if features:
            tensors.append(replace(tensor, features=tuple(features)))
    if left_out:
        notes.append(
            f"outputs of the version that {current.path} does not have as columns "
            f"out.NAME are not compared: {', '.join(left_out)}"
        )
    if not tensors:
        raise DataError(f"{request.reference}: no column is left to compare")
    return replace(profile, tensors=tuple(tensors))


# The current rows


def _count_current(reference: ReferenceProfile, file: DataFile) -> tuple[LiveCounts, list[Fault]]:
    faults: list[Fault] = []
    counters = [_Counter(tensor, file, faults) for tensor in reference.tensors]
    columns: dict[str, list[str]] = {"numeric": [], "categorical": []}
    for counter in counters:
        columns[counter.kind] += [name for name in counter.columns if name is not None]
    if not any(columns.values()):
        raise DataError(f"{file.path}: has none of the reference's columns to compare")
    rows = 0
    for frame in file.batches(*map(_once, columns.values())):
        rows += frame.height
        for counter in counters:
            counter.count(frame)
    if not rows:
        raise DataError(f"{file.path}: has no rows")
    return LiveCounts.of(reference, rows, [counter.result() for counter in counters]), faults


def _once(names: Sequence[str]) -> list[str]:
    """Two tensors may have a column of one name."""
    return list(dict.fromkeys(names))


@dataclass(frozen=True, eq=False)
class _Counts:
    counts: NDArray[np.uint64]
    lowest: NDArray[np.float64] | None = None
    highest: NDArray[np.float64] | None = None


class _Counter:
    """One tensor's histogram, and the file's columns that go into it (None: a fault, all missing)."""

    def __init__(self, tensor: TensorReference, file: DataFile, faults: list[Fault]) -> None:
        self.kind: Kind
        self._histogram: NumericHistogram | CategoryHistogram
        numeric = [f for f in tensor.features if isinstance(f, NumericFeature)]
        categorical = [f for f in tensor.features if isinstance(f, CategoricalFeature)]
        if numeric:
            self.kind = "numeric"
            self._histogram = NumericHistogram(
                [f.edges for f in numeric], 1, follow=[f.minimum < f.maximum for f in numeric]
            )
        else:
            self.kind = "categorical"
            self._histogram = CategoryHistogram(
                [f.kept for f in categorical], [f.rare for f in categorical], 1
            )
        self.columns = [
            self._column(tensor.role, feature.name, file, faults) for feature in tensor.features
        ]

    def _column(self, role: str, feature: str, file: DataFile, faults: list[Fault]) -> str | None:
        name = next((name for name in _names(role, feature) if name in file.schema), None)
        if name is None:
            faults.append(Fault(role, feature, f"{file.path} has no such column"))
            return None
        dtype = file.schema[name]
        if kind_of(dtype) not in (self.kind, "empty"):
            nouns = _NOUNS[self.kind]
            why = f"{file.path} holds {dtype} there, the reference {nouns}"
            faults.append(Fault(role, feature, why))
            return None
        return name

    def count(self, frame: pl.DataFrame) -> None:
        shape = (frame.height, len(self.columns))
        if isinstance(self._histogram, NumericHistogram):
            matrix = np.full(shape, np.nan, np.float32)
            for at, name in enumerate(self.columns):
                if name is not None:
                    matrix[:, at] = frame[name].to_numpy()
            self._histogram.update(matrix)
        else:
            texts = np.full(shape, "", dtype=object)
            for at, name in enumerate(self.columns):
                if name is not None:
                    texts[:, at] = frame[name].to_list()
            self._histogram.update(bytes_tensor.encode(texts), frame.height)

    def result(self) -> _Counts:
        if isinstance(self._histogram, NumericHistogram):
            return _Counts(self._histogram.window(), *self._histogram.extremes(1))
        return _Counts(self._histogram.window())
