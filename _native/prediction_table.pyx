# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What was answered lately, to be found by (request id, row). Columns are in, new arrays are out.

Rows lie in a ring in the order in which they came. An index of open addressing, probed in line,
says where a key's row is; an entry has the upper half of the key, whose upper bits are also where
its search begins, and the ring's slot plus one; 0 is empty. As a slot is entered anew the entry of
its last row goes, and those behind move up, so that searches stay as short as they were.

Only `get` touches the index: it first enters the rows that came since the last one. So whoever
puts writes memory in order, 7 to 17 ns a row where it took 90 to enter each one too (into a million,
most of it waiting for memory), and where no label ever comes nobody pays for that.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import numpy as np

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128) a * b;
        return (uint64_t) product ^ (uint64_t) (product >> 64);
    }

    static inline uint64_t load8(const char *at) {
        uint64_t word;
        memcpy(&word, at, 8);
        return word;
    }

    static inline uint64_t load4(const char *at) {
        uint32_t word;
        memcpy(&word, at, 4);
        return word;
    }

    // Wang Yi's construction (wyhash): two words at a time, multiplied to 128 bits and folded.
    static inline uint64_t hash_id(const char *at, int64_t size) {
        const uint64_t A = 0xA0761D6478BD642FULL, B = 0xE7037ED1A0B428DBULL;
        uint64_t state = fold(A, B ^ (uint64_t) size), one = 0, two = 0;
        int64_t left = size;
        for (; left > 16; left -= 16, at += 16) state = fold(load8(at) ^ A, load8(at + 8) ^ state);
        if (left >= 8) {
            one = load8(at);
            two = load8(at + left - 8);
        } else if (left >= 4) {
            one = load4(at);
            two = load4(at + left - 4);
        } else if (left > 0) {
            one = (uint64_t) (unsigned char) at[0] << 16
                | (uint64_t) (unsigned char) at[left >> 1] << 8 | (unsigned char) at[left - 1];
        }
        return fold(one ^ A, two ^ B ^ state);
    }

    // splitmix64, by the row's number.
    static inline uint64_t hash_row(uint64_t id, int64_t row) {
        uint64_t mixed = id + ((uint64_t) row + 1) * 0x9E3779B97F4A7C15ULL;
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9ULL;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBULL;
        return mixed ^ mixed >> 31;
    }
    """
    uint64_t hash_id(const char *at, int64_t size) nogil
    uint64_t hash_row(uint64_t id, int64_t row) nogil
    void __builtin_prefetch(const void *) nogil


cdef enum:
    BLOCK = 64  # rows whose places in the index are fetched together
    MAX_CAPACITY = 1 << 30
    IS_FOUND = 1
    IS_LEFT_OUT = 2


ctypedef struct Row:
    uint64_t key
    int64_t version
    int64_t time_ms


ctypedef struct Table:
    int64_t capacity
    Py_ssize_t row_bytes  # of a row's values
    uint64_t limit  # keys whose lower half is below are kept
    Row *rows
    uint8_t *values
    int64_t next  # rows ever kept; the next one's sequence
    int64_t slot  # of the next one
    uint64_t *index
    int shift  # of the upper half of a key, that leaves where its search begins
    uint64_t mask  # of places in the index
    uint64_t *entered  # per slot, the key that it was last entered by; 0: none yet
    int64_t indexed  # sequence up to which rows were entered


cdef inline uint64_t _home(const Table *table, uint64_t key) noexcept nogil:
    return key >> 32 >> table.shift


cdef inline void _drop(Table *table, int64_t slot) noexcept nogil:
    """Takes the slot's last row out, unless a later one of the same name took its place."""
    cdef uint64_t hole = _home(table, table.entered[slot]), at, entry
    while True:
        entry = table.index[hole]
        if entry == 0:
            return
        if <int64_t> <uint32_t> entry == slot + 1:
            break
        hole = (hole + 1) & table.mask
    at = hole
    while True:
        at = (at + 1) & table.mask
        entry = table.index[at]
        if entry == 0:
            break
        if ((at - (entry >> 32 >> table.shift)) & table.mask) >= ((at - hole) & table.mask):
            table.index[hole] = entry
            hole = at
    table.index[hole] = 0


