"""One column of a reference: its bins or categories, and how many rows of the reference each has.

Values are counted by the same rules as live ones (`histogram`): as float32, bin i holds edges[i - 1]
<= x < edges[i], and categories byte for byte; so the two sides compare count for count.

Features over the same bins add with `+`, count for count: parts that were counted apart, by edges
or lists that one of them laid, are the whole to the bit, in any order. Extremes too; mean and
standard deviation are exact but for rounding (their order of two does not matter, their grouping
does in the last digits). Everything here is a value; any thread may do anything.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import exact_sum
from .binning import MAX_BINS, quantile_edges


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
    std: float  # of the population: the root of the mean squared deviation
    finite: int | None = None  # rows that the moments are of; None: all that are not missing
    importance: float | None = None  # what the model's metric loses without it; None: unknown

    def __post_init__(self) -> None:
        if self.edges.dtype != np.float32 or self.edges.ndim != 1:
            raise ValueError(f"edges of {self.name!r} are not a row of float32")
        if not (np.all(self.edges[:-1] < self.edges[1:]) and not np.isnan(self.edges).any()):
            raise ValueError(f"edges of {self.name!r} do not ascend strictly")
        if len(self.edges) >= MAX_BINS:
            raise ValueError(
                f"{self.name!r} has {len(self.edges) + 1} bins, the limit is {MAX_BINS}"
            )
        _check_counts(self.name, "bins", self.counts, len(self.edges) + 1)
        _check_importance(self.name, self.importance)

    def __add__(self, other: object) -> "NumericFeature":
        """Both columns' rows together; ValueError over other bins, OverflowError."""
        if not isinstance(other, NumericFeature | CategoricalFeature):
            return NotImplemented
        if not isinstance(other, NumericFeature):
            _refuse(self.name, "it is numeric in one and categorical in the other")
        _same_name(self, other)
        _same_edges(self, other)
        mine, theirs = self.moment_rows(), other.moment_rows()
        rows = exact_sum.add(f"finite values of {self.name!r}", mine, theirs)
        if mine and theirs:
            # Chan, Golub and LeVeque, The American Statistician 37(3), 1983; the mean in the form
            # that does not depend on which of the two comes first.
            share, rest = mine / rows, theirs / rows
            mean = share * self.mean + rest * other.mean
            apart = other.mean - self.mean
            within = share * self.std * self.std + rest * other.std * other.std
            std = math.sqrt(within + share * rest * apart * apart)
        else:
            known = self if mine else other
            mean, std = known.mean, known.std
        return NumericFeature(
            name=self.name,
            edges=self.edges,
            counts=exact_sum.add_arrays(f"bins of {self.name!r}", self.counts, other.counts),
            missing=exact_sum.add(f"missing of {self.name!r}", self.missing, other.missing),
            minimum=float(np.fmin(self.minimum, other.minimum)),
            maximum=float(np.fmax(self.maximum, other.maximum)),
            mean=mean,
            std=std,
            finite=rows,
            importance=_importance(self, other),
        )

    def moment_rows(self) -> int:
        """How many rows the moments are of; without `finite` infinities count in."""
        if math.isnan(self.mean):
            return 0
        return sum(self.counts.tolist()) if self.finite is None else self.finite

    def layout(self) -> str:
        """A digest of what slots its counts have: the bins' edges."""
        return _digest(b"numeric", (self.edges + np.float32(0)).tobytes())  # -0.0 is 0.0


@dataclass(frozen=True, eq=False)
class CategoricalFeature:
    """One column of categories, as UTF-8; the empty string is a missing value."""

    name: str
    kept: tuple[bytes, ...]  # counted one by one, the most frequent first as the lists were made
    counts: NDArray[np.uint64]  # per kept category
    rare: tuple[bytes, ...]  # known, but counted together
    other: int  # rows of all that are not kept
    missing: int
    expected_unseen: float = 0.0  # estimated share of new rows whose category is in neither list
    importance: float | None = None  # what the model's metric loses without it; None: unknown

    def __post_init__(self) -> None:
        _check_counts(self.name, "categories", self.counts, len(self.kept))
        listed = {*self.kept, *self.rare}
        if len(listed) < len(self.kept) + len(self.rare):
            raise ValueError(f"{self.name!r} lists a category twice")
        if b"" in listed:
            raise ValueError(f"{self.name!r} lists the empty category: it means missing")
        _check_importance(self.name, self.importance)

    def __add__(self, other: object) -> "CategoricalFeature":
        """Both columns' rows together; ValueError over other lists, OverflowError."""
        if not isinstance(other, NumericFeature | CategoricalFeature):
            return NotImplemented
        if not isinstance(other, CategoricalFeature):
            _refuse(self.name, "it is categorical in one and numeric in the other")
        _same_name(self, other)
        _same_list(self.name, "kept", self.kept, other.kept)
        _same_list(self.name, "rare", self.rare, other.rare)
        return CategoricalFeature(
            name=self.name,
            kept=self.kept,
            counts=exact_sum.add_arrays(f"categories of {self.name!r}", self.counts, other.counts),
            rare=self.rare,
            other=exact_sum.add(f"other of {self.name!r}", self.other, other.other),
            missing=exact_sum.add(f"missing of {self.name!r}", self.missing, other.missing),
            expected_unseen=_expected_unseen(self, other),
            importance=_importance(self, other),
        )

    def layout(self) -> str:
        """A digest of what slots its counts have: the lists of categories."""
        return _digest(b"categorical", *self.kept, b"", *self.rare)


