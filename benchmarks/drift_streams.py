"""Columns whose distribution is known, for simulations of drift detection.

References are drawn row by row. Live rows of a column are independent, so that their counts can be
drawn at once from the shares that the distribution has in the groups; where columns or rows depend
on each other, rows are drawn one by one and counted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from trimtab._native.evidence import EvidenceGroups, evidence_groups
from trimtab._native.reference import CategoricalFeature, NumericFeature, numeric_feature

Floats = NDArray[np.float64]

_CATEGORIES = 200


@dataclass(frozen=True)
class Column:
    """A reference, and the shares that live rows have in its groups, by how far they moved."""

    masses: Floats
    shares: Callable[[float], Floats]


def continuous(random: np.random.Generator, rows: int) -> Column:
    """Standard normal; shifts are in standard deviations."""
    feature = numeric_feature("x", random.normal(size=rows))
    groups = evidence_groups(feature)

    def shares(shift: float) -> Floats:
        return normalised(groups.count(np.append(normal_shares(feature.edges, shift), 0)))

    return Column(groups.masses, shares)


def tied(random: np.random.Generator, rows: int) -> Column:
    """Poisson(1): most rows are 0, 1 or 2."""
    feature = numeric_feature("x", random.poisson(1, rows))
    groups = evidence_groups(feature)
    values = np.arange(40)
    bins = np.bincount(
        np.searchsorted(feature.edges, values, side="right"),
        stats.poisson.pmf(values, 1),
        len(feature.edges) + 1,
    )
    live = normalised(groups.count(np.append(bins, 0)))
    return Column(groups.masses, lambda shift: live)


def categorical(random: np.random.Generator, rows: int) -> Column:
    """200 categories whose shares fall as 1/rank: few are common, most are rare."""
    shares = normalised(1 / np.arange(1, _CATEGORIES + 1))
    counts = random.multinomial(rows, shares)
    order = np.argsort(-counts, kind="stable")
    kept = order[counts[order] >= 20]
    rare = order[len(kept) :]
    groups = evidence_groups(
        CategoricalFeature(
            name="x",
            kept=tuple(str(index).encode() for index in kept),
            counts=counts[kept].astype(np.uint64),
            rare=tuple(str(index).encode() for index in rare),
            other=int(counts[rare].sum()),
            missing=0,
        )
    )
    live = normalised(groups.count(np.array([*shares[kept], shares[rare].sum(), 0, 0])))
    return Column(groups.masses, lambda shift: live)


KINDS = {"continuous": continuous, "Poisson(1)": tied, "Zipf": categorical}


def equal_groups(random: np.random.Generator, rows: int, groups: int) -> tuple[Column, Floats]:
    """Normal, in any number of groups of equal mass, and the order statistics between them."""
    ranks = np.arange(1, groups) * rows // groups
    edges = np.sort(random.normal(size=rows))[ranks]
    masses = np.diff(ranks + 1, prepend=0, append=rows + 1).astype(float)
    return Column(masses, lambda shift: normal_shares(edges, shift)), edges


def alike(random: np.random.Generator, rows: int, columns: int) -> Floats:
    """Normal columns, correlated by 0.9."""
    own = random.normal(size=(rows, columns))
    batch: Floats = np.sqrt(0.1) * own + np.sqrt(0.9) * random.normal(size=(rows, 1))
    return batch


def count_rows(
    features: Sequence[NumericFeature], groups: Sequence[EvidenceGroups], batch: Floats
) -> Floats:
    """Rows (rows, columns) as counts of groups."""
    counted = []
    for i, (feature, group) in enumerate(zip(features, groups, strict=True)):
        bins = np.searchsorted(feature.edges, batch[:, i].astype(np.float32), side="right")
        slots = np.bincount(bins, minlength=len(feature.counts) + 1).astype(np.float64)
        counted.append(group.count(slots))
    return padded(counted)


def autocorrelated(random: np.random.Generator, rows: int, correlation: float) -> Floats:
    """A stationary normal series, each row of which resembles the one before."""
    noise = random.normal(size=rows)
    noise[1:] *= np.sqrt(1 - correlation**2)
    series: Floats = signal.lfilter([1.0], [1.0, -correlation], noise)
    return series


def panes_of(series: Floats, edges: Floats, pane: int) -> Iterator[Floats]:
    """Counts between edges, of every `pane` rows in turn."""
    for start in range(0, len(series), pane):
        bins = np.searchsorted(edges, series[start : start + pane], side="right")
        yield np.bincount(bins, minlength=len(edges) + 1).astype(float)


def normal_shares(edges: NDArray[np.floating], shift: float) -> Floats:
    below = stats.norm.cdf(edges.astype(np.float64) - shift)
    return np.diff(below, prepend=0.0, append=1.0)


def normalised(weights: Floats) -> Floats:
    shares: Floats = weights / weights.sum()
    return shares


def padded(rows: Sequence[Floats]) -> Floats:
    """One row each, filled with zeros to the length of the longest."""
    out = np.zeros((len(rows), max(len(row) for row in rows)))
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
