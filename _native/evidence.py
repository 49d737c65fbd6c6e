"""What stands around the e-detector: its groups, several features at once, rows that are dependent.

The groups of a feature are fewer than those of PSI and each has at least 50 reference rows. For a
continuous column the masses are exact: bins begin at order statistics, so that a group is as many
of the reference's intervals as it has rows, and the first one has one more. With ties and with
categories the reference's rows are estimates, and a group that passes the limit of 50 by luck is
taken for drift in the end: by calculation, for two groups, the expected e-value is then 1.3 at
most, and 1 or less from about twice the limit on. Half a row more per group, as one would add to
estimate shares, makes that 1.45. A column that leaves one group (a constant one) never yields
evidence; that it changed is a matter of data quality.

Several features: the mean of their e-detectors is, after n checks, at most n in expectation, whatever
their dependence. That it is so at a time that all features together tell one to stop, which run lengths
need, is proven where features are independent, and where one is a coarser form of another; otherwise
what one feature shows of the reference says something of the others too, and averages do not cover
that (Choe and Ramdas, *Combining evidence across filtrations*, arXiv:2402.09698). The larger the
reference, the less of it. Simulated run lengths of columns correlated by 0.9 are above the target,
as others are (docs/drift.md).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .binning import groups
from .reference import CategoricalFeature, Feature, NumericFeature

_LEAST_MASS = 50  # reference rows of a group
_NUMERIC_GROUPS = 10
_CATEGORY_GROUPS = 16  # that of missing values and that of all other categories included
_LEAST_PANES = 5
_LEAST_IN_PANE = 5  # mean rows of a group in a pane: a normal approximation needs them

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EvidenceGroups:
    """How a feature's histogram slots make up the groups of its e-detector."""

    masses: _Floats  # per group
    _slots: NDArray[np.intp]  # positions in a histogram's row, from the end if negative
    _group: NDArray[np.intp]  # of each of these; len(masses) if its rows are left out

    def count(self, row: NDArray[np.uint64] | _Floats) -> _Floats:
        """A histogram's row of slots as rows per group."""
        size = len(self.masses)
        counted = np.bincount(self._group, row[self._slots].astype(np.float64), size + 1)
        return counted[:size].astype(np.float64)


def evidence_groups(feature: Feature) -> EvidenceGroups:
    """Groups of a feature; missing values are one if the reference has enough, else left out."""
    if isinstance(feature, NumericFeature):
        return _numeric(feature)
    return _categorical(feature)


