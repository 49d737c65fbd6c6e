"""The batches that are counted, and what numpy says their counts are. Seeds are fixed.

Of every case there are as many batches as make about 30,000 values: a few hundred, again and again,
are what a processor learns by heart, so that searching them costs a branch that is always foreseen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor

Counts = NDArray[np.int64]

_VALUES = 30_720
_REFERENCE_ROWS = 20_000


@dataclass(frozen=True)
class Case:
    """Batches of `rows` of `features`; `values` is one of those of `drawn`, panes or strings."""

    bins: int  # of each feature; its categories, of strings
    features: int
    rows: int
    values: str = "normal"

    @property
    def batches(self) -> int:
        return max(1, _VALUES // (self.rows * self.features))

    @property
    def size(self) -> int:
        """Values in all batches."""
        return self.batches * self.rows * self.features

    @property
    def name(self) -> str:
        if self.values == "strings":
            return f"categories{self.bins}_rows{self.rows}"
        name = f"bins{self.bins}_features{self.features}_rows{self.rows}"
        return name if self.values == "normal" else f"{name}_{self.values}"


CASES = (
    Case(64, 30, 1024),
    Case(64, 30, 1024, "lognormal"),
    Case(64, 30, 1024, "ties"),
    Case(64, 30, 1024, "half_nan"),
    Case(64, 30, 1024, "panes"),
    Case(64, 30, 64),
    Case(64, 30, 1),
    Case(64, 1, 1024),
    Case(16, 30, 64),
    Case(256, 30, 1024),
    Case(256, 30, 1024, "lognormal"),
    Case(256, 30, 1024, "ties"),
    Case(256, 30, 1024, "half_nan"),
    Case(256, 30, 64),
    Case(256, 30, 1),
    Case(40, 10, 1024, "strings"),
    Case(40, 10, 64, "strings"),
    Case(40, 10, 1, "strings"),
    Case(200, 10, 1024, "strings"),
)


@dataclass(frozen=True, eq=False)
class Numbers:
    """Row-major batches of float32, the edges of each column, and what is in each bin."""

    case: Case
    batches: list[NDArray[np.float32]]
    edges: list[NDArray[np.float32]]
    expected: Counts  # (features, bins)
    missing: Counts  # (features,): NaN

    @classmethod
    def of(cls, case: Case) -> "Numbers":
        """Bins have equal shares of a reference that is lognormal if the batches are, else normal."""
        random = np.random.default_rng(0)
        rows = drawn(case.values, random, (case.batches * case.rows, case.features))
        of_reference = "lognormal" if case.values == "lognormal" else "normal"
        levels = np.arange(1, case.bins) / case.bins
        edges = []
        for _ in range(case.features):
            values = drawn(of_reference, random, (_REFERENCE_ROWS,))
            edges.append(np.unique(np.quantile(values, levels).astype(np.float32)))
        expected = [
            np.bincount(
                np.searchsorted(edges[j], column[~np.isnan(column)], side="right"),
                minlength=case.bins,
            )
            for j, column in enumerate(rows.T)
        ]
        batches = np.split(rows, case.batches)
        return cls(case, batches, edges, np.array(expected), np.isnan(rows).sum(axis=0))


@dataclass(frozen=True, eq=False)
class Strings:
    """BYTES tensors in their wire form, their values column by column, and the known categories."""

    case: Case
    raw: list[bytes]
    columns: list[list[list[bytes]]]  # of each batch
    kept: list[list[bytes]]
    expected: Counts  # (features, categories)

    @classmethod
    def of(cls, case: Case) -> "Strings":
        random = np.random.default_rng(0)
        kept = [[f"C{i:04d}-{j}".encode() for i in range(case.bins)] for j in range(case.features)]
        picked = random.integers(case.bins, size=(case.batches, case.features, case.rows))
        columns = [[[kept[j][i] for i in row] for j, row in enumerate(batch)] for batch in picked]
        raw = [bytes_tensor.encode(np.array(batch, dtype=object).T.ravel()) for batch in columns]
        expected = [
            np.bincount(picked[:, j].ravel(), minlength=case.bins) for j in range(len(kept))
        ]
        return cls(case, raw, columns, kept, np.array(expected))


def drawn(values: str, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal values, but for: lognormal with a sigma of 3; nine of ten the same; half missing."""
    normal = random.normal(size=shape)
    if values == "lognormal":
        normal = np.exp(3 * normal)
    elif values == "ties":
        normal[random.random(shape) < 0.9] = 0.5
    elif values == "half_nan":
        normal[random.random(shape) < 0.5] = np.nan
    return normal.astype(np.float32)
