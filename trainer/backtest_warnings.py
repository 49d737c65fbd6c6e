"""What a reader should know before believing a backtest of few rows.

Nothing is forbidden: small data give an honest report of a loop that sees little. The sentences say
what chance alone does to figures of that size, from the same formulas that the loop decides by.
"""

from typing import Any

import numpy as np
from scipy import stats

from .backtest_data import Dataset
from .backtest_settings import period_rows

_GROUPS = 10  # that PSI compares numeric columns by
_FEW_PERIODS = 4
_FEW_ROWS = 1_000
_NOISY = 0.1  # a PSI that is commonly taken for drift
_FEW_OF_A_CLASS = 30


def warnings_of(dataset: Dataset, tables: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Sentences; empty where the data are large enough for what is reported of them."""
    found = []
    usual = period_rows(dataset)
    window, first = int(tables["drift"]["window_rows"]), dataset.periods[0].rows
    chance = psi_by_chance(window, first)
    if chance > _NOISY / 2:
        found.append(
            f"The drift window has {window:,} rows and the reference {first:,}: by chance alone the "
            f"PSI of a column goes up to {chance:.2f} (in 95 of 100 windows), so only larger shifts "
            "can be seen; the loop waits for evidence beyond that."
        )
    if usual < _FEW_ROWS:
        found.append(
            f"A period has {usual:,} rows in the median: its metric and the verdicts on decisions "
            "have wide intervals, and the oracle learns from too few rows to be a bound."
        )
    if tables["recipe"].get("baseline") == "report":
        found.append(
            f"The first period has {first:,} rows: a model of it is not asked to be better than a "
            "constant guess, which so few held-out rows could not show (recipe.baseline)."
        )
    if len(dataset.periods) < _FEW_PERIODS:
        found.append(
            f"There are {len(dataset.periods)} periods: too few to tell what the loop does in the "
            "long run (--every makes shorter ones)."
        )
    uneven = [period.name for period in dataset.periods[:-1] if period.rows < usual / 5]
    if uneven:
        found.append(f"Periods of few rows: {', '.join(uneven[:5])}.")
    if dataset.classes:
        kinds, counts = np.unique(
            dataset.frame[dataset.target].slice(0, first).to_numpy(), return_counts=True
        )
        rare = [str(kind) for kind, n in zip(kinds, counts, strict=True) if n < _FEW_OF_A_CLASS]
        if rare:
            found.append(
                f"Classes of fewer than {_FEW_OF_A_CLASS} rows in the first period: "
                f"{', '.join(rare[:5])}."
            )
    return tuple(found)


def psi_by_chance(window: int, reference: int) -> float:
    """The upper 5 % point of the PSI of two samples of one distribution (see docs/drift.md)."""
    scale = 1 / max(1, window) + 1 / max(1, reference)
    return float(scale * stats.chi2.ppf(0.95, _GROUPS - 1))
