# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Evidence that rows left the reference, from counts of groups. Counts are in, logarithms are out.

Rows are whole numbers in doubles, which add exactly up to 2**53 of them. A detector holds, for
every e-process that is still open, the counts as they were when it began: its rows are what came
since, and the part of its value that only depends on what came before is computed once.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, exp, isfinite, log
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

import numpy as np


cdef enum:
    ROWS_PER_GROUP = 15  # default concentration: 10 is a little faster for large shifts, 20 for small


cdef double HALF_LOG_2_PI = 0.91893853320467274178


cdef inline double _log_gamma(double x) noexcept nogil:
    """Stirling's series from 10 on, where the first term left out is below 2e-14."""
    cdef double product = 1, inverse, square
    if x < 10:
        while x < 10:
            product *= x
            x += 1
        product = log(product)
    else:
        product = 0
    inverse = 1 / x
    square = inverse * inverse
    return (x - 0.5) * log(x) - x + HALF_LOG_2_PI - product + inverse * (
        1.0 / 12 - square * (1.0 / 360 - square * (1.0 / 1260 - square * (
            1.0 / 1680 - square / 1188))))


cdef double _urn(const double *masses, const double *counts, Py_ssize_t groups) noexcept nogil:
    """log of Π Γ(mass + count) / Γ(Σ mass + Σ count): how well an urn foretold these counts, but
    for what does not depend on them."""
    cdef double inside = 0, total = 0, balls
    cdef Py_ssize_t i
    for i in range(groups):
        balls = masses[i] + counts[i]
        inside += _log_gamma(balls)
        total += balls
    return inside - _log_gamma(total)


cdef double _urn_since(
    const double *masses, const double *counts, const double *before, Py_ssize_t groups
) noexcept nogil:
    """`_urn` of the rows that came since `before`."""
    cdef double inside = 0, total = 0, balls
    cdef Py_ssize_t i
    for i in range(groups):
        balls = masses[i] + (counts[i] - before[i])
        inside += _log_gamma(balls)
        total += balls
    return inside - _log_gamma(total)


cdef inline bint _outlived(uint64_t start, uint64_t check) noexcept nogil:
    """Whether the e-process that began with check `start` ends before `check`.

    One that began at an odd multiple of 2**k lives for 6 * 2**k checks, the first one for ever:
    three or four of every age's order of magnitude remain.
    """
    return start > 0 and check - start > 6 * (start & (~start + 1))


cdef object _positive(object masses, str of):
    found = np.ascontiguousarray(masses, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"masses of {of} have shape {found.shape}, expected (groups,)")
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"masses of {of} are not all positive and finite: {found.tolist()}")
    return found


cdef object _not_negative(object counts):
    found = np.ascontiguousarray(counts, dtype=np.float64)
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError("counts are not all finite and at least 0")
    return found


cdef double _concentrated(object concentration, Py_ssize_t groups) except -1:
    cdef double found = ROWS_PER_GROUP * groups if concentration is None else concentration
    if not (found > 0 and isfinite(found)):
        raise ValueError(f"concentration must be positive and finite, not {concentration}")
    return found


def log_gamma(double[::1] values not None):
    """The logarithm of the gamma function as it is used here, for the tests."""
    cdef Py_ssize_t i
    out = np.empty(values.shape[0])
    cdef double[::1] view = out
    for i in range(values.shape[0]):
        view[i] = _log_gamma(values[i])
    return out


def log_e_value(masses not None, counts not None, concentration=None):
    cdef const double[::1] null = _positive(masses, "the reference")
    cdef Py_ssize_t groups = null.shape[0], look
    cdef double spread = _concentrated(concentration, groups)
    found = _not_negative(counts)
    *looks, given = np.shape(counts) or (0,)
    if given != groups:
        raise ValueError(f"counts have shape {np.shape(counts)}, expected (..., {groups})")
    alternative = np.asarray(null) * (spread / np.sum(null))
    out = np.empty(looks)
    cdef const double[:, ::1] rows = found.reshape(-1, groups)
    cdef double[::1] view = out.reshape(-1)
    cdef const double[::1] other = alternative
    cdef double[::1] none = np.zeros(groups)
    cdef double start
    with nogil:
        start = _urn(&null[0], &none[0], groups) - _urn(&other[0], &none[0], groups)
        for look in range(rows.shape[0]):
            view[look] = (
                _urn(&other[0], &rows[look, 0], groups) - _urn(&null[0], &rows[look, 0], groups)
                + start
            )
    return out


