"""Features that broke: values went missing, categories that nobody knows came, a column stopped varying.

That is another thing than drift. Somebody has to look at it, and a model trained on it would learn
the fault, so a broken feature is never a reason to train (drift_report.py). A fault is looked for
in the newest pane as well as in the window, since a window that is half good and half broken looks
like drift; for the same reason a feature counts as broken for as long as a broken pane is in the
window (`recent`).

That a column stopped varying is told where chance does not explain it: each further row with the
one value is as likely as the commonest value of the reference, or its commonest bin. Neighbouring
rows may be alike though (an hour of weather, the rows of one request), so where the evidence has
measured how many of them weigh as much as an independent one, they count for fewer, and a pane of
`FEWEST` rows may do: in a small window a column that is stuck would look like drift long before
100 rows of it came.
"""

import functools
import math
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

MIN_PANE_ROWS = 100  # a smaller pane is not judged by itself …
FEWEST = 20  # … but for a column that stopped varying, where dependence was measured
MEASURED_PANES = 40  # after which it was, of each feature in its turn (drift_evidence.py)
_VARIED = 0.9  # a column whose commonest value or bin has a larger share may well become constant
_CHANCE = math.log(1e13)  # a column is constant by chance in one of so many panes

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
    """Rates of every feature of a tensor, in its order; 0 where there is no row."""

    rows: list[float]
    missing: list[float]
    unseen: list[float]
    outside: list[float]  # below the reference's lowest value or above its highest
    far: list[float]  # of these, by FAR times its range (binning.py)


class _Slots:
    """Where a tensor's histogram counts what may be a fault, and how it is in the reference."""

    def __init__(self, tensor: TensorReference) -> None:
        features = tensor.features
        numeric = [isinstance(feature, NumericFeature) for feature in features]
        used = [
            len(feature.edges) + 2 if isinstance(feature, NumericFeature) else len(feature.kept) + 3
            for feature in features
        ]
        self._missing = np.array(
            [-1 if is_number else slots - 1 for is_number, slots in zip(numeric, used, strict=True)]
        )
        self._unseen = np.zeros((len(features), max(used, default=0)))
        self._outside, self._far = np.zeros_like(self._unseen), np.zeros_like(self._unseen)
        for row, feature in enumerate(features):
            if isinstance(feature, NumericFeature):
                _mark_beyond(feature, self._outside[row], self._far[row])
            else:
                self._unseen[row, len(feature.kept) + 1] = 1
        self.missing = [_missing_rate(feature) for feature in features]
        self.expected_unseen = [
            feature.expected_unseen if isinstance(feature, CategoricalFeature) else 0.0
            for feature in features
        ]
        self.surprise = [_surprise(feature) for feature in features]

    def rates(self, counts: NDArray[np.uint64]) -> Rates:
        live = counts.astype(np.float64)
        rows = live.sum(axis=1)
        shares = live / np.maximum(rows, 1)[:, None]
        return Rates(
            rows.tolist(),
            shares[np.arange(len(shares)), self._missing].tolist(),
            (shares * self._unseen).sum(axis=1).tolist(),
            (shares * self._outside).sum(axis=1).tolist(),
            (shares * self._far).sum(axis=1).tolist(),
        )


@functools.lru_cache(maxsize=32)
def _slots_of(tensor: TensorReference) -> _Slots:
    """Made once per tensor: references are values, and live as long as their version."""
    return _Slots(tensor)


def rates_of(tensor: TensorReference, counts: NDArray[np.uint64]) -> Rates:
    """From a histogram's slots, (features, slots)."""
    return _slots_of(tensor).rates(counts)


def reference_missing(tensor: TensorReference) -> list[float]:
    """The missing rate of each feature in the reference."""
    return _slots_of(tensor).missing