Feature: TypeAlias = NumericFeature | CategoricalFeature


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
    ordered = np.sort(column + np.float32(0))  # -inf first, NaN last; -0.0 is 0.0
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
    return NumericFeature(name, edges, counts, missing, *moments, finite=len(finite))


def categorical_feature(
    name: str,
    values: Iterable[bytes | str | None],
    min_count: int = 20,
    max_kept: int = 256,
    max_rare: int = 10_000,
    like: CategoricalFeature | None = None,
) -> CategoricalFeature:
    """Counts a column of categories; None and the empty string are missing values.

    `values` are those of the rows, or a mapping of each value to its number of rows. Categories of
    at least `min_count` rows are kept, the most frequent `max_kept` of them; of the rest the most
    frequent `max_rare` are known as rare, and any others are forgotten: a live value of those is
    unseen. Ties are broken by the bytes, so that the order of rows does not matter. With `like`,
    its lists are used, so that the two can be added.
    """
    raw = Counter(values.tolist() if isinstance(values, np.ndarray) else values)
    found: Counter[bytes] = Counter()
    for value, count in raw.items():
        found[_category(name, value)] += count
    missing = found.pop(b"", 0)
    present = sum(found.values())
    if like is not None:
        counts = np.array([found[category] for category in like.kept], np.uint64)
        other = present - int(counts.sum())
        return replace(like, name=name, counts=counts, other=other, missing=missing)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    kept = [(category, count) for category, count in ranked[:max_kept] if count >= min_count]
    rare = [category for category, _ in ranked[len(kept) : len(kept) + max_rare]]
    forgotten = ranked[len(kept) + len(rare) :]
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


def _check_counts(name: str, what: str, counts: NDArray[Any], number: int) -> None:
    if counts.shape != (number,):
        raise ValueError(f"{name!r} has {number} {what} and {counts.size} counts")
    if counts.dtype != np.uint64:
        raise ValueError(f"counts of {name!r} are {counts.dtype}, not uint64")


def _check_importance(name: str, importance: float | None) -> None:
    if importance is not None and not math.isfinite(importance):
        raise ValueError(f"importance of {name!r} is {importance}; unknown is None")


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _expected_unseen(one: CategoricalFeature, other: CategoricalFeature) -> float:
    """Each side's estimate by its rows: both are of the same lists."""
    if one.expected_unseen == other.expected_unseen:
        return one.expected_unseen
    rows = [int(f.counts.sum()) + f.other + f.missing for f in (one, other)]
    if not sum(rows):
        return max(one.expected_unseen, other.expected_unseen)
    return (rows[0] * one.expected_unseen + rows[1] * other.expected_unseen) / sum(rows)


def _importance(one: Feature, other: Feature) -> float | None:
    """That of the model, which is one; a side that does not know it does not matter."""
    if one.importance is None or other.importance is None or one.importance == other.importance:
        return other.importance if one.importance is None else one.importance
    _refuse(
        one.name,
        f"its importance is {one.importance:g} in one and {other.importance:g} in the other: "
        "they are of different models",
    )


def _same_name(one: Feature, other: Feature) -> None:
    if one.name != other.name:
        raise ValueError(f"features {one.name!r} and {other.name!r} cannot be added")


def _same_edges(one: NumericFeature, other: NumericFeature) -> None:
    if len(one.edges) != len(other.edges):
        _refuse(
            one.name,
            f"it has {len(one.edges) + 1} bins in one, {len(other.edges) + 1} in the other",
        )
    differ = np.flatnonzero(one.edges != other.edges)
    if len(differ):
        at = int(differ[0])
        _refuse(one.name, f"edge {at} is {one.edges[at]} in one and {other.edges[at]} in the other")


def _same_list(name: str, what: str, one: Sequence[bytes], other: Sequence[bytes]) -> None:
    if len(one) != len(other):
        _refuse(name, f"it has {len(one)} {what} categories in one, {len(other)} in the other")
    for at, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if mine != theirs:
            shown = [text.decode("utf-8", "replace") for text in (mine, theirs)]
            _refuse(
                name, f"{what} category {at} is {shown[0]!r} in one and {shown[1]!r} in the other"
            )


def _refuse(name: str, why: str) -> NoReturn:
    raise ValueError(f"{name!r} cannot be added: {why}")
