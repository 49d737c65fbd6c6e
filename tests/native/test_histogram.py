"""Numeric and category histograms against naive ones, and windows against their rows."""

import math
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trimtab._native.histogram import (  # type: ignore[attr-defined]  # _kernels is private
    CategoryHistogram,
    Histogram,
    NumericHistogram,
    _kernels,
)

KERNELS = list(_kernels())
DTYPES = ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
# Few enough to collide with edges, and the values that kernels get wrong.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, np.inf, -np.inf]


def numeric_histogram(
    edges: Sequence[NDArray[np.float32]], panes: int, kernel: str
) -> NumericHistogram:
    return NumericHistogram(edges, panes, _kernel=kernel)  # type: ignore[call-arg]  # private


def naive(batch: NDArray[Any], edges: Sequence[NDArray[np.float32]], slots: int) -> NDArray[Any]:
    counts = np.zeros((len(edges), slots), np.uint64)
    with np.errstate(over="ignore"):
        values = batch.astype(np.float32)
    for row in values.tolist():
        for column, x in enumerate(row):
            below = sum(x >= edge for edge in edges[column].tolist())
            counts[column, -1 if math.isnan(x) else below] += 1
    return counts


@st.composite
def edge_rows(draw: st.DrawFn, most: int = 20) -> NDArray[np.float32]:
    values = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32, allow_nan=False))
    return np.unique(np.array(draw(st.lists(values, max_size=most)), np.float32))


@st.composite
def batches(draw: st.DrawFn, edges: Sequence[NDArray[np.float32]], dtype: str) -> NDArray[Any]:
    rows = draw(st.integers(0, 20))
    if dtype == "?":
        return draw(hnp.arrays(dtype, (rows, len(edges))))
    if dtype[0] in "iu":
        return draw(hnp.arrays(dtype, (rows, len(edges))))
    pool = [*SPECIAL, np.nan, *np.concatenate(edges).tolist()]
    near = st.sampled_from(pool).flatmap(
        lambda x: st.sampled_from(
            [x, float(np.nextafter(np.float64(x), np.inf)), float(np.nextafter(x, -np.inf))]
        )
    )
    width = {"f4": 32, "f8": 64}[dtype]
    if width == 32:
        near = st.sampled_from(pool)
    return draw(hnp.arrays(dtype, (rows, len(edges)), elements=near))


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 18))
@settings(max_examples=60, deadline=None)
def test_numeric_counts_equal_the_naive_ones(
    kernel: str, data: st.DataObject, dtype: str, columns: int
) -> None:
    edges = [data.draw(edge_rows()) for _ in range(columns)]
    batch = data.draw(batches(edges, dtype))
    histogram = numeric_histogram(edges, 2, kernel)
    histogram.update(batch)
    assert histogram.slots == max(len(row) for row in edges) + 2
    np.testing.assert_array_equal(histogram.window(), naive(batch, edges, histogram.slots))


def searched(
    batch: NDArray[np.float32], edges: Sequence[NDArray[np.float32]], slots: int
) -> NDArray[np.uint64]:
    """What `naive` counts, for batches that are too long for it."""
    counts = np.zeros((len(edges), slots), np.uint64)
    for column, row in enumerate(edges):
        x = batch[:, column]
        found = np.searchsorted(row, x[~np.isnan(x)], side="right")
        counts[column, : len(row) + 1] = np.bincount(found, minlength=len(row) + 1)
        counts[column, -1] = np.isnan(x).sum()
    return counts


