"""What the loop does with streams whose truth is known: a backtest of each, held against what must be.

    python benchmarks/streams.py [--quick] [--only NAME,...] [--json FILE] [--keep DIR]

Prints a table in Markdown; docs/backtest.md shows one. Data and seeds are made here and fixed; each
stream is replayed through a real server as `trimtab backtest` does it. Exit code 1: something that
must hold does not. An expectation with a gap named is told of and fails nothing.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from environment import describe
from numpy.typing import NDArray

from trimtab.trainer.backtest import Backtest
from trimtab.trainer.backtest_data import DataRequest, prepare
from trimtab.trainer.backtest_report import BacktestReport
from trimtab.trainer.backtest_settings import BacktestSettings

Columns: TypeAlias = dict[str, Any]
Reports: TypeAlias = Mapping[str, BacktestReport]

PERIOD = 1_500  # rows
PERIODS = 10
ROWS = PERIOD * PERIODS
CHANGE = 4 * PERIOD  # the first row of the fifth period
START = datetime(2022, 1, 1)
STEP = timedelta(minutes=12)


@dataclass(frozen=True)
class Outcome:
    holds: bool
    observed: str


@dataclass(frozen=True)
class Stream:
    """One stream: its rows, what must hold, and whether it does by the reports of its runs."""

    name: str
    must: str
    make: Callable[[np.random.Generator, int], pl.DataFrame]
    check: Callable[[Reports], Outcome]
    rows: int = ROWS
    task: str = "regression"
    runs: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=lambda: {"": {}})
    shuffled: bool = False
    oracle: bool = False
    gap: str = ""  # what has to be there for it to hold


class Silent:
    """An observer that says nothing."""

    def stage(self, text: str) -> None: ...
    def training(self, stage: str, fraction: float, message: str) -> None: ...
    def replaying(self, rows: int, of: int, state: str) -> None: ...
    def happened(self, when: str, kind: str, version: int, reason: str) -> None: ...
    def fitting(self, done: int, of: int) -> None: ...


# Streams


def calm(source: np.random.Generator, rows: int) -> Columns:
    """Four columns and a number that depends on three of them."""
    x, z, idle = source.normal(size=(3, rows))
    kind = source.choice(["red", "green", "blue"], rows, p=[0.5, 0.3, 0.2])
    y = 2 * x + np.sin(2 * z) + (kind == "red") + source.normal(scale=0.4, size=rows)
    return {"y": y, "x": x, "z": z, "idle": idle, "kind": kind}


def table(columns: Columns) -> pl.DataFrame:
    rows = len(columns["y"])
    return pl.DataFrame({"when": [START + STEP * row for row in range(rows)], **columns})


def stationary(source: np.random.Generator, rows: int) -> pl.DataFrame:
    return table(calm(source, rows))


def stationary_classes(source: np.random.Generator, rows: int) -> pl.DataFrame:
    columns = calm(source, rows)
    columns["y"] = (columns["y"] + source.normal(size=rows) > 1).astype(int)
    columns["x"] = np.exp(columns["x"])
    columns["count"] = source.poisson(1.5, rows)
    return table(columns)


def stationary_once_seasonal(source: np.random.Generator, rows: int) -> pl.DataFrame:
    """Rows that drift as they come, and do not once they are dealt out over all times."""
    return seasonal(source, rows)


def abrupt(source: np.random.Generator, rows: int) -> pl.DataFrame:
    columns = calm(source, rows)
    later = np.arange(rows) >= CHANGE
    noise = source.normal(scale=0.4, size=rows)
    columns["x"] = columns["x"] + 1.5 * later
    slope = np.where(later, -2.0, 2.0)
    columns["y"] = slope * columns["x"] + np.sin(2 * columns["z"]) + noise
    return table(columns)


def concept(source: np.random.Generator, rows: int) -> pl.DataFrame:
    columns = calm(source, rows)
    chance = 1 / (1 + np.exp(-3 * columns["x"]))
    flipped = (np.arange(rows) >= CHANGE) & (columns["kind"] == "red")
    truth = source.random(rows) < chance
    return table({**columns, "y": np.where(flipped, ~truth, truth).astype(int)})


def idle_drift(source: np.random.Generator, rows: int) -> pl.DataFrame:
    columns = calm(source, rows)
    columns["idle"] = columns["idle"] + 2.0 * (np.arange(rows) >= CHANGE)
    return table(columns)


def seasonal(source: np.random.Generator, rows: int) -> pl.DataFrame:
    """Four periods make a year; warmth comes and goes, and what follows from it."""
    columns = calm(source, rows)
    phase = 2 * np.pi * np.arange(rows) / (4 * PERIOD)
    warmth = 10 * np.sin(phase) + source.normal(scale=3, size=rows)
    y = np.abs(warmth) + columns["x"] * np.cos(warmth / 5) + source.normal(scale=0.4, size=rows)
    return table({**columns, "warmth": warmth, "y": y})


def hourly_weather(source: np.random.Generator, rows: int) -> pl.DataFrame:
    """Each hour much like the one before: correlated by 0.98, beside a daily cycle."""
    columns = calm(source, rows)
    steps = source.normal(size=rows)
    weather = np.empty(rows)
    weather[0] = steps[0]
    for row in range(1, rows):
        weather[row] = 0.98 * weather[row - 1] + np.sqrt(1 - 0.98**2) * steps[row]
    hour = np.arange(rows) * 12 / 60 % 24
    y = columns["y"] + 1.5 * weather + np.sin(hour / 24 * 2 * np.pi)
    return table({**columns, "weather": weather, "hour": hour, "y": y})


def broken(how: str) -> Callable[[np.random.Generator, int], pl.DataFrame]:
    def make(source: np.random.Generator, rows: int) -> pl.DataFrame:
        columns = calm(source, rows)
        columns["size"] = source.lognormal(4, 0.6, rows)
        columns["y"] = columns["y"] + np.log(columns["size"])
        later = np.arange(rows) >= min(CHANGE, rows // 2)
        size: NDArray[np.float64] = columns["size"]
        if how == "null":
            columns["size"] = [
                None if gone else value for gone, value in zip(later, size, strict=True)
            ]
        elif how == "times 1000":
            columns["size"] = np.where(later, 1000 * size, size)
        elif how == "constant":
            columns["size"] = np.where(later, 55.0, size)
        else:
            columns["size"] = np.where(later, columns["x"], size)
            columns["x"] = np.where(later, size, columns["x"])
        return table(columns)

    return make


# Checks


def events_of(report: BacktestReport, *kinds: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Events with the row of the data after which they came."""
    found = []
    start = report.settings["first_period"]["rows"]
    for period in report.periods:
        found += [
            (start + int(event["after_rows"]), event)
            for event in period.events
            if event["kind"] in kinds
        ]
        start += period.rows
    return found


