"""How long a graph takes for a row, alone and in a batch, side by side with another graph.

Both take turns within the same second on the same rows, in a session set up as the server's, so
that a busy machine slows both. What counts is the median: the rest is the machine's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .export import OnnxModel

BATCH = 64
_ALONE_RUNS = 100
_BATCH_RUNS = 15


@dataclass(frozen=True)
class Latency:
    """Medians, in microseconds per row."""

    alone_us: float  # in a batch of one row
    batched_us: float  # in a batch of 64


def measure(
    models: Sequence[OnnxModel],
    inputs: dict[str, NDArray[Any]],
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[Latency]:
    """The latency of each model, all of which take these inputs."""
    alone = _medians(models, inputs, 1, _ALONE_RUNS, clock_ns)
    batched = _medians(models, inputs, BATCH, _BATCH_RUNS, clock_ns)
    return [Latency(one, many) for one, many in zip(alone, batched, strict=True)]


def _medians(
    models: Sequence[OnnxModel],
    inputs: dict[str, NDArray[Any]],
    rows: int,
    runs: int,
    clock_ns: Callable[[], int],
) -> list[float]:
    total = len(next(iter(inputs.values())))
    took = np.empty((len(models), runs))
    for run in range(-2, runs):  # the first ones warm up
        start = (run * 7919 * rows) % max(1, total - rows)  # other rows take other paths
        part = {name: values[start : start + rows] for name, values in inputs.items()}
        for place, model in enumerate(models):
            begin = clock_ns()
            model.run(part)
            if run >= 0:
                took[place, run] = clock_ns() - begin
    found: list[float] = (np.median(took, axis=1) / 1_000 / min(rows, total)).tolist()
    return found
