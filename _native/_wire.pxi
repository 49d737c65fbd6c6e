# The wire form of a BYTES tensor: for each element, row-major, its length as a little-endian
# uint32 and then that many bytes. Included by every extension that walks it.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t
from libc.string cimport memcpy


cdef enum:
    LENGTH_SIZE = 4


cdef inline Py_ssize_t element_length(const unsigned char *at) noexcept nogil:
    return at[0] | (<uint32_t> at[1] << 8) | (<uint32_t> at[2] << 16) | (<uint32_t> at[3] << 24)


cdef inline void store_length(unsigned char *at, Py_ssize_t length) noexcept nogil:
    at[0] = length & 255
    at[1] = (length >> 8) & 255
    at[2] = (length >> 16) & 255
    at[3] = (length >> 24) & 255


cdef Py_ssize_t count_elements(
    const unsigned char *raw, Py_ssize_t size, Py_ssize_t *end
) noexcept nogil:
    """Counts the whole elements; `end` is where the last of them ends: `size` unless torn."""
    cdef Py_ssize_t at = 0, elements = 0, length
    while size - at >= LENGTH_SIZE:
        length = element_length(raw + at)
        if length > size - at - LENGTH_SIZE:
            break
        at += LENGTH_SIZE + length
        elements += 1
    end[0] = at
    return elements


cdef Py_ssize_t whole_elements(const unsigned char *raw, Py_ssize_t size) except -1:
    """Counts the elements without the GIL; ValueError if the last one is torn."""
    cdef Py_ssize_t end = 0, elements
    with nogil:
        elements = count_elements(raw, size, &end)
    if end == size:
        return elements
    if size - end < LENGTH_SIZE:
        raise ValueError(
            f"BYTES data is torn: element {elements} has {size - end} of the {LENGTH_SIZE} bytes "
            "of its length"
        )
    raise ValueError(
        f"BYTES data is torn: element {elements} has {size - end - LENGTH_SIZE} of its "
        f"{element_length(raw + end)} bytes"
    )
