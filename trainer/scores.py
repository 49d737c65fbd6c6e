"""Metrics of predictions, and the paired difference of two models on the same rows.

A prediction is a value in a regression, else the classes' probabilities. The interval around a
difference comes from leaving out one block of consecutive rows at a time (the jackknife over
blocks): neighbours in time are alike, and an interval from single rows would promise far too much.
It is the same procedure for every metric, also for those that are no mean over rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from .recipe import Metric

HIGHER_IS_BETTER: frozenset[Metric] = frozenset(("roc_auc", "accuracy"))
_SMALLEST = 1e-7  # of a probability, as float32 has it


@dataclass(frozen=True)
class PairedDifference:
    """How much better the second model is than the first; low and high hold it, at 95 % or so."""

    first: float
    second: float
    improvement: float  # positive: the second one is better, whatever the metric's direction
    low: float
    high: float
    rows: int
    blocks: int


def score(
    metric: Metric, truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any] = ()
) -> float:
    """The metric of these rows; NaN where it is not defined (an AUC with one class)."""
    return _METRICS[metric](truth, prediction, classes)


def paired_difference(
    metric: Metric,
    truth: NDArray[Any],
    first: NDArray[Any],
    second: NDArray[Any],
    classes: Sequence[Any] = (),
    blocks: int = 50,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compares two models' predictions for the same rows, which are in the order of time.

    `confidence` is how surely `low` to `high` holds the improvement.
    """
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0

    def improvement(keep: Any) -> float:
        one = score(metric, truth[keep], first[keep], classes)
        two = score(metric, truth[keep], second[keep], classes)
        return sign * (two - one)

    rows = len(truth)
    blocks = max(2, min(blocks, rows // 10))
    whole = improvement(slice(None))
    bounds = np.linspace(0, rows, blocks + 1).astype(int)
    left_out = np.empty(blocks)
    keep = np.ones(rows, dtype=bool)
    for index, (start, stop) in enumerate(pairwise(bounds)):
        keep[start:stop] = False
        left_out[index] = improvement(keep)
        keep[start:stop] = True
    spread = np.sqrt((blocks - 1) / blocks * np.sum((left_out - left_out.mean()) ** 2))
    margin = float(stdtrit(blocks - 1, (1 + confidence) / 2) * spread)
    return PairedDifference(
        first=score(metric, truth, first, classes),
        second=score(metric, truth, second, classes),
        improvement=whole,
        low=whole - margin,
        high=whole + margin,
        rows=rows,
        blocks=blocks,
    )


def _mae(truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]) -> float:
    return float(np.mean(np.abs(truth - prediction)))


def _rmse(truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]) -> float:
    return float(np.sqrt(np.mean((truth - prediction) ** 2)))


def _accuracy(truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]) -> float:
    labels = np.asarray(classes, dtype=truth.dtype)[np.argmax(prediction, axis=1)]
    return float(np.mean(labels == truth))


def _log_loss(truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]) -> float:
    """A class that the model does not know has the smallest probability there is."""
    given = np.full(len(truth), _SMALLEST)
    for column, name in enumerate(classes):
        rows = truth == name
        given[rows] = prediction[rows, column]
    return float(-np.mean(np.log(np.clip(given, _SMALLEST, 1.0))))


def _roc_auc(truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]) -> float:
    positive = truth == classes[1]
    count = int(positive.sum())
    if count in (0, len(truth)):
        return float("nan")
    _, where, ties = np.unique(prediction[:, 1], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[where]  # equal scores share their mean rank
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(truth) - count)))


_METRICS: dict[Metric, Callable[[NDArray[Any], NDArray[Any], Sequence[Any]], float]] = {
    "mae": _mae,
    "rmse": _rmse,
    "roc_auc": _roc_auc,
    "log_loss": _log_loss,
    "accuracy": _accuracy,
}
