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
from trimtab._native.histogram import (  # type: ignore[attr-defined]  # _kernels is private
    CategoryHistogram,
    NumericHistogram,
    _kernels,
)

CASES = [
    (64, 64, 30, "normal"),
    (64, 1024, 30, "normal"),
    (64, 1024, 1, "normal"),
    (16, 64, 30, "normal"),
    (256, 1024, 30, "normal"),
    (64, 1, 30, "normal"),
    (256, 1, 30, "normal"),
    (256, 64, 30, "normal"),
    *[
        (bins, rows, 30, values)
        for values in ("lognormal", "ties", "half NaN")
        for bins, rows in [(64, 64), (64, 1024), (256, 1024)]
    ],
]
CATEGORY_CASES = [(64, 40), (1024, 40), (1024, 200), (1, 40)]
COLUMNS = 10
SECONDS_PER_TIMING = 0.02


def timed(run: Callable[[], object]) -> float:
    """Seconds per call, over as many calls as fill SECONDS_PER_TIMING.

    Of this thread's CPU: while another process has the core, nothing is counted.
    """
    calls = 1
    while True:
        began = time.thread_time()
        for _ in range(calls):
            run()
        elapsed = time.thread_time() - began
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


def drawn(values: str, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal values, but for: lognormal with a sigma of 3; nine of ten the same; half missing."""
    normal = random.normal(size=shape)
    if values == "lognormal":
        normal = np.exp(3 * normal)
    elif values == "ties":
        normal[random.random(shape) < 0.9] = 0.5
    elif values == "half NaN":
        normal[random.random(shape) < 0.5] = np.nan
    return normal.astype(np.float32)


def numeric(
    bins: int, rows: int, columns: int, values: str, rounds: int, kernel: str
) -> dict[str, float]:
    """Edges are as many in every case: ties and NaN are in the batch only."""
    random = np.random.default_rng(0)
    between = "lognormal" if values == "lognormal" else "normal"
    edges = [np.unique(drawn(between, random, (bins - 1,))) for _ in range(columns)]
    batch = drawn(values, random, (rows, columns))
    histogram = NumericHistogram(edges, 10, _kernel=kernel)  # type: ignore[call-arg]  # private

    def with_numpy() -> list[NDArray[np.intp]]:
        return [  # NaN is beyond the last edge: a missing slot would cost numpy yet more
            np.bincount(np.searchsorted(edges[j], batch[:, j], side="right"), minlength=bins)
            for j in range(columns)
        ]

    histogram.update(batch)
    counted = histogram.window()
    counted[:, bins - 1] += counted[:, -1]
    for ours, theirs in zip(counted, with_numpy(), strict=True):
        assert ours[:bins].tolist() == theirs.tolist()
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
    kernels = _kernels()
    fastest = max(kernels, key=kernels.__getitem__)
    parser.add_argument("--kernel", choices=kernels, default=fastest, help=f"numeric ({fastest})")
    options = parser.parse_args()

    environment = describe() | {"kernel": options.kernel}
    result: dict[str, Any] = {"environment": environment, "numeric": {}, "categories": {}}
    print(json.dumps(environment))
    print(f"{'case':44} {'ns/value':>9} {'numpy':>9} {'ratio':>7}")
    for bins, rows, columns, values in CASES:
        name = f"{bins} bins, {rows} rows, {columns} columns"
        name += "" if values == "normal" else f", {values}"
        result["numeric"][name] = show(
            name, numeric(bins, rows, columns, values, options.rounds, options.kernel)
        )
    for rows, kept in CATEGORY_CASES:
        name = f"{kept} categories, {rows} rows"
        result["categories"][name] = show(name, categories(rows, kept, options.rounds))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(name: str, figures: dict[str, float]) -> dict[str, float]:
    print(
        f"{name:44} {figures['ns_per_value']:9.2f} {figures['ns_per_value_numpy']:9.2f} "
        f"{figures['ratio']:7.3f}"
    )
    return figures


if __name__ == "__main__":
    main()
