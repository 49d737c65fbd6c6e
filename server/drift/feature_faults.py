"""Features that broke: values went missing, categories that nobody knows came, a column stopped varying.

That is another thing than drift. Somebody has to look at it, and a model trained on it would learn
the fault, so a broken feature is never a reason to train (drift_report.py). A fault is looked for
in the newest pane as well as in the window, since a window that is half good and half broken looks
like drift; for the same reason a feature counts as broken for as long as a broken pane is in the
window (`recent`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab._native.binning import far_out
from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceProfile,
    TensorReference,
)

from ..config import DriftConfig

MIN_PANE_ROWS = 100  # a smaller pane is not judged by itself
_VARIED = 0.9  # a column whose commonest value or bin has a larger share may well become constant

Key = tuple[str, str]
"""Role and name of a feature."""


@dataclass(frozen=True, slots=True)
class TensorCounts:
    """One tensor's counts over some rows, a row of slots per feature as its histogram has them.

    `lowest` and `highest` are the extremes of each numeric feature as far as they matter: exact
    while the two are equal, after that only known to differ. NaN: no value yet.
    """

    counts: NDArray[np.uint64]
    lowest: NDArray[np.float64] | None = None
    highest: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """What is missing or unseen among a feature's rows, and in the reference."""

    rows: float
    missing: float
    unseen: float
    reference_missing: float
    expected_unseen: float = 0.0  # as the reference itself makes one expect
    outside: float = 0.0  # below the reference's lowest value or above its highest
    far: float = 0.0  # of these, by FAR times its range (binning.py)


def rates_of(feature: NumericFeature | CategoricalFeature, slots: NDArray[np.uint64]) -> Rates:
    """From one feature's slots."""
    rows = float(slots.sum())
    known = float(np.sum(feature.counts))
    unseen = expected_unseen = outside = far = 0.0
    if isinstance(feature, NumericFeature):
        missing = float(slots[-1])
        if rows:
            outside, far = _beyond(feature, slots[: len(feature.counts)] / rows)
    else:
        known += feature.other
        kept = len(feature.kept)
        unseen, missing = float(slots[kept + 1]), float(slots[kept + 2])
        expected_unseen = feature.expected_unseen
    return Rates(
        rows,
        missing / rows if rows else 0.0,
        unseen / rows if rows else 0.0,
        feature.missing / (known + feature.missing) if known or feature.missing else 0.0,
        expected_unseen,
        outside,
        far,
    )


def _beyond(feature: NumericFeature, shares: NDArray[np.float64]) -> tuple[float, float]:
    """The shares outside and far outside, as far as the bins tell."""
    edges, counts = feature.edges, feature.counts
    below = int(np.searchsorted(edges, np.float32(feature.minimum), "right"))  # bins of less
    above = int(np.searchsorted(edges, np.float32(feature.maximum), "right"))  # the highest's bin
    outside = far = 0.0
    if below and edges[below - 1] == np.float32(feature.minimum):
        outside += float(shares[:below].sum())
    if not counts[above + 1 :].any() and above < len(edges):
        outside += float(shares[above + 1 :].sum())
    low, high = far_out(feature.minimum, feature.maximum)
    if len(edges) and edges[0] == low < feature.minimum:
        far += float(shares[0])
    if len(edges) and edges[-1] == high > feature.maximum:
        far += float(shares[-1])
    return outside, far


def faults_of(
    reference: ReferenceProfile,
    tensors: Sequence[TensorCounts | None],
    config: DriftConfig,
    min_rows: int,
) -> dict[Key, str]:
    """What broke over these rows, in words; features with fewer rows than that are passed over."""
    found: dict[Key, str] = {}
    for tensor, counts in zip(reference.tensors, tensors, strict=True):
        if counts is None:
            continue
        for index, feature in enumerate(tensor.features):
            if counts.counts[index].sum() < min_rows:
                continue
            texts = _faults(tensor, index, counts, config)
            if texts:
                found[tensor.role, feature.name] = "; ".join(texts)
    return found


def recent(panes: Iterable[Mapping[Key, str]], at_most: int) -> dict[Key, str]:
    """The faults of the panes in a window, the oldest first, each told in its newest words."""
    said: dict[Key, str] = {}
    times: dict[Key, int] = {}
    for faults in panes:
        for key, text in faults.items():
            said[key] = text
            times[key] = times.get(key, 0) + 1
    return {
        key: f"in {times[key]} of the last {at_most} panes: {text}" for key, text in said.items()
    }


def _faults(
    tensor: TensorReference, index: int, counts: TensorCounts, config: DriftConfig
) -> list[str]:
    feature, slots = tensor.features[index], counts.counts[index]
    rates = rates_of(feature, slots)
    texts = []
    if isinstance(feature, NumericFeature) and rates.far >= config.far_rate > 0:
        texts.append(
            f"{rates.far:.1%} of the rows are far outside of {feature.minimum:g} to "
            f"{feature.maximum:g}, all that the reference knows, by nine times that range or more: "
            "another unit, perhaps"
        )
    rise = rates.missing - rates.reference_missing
    if rise > 0 and rise >= config.missing_rate:
        texts.append(
            f"missing in {rates.missing:.1%} of the rows, {rates.reference_missing:.1%} "
            f"in the reference: a rise of {config.missing_rate:.1%} or more"
        )
    excess = rates.unseen - rates.expected_unseen
    if excess > 0 and excess >= config.unseen_rate:
        texts.append(
            f"{rates.unseen:.1%} of the rows have categories that the reference does not, "
            f"{rates.expected_unseen:.1%} were to be expected: {config.unseen_rate:.1%} or more "
            "above that"
        )
    value = (
        _only_number(feature, index, counts)
        if isinstance(feature, NumericFeature)
        else _only_category(feature, slots)
    )
    if value:
        present = float(slots.sum()) * (1 - rates.missing)
        texts.append(f"all {present:,.0f} values are {value}, in the reference they vary")
    return texts


def _only_number(feature: NumericFeature, index: int, counts: TensorCounts) -> str:
    """The one value of a column that varies in the reference; empty: it varies here too."""
    reference = np.asarray(feature.counts, np.float64)
    if (
        counts.lowest is None
        or counts.highest is None
        or counts.lowest[index] != counts.highest[index]  # NaN, where there is no value, is not
        or not feature.minimum < feature.maximum
        or reference.max() >= _VARIED * reference.sum()
    ):
        return ""
    return f"{counts.lowest[index]:g}"


def _only_category(feature: CategoricalFeature, slots: NDArray[np.uint64]) -> str:
    kept = len(feature.kept)
    total = float(np.sum(feature.counts)) + feature.other
    live = slots[:kept]
    present = float(slots[: kept + 2].sum())
    if not kept or not present or float(live.max()) != present:
        return ""
    if float(np.max(feature.counts)) >= _VARIED * total:
        return ""
    return repr(feature.kept[int(live.argmax())].decode("utf-8", "replace"))