def counts(report: BacktestReport) -> str:
    overall = report.overall
    harmful = overall.verdicts["promoted"]["wrong"]
    return (
        f"{overall.drift_alarms} drift alarms, {overall.trainings} trainings, "
        f"{overall.promotions} promotions ({harmful} harmful), {overall.refused} refused"
    )


def nothing_happens(reports: Reports) -> Outcome:
    (report,) = reports.values()
    overall = report.overall
    alarms = overall.drift_alarms + overall.data_quality_alarms
    return Outcome(alarms == overall.promotions == 0, counts(report))


def recovers(reports: Reports) -> Outcome:
    (report,) = reports.values()
    rows = [row for row, _ in events_of(report, "drift")]
    place = CHANGE // PERIOD - 1 + 2  # the third period with the change; the first is not replayed
    period = report.periods[place]
    frozen, managed, best = period.metric_frozen, period.metric_managed, period.metric_oracle
    assert frozen is not None and managed is not None and best is not None
    share = (frozen - managed) / (frozen - best)
    early = [row for row in rows if row < CHANGE]
    first = min((row for row in rows if row >= CHANGE), default=None)
    late = "no alarm" if first is None else f"alarm after {first - CHANGE} rows of it"
    said = f"{len(early)} alarms before, {late}; {share:.0%} of the oracle's gain; {counts(report)}"
    return Outcome(not early and first is not None and share >= 0.8, said)


