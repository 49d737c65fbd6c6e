"""The reference profile of a version: how its inputs and outputs were distributed in training.

A profile holds counts, never rows: per numeric feature the bins' edges and counts, per categorical
feature the categories and theirs (`reference_feature`). Profiles over the same bins add with `+`:
hosts or files that were counted apart are one. Everything here is a value; any thread may do
anything.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import exact_sum, reference_file
from .binning import groups
from .reference_feature import (
    CategoricalFeature,
    Feature,
    NumericFeature,
    categorical_feature,
    numeric_feature,
)
from .reference_file import ReferenceFormatError

__all__ = [
    "CategoricalFeature",
    "Feature",
    "NumericFeature",
    "ReferenceFormatError",
    "ReferenceProfile",
    "TensorReference",
    "categorical_feature",
    "groups",
    "numeric_feature",
]


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
    format: int = reference_file.FORMAT

    def __add__(self, other: object) -> "ReferenceProfile":
        """The profile of both sides' rows.

        Counts, rows and extremes add exactly, whatever the order and grouping; mean and standard
        deviation up to rounding. ValueError names the first feature that is not counted in the
        same way on both sides, OverflowError the counter that would not fit into 64 bits.
        """
        if not isinstance(other, ReferenceProfile):
            return NotImplemented
        if len(self.tensors) != len(other.tensors):
            raise ValueError(
                f"profiles of {len(self.tensors)} and {len(other.tensors)} tensors cannot be added"
            )
        return ReferenceProfile(
            rows=exact_sum.add("rows", self.rows, other.rows),
            tensors=tuple(map(_added, self.tensors, other.tensors)),
        )

    def save(self, path: Path) -> None:
        """Writes one npz file, of the same bytes for the same profile; OSError if it cannot."""
        tensors = [(tensor.tensor, tensor.role, tensor.features) for tensor in self.tensors]
        reference_file.write(path, self.rows, tensors)

    @classmethod
    def load(cls, path: Path) -> "ReferenceProfile":
        """Reads what `save` wrote, now or in an older format; ReferenceFormatError, OSError."""
        rows, tensors = reference_file.read(path)
        try:
            return cls(rows, tuple(TensorReference(*tensor) for tensor in tensors))
        except ValueError as error:
            raise ReferenceFormatError(f"{path}: {error}") from None


def _added(one: TensorReference, other: TensorReference) -> TensorReference:
    if (one.tensor, one.role) != (other.tensor, other.role):
        raise ValueError(
            f"{one.role} tensor {one.tensor!r} and {other.role} tensor {other.tensor!r} "
            "cannot be added"
        )
    if len(one.features) != len(other.features):
        raise ValueError(
            f"tensor {one.tensor!r} cannot be added: it has {len(one.features)} features in one "
            f"and {len(other.features)} in the other"
        )
    features = []
    for mine, theirs in zip(one.features, other.features, strict=True):
        features.append(mine + theirs)
    return TensorReference(one.tensor, one.role, tuple(features))
