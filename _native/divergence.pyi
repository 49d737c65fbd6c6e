"""How far two binned samples lie apart, from their counts over the same bins, and what chance explains.

Counts are not negative, of any numeric type and of shape (bins,); both sides count the same bins.
An argument that is out of its range is a ValueError that names it. Where a side has no rows nothing
was compared: distances are 0, p-values 1, the KS bracket is (0, 1).

What is said of chance (critical values, p-values, lower bounds) holds for independent rows and bins
that were laid without a look at the current sample. Where rows resemble their neighbours, give the
effective numbers of rows instead of the real ones; numbers of rows may be fractions.
`reference_rows` is m and `current_rows` n below, B the number of bins, k = 1/m + 1/n.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, final

from numpy.typing import NDArray

_Counts: TypeAlias = NDArray[Any] | Sequence[float]
_Table: TypeAlias = NDArray[Any] | Sequence[Sequence[float]]
_PerFeature: TypeAlias = NDArray[Any] | Sequence[float]

def psi(reference: _Counts, current: _Counts) -> float:
    """The population stability index Σ (q - p) ln(q / p), half a row added to every bin of both sides.

    Not negative, 0 for equal shares, in no unit; the same if the sides are exchanged.
    """

def psi_critical(
    reference_rows: float, current_rows: float, bins: int, alpha: float = 0.05
) -> float:
    """What the PSI of two samples of one distribution exceeds with probability `alpha` (0 to 0.5).

    k times the upper `alpha` point of chi-square with B - 1 degrees of freedom (Yurdakul and
    Naranjo, Journal of Risk Model Validation 14/3, 2020), which holds from about 20 rows a bin on.
    inf without rows, 0 for one bin, which cannot differ.
    """

def psi_p_value(psi: float, reference_rows: float, current_rows: float, bins: int) -> float:
    """The probability of a PSI of that size or more from two samples of one distribution."""

def psi_lower_bound(
    psi: float, reference_rows: float, current_rows: float, bins: int, alpha: float = 0.05
) -> float:
    """The PSI that the distributions themselves have at least, wrong with probability `alpha`.

    That is the largest d for which PSI <= d is rejected, because the index found exceeds the upper
    `alpha` point of k times noncentral chi-square with B - 1 degrees of freedom and noncentrality
    d / k; 0 if psi_critical is not exceeded. Off by at most 1e-8 times (k + itself) if psi / k <=
    1000 (by the Poisson mixture, Benton and Krishnamoorthy, Computational Statistics & Data
    Analysis 43, 2003), else 1e-6 times that for alpha >= 1e-6 (by Cornish and Fisher's expansion).
    Up to 2.5 µs. The level holds where that of psi_critical does; a true PSI of 1 is exceeded in 6
    of 100 samples instead of 5, one of 2 in 11.
    """

def ks_bracket(reference: _Counts, current: _Counts) -> tuple[float, float]:
    """Bounds of the two-sample Kolmogorov-Smirnov statistic of the values in these ordered bins.

    They hold for every pair of samples, ties and infinities included, to the last bit. NaN has no
    place in an order: leave its count out.
    """

def ks_p_value(statistic: float, reference_rows: float, current_rows: float) -> float:
    """The probability of a KS statistic of that size or more from two samples of one distribution.

    That of one sample of N = mn / (m + n) values, rounded, at least 1: scipy's kstwo.sf, for
    continuous values; ties, and the lower bound of a bracket for the statistic, only make it larger
    than it should be. Exact to 1e-7 of it for N <= 100 (Durbin's matrix and Birnbaum and Tingey's
    sum, see Simard and L'Ecuyer, Journal of Statistical Software 39/11, 2011), above that to 5e-5
    where it is 1e-3 or more and to 5e-4 down to 1e-12 (Li-Chien's and Smirnov's expansions).
    """

def jensen_shannon(reference: _Counts, current: _Counts) -> float:
    """The Jensen-Shannon distance, from 0 to 1 for samples that share no bin.

    It is the square root of the divergence in bits, a metric (Endres and Schindelin, IEEE
    Transactions on Information Theory 49, 2003). Nothing is added to empty bins.
    """

def hellinger(reference: _Counts, current: _Counts) -> float:
    """The Hellinger distance sqrt(½ Σ (√p - √q)²), from 0 to 1 for samples that share no bin."""

def wasserstein(
    reference: _Counts,
    current: _Counts,
    edges: NDArray[Any] | Sequence[float],
    lower: float,
    upper: float,
    scale: float = 1.0,
) -> float:
    """The Wasserstein-1 (earth mover's) distance, in units of `scale`: the reference's standard
    deviation makes it a number of those, else it has the feature's unit.

    Bins lie between `edges` (B - 1, finite, ascending). Of the values only the bins are known: they
    are taken as spread evenly over each, and the outer bins, which are open, as ending at `lower`
    and `upper`, which are the reference's minimum and maximum as a rule (or at the outermost edge,
    where those lie within). Hence it is off by at most Σ wᵢ (pᵢ + qᵢ) / 2 for bins of width wᵢ,
    and values beyond the limits count as if they lay at most there: how far out they are is unknown.
    """

def rate_interval(successes: float, rows: float, alpha: float = 0.05) -> tuple[float, float]:
    """Bounds of a rate of which `successes` of `rows` independent rows were seen; (0, 1) of none.

    Wilson's score interval of level 1 - `alpha`, both sides together. Unlike Wald's it stays within
    0 and 1, has a width when nothing was seen, and covers with the stated probability on average
    even for rates near 0; Jeffreys' does so too, but takes quantiles of a beta distribution (Brown,
    Cai and DasGupta, Statistical Science 16, 2001, recommend either).
    """

class Comparison(NamedTuple):
    """One feature of a window beside the reference, see GroupedReference.compare."""

    rows: float
    reference_rows: float
    groups: int  # those with a row on either side
    psi: float
    psi_critical: float
    psi_p_value: float
    psi_lower_bound: float
    ks_low: float
    ks_high: float
    ks_p_value: float  # of ks_low
    jensen_shannon: float
    hellinger: float
    wasserstein: float

@final
class GroupedReference:
    """A tensor's reference counts, made once, that windows of the same slots are compared with.

    Immutable; any thread may use it, and none holds the GIL while it computes.
    """

    def __init__(
        self,
        counts: _Table,
        groups: NDArray[Any] | Sequence[Sequence[int]],
        bins: NDArray[Any] | Sequence[int],
        *,
        edges: Sequence[NDArray[Any] | Sequence[float]] | None = None,
        lower: _PerFeature | None = None,
        upper: _PerFeature | None = None,
        scale: _PerFeature | None = None,
    ) -> None:
        """`counts` are (features, slots), as a histogram's window has them. `groups` has the number
        of each slot's group from 0 on, in the same shape, -1 for a slot that the feature does not
        use. Of each feature the first `bins` slots are bins in order, 0 if it has no order.

        `edges`, `lower`, `upper` and `scale` are those of `wasserstein` for each feature, all of
        them or none. It is NaN for a feature one of whose limits is not finite, whose scale is not
        above 0, or that has an infinite edge.
        """

    @property
    def features(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def groups(self) -> int:
        """The largest number of groups of a feature."""

    def grouped(self, counts: _Table) -> NDArray[Any]:
        """The sums of (features, slots) counts over each group: float64 of (features, groups)."""

    def compare(
        self, current: _Table, *, effective: float | _PerFeature = 1.0, alpha: float = 0.05
    ) -> list[Comparison]:
        """Every statistic of every feature, in the features' order.

        PSI, Jensen-Shannon and Hellinger are of the groups, those empty on both sides left out; KS
        and Wasserstein of the bins. `effective` is the share of the current rows, above 0 to 1, of
        all features or of each, that count as independent; `alpha` the level of the critical PSI
        and its lower bound. Of a feature without bins KS is (0, 1) with a p-value of 1, Wasserstein
        NaN. 2 to 5 µs a feature of 64 bins, 7 to 11 if a sample has fewer than 100 rows.
        """
