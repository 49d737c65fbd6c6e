# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Rows become columns: the body of a frame of the traffic log, in one piece and without the GIL.

Buffers of whole rows are in, read-only; a new bytes object, or new arrays, are out. The sizes are
checked before anything is copied. Stateless: any thread may call anything.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

ctypedef fused Value:
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef enum:
    WORD = 8  # every column begins at a multiple of it
    TILE_ROWS = 64  # a tile of 32 columns of 4 bytes and what it becomes stay in the first cache
    TILE_COLUMNS = 32


ctypedef struct Part:
    Py_buffer view
    Py_ssize_t rows
    Py_ssize_t width  # columns
    Py_ssize_t size  # bytes of a value
    Py_ssize_t stride  # from one column to the next in what is made of it


cdef void _transpose(
    const Value *values, Py_ssize_t rows, Py_ssize_t width, char *out, Py_ssize_t stride
) noexcept nogil:
    cdef Py_ssize_t row, column, first_row, first_column = 0, row_end, column_end
    cdef Value *to
    while first_column < width:
        column_end = min(first_column + TILE_COLUMNS, width)
        first_row = 0
        while first_row < rows:
            row_end = min(first_row + TILE_ROWS, rows)
            for column in range(first_column, column_end):
                to = <Value *> (out + column * stride)
                for row in range(first_row, row_end):
                    to[row] = values[row * width + column]
            first_row = row_end
        first_column = column_end


cdef void _lay_out(const Part *part, char *out) noexcept nogil:
    """Writes the columns of one part, each with zeros behind it up to a whole word."""
    cdef Py_ssize_t column, length = part.rows * part.size
    if part.width == 1:
        memcpy(out, part.view.buf, length)
    elif part.size == 1:
        _transpose(<const uint8_t *> part.view.buf, part.rows, part.width, out, part.stride)
    elif part.size == 2:
        _transpose(<const uint16_t *> part.view.buf, part.rows, part.width, out, part.stride)
    elif part.size == 4:
        _transpose(<const uint32_t *> part.view.buf, part.rows, part.width, out, part.stride)
    else:
        _transpose(<const uint64_t *> part.view.buf, part.rows, part.width, out, part.stride)
    if part.stride > length:
        for column in range(part.width):
            memset(out + column * part.stride + length, 0, part.stride - length)


cdef int _measure(Part *part, Py_ssize_t width, Py_ssize_t size) except -1:
    if width < 1 or size not in (1, 2, 4, 8):
        raise ValueError(f"no table has {width} columns of values of {size} bytes")
    if part.view.len % (width * size):
        raise ValueError(f"{part.view.len} bytes are no rows of {width} values of {size} bytes")
    part.width, part.size, part.rows = width, size, part.view.len // (width * size)
    part.stride = (part.rows * size + WORD - 1) & -WORD
    return 0


def join(bytes head not None, parts not None, bytes tail not None):
    cdef list tables = list(parts)
    cdef Py_ssize_t count = len(tables), held = 0, index, total
    cdef Py_ssize_t head_size = PyBytes_GET_SIZE(head), tail_size = PyBytes_GET_SIZE(tail)
    cdef const char *first = PyBytes_AS_STRING(head)
    cdef const char *last = PyBytes_AS_STRING(tail)
    cdef Part *each = <Part *> calloc(count + 1, sizeof(Part))
    cdef char *at
    if each == NULL:
        raise MemoryError
    try:
        if head_size % WORD:
            raise ValueError(f"a head of {head_size} bytes does not end at a multiple of {WORD}")
        total = head_size + tail_size
        for buffer, width, size in tables:
            PyObject_GetBuffer(buffer, &each[held].view, PyBUF_SIMPLE)
            held += 1
            _measure(&each[held - 1], width, size)
            total += each[held - 1].width * each[held - 1].stride
        joined = PyBytes_FromStringAndSize(NULL, total)
        at = PyBytes_AS_STRING(joined)
        with nogil:
            memcpy(at, first, head_size)
            at += head_size
            for index in range(count):
                _lay_out(&each[index], at)
                at += each[index].width * each[index].stride
            memcpy(at, last, tail_size)
        return joined
    finally:
        for index in range(held):
            PyBuffer_Release(&each[index].view)
        free(each)


def per_row(
    const int64_t[::1] rows not None,
    const int64_t[::1] event_time not None,
    const int64_t[::1] received not None,
    Py_ssize_t expected,
):
    cdef Py_ssize_t calls = rows.shape[0], call, row, at = 0
    cdef int64_t total = 0, time
    if event_time.shape[0] != calls or received.shape[0] != calls:
        raise ValueError(
            f"{calls} calls have {event_time.shape[0]} event times and {received.shape[0]} times "
            "of receipt"
        )
    for call in range(calls):
        if rows[call] < 0 or rows[call] > expected:
            raise ValueError(f"call {call} has {rows[call]} of {expected} rows")
        total += rows[call]
    if total != expected:
        raise ValueError(f"{calls} calls have {total} rows, their batches {expected}")
    numbers = np.empty(expected, np.uint32)
    times = np.empty((2, expected), np.int64)
    cdef uint32_t[::1] number = numbers
    cdef int64_t[:, ::1] out = times
    with nogil:
        for call in range(calls):
            time = event_time[call] if event_time[call] >= 0 else received[call]
            for row in range(rows[call]):
                number[at] = <uint32_t> row
                out[0, at] = time
                out[1, at] = received[call]
                at += 1
    return numbers, times[0], times[1]
