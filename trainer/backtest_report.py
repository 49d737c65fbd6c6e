"""A backtest's outcome: its JSON form, the table in the terminal and the conclusion in sentences.

The frozen dataclasses below are the JSON, key for key; `from_json` reads a report again, to plot
or print it later. Nothing here depends on how the figures came about.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .backtest_decisions import Decision, words

HIGHER_IS_BETTER = frozenset({"roc_auc", "accuracy"})
METRIC_NAMES = {
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
    "accuracy": "accuracy",
}
# What is told beneath the table, in full; the other kinds are in the JSON.
_DECISIONS = {
    "training_started": "training started",
    "training_failed": "training failed",
    "promoted": "promoted",
    "refused": "refused",
    "held": "held for a human",
    "rolled_back": "rolled back",
    "load_failed": "load failed",
    "data_quality": "data quality",
    "quality": "loss of quality",
}
_MOST_DECISIONS = 40
_LONGEST_REASON = 240  # characters; the JSON has it whole


@dataclass(frozen=True)
class PeriodReport:
    """One replayed period. A metric is None where it is not defined (one class only, no rows)."""

    period: str
    rows: int
    metric_frozen: float | None
    metric_managed: float | None
    metric_retrain_every_period: float | None
    metric_oracle: float | None
    champion_version: int  # when the period ended
    drift: Mapping[str, Any] | None  # the worst that was seen: feature, psi, ks_low, ks_high, …
    events: tuple[Mapping[str, Any], ...]  # kind, version, actor, reason, time, after_rows
    failed_requests: int


@dataclass(frozen=True)
class Overall:
    """All replayed periods together; the first period is trained on and not among them."""

    metric: str
    metric_frozen: float | None
    metric_managed: float | None
    metric_retrain_every_period: float | None
    metric_oracle: float | None
    rows: int
    requests: int
    failed_requests: int
    wrong_shapes: int
    promotions: int  # by the loop itself
    refused: int
    rolled_back: int
    trainings: int
    drift_alarms: int
    data_quality_alarms: int
    verdicts: Mapping[str, Mapping[str, int]]  # of promotions, refusals, rollbacks
    rollback_ms: float | None  # by hand at the end, until a request is answered by that version
    promote_ms: float | None


@dataclass(frozen=True)
class BacktestReport:
    periods: tuple[PeriodReport, ...]
    overall: Overall
    decisions: tuple[Decision, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)  # machine, versions, timings
    settings: Mapping[str, Any] = field(default_factory=dict)  # everything that was asked for

    def to_json(self) -> str:
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BacktestReport":
        """The report that `to_json` wrote; KeyError or TypeError for anything else."""
        content = json.loads(text)
        return cls(
            periods=tuple(
                PeriodReport(**{**period, "events": tuple(period["events"])})
                for period in content["periods"]
            ),
            overall=Overall(**content["overall"]),
            decisions=tuple(Decision(**each) for each in content["decisions"]),
            environment=content["environment"],
            settings=content["settings"],
        )


def report_table(report: BacktestReport) -> RenderableType:
    """The figures period by period, the decisions with their reasons, the conclusion."""
    metric = report.overall.metric
    table = Table(
        title=f"{METRIC_NAMES.get(metric, metric)} ({_direction(metric)} is better)",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("period", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in ("frozen", "managed", "retrained\neach period", "oracle"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("worst drift (PSI)", overflow="ellipsis", no_wrap=True, max_width=28)
    table.add_column("what happened", overflow="fold", ratio=1, min_width=16)
    table.add_column("failed", justify="right", no_wrap=True)
    before = 1
    for period in report.periods:
        drift = period.drift
        versions = [event["version"] for event in period.events if _moves_champion(event)]
        path = "→".join(str(version) for version in _changes([before, *versions]))
        before = period.champion_version
        table.add_row(
            escape(period.period),
            f"{period.rows:,}",
            *_metric_cells(period),
            path,
            escape(f"{drift['psi']:.2f} {drift['feature']}") if drift else "",
            _happened(period.events),
            _failed(period.failed_requests),
        )
    overall = report.overall
    table.add_section()
    table.add_row(
        "all",
        f"{overall.rows:,}",
        *_metric_cells(overall),
        "",
        "",
        f"{overall.trainings} trained, {overall.promotions} promoted, {overall.refused} refused, "
        f"{overall.rolled_back} rolled back",
        _failed(overall.failed_requests),
        style="bold",
    )
    parts: list[RenderableType] = [table, Text()]
    decisions = _decisions(report)
    if decisions.row_count:
        parts += [Text("What was decided, and why", "bold"), decisions, Text()]
    if report.decisions:
        title = f"Was it right? {METRIC_NAMES.get(metric, metric)} of the rows after each decision"
        parts += [Text(title, "bold"), _judged(report), Text()]
    parts += [Text(sentence) for sentence in conclusion(report)]
    return Group(*parts)


def conclusion(report: BacktestReport) -> list[str]:
    """What the figures say, in a few sentences."""
    overall = report.overall
    metric = METRIC_NAMES.get(overall.metric, overall.metric)
    sentences = []
    frozen, managed = overall.metric_frozen, overall.metric_managed
    retrained = overall.metric_retrain_every_period
    if frozen is not None and managed is not None:
        text = (
            f"Over {overall.rows:,} rows the first model, left alone, had a {metric} of "
            f"{figure(frozen)}; the managed service had {figure(managed)}, "
            f"{_compared(frozen, managed, overall.metric)}"
        )
        if retrained is not None:
            text += f"; retraining every period had {figure(retrained)}"
        if overall.metric_oracle is not None:
            text += (
                f"; {figure(overall.metric_oracle)} is what a model has "
                "that learned the other rows of the same period"
            )
        sentences.append(text + ".")
    if overall.trainings:
        sentences.append(
            f"The loop started {_count(overall.trainings, 'training')} by itself: "
            f"{overall.promotions} promoted, {overall.refused} refused, "
            f"{overall.rolled_back} rolled back."
        )
    else:
        sentences.append(
            "The loop started no training: no drift reached its threshold with enough labels."
        )
    sentences += verdict_sentences(overall.verdicts)
    asked = f"{overall.requests:,} requests"
    if overall.failed_requests or overall.wrong_shapes:
        sentences.append(
            f"Of {asked}, {overall.failed_requests:,} failed and "
            f"{overall.wrong_shapes:,} had a reply of the wrong shape."
        )
    else:
        sentences.append(f"Every one of {asked} was answered, each in its right shape.")
    if overall.rollback_ms is not None and overall.promote_ms is not None:
        sentences.append(
            f"A rollback by hand took {overall.rollback_ms:.1f} ms and the promotion back "
            f"{overall.promote_ms:.1f} ms, each checked by a request."
        )
    else:
        sentences.append("There was no earlier champion that one could have rolled back to.")
    return sentences


def verdict_sentences(verdicts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Of promotions, refusals and rollbacks, how many were right by the rows that followed."""
    told = {
        "promoted": ("promotion", "useful", "harmful"),
        "refused": ("refusal", "right", "wrong"),
        "rolled_back": ("rollback", "right", "wrong"),
    }
    sentences = []
    for kind, (noun, right, wrong) in told.items():
        found = verdicts.get(kind, {})
        if not (count := sum(found.values())):
            continue
        text = f"By the rows that followed, of {_count(count, noun)} {found['right']} "
        text += f"{'was' if found['right'] == 1 else 'were'} {right}, {found['wrong']} {wrong}, "
        text += f"{found['neither']} made no sure difference"
        if found["unjudged"]:
            text += f", {found['unjudged']} could not be judged"
        sentences.append(text + ".")
    return sentences