cdef inline void _enter(Table *table, int64_t slot) noexcept nogil:
    cdef uint64_t key = table.rows[slot].key, at = _home(table, key), entry
    while True:
        entry = table.index[at]
        if entry == 0:
            break
        if entry >> 32 == key >> 32 and table.entered[<uint32_t> entry - <uint32_t> 1] == key:
            break
        at = (at + 1) & table.mask
    table.entered[slot] = key
    table.index[at] = (key >> 32 << 32) | <uint64_t> (slot + 1)


cdef bint _catch_up(Table *table) noexcept nogil:
    """Enters at most BLOCK rows; whether there are more."""
    cdef int64_t slot, first, i
    cdef int64_t count
    if table.indexed < table.next - table.capacity:
        table.indexed = table.next - table.capacity  # those before were forgotten meanwhile
    count = min(<int64_t> BLOCK, table.next - table.indexed)
    first = table.indexed % table.capacity
    slot = first
    for i in range(count):
        __builtin_prefetch(&table.index[_home(table, table.rows[slot].key)])
        if table.entered[slot]:
            __builtin_prefetch(&table.index[_home(table, table.entered[slot])])
        slot = slot + 1 if slot + 1 < table.capacity else 0
    slot = first
    for i in range(count):
        if table.entered[slot]:
            _drop(table, slot)
        _enter(table, slot)
        slot = slot + 1 if slot + 1 < table.capacity else 0
    table.indexed += count
    return table.indexed < table.next


cdef inline int64_t _find(const Table *table, uint64_t key) noexcept nogil:
    """The slot of a key's row, or -1."""
    cdef uint64_t at = _home(table, key), entry
    cdef int64_t slot
    while True:
        entry = table.index[at]
        if entry == 0:
            return -1
        if entry >> 32 == key >> 32:
            slot = <int64_t> <uint32_t> entry - 1
            if table.entered[slot] == key:
                # Another row has come to the slot since, and was not entered yet.
                return slot if table.rows[slot].key == key else -1
        at = (at + 1) & table.mask


cdef inline int64_t _sequence(const Table *table, int64_t slot) noexcept nogil:
    cdef int64_t behind = table.slot - slot
    return table.next - (behind if behind > 0 else behind + table.capacity)


UNKNOWN, FOUND, LEFT_OUT = 0, IS_FOUND, IS_LEFT_OUT


def row_keys(bytes ids not None, const int32_t[::1] id_ends not None, const int64_t[::1] rows not None):
    cdef Py_ssize_t count = rows.shape[0], i
    cdef const char *text = PyBytes_AS_STRING(ids)
    _check_ends(ids, id_ends, count)
    out = np.empty(count, np.uint64)
    cdef uint64_t[::1] keys = out
    with nogil:
        for i in range(count):
            keys[i] = _key(text, id_ends, rows[i], i)
    return out


def call_keys(bytes ids not None, const int32_t[::1] id_ends not None, const int64_t[::1] rows not None):
    cdef Py_ssize_t calls = rows.shape[0], call, at = 0
    cdef int64_t row, count = 0
    cdef int32_t start = 0
    cdef uint64_t hashed
    cdef const char *text = PyBytes_AS_STRING(ids)
    _check_ends(ids, id_ends, calls)
    for call in range(calls):
        if rows[call] < 0:
            raise ValueError(f"call {call} has {rows[call]} rows")
        count += rows[call]
    out = np.empty(count, np.uint64)
    cdef uint64_t[::1] keys = out
    with nogil:
        for call in range(calls):
            hashed = hash_id(text + start, id_ends[call] - start)
            start = id_ends[call]
            for row in range(rows[call]):
                keys[at] = hash_row(hashed, row)
                at += 1
    return out


cdef inline uint64_t _key(
    const char *text, const int32_t[::1] ends, int64_t row, Py_ssize_t i
) noexcept nogil:
    cdef int32_t start = ends[i - 1] if i else 0
    return hash_row(hash_id(text + start, ends[i] - start), row)


cdef int _check_ends(bytes ids, const int32_t[::1] ends, Py_ssize_t count) except -1:
    cdef Py_ssize_t i
    cdef int32_t start = 0
    if ends.shape[0] != count:
        raise ValueError(f"{ends.shape[0]} ids and {count} rows")
    for i in range(count):
        if ends[i] < start:
            raise ValueError(f"id {i} ends before it begins")
        start = ends[i]
    if start > PyBytes_GET_SIZE(ids):
        raise ValueError(f"ids have {PyBytes_GET_SIZE(ids)} bytes, the last one ends at {start}")
    return 0


