"""Quantiles of a column that is never held whole are those of the sorted column, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab._native.binning import quantile_edges
from trimtab.trainer.order_statistics import QuantileEdges

VALUES = st.one_of(
    st.floats(width=32),
    st.integers(-3, 3).map(float),
    st.sampled_from([-0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-45]),
)


def in_passes(parts: list[np.ndarray], bins: int) -> tuple[np.ndarray, int]:
    column = QuantileEdges(bins)
    passes = 0
    again = True
    while again:
        for part in parts:
            column.add(part)
        again = column.end_pass()
        passes += 1
    return column.edges, passes


def sorted_whole(parts: list[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.empty(0, np.float32), *parts])
    return np.sort(values[np.isfinite(values)])


@given(st.lists(st.lists(VALUES, max_size=60), max_size=5), st.integers(2, 256))
@settings(max_examples=150, deadline=None)
def test_edges_are_those_of_the_sorted_column(values: list[list[float]], bins: int) -> None:
    parts = [np.array(part, np.float32) for part in values]
    edges, _ = in_passes(parts, bins)
    assert edges.dtype == np.float32
    assert edges.tolist() == quantile_edges(sorted_whole(parts), bins).tolist()


@pytest.mark.parametrize("bins", [2, 10, 64, 256])
@pytest.mark.parametrize("shape", ["normal", "lognormal", "negative", "tied", "subnormal"])
def test_edges_of_many_rows_are_those_of_the_sorted_column(bins: int, shape: str) -> None:
    random = np.random.default_rng(7)
    values = {
        "normal": random.normal(size=20_000),
        "lognormal": random.lognormal(0, 9, 20_000),
        "negative": -random.lognormal(0, 9, 20_000),
        "tied": random.integers(0, 300, 20_000) // 3 * 1.5,
        "subnormal": random.normal(size=20_000) * 1e-42,
    }[shape].astype(np.float32)
    values[::50] = np.nan
    parts = np.array_split(values, 7)
    edges, passes = in_passes(parts, bins)
    assert edges.tolist() == quantile_edges(sorted_whole(parts), bins).tolist()
    assert passes == (1 if shape == "tied" and bins == 256 else 3)


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), float("-inf")]])
def test_a_column_without_finite_values_has_no_edges(values: list[float]) -> None:
    assert in_passes([np.array(values, np.float32)], 64)[0].tolist() == []
