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
    """The features of one tensor, in the order of its columns: all numeric or all categorical.

    No tensor of the model, but counted like one: the role "loss" is how wrong it was, row by row.
    """

    tensor: str
    role: Literal["input", "output", "loss"]
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        if self.role not in ("input", "output", "loss"):
            raise ValueError(
                f"role of tensor {self.tensor!r} is {self.role!r}, not input, output or loss"
            )
        if len({type(feature) for feature in self.features}) > 1:
            raise ValueError(f"tensor {self.tensor!r} mixes numeric and categorical features")


@dataclass(frozen=True, eq=False)
class ReferenceProfile:
    """Every watched tensor of a version, and how many rows the inputs were counted over.

    `losses` are apart from the others: windows of live rows are held against `tensors`.
    """

    rows: int
    tensors: tuple[TensorReference, ...]
    format: int = reference_file.FORMAT
    losses: tuple[TensorReference, ...] = ()

    def __post_init__(self) -> None:
        for tensor in (*self.tensors, *self.losses):
            if (tensor.role == "loss") != (tensor in self.losses):
                raise ValueError(f"{tensor.role} tensor {tensor.tensor!r} is not in its place")

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
        if len(self.losses) != len(other.losses):
            raise ValueError(
                f"profiles of {len(self.losses)} and {len(other.losses)} losses cannot be added"
            )
        return ReferenceProfile(
            rows=exact_sum.add("rows", self.rows, other.rows),
            tensors=tuple(map(_added, self.tensors, other.tensors)),
            losses=tuple(map(_added, self.losses, other.losses)),
        )

    def save(self, path: Path) -> None:
        """Writes one npz file, of the same bytes for the same profile; OSError if it cannot."""
        tensors = [
            (tensor.tensor, tensor.role, tensor.features)
            for tensor in (*self.tensors, *self.losses)
        ]
        reference_file.write(path, self.rows, tensors)

    @classmethod
    def load(cls, path: Path) -> "ReferenceProfile":
        """Reads what `save` wrote, now or in an older format; ReferenceFormatError, OSError."""
        rows, tensors = reference_file.read(path)
        try:
            found = [TensorReference(*tensor) for tensor in tensors]
            return cls(
                rows,
                tuple(tensor for tensor in found if tensor.role != "loss"),
                losses=tuple(tensor for tensor in found if tensor.role == "loss"),
            )
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
