# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Counts of live values per feature, in a ring of panes that forms a sliding window.

Batches are in, read-only and row-major; windows and totals are out, new uint64 arrays of one row
of slots per column. Every count and every copy of counts is made under the histogram's mutex and
without the GIL, and nobody waits for the mutex with the GIL: a reader delays a writer by the copy
of a window, never by Python. A batch is checked whole before anything of it is counted.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT
from libc.math cimport NAN
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport cython

import numpy as np

include "_wire.pxi"
include "_edge_count.pxi"
include "_category_table.pxi"


cdef enum:
    MAX_BINS = 256
    BLOCK_VALUES = 4096  # float32 values that are converted at a time: 16 KiB


cdef class Histogram:
    """The ring of panes; what is counted into the open pane is the subclass's affair."""

    cdef readonly Py_ssize_t columns, slots, panes
    # The mutex guards the three fields below it and whatever scratch a subclass counts with.
    cdef cython.pymutex _mutex
    cdef uint64_t *_ring  # panes x columns x slots
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

    cdef int _allocate(self, Py_ssize_t columns, Py_ssize_t slots, Py_ssize_t panes) except -1:
        if columns < 1:
            raise ValueError("a histogram needs at least 1 column")
        if panes < 1:
            raise ValueError(f"panes must be at least 1, not {panes}")
        self.columns, self.slots, self.panes = columns, slots, panes
        self._ring = <uint64_t *> calloc(panes, columns * slots * sizeof(uint64_t))
        self._closed = <uint64_t *> calloc(columns * slots, sizeof(uint64_t))
        if self._ring == NULL or self._closed == NULL:
            raise MemoryError
        return 0

    cdef inline uint64_t *_pane(self, Py_ssize_t pane) noexcept nogil:
        return self._ring + pane * self.columns * self.slots

    def advance(self):
        cdef Py_ssize_t cell, cells = self.columns * self.slots
        cdef uint64_t *pane
        with nogil, self._mutex:
            pane = self._pane(self._open)
            for cell in range(cells):
                self._closed[cell] += pane[cell]
            self._open = (self._open + 1) % self.panes
            memset(self._pane(self._open), 0, cells * sizeof(uint64_t))

    def window(self):
        cdef Py_ssize_t cell, pane, cells = self.columns * self.slots
        counts = np.zeros((self.columns, self.slots), dtype=np.uint64)
        cdef uint64_t[:, ::1] view = counts
        cdef uint64_t *out = &view[0, 0]
        cdef const uint64_t *source
        with nogil, self._mutex:
            for pane in range(self.panes):
                source = self._pane(pane)
                for cell in range(cells):
                    out[cell] += source[cell]
        return counts

    def total(self):
        cdef Py_ssize_t cell, cells = self.columns * self.slots
        counts = np.empty((self.columns, self.slots), dtype=np.uint64)
        cdef uint64_t[:, ::1] view = counts
        cdef uint64_t *out = &view[0, 0]
        cdef const uint64_t *source
        with nogil, self._mutex:
            source = self._pane(self._open)
            for cell in range(cells):
                out[cell] = self._closed[cell] + source[cell]
        return counts

    def reset(self):
        cdef Py_ssize_t cells = self.columns * self.slots
        with nogil, self._mutex:
            memset(self._ring, 0, self.panes * cells * sizeof(uint64_t))
            memset(self._closed, 0, cells * sizeof(uint64_t))
            self._open = 0


@cython.final
cdef class NumericHistogram(Histogram):
    # A tensor too narrow to fill the lanes has several of its rows side by side in one row of the
    # kernel: in memory that is the same. `width` values are such a row, `stride` with its padding.
    cdef Py_ssize_t _width, _stride
    cdef Py_ssize_t _coarse_edges
    cdef float *_coarse  # coarse edges x stride
    cdef float *_fine  # width x (coarse edges + 1) x FINE
    cdef Py_ssize_t *_cells  # width
    cdef Py_ssize_t _block_rows
    cdef float *_values  # scratch: block rows x stride, zero in the padding
    cdef int32_t *_blocks  # scratch: stride

    def __cinit__(self, edges not None, Py_ssize_t panes):
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
        self._allocate(len(tables), most + 2, panes)
        self._width = max(1, LANES // self.columns) * self.columns
        self._stride = (self._width + LANES - 1) // LANES * LANES
        self._coarse_edges = most // FINE
        self._fill(tables)
        self._block_rows = max(1, BLOCK_VALUES // self._stride)
        self._values = <float *> calloc(self._block_rows * self._stride, sizeof(float))
        self._blocks = <int32_t *> calloc(self._stride, sizeof(int32_t))
        if self._values == NULL or self._blocks == NULL:
            raise MemoryError

    cdef int _fill(self, list tables) except -1:
        cdef Py_ssize_t fine_edges = (self._coarse_edges + 1) * FINE
        cdef Py_ssize_t at, edge, cell
        cdef const float[::1] view
        self._coarse = <float *> malloc(max(1, self._coarse_edges) * self._stride * sizeof(float))
        self._fine = <float *> malloc(self._width * fine_edges * sizeof(float))
        self._cells = <Py_ssize_t *> malloc(self._width * sizeof(Py_ssize_t))
        if self._coarse == NULL or self._fine == NULL or self._cells == NULL:
            raise MemoryError
        for cell in range(self._coarse_edges * self._stride):
            self._coarse[cell] = NAN
        for cell in range(self._width * fine_edges):
            self._fine[cell] = NAN
        for at in range(self._width):
            self._cells[at] = at % self.columns * self.slots
            view = tables[at % self.columns]
            for edge in range(view.shape[0]):
                self._fine[at * fine_edges + edge] = view[edge]
                if edge % FINE == FINE - 1:
                    self._coarse[edge // FINE * self._stride + at] = view[edge]
        return 0

    def __dealloc__(self):
        free(self._coarse)
        free(self._fine)
        free(self._cells)
        free(self._values)
        free(self._blocks)

    def update(self, batch not None):
        cdef Py_buffer view
        cdef Kind kind
        PyObject_GetBuffer(batch, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
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
            with nogil, self._mutex:
                self._count(kind, <const char *> view.buf, view.shape[0], view.itemsize)
        finally:
            PyBuffer_Release(&view)

    cdef void _count(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t itemsize
    ) noexcept nogil:
        cdef Py_ssize_t left = rows * self.columns
        cdef Py_ssize_t block
        while left >= self._width:
            block = min(left // self._width, self._block_rows)
            self._count_block(kind, data, block, self._width)
            data += block * self._width * itemsize
            left -= block * self._width
        if left:
            self._count_block(kind, data, 1, left)

    cdef void _count_block(
        self, Kind kind, const char *data, Py_ssize_t rows, Py_ssize_t width
    ) noexcept nogil:
        # copy: rows of whole lanes, as float32
        _load_kind(kind, data, self._values, rows, width, self._stride)
        _count_rows(
            self._values, rows, width, self._stride,
            self._coarse, self._coarse_edges, self._fine, self._cells,
            self._blocks, self._pane(self._open), self.slots - 1,
        )


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
        self._allocate(len(kept_lists), most + 3, panes)
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

    def update(self, raw not None, Py_ssize_t rows):
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
            with nogil, self._mutex:
                _count_elements(
                    <const unsigned char *> view.buf, rows, self.columns, self._tables,
                    self._pane(self._open), self.slots,
                )
        finally:
            PyBuffer_Release(&view)
