"""The reference in the form that windows are held against: made once, used at every pane.

For each feature the bins of its histogram are put into a few named groups: a numeric feature's into
about ten of equal reference mass, a categorical one's into its commonest categories and the rest;
missing values are a group of their own. PSI is computed over these groups, a report shows them, and
a reason names those that moved most. Immutable, so any thread may use one.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceProfile,
    groups,
)

Counts = NDArray[np.float64]

_NUMERIC_GROUPS = 10
_MAX_CATEGORIES = 20  # that PSI looks at one by one; the rest counts as one


class FeatureYardstick(Protocol):
    """One feature; its groups are in a fixed order, the last one is that of missing values."""

    @property
    def feature(self) -> NumericFeature | CategoricalFeature: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def reference(self) -> Counts: ...
    def group(self, slots: NDArray[np.uint64]) -> Counts:
        """A histogram's slots as counts of the groups."""


class NumericYardstick:
    """Groups of consecutive bins."""

    def __init__(self, feature: NumericFeature) -> None:
        self.feature = feature
        self.bins = len(feature.edges) + 1
        self._starts = np.asarray(groups(feature.counts, at_most=_NUMERIC_GROUPS), np.intp)
        ends = [*self._starts[1:], self.bins]
        edges = feature.edges
        self.labels = [
            *(_range(edges, start, end) for start, end in zip(self._starts, ends, strict=True)),
            "missing",
        ]
        self.reference = self._grouped(np.asarray(feature.counts, np.float64), feature.missing)

    def group(self, slots: NDArray[np.uint64]) -> Counts:
        return self._grouped(slots[: self.bins].astype(np.float64), float(slots[-1]))

    def _grouped(self, counts: Counts, missing: float) -> Counts:
        return np.append(np.add.reduceat(counts, self._starts), missing)


class CategoricalYardstick:
    """The commonest categories, all others together."""

    def __init__(self, feature: CategoricalFeature) -> None:
        self.feature = feature
        self._kept = len(feature.kept)
        counts = np.asarray(feature.counts, np.float64)
        self._common = np.argsort(-counts, kind="stable")[:_MAX_CATEGORIES]
        names = [feature.kept[index].decode("utf-8", "replace") for index in self._common]
        self.labels = [*names, "other categories", "missing"]
        self.reference = self._grouped(counts, feature.other, feature.missing)

    def group(self, slots: NDArray[np.uint64]) -> Counts:
        other, unseen, missing = slots[self._kept : self._kept + 3].astype(np.float64)
        return self._grouped(slots[: self._kept].astype(np.float64), other + unseen, missing)

    def _grouped(self, counts: Counts, other: float, missing: float) -> Counts:
        common = counts[self._common]
        return np.append(common, (counts.sum() - common.sum() + other, missing))


class Yardstick:
    """A reference profile's features, in its order."""

    def __init__(self, profile: ReferenceProfile) -> None:
        self.profile = profile
        self.tensors: tuple[tuple[FeatureYardstick, ...], ...] = tuple(
            tuple(
                NumericYardstick(feature)
                if isinstance(feature, NumericFeature)
                else CategoricalYardstick(feature)
                for feature in tensor.features
            )
            for tensor in profile.tensors
        )


def _range(edges: NDArray[np.float32], start: int, end: int) -> str:
    """The interval of values that the bins from `start` to before `end` cover."""
    low = f"{edges[start - 1]:.4g}" if start else ""
    high = f"{edges[end - 1]:.4g}" if end <= len(edges) else ""
    if low and high:
        return f"[{low}, {high})"
    if low:
        return f"≥ {low}"
    return f"< {high}" if high else "any value"
