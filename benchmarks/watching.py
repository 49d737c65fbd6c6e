"""What watching costs beside serving: `python benchmarks/watching.py`.

Times, in microseconds and as medians, what happens to a batch after its replies left: the traffic
log's append, the drift monitor's count, the pane that closes now and then, and, on other threads,
judging a window and writing a frame. 30 features, a reference of 50,000 rows. What each part did is
checked: rows written, panes closed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from trimtab.server.logs.traffic_rows import TrafficLayout, columns_of

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


def measure(rows: int, calls: int, times: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    reference = make_reference(random)
    batches = [make_batch(random, rows, calls) for _ in range(50)]
    layout = TrafficLayout(SIGNATURE)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        log = TrafficLog(Path(folder), TrafficConfig())
        log.start()
        figures["append_us"] = each(lambda batch: log.append(batch, layout), batches, times)
        assert log.flush()
        assert log.stats.rows_written + log.stats.rows_dropped == rows * times
        log.close()
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
    together = [make_batch(random, rows, calls) for _ in range(FRAME_ROWS // rows)]

    def write_frame(_: ObservedBatch) -> bytes:
        return arrow_frame.encode(columns_of(layout.shape_of(together[0]), together), FRAME_ROWS)

    figures["frame_us"] = each(write_frame, [last], 30)
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
