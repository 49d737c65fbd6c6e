"""One output of two versions, computed for the same rows: how often, how far and how they differ.

What is far, and which values are looked at together, is the reference's matter: its standard
deviation is the unit of a difference, its bins are those of the PSI. An output without a reference
gets one from the older version's own first answers, so these are kept until somebody asks for
figures and there are enough.

Counts add up row by row, so the figures do not depend on how rows were batched or ordered (those
without a reference: on which rows came before the first question). Not thread-safe by itself.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.divergence import psi, psi_lower_bound
from trimtab._native.histogram import CategoryHistogram, NumericHistogram
from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.manifest import TensorSpec

from ..drift.row_columns import names_of, width_of
from ..drift.yardstick import TensorYardstick
from ..inference.tensor import BYTES, Tensor

OWN_ROWS = 200  # from which an output's own answers become its bins
_MAX_KEPT_ROWS = 4096  # towards them; those that come later wait for the question
_MAX_COLUMNS = 1024  # of an output; a wider one is no table
_ALPHA = 1e-4  # of the PSI's lower bound

_Numbers = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OutputFigures:
    """One output. NaN: nothing is known of it."""

    name: str
    rows: int = 0
    agreement: float = math.nan  # share of the rows with the same answer, or about the same number
    mean_difference: float = math.nan  # of numbers, without sign, in standard deviations
    psi: float = math.nan  # of the column that differs most
    psi_low: float = math.nan  # what it is at least


class OutputPair:
    """The answers of `version` and of `against`; see the module."""

    def __init__(
        self, spec: TensorSpec, reference: ReferenceProfile | None, tolerance: float
    ) -> None:
        self.name = spec.name
        self._spec = spec
        self._tolerance = tolerance
        self._rows = 0
        self._agreeing = 0
        self._difference = 0.0  # sum over rows of the mean over columns
        self._measured = 0  # rows that have one
        self._bins: _Bins | None = None
        self._scale: NDArray[np.float64] | None = None  # per column of a number
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._kept_rows = 0
        for tensor in reference.tensors if reference is not None else ():
            if (tensor.role, tensor.tensor) == ("output", spec.name):
                self._take(tensor)

    def add(self, version: Tensor, against: Tensor, rows: int) -> None:
        """The same rows' answers; tensors that are not rows of columns, or not alike, are let be."""
        width = width_of(against, rows)
        if width is None or width > _MAX_COLUMNS or width_of(version, rows) != width:
            return
        if version.datatype != against.datatype:
            return
        if self._bins is None:
            if self._kept_rows < _MAX_KEPT_ROWS:
                self._kept.append((version, against))
                self._kept_rows += rows
            return
        self._count(version, against, rows)

    def figures(self) -> OutputFigures:
        if self._bins is None and self._kept_rows >= OWN_ROWS:
            self._take(_own_reference(self._spec, [against for _, against in self._kept]))
        kept, self._kept = (self._kept, []) if self._bins is not None else ([], self._kept)
        for version, against in kept:
            self._count(version, against, version.shape[0])
        if self._bins is None or not self._rows:
            return OutputFigures(self.name)
        found, low = self._bins.psi()
        return OutputFigures(
            name=self.name,
            rows=self._rows,
            agreement=self._agreeing / self._rows,
            mean_difference=self._difference / self._measured if self._measured else math.nan,
            psi=found,
            psi_low=low,
        )

    def _take(self, reference: TensorReference) -> None:
        if not 0 < len(reference.features) <= _MAX_COLUMNS:
            return
        self._bins = _Bins(reference)
        if self._spec.datatype.startswith("FP"):
            self._scale = np.array(
                [
                    feature.std
                    if isinstance(feature, NumericFeature) and feature.std > 0
                    else math.nan
                    for feature in reference.features
                ]
            )

    def _count(self, version: Tensor, against: Tensor, rows: int) -> None:
        assert self._bins is not None
        if not self._bins.fits(against, rows):
            return
        self._bins.count(version, against, rows)
        self._rows += rows
        if against.datatype == BYTES:
            self._agreeing += _equal_strings(version, against, rows)
            return
        one, two = version.array().reshape(rows, -1), against.array().reshape(rows, -1)
        if self._scale is None:
            self._agreeing += int(np.all(one == two, axis=1).sum())
            return
        with np.errstate(invalid="ignore"):  # inf - inf
            apart = np.abs(one.astype(np.float64) - two)
            # A reference that never varied has no unit: then only equal numbers agree.
            scaled = np.where(apart == 0, 0.0, apart / self._scale)
        alike = (scaled <= self._tolerance) | (one == two) | (np.isnan(one) & np.isnan(two))
        self._agreeing += int(np.all(alike, axis=1).sum())
        means = scaled.mean(axis=1)
        finite = np.isfinite(means)
        self._difference += float(means[finite].sum())
        self._measured += int(finite.sum())


