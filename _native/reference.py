"""The reference profile of a version: how its inputs and outputs were distributed in training.

A profile holds counts, never rows: per numeric feature the bins' edges and counts, per categorical
feature the categories and theirs. Values are counted by the same rules as live ones
(`histogram`): as float32, bin i holds edges[i - 1] <= x < edges[i]; so the two sides compare count
for count. Everything here is a value; any thread may do anything.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .binning import MAX_BINS, groups, quantile_edges

__all__ = [
    "CategoricalFeature",
    "NumericFeature",
    "ReferenceFormatError",
    "ReferenceProfile",
    "TensorReference",
    "categorical_feature",
    "groups",
    "numeric_feature",
]

_FORMAT = 1
_MOMENTS = ("minimum", "maximum", "mean", "std")


class ReferenceFormatError(Exception):
    """A file is not a reference profile; the message says which file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class NumericFeature:
    """One numeric column; the moments are those of its finite values, NaN if it has none."""

    name: str
    edges: NDArray[np.float32]
    counts: NDArray[np.uint64]  # per bin: len(edges) + 1
    missing: int  # NaN
    minimum: float
    maximum: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.edges.dtype != np.float32 or self.edges.ndim != 1:
            raise ValueError(f"edges of {self.name!r} are not a row of float32")
        if not (np.all(self.edges[:-1] < self.edges[1:]) and not np.isnan(self.edges).any()):
            raise ValueError(f"edges of {self.name!r} do not ascend strictly")
        if len(self.edges) >= MAX_BINS:
            raise ValueError(
                f"{self.name!r} has {len(self.edges) + 1} bins, the limit is {MAX_BINS}"
            )
        if self.counts.shape != (len(self.edges) + 1,):
            raise ValueError(
                f"{self.name!r} has {len(self.edges) + 1} bins and {self.counts.size} counts"
            )


@dataclass(frozen=True, eq=False)
class CategoricalFeature:
    """One column of categories, as UTF-8; the empty string is a missing value."""

    name: str
    kept: tuple[bytes, ...]  # counted one by one, the most frequent first
    counts: NDArray[np.uint64]  # per kept category
    rare: tuple[bytes, ...]  # known, but counted together
    other: int  # rows of all that are not kept
    missing: int
    expected_unseen: float = 0.0  # estimated share of new rows whose category is in neither list

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.kept),):
            raise ValueError(
                f"{self.name!r} keeps {len(self.kept)} categories and has {self.counts.size} counts"
            )
        listed = {*self.kept, *self.rare}
        if len(listed) < len(self.kept) + len(self.rare):
            raise ValueError(f"{self.name!r} lists a category twice")
        if b"" in listed:
            raise ValueError(f"{self.name!r} lists the empty category: it means missing")


Feature: TypeAlias = NumericFeature | CategoricalFeature


@dataclass(frozen=True, eq=False)
class TensorReference:
    """The features of one tensor, in the order of its columns: all numeric or all categorical."""

    tensor: str
    role: Literal["input", "output"]
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        if self.role not in ("input", "output"):
            raise ValueError(
                f"role of tensor {self.tensor!r} is {self.role!r}, not input or output"
            )
        if len({type(feature) for feature in self.features}) > 1:
            raise ValueError(f"tensor {self.tensor!r} mixes numeric and categorical features")


