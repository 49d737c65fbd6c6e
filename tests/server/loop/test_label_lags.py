"""Quantiles of lags against numpy's."""

import numpy as np
import pytest

from trimtab.server.loop.label_lags import LabelLags


def test_quantiles_are_at_most_a_step_too_high() -> None:
    lags = (np.random.default_rng(0).pareto(1.0, 10_000) * 60_000).astype(np.int64) + 1
    counted = LabelLags()
    for part in np.array_split(lags, 7):
        counted.add(part)
    assert len(counted) == 10_000
    for share in (0.5, 0.9, 0.99):
        exact = np.quantile(lags, share, method="inverted_cdf")
        found = counted.quantile(share)
        assert found is not None and exact * 0.999 <= found <= exact * 1.091


@pytest.mark.parametrize(("lag", "found"), [(0, 0), (-5, 0), (1, 1), (2, 2), (2**36, 2**36)])
def test_no_lag_and_powers_of_two_are_exact(lag: int, found: float) -> None:
    lags = LabelLags()
    assert lags.quantile(0.5) is None
    lags.add(np.array([lag]))
    assert lags.quantile(0.5) == found


def test_a_lag_of_centuries_is_taken_for_decades() -> None:
    lags = LabelLags()
    lags.add(np.array([2**60]))
    found = lags.quantile(0.99)
    assert found is not None and found > 30 * 365 * 86_400_000
