# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""How far two binned samples lie apart, and what of it chance explains. Counts per bin, in.

Reference and window are counts, not shares: every statistic needs the sample sizes. All arithmetic
is C without the GIL, the distributions are in distributions.h. Functions keep no state, and a
GroupedReference is immutable: any thread may use any of it.
"""

from libc.math cimport INFINITY, fabs, isfinite, log, rint, sqrt

import numpy as np

cdef extern from "distributions.h" nogil:
    double normal_quantile(double alpha)
    double chi2_tail(double freedom, double x)
    double chi2_quantile(double freedom, double alpha)
    double noncentrality_bound(double freedom, double x, double alpha)
    double ks_tail(double n, double d)


cdef double _sum(const double *counts, Py_ssize_t bins) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(bins):
        total += counts[i]
    return total


cdef double _psi(
    const double *reference, const double *current, Py_ssize_t bins, double m, double n
) noexcept nogil:
    cdef Py_ssize_t i
    cdef double p, q, psi = 0
    for i in range(bins):
        p = (reference[i] + 0.5) / (m + 0.5 * bins)
        q = (current[i] + 0.5) / (n + 0.5 * bins)
        psi += (q - p) * log(q / p)
    return psi


cdef double _noise(double m, double n) noexcept nogil:
    """PSI divided by it is chi-square if nothing drifted."""
    return 1 / m + 1 / n if m > 0 and n > 0 else INFINITY


cdef double _psi_critical(double k, Py_ssize_t bins, double alpha) noexcept nogil:
    if k == INFINITY:
        return INFINITY
    return k * chi2_quantile(bins - 1, alpha) if bins > 1 else 0


cdef double _psi_p_value(double psi, double k, Py_ssize_t bins) noexcept nogil:
    return chi2_tail(bins - 1, psi / k) if bins > 1 else 1


cdef double _psi_lower_bound(double psi, double k, Py_ssize_t bins, double alpha) noexcept nogil:
    if k == INFINITY or bins < 2:
        return 0
    return k * noncentrality_bound(bins - 1, psi / k, alpha)


cdef void _ks_bracket(
    const double *reference, const double *current, Py_ssize_t bins, double m, double n,
    double *bounds,
) noexcept nogil:
    # Whole cumulative counts are divided, once each, as an exact computation on the samples does:
    # rounding is monotone, so that the bracket holds to the last bit.
    cdef Py_ssize_t i
    cdef double p, q, p_before = 0, q_before = 0, low = 0, high = 0
    cdef double in_reference = 0, in_current = 0
    for i in range(bins):
        in_reference += reference[i]
        in_current += current[i]
        p, q = in_reference / m, in_current / n
        low = max(low, q - p, p - q)
        high = max(high, q - p_before, p - q_before)
        p_before, q_before = p, q
    bounds[0], bounds[1] = low, high


cdef double _ks_p_value(double statistic, double m, double n) noexcept nogil:
    if not (m > 0 and n > 0):
        return 1
    return ks_tail(max(1, rint(1 / (1 / m + 1 / n))), statistic)


cdef double _jensen_shannon(
    const double *reference, const double *current, Py_ssize_t bins, double m, double n
) noexcept nogil:
    cdef Py_ssize_t i
    cdef double p, q, bits = 0
    for i in range(bins):
        p, q = reference[i] / m, current[i] / n
        if p > 0:
            bits += p * log(2 * p / (p + q))
        if q > 0:
            bits += q * log(2 * q / (p + q))
    return sqrt(min(1.0, max(0.0, bits / (2 * log(2)))))


cdef double _hellinger(
    const double *reference, const double *current, Py_ssize_t bins, double m, double n
) noexcept nogil:
    # The sum of squares, not 1 - sum(sqrt(p q)), in which small distances cancel.
    cdef Py_ssize_t i
    cdef double root, squares = 0
    for i in range(bins):
        root = sqrt(reference[i] / m) - sqrt(current[i] / n)
        squares += root * root
    return sqrt(min(1.0, squares / 2))


cdef double _wasserstein(
    const double *reference, const double *current, const double *limits, Py_ssize_t bins,
    double m, double n,
) noexcept nogil:
    """The area between two distribution functions that are straight lines between the limits."""
    cdef Py_ssize_t i
    cdef double in_reference = 0, in_current = 0, before = 0, after, height, area = 0
    for i in range(bins):
        in_reference += reference[i]
        in_current += current[i]
        after = in_current / n - in_reference / m
        height = fabs(before) + fabs(after)
        if before * after < 0:  # the lines cross: two triangles
            height = (before * before + after * after) / height
        area += height / 2 * (limits[i + 1] - limits[i])
        before = after
    return area


cdef object _counts(object given, str name):
    cdef const double[::1] view
    cdef Py_ssize_t i
    counts = np.ascontiguousarray(given, dtype=np.float64)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"{name} counts have shape {counts.shape}, expected (bins,)")
    view = counts
    for i in range(view.shape[0]):
        if not (view[i] >= 0 and isfinite(view[i])):
            raise ValueError(f"{name} count of bin {i} is {view[i]}")
    return counts


cdef tuple _pair(object reference, object current):
    first, second = _counts(reference, "reference"), _counts(current, "current")
    if len(first) != len(second):
        raise ValueError(f"{len(first)} bins of reference, {len(second)} of current")
    return first, second


cdef object _limits(object edges, double lower, double upper, Py_ssize_t bins):
    """The ends of all bins; the outermost edges where the limits lie within them."""
    inner = np.asarray(edges, dtype=np.float64)
    if inner.shape != (bins - 1,):
        raise ValueError(f"edges have shape {inner.shape}, expected ({bins - 1},) for {bins} bins")
    if not (np.isfinite(inner).all() and (np.diff(inner) > 0).all()):
        raise ValueError("edges are not finite or do not ascend strictly")
    if not (isfinite(lower) and isfinite(upper) and lower <= upper):
        raise ValueError(f"limits are {lower} and {upper}, expected finite ones in this order")
    if len(inner):
        lower, upper = min(lower, inner.min()), max(upper, inner.max())
    return np.concatenate([[lower], inner, [upper]])


cdef int _check_rows(double m, double n) except -1:
    if not (m >= 0 and isfinite(m)):
        raise ValueError(f"reference_rows is {m}, expected at least 0")
    if not (n >= 0 and isfinite(n)):
        raise ValueError(f"current_rows is {n}, expected at least 0")
    return 0


cdef int _check_bins(Py_ssize_t bins) except -1:
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    return 0


cdef int _check_alpha(double alpha) except -1:
    if not 0 < alpha <= 0.5:
        raise ValueError(f"alpha is {alpha}, expected above 0 and at most 0.5")
    return 0


cdef int _check_statistic(double value, str name, double most) except -1:
    if not (0 <= value <= most and isfinite(value)):
        expected = "at least 0" if most == INFINITY else f"from 0 to {most:g}"
        raise ValueError(f"{name} is {value}, expected {expected}")
    return 0


def psi(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n, result = 0
    p, q = _pair(reference, current)
    with nogil:
        m, n = _sum(&p[0], p.shape[0]), _sum(&q[0], q.shape[0])
        if m > 0 and n > 0:
            result = _psi(&p[0], &q[0], p.shape[0], m, n)
    return result


def psi_critical(
    double reference_rows, double current_rows, Py_ssize_t bins, double alpha=0.05
):
    cdef double result
    _check_rows(reference_rows, current_rows)
    _check_bins(bins)
    _check_alpha(alpha)
    with nogil:
        result = _psi_critical(_noise(reference_rows, current_rows), bins, alpha)
    return result


def psi_p_value(double psi, double reference_rows, double current_rows, Py_ssize_t bins):
    cdef double result
    _check_statistic(psi, "psi", INFINITY)
    _check_rows(reference_rows, current_rows)
    _check_bins(bins)
    with nogil:
        result = _psi_p_value(psi, _noise(reference_rows, current_rows), bins)
    return result


def psi_lower_bound(
    double psi, double reference_rows, double current_rows, Py_ssize_t bins, double alpha=0.05
):
    cdef double result
    _check_statistic(psi, "psi", INFINITY)
    _check_rows(reference_rows, current_rows)
    _check_bins(bins)
    _check_alpha(alpha)
    with nogil:
        result = _psi_lower_bound(psi, _noise(reference_rows, current_rows), bins, alpha)
    return result


def ks_bracket(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n
    cdef double[2] bounds
    p, q = _pair(reference, current)
    bounds[0], bounds[1] = 0, 1
    with nogil:
        m, n = _sum(&p[0], p.shape[0]), _sum(&q[0], q.shape[0])
        if m > 0 and n > 0:
            _ks_bracket(&p[0], &q[0], p.shape[0], m, n, bounds)
    return bounds[0], bounds[1]


def ks_p_value(double statistic, double reference_rows, double current_rows):
    cdef double result
    _check_statistic(statistic, "statistic", 1)
    _check_rows(reference_rows, current_rows)
    with nogil:
        result = _ks_p_value(statistic, reference_rows, current_rows)
    return result


def jensen_shannon(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n, result = 0
    p, q = _pair(reference, current)
    with nogil:
        m, n = _sum(&p[0], p.shape[0]), _sum(&q[0], q.shape[0])
        if m > 0 and n > 0:
            result = _jensen_shannon(&p[0], &q[0], p.shape[0], m, n)
    return result


def hellinger(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n, result = 0
    p, q = _pair(reference, current)
    with nogil:
        m, n = _sum(&p[0], p.shape[0]), _sum(&q[0], q.shape[0])
        if m > 0 and n > 0:
            result = _hellinger(&p[0], &q[0], p.shape[0], m, n)
    return result


def wasserstein(
    reference not None, current not None, edges not None, double lower, double upper,
    double scale=1.0,
):
    cdef const double[::1] p, q, limits
    cdef double m, n, result = 0
    p, q = _pair(reference, current)
    limits = _limits(edges, lower, upper, p.shape[0])
    if not (scale > 0 and isfinite(scale)):
        raise ValueError(f"scale is {scale}, expected above 0")
    with nogil:
        m, n = _sum(&p[0], p.shape[0]), _sum(&q[0], q.shape[0])
        if m > 0 and n > 0:
            result = _wasserstein(&p[0], &q[0], &limits[0], p.shape[0], m, n) / scale
    return result


def rate_interval(double successes, double rows, double alpha=0.05):
    cdef double z, centre, half
    if not (rows >= 0 and isfinite(rows)):
        raise ValueError(f"rows is {rows}, expected at least 0")
    _check_statistic(successes, "successes", rows)
    _check_alpha(alpha)
    if rows == 0:
        return 0.0, 1.0
    z = normal_quantile(alpha / 2)
    centre = successes + z * z / 2
    half = z * sqrt(successes * (1 - successes / rows) + z * z / 4)
    return (
        max(0.0, (centre - half) / (rows + z * z)) if successes > 0 else 0.0,
        min(1.0, (centre + half) / (rows + z * z)) if successes < rows else 1.0,
    )


include "_grouped_reference.pxi"
