"""Whether rows are fit to be trained on: what is broken, and what a person should look at.

Everything here goes by a few statistics of each column (`statistics_of`), and `judge` is a pure
function over those of the window, those of its newest rows, and the reference profile of the
champion. The newest rows are looked at by themselves: what broke yesterday is a small part of a
window, and a model that learns it is worse for weeks. An error means that the data are broken, and
the training ends; a warning goes into the report. A single training row never decides.

A column that says the target nearly perfectly is told as a suspect, not as an error: there are such
columns that are honest, and what was known too late only a person can know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab._native.binning import far_out
from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceFormatError,
    ReferenceProfile,
)

from .dataset import Dataset, LabelFacts
from .errors import DataError

Severity = Literal["error", "warning"]

_POINTS = 513  # quantiles of a numeric column
_SAMPLE = 20_000  # rows that associations are found on
_MIN_ROWS = 50  # below them shares are not judged
_MISSING = (0.5, 0.2)  # rise of the missing share that is an error, a warning
_FAR = (0.1, 0.001)  # share of values far outside of the reference's range
_OUTSIDE = 0.05  # share outside of the range at all: a warning
_UNSEEN = (0.9, 0.05)  # share of rows in categories that the reference has not
_STEADY = 0.9  # a column with a value that common may have it alone for a while
SUSPICIOUS = 0.999  # association with the target from which a column is a suspect
_COMMON = 5  # rows of a category that can tell something
_ONE_CLASS_ROWS = 200  # labels of one class alone from which that is no chance
_SWAPPED = (0.3, 0.1)  # distance from its own reference, at least; from the other's, at most


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a column ("" for all of them) or that may be."""

    column: str
    what: str
    number: float
    severity: Severity
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.column}: {self.reason}" if self.column else self.reason


@dataclass(frozen=True, eq=False)
class NumericStatistics:
    """`quantiles` are evenly spaced from the smallest to the largest finite value."""

    name: str
    missing: float  # share of the rows
    quantiles: NDArray[np.float64]
    association: float = 0.0  # with the target, 0 to 1

    @property
    def constant(self) -> bool:
        return bool(len(self.quantiles)) and self.quantiles[0] == self.quantiles[-1]

    def share_outside(self, low: float, high: float) -> float:
        if not len(self.quantiles):
            return 0.0
        outside = (self.quantiles < low) | (self.quantiles > high)
        return float(outside.mean()) * (1 - self.missing)


@dataclass(frozen=True, eq=False)
class CategoricalStatistics:
    """`shares` of the rows by category; "" is a missing one."""

    name: str
    shares: Mapping[str, float]
    association: float = 0.0

    @property
    def missing(self) -> float:
        return self.shares.get("", 0.0)

    @property
    def constant(self) -> bool:
        return len(self.shares) == 1


@dataclass(frozen=True, eq=False)
class DataStatistics:
    rows: int
    numeric: tuple[NumericStatistics, ...]
    categorical: tuple[CategoricalStatistics, ...]
    labels: LabelFacts = field(default_factory=LabelFacts)


class DataQualityError(DataError):
    """The data are broken; `findings` are all that was found, warnings too."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        broken = [str(finding) for finding in findings if finding.severity == "error"]
        super().__init__(f"the data are broken, nothing was trained: {'; '.join(broken)}")


def check(dataset: Dataset, reference: ReferenceProfile | None) -> tuple[Finding, ...]:
    """What is to be said of a window; DataQualityError where it is broken and may not be.

    `reference`: the champion's profile, None where there is none.
    """
    newest = max(_MIN_ROWS, round(len(dataset) * dataset.recipe.holdout))
    recent = dataset.slice(max(0, len(dataset) - newest))
    findings = judge(statistics_of(dataset), statistics_of(recent, associate=False), reference)
    stop = dataset.recipe.quality == "stop"
    if stop and any(finding.severity == "error" for finding in findings):
        raise DataQualityError(findings)
    return findings


def reference_of(version: Path) -> ReferenceProfile | None:
    """The profile in a version's directory; None where it has none that can be read."""
    try:
        return ReferenceProfile.load(version / "reference.npz")
    except (OSError, ReferenceFormatError):
        return None


