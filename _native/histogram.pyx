# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Counts of live values per feature, in a ring of panes that forms a sliding window.

Batches are in, read-only and row-major; windows and totals are out, new uint64 arrays of one row
of slots per column. A batch may end panes within itself: it is split here, not by whoever has it. Every count and every copy of counts is made under the histogram's mutex and
without the GIL, and nobody waits for the mutex with the GIL: a reader delays a writer by the copy
of a window, never by Python. A batch is checked whole before anything of it is counted.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDED_RO
from libc.math cimport NAN
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cimport cython

import numpy as np

include "_wire.pxi"
include "_edge_count.pxi"
include "_category_table.pxi"


cdef enum:
    MAX_BINS = 256
    CHAINS = 4  # columns that are counted side by side, see count_slots


cdef class Histogram:
    """The ring of panes; what is counted into the open pane is the subclass's affair."""

    cdef readonly Py_ssize_t columns, slots, panes
    cdef Py_ssize_t _copies  # of a pane's counts: rows side by side are counted each in its own
    # The mutex guards the three fields below it and whatever scratch a subclass counts with.
    cdef cython.pymutex _mutex
    cdef uint64_t *_ring  # panes x copies x columns x slots
    cdef uint64_t *_closed  # columns x slots: every pane that was closed, forgotten ones too
    cdef Py_ssize_t _open  # the pane that is counted into

    def __cinit__(self):
        if not isinstance(self, (NumericHistogram, CategoryHistogram)):
            raise TypeError("a Histogram is numeric or of categories")

    def __dealloc__(self):
        free(self._ring)
        free(self._closed)

    def __repr__(self):
        return (
            f"{type(self).__name__}(columns={self.columns}, slots={self.slots}, "
            f"panes={self.panes})"
        )

    cdef int _allocate(
        self, Py_ssize_t columns, Py_ssize_t slots, Py_ssize_t panes, Py_ssize_t copies
    ) except -1:
        if columns < 1:
            raise ValueError("a histogram needs at least 1 column")
        if panes < 1:
            raise ValueError(f"panes must be at least 1, not {panes}")
        self.columns, self.slots, self.panes, self._copies = columns, slots, panes, copies
        self._ring = <uint64_t *> calloc(panes, copies * columns * slots * sizeof(uint64_t))
        self._closed = <uint64_t *> calloc(columns * slots, sizeof(uint64_t))
        if self._ring == NULL or self._closed == NULL:
            raise MemoryError
        return 0

    cdef inline Py_ssize_t _pane_cells(self) noexcept nogil:
        return self._copies * self.columns * self.slots

    cdef inline uint64_t *_pane(self, Py_ssize_t pane) noexcept nogil:
        return self._ring + pane * self._pane_cells()

    cdef void _add(self, Py_ssize_t pane, uint64_t *out) noexcept nogil:
        """Adds a pane's counts, all copies of them, to `out`: columns x slots."""
        cdef Py_ssize_t cell, cells = self.columns * self.slots
        cdef const uint64_t *counts = self._pane(pane)
        for _ in range(self._copies):
            for cell in range(cells):
                out[cell] += counts[cell]
            counts += cells

    cdef void _advance(self) noexcept nogil:
        self._add(self._open, self._closed)
        self._open = (self._open + 1) % self.panes
        memset(self._pane(self._open), 0, self._pane_cells() * sizeof(uint64_t))

    def advance(self):
        with nogil, self._mutex:
            self._advance()

    def window(self):
        cdef Py_ssize_t pane
        counts = np.zeros((self.columns, self.slots), dtype=np.uint64)
        cdef uint64_t[:, ::1] view = counts
        cdef uint64_t *out = &view[0, 0]
        with nogil, self._mutex:
            for pane in range(self.panes):
                self._add(pane, out)
        return counts

    def total(self):
        counts = np.empty((self.columns, self.slots), dtype=np.uint64)
        cdef uint64_t[:, ::1] view = counts
        cdef uint64_t *out = &view[0, 0]
        with nogil, self._mutex:
            memcpy(out, self._closed, self.columns * self.slots * sizeof(uint64_t))
            self._add(self._open, out)
        return counts

    def reset(self):
        with nogil, self._mutex:
            memset(self._ring, 0, self.panes * self._pane_cells() * sizeof(uint64_t))
            memset(self._closed, 0, self.columns * self.slots * sizeof(uint64_t))
            self._open = 0


cdef inline void _lower(double *lowest, double value) noexcept nogil:
    if value < lowest[0] or lowest[0] != lowest[0]:  # NaN: none yet
        lowest[0] = value


