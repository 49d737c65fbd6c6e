"""What watching costs beside serving: `python benchmarks/watching.py`.

Times, in microseconds and as medians, what happens to a batch after its replies left: the traffic
log's append (of a batch that it drops, too), the drift monitor's count, the pane that closes now and
then, and, on other threads, judging a window and making a frame of 4,096 rows: `columns_us` of what
was gathered, `encode_us` of those, `frame_us` both. 30 features, a reference of 50,000 rows. What
each part did is checked: rows written, dropped and encoded, panes closed.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanoarrow  # type: ignore[import-untyped]  # ships no types
import numpy as np
from environment import describe

from trimtab._native.reference import ReferenceProfile, TensorReference, numeric_feature
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import DriftConfig, TrafficConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import WindowSnapshot, evaluate
from trimtab.server.drift.yardstick import Yardstick
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs import arrow_frame
from trimtab.server.logs.traffic_log import TrafficLog
from trimtab.server.logs.traffic_rows import Rows, TrafficLayout

FEATURES = 30
FRAME_ROWS = 4096
NAMES = tuple(f"f{index}" for index in range(FEATURES))
SIGNATURE = Signature(
    inputs=(TensorSpec("numeric", "FP32", (-1, FEATURES), NAMES),),
    outputs=(TensorSpec("variable", "FP32", (-1, 1), ("y",)),),
)


def make_reference(random: np.random.Generator) -> ReferenceProfile:
    values = random.normal(size=(50_000, FEATURES)).astype(np.float32)
    features = tuple(
        numeric_feature(name, np.ascontiguousarray(values[:, index]))
        for index, name in enumerate(NAMES)
    )
    output = (numeric_feature("y", np.ascontiguousarray(values[:, 0])),)
    return ReferenceProfile(
        rows=len(values),
        tensors=(
            TensorReference("numeric", "input", features),
            TensorReference("variable", "output", output),
        ),
    )


def make_batch(random: np.random.Generator, rows: int, calls: int) -> ObservedBatch:
    values = random.normal(size=(rows, FEATURES)).astype(np.float32)
    return ObservedBatch(
        model="m",
        version=1,
        calls=ObservedCalls.of(
            ObservedCall(f"abcdef0123456789-{index}", rows // calls, None, 1_700_000_000_000)
            for index in range(calls)
        ),
        rows=rows,
        inputs={"numeric": Tensor("FP32", values.shape, values)},
        outputs={"variable": Tensor("FP32", (rows, 1), np.ascontiguousarray(values[:, :1]))},
    )


def each(run: Callable[[ObservedBatch], object], batches: list[ObservedBatch], times: int) -> float:
    """Median microseconds of a call."""
    took = []
    for index in range(times):
        batch = batches[index % len(batches)]
        began = time.perf_counter()
        run(batch)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def measure_append(batches: list[ObservedBatch], times: int) -> dict[str, float]:
    layout = TrafficLayout(SIGNATURE)
    figures = {}
    rows = batches[0].rows
    with tempfile.TemporaryDirectory() as folder:
        log = TrafficLog(Path(folder), TrafficConfig(max_rows_per_s=0))
        log.start()
        figures["append_us"] = each(lambda batch: log.append(batch, layout), batches, times)
        assert log.flush()
        assert log.stats.rows_written + log.stats.rows_dropped == rows * times
        log.close()
        log = TrafficLog(Path(folder), TrafficConfig(max_rows_per_s=1))
        log.append(make_batch(np.random.default_rng(0), 4096, 1), layout)  # an hour's rows
        took = []
        for _ in range(30):
            began = time.perf_counter()
            for batch in batches:
                log.append(batch, layout)
            took.append((time.perf_counter() - began) / len(batches))
        figures["dropped_us"] = statistics.median(took) * 1e6
        assert log.stats.rows_dropped == rows * 30 * len(batches)
    return figures


def measure_frame(batches: list[ObservedBatch]) -> dict[str, float]:
    shape = TrafficLayout(SIGNATURE).shape_of(batches[0])
    gathered = Rows(shape, began=0.0)
    for batch in batches:
        gathered.gather(batch, shape.size_of(batch))
    columns = gathered.columns()
    payload = io.BytesIO(arrow_frame.encode(columns, FRAME_ROWS))
    assert len(nanoarrow.ArrayStream.from_readable(payload).read_all()) == FRAME_ROWS
    steps: dict[str, Callable[[ObservedBatch], object]] = {
        "columns_us": lambda _: gathered.columns(),
        "encode_us": lambda _: arrow_frame.encode(columns, FRAME_ROWS),
        "frame_us": lambda _: arrow_frame.encode(gathered.columns(), FRAME_ROWS),
    }
    return {name: each(step, batches, 50) for name, step in steps.items()}


def measure(rows: int, calls: int, times: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    reference = make_reference(random)
    batches = [make_batch(random, rows, calls) for _ in range(50)]
    figures = measure_append(batches, times)
    closed: list[WindowSnapshot] = []
    monitor = DriftMonitor(SIGNATURE, reference, DriftConfig(judge_every_s=0), closed.append)
    figures["count_us"] = each(monitor.observe, batches, times)
    assert len(closed) == rows * times // monitor.pane_rows
    yardstick = Yardstick(reference)
    nearly, last = make_batch(random, monitor.pane_rows - 1, 1), make_batch(random, 1, 1)
    monitor = DriftMonitor(SIGNATURE, reference, DriftConfig(judge_every_s=0), closed.append)
    took = []
    for _ in range(30):
        monitor.observe(nearly)
        took.append(each(monitor.observe, [last], 1))
    figures["close_pane_us"] = statistics.median(took)
    figures["judge_window_us"] = each(
        lambda _: evaluate(yardstick, closed[-1], DriftConfig()), [last], 50
    )
    figures |= measure_frame([make_batch(random, rows, calls) for _ in range(FRAME_ROWS // rows)])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="batches timed per case (2000)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": describe(), "cases": {}}
    print(json.dumps(result["environment"]))
    for rows, calls in ((64, 1), (64, 64), (1, 1)):
        name = f"{rows} rows in {calls} requests"
        result["cases"][name] = measure(rows, calls, options.times)
        shown = ", ".join(f"{key} {value:.1f}" for key, value in result["cases"][name].items())
        print(f"{name}: {shown}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
