# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""How far two binned samples lie apart. Both arguments are counts per bin, over the same bins, in.

Reference and window are counts, not shares: both statistics need the sample sizes. Stateless.
"""

from libc.math cimport isfinite, log

import numpy as np


cdef double _sum(const double[::1] counts) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(counts.shape[0]):
        total += counts[i]
    return total


cdef double _psi(
    const double[::1] reference, const double[::1] current, double m, double n
) noexcept nogil:
    cdef Py_ssize_t bins = reference.shape[0]
    cdef Py_ssize_t i
    cdef double p, q, psi = 0
    for i in range(bins):
        p = (reference[i] + 0.5) / (m + 0.5 * bins)
        q = (current[i] + 0.5) / (n + 0.5 * bins)
        psi += (q - p) * log(q / p)
    return psi


cdef void _ks_bracket(
    const double[::1] reference, const double[::1] current, double m, double n, double *bounds
) noexcept nogil:
    # Whole cumulative counts are divided, once each, as an exact computation on the samples does:
    # rounding is monotone, so that the bracket holds to the last bit.
    cdef Py_ssize_t i
    cdef double p, q, p_before = 0, q_before = 0, low = 0, high = 0
    cdef double in_reference = 0, in_current = 0
    for i in range(reference.shape[0]):
        in_reference += reference[i]
        in_current += current[i]
        p, q = in_reference / m, in_current / n
        low = max(low, q - p, p - q)
        high = max(high, q - p_before, p - q_before)
        p_before, q_before = p, q
    bounds[0], bounds[1] = low, high


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


def psi(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n, result = 0
    p, q = _pair(reference, current)
    with nogil:
        m, n = _sum(p), _sum(q)
        if m > 0 and n > 0:
            result = _psi(p, q, m, n)
    return result


def ks_bracket(reference not None, current not None):
    cdef const double[::1] p, q
    cdef double m, n
    cdef double[2] bounds
    p, q = _pair(reference, current)
    bounds[0], bounds[1] = 0, 1
    with nogil:
        m, n = _sum(p), _sum(q)
        if m > 0 and n > 0:
            _ks_bracket(p, q, m, n, bounds)
    return bounds[0], bounds[1]
