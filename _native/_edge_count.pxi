# The numeric kernel: a tile of numbers becomes float32, column by column, and is counted into bins.
# bin_search.h has what runs per value after the rounding.

from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy


cdef extern from "bin_search.h" nogil:
    enum:
        TILE_ROWS
        TILE_COLUMNS
        MIN_LEVELS
        KERNELS
    ctypedef void (*BinSearch)(
        const float *values, int rows, int columns, const float *trees, int levels,
        int32_t missing, int32_t *slots,
    ) noexcept
    const char *const *kernel_names
    BinSearch bin_search(int kernel) noexcept
    void load_floats(
        const char *source, float *values, int rows, int columns, Py_ssize_t width
    ) noexcept
    void count_slots(
        const int32_t *slots, int rows, int columns, uint64_t *counts, Py_ssize_t width
    ) noexcept


cdef enum Kind:
    FLOAT32, FLOAT64, BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, UNKNOWN


ctypedef fused number:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef Kind _sized(Py_ssize_t size, Kind one, Kind two, Kind four, Kind eight) noexcept:
    return one if size == 1 else two if size == 2 else four if size == 4 else eight


cdef Kind _kind_of(const Py_buffer *view) noexcept:
    cdef const char *format = view.format
    cdef char code
    if format == NULL:
        return UINT8
    if format[0] == b"=":
        format += 1  # native, but perhaps not aligned
    code = format[0]
    if code == 0 or format[1] != 0:
        return UNKNOWN  # a foreign byte order, or a record
    if code == b"f":
        return FLOAT32
    if code == b"d":
        return FLOAT64
    if code == b"?":
        return BOOL
    if code in b"bhilq":
        return _sized(view.itemsize, INT8, INT16, INT32, INT64)
    if code in b"BHILQ":
        return _sized(view.itemsize, UINT8, UINT16, UINT32, UINT64)
    return UNKNOWN


cdef void _load(
    const number *source, float *values, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t width
) noexcept nogil:
    """Of `rows` rows of `width` numbers, `columns` become a tile of float32: the one rounding."""
    cdef Py_ssize_t row, column
    cdef number value = 0
    for row in range(rows):
        for column in range(columns):
            memcpy(&value, source + column, sizeof(number))  # a load that need not be aligned
            values[column * TILE_ROWS + row] = <float> value
        source += width


cdef void _load_bool(
    const uint8_t *source, float *values, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t width
) noexcept nogil:
    cdef Py_ssize_t row, column
    for row in range(rows):
        for column in range(columns):
            values[column * TILE_ROWS + row] = source[column] != 0
        source += width


cdef void _load_kind(
    Kind kind,
    const char *source,
    float *values,
    Py_ssize_t rows,
    Py_ssize_t columns,
    Py_ssize_t width,
) noexcept nogil:
    if kind == FLOAT32:
        load_floats(source, values, <int> rows, <int> columns, width)
    elif kind == FLOAT64:
        _load(<const double *> source, values, rows, columns, width)
    elif kind == BOOL:
        _load_bool(<const uint8_t *> source, values, rows, columns, width)
    elif kind == INT8:
        _load(<const int8_t *> source, values, rows, columns, width)
    elif kind == INT16:
        _load(<const int16_t *> source, values, rows, columns, width)
    elif kind == INT32:
        _load(<const int32_t *> source, values, rows, columns, width)
    elif kind == INT64:
        _load(<const int64_t *> source, values, rows, columns, width)
    elif kind == UINT8:
        _load(<const uint8_t *> source, values, rows, columns, width)
    elif kind == UINT16:
        _load(<const uint16_t *> source, values, rows, columns, width)
    elif kind == UINT32:
        _load(<const uint32_t *> source, values, rows, columns, width)
    elif kind == UINT64:
        _load(<const uint64_t *> source, values, rows, columns, width)


cdef inline double _as_double(number *at) noexcept nogil:
    cdef number value = 0
    memcpy(&value, at, sizeof(number))
    return <double> value


cdef double _number(Kind kind, const char *at) noexcept nogil:
    """One element, wherever it lies."""
    if kind == FLOAT32:
        return _as_double(<float *> at)
    if kind == FLOAT64:
        return _as_double(<double *> at)
    if kind == BOOL:
        return at[0] != 0
    if kind == INT8:
        return _as_double(<int8_t *> at)
    if kind == INT16:
        return _as_double(<int16_t *> at)
    if kind == INT32:
        return _as_double(<int32_t *> at)
    if kind == INT64:
        return _as_double(<int64_t *> at)
    if kind == UINT8:
        return _as_double(<uint8_t *> at)
    if kind == UINT16:
        return _as_double(<uint16_t *> at)
    if kind == UINT32:
        return _as_double(<uint32_t *> at)
    return _as_double(<uint64_t *> at)