def interval_words(decision: Decision) -> str:
    """By how much the chosen or refused model is better, with its interval."""
    if decision.improvement is None or decision.low is None or decision.high is None:
        return decision.note
    return f"{decision.improvement:+.3g} ({decision.low:+.3g} to {decision.high:+.3g})"


def shortened(text: str, longest: int) -> str:
    """The text, cut at a blank where it is longer."""
    if len(text) <= longest:
        return text
    return text[: longest - 1].rpartition(" ")[0].rstrip(" ,;:") + " …"


def _metric_cells(item: PeriodReport | Overall) -> list[str]:
    return [
        figure(value)
        for value in (
            item.metric_frozen,
            item.metric_managed,
            item.metric_retrain_every_period,
            item.metric_oracle,
        )
    ]


def figure(value: float | None) -> str:
    """As many digits as one reads; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e6 or (0 < size < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{3 if size < 10 else 2}f}"


def _direction(metric: str) -> str:
    return "higher" if metric in HIGHER_IS_BETTER else "lower"


def _compared(frozen: float, managed: float, metric: str) -> str:
    better = managed > frozen if metric in HIGHER_IS_BETTER else managed < frozen
    if managed == frozen:
        return "the same"
    word = "better" if better else "worse"
    if metric in HIGHER_IS_BETTER or not frozen:
        return f"{abs(managed - frozen):.3g} {word}"
    return f"{abs(managed - frozen) / abs(frozen):.0%} {word}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _failed(number: int) -> Text:
    return Text(f"{number:,}", "bold red" if number else "default")


def _moves_champion(event: Mapping[str, Any]) -> bool:
    return event["kind"] in ("promoted", "rolled_back") and bool(event["version"])


def _changes(values: Sequence[int]) -> list[int]:
    return [value for place, value in enumerate(values) if not place or value != values[place - 1]]


def _happened(events: Sequence[Mapping[str, Any]]) -> str:
    short = {
        "drift": "drift",
        "training_started": "training",
        "training_failed": "failed",
        "promoted": "promoted",
        "refused": "refused",
        "held": "held",
        "rolled_back": "rolled back",
        "data_quality": "data quality",
        "quality": "loss of quality",
        "load_failed": "load failed",
    }
    words = [short[event["kind"]] for event in events if event["kind"] in short]
    counted: dict[str, int] = {}
    for word in words:
        counted[word] = counted.get(word, 0) + 1
    return ", ".join(word if n == 1 else f"{n}× {word}" for word, n in counted.items())


def _decisions(report: BacktestReport) -> Table:
    """When, what and why, in full sentences where they are not too long."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    told = [
        (period.period, event)
        for period in report.periods
        for event in period.events
        if event["kind"] in _DECISIONS
    ]
    signal = ""
    for period, event in told[:_MOST_DECISIONS]:
        reason = event["reason"]
        if event["kind"] == "training_started":
            signal = reason
        else:
            reason = without_signal(reason, signal)
        what = _DECISIONS[event["kind"]]
        if event["version"]:
            what += f" version {event['version']}"
        when = event.get("time") or period
        table.add_row(escape(when), what, escape(shortened(reason, _LONGEST_REASON)))
    if len(told) > _MOST_DECISIONS:
        table.add_row("", "", f"{len(told) - _MOST_DECISIONS} more are in the JSON report")
    return table


def _judged(report: BacktestReport) -> Table:
    """Each decision's two models on the rows after it, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "decision", "before", "candidate", "better by (95 %)", "rows", "verdict"):
        right = name in ("before", "candidate", "rows")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for decision in report.decisions[:_MOST_DECISIONS]:
        what = _DECISIONS[decision.kind]
        path = f" {decision.against}→{decision.version}" if decision.version else ""
        style = {"wrong": "red", "right": "green"}.get(decision.verdict, "default")
        table.add_row(
            escape(decision.time),
            what + path,
            figure(decision.metric_against),
            figure(decision.metric_version),
            escape(interval_words(decision)),
            f"{decision.judged_rows:,}" if decision.judged_rows else "",
            Text(words(decision), style),
        )
    if len(report.decisions) > _MOST_DECISIONS:
        more = f"{len(report.decisions) - _MOST_DECISIONS} more are in the JSON report"
        table.add_row("", more, "", "", "", "", "")
    return table


def without_signal(reason: str, signal: str) -> str:
    """A decision's reason without the signal that began the training, which was told before."""
    rest = reason.removeprefix(signal).lstrip("; ") if signal else reason
    return rest or reason


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a figure that is none becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
