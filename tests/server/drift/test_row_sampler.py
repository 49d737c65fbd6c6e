from collections import Counter

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.row_sampler import RowSampler
from trimtab.server.drift.thinning import every


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(sampler: RowSampler, clock: Clock, rows: int, rate: float, seconds: float) -> int:
    """How many rows are taken of batches of `rows` that come at `rate` rows per second."""
    taken = 0
    for _ in range(round(rate * seconds / rows)):
        clock.now += rows / rate
        chosen = sampler.choose(rows)
        if chosen is not None:
            taken += len(range(*chosen.indices(rows)))
    return taken


@pytest.mark.parametrize("rows", [1, 3, 64, 1024])
@pytest.mark.parametrize("rate", [150_000, 390_000, 1_300_000])
def test_about_the_limit_is_taken_of_what_comes_faster(rows: int, rate: float) -> None:
    clock = Clock()
    sampler = RowSampler(100_000, clock=clock)
    drive(sampler, clock, rows, rate, 0.2)  # until the rate is known
    taken = drive(sampler, clock, rows, rate, 4.0)
    assert taken / 4.0 == pytest.approx(100_000, rel=0.1)
    assert sampler.share == pytest.approx(100_000 / rate, rel=0.02)


def test_all_is_taken_of_what_comes_slower_and_again_after_a_rush() -> None:
    clock = Clock()
    sampler = RowSampler(100_000, clock=clock)
    assert drive(sampler, clock, 64, 90_000, 1.0) == round(90_000 / 64) * 64
    drive(sampler, clock, 64, 900_000, 1.0)
    clock.now += 5.0
    assert drive(sampler, clock, 64, 90_000, 1.0) == round(90_000 / 64) * 64


def test_each_row_of_a_batch_is_as_likely_as_another() -> None:
    clock = Clock()
    sampler = RowSampler(100_000, clock=clock)
    drive(sampler, clock, 10, 1_000_000, 0.5)
    taken: Counter[int] = Counter()
    for _ in range(40_000):
        clock.now += 1e-5
        if chosen := sampler.choose(10):
            taken.update(range(*chosen.indices(10)))
    counts = np.array([taken[row] for row in range(10)])
    # Chi-square of 9 degrees of freedom: beyond 33.7 once in 10,000 times.
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < 33.7
    assert counts.sum() == pytest.approx(40_000, rel=0.1)


def test_every_nth_row_of_numbers_and_of_strings() -> None:
    numeric, carriers = draw(np.random.default_rng(0), 11)
    numeric[:, 0] = np.arange(11)
    carriers = [f"c{row}" for row in range(11)]
    whole = batch(numeric, carriers)
    few = every(whole, slice(1, 11, 4))
    assert few.rows == 3 and few.inputs["numeric"].array()[:, 0].tolist() == [1, 5, 9]
    assert few.outputs["variable"].array()[:, 0].tolist() == [2, 10, 18]
    there = batch(numeric[[1, 5, 9]], ["c1", "c5", "c9"])
    assert few.inputs["categorical"].wire() == there.inputs["categorical"].wire()
    assert every(whole, slice(0, 11)) is whole
    assert every(whole, slice(10, 11, 4)).inputs["categorical"].wire().endswith(b"c10")
    assert every(whole, slice(0, 11, 10)).rows == 2


def test_the_monitor_tells_counted_rows_from_those_passed_over() -> None:
    clock = Clock()
    sampler = RowSampler(1_000, clock=clock)
    monitor = DriftMonitor(SIGNATURE, reference(), DriftConfig(), lambda snapshot: None)
    random = np.random.default_rng(0)
    for _ in range(40):
        monitor.observe(batch(*draw(random, 112)), sampler)
        clock.now += 0.01
    assert monitor.observed_rows == 40 * 112
    assert monitor.snapshot().rows == monitor.observed_rows - monitor.passed_over_rows
    assert 0 < monitor.snapshot().rows < 20 * 112