def report_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, errors first."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "error")
    return "\n".join(f"{finding.severity}: {finding}" for finding in ordered)


def statistics_of(dataset: Dataset, associate: bool = True) -> DataStatistics:
    """The statistics of a dataset's columns; `associate`: those with the target too."""
    recipe, frame = dataset.recipe, dataset.frame
    step = max(1, -(-len(dataset) // _SAMPLE))
    target = dataset.target()[::step] if associate else np.empty(0)
    numeric = []
    for name in recipe.numeric:
        values = frame[name].to_numpy().astype(np.float64)
        finite = values[np.isfinite(values)]
        quantiles = np.quantile(finite, np.linspace(0, 1, _POINTS)) if len(finite) else finite
        found = numeric_association(values[::step], target, recipe.classification)
        missing = float(np.isnan(values).mean()) if len(values) else 0.0
        numeric.append(NumericStatistics(name, missing, quantiles, found if associate else 0.0))
    categorical = []
    for name in recipe.categorical:
        counts = frame[name].value_counts(sort=True)
        shares = {value: count / len(dataset) for value, count in counts.iter_rows()}
        found = 0.0
        if associate:
            values = frame[name].gather_every(step).to_numpy()
            found = categorical_association(values, target, recipe.classification)
        categorical.append(CategoricalStatistics(name, shares, found))
    return DataStatistics(len(dataset), tuple(numeric), tuple(categorical), dataset.labels)


def judge(
    window: DataStatistics, newest: DataStatistics, reference: ReferenceProfile | None
) -> tuple[Finding, ...]:
    """All findings, in the order of the columns."""
    known = {
        feature.name: feature
        for tensor in (reference.tensors if reference is not None else ())
        if tensor.role == "input"
        for feature in tensor.features
    }
    found: list[Finding] = []
    for numbers, latest in zip(window.numeric, newest.numeric, strict=True):
        found += _suspect(numbers)
        found += _constant(numbers)
        feature = known.get(numbers.name)
        if isinstance(feature, CategoricalFeature):
            found.append(_other_type(numbers.name, "numbers", "text"))
        elif feature is not None and newest.rows >= _MIN_ROWS:
            found += _numeric(latest, feature)
    for texts, latest_texts in zip(window.categorical, newest.categorical, strict=True):
        found += _suspect(texts)
        found += _constant(texts)
        feature = known.get(texts.name)
        if isinstance(feature, NumericFeature):
            found.append(_other_type(texts.name, "text", "numbers"))
        elif feature is not None and newest.rows >= _MIN_ROWS:
            found += _categorical(latest_texts, feature)
    numeric = {
        name: feature for name, feature in known.items() if isinstance(feature, NumericFeature)
    }
    if newest.rows >= _MIN_ROWS:
        found += _swapped(newest.numeric, numeric)
    return (*found, *_labels(window.labels))


def _numeric(column: NumericStatistics, feature: NumericFeature) -> list[Finding]:
    rows = int(feature.counts.sum()) + feature.missing
    if not rows:
        return []
    found = _missing(column.name, column.missing, feature.missing / rows)
    if feature.missing == rows or not np.isfinite(feature.minimum):
        return found
    steady = int(feature.counts.max()) / rows
    if column.constant and feature.minimum < feature.maximum and steady < _STEADY:
        told = f"every one of the newest rows has {column.quantiles[0]:.6g}"
        told += f", the reference has {feature.minimum:.6g} to {feature.maximum:.6g}"
        found.append(Finding(column.name, "constant", 1.0, "error", told))
    low, high = (float(value) for value in far_out(feature.minimum, feature.maximum))
    far = column.share_outside(low, high) if feature.minimum < feature.maximum else 0.0
    outside = column.share_outside(feature.minimum, feature.maximum)
    range_ = f"the reference's range, {feature.minimum:.6g} to {feature.maximum:.6g}"
    if far >= _FAR[1]:
        reason = f"{far:.1%} of the newest rows are far outside of {range_}"
        found.append(Finding(column.name, "far_out", far, _severity(far, _FAR[0]), reason))
    elif outside >= _OUTSIDE:
        reason = f"{outside:.1%} of the newest rows are outside of {range_}"
        found.append(Finding(column.name, "out_of_range", outside, "warning", reason))
    return found


def _categorical(column: CategoricalStatistics, feature: CategoricalFeature) -> list[Finding]:
    rows = int(feature.counts.sum()) + feature.missing + feature.other
    if not rows:
        return []
    found = _missing(column.name, column.missing, feature.missing / rows)
    seen = {name.decode(errors="replace") for name in (*feature.kept, *feature.rare)}
    common = int(feature.counts.max()) / rows if len(feature.counts) else 1.0
    if column.constant and len(seen) > 1 and common < _STEADY and column.missing < 1:
        only = next(iter(column.shares))
        told = f"every one of the newest rows has {only!r}, the reference has {len(seen):,} values"
        found.append(Finding(column.name, "constant", 1.0, "error", told))
    usual = feature.expected_unseen
    unseen = sum(share for value, share in column.shares.items() if value and value not in seen)
    if unseen - usual >= _UNSEEN[1]:
        reason = f"{unseen:.1%} of the newest rows have a category that the reference has not"
        found.append(Finding(column.name, "unseen", unseen, _severity(unseen, _UNSEEN[0]), reason))
    return found


def _missing(name: str, now: float, before: float) -> list[Finding]:
    rise = now - before
    if rise < _MISSING[1]:
        return []
    reason = f"{now:.1%} of the newest rows have no value, in the reference {before:.1%} have none"
    return [Finding(name, "missing", now, _severity(rise, _MISSING[0]), reason)]


def _constant(column: NumericStatistics | CategoricalStatistics) -> list[Finding]:
    if not column.constant:
        return []
    reason = "has one value in all rows, a model can learn nothing from it"
    return [Finding(column.name, "constant_window", 1.0, "warning", reason)]


def _suspect(column: NumericStatistics | CategoricalStatistics) -> list[Finding]:
    if column.association <= SUSPICIOUS:
        return []
    reason = (
        f"tells the target almost perfectly ({column.association:.5f} of 1): "
        "is it known before the prediction is made?"
    )
    return [Finding(column.name, "leakage", column.association, "warning", reason)]


def _other_type(name: str, now: str, before: str) -> Finding:
    return Finding(name, "type", 1.0, "warning", f"is {now}, and {before} in the champion")


def _swapped(
    columns: Sequence[NumericStatistics], known: Mapping[str, NumericFeature]
) -> list[Finding]:
    """Pairs of columns that look like each other's reference and not like their own."""
    found: list[Finding] = []
    strange = [
        column
        for column in columns
        if column.name in known and _distance(column, known[column.name]) >= _SWAPPED[0]
    ]
    for at, one in enumerate(strange):
        for other in strange[at + 1 :]:
            crossed = max(_distance(one, known[other.name]), _distance(other, known[one.name]))
            if crossed <= _SWAPPED[1]:
                reason = f"looks like {other.name!r} in the reference and the other way round"
                reason += ": the columns seem to be swapped"
                found.append(Finding(one.name, "swapped", 1 - crossed, "error", reason))
    return found


def _distance(column: NumericStatistics, feature: NumericFeature) -> float:
    """The Kolmogorov–Smirnov distance at the reference's edges; 0 where there is nothing."""
    total = int(feature.counts.sum())
    if not total or not len(feature.edges) or not len(column.quantiles):
        return 0.0
    before = np.cumsum(feature.counts)[:-1] / total
    now = np.searchsorted(column.quantiles, feature.edges, side="left") / len(column.quantiles)
    return float(np.abs(now - before).max())


def _labels(labels: LabelFacts) -> list[Finding]:
    found: list[Finding] = []
    if labels.duplicates:
        share = labels.duplicates / max(1, labels.rows + labels.duplicates)
        reason = f"{labels.duplicates:,} served rows are in the log twice (same id and row)"
        reason += ", the later one was taken"
        found.append(Finding("", "duplicates", share, "warning", reason))
    served = labels.served_classes
    if (
        len(served) == 1
        and sum(served.values()) >= _ONE_CLASS_ROWS
        and len(labels.file_classes) > 1
    ):
        [only] = served
        share = labels.file_classes.get(only, 0) / sum(labels.file_classes.values())
        if share < 0.95:
            reason = f"all {labels.rows:,} labels of served rows are {only!r}, of the files' rows "
            reason += f"{share:.1%} are: labels of the other classes seem never to come"
            found.append(Finding("", "one_class", 1 - share, "error", reason))
    return found


def numeric_association(
    values: NDArray[np.float64], target: NDArray[Any], classification: bool
) -> float:
    """How well a column alone says the target; missing values take no part.

    A correlation (of the values or their ranks), the area under the ROC curve of two classes, or
    of more classes how much rarer than by chance two neighbouring values differ in theirs: 1 is
    perfect in each case.
    """
    if len(values) != len(target):
        return 0.0
    known = np.isfinite(values)
    values, target = values[known], target[known]
    if len(values) < _MIN_ROWS or values.min() == values.max():
        return 0.0
    if not classification:
        numbers = target.astype(np.float64)
        return max(_correlation(values, numbers), _correlation(_ranks(values), _ranks(numbers)))
    classes, codes = np.unique(target, return_inverse=True)
    if len(classes) == 2:
        positive = codes == 1
        ones = int(positive.sum())
        above = _ranks(values)[positive].sum() - ones * (ones - 1) / 2
        auc = above / (ones * (len(values) - ones))
        return float(max(auc, 1 - auc))
    distinct, groups = np.unique(values, return_inverse=True)
    if len(distinct) * _COMMON <= len(values):
        return _purity(groups, codes)
    ordered = codes[np.argsort(values, kind="stable")]
    shares = np.bincount(codes) / len(codes)
    by_chance = 1 - float(shares @ shares)  # that neighbours are of different classes
    changes = int((ordered[1:] != ordered[:-1]).sum()) - (len(classes) - 1)  # those must be
    return 1 - max(0, changes) / (by_chance * (len(codes) - 1)) if by_chance else 0.0


def categorical_association(
    values: NDArray[Any], target: NDArray[Any], classification: bool
) -> float:
    """The same for text. Rare categories take no part, or a name of each row would tell it."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    common = counts[codes] >= _COMMON
    if common.sum() < max(_MIN_ROWS, len(values) // 2):
        return 0.0
    codes, target = codes[common], target[common]
    if classification:
        return _purity(codes, np.unique(target, return_inverse=True)[1])
    numbers = target.astype(np.float64)
    sizes = np.bincount(codes)
    means = np.bincount(codes, numbers) / np.maximum(sizes, 1)
    spread = numbers.var()
    return float(1 - (numbers - means[codes]).var() / spread) if spread else 0.0


def _purity(groups: NDArray[np.intp], classes: NDArray[np.intp]) -> float:
    """Of the mistakes of naming the commonest class always, the share that the groups spare."""
    table = np.zeros((int(groups.max()) + 1, int(classes.max()) + 1))
    np.add.at(table, (groups, classes), 1)
    base = table.sum(axis=0).max() / len(classes)
    pure = table.max(axis=1).sum() / len(classes)
    return float((pure - base) / (1 - base)) if base < 1 else 0.0


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return abs(float(one @ other)) / scale if scale > 0 and np.isfinite(scale) else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 on; equal values share the mean of theirs."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    stops = np.cumsum(counts)
    ranks: NDArray[np.float64] = (stops - (counts + 1) / 2)[codes]
    return ranks


def _severity(value: float, error_from: float) -> Severity:
    return "error" if value >= error_from else "warning"
