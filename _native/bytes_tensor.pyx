# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""BYTES tensors in their wire form, and the forms that onnxruntime and Arrow take.

`raw` is always the wire form (see _wire.pxi), in; results are new objects, out. The input is
walked once and found whole before anything is built from it. Loops that touch no Python object
run without the GIL. Stateless: any thread may call anything.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

import numpy as np

include "_wire.pxi"

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


cdef enum:
    MAX_LENGTH = 0xFFFFFFFF  # of one element
    MAX_COLUMN = 0x7FFFFFFF  # bytes of one column: Arrow's string offsets are int32


ctypedef struct Column:
    Py_ssize_t size  # bytes of text
    char *text  # out: where the next element's text goes
    int32_t *offsets  # out: where the next element's end goes
    int32_t end  # bytes of text so far


cdef void _measure_columns(
    const unsigned char *raw, Py_ssize_t rows, Py_ssize_t width, Column *columns
) noexcept nogil:
    cdef Py_ssize_t column, length
    for _ in range(rows):
        for column in range(width):
            length = element_length(raw)
            columns[column].size += length
            raw += LENGTH_SIZE + length


cdef void _copy_columns(
    const unsigned char *raw, Py_ssize_t rows, Py_ssize_t width, Column *columns
) noexcept nogil:
    cdef Py_ssize_t row, column, length
    for row in range(rows):
        for column in range(width):
            length = element_length(raw)
            raw += LENGTH_SIZE
            memcpy(columns[column].text + columns[column].end, raw, length)
            columns[column].end += <int32_t> length
            columns[column].offsets[row + 1] = columns[column].end
            raw += length


cdef Py_ssize_t _skip(const unsigned char *raw, Py_ssize_t at, Py_ssize_t elements) noexcept nogil:
    for _ in range(elements):
        at += LENGTH_SIZE + element_length(raw + at)
    return at


cdef const char *_view(object value, Py_ssize_t index, Py_ssize_t *size) except NULL:
    """The bytes of a str (as UTF-8) or bytes element; they live as long as the element."""
    if isinstance(value, bytes):
        size[0] = PyBytes_GET_SIZE(value)
        return PyBytes_AS_STRING(value)
    if isinstance(value, str):
        try:
            return PyUnicode_AsUTF8AndSize(value, size)
        except UnicodeEncodeError as error:
            raise ValueError(f"element {index} has no UTF-8 form: {error.reason}") from error
    raise TypeError(f"element {index} is {type(value).__name__}, not str or bytes")


def count(raw not None):
    cdef Py_buffer view
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    try:
        return whole_elements(<const unsigned char *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def decode(raw not None, Py_ssize_t expected):
    cdef Py_buffer view
    cdef const unsigned char *at
    cdef Py_ssize_t elements, index, length
    cdef object[::1] out
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    try:
        at = <const unsigned char *> view.buf
        elements = whole_elements(at, view.len)
        if elements != expected:
            raise ValueError(f"BYTES data holds {elements} elements, expected {expected}")
        values = np.empty(elements, dtype=object)
        out = values
        for index in range(elements):
            length = element_length(at)
            at += LENGTH_SIZE
            try:
                out[index] = PyUnicode_DecodeUTF8(<const char *> at, length, NULL)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"BYTES element {index} is not UTF-8: {error.reason} at byte {error.start}"
                ) from error
            at += length
        return values
    finally:
        PyBuffer_Release(&view)


def encode(values not None):
    cdef Py_ssize_t index, length = 0, total = 0
    cdef const char *source
    cdef unsigned char *at
    # A flat list of its own: it keeps every element, and so every pointer, alive.
    cdef list elements = np.asarray(values, dtype=object).ravel().tolist()
    for index in range(len(elements)):
        _view(elements[index], index, &length)
        if length > MAX_LENGTH:
            raise ValueError(f"element {index} has {length} bytes, the limit is {MAX_LENGTH}")
        total += LENGTH_SIZE + length
    raw = PyBytes_FromStringAndSize(NULL, total)
    at = <unsigned char *> PyBytes_AS_STRING(raw)
    for index in range(len(elements)):
        source = _view(elements[index], index, &length)
        store_length(at, length)
        memcpy(at + LENGTH_SIZE, source, length)
        at += LENGTH_SIZE + length
    return raw