def caught_by_labels(reports: Reports) -> Outcome:
    (report,) = reports.values()
    overall = report.overall
    caught = [row for row, _ in events_of(report, "quality")]
    early = [row for row in caught if row < CHANGE]
    first = min((row for row in caught if row >= CHANGE), default=None)
    trained = [row for row, _ in events_of(report, "training_started") if row >= CHANGE]
    late = "no loss of quality told" if first is None else f"told after {first - CHANGE} rows of it"
    frozen, managed = overall.metric_frozen or 0, overall.metric_managed or 0
    said = f"{len(early)} told before, {late}; {counts(report)}; "
    said += f"roc_auc managed {managed:.3f}, frozen {frozen:.3f}"
    silent = not overall.drift_alarms
    return Outcome(silent and not early and first is not None and bool(trained), said)


def refused(reports: Reports) -> Outcome:
    (report,) = reports.values()
    seen = [row for row, e in events_of(report, "drift") if "idle" in e["features"]]
    early = [row for row, _ in events_of(report, "drift") if row < CHANGE]
    costly = [
        each
        for each in report.decisions
        if each.kind == "refused"
        and each.verdict == "wrong"
        and (each.improvement or 0) > 0.1 * (each.metric_against or 0)
    ]
    said = f"{counts(report)}, {len(costly)} of them at a loss of more than a tenth"
    holds = bool(seen) and not early and not report.overall.promotions and not costly
    return Outcome(holds and report.overall.refused > 0, said)


def pooled_is_better(reports: Reports) -> Outcome:
    errors = {name: report.overall.metric_managed or 0 for name, report in reports.items()}
    harmful = sum(report.overall.verdicts["promoted"]["wrong"] for report in reports.values())
    said = ", ".join(f"{name}: mae {value:.3f}" for name, value in errors.items())
    return Outcome(errors["four periods"] < errors["one period"], f"{said}; {harmful} harmful")


def named_and_not_trained(*columns: str) -> Callable[[Reports], Outcome]:
    def check(reports: Reports) -> Outcome:
        (report,) = reports.values()
        alarms = events_of(report, "data_quality")
        named = {name for _, event in alarms for name in event["features"]}
        told = ", ".join(sorted(named)) or "nobody"
        said = f"{len(alarms)} data quality alarms, of {told}; {counts(report)}"
        holds = set(columns) <= named and not report.overall.trainings
        return Outcome(holds, said)

    return check


def harmless(reports: Reports) -> Outcome:
    (report,) = reports.values()
    harmful = report.overall.verdicts["promoted"]["wrong"]
    windows = report.overall.rows / report.settings["policy"]["drift"]["window_rows"]
    rate = report.overall.drift_alarms / windows
    return Outcome(harmful == 0, f"{counts(report)}; {rate:.2f} false alarms a window")


SMALL = 6_000
STREAMS = (
    Stream(
        "stationary, regression",
        "0 alarms, 0 promotions",
        stationary,
        nothing_happens,
        rows=SMALL,
        shuffled=True,
    ),
    Stream(
        "stationary, two classes",
        "0 alarms, 0 promotions",
        stationary_classes,
        nothing_happens,
        task="binary",
        shuffled=True,
    ),
    Stream(
        "seasonal, shuffled",
        "0 alarms, 0 promotions",
        stationary_once_seasonal,
        nothing_happens,
        shuffled=True,
    ),
    Stream(
        "abrupt shift",
        "alarm after it, none before; 80 % of the oracle's gain after two periods",
        abrupt,
        recovers,
        oracle=True,
    ),
    Stream(
        "concept drift",
        "the labels tell, a training follows; the drift monitor silent",
        concept,
        caught_by_labels,
        task="binary",
    ),
    Stream(
        "drift without loss",
        "drift told; candidates refused, none at a loss",
        idle_drift,
        refused,
    ),
    Stream(
        "seasonal",
        "four periods in the window beat one",
        seasonal,
        pooled_is_better,
        runs={
            "one period": {"recipe": {"window_rows": PERIOD}},
            "four periods": {"recipe": {"window_rows": 4 * PERIOD}},
        },
    ),
    Stream(
        "broken: all null",
        "data quality names size; no training",
        broken("null"),
        named_and_not_trained("size"),
        rows=SMALL,
    ),
    Stream(
        "broken: × 1000",
        "data quality names size; no training",
        broken("times 1000"),
        named_and_not_trained("size"),
        rows=SMALL,
    ),
    Stream(
        "broken: constant",
        "data quality names size; no training",
        broken("constant"),
        named_and_not_trained("size"),
        rows=SMALL,
    ),
    Stream(
        "broken: swapped columns",
        "data quality names size or x; no training",
        broken("swapped"),
        named_and_not_trained("x"),
        rows=SMALL,
    ),
    Stream(
        "autocorrelated, as it comes",
        "no harmful promotion; the rate of false alarms is told",
        hourly_weather,
        harmless,
    ),
)
QUICK = ("stationary, regression", "broken: all null")


