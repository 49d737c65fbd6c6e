"""Several runs of one backtest with different seeds: what of the figures is chance.

A seed deals out shuffled rows, cuts the requests and is the estimator's. With the rows as they are
only the last two change, so the spread is what a decision at the margin can make of it.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .backtest_report import METRIC_NAMES, BacktestReport, figure

_METRICS = ("metric_frozen", "metric_managed", "metric_retrain_every_period", "metric_oracle")
_COUNTS = ("trainings", "promotions", "refused", "rolled_back", "drift_alarms")


@dataclass(frozen=True)
class Spread:
    """Of one figure over the seeds; sd is None of fewer than two."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True)
class SeedSummary:
    metric: str
    runs: tuple[Mapping[str, Any], ...]  # seed, and `overall` of its report
    spread: Mapping[str, Spread]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def summary_of(reports: Sequence[tuple[int, BacktestReport]]) -> SeedSummary:
    """Of at least one report; ValueError if there is none."""
    if not reports:
        raise ValueError("there are no reports to summarise")
    runs = []
    for seed, report in reports:
        overall = json.loads(report.to_json())["overall"]
        runs.append({"seed": seed, **overall})
    spread = {}
    for name in (*_METRICS, *_COUNTS, "harmful"):
        values = [_value(run, name) for run in runs]
        known = [value for value in values if value is not None and math.isfinite(value)]
        if known:
            spread[name] = Spread(
                mean=statistics.fmean(known),
                sd=statistics.stdev(known) if len(known) > 1 else None,
                low=min(known),
                high=max(known),
            )
    return SeedSummary(reports[0][1].overall.metric, tuple(runs), spread)


def summary_table(summary: SeedSummary) -> RenderableType:
    """A row for each seed, and beneath them mean and spread."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ["seed", "frozen", "managed", "retrained", "oracle", "trained", "promoted", "refused"]
    for name in [*heads, "rolled back", "drift alarms", "harmful"]:
        table.add_column(name, justify="right")
    names = (*_METRICS, *_COUNTS, "harmful")
    for run in summary.runs:
        table.add_row(str(run["seed"]), *(_shown(name, _value(run, name)) for name in names))
    table.add_section()
    for what in ("mean", "sd"):
        cells = [getattr(summary.spread[n], what) if n in summary.spread else None for n in names]
        table.add_row(what, *(figure(cell) for cell in cells), style="bold")
    title = f"{METRIC_NAMES.get(summary.metric, summary.metric)}, {len(summary.runs)} seeds"
    return Group(Text(title, "bold"), table)


def _value(run: Mapping[str, Any], name: str) -> float | None:
    value = run["verdicts"]["promoted"]["wrong"] if name == "harmful" else run[name]
    return None if value is None else float(value)


def _shown(name: str, value: float | None) -> str:
    return figure(value) if name in _METRICS or value is None else f"{value:.0f}"