cdef class EDetector:
    """See the .pyi. One thread at a time."""

    cdef readonly Py_ssize_t features, groups  # groups: of the feature that has most
    cdef readonly Py_ssize_t starts  # e-processes that are open
    cdef readonly uint64_t checks
    cdef Py_ssize_t _room  # starts that there is memory for
    # Per feature and group, rows of `groups`; a feature of fewer groups leaves the rest unused.
    cdef double[:, ::1] _masses, _alternative, _counts
    # Per feature: its groups, and the urns' values, of the alternative for no rows at all and of
    # the reference for all rows so far.
    cdef Py_ssize_t[::1] _used
    cdef double[::1] _alternative_start, _reference_now, _log_evidence
    # Per start: its check; and, of the moment before it, the counts and the reference urn's value.
    cdef uint64_t *_start
    cdef double *_before
    cdef double *_reference_before

    def __cinit__(self, masses not None, concentration=None):
        cdef Py_ssize_t feature
        given = [_positive(each, f"feature {index}") for index, each in enumerate(masses)]
        if not given:
            raise ValueError("a detector needs at least 1 feature")
        self.features = len(given)
        self.groups = max(len(each) for each in given)
        shape = (self.features, self.groups)
        self._masses, self._alternative = np.ones(shape), np.ones(shape)
        self._counts = np.zeros(shape)
        self._used = np.array([len(each) for each in given], dtype=np.intp)
        self._alternative_start = np.empty(self.features)
        self._reference_now = np.empty(self.features)
        self._log_evidence = np.empty(self.features)
        for feature, each in enumerate(given):
            spread = _concentrated(concentration, len(each))
            np.asarray(self._masses)[feature, : len(each)] = each
            np.asarray(self._alternative)[feature, : len(each)] = each * (spread / each.sum())
            self._alternative_start[feature] = _urn(
                &self._alternative[feature, 0], &self._counts[feature, 0], self._used[feature]
            )
        self.reset()

    def __dealloc__(self):
        free(self._start)
        free(self._before)
        free(self._reference_before)

    def __repr__(self):
        return (
            f"EDetector(features={self.features}, groups={self.groups}, checks={self.checks}, "
            f"starts={self.starts})"
        )

    cdef inline Py_ssize_t _cells(self) noexcept nogil:
        return self.features * self.groups

    cdef int _make_room(self) except -1:
        """For one more start; what there is stays whole if there is no memory."""
        cdef Py_ssize_t room = self._room + 16
        if self.starts < self._room:
            return 0
        start = realloc(self._start, room * sizeof(uint64_t))
        if start == NULL:
            raise MemoryError
        self._start = <uint64_t *> start
        before = realloc(self._before, room * self._cells() * sizeof(double))
        if before == NULL:
            raise MemoryError
        self._before = <double *> before
        reference = realloc(self._reference_before, room * self.features * sizeof(double))
        if reference == NULL:
            raise MemoryError
        self._reference_before = <double *> reference
        self._room = room
        return 0

    cdef void _drop(self, Py_ssize_t start) noexcept nogil:
        """The last start takes its place: their order means nothing."""
        cdef Py_ssize_t last = self.starts - 1
        if start != last:
            self._start[start] = self._start[last]
            memcpy(
                self._before + start * self._cells(), self._before + last * self._cells(),
                self._cells() * sizeof(double),
            )
            memcpy(
                self._reference_before + start * self.features,
                self._reference_before + last * self.features, self.features * sizeof(double),
            )
        self.starts = last

    cdef void _begin(self) noexcept nogil:
        self._start[self.starts] = self.checks
        memcpy(
            self._before + self.starts * self._cells(), &self._counts[0, 0],
            self._cells() * sizeof(double),
        )
        memcpy(
            self._reference_before + self.starts * self.features, &self._reference_now[0],
            self.features * sizeof(double),
        )
        self.starts += 1

    cdef double _log_sum(self, Py_ssize_t feature) noexcept nogil:
        """The logarithm of the sum of the feature's e-processes."""
        cdef double largest = -DBL_MAX, total = 0, value
        cdef Py_ssize_t start, used = self._used[feature]
        cdef double constant = self._alternative_start[feature] + self._reference_now[feature]
        for start in range(self.starts):
            value = (
                _urn_since(
                    &self._alternative[feature, 0], &self._counts[feature, 0],
                    self._before + start * self._cells() + feature * self.groups, used,
                )
                + self._reference_before[start * self.features + feature] - constant
            )
            if value > largest:
                total = total * exp(largest - value) + 1
                largest = value
            else:
                total += exp(value - largest)
        return largest + log(total)

    cdef void _check(self, const double[:, ::1] counts) noexcept nogil:
        cdef Py_ssize_t feature, group, start
        for start in range(self.starts - 1, -1, -1):
            if _outlived(self._start[start], self.checks):
                self._drop(start)
        self._begin()
        self.checks += 1
        for feature in range(self.features):
            for group in range(self._used[feature]):
                self._counts[feature, group] += counts[feature, group]
            self._reference_now[feature] = _urn(
                &self._masses[feature, 0], &self._counts[feature, 0], self._used[feature]
            )
            self._log_evidence[feature] = self._log_sum(feature)

    def update(self, counts not None):
        cdef Py_ssize_t feature
        found = _not_negative(counts)
        if found.shape != (self.features, self.groups):
            raise ValueError(
                f"counts have shape {found.shape}, expected ({self.features}, {self.groups})"
            )
        for feature in range(self.features):
            if self._used[feature] < self.groups and found[feature, self._used[feature]:].any():
                raise ValueError(
                    f"feature {feature} has {self._used[feature]} groups, counts of more were given"
                )
        self._make_room()
        cdef const double[:, ::1] view = found
        with nogil:
            self._check(view)

    def log_evidence(self):
        return np.array(self._log_evidence)

    def reset(self):
        cdef Py_ssize_t feature
        self.starts, self.checks = 0, 0
        memset(&self._counts[0, 0], 0, self._cells() * sizeof(double))
        for feature in range(self.features):
            self._log_evidence[feature] = -INFINITY
            self._reference_now[feature] = _urn(
                &self._masses[feature, 0], &self._counts[feature, 0], self._used[feature]
            )
