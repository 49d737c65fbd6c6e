"""What the simulation says of detectors that are never, always or late alarmed."""

import numpy as np
import pytest
from drift_simulation import TABLES, Scale, first_at, ks_statistic, markdown, run_length_figures
from drift_streams import KINDS, autocorrelated, padded
from scipy import stats

TINY = Scale((500,), ((1, 3), (2, 2)), target=10, runs=4, pairs=40, dependent_runs=2)


@pytest.mark.parametrize("title", TABLES)
def test_every_table_has_a_cell_for_each_column(title: str) -> None:
    simulate, columns = TABLES[title]
    rows = list(simulate(TINY))
    assert rows
    assert {len(row) for row in rows} == {len(columns)}
    assert len(markdown(title, columns, rows).splitlines()) == len(rows) + 4


def test_runs_without_an_alarm_are_said_to_be_censored() -> None:
    log_e = np.log([[1.0, 20.0, 3.0], [1.0, 2.0, 3.0]])
    assert first_at(log_e, np.log(10)).tolist() == [2, np.inf]
    assert run_length_figures(log_e, 10) == (2, "≥ 2", "≥ 250", "≥ 0.25", "0.500", "0.50")
    assert run_length_figures(log_e[:1], 10)[1:] == ("2", "200", "0.20", "1.000", "0.00")


@pytest.mark.parametrize("kind", KINDS)
def test_live_shares_are_those_that_the_reference_comes_from(kind: str) -> None:
    column = KINDS[kind](np.random.default_rng(0), 200_000)
    shares = column.shares(0)
    assert shares.sum() == pytest.approx(1)
    assert column.masses / column.masses.sum() == pytest.approx(shares, abs=0.005)


def test_the_baseline_is_the_two_sample_statistic() -> None:
    random = np.random.default_rng(1)
    first, second = np.sort(random.normal(size=300)), np.sort(random.normal(0.3, 1, 80))
    second[:10] = first[:10]
    expected = stats.ks_2samp(first, np.sort(second)).statistic
    assert ks_statistic(first, np.sort(second)) == pytest.approx(expected)


def test_a_series_is_as_correlated_as_asked_for() -> None:
    series = autocorrelated(np.random.default_rng(2), 100_000, 0.8)
    assert series.std() == pytest.approx(1, abs=0.03)
    assert np.corrcoef(series[1:], series[:-1])[0, 1] == pytest.approx(0.8, abs=0.01)


def test_shorter_rows_are_filled_with_zeros() -> None:
    assert padded([np.ones(1), np.ones(3)]).tolist() == [[1, 0, 0], [1, 1, 1]]
