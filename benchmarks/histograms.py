"""What counting costs per value, beside numpy doing the same: `python benchmarks/histograms.py`.

Each round runs ours and numpy's in turn on the same batch, so that a slow moment of the machine
slows both; the figures are medians over the rounds and the ratio is the median of the rounds'
ratios. Counts are compared before anything is timed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import describe
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.histogram import CategoryHistogram, NumericHistogram

CASES = [(64, 64, 30), (64, 1024, 30), (64, 1024, 1), (16, 64, 30), (256, 1024, 30)]
CATEGORY_CASES = [(64, 40), (1024, 40), (1024, 200)]
COLUMNS = 10
SECONDS_PER_TIMING = 0.02


def timed(run: Callable[[], object]) -> float:
    """Seconds per call, over as many calls as fill SECONDS_PER_TIMING."""
    calls = 1
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        elapsed = time.perf_counter() - began
        if elapsed >= SECONDS_PER_TIMING:
            return elapsed / calls
        calls *= 2


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], values: int, rounds: int
) -> dict[str, float]:
    """Median nanoseconds a value of both, and the median ratio."""
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    return {
        "ns_per_value": statistics.median(ours for ours, _ in pairs) * 1e9 / values,
        "ns_per_value_numpy": statistics.median(theirs for _, theirs in pairs) * 1e9 / values,
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
    }


def numeric(bins: int, rows: int, columns: int, rounds: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    edges = [np.unique(random.normal(size=bins - 1).astype(np.float32)) for _ in range(columns)]
    batch = random.normal(size=(rows, columns)).astype(np.float32)
    histogram = NumericHistogram(edges, 10)

    def with_numpy() -> list[NDArray[np.intp]]:
        return [
            np.bincount(np.searchsorted(edges[j], batch[:, j], side="right"), minlength=bins)
            for j in range(columns)
        ]

    histogram.update(batch)
    for counted, expected in zip(histogram.window(), with_numpy(), strict=True):
        assert counted[:bins].tolist() == expected.tolist()
    return compare(lambda: histogram.update(batch), with_numpy, rows * columns, rounds)


def categories(rows: int, kept: int, rounds: int) -> dict[str, float]:
    """Against a dict per column over strings that somebody has decoded already."""
    random = np.random.default_rng(0)
    names = [[f"C{i:04d}-{j}".encode() for i in range(kept)] for j in range(COLUMNS)]
    picked = random.integers(kept, size=(rows, COLUMNS))
    values = np.array(
        [[names[j][picked[i, j]] for j in range(COLUMNS)] for i in range(rows)], dtype=object
    )
    raw = bytes_tensor.encode(values.ravel())
    histogram = CategoryHistogram(names, [[] for _ in names], 10)
    codes = [{name: code for code, name in enumerate(column)} for column in names]

    def with_dict() -> list[NDArray[np.intp]]:
        return [
            np.bincount([codes[j][value] for value in values[:, j]], minlength=kept)
            for j in range(COLUMNS)
        ]

    histogram.update(raw, rows)
    for counted, expected in zip(histogram.window(), with_dict(), strict=True):
        assert counted[:kept].tolist() == expected.tolist()
    return compare(lambda: histogram.update(raw, rows), with_dict, rows * COLUMNS, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds per case (15)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()

    result: dict[str, Any] = {"environment": describe(), "numeric": {}, "categories": {}}
    print(json.dumps(result["environment"]))
    print(f"{'case':34} {'ns/value':>9} {'numpy':>9} {'ratio':>7}")
    for bins, rows, columns in CASES:
        name = f"{bins} bins, {rows} rows, {columns} columns"
        result["numeric"][name] = show(name, numeric(bins, rows, columns, options.rounds))
    for rows, kept in CATEGORY_CASES:
        name = f"{kept} categories, {rows} rows"
        result["categories"][name] = show(name, categories(rows, kept, options.rounds))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(name: str, figures: dict[str, float]) -> dict[str, float]:
    print(
        f"{name:34} {figures['ns_per_value']:9.2f} {figures['ns_per_value_numpy']:9.2f} "
        f"{figures['ratio']:7.3f}"
    )
    return figures


if __name__ == "__main__":
    main()