def _numeric(feature: NumericFeature) -> EvidenceGroups:
    counts = feature.counts.astype(np.float64)
    present = counts.sum()
    at_most = min(max(int(present) // _LEAST_MASS, 1), _NUMERIC_GROUPS)
    starts = _merged(counts, [int(start) for start in groups(counts, at_most)])
    masses = np.add.reduceat(counts, starts)
    masses[0] += 1  # m rows leave m + 1 intervals
    if feature.missing >= _LEAST_MASS <= present:
        masses = np.append(masses, float(feature.missing))
    group = np.searchsorted(starts, np.arange(len(counts)), side="right") - 1
    return EvidenceGroups(
        masses, np.append(np.arange(len(counts)), -1), np.append(group, len(starts))
    )


def _merged(counts: _Floats, starts: list[int]) -> list[int]:
    """Starts of the groups after each that is too light has joined its lighter neighbour."""
    while len(starts) > 1:
        mass = np.add.reduceat(counts, starts)
        lightest = int(np.argmin(mass))
        if mass[lightest] >= _LEAST_MASS:
            break
        left = mass[lightest - 1] if lightest > 0 else math.inf
        right = mass[lightest + 1] if lightest + 1 < len(mass) else math.inf
        del starts[lightest if left <= right else lightest + 1]
    return starts


def _categorical(feature: CategoricalFeature) -> EvidenceGroups:
    kept = feature.counts.astype(np.float64)
    others = kept.sum() + feature.other
    of_missing = feature.missing >= _LEAST_MASS <= others
    common = np.argsort(-kept, kind="stable")[: _CATEGORY_GROUPS - 1 - of_missing]
    alone = [int(index) for index in common if kept[index] >= _LEAST_MASS]
    others -= kept[alone].sum()
    while alone and others < _LEAST_MASS:  # what is new needs a group that has some mass
        others += kept[alone.pop()]
    group = np.full(len(kept) + 3, len(alone))  # other and unseen ones too
    group[alone] = np.arange(len(alone))
    group[-1] = len(alone) + 1
    masses = [*kept[alone], max(others, 1.0), *([float(feature.missing)] if of_missing else [])]
    return EvidenceGroups(np.array(masses), np.arange(len(kept) + 3), group)


def log_threshold(target_checks: float) -> float:
    """What log evidence must reach for false alarms that are that many checks apart or more."""
    if not target_checks >= 1:
        raise ValueError(f"target_checks must be at least 1, not {target_checks}")
    return math.log(target_checks)


def global_log_evidence(log_e: _Floats) -> float:
    """The logarithm of the mean of the features' evidence."""
    largest = float(np.max(log_e))
    if not math.isfinite(largest):  # none yet
        return largest
    return largest + math.log(float(np.mean(np.exp(np.asarray(log_e) - largest))))


def e_bh(log_e: _Floats, alpha: float) -> NDArray[np.intp]:
    """The features to which evidence is attributed, the strongest first: the largest k whose k-th
    largest evidence is at least features / (k·alpha) (Wang and Ramdas, *JRSS B* 84, 2022).

    With e-values the false discovery rate is at most alpha; with e-detectors and alpha = 1 /
    target_checks it is at most alpha for every check that was made, in expectation (Dandapanthula
    and Ramdas, arXiv:2501.04130).
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}")
    order = np.argsort(-np.asarray(log_e), kind="stable")
    ranks = np.arange(1, len(order) + 1)
    enough = np.asarray(log_e)[order] >= np.log(len(order) / (ranks * alpha))
    found: NDArray[np.intp] = order[: ranks[enough].max(initial=0)]
    return found


def design_effect(pane_counts: NDArray[np.float64] | NDArray[np.uint64]) -> float:
    """How many rows weigh as much as one independent row, at least 1, from the counts (panes,
    groups) of panes in the order of time; divide counts by it before they become evidence.

    How much more the shares of neighbouring panes differ than those of independent rows would:
    with C the covariance of these differences, whitened so that it is the identity for independent
    rows, tr C² / tr C. That is Rao and Scott's mean design effect with each direction weighted by
    itself (*Annals of Statistics* 12, 1984): evidence adds up along the worst one, and their tr C /
    (groups − 1) leaves most false alarms in place. Rows that depend on each other across panes, as
    by the hour of the day, do not show. A change of level is one difference of many, which is cut
    to the size that chance explains. 1 for fewer than 5 panes with rows or 5 rows per group of them.
    """
    counts = np.asarray(pane_counts, np.float64)
    if counts.ndim != 2:
        raise ValueError(f"counts have shape {counts.shape}, expected (panes, groups)")
    counts = counts[counts.sum(axis=1) > 0]
    panes = len(counts)
    counts = _dense(counts)
    dimensions = counts.shape[1] - 1
    if panes < _LEAST_PANES or dimensions < 1:
        return 1.0
    rows = counts.sum(axis=1)
    expected = counts.sum(axis=0) / rows.sum()
    differences = np.diff(counts / rows[:, None], axis=0)
    differences /= np.sqrt((1 / rows[1:] + 1 / rows[:-1])[:, None] * expected)
    return max(_weighted(_shortened(differences, dimensions)), 1.0)


def _dense(counts: _Floats) -> _Floats:
    """The groups that have enough rows, and one of all the others; or fewer, if they have not."""
    mean = counts.sum(axis=0) / max(len(counts), 1)
    few = mean < _LEAST_IN_PANE
    if not few.any():
        return counts
    rest = counts[:, few].sum(axis=1, keepdims=True)
    counts = counts[:, ~few]
    if few.all() or mean[few].sum() >= _LEAST_IN_PANE:
        return np.hstack([counts, rest])
    counts[:, [np.argmin(mean[~few])]] += rest
    return counts


def _shortened(differences: _Floats, dimensions: int) -> _Floats:
    """None longer than one in 10,000 would be by chance, judged by the median of their lengths."""
    squares = (differences**2).sum(axis=1)
    spread = 2 / (9 * dimensions)  # Wilson and Hilferty's quantiles of χ²
    chance = ((1 - spread + 3.72 * math.sqrt(spread)) / (1 - spread)) ** 3
    limit = chance * float(np.median(squares))
    if not limit:
        return differences
    kept: _Floats = np.sqrt(limit / np.maximum(squares, limit))
    return differences * kept[:, None]


def _weighted(differences: _Floats) -> float:
    """tr C² / tr C. Products of two differences that share no pane are unbiased for tr C²."""
    products = (differences @ differences.T) ** 2
    apart = np.triu(np.ones_like(products), 2) > 0
    trace = float((differences**2).sum(axis=1).mean())
    return float(products[apart].mean()) / trace if trace else 1.0
