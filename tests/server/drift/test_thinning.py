import numpy as np

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.thinning import thinned


def test_no_request_has_more_rows_than_the_limit_and_small_ones_have_all() -> None:
    numeric, carriers = draw(np.random.default_rng(0), 112)
    numeric[:, 0] = np.arange(112)
    carriers = [f"c{row}" for row in range(112)]
    thin = thinned(batch(numeric, carriers, calls=[3, 100, 9]), 10)
    assert thin.rows == 3 + 10 + 9 and thin.calls.rows.tolist() == [3, 10, 9]
    rows = [*range(3), *range(3, 103, 10), *range(103, 112)]
    assert thin.inputs["numeric"].array()[:, 0].tolist() == rows
    assert thin.outputs["variable"].array()[:, 0].tolist() == [2 * row for row in rows]
    whole = batch(numeric[rows], [f"c{row}" for row in rows])
    assert thin.inputs["categorical"].wire() == whole.inputs["categorical"].wire()
    assert len(thin.calls.each()) == 3


def test_a_batch_of_small_requests_is_left_alone() -> None:
    small = batch(*draw(np.random.default_rng(0), 40), calls=[10] * 4)
    assert thinned(small, 10) is small


def test_the_monitor_counts_what_is_left() -> None:
    config = DriftConfig(window_rows=1000, rows_per_request=10)
    monitor = DriftMonitor(SIGNATURE, reference(), config, lambda snapshot: None)
    monitor.observe(batch(*draw(np.random.default_rng(0), 112), calls=[3, 100, 9]))
    assert (monitor.observed_rows, monitor.passed_over_rows, monitor.snapshot().rows) == (
        112,
        90,
        22,
    )