def spread_edges(rng: np.random.Generator, bins: int) -> NDArray[np.float32]:
    """At most bins - 1 of all magnitudes, some next to each other, some special, ties collapsed."""
    bits = rng.integers(0, 2**32, size=bins - 1, dtype=np.uint32)
    values = np.where(rng.random(bins - 1) < 0.5, bits.view(np.float32), rng.normal(size=bins - 1))
    values = np.where(rng.random(bins - 1) < 0.1, rng.choice(SPECIAL, bins - 1), values)
    values = values[~np.isnan(values)].astype(np.float32)
    with np.errstate(over="ignore"):  # after the largest float32 comes inf
        values[1::2] = np.nextafter(values[: len(values) // 2 * 2 : 2], np.float32(np.inf))
    return np.unique(values)


def near_edges(
    rng: np.random.Generator, rows: int, edges: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Edges, their neighbours on either side, special values, NaN and any bits at all."""
    shape = (rows, len(edges))
    batch = rng.integers(0, 2**32, size=shape, dtype=np.uint32).view(np.float32)
    beyond = np.array([-np.inf, np.inf], np.float32)
    for column, row in enumerate(edges):
        if len(row):
            exact = rng.choice(row, rows)
            with np.errstate(over="ignore"):  # after the largest float32 comes inf
                near = np.nextafter(exact, rng.choice(beyond, rows))
            near = np.where(rng.random(rows) < 0.5, exact, near)
            batch[:, column] = np.where(rng.random(rows) < 0.5, near, batch[:, column])
    batch[rng.random(shape) < 0.2] = np.nan
    special = rng.random(shape) < 0.2
    batch[special] = rng.choice(SPECIAL, special.sum())
    return batch


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.integers(1, 70), st.integers(0, 5000), st.integers(1, 256), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_batch_of_any_size_is_counted_as_searchsorted_finds_it(
    kernel: str, columns: int, rows: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    edges = [spread_edges(rng, int(bins)) for bins in rng.integers(1, most + 1, size=columns)]
    batch = near_edges(rng, rows, edges)
    histogram = numeric_histogram(edges, 1, kernel)
    histogram.update(batch)
    np.testing.assert_array_equal(histogram.total(), searched(batch, edges, histogram.slots))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bins", [1, 2, 15, 16, 17, 32, 33, 64, 65, 128, 129, 256])
def test_every_edge_parts_the_values_on_either_side_of_it(kernel: str, bins: int) -> None:
    edges = np.sort(np.random.default_rng(bins).normal(size=bins - 1).astype(np.float32))
    assert len(np.unique(edges)) == bins - 1
    below = np.nextafter(edges, np.float32(-np.inf))
    batch = np.concatenate([below, edges, [-np.inf, np.inf, np.nan]]).astype(np.float32)
    histogram = numeric_histogram([edges], 1, kernel)
    histogram.update(batch.reshape(-1, 1))
    np.testing.assert_array_equal(
        histogram.total(), searched(batch.reshape(-1, 1), [edges], bins + 1)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_one_update_leaves_behind_does_not_reach_the_next(kernel: str) -> None:
    """Sizes off every kernel's step, one after the other in one histogram."""
    rng = np.random.default_rng(0)
    edges = [np.unique(rng.normal(size=63).astype(np.float32)) for _ in range(19)]
    histogram = numeric_histogram(edges, 1, kernel)
    expected = np.zeros((19, histogram.slots), np.uint64)
    for rows in [*range(70, 0, -1), 127, 128, 129, 1000]:
        batch = rng.normal(size=(rows, 19)).astype(np.float32)
        histogram.update(batch)
        expected += searched(batch, edges, histogram.slots)
        np.testing.assert_array_equal(histogram.total(), expected)


def test_the_portable_kernel_runs_everywhere() -> None:
    assert KERNELS[0] == "portable"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("columns", [*range(1, 10), 16, 17, 600])
@pytest.mark.parametrize("bins", [1, 2, 4, 5, 64, 255, 256])
def test_every_width_and_number_of_bins_counts_every_row_of_a_long_batch(
    kernel: str, columns: int, bins: int
) -> None:
    rng = np.random.default_rng(columns * 1000 + bins)
    edges = [np.unique(rng.normal(size=bins - 1).astype(np.float32)) for _ in range(columns)]
    batch = rng.normal(size=(1500 if columns < 20 else 50, columns)).astype(np.float32)
    batch[rng.random(batch.shape) < 0.1] = np.nan
    for column in range(columns):
        exact = rng.random(len(batch)) < 0.2
        if bins > 1:
            batch[exact, column] = rng.choice(edges[column], exact.sum())
    histogram = numeric_histogram(edges, 1, kernel)
    histogram.update(batch)
    np.testing.assert_array_equal(histogram.total(), searched(batch, edges, histogram.slots))


def test_a_value_is_rounded_to_float32_before_it_is_compared() -> None:
    edge = np.float32(0.1)
    histogram = NumericHistogram([np.array([edge])], 1)
    histogram.update(np.array([[0.1], [np.nextafter(float(edge), 0)], [float(edge) - 1e-8]]))
    assert histogram.window().tolist() == [[1, 2, 0]]


def test_an_integer_is_rounded_once() -> None:
    value = 2**60 + 2**36 + 1  # rounds up, but to even if it went through float64 first
    histogram = NumericHistogram([np.array([np.float32(2**60 + 2**37)])], 1)
    histogram.update(np.array([[value]], np.int64))
    assert histogram.window().tolist() == [[0, 1, 0]]


def test_bools_count_as_zero_and_one_whatever_their_byte() -> None:
    histogram = NumericHistogram([np.array([1, 2], np.float32)], 1)
    histogram.update(np.frombuffer(bytes([0, 1, 255]), np.bool_).reshape(-1, 1))
    assert histogram.window().tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2"])
def test_an_array_that_is_not_aligned_is_counted_too(dtype: str) -> None:
    raw = b"x" + np.arange(40, dtype=dtype).tobytes()
    batch = np.frombuffer(raw, np.uint8)[1:].view(dtype).reshape(-1, 4)
    assert not batch.flags.aligned
    histogram = NumericHistogram([np.array([20], np.float32)] * 4, 1)
    histogram.update(batch)
    assert histogram.window().tolist() == [[5, 5, 0]] * 4


def test_a_column_without_edges_has_one_bin() -> None:
    histogram = NumericHistogram([np.empty(0, np.float32)], 1)
    histogram.update(np.array([[1.0], [np.nan], [-np.inf]], np.float32))
    assert histogram.window().tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros(2, np.float32), r"shape \(2,\), expected \(rows, 2\)"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\), expected \(rows, 2\)"),
        (np.zeros((2, 2), np.float16), "elements of type 'e'"),
        (np.zeros((2, 2), ">f4"), "elements of type '>f'"),
        (np.zeros((2, 2), np.complex64), "elements of type 'Zf'"),
        (np.array([["a", "b"]], dtype=object), "elements of type 'O'"),
        (np.zeros((2, 4), np.float32)[:, ::2], "strides of 16 and 8 bytes, expected rows of 4"),
        (np.zeros((3, 2), np.float32)[::-1], "strides of -8 and 4 bytes"),
        (np.broadcast_to(np.zeros(2, np.float32), (3, 2)), "strides of 0 and 4 bytes"),
    ],
)
def test_a_batch_of_another_kind_is_refused_and_counts_nothing(
    batch: NDArray[Any], message: str
) -> None:
    histogram = NumericHistogram([np.array([0], np.float32)] * 2, 1)
    with pytest.raises(ValueError, match=message):
        histogram.update(batch)
    assert not histogram.total().any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 30, 70])
