"""How far two binned samples lie apart, from their counts over the same bins.

Counts are not negative, of any numeric type; ValueError if they are, or if the numbers of bins
differ. Formulas and sources are in docs/drift.md.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

_Counts: TypeAlias = NDArray[Any] | Sequence[float]

def psi(reference: _Counts, current: _Counts) -> float:
    """The population stability index, half a row added to every bin of both sides.

    0.0 if either side is empty: nothing was compared.
    """

def ks_bracket(reference: _Counts, current: _Counts) -> tuple[float, float]:
    """Bounds of the two-sample Kolmogorov-Smirnov statistic of the values in these ordered bins.

    (0.0, 1.0) if either side is empty: nothing is known.
    """