# Running


def run(stream: Stream, keep: Path | None) -> tuple[Reports, float]:
    began = time.monotonic()
    number = [each.name for each in STREAMS].index(stream.name)
    frame = stream.make(np.random.default_rng([7, number]), stream.rows)
    reports = {}
    for name, overrides in stream.runs.items():
        request = DataRequest(
            path=Path(f"{stream.name}.parquet"),
            target="y",
            time="when",
            task=stream.task,
            numeric=tuple(n for n in frame.columns if n not in ("y", "when", "kind")),
            categorical=("kind",),
            period="period",
            order="shuffle" if stream.shuffled else "as-is",
            seed=11,
        )
        settings = BacktestSettings(
            data=request,
            model="stream",
            label_delay_ms=int(STEP.total_seconds() * 1000) * 50,
            oracle=stream.oracle,
            overrides=overrides,
        )
        with tempfile.TemporaryDirectory(prefix="trimtab-stream-") as scratch:
            directory = Path(scratch)
            dataset = prepare(slices(frame), request)
            report = asyncio.run(Backtest(dataset, settings, directory, Silent()).run())
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                label = "-".join(filter(None, (stream.name, name))).replace(" ", "-")
                (keep / f"{label.replace(':', '')}.json").write_text(report.to_json())
        reports[name] = report
    return reports, time.monotonic() - began


def slices(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with ten periods of equally many rows."""
    number = np.arange(frame.height) * PERIODS // frame.height
    return frame.with_columns(pl.Series("period", [f"p{each + 1}" for each in number.tolist()]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the two smallest alone")
    parser.add_argument("--only", default="", help="streams whose names begin so, by commas")
    parser.add_argument("--json", type=Path, help="write figures and environment there")
    parser.add_argument("--keep", type=Path, help="leave each stream's report there")
    arguments = parser.parse_args()
    wanted = [part.strip() for part in arguments.only.split(",") if part.strip()]
    chosen = [
        stream
        for stream in STREAMS
        if (not arguments.quick or stream.name in QUICK)
        and (not wanted or any(stream.name.startswith(part) for part in wanted))
    ]
    print("| stream | must | holds | what happened | s |\n|---|---|---|---|---:|", flush=True)
    failed, found = 0, []
    for stream in chosen:
        reports, seconds = run(stream, arguments.keep)
        outcome = stream.check(reports)
        failed += not outcome.holds and not stream.gap
        holds = "yes" if outcome.holds else f"no: {stream.gap}" if stream.gap else "**no**"
        print(
            f"| {stream.name} | {stream.must} | {holds} | {outcome.observed} | {seconds:.0f} |",
            flush=True,
        )
        found.append(
            {
                "stream": stream.name,
                "must": stream.must,
                "holds": outcome.holds,
                "gap": stream.gap,
                "observed": outcome.observed,
                "seconds": round(seconds, 1),
                "overall": {
                    name: json.loads(report.to_json())["overall"]
                    for name, report in reports.items()
                },
            }
        )
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"environment": describe(), "streams": found}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