def columns(raw not None, Py_ssize_t columns):
    cdef Py_buffer view
    cdef const unsigned char *start
    cdef Py_ssize_t elements, rows, column
    cdef Column *copies = NULL
    cdef int32_t[::1] out
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    try:
        start = <const unsigned char *> view.buf
        elements = whole_elements(start, view.len)
        rows = elements // columns
        if rows * columns != elements:
            raise ValueError(f"BYTES data holds {elements} elements: no rows of {columns} columns")
        copies = <Column *> calloc(columns, sizeof(Column))
        if copies == NULL:
            raise MemoryError
        with nogil:
            _measure_columns(start, rows, columns, copies)
        result = []
        for column in range(columns):
            if copies[column].size > MAX_COLUMN:
                raise ValueError(
                    f"column {column} has {copies[column].size} bytes, the limit is {MAX_COLUMN}"
                )
            offsets = np.zeros(rows + 1, dtype=np.int32)
            text = PyBytes_FromStringAndSize(NULL, copies[column].size)
            out = offsets
            copies[column].offsets = &out[0]
            copies[column].text = PyBytes_AS_STRING(text)
            result.append((offsets, text))  # keeps what the pointers point into
        with nogil:
            _copy_columns(start, rows, columns, copies)
        return result
    finally:
        free(copies)
        PyBuffer_Release(&view)


def split(raw not None, row_counts not None, Py_ssize_t columns):
    cdef Py_buffer view
    cdef const unsigned char *start
    cdef Py_ssize_t elements, rows, wanted, begin = 0, end
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    counts = list(row_counts)
    if counts and min(counts) < 0:
        raise ValueError(f"row counts must not be negative: {counts}")
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    try:
        start = <const unsigned char *> view.buf
        elements = whole_elements(start, view.len)
        wanted = sum(counts) * columns
        if elements != wanted:
            raise ValueError(
                f"BYTES data holds {elements} elements, {sum(counts)} rows of {columns} columns "
                f"need {wanted}"
            )
        parts = []
        for rows in counts:
            with nogil:
                end = _skip(start, begin, rows * columns)
            parts.append(PyBytes_FromStringAndSize(<const char *> start + begin, end - begin))
            begin = end
        return parts
    finally:
        PyBuffer_Release(&view)


def repeat(bytes data not None, const int32_t[::1] ends not None, const int64_t[::1] times not None):
    cdef Py_ssize_t count = ends.shape[0], index, rows = 0, size = 0, row = 0, length
    cdef int64_t again
    cdef int32_t start = 0, at = 0
    if times.shape[0] != count:
        raise ValueError(f"{count} strings and {times.shape[0]} counts")
    for index in range(count):
        if ends[index] < start or times[index] < 0:
            raise ValueError(f"string {index} ends before it begins, or is wanted less than 0 times")
        size += (ends[index] - start) * times[index]
        rows += times[index]
        start = ends[index]
    if start > PyBytes_GET_SIZE(data) or size > MAX_COLUMN:
        raise ValueError(f"{count} strings repeated to {size} bytes: the limit is {MAX_COLUMN}")
    offsets = np.empty(rows + 1, np.int32)
    cdef int32_t[::1] out = offsets
    repeated = PyBytes_FromStringAndSize(NULL, size)
    cdef char *to = PyBytes_AS_STRING(repeated)
    cdef const char *source = PyBytes_AS_STRING(data)
    with nogil:
        out[0] = 0
        start = 0
        for index in range(count):
            length = ends[index] - start
            for again in range(times[index]):
                memcpy(to + at, source + start, length)
                at += <int32_t> length
                row += 1
                out[row] = at
            start = ends[index]
    return offsets, repeated
