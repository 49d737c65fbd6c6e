"""January's flights against themselves: `python benchmarks/january.py build/demo/flights.parquet`.

Nothing has drifted, so nothing may trip. The reference is January, the traffic is January in random
order, several times over: 26,398 flights, 7 numeric and 4 categorical columns, through the monitor,
the e-detectors and the report as a server has them. Exit code 1 if a window is anything but ok.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.manifest import Signature
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_evidence import DriftEvidence
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import OK, WindowSnapshot, evaluate, worst
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import BYTES, Tensor

NUMERIC = ["distance", "sched_dep_min", "sched_block", "dep_delay", "seats", "plane_year", "temp"]
CATEGORICAL = ["carrier", "origin", "dest", "manufacturer"]
BATCH = 64


def profile_of(numbers: NDArray[np.float32], texts: NDArray[np.object_]) -> ReferenceProfile:
    return ReferenceProfile(
        len(numbers),
        (
            TensorReference(
                "numeric",
                "input",
                tuple(
                    numeric_feature(name, np.ascontiguousarray(numbers[:, index]))
                    for index, name in enumerate(NUMERIC)
                ),
            ),
            TensorReference(
                "categorical",
                "input",
                tuple(
                    categorical_feature(name, texts[:, index].tolist())
                    for index, name in enumerate(CATEGORICAL)
                ),
            ),
        ),
    )


class Judge:
    """What a server makes of the windows."""

    def __init__(self, profile: ReferenceProfile) -> None:
        self.verdicts: dict[str, int] = {}
        self.psi = self.log_evidence = -np.inf
        self._config = DriftConfig(judge_every_s=0)
        self.monitor = DriftMonitor(Signature((), ()), profile, self._config, self._judge)
        self._evidence = DriftEvidence(
            profile, self.monitor.pane_rows, self._config.false_alarm_rows, deflate=True
        )

    def _judge(self, window: WindowSnapshot) -> None:
        assert window.recent is not None
        assert self.monitor.yardstick is not None
        self._evidence.add(window.recent)
        if window.rows < self._config.min_rows:
            return
        latest = self._evidence.latest
        found = evaluate(self.monitor.yardstick, window, self._config, evidence=latest)
        verdict = worst(found)
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        self.psi = max(self.psi, max(feature.psi for feature in found))
        self.log_evidence = max(self.log_evidence, *latest.log_e.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("flights", type=Path)
    parser.add_argument("--times", type=int, default=12, help="how often January is replayed (12)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    january = pl.read_parquet(options.flights).filter(pl.col("time").dt.month() == 1)
    numbers = january.select(NUMERIC).cast(pl.Float32).to_numpy().astype(np.float32)
    texts = january.select(pl.col(CATEGORICAL).cast(pl.String).fill_null("")).to_numpy()
    judge = Judge(profile_of(numbers, texts))
    random = np.random.default_rng(options.seed)
    for _ in range(options.times):
        order = random.permutation(len(numbers))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            count = len(rows)
            raw = bytes_tensor.encode(np.ascontiguousarray(texts[rows]).ravel())
            judge.monitor.observe(
                ObservedBatch(
                    "flights",
                    1,
                    ObservedCalls.of([ObservedCall("", count, None, 0)]),
                    count,
                    {
                        "numeric": Tensor("FP32", (count, len(NUMERIC)), numbers[rows]),
                        "categorical": Tensor(BYTES, (count, len(CATEGORICAL)), raw),
                    },
                    {},
                )
            )
    windows = sum(judge.verdicts.values())
    print(
        f"January against January, {options.times} times {len(numbers):,} flights: {windows} windows, "
        f"{judge.verdicts}; largest PSI {judge.psi:.4f}, largest log evidence "
        f"{judge.log_evidence:.2f}"
    )
    if set(judge.verdicts) != {OK}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