class _Bins:
    """Both versions' counts over one reference's bins."""

    def __init__(self, reference: TensorReference) -> None:
        self._yardstick = TensorYardstick(reference)
        self._width = len(reference.features)
        numeric = [f for f in reference.features if isinstance(f, NumericFeature)]
        categories = [f for f in reference.features if isinstance(f, CategoricalFeature)]
        self._is_text = bool(categories)
        self._version: NumericHistogram | CategoryHistogram
        self._against: NumericHistogram | CategoryHistogram
        if categories:
            self._version, self._against = (
                CategoryHistogram([f.kept for f in categories], [f.rare for f in categories], 1)
                for _ in range(2)
            )
        else:
            self._version, self._against = (
                NumericHistogram([f.edges for f in numeric], 1) for _ in range(2)
            )

    def fits(self, tensor: Tensor, rows: int) -> bool:
        return width_of(tensor, rows) == self._width and (tensor.datatype == BYTES) == self._is_text

    def count(self, version: Tensor, against: Tensor, rows: int) -> None:
        for histogram, tensor in ((self._version, version), (self._against, against)):
            if isinstance(histogram, CategoryHistogram):
                histogram.update(tensor.wire(), rows)
            else:
                array = tensor.array().reshape(rows, -1)
                if array.dtype == np.float16:
                    array = array.astype(np.float32)
                elif array.dtype.itemsize < 4 and array.dtype != np.bool_:
                    array = array.astype(np.int32)
                histogram.update(array)

    def psi(self) -> tuple[float, float]:
        """(PSI, lower bound) of the column where the lower bound, or else the PSI, is highest."""
        found = []
        version, against = self._version.total(), self._against.total()
        for column, feature in enumerate(self._yardstick.features):
            groups = len(feature.labels)
            one, two = (
                np.bincount(feature.group_of, counts[column][feature.slots], groups)
                for counts in (version, against)
            )
            there = (one + two) > 0
            one, two = one[there], two[there]
            distance = psi(two, one)
            # Both sides answered the same rows, so chance explains less than the bound allows for.
            low = psi_lower_bound(distance, two.sum(), one.sum(), len(one), _ALPHA)
            found.append((low, distance))
        low, distance = max(found)
        return distance, low


def _own_reference(spec: TensorSpec, tensors: list[Tensor]) -> TensorReference:
    rows = [tensor.shape[0] for tensor in tensors]
    if spec.datatype == BYTES:
        cells = [bytes_tensor.decode(t.wire(), t.elements).reshape(t.shape[0], -1) for t in tensors]
        features: tuple[NumericFeature | CategoricalFeature, ...] = tuple(
            categorical_feature(name, column, min_count=1)
            for name, column in zip(
                names_of(spec, cells[0].shape[1]), np.concatenate(cells).T, strict=True
            )
        )
    else:
        values = np.concatenate(
            [t.array().reshape(count, -1) for t, count in zip(tensors, rows, strict=True)]
        )
        features = tuple(
            numeric_feature(name, column)
            for name, column in zip(names_of(spec, values.shape[1]), values.T, strict=True)
        )
    return TensorReference(spec.name, "output", features)


def _equal_strings(one: Tensor, other: Tensor, rows: int) -> int:
    if one.data == other.data:
        return rows
    texts = [bytes_tensor.decode(t.wire(), t.elements).reshape(rows, -1) for t in (one, other)]
    return int(np.all(texts[0] == texts[1], axis=1).sum())