@pytest.mark.parametrize("step", [2, 3, 7])
def test_rows_that_lie_apart_count_as_if_they_were_side_by_side(
    columns: int, step: int, dtype: Any
) -> None:
    random = np.random.default_rng(columns * step)
    whole = (random.normal(size=(500, columns)) * 3).astype(dtype)
    edges = [np.sort(random.normal(size=9)).astype(np.float32) for _ in range(columns)]
    apart = NumericHistogram(edges, 3, follow=[True] * columns)
    together = NumericHistogram(edges, 3, follow=[True] * columns)
    for first in range(3):
        rows = whole[first::step]
        apart.update(rows, 20, 50)
        together.update(np.ascontiguousarray(rows), 20, 50)
    assert np.array_equal(apart.window(), together.window())
    assert np.array_equal(apart.total(), together.total())
    assert np.array_equal(apart.extremes(3), together.extremes(3))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([1, 1], "edge 1 is 1.0 after 1.0"),
        ([2, 1], "edge 1 is 1.0 after 2.0"),
        ([np.nan], "edge 0 is nan"),
        ([0.0, -0.0], "edge 1 is -0.0 after 0.0"),
        ([[1, 2]], "have 2 dimensions, not 1"),
        (range(256), "has 257 bins, the limit is 256"),
    ],
)
def test_edges_that_make_no_bins_are_refused(edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NumericHistogram([np.array(edges, np.float32)], 1)


def test_a_histogram_has_columns_panes_and_a_kind() -> None:
    with pytest.raises(TypeError, match="numeric or of categories"):
        Histogram()
    with pytest.raises(MemoryError):
        NumericHistogram([np.empty(0, np.float32)], 2**62)
    with pytest.raises(ValueError, match="at least 1 column"):
        NumericHistogram([], 1)
    with pytest.raises(ValueError, match="panes must be at least 1, not 0"):
        NumericHistogram([np.empty(0, np.float32)], 0)
    assert repr(NumericHistogram([np.empty(0, np.float32)], 3)) == (
        "NumericHistogram(columns=1, slots=2, panes=3)"
    )


@given(st.integers(1, 4), st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=30))
@settings(deadline=None)
def test_the_window_equals_the_rows_of_its_panes(panes: int, steps: list[int | None]) -> None:
    """None closes a pane, a number is a batch of that many rows."""
    edges = [np.array([0, 1], np.float32), np.array([0.5], np.float32)]
    histogram = NumericHistogram(edges, panes)
    rng = np.random.default_rng(0)
    nothing = np.empty((0, 2), np.float32)
    rows = [nothing]
    for step in steps:
        if step is None:
            histogram.advance()
            rows.append(nothing)
        else:
            batch = rng.normal(size=(step, 2)).astype(np.float32)
            histogram.update(batch)
            rows[-1] = np.concatenate([rows[-1], batch])
        window = np.concatenate(rows[-panes:])
        np.testing.assert_array_equal(histogram.window(), naive(window, edges, 4))
        np.testing.assert_array_equal(histogram.total(), naive(np.concatenate(rows), edges, 4))
    histogram.reset()
    assert not histogram.window().any()
    assert not histogram.total().any()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    pane_rows=st.integers(1, 12),
    panes=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_an_update_that_ends_panes_equals_one_update_and_advance_per_pane(
    sizes: list[int], pane_rows: int, panes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    edges = [np.array([0], np.float32), np.array([-1, 1], np.float32)]
    split, whole = (NumericHistogram(edges, panes, follow=[True, False]) for _ in range(2))
    split_texts, whole_texts = (CategoryHistogram([[b"a"]], [[b"b"]], panes) for _ in range(2))
    room = pane_rows
    for rows in sizes:
        batch = rng.integers(-2, 3, (rows, 2)).astype(np.float64)
        texts = [rng.choice([b"a", b"bb", b""]) for _ in range(rows)]
        split.update(batch, room, pane_rows)
        split_texts.update(wire(texts), rows, room, pane_rows)
        for row in range(rows):
            if not room:
                whole.advance()
                whole_texts.advance()
                room = pane_rows
            whole.update(batch[row : row + 1])
            whole_texts.update(wire(texts[row : row + 1]), 1)
            room -= 1
    np.testing.assert_array_equal(split.window(), whole.window())
    np.testing.assert_array_equal(split.total(), whole.total())
    np.testing.assert_array_equal(split_texts.window(), whole_texts.window())
    np.testing.assert_array_equal(split_texts.total(), whole_texts.total())
    np.testing.assert_array_equal(split.extremes(panes), whole.extremes(panes))


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "u8", "f4", "f8"])
def test_extremes_are_equal_only_where_a_followed_column_is_constant(dtype: str) -> None:
    histogram = NumericHistogram([np.array([0], np.float32)] * 3, 2, follow=[True, True, False])
    batch = np.array([[1, 0, 1], [1, 1, 0]], dtype)
    histogram.update(batch)
    low, high = histogram.extremes(1)
    assert (low[0], high[0]) == (1, 1)
    assert low[1] < high[1]
    assert np.isnan(low[2]) and np.isnan(high[2])


