# The lookup of categories: one open-addressing table over bytes per column, in C arrays.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef uint64_t MIX = 0x9E3779B97F4A7C15U  # 2^64 / golden ratio: odd, its bits well spread


ctypedef struct Category:
    uint64_t hash
    const unsigned char *text
    uint32_t length  # 0: a free place
    uint32_t slot


ctypedef struct CategoryTable:
    Category *places  # open addressing, at most a quarter full: 9 ns a value against 17 at a half
    uint64_t mask  # places - 1, a power of two less one
    Py_ssize_t longest  # a longer value is unseen without a look
    Py_ssize_t other  # slot; unseen and missing are the two after it


cdef inline uint64_t _word(const unsigned char *text, Py_ssize_t length) noexcept nogil:
    """The at most eight bytes of a text in one word; one-to-one among texts of one length."""
    cdef uint32_t head = 0, tail = 0
    if length >= 4:
        memcpy(&head, text, 4)
        memcpy(&tail, text + length - 4, 4)
        return head | (<uint64_t> tail << 32)
    return text[0] | (<uint64_t> text[length // 2] << 8) | (<uint64_t> text[length - 1] << 16)


cdef inline uint64_t _hash(const unsigned char *text, Py_ssize_t length) noexcept nogil:
    """Multiply and fold, eight bytes at a time; one-to-one among texts of one length up to 8.

    There is no seed: live values are only looked up, none can make the table worse.
    """
    cdef uint64_t hash = <uint64_t> length * MIX
    cdef uint64_t word = 0
    while length > 8:
        memcpy(&word, text, 8)
        hash = (hash ^ word) * MIX
        hash ^= hash >> 32
        text += 8
        length -= 8
    hash = (hash ^ _word(text, length)) * MIX
    return hash ^ (hash >> 32)


cdef inline Py_ssize_t _slot_of(
    const CategoryTable *table, const unsigned char *text, Py_ssize_t length
) noexcept nogil:
    cdef uint64_t hash, at
    cdef const Category *place
    if length == 0:
        return table.other + 2
    if length > table.longest:
        return table.other + 1
    hash = _hash(text, length)
    at = hash & table.mask
    while True:
        place = &table.places[at]
        if place.length == 0:
            return table.other + 1
        if place.hash == hash and place.length == length:
            if length <= 8 or memcmp(place.text, text, length) == 0:
                return place.slot
        at = (at + 1) & table.mask


cdef const unsigned char *_count_elements(
    const unsigned char *raw,
    Py_ssize_t rows,
    Py_ssize_t columns,
    const CategoryTable *tables,
    uint64_t *counts,  # columns x slots, out
    Py_ssize_t slots,
) noexcept nogil:
    """Counts that many rows; returns where the next one begins."""
    cdef Py_ssize_t column, length
    for _ in range(rows):
        for column in range(columns):
            length = element_length(raw)
            raw += LENGTH_SIZE
            counts[column * slots + _slot_of(&tables[column], raw, length)] += 1
            raw += length
    return raw