cdef inline void _raise(double *highest, double value) noexcept nogil:
    if value > highest[0] or highest[0] != highest[0]:
        highest[0] = value


cdef int _check_room(Py_ssize_t room, Py_ssize_t pane_rows) except -1:
    if room >= 0 and pane_rows < 1:
        raise ValueError(f"pane_rows must be at least 1 where panes end, not {pane_rows}")
    return 0


def _kernels():
    """Number by name of the kernels that this CPU runs: the higher, the faster."""
    cdef int kernel
    return {
        kernel_names[kernel].decode(): kernel
        for kernel in range(KERNELS) if bin_search(kernel) != NULL
    }


@cython.final
cdef class NumericHistogram(Histogram):
    # A tensor too narrow for CHAINS has several of its rows side by side in one row of the kernel,
    # each with a copy of the counts: in memory that is the same. `width` values are such a row.
    cdef Py_ssize_t _width
    cdef BinSearch _search
    cdef int _levels
    cdef float *_trees  # width x 2^levels
    cdef float[TILE_ROWS * TILE_COLUMNS] _values  # scratch, float32
    cdef int32_t[TILE_ROWS * TILE_COLUMNS] _found  # scratch: slots
    # Extremes are followed only until a column is seen to vary, pane by pane: a column that does
    # costs nothing after a pane's first rows. The mutex guards them too.
    cdef double *_extremes  # panes x (lowest of each column, highest of each): NaN at first
    cdef int32_t *_followed  # columns: those to be followed, and those that still are
    cdef Py_ssize_t _follow, _following

    def __cinit__(self, edges not None, Py_ssize_t panes, *, follow=None, _kernel=None):
        cdef Py_ssize_t column, edge, most = 0
        cdef const float[::1] view
        tables = []
        for column, given in enumerate(edges):
            table = np.ascontiguousarray(given, dtype=np.float32)
            if table.ndim != 1:
                raise ValueError(f"edges of column {column} have {table.ndim} dimensions, not 1")
            if len(table) >= MAX_BINS:
                raise ValueError(
                    f"column {column} has {len(table) + 1} bins, the limit is {MAX_BINS}"
                )
            view = table
            for edge in range(view.shape[0]):
                if view[edge] != view[edge] or (edge and not view[edge - 1] < view[edge]):
                    raise ValueError(
                        f"edges of column {column} do not ascend strictly as float32: edge {edge} "
                        f"is {view[edge]}" + (f" after {view[edge - 1]}" if edge else "")
                    )
            most = max(most, len(table))
            tables.append(table)
        columns = len(tables)
        self._allocate(columns, most + 2, panes, 1 + (CHAINS - 1) // max(1, columns))
        self._width = self._copies * self.columns
        kernels = _kernels()
        self._search = bin_search(kernels[_kernel or max(kernels, key=kernels.get)])
        self._plant(tables, most)
        self._extremes = <double *> malloc(panes * 2 * columns * sizeof(double))
        self._followed = <int32_t *> malloc(2 * columns * sizeof(int32_t))
        if self._extremes == NULL or self._followed == NULL:
            raise MemoryError
        chosen = [] if follow is None else np.flatnonzero(np.asarray(follow, np.bool_)[:columns])
        for column in chosen:
            self._followed[self._follow] = <int32_t> column
            self._follow += 1
        for column in range(panes * 2 * columns):
            self._extremes[column] = NAN
        self._begin()

    cdef int _plant(self, list tables, Py_ssize_t most) except -1:
        """Lays the edges out as bin_search.h has them."""
        cdef Py_ssize_t at, node, edge, level, size
        cdef const float[::1] view
        cdef float *tree
        self._levels = MIN_LEVELS
        while (1 << self._levels) <= most:
            self._levels += 1
        size = 1 << self._levels
        self._trees = <float *> malloc(self._width * size * sizeof(float))
        if self._trees == NULL:
            raise MemoryError
        for at in range(self._width):
            view = tables[at % self.columns]
            tree = self._trees + at * size
            tree[0] = NAN
            for level in range(self._levels):
                for node in range(1 << level):
                    # Below a node of this level there are as many edges on either side.
                    edge = (2 * node + 1) * (size >> (level + 1)) - 1
                    tree[(1 << level) + node] = view[edge] if edge < view.shape[0] else NAN
        return 0

    def __dealloc__(self):
        free(self._trees)
        free(self._extremes)
        free(self._followed)

    cdef void _begin(self) noexcept nogil:
        """A pane opens: it has no extremes yet."""
        cdef Py_ssize_t column
        cdef double *lowest = self._extremes + self._open * 2 * self.columns
        for column in range(2 * self.columns):
            lowest[column] = NAN
        memcpy(self._followed + self.columns, self._followed, self._follow * sizeof(int32_t))
        self._following = self._follow

    def advance(self):
        with nogil, self._mutex:
            self._advance()
            self._begin()

    def reset(self):
        cdef Py_ssize_t at
        Histogram.reset(self)
        with nogil, self._mutex:
            for at in range(self.panes * 2 * self.columns):
                self._extremes[at] = NAN
            self._begin()

    def extremes(self, Py_ssize_t panes):
        cdef Py_ssize_t back, column
        cdef const double *found
        cdef double[:, ::1] view
        if not 1 <= panes:
            raise ValueError(f"panes must be at least 1, not {panes}")
        both = np.full((2, self.columns), np.nan)
        view = both
        with nogil, self._mutex:
            for back in range(min(panes, self.panes)):
                found = self._extremes + (
                    (self._open - back + self.panes) % self.panes * 2 * self.columns
                )
                for column in range(self.columns):
                    _lower(&view[0, column], found[column])
                    _raise(&view[1, column], found[self.columns + column])
        return both[0], both[1]

    def update(self, batch not None, Py_ssize_t room = -1, Py_ssize_t pane_rows = 0):
        cdef Py_buffer view
        cdef Kind kind
        cdef Py_ssize_t apart
        PyObject_GetBuffer(batch, &view, PyBUF_STRIDED_RO | PyBUF_FORMAT)
        try:
            if view.ndim != 2 or view.shape[1] != self.columns:
                shape = tuple([view.shape[axis] for axis in range(view.ndim)])
                raise ValueError(f"batch has shape {shape}, expected (rows, {self.columns})")
            kind = _kind_of(&view)
            if kind == UNKNOWN:
                raise ValueError(
                    f"batch has elements of type {view.format.decode()!r}, expected bool, integers "
                    "or floats of 32 or 64 bits"
                )
            _check_room(room, pane_rows)
            apart = view.strides[0] // view.itemsize if view.shape[0] > 1 else self.columns
            if (
                (view.strides[1] != view.itemsize and self.columns > 1)
                or view.strides[0] % view.itemsize
                or apart < self.columns
            ):
                raise ValueError(
                    f"batch has strides of {view.strides[0]} and {view.strides[1]} bytes, expected "
                    f"rows of {view.itemsize} bytes a value, one after another"
                )
            if self._copies > 1 and apart != self.columns:
                self.update(np.ascontiguousarray(batch), room, pane_rows)  # copy of a narrow one
                return
            with nogil, self._mutex:
                self._count_panes(
                    kind, <const char *> view.buf, view.shape[0], apart, view.itemsize,
                    room, pane_rows,
                )
        finally:
            PyBuffer_Release(&view)

    cdef void _count_panes(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t apart, Py_ssize_t itemsize,
        Py_ssize_t room, Py_ssize_t pane_rows,
    ) noexcept nogil:
        """`apart`: values between the beginnings of two rows."""
        cdef Py_ssize_t piece
        while rows:
            piece = rows if room < 0 else min(rows, room)
            if piece:
                self._count(kind, data, piece, apart, itemsize)
                if self._following:
                    self._extend(kind, data, piece, apart, itemsize)
                data += piece * apart * itemsize
                rows -= piece
            if rows:
                self._advance()
                self._begin()
                room = pane_rows

    cdef void _extend(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t apart, Py_ssize_t itemsize
    ) noexcept nogil:
        """Follows the extremes of the columns that did not vary so far in the open pane."""
        cdef int32_t *following = self._followed + self.columns
        cdef double *lowest = self._extremes + self._open * 2 * self.columns
        cdef double *highest = lowest + self.columns
        cdef Py_ssize_t at, row, left = 0
        cdef int32_t column
        cdef double value
        for at in range(self._following):
            column = following[at]
            for row in range(rows):
                value = _number(kind, data + (row * apart + column) * itemsize)
                _lower(&lowest[column], value)
                _raise(&highest[column], value)
                if lowest[column] < highest[column]:
                    break
            else:
                following[left] = column
                left += 1
        self._following = left

    cdef void _count(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t apart, Py_ssize_t itemsize
    ) noexcept nogil:
        cdef Py_ssize_t left = rows * self.columns
        cdef Py_ssize_t high
        if self._copies > 1:
            apart = self._width
        while left >= self._width:
            high = min(left // self._width, TILE_ROWS)
            self._count_rows(kind, data, high, self._width, apart, itemsize)
            data += high * apart * itemsize
            left -= high * self._width
        if left:
            self._count_rows(kind, data, 1, left, left, itemsize)

    cdef void _count_rows(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t apart,
        Py_ssize_t itemsize,
    ) noexcept nogil:
        """Counts at most TILE_ROWS rows."""
        cdef Py_ssize_t at = 0, columns
        while at < width:
            columns = min(width - at, TILE_COLUMNS)
            _load_kind(kind, data + at * itemsize, self._values, rows, columns, apart)  # copy
            self._search(
                self._values, <int> rows, <int> columns, self._trees + (at << self._levels),
                self._levels, <int32_t> (self.slots - 1), self._found,
            )
            count_slots(
                self._found, <int> rows, <int> columns,
                self._pane(self._open) + at * self.slots, self.slots,
            )
            at += columns


@cython.final
cdef class CategoryHistogram(Histogram):
    cdef CategoryTable *_tables  # one per column
    cdef list _texts  # keeps the bytes that the tables point into

    def __cinit__(self, kept not None, rare not None, Py_ssize_t panes):
        cdef Py_ssize_t column
        kept_lists = [list(categories) for categories in kept]
        rare_lists = [list(categories) for categories in rare]
        if len(kept_lists) != len(rare_lists):
            raise ValueError(
                f"kept categories of {len(kept_lists)} columns, rare ones of {len(rare_lists)}"
            )
        most = max([len(categories) for categories in kept_lists], default=0)
        self._allocate(len(kept_lists), most + 3, panes, 1)
        self._texts = [kept_lists, rare_lists]
        self._tables = <CategoryTable *> calloc(self.columns, sizeof(CategoryTable))
        if self._tables == NULL:
            raise MemoryError
        for column in range(self.columns):
            self._fill(column, kept_lists[column], rare_lists[column])

    def __dealloc__(self):
        cdef Py_ssize_t column
        if self._tables != NULL:
            for column in range(self.columns):
                free(self._tables[column].places)
            free(self._tables)

    cdef int _fill(self, Py_ssize_t column, list kept, list rare) except -1:
        cdef CategoryTable *table = &self._tables[column]
        cdef Category *place
        cdef const unsigned char *text
        cdef Py_ssize_t size = 4, slot
        cdef uint64_t hash, at
        while size < 4 * (len(kept) + len(rare)):
            size *= 2
        table.places = <Category *> calloc(size, sizeof(Category))
        if table.places == NULL:
            raise MemoryError
        table.mask = size - 1
        table.other = len(kept)
        slot = 0
        for category in [*kept, *rare]:
            if not isinstance(category, bytes):
                raise TypeError(
                    f"category {category!r} of column {column} is {type(category).__name__}, "
                    "not bytes"
                )
            if not category:
                raise ValueError(f"column {column} lists the empty category: it means missing")
            text = category
            if _slot_of(table, text, len(category)) != table.other + 1:
                raise ValueError(f"column {column} lists category {category!r} twice")
            hash = _hash(text, len(category))
            at = hash & table.mask
            while table.places[at].length:
                at = (at + 1) & table.mask
            place = &table.places[at]
            place.hash, place.text = hash, text
            place.length = <uint32_t> len(category)
            place.slot = <uint32_t> min(slot, table.other)
            table.longest = max(table.longest, len(category))
            slot += 1
        return 0

    def update(
        self, raw not None, Py_ssize_t rows, Py_ssize_t room = -1, Py_ssize_t pane_rows = 0
    ):
        cdef Py_buffer view
        cdef Py_ssize_t elements
        PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
        try:
            elements = whole_elements(<const unsigned char *> view.buf, view.len)
            if rows < 0 or elements != rows * self.columns:
                raise ValueError(
                    f"BYTES data holds {elements} elements, {rows} rows of {self.columns} columns "
                    f"need {rows * self.columns}"
                )
            _check_room(room, pane_rows)
            with nogil, self._mutex:
                self._count_panes(<const unsigned char *> view.buf, rows, room, pane_rows)
        finally:
            PyBuffer_Release(&view)

    cdef void _count_panes(
        self, const unsigned char *raw, Py_ssize_t rows, Py_ssize_t room, Py_ssize_t pane_rows
    ) noexcept nogil:
        cdef Py_ssize_t piece
        while rows:
            piece = rows if room < 0 else min(rows, room)
            raw = _count_elements(
                raw, piece, self.columns, self._tables, self._pane(self._open), self.slots
            )
            rows -= piece
            if rows:
                self._advance()
                room = pane_rows
