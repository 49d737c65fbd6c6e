# All statistics of a whole tensor at one call, for a monitor that compares hundreds of features.
# Counts in, a table of features x slots as a histogram's window has them; a list of tuples out.

from collections import namedtuple

from libc.math cimport NAN
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

cimport cython


Comparison = namedtuple(
    "Comparison",
    "rows reference_rows groups psi psi_critical psi_p_value psi_lower_bound "
    "ks_low ks_high ks_p_value jensen_shannon hellinger wasserstein",
    module=__name__,
)


cdef struct _Compared:
    double rows, reference_rows
    Py_ssize_t groups
    double psi, psi_critical, psi_p_value, psi_lower_bound
    double ks_low, ks_high, ks_p_value
    double jensen_shannon, hellinger, wasserstein


cdef object _table(object given, str name, tuple shape):
    """Counts of a tensor, or of one whose shape is yet to be known: ()."""
    cdef const double[:, ::1] view
    cdef Py_ssize_t f, s
    counts = np.ascontiguousarray(given, dtype=np.float64)
    if counts.ndim != 2 or not counts.size or (shape and counts.shape != shape):
        expected = shape or "(features, slots)"
        raise ValueError(f"{name} counts have shape {counts.shape}, expected {expected}")
    view = counts
    for f in range(view.shape[0]):
        for s in range(view.shape[1]):
            if not (view[f, s] >= 0 and isfinite(view[f, s])):
                raise ValueError(f"{name} count of feature {f}, slot {s} is {view[f, s]}")
    return counts