cdef class PredictionTable:
    """See the .pyi. Everything in `_table` is guarded by `_lock`, but for what never changes."""

    cdef Table _table
    cdef PyThread_type_lock _lock
    cdef readonly Py_ssize_t capacity, width
    cdef readonly object dtype
    cdef readonly double keep

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t width, dtype=np.float32, double keep=1.0):
        cdef Table *table = &self._table
        cdef int bits = 1
        self._lock = NULL
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be from 1 to {MAX_CAPACITY}, not {capacity}")
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
        self.capacity, self.width, self.keep = capacity, width, keep
        self.dtype = np.dtype(dtype)
        while (<Py_ssize_t> 1 << bits) < capacity + (capacity >> 1) + 1:
            bits += 1
        table.capacity = capacity
        table.row_bytes = width * <Py_ssize_t> self.dtype.itemsize
        table.limit = <uint64_t> (keep * 4294967296.0)
        table.shift = 32 - bits
        table.mask = (<uint64_t> 1 << bits) - 1
        table.rows = <Row *> malloc(capacity * sizeof(Row))
        table.values = <uint8_t *> malloc(capacity * table.row_bytes)
        table.index = <uint64_t *> calloc(<size_t> 1 << bits, sizeof(uint64_t))
        table.entered = <uint64_t *> calloc(capacity, sizeof(uint64_t))
        self._lock = PyThread_allocate_lock()
        if (
            table.rows == NULL or table.values == NULL or table.index == NULL
            or table.entered == NULL or self._lock == NULL
        ):
            raise MemoryError

    def __dealloc__(self):
        free(self._table.rows)
        free(self._table.values)
        free(self._table.index)
        free(self._table.entered)
        if self._lock != NULL:
            PyThread_free_lock(self._lock)

    def __len__(self):
        return min(self._table.next, self._table.capacity)

    def __repr__(self):
        return f"PredictionTable({len(self)} of {self.capacity} rows, at most {self.nbytes} bytes)"

    @property
    def rows(self):
        return self._table.next

    @property
    def forgotten(self):
        return max(0, self._table.next - self._table.capacity)

    @property
    def nbytes(self):
        cdef Py_ssize_t row = sizeof(Row) + sizeof(uint64_t) + self._table.row_bytes
        return (<Py_ssize_t> self._table.mask + 1) * 8 + self.capacity * row

    def put(
        self,
        bytes ids not None,
        id_ends not None,
        rows not None,
        event_time_ms not None,
        received_ms not None,
        int64_t version,
        values not None,
    ):
        # Plain buffers: with five typed views a batch takes 1 µs more.
        cdef Py_buffer views[5]
        cdef Py_ssize_t taken = 0
        if values.dtype != self.dtype:
            raise ValueError(f"values are {values.dtype}, expected {self.dtype}")
        try:
            for each in (id_ends, rows, event_time_ms, received_ms, values):
                PyObject_GetBuffer(each, &views[taken], PyBUF_SIMPLE)
                taken += 1
            return self._put(ids, views, version)
        finally:
            while taken:
                taken -= 1
                PyBuffer_Release(&views[taken])

    cdef Py_ssize_t _put(self, bytes ids, Py_buffer *views, int64_t version) except -1:
        cdef Table *table = &self._table
        cdef Py_ssize_t calls = views[1].len // 8, call, total = 0, kept = 0
        cdef const int32_t *id_ends = <const int32_t *> views[0].buf
        cdef const int64_t *rows = <const int64_t *> views[1].buf
        cdef const int64_t *event_time_ms = <const int64_t *> views[2].buf
        cdef const int64_t *received_ms = <const int64_t *> views[3].buf
        cdef const uint8_t *source = <const uint8_t *> views[4].buf
        cdef const char *text = PyBytes_AS_STRING(ids)
        cdef int32_t start = 0
        cdef int64_t row, time_ms
        cdef uint64_t of_id, key
        cdef Row *kept_row
        cdef uint8_t *to
        if (
            views[0].len != 4 * calls or views[1].len != 8 * calls
            or views[2].len != 8 * calls or views[3].len != 8 * calls
        ):
            raise ValueError(
                f"columns of {views[0].len}, {views[1].len}, {views[2].len} and {views[3].len} bytes "
                "are not an int32 and three int64 for each call"
            )
        for call in range(calls):
            if rows[call] < 0 or id_ends[call] < start:
                raise ValueError(
                    f"call {call} has {rows[call]} rows, its id goes from {start} to {id_ends[call]}"
                )
            start = id_ends[call]
            total += rows[call]
        if start > PyBytes_GET_SIZE(ids):
            raise ValueError(f"ids have {PyBytes_GET_SIZE(ids)} bytes, the last one ends at {start}")
        if views[4].len != total * table.row_bytes:
            raise ValueError(
                f"values have {views[4].len} bytes, {total} rows of {self.width} need "
                f"{total * table.row_bytes}"
            )
        start = 0
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            kept_row = &table.rows[table.slot]
            to = table.values + table.slot * table.row_bytes
            for call in range(calls):
                of_id = hash_id(text + start, id_ends[call] - start)
                start = id_ends[call]
                time_ms = event_time_ms[call] if event_time_ms[call] >= 0 else received_ms[call]
                for row in range(rows[call]):
                    key = hash_row(of_id, row)
                    if <uint64_t> <uint32_t> key < table.limit:
                        kept_row.key, kept_row.version, kept_row.time_ms = key, version, time_ms
                        if table.row_bytes == 4:  # a call of memcpy takes as long as the rest
                            memcpy(to, source, 4)
                        elif table.row_bytes == 8:
                            memcpy(to, source, 8)
                        else:
                            memcpy(to, source, table.row_bytes)
                        kept_row += 1
                        to += table.row_bytes
                        kept += 1
                        table.next += 1
                        table.slot += 1
                        if table.slot == table.capacity:
                            table.slot = 0
                            kept_row, to = table.rows, table.values
                    source += table.row_bytes
            PyThread_release_lock(self._lock)
        return kept

    def get(
        self, bytes ids not None, const int32_t[::1] id_ends not None, const int64_t[::1] rows not None
    ):
        cdef Py_ssize_t count = rows.shape[0], done = 0, i, size
        cdef Table *table = &self._table
        cdef const char *text = PyBytes_AS_STRING(ids)
        cdef uint64_t block[BLOCK]
        cdef int64_t slot
        cdef bint behind = True
        _check_ends(ids, id_ends, count)
        found, sequences = np.zeros(count, np.uint8), np.full(count, -1, np.int64)
        versions, times = np.zeros(count, np.int64), np.zeros(count, np.int64)
        values = np.zeros((count, self.width), self.dtype)
        cdef uint8_t[::1] out_found = found
        cdef int64_t[::1] out_sequence = sequences, out_version = versions, out_time = times
        cdef uint8_t[::1] out = values.reshape(-1).view(np.uint8)
        with nogil:
            # A block at a time: an executor that has rows to put waits for that long at most.
            while behind:
                PyThread_acquire_lock(self._lock, WAIT_LOCK)
                behind = _catch_up(table)
                PyThread_release_lock(self._lock)
            while done < count:
                size = min(<Py_ssize_t> BLOCK, count - done)
                for i in range(size):
                    block[i] = _key(text, id_ends, rows[done + i], done + i)
                    __builtin_prefetch(&table.index[_home(table, block[i])])
                PyThread_acquire_lock(self._lock, WAIT_LOCK)
                for i in range(size):
                    slot = _find(table, block[i])
                    if slot >= 0:
                        out_found[done + i] = IS_FOUND
                        out_sequence[done + i] = _sequence(table, slot)
                        out_version[done + i] = table.rows[slot].version
                        out_time[done + i] = table.rows[slot].time_ms
                        memcpy(
                            &out[(done + i) * table.row_bytes],
                            table.values + slot * table.row_bytes,
                            table.row_bytes,
                        )
                    elif <uint64_t> <uint32_t> block[i] >= table.limit:
                        out_found[done + i] = IS_LEFT_OUT
                PyThread_release_lock(self._lock)
                done += size
        return found, sequences, versions, times, values

    def latest(self, Py_ssize_t at_most):
        cdef Table *table = &self._table
        cdef Py_ssize_t count = max(<Py_ssize_t> 0, min(at_most, self.capacity)), i
        cdef int64_t slot
        versions, values = np.empty(count, np.int64), np.empty((count, self.width), self.dtype)
        cdef int64_t[::1] out_version = versions
        cdef uint8_t[::1] out = values.reshape(-1).view(np.uint8)
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            if table.next < count:
                count = table.next
            for i in range(count):
                slot = table.slot - 1 - i
                if slot < 0:
                    slot += table.capacity
                out_version[i] = table.rows[slot].version
                memcpy(
                    &out[i * table.row_bytes],
                    table.values + slot * table.row_bytes,
                    table.row_bytes,
                )
            PyThread_release_lock(self._lock)
        return versions[:count], values[:count]
