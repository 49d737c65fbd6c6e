"""What a backtest is asked for, and the trimtab.toml that it makes of it.

The thresholds that decide are those of the product, but sizes that are right for a service with
thousands of rows a day would let a small data set end before the first window is full. So the
sizes follow the data: a third of a period fills the drift window, a period is trained on, half a
period lies between trainings. A window of a given span takes all of its rows, and its usual number
of them says from how many it is judged. `--set` overrides each, and the report holds them all.
"""

import itertools
import json
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .backtest_data import DataRequest, Dataset
from .errors import DataError
from .recipe import Recipe

HISTORY_FILE = "history.parquet"  # in the model's directory: the first period
_SECTIONS = (
    "recipe",
    "recipe.estimator",
    "drift",
    "labels",
    "trigger",
    "training",
    "promotion",
)
_FEW_ROWS = 2_500  # of the first period, a fifth of which is held out
_UNITS_MS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)?")

Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class BacktestSettings:
    data: DataRequest
    model: str
    metric: str | None = None
    label_delay_ms: int = 86_400_000
    window_ms: int = 0  # that the drift window spans; 0: it goes by rows alone
    label_maturity_ms: int = 0
    rows_per_request: int = 64
    in_flight: int = 16
    oracle: bool = True  # three more fits a period
    fast: bool = False  # trainings begin from a process that is warm
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training_timeout_s: float = 900.0
    request_timeout_s: float = 60.0

    @property
    def seed(self) -> int:
        return self.data.seed


def parse_duration_ms(text: str) -> int:
    """`1d`, `12h`, `90m`, `30s`, `0`: a duration in milliseconds; ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if not match or (match[2] is None and float(match[1]) != 0):
        raise ValueError(f"{text!r} is no duration: give a number and one of s m h d w, as in 1d")
    return round(float(match[1]) * _UNITS_MS[match[2] or "ms"])


def parse_overrides(assignments: Sequence[str]) -> Tables:
    """`drift.psi=0.1` and the like as tables; a value is TOML, else a string. ValueError."""
    tables: Tables = {}
    for text in assignments:
        dotted, equals, value = text.partition("=")
        section, _, key = dotted.strip().rpartition(".")
        if not equals or section not in _SECTIONS or not key:
            raise ValueError(
                f"--set {text}: must be SECTION.KEY=VALUE with a section of {', '.join(_SECTIONS)}"
            )
        try:
            parsed = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        tables.setdefault(section, {})[key] = parsed
    return tables


def model_name(path: Path) -> str:
    """A name for the model of a data file that the registry takes."""
    stem = path.name.split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_") or "model"


def tables_for(dataset: Dataset, settings: BacktestSettings) -> Tables:
    """The tables of trimtab.toml for this data, overrides included. RecipeError, DataError."""
    usual = period_rows(dataset)
    first_rows = dataset.periods[0].rows
    panes = 10
    window = _rounded(min(10_000, max(200, usual // 3)) // panes) * panes
    train_rows = _rounded(min(100_000, max(1_000, usual)))
    tables: Tables = {
        "recipe": {
            "task": dataset.task,
            "target": dataset.target,
            "numeric": list(dataset.numeric),
            "categorical": list(dataset.categorical),
            "time": dataset.time,
            "files": [HISTORY_FILE],
            "window_rows": train_rows,
            "min_rows": min(1_000, max(100, first_rows // 2), train_rows),
            "min_holdout_rows": min(500, max(50, train_rows // 8)),
            "seed": settings.seed,
        },
        "drift": {
            "window_rows": window,
            "panes": panes,
            "min_rows": max(window // 2, min(200, window)),
            "psi": 0.2,
        },
        "trigger": {
            "on_drift": True,
            "min_labels": min(2_000, max(100, window // 2)),
            "label_maturity_s": settings.label_maturity_ms / 1000,
            "cooldown_s": float(round(_span_ms(dataset) / 2000)),
        },
        # The replay waits while a training runs, so it need not be nice to anybody. One thread: as
        # many as there are processors are no faster on a window of this size, and several times
        # slower where another process is busy (a fit of 27,000 rows: 0.9 s against 1.6 to 11 s).
        "training": {"timeout_s": settings.training_timeout_s, "nice": 0, "threads": 1},
        "promotion": {"policy": "auto"},
    }
    if first_rows < _FEW_ROWS:
        # A gate on so few held-out rows is inconclusive, and would end the backtest at its begin.
        tables["recipe"]["baseline"] = "report"
    if settings.window_ms:
        tables["drift"] |= _spanning(dataset, settings.window_ms, panes)
    if settings.metric:
        tables["recipe"]["metric"] = settings.metric
    for section, values in settings.overrides.items():
        if section == "recipe.estimator":
            tables["recipe"]["estimator"] = dict(values)
        else:
            tables.setdefault(section, {}).update(values)
    recipe = Recipe.parse(tables["recipe"])
    if first_rows < recipe.min_rows:
        raise DataError(
            f"the first period, {dataset.periods[0].name}, has {first_rows:,} rows; a training "
            f"takes at least {recipe.min_rows:,} (--set recipe.min_rows=… changes it)"
        )
    tables["recipe"]["metric"] = recipe.metric
    return tables


def period_rows(dataset: Dataset) -> int:
    """Rows of a usual period: the median."""
    return int(statistics.median(period.rows for period in dataset.periods))


def pane_rows(tables: Tables) -> int:
    """Rows of one pane of the drift window, as the server counts them."""
    drift = tables["drift"]
    return max(1, int(drift["window_rows"]) // int(drift["panes"]))


def pane_ms(tables: Tables) -> int:
    """How long such a pane lasts at most, as the server counts; 0: until it is full."""
    drift = tables["drift"]
    window_s = float(drift.get("window_s", 0))
    return max(1, round(window_s * 1000) // int(drift["panes"])) if window_s else 0


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        nested = {}
        for key, value in table.items():
            if isinstance(value, Mapping):
                nested[f"{name}.{key}"] = value
            else:
                lines.append(f"{key} = {_value(value)}")
        lines.append("")
        if nested:
            lines.append(to_toml(nested))
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _rounded(number: int) -> int:
    """Down to two significant digits, for figures that people read."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return number // unit * unit


def _spanning(dataset: Dataset, window_ms: int, panes: int) -> dict[str, Any]:
    """Settings of a window of that span in which no pane is full before its time is over."""
    slots = dataset.times_ms // max(1, window_ms // panes)
    _, rows = np.unique(slots, return_counts=True)
    usual = int(np.median(rows)) * panes
    return {
        "window_s": window_ms / 1000,
        "window_rows": max(10, int(rows.max()) * panes),
        "min_rows": max(1, usual // 2, min(200, usual)),
    }


def _span_ms(dataset: Dataset) -> int:
    """The median time from one period's begin to the next one's."""
    times = dataset.times_ms
    begins = [int(times[period.start]) for period in dataset.periods]
    return int(statistics.median(b - a for a, b in itertools.pairwise(begins)))
