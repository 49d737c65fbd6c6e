"""Live rows counted over a reference's bins: a value that can leave its process and be added up.

Windows of several hosts (or shards of a file) over one reference add with `+` to exactly the counts
of all their rows, in any order and grouping. Counts over other bins do not: each feature carries a
digest of its reference's bins (`layout`), and unequal ones are refused by name. Values only; any
thread may do anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import exact_sum, npz_file
from .reference import NumericFeature, ReferenceProfile, TensorReference

_FORMAT = 1


class LiveCountsFormatError(Exception):
    """A file does not hold live counts; the message says which file and what is wrong with it."""


class Counted(Protocol):
    """One tensor's counts as a monitor's window has them."""

    @property
    def counts(self) -> NDArray[np.uint64]: ...
    @property
    def lowest(self) -> NDArray[np.float64] | None: ...
    @property
    def highest(self) -> NDArray[np.float64] | None: ...


@dataclass(frozen=True, eq=False)
class TensorLiveCounts:
    """One tensor: a row of slots per feature, as its histogram has them (`histogram`).

    `lowest` and `highest` are the extremes of each numeric feature as far as they matter: exact
    while the two are equal, after that only known to differ. NaN: no value, or not followed.
    """

    tensor: str
    features: tuple[str, ...]
    layouts: tuple[str, ...]  # per feature, of the reference that it was counted over
    counts: NDArray[np.uint64]  # (features, slots)
    lowest: NDArray[np.float64]  # (features,)
    highest: NDArray[np.float64]

    def __post_init__(self) -> None:
        number = len(self.features)
        if self.counts.dtype != np.uint64 or self.counts.ndim != 2 or len(self.counts) != number:
            raise ValueError(
                f"counts of tensor {self.tensor!r} are {self.counts.dtype} of shape "
                f"{self.counts.shape}, expected uint64 of ({number}, slots)"
            )
        for what, values in (("lowest", self.lowest), ("highest", self.highest)):
            if values.shape != (number,) or values.dtype != np.float64:
                raise ValueError(
                    f"{what} of tensor {self.tensor!r} is {values.dtype} of shape "
                    f"{values.shape}, expected float64 of ({number},)"
                )
        if len(self.layouts) != number:
            raise ValueError(
                f"tensor {self.tensor!r} has {number} features and {len(self.layouts)} layouts"
            )


@dataclass(frozen=True, eq=False)
class LiveCounts:
    """A number of live rows, counted over the reference of their version."""

    rows: int
    tensors: tuple[TensorLiveCounts, ...]  # those of the reference that have features, in its order
    format: int = _FORMAT

    def __post_init__(self) -> None:
        if not 0 <= self.rows <= exact_sum.LIMIT:
            raise ValueError(f"rows must be from 0 to 2^64 - 1, not {self.rows}")

    @classmethod
    def of(
        cls, reference: ReferenceProfile, rows: int, tensors: Sequence[Counted | None]
    ) -> "LiveCounts":
        """Takes the counts of a monitor's window, which are in the order of its reference.

        None, a tensor that is not watched, is one that no row had. ValueError where the slots are
        not the reference's.
        """
        found = []
        for tensor, counted in zip(reference.tensors, tensors, strict=True):
            if not tensor.features:
                continue
            unknown = np.full(len(tensor.features), np.nan)
            expected = (len(tensor.features), _slots(tensor))
            counts = np.zeros(expected, np.uint64) if counted is None else counted.counts
            if counts.shape != expected:
                raise ValueError(
                    f"counts of tensor {tensor.tensor!r} have shape {counts.shape}, its reference "
                    f"needs {expected}"
                )
            lowest = None if counted is None else counted.lowest
            highest = None if counted is None else counted.highest
            found.append(
                TensorLiveCounts(
                    tensor.tensor,
                    tuple(feature.name for feature in tensor.features),
                    tuple(feature.layout() for feature in tensor.features),
                    counts,
                    unknown if lowest is None else lowest,
                    unknown if highest is None else highest,
                )
            )
        return cls(rows, tuple(found))

    def over(self, reference: ReferenceProfile) -> tuple[TensorLiveCounts | None, ...]:
        """The tensors in the reference's order, None for one without features.

        ValueError names what was not counted over this reference.
        """
        watched = [tensor for tensor in reference.tensors if tensor.features]
        _same_tensors([tensor.tensor for tensor in watched], [t.tensor for t in self.tensors])
        found = dict(zip(map(id, watched), self.tensors, strict=True))
        for tensor in watched:
            counted = found[id(tensor)]
            names = tuple(feature.name for feature in tensor.features)
            layouts = tuple(feature.layout() for feature in tensor.features)
            _same_features(counted, names, layouts, counted.counts.shape[1], _slots(tensor))
        return tuple(found.get(id(tensor)) for tensor in reference.tensors)

    def __add__(self, other: object) -> "LiveCounts":
        """The counts of both sides' rows, exactly.

        ValueError names what was not counted over the same bins, OverflowError the counter that
        would not fit into 64 bits.
        """
        if not isinstance(other, LiveCounts):
            return NotImplemented
        _same_tensors([t.tensor for t in self.tensors], [t.tensor for t in other.tensors])
        return LiveCounts(
            exact_sum.add("rows", self.rows, other.rows),
            tuple(map(_added, self.tensors, other.tensors)),
        )

    def save(self, path: Path) -> None:
        """Writes one npz file, of the same bytes for the same counts; OSError if it cannot."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, tensor in enumerate(self.tensors):
            arrays[f"{index}.counts"] = tensor.counts
            arrays[f"{index}.lowest"] = tensor.lowest
            arrays[f"{index}.highest"] = tensor.highest
        header = {
            "kind": "live counts",
            "format": self.format,
            "rows": self.rows,
            "tensors": [
                {"tensor": t.tensor, "features": list(t.features), "layouts": list(t.layouts)}
                for t in self.tensors
            ],
        }
        npz_file.write(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> "LiveCounts":
        """Reads what `save` wrote; LiveCountsFormatError for any other content, OSError."""
        file = npz_file.NpzFile(path, LiveCountsFormatError)
        if file.field(file.header, "kind", str) != "live counts":
            file.fail(f"it holds {file.header['kind']}, not live counts")
        file.format(_FORMAT)
        try:
            return cls(
                file.field(file.header, "rows", int),
                tuple(
                    _read(file, index, entry)
                    for index, entry in enumerate(file.field(file.header, "tensors", list))
                ),
            )
        except ValueError as error:
            file.fail(str(error))


def _slots(tensor: TensorReference) -> int:
    """How many slots its histogram has for each feature."""
    return max(
        len(f.edges) + 2 if isinstance(f, NumericFeature) else len(f.kept) + 3
        for f in tensor.features
    )


def _added(one: TensorLiveCounts, other: TensorLiveCounts) -> TensorLiveCounts:
    slots = one.counts.shape[1], other.counts.shape[1]
    _same_features(one, other.features, other.layouts, *slots)
    rows = []
    for name, mine, theirs in zip(one.features, one.counts, other.counts, strict=True):
        rows.append(exact_sum.add_arrays(f"slots of {name!r}", mine, theirs))
    return TensorLiveCounts(
        one.tensor,
        one.features,
        one.layouts,
        np.array(rows, np.uint64).reshape(one.counts.shape),
        np.fmin(one.lowest, other.lowest),
        np.fmax(one.highest, other.highest),
    )


def _same_tensors(one: Sequence[str], other: Sequence[str]) -> None:
    if one != other:
        raise ValueError(
            f"counts of the tensors {', '.join(one) or 'none'} and {', '.join(other) or 'none'} "
            "do not go together"
        )


def _same_features(
    counted: TensorLiveCounts,
    names: Sequence[str],
    layouts: Sequence[str],
    slots: int,
    expected: int,
) -> None:
    if len(counted.features) != len(names):
        raise ValueError(
            f"tensor {counted.tensor!r} has {len(counted.features)} features in one and "
            f"{len(names)} in the other"
        )
    for at, (mine, theirs) in enumerate(zip(counted.features, names, strict=True)):
        if mine != theirs:
            raise ValueError(
                f"feature {at} of tensor {counted.tensor!r} is {mine!r} in one and {theirs!r} in "
                "the other"
            )
        if counted.layouts[at] != layouts[at]:
            raise ValueError(f"{mine!r} was counted over other bins or categories")
    if slots != expected:
        raise ValueError(
            f"tensor {counted.tensor!r} has {slots} slots in one and {expected} in the other"
        )


def _read(file: npz_file.NpzFile, index: int, entry: object) -> TensorLiveCounts:
    names = file.strings(entry, "features", f"the name of a feature of tensor {index}")
    layouts = file.strings(entry, "layouts", f"the layout of a feature of tensor {index}")
    return TensorLiveCounts(
        file.field(entry, "tensor", str),
        tuple(names),
        tuple(layouts),
        file.array(f"{index}.counts", np.uint64, (len(names), None)),
        file.array(f"{index}.lowest", np.float64, (len(names),)),
        file.array(f"{index}.highest", np.float64, (len(names),)),
    )
