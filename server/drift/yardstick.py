"""The reference in the form that windows are held against: made once, used at every pane.

For each feature the bins of its histogram are put into a few named groups: a numeric feature's into
about ten of equal reference mass, a categorical one's into its commonest categories and the rest;
missing values are a group of their own. PSI is computed over these groups, a report shows them, and
a reason names those that moved most. Immutable, so any thread may use one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab._native.divergence import GroupedReference
from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceProfile,
    TensorReference,
    groups,
)

Counts = NDArray[np.float64]

_NUMERIC_GROUPS = 10
_MAX_SHARES = 12  # groups that a report shows
_MAX_CATEGORIES = 20  # that PSI looks at one by one; the rest counts as one


@dataclass(frozen=True, eq=False)
class FeatureYardstick:
    """One feature; its groups are in a fixed order, the last one is that of missing values."""

    feature: NumericFeature | CategoricalFeature
    labels: Sequence[str]  # of the groups
    group_of: NDArray[np.intp]  # the group of each slot of its histogram that it uses
    slots: NDArray[np.intp]  # those slots; the histogram's last one is -1
    bins: int  # in order, from slot 0 on; 0: categories have no order
    counts: Counts  # the reference's, of those slots
    reference: Counts  # the reference's, of the groups
    shown: tuple[float, ...]  # its shares, as a report shows them


class TensorYardstick:
    """One tensor's features, and the table of all of their counts."""

    def __init__(self, tensor: TensorReference) -> None:
        self.reference = tensor
        self.features = tuple(
            _numeric(feature) if isinstance(feature, NumericFeature) else _categorical(feature)
            for feature in tensor.features
        )
        used = [len(each.slots) for each in self.features]
        slots = max(used, default=0)
        counts = np.zeros((len(self.features), slots))
        group_of = np.full((len(self.features), slots), -1)
        for row, each in enumerate(self.features):
            counts[row, each.slots] = each.counts
            group_of[row, each.slots] = each.group_of
        numeric = [f for f in tensor.features if isinstance(f, NumericFeature)]
        self.table = GroupedReference(
            counts,
            group_of,
            [each.bins for each in self.features],
            edges=[_near(feature) for feature in numeric] or None,
            lower=[feature.minimum for feature in numeric] or None,
            upper=[feature.maximum for feature in numeric] or None,
            scale=[feature.std for feature in numeric] or None,
        )


@functools.lru_cache(maxsize=16)
def yardstick_of(profile: ReferenceProfile) -> "Yardstick":
    """The profile's yardstick, made once: a version may become champion many times."""
    return Yardstick(profile)


class Yardstick:
    """A reference profile's tensors, in its order."""

    def __init__(self, profile: ReferenceProfile) -> None:
        self.profile = profile
        self.tensors = tuple(TensorYardstick(tensor) for tensor in profile.tensors)


def _numeric(feature: NumericFeature) -> FeatureYardstick:
    """Groups of consecutive bins."""
    bins = len(feature.edges) + 1
    starts = np.asarray(groups(feature.counts, at_most=_NUMERIC_GROUPS), np.intp)
    ends = [*starts[1:], bins]
    group_of = np.repeat(np.arange(len(starts)), np.diff([*starts, bins]))
    ranges = [_range(feature.edges, start, end) for start, end in zip(starts, ends, strict=True)]
    return _yardstick(
        feature,
        labels=[*ranges, "missing"],
        group_of=np.append(group_of, len(starts)),
        slots=np.append(np.arange(bins), -1),
        bins=bins,
        counts=np.append(feature.counts.astype(np.float64), feature.missing),
    )


def _categorical(feature: CategoricalFeature) -> FeatureYardstick:
    """The commonest categories, all others together."""
    kept = len(feature.kept)
    counts = np.asarray(feature.counts, np.float64)
    common = np.argsort(-counts, kind="stable")[:_MAX_CATEGORIES]
    group_of = np.full(kept + 3, len(common))  # other and unseen ones too
    group_of[common] = np.arange(len(common))
    group_of[-1] = len(common) + 1
    names = [feature.kept[index].decode("utf-8", "replace") for index in common]
    return _yardstick(
        feature,
        labels=[*names, "other categories", "missing"],
        group_of=group_of,
        slots=np.arange(kept + 3),
        bins=0,
        counts=np.concatenate([counts, [feature.other, 0, feature.missing]]),
    )


def _yardstick(
    feature: NumericFeature | CategoricalFeature,
    *,
    labels: Sequence[str],
    group_of: NDArray[np.intp],
    slots: NDArray[np.intp],
    bins: int,
    counts: Counts,
) -> FeatureYardstick:
    reference = np.bincount(group_of, counts, len(labels)).astype(np.float64)
    return FeatureYardstick(
        feature, labels, group_of, slots, bins, counts, reference, shown(reference)
    )


def shown(counts: Counts) -> tuple[float, ...]:
    """Shares for a report; categories beyond the commonest join the last but one group."""
    each = counts.tolist()
    if len(each) > _MAX_SHARES:
        each = [*each[: _MAX_SHARES - 2], sum(each[_MAX_SHARES - 2 : -1]), each[-1]]
    total = sum(each)
    return tuple([count / total for count in each]) if total else (0.0,) * len(each)


def _near(feature: NumericFeature) -> NDArray[np.float64]:
    """The edges for a distance: a value outside of the reference's range is taken to be a twentieth
    of it out at most, for how far is not known, and the bins there reach nine ranges out."""
    edges = feature.edges.astype(np.float64)
    out = 0.05 * (feature.maximum - feature.minimum)
    if len(edges) and edges[0] < feature.minimum - out:
        edges[0] = feature.minimum - out
    if len(edges) and edges[-1] > feature.maximum + out:
        edges[-1] = feature.maximum + out
    return edges


def _range(edges: NDArray[np.float32], start: int, end: int) -> str:
    """The interval of values that the bins from `start` to before `end` cover."""
    low = f"{edges[start - 1]:.4g}" if start else ""
    high = f"{edges[end - 1]:.4g}" if end <= len(edges) else ""
    if low and high:
        return f"[{low}, {high})"
    if low:
        return f"≥ {low}"
    return f"< {high}" if high else "any value"