@dataclass(frozen=True, eq=False)
class ReferenceProfile:
    """Every watched tensor of a version, and how many rows the inputs were counted over."""

    rows: int
    tensors: tuple[TensorReference, ...]
    format: int = _FORMAT

    def save(self, path: Path) -> None:
        """Writes one npz file, of the same bytes for the same profile; OSError if it cannot."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, tensor in enumerate(self.tensors):
            for key, array in _arrays_of(tensor.features).items():
                arrays[f"{index}.{key}"] = array
        header = {
            "format": self.format,
            "rows": self.rows,
            "tensors": [
                {
                    "tensor": tensor.tensor,
                    "role": tensor.role,
                    "kind": "categorical" if _is_categorical(tensor.features) else "numeric",
                    "features": [feature.name for feature in tensor.features],
                }
                for tensor in self.tensors
            ],
        }
        text = json.dumps(header, ensure_ascii=False).encode()
        with Path(path).open("wb") as file:
            np.savez_compressed(file, header=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]  # numpy's stub takes **arrays for allow_pickle

    @classmethod
    def load(cls, path: Path) -> "ReferenceProfile":
        """Reads what `save` wrote; ReferenceFormatError for any other content."""
        return _Reader(Path(path)).profile()


def numeric_feature(
    name: str,
    values: NDArray[Any] | Sequence[float],
    bins: int = 64,
    edges: NDArray[np.float32] | None = None,
) -> NumericFeature:
    """Counts a column in at most `bins` bins (2 to 256) of about equal mass, or between `edges`."""
    if not 2 <= bins <= MAX_BINS:
        raise ValueError(f"bins of {name!r} must be from 2 to {MAX_BINS}, not {bins}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is to the live histogram
        column = np.asarray(values).astype(np.float32).ravel()
    ordered = np.sort(column)  # -inf first, NaN last
    missing = int(np.isnan(ordered).sum())
    ordered = ordered[: len(ordered) - missing]
    finite = ordered[np.isfinite(ordered)]
    if edges is None:
        edges = quantile_edges(finite, bins)
    below = np.searchsorted(ordered, edges, side="left")  # rows with x < edge
    counts = np.diff(below, prepend=0, append=len(ordered)).astype(np.uint64)
    moments = (math.nan, math.nan, math.nan, math.nan)
    if len(finite):
        mean, std = finite.mean(dtype=np.float64), finite.std(dtype=np.float64)
        moments = (float(finite[0]), float(finite[-1]), float(mean), float(std))
    return NumericFeature(name, edges, counts, missing, *moments)


def categorical_feature(
    name: str,
    values: Iterable[bytes | str | None],
    min_count: int = 20,
    max_kept: int = 256,
    max_rare: int = 10_000,
) -> CategoricalFeature:
    """Counts a column of categories; None and the empty string are missing values.

    Categories of at least `min_count` rows are kept, the most frequent `max_kept` of them; of the
    rest the most frequent `max_rare` are known as rare, and any others are forgotten: a live value
    of those is unseen. Ties are broken by the bytes, so that the order of rows does not matter.
    """
    raw = Counter(values.tolist() if isinstance(values, np.ndarray) else values)
    found: Counter[bytes] = Counter()
    for value, count in raw.items():
        found[_category(name, value)] += count
    missing = found.pop(b"", 0)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    kept = [(category, count) for category, count in ranked[:max_kept] if count >= min_count]
    rare = [category for category, _ in ranked[len(kept) : len(kept) + max_rare]]
    forgotten = ranked[len(kept) + len(rare) :]
    present = sum(found.values())
    # Good and Turing: the share of categories not seen yet is about that of those seen once.
    new = sum(count == 1 for count in found.values()) + sum(
        count for _, count in forgotten if count > 1
    )
    return CategoricalFeature(
        name=name,
        kept=tuple(category for category, _ in kept),
        counts=np.array([count for _, count in kept], np.uint64),
        rare=tuple(rare),
        other=present - sum(count for _, count in kept),
        missing=missing,
        expected_unseen=new / (present + missing) if present else 0.0,
    )


def _category(name: str, value: object) -> bytes:
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"a value of {name!r} is {type(value).__name__}, not bytes, str or None")


def _is_categorical(features: Sequence[Feature]) -> bool:
    return bool(features) and isinstance(features[0], CategoricalFeature)


def _arrays_of(features: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """One array per field over all features, with the lengths of the pieces beside."""
    numeric = [feature for feature in features if isinstance(feature, NumericFeature)]
    categorical = [feature for feature in features if isinstance(feature, CategoricalFeature)]
    common: dict[str, NDArray[Any]] = {
        "missing": np.array([feature.missing for feature in features], np.uint64),
        "counts": np.concatenate(
            [np.empty(0, np.uint64), *(feature.counts for feature in features)]
        ),
    }
    if not categorical:
        return common | {
            "edges": np.concatenate([np.empty(0, np.float32), *(f.edges for f in numeric)]),
            "edge_counts": np.array([len(f.edges) for f in numeric], np.int64),
            "moments": np.array(
                [[getattr(f, field) for field in _MOMENTS] for f in numeric], np.float64
            ).reshape(-1, len(_MOMENTS)),
        }
    texts = [text for f in categorical for text in (*f.kept, *f.rare)]
    return common | {
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "text_lengths": np.array([len(text) for text in texts], np.int64),
        "kept_counts": np.array([len(f.kept) for f in categorical], np.int64),
        "rare_counts": np.array([len(f.rare) for f in categorical], np.int64),
        "other": np.array([f.other for f in categorical], np.uint64),
        "expected_unseen": np.array([f.expected_unseen for f in categorical], np.float64),
    }


class _Reader:
    """One pass over one file; every complaint names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: Mapping[str, NDArray[Any]] = {}

    def profile(self) -> ReferenceProfile:
        content = self._path.read_bytes()
        try:
            file = np.load(io.BytesIO(content), allow_pickle=False)
            self._arrays = {key: file[key] for key in getattr(file, "files", ())}
        except Exception as error:  # noqa: BLE001  numpy and zipfile raise a dozen kinds
            self._fail(f"not a readable npz file: {error}")
        try:
            header = json.loads(self._array("header", np.uint8).tobytes())
        except ValueError as error:
            self._fail(f"its header is not JSON: {error}")
        number = self._field(header, "format", int)
        if number != _FORMAT:
            self._fail(f"its format is {number}, this version reads {_FORMAT}")
        try:
            return ReferenceProfile(
                rows=self._field(header, "rows", int),
                tensors=tuple(
                    self._tensor(index, entry)
                    for index, entry in enumerate(self._field(header, "tensors", list))
                ),
            )
        except ValueError as error:
            self._fail(str(error))

    def _tensor(self, index: int, entry: object) -> TensorReference:
        names = self._field(entry, "features", list)
        if not all(isinstance(name, str) for name in names):
            self._fail(f"a feature of tensor {index} has a name that is not a string")
        kind = self._field(entry, "kind", str)
        if kind not in ("numeric", "categorical"):
            self._fail(f"kind of tensor {index} is {kind!r}, not numeric or categorical")
        features: Sequence[Feature] = (
            self._numeric(index, names) if kind == "numeric" else self._categorical(index, names)
        )
        return TensorReference(
            self._field(entry, "tensor", str), self._field(entry, "role", str), tuple(features)
        )

    def _numeric(self, index: int, names: Sequence[str]) -> list[NumericFeature]:
        number = len(names)
        edge_counts = self._lengths(f"{index}.edge_counts", number)
        edges = self._array(f"{index}.edges", np.float32, sum(edge_counts))
        counts = self._array(f"{index}.counts", np.uint64, sum(edge_counts) + number)
        missing = self._array(f"{index}.missing", np.uint64, number).tolist()
        moments = self._array(f"{index}.moments", np.float64, number).tolist()
        features = []
        at = 0
        for i, name in enumerate(names):
            end = at + edge_counts[i]
            features.append(
                NumericFeature(
                    name, edges[at:end], counts[at + i : end + i + 1], missing[i], *moments[i]
                )
            )
            at = end
        return features

    def _categorical(self, index: int, names: Sequence[str]) -> list[CategoricalFeature]:
        number = len(names)
        kept = self._lengths(f"{index}.kept_counts", number)
        rare = self._lengths(f"{index}.rare_counts", number)
        lengths = self._lengths(f"{index}.text_lengths", sum(kept) + sum(rare))
        text = self._array(f"{index}.text", np.uint8, sum(lengths)).tobytes()
        counts = self._array(f"{index}.counts", np.uint64, sum(kept))
        other = self._array(f"{index}.other", np.uint64, number).tolist()
        missing = self._array(f"{index}.missing", np.uint64, number).tolist()
        unseen = self._array(f"{index}.expected_unseen", np.float64, number).tolist()
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        texts = [text[end - size : end] for end, size in zip(ends, lengths, strict=True)]
        features = []
        at = counted = 0
        for i, name in enumerate(names):
            middle = at + kept[i]
            end = middle + rare[i]
            features.append(
                CategoricalFeature(
                    name=name,
                    kept=tuple(texts[at:middle]),
                    counts=counts[counted : counted + kept[i]],
                    rare=tuple(texts[middle:end]),
                    other=other[i],
                    missing=missing[i],
                    expected_unseen=unseen[i],
                )
            )
            at, counted = end, counted + kept[i]
        return features

    def _lengths(self, key: str, number: int) -> list[int]:
        lengths = self._array(key, np.int64, number)
        if (lengths < 0).any():
            self._fail(f"array {key!r} has a negative length")
        return [int(length) for length in lengths]

    def _array(self, key: str, dtype: type[np.generic], number: int | None = None) -> NDArray[Any]:
        array = self._arrays.get(key)
        if not isinstance(array, np.ndarray):  # numpy hands out what is no array as bytes
            self._fail(f"array {key!r} is missing")
        if array.dtype != dtype:
            self._fail(f"array {key!r} is {array.dtype}, expected {np.dtype(dtype)}")
        shape = (number, len(_MOMENTS)) if key.endswith("moments") else (number,)
        if number is not None and array.shape != shape:
            self._fail(f"array {key!r} has shape {array.shape}, expected {shape}")
        return array

    def _field(self, entry: object, key: str, kind: type) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            self._fail(f"its header lacks {key!r}")
        if type(entry[key]) is not kind:
            self._fail(f"header key {key!r} is {type(entry[key]).__name__}, not {kind.__name__}")
        return entry[key]

    def _fail(self, what: str) -> NoReturn:
        raise ReferenceFormatError(f"{self._path}: {what}") from None