@cython.final
cdef class GroupedReference:
    """Everything of a tensor's reference that a comparison needs, in the form it needs it."""

    cdef readonly Py_ssize_t features, slots, groups
    cdef const double[:, ::1] _counts  # features x slots
    cdef const int32_t[:, ::1] _groups  # features x slots, -1: in none
    cdef const Py_ssize_t[::1] _bins
    # Features x (slots + 1), the ends of the bins; a scale of NaN: not known for this feature.
    cdef const double[:, ::1] _limits
    cdef const double[::1] _scale

    def __init__(
        self, counts not None, groups not None, bins not None, *,
        edges=None, lower=None, upper=None, scale=None,
    ):
        table = _table(counts, "reference", ())
        self._counts = table
        self.features, self.slots = table.shape
        numbers = np.ascontiguousarray(groups, dtype=np.int32)
        if numbers.shape != table.shape:
            raise ValueError(f"groups have shape {numbers.shape}, expected {table.shape}")
        if numbers.min() < -1 or numbers.max() >= self.slots:
            raise ValueError(
                f"groups are from {numbers.min()} to {numbers.max()}, "
                f"expected from -1 to {self.slots - 1}"
            )
        self._groups, self.groups = numbers, numbers.max() + 1
        lengths = np.ascontiguousarray(bins, dtype=np.intp)
        if lengths.shape != (self.features,):
            raise ValueError(f"bins have shape {lengths.shape}, expected ({self.features},)")
        if lengths.min() < 0 or lengths.max() > self.slots:
            raise ValueError(
                f"bins are from {lengths.min()} to {lengths.max()}, "
                f"expected from 0 to {self.slots}"
            )
        self._bins = lengths
        self._set_limits(edges, lower, upper, scale)

    cdef int _set_limits(self, object edges, object lower, object upper, object scale) except -1:
        cdef Py_ssize_t f
        ends = np.zeros((self.features, self.slots + 1))
        unit = np.full(self.features, np.nan)
        given = {"edges": edges, "lower": lower, "upper": upper, "scale": scale}
        missing = [name for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            raise ValueError(f"{' and '.join(missing)} must be given as well, or nothing of them")
        for name, value in given.items():
            if value is not None and len(value) != self.features:
                raise ValueError(f"{len(value)} {name} for {self.features} features")
        if not missing:
            for f in range(self.features):
                low, high, std = float(lower[f]), float(upper[f]), float(scale[f])
                if not (self._bins[f] and isfinite(low) and isfinite(high) and std > 0):
                    continue
                if np.isinf(edges[f]).any():  # they are legal, and of no length
                    continue
                ends[f, : self._bins[f] + 1] = _limits(edges[f], low, high, self._bins[f])
                unit[f] = std
        self._limits, self._scale = ends, unit
        return 0

    def __repr__(self):
        return (
            f"GroupedReference(features={self.features}, slots={self.slots}, "
            f"groups={self.groups})"
        )

    def grouped(self, counts not None):
        cdef const double[:, ::1] table = _table(
            counts, "current", (self.features, self.slots)
        )
        sums = np.zeros((self.features, self.groups))
        cdef double[:, ::1] out = sums
        cdef Py_ssize_t f, s
        with nogil:
            for f in range(self.features):
                for s in range(self.slots):
                    if self._groups[f, s] >= 0:
                        out[f, self._groups[f, s]] += table[f, s]
        return sums

    cdef void _compare(
        self, Py_ssize_t f, const double *current, double effective, double alpha,
        double *was, double *now, _Compared *out,
    ) noexcept nogil:
        """`was` and `now` are scratch for as many counts as there are groups."""
        cdef const double *reference = &self._counts[f, 0]
        cdef Py_ssize_t s, group, filled = 0, bins = self._bins[f]
        cdef double m, n, k
        cdef double[2] bounds
        for group in range(self.groups):
            was[group] = now[group] = 0
        for s in range(self.slots):
            group = self._groups[f, s]
            if group >= 0:
                was[group] += reference[s]
                now[group] += current[s]
        # A group that is empty on both sides has nothing to compare, and would take half a row.
        for group in range(self.groups):
            if was[group] > 0 or now[group] > 0:
                was[filled], now[filled] = was[group], now[group]
                filled += 1
        m, n = _sum(was, filled), _sum(now, filled)
        out.reference_rows, out.rows, out.groups = m, n, filled
        out.psi = out.jensen_shannon = out.hellinger = 0
        if m > 0 and n > 0:
            out.psi = _psi(was, now, filled, m, n)
            out.jensen_shannon = _jensen_shannon(was, now, filled, m, n)
            out.hellinger = _hellinger(was, now, filled, m, n)
        k = _noise(m, n * effective)
        out.psi_critical = _psi_critical(k, filled, alpha)
        out.psi_p_value = _psi_p_value(out.psi, k, filled)
        out.psi_lower_bound = _psi_lower_bound(out.psi, k, filled, alpha)

        bounds[0], bounds[1] = 0, 1
        out.wasserstein = NAN
        m, n = _sum(reference, bins), _sum(current, bins)
        if m > 0 and n > 0:
            _ks_bracket(reference, current, bins, m, n, bounds)
            if self._scale[f] > 0:
                out.wasserstein = (
                    _wasserstein(reference, current, &self._limits[f, 0], bins, m, n)
                    / self._scale[f]
                )
        out.ks_low, out.ks_high = bounds[0], bounds[1]
        out.ks_p_value = _ks_p_value(bounds[0], m, n * effective)

    def compare(self, current not None, *, effective=1.0, double alpha=0.05):
        cdef const double[:, ::1] table = _table(
            current, "current", (self.features, self.slots)
        )
        shares = np.ascontiguousarray(
            np.broadcast_to(np.asarray(effective, dtype=np.float64), (self.features,))
        )
        if not ((shares > 0) & (shares <= 1)).all():
            raise ValueError(f"effective is {effective}, expected above 0 and at most 1")
        _check_alpha(alpha)
        cdef const double[::1] share = shares
        cdef double[:, ::1] scratch = np.empty((2, max(1, self.groups)))
        cdef Py_ssize_t f
        cdef _Compared *each
        cdef _Compared *all = <_Compared *> malloc(self.features * sizeof(_Compared))
        if all == NULL:
            raise MemoryError
        try:
            with nogil:
                for f in range(self.features):
                    self._compare(
                        f, &table[f, 0], share[f], alpha, &scratch[0, 0], &scratch[1, 0], &all[f]
                    )
            found = []
            for f in range(self.features):
                each = &all[f]
                found.append(
                    Comparison(
                        each.rows,
                        each.reference_rows,
                        each.groups,
                        each.psi,
                        each.psi_critical,
                        each.psi_p_value,
                        each.psi_lower_bound,
                        each.ks_low,
                        each.ks_high,
                        each.ks_p_value,
                        each.jensen_shannon,
                        each.hellinger,
                        each.wasserstein,
                    )
                )
            return found
        finally:
            free(all)
