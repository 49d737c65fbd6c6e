"""Evidence that live rows no longer follow the reference, valid however often one looks at it.

The null hypothesis is that reference rows and live rows are independent draws of one distribution.
The m rows of a reference, in order, cut the line into m + 1 intervals; whatever the (continuous)
distribution is, the shares that it has in them are uniform on the simplex (Wilks 1942, Tukey 1947),
so that groups of a₁ … a_G neighbouring intervals, Σa = A = m + 1, have shares of Dirichlet(a₁ … a_G),
and live rows fall into them like the draws of a Pólya urn with those masses. The e-value of counts
S₁ … S_G, t = ΣS, is the likelihood of an urn that learns faster, with masses K·aᵢ/A, over that one's:

    Γ(K)/Γ(K+t) · Π Γ(K·aᵢ/A + Sᵢ)/Γ(K·aᵢ/A)   :   Γ(A)/Γ(A+t) · Π Γ(aᵢ+Sᵢ)/Γ(aᵢ)

A ratio of likelihoods has expectation 1 under its denominator, at any time that rows tell one to
stop, and so reaches 1/α ever with probability at most α (Ville). No cut-off has to allow for the
size of the reference: that is in the denominator, and so all probabilities are over the draw of
the reference too. Given one unlucky reference, false alarms are more frequent than that; they are
rarer given the others. K ("concentration", in rows) is how much the alternative trusts the
reference: it must be far below A to have any power, and decides which shifts are seen soonest,
never validity.

Few groups: every group costs about ½·log(t/K) of evidence, whether it moved or not. 10 to 16 resolve
a shift; with 32 a shift of 0.1 standard deviations takes three times the rows that it takes with 10.

Exact: one continuous column, independent rows. Approximate: ties and categories, for which the
caller pools groups of few reference rows (`evidence`); see there for what is exact of several
columns. Rows that resemble their neighbours carry less evidence than their number says, and no
guarantee holds: see `evidence.design_effect`.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Masses: TypeAlias = NDArray[Any] | Sequence[float]

def log_e_value(
    masses: _Masses, counts: NDArray[Any] | Sequence[float], concentration: float | None = None
) -> NDArray[np.float64]:
    """The logarithm of the e-value of counts (..., groups) against a reference: shape (...).

    Of counts that grow row by row the values are one e-process: P(ever ≥ -log α) ≤ α. Default
    concentration: 15 a group. ValueError: masses not positive, counts negative or not finite.
    """

def log_gamma(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log Γ of positive values, within 4e-14 below 100 and 2e-15 of itself above."""

@final
class EDetector:
    """Sums e-processes that begin at every check, so that a late change is seen as soon as one
    that was there from the first row: a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo,
    *New England Journal of Statistics in Data Science* 2, 2023), per feature.

    The e-process that begins at a check takes all rows before it, reference and live, for the null
    hypothesis. Under it the sum expects to be the number of checks, so that the mean number of
    checks before it reaches c is at least c, and P(it does so within n checks) ≤ n / c. Of the
    e-processes all young ones are kept and ever fewer older ones, about 3·log₂(checks) in all,
    the first one always; leaving some out can only lower the sum.

    The value depends on counts alone, not on the order of rows within a check: what several hosts
    counted for the same check adds up to what one would have counted. Counts are doubles and may be
    fractional; whole ones are exact up to 2⁵³ rows, and the logarithm is off by less than 0.01 up
    to 10¹² rows. One thread at a time; `update` works without the GIL.
    """

    def __init__(self, masses: Sequence[_Masses], concentration: float | None = None) -> None:
        """Masses per feature, one for each of its groups; `concentration` as in `log_e_value`."""

    @property
    def features(self) -> int: ...
    @property
    def groups(self) -> int:
        """Of the feature that has most."""

    @property
    def checks(self) -> int: ...
    @property
    def starts(self) -> int:
        """E-processes that are kept."""

    def update(self, counts: NDArray[Any]) -> None:
        """One check: the rows since the last one, (features, groups), zeros where a feature has
        fewer groups. ValueError if they are not that; then nothing was counted."""

    def log_evidence(self) -> NDArray[np.float64]:
        """The logarithm of the sum of e-processes per feature; -inf before the first check."""

    def reset(self) -> None:
        """Forgets all checks."""