def faults_of(
    reference: ReferenceProfile,
    tensors: Sequence[TensorCounts | None],
    config: DriftConfig,
    min_rows: int,
    effective: Mapping[Key, float] | None = None,
) -> dict[Key, str]:
    """What broke over these rows, in words; features with fewer rows than that are passed over.

    `effective` is the share of a feature's rows that independent ones would be, where it was
    measured; a column that stopped varying is then told from `FEWEST` rows on.
    """
    fewest = min_rows if effective is None else min(min_rows, FEWEST)
    found: dict[Key, str] = {}
    for tensor, counts in zip(reference.tensors, tensors, strict=True):
        if counts is None or not tensor.features:
            continue
        slots = _slots_of(tensor)
        rates = slots.rates(counts.counts)
        for row, feature in enumerate(tensor.features):
            if rates.rows[row] < fewest:
                continue
            key = (tensor.role, feature.name)
            texts = []
            if rates.rows[row] >= min_rows:
                texts = _of_rates(feature, row, rates, slots, config)
            present = rates.rows[row] * (1 - rates.missing[row])
            weight = present * (effective or {}).get(key, 1.0)
            if weight * slots.surprise[row] >= _CHANCE and (
                value := _only_value(feature, row, counts)
            ):
                texts.append(f"all {present:,.0f} values are {value}, in the reference they vary")
            if texts:
                found[key] = "; ".join(texts)
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


def _of_rates(
    feature: NumericFeature | CategoricalFeature,
    row: int,
    rates: Rates,
    slots: _Slots,
    config: DriftConfig,
) -> list[str]:
    texts = []
    if isinstance(feature, NumericFeature) and rates.far[row] >= config.far_rate > 0:
        texts.append(
            f"{rates.far[row]:.1%} of the rows are far outside of {feature.minimum:g} to "
            f"{feature.maximum:g}, all that the reference knows, by nine times that range or more: "
            "another unit, perhaps"
        )
    rise = rates.missing[row] - slots.missing[row]
    if rise > 0 and rise >= config.missing_rate:
        texts.append(
            f"missing in {rates.missing[row]:.1%} of the rows, {slots.missing[row]:.1%} "
            f"in the reference: a rise of {config.missing_rate:.1%} or more"
        )
    excess = rates.unseen[row] - slots.expected_unseen[row]
    if excess > 0 and excess >= config.unseen_rate:
        texts.append(
            f"{rates.unseen[row]:.1%} of the rows have categories that the reference does not, "
            f"{slots.expected_unseen[row]:.1%} were to be expected: {config.unseen_rate:.1%} or "
            "more above that"
        )
    return texts


def _mark_beyond(
    feature: NumericFeature, outside: NDArray[np.float64], far: NDArray[np.float64]
) -> None:
    """The bins that hold values outside, and far outside, and no others."""
    edges = feature.edges
    below = int(np.searchsorted(edges, np.float32(feature.minimum), "right"))  # bins of less
    above = int(np.searchsorted(edges, np.float32(feature.maximum), "right"))  # the highest's bin
    if below and edges[below - 1] == np.float32(feature.minimum):
        outside[:below] = 1
    outside[above + 1 : len(edges) + 1] = 1
    low, high = far_out(feature.minimum, feature.maximum)
    if len(edges):
        far[0] = edges[0] == low < feature.minimum
        far[len(edges)] = edges[-1] == high > feature.maximum


def _missing_rate(feature: NumericFeature | CategoricalFeature) -> float:
    rows = float(np.sum(feature.counts)) + feature.missing
    if isinstance(feature, CategoricalFeature):
        rows += feature.other
    return feature.missing / rows if rows else 0.0


def _surprise(feature: NumericFeature | CategoricalFeature) -> float:
    """How much less likely each further row makes it that a column is constant by chance, as a
    logarithm; 0 where the reference hardly varies itself."""
    counts = np.asarray(feature.counts, np.float64)
    total = float(counts.sum())
    if isinstance(feature, NumericFeature):
        if not feature.minimum < feature.maximum:
            return 0.0
    else:
        total += feature.other
    share = float(counts.max()) / total if len(counts) and total else 1.0
    return -math.log(share) if 0 < share < _VARIED else 0.0


def _only_value(
    feature: NumericFeature | CategoricalFeature, row: int, counts: TensorCounts
) -> str:
    """The one value of a column; empty: it has none, or several."""
    if isinstance(feature, NumericFeature):
        lowest, highest = counts.lowest, counts.highest
        if lowest is None or highest is None or lowest[row] != highest[row]:  # NaN: no value
            return ""
        return f"{lowest[row]:g}"
    live = counts.counts[row, : len(feature.kept) + 2]  # present ones
    most = int(live.argmax())
    if most >= len(feature.kept) or not live[most] or live[most] != live.sum():
        return ""
    return repr(feature.kept[most].decode("utf-8", "replace"))