def test_extremes_are_of_the_newest_panes_and_leave_out_missing_values() -> None:
    histogram = NumericHistogram([np.array([0], np.float32)], 2, follow=[True])
    for value in (5.0, math.nan, 3.0):
        histogram.update(np.array([[value]]))
        histogram.advance()
    histogram.update(np.array([[math.nan]]))
    assert np.isnan(histogram.extremes(1)[0][0])
    assert [float(each[0]) for each in histogram.extremes(2)] == [3.0, 3.0]
    histogram.update(np.array([[4.0]]))
    assert [float(each[0]) for each in histogram.extremes(9)] == [3.0, 4.0]
    histogram.reset()
    assert np.isnan(histogram.extremes(2)).all()
    with pytest.raises(ValueError, match="panes must be at least 1, not 0"):
        histogram.extremes(0)


def test_panes_that_end_need_a_size() -> None:
    histogram = NumericHistogram([np.array([0], np.float32)], 2)
    with pytest.raises(ValueError, match="pane_rows must be at least 1 where panes end, not 0"):
        histogram.update(np.zeros((3, 1)), 1)
    assert not histogram.total().any()


def wire(values: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


# Lengths around the hash's steps of 4 and 8 bytes, in a small alphabet: near misses abound.
CATEGORY = st.text("ab\0", max_size=18).map(str.encode)


@given(st.data(), st.integers(1, 4), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_categories_are_counted_as_a_dict_would(
    data: st.DataObject, columns: int, rows: int
) -> None:
    kept, rare, lookup = [], [], []
    for _ in range(columns):
        known = data.draw(st.lists(CATEGORY.filter(bool), unique=True, max_size=40))
        cut = data.draw(st.integers(0, len(known)))
        kept.append(known[:cut])
        rare.append(known[cut:])
        lookup.append({b"": cut + 2} | {category: min(i, cut) for i, category in enumerate(known)})
    size = rows * columns
    pool = st.one_of(CATEGORY, st.sampled_from([b"", *(c for k in kept + rare for c in k)]))
    values = data.draw(st.lists(pool, min_size=size, max_size=size))
    histogram = CategoryHistogram(kept, rare, 1)
    histogram.update(wire(values), rows)
    expected = np.zeros((columns, max(map(len, kept)) + 3), np.uint64)
    for i, value in enumerate(values):
        column = i % columns
        expected[column, lookup[column].get(value, len(kept[column]) + 1)] += 1
    np.testing.assert_array_equal(histogram.window(), expected)


def test_ten_thousand_categories_are_told_apart() -> None:
    known = [f"category-{i:05d}".encode() for i in range(10_000)]
    histogram = CategoryHistogram([known[:256]], [known[256:]], 1)
    histogram.update(wire([*known, b"category-10000", b"", b"c" * 5000]), len(known) + 3)
    counts = histogram.window()[0]
    assert counts[:256].tolist() == [1] * 256
    assert counts[256:].tolist() == [10_000 - 256, 2, 1]


def test_torn_or_miscounted_categories_are_refused_and_count_nothing() -> None:
    histogram = CategoryHistogram([[b"a"], [b"b"]], [[], []], 1)
    raw = wire([b"a", b"b", b"a", b"b"])
    with pytest.raises(ValueError, match="torn: element 3 has 0 of its 1 bytes"):
        histogram.update(raw[:-1], 2)
    with pytest.raises(ValueError, match="holds 4 elements, 3 rows of 2 columns need 6"):
        histogram.update(raw, 3)
    with pytest.raises(ValueError, match="-2 rows of 2 columns"):
        histogram.update(raw, -2)
    assert not histogram.total().any()


def test_category_lists_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="lists category b'a' twice"):
        CategoryHistogram([[b"a"]], [[b"a"]], 1)
    with pytest.raises(ValueError, match="lists the empty category"):
        CategoryHistogram([[b""]], [[]], 1)
    with pytest.raises(TypeError, match="category 'a' of column 0 is str, not bytes"):
        CategoryHistogram([["a"]], [[]], 1)  # type: ignore[list-item]  # on purpose
    with pytest.raises(ValueError, match="kept categories of 1 columns, rare ones of 2"):
        CategoryHistogram([[]], [[], []], 1)


def numeric_writer(rows: int) -> tuple[Histogram, Any]:
    histogram = NumericHistogram([np.linspace(-2, 2, 63, dtype=np.float32)] * 12, 4)
    batch = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
    return histogram, lambda: histogram.update(batch)


def category_writer(rows: int) -> tuple[Histogram, Any]:
    histogram = CategoryHistogram([[b"a", b"b"]] * 12, [[b"c"]] * 12, 4)
    raw = wire([bytes([97 + i % 5]) for i in range(rows * 12)])
    return histogram, lambda: histogram.update(raw, rows)


@pytest.mark.parametrize("writer", [numeric_writer, category_writer])
def test_a_reader_sees_whole_updates_only_while_a_writer_counts(writer: Any) -> None:
    rows, updates, per_pane = 997, 400, 10
    histogram, update = writer(rows)
    done = threading.Event()

    def write() -> None:
        for i in range(updates):
            update()
            if (i + 1) % per_pane == 0:
                histogram.advance()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    last = 0
    while not done.is_set():
        window, total = histogram.window(), histogram.total()
        in_window = set(window.sum(axis=1).tolist())
        in_total = set(total.sum(axis=1).tolist())
        assert len(in_window) == len(in_total) == 1  # every column has seen the same rows
        assert in_window.pop() % rows == 0
        assert last <= (last := in_total.pop())
        assert last % rows == 0
    thread.join()
    assert set(histogram.total().sum(axis=1).tolist()) == {rows * updates}
