"""A backtest's report as one HTML file that needs nothing else: pictures inside, no script, no link.

It holds what one needs to believe it or not: the figures of every period beside what a model could
have had, each decision with the two models on the rows that followed, each alarm with its features,
what was inferred of the data, and with what seed, settings and versions it can be had again.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .backtest_decisions import words
from .backtest_plot import decisions_png, png
from .backtest_report import (
    HIGHER_IS_BETTER,
    METRIC_NAMES,
    BacktestReport,
    conclusion,
    figure,
    interval_words,
    without_signal,
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1px solid #888; } td.n, th.n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.right { color: #1f7a3d; } .wrong { color: #b3261e; font-weight: 600; }
.warning { background: #fff4dc; padding: .4rem .8rem; margin: .3rem 0; }
.dim { color: #666; } pre { font-size: 12px; background: #f6f6f6; padding: .8rem; overflow-x: auto; }
"""
_ALARMS = {
    "drift": "drift",
    "data_quality": "data quality",
    "quality": "loss of quality",
    "training_failed": "training failed",
    "load_failed": "load failed",
    "held": "held for a human",
}
Cell = tuple[str, str]  # HTML, class


def write_html(report: BacktestReport, path: Path) -> None:
    """Writes the report; OSError if the path cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_html(report), encoding="utf-8")


def to_html(report: BacktestReport) -> str:
    settings, overall = report.settings, report.overall
    target = str(settings.get("target", ""))
    data = Path(str(settings.get("data", ""))).name
    title = f"Backtest of {target or 'a model'}" + (f", {data}" if data else "")
    metric = METRIC_NAMES.get(overall.metric, overall.metric)
    better = "higher" if overall.metric in HIGHER_IS_BETTER else "lower"
    alarms = _alarms(report)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in conclusion(report)),
        *(f'<p class="warning">{escape(text)}</p>' for text in settings.get("warnings", ())),
        f"<h2>{escape(metric)} over time</h2>",
        _picture(png(report), "metric and drift of each period"),
        (
            '<p class="dim">Frozen: the first model, never touched. Managed: what the service answered. '
            "Retrained each period: fitted anew as each begins, to what was known then. Oracle: each "
            "period predicted by models that learned the rest of it; nobody can serve that.</p>"
        ),
        f"<h2>Each period ({escape(better)} is better)</h2>",
        _periods(report),
        "<h2>Each decision, judged on the rows that followed</h2>",
        _decisions(report) if report.decisions else "<p>Nothing was decided.</p>",
        "<h2>Alarms</h2>",
        alarms or "<p>There were none.</p>",
        "<h2>What was inferred</h2>",
        "<ul>" + "".join(f"<li>{escape(str(n))}</li>" for n in settings.get("notes", ())) + "</ul>",
        "<h2>How to have it again</h2>",
        (
            f"<p>Order of rows: {escape(str(settings.get('order', '')))}; "
            f"seed: {escape(str(settings.get('seed', '')))}.</p>"
        ),
        _dump("Environment", report.environment),
        _dump("Settings", settings),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _periods(report: BacktestReport) -> str:
    head = ["period", "rows", "frozen", "managed", "retrained", "oracle", "version", "worst PSI"]
    rows = []
    for item in report.periods:
        drift = item.drift
        kinds = [each["kind"].replace("_", " ") for each in item.events]
        told = [kind for kind in kinds if kind in ("promoted", "refused", "rolled back")]
        rows.append(
            [
                _text(item.period),
                _number(f"{item.rows:,}"),
                _number(figure(item.metric_frozen)),
                _number(f"<b>{figure(item.metric_managed)}</b>"),
                _number(figure(item.metric_retrain_every_period)),
                _number(figure(item.metric_oracle)),
                _number(str(item.champion_version)),
                _text(f"{drift['psi']:.2f} {drift['feature']}" if drift else ""),
                _text(", ".join(told)),
            ]
        )
    overall = report.overall
    rows.append(
        [
            ("<b>all</b>", ""),
            _number(f"{overall.rows:,}"),
            _number(figure(overall.metric_frozen)),
            _number(f"<b>{figure(overall.metric_managed)}</b>"),
            _number(figure(overall.metric_retrain_every_period)),
            _number(figure(overall.metric_oracle)),
            *[_text("")] * 3,
        ]
    )
    return _table([*head, "decided"], rows, numbers=range(1, 7))


def _decisions(report: BacktestReport) -> str:
    head = ["time", "decision", "because of", "before", "candidate", "better by (95 %)", "rows"]
    rows = []
    for item in report.decisions:
        path = f"{item.against} → {item.version}" if item.version else f"kept {item.against}"
        style = item.verdict if item.verdict in ("right", "wrong") else ""
        rows.append(
            [
                _text(item.time),
                _text(f"{item.kind.replace('_', ' ')} {path}"),
                _text(item.signal),
                _number(figure(item.metric_against)),
                _number(figure(item.metric_version)),
                _number(escape(interval_words(item))),
                _number(f"{item.judged_rows:,}" if item.judged_rows else ""),
                (escape(words(item)), style),
                _text(without_signal(item.reason, item.signal)),
            ]
        )
    picture = decisions_png(report)
    above = _picture(picture, "by how much each candidate was better") if picture else ""
    reproduced = report.environment.get("training_rows_reproduced", {})
    below = ""
    if reproduced.get("of"):
        below = (
            '<p class="dim">A refused candidate is fitted again, to the rows its training could '
            f"read. Of {reproduced['of']} published versions these rows were found again to the "
            f"last bit for {reproduced['matching']}.</p>"
        )
    table = _table([*head, "verdict", "the gate's reason"], rows, numbers=range(3, 7))
    return above + table + below


def _alarms(report: BacktestReport) -> str:
    rows = [
        [
            _text(str(event["time"])),
            _text(_ALARMS[event["kind"]]),
            _text(", ".join(event.get("features", ()))),
            _text(str(event["reason"])),
        ]
        for period in report.periods
        for event in period.events
        if event["kind"] in _ALARMS
    ]
    return _table(["time", "alarm", "features", "why"], rows) if rows else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Sequence[int] = ()) -> str:
    lines = "".join(
        "<tr>" + "".join(f'<td class="{style}">{html}</td>' for html, style in row) + "</tr>\n"
        for row in rows
    )
    titles = "".join(
        f'<th class="{"n" if place in numbers else ""}">{escape(name)}</th>'
        for place, name in enumerate(head)
    )
    return f'<div class="wide"><table><tr>{titles}</tr>\n{lines}</table></div>'


def _text(value: str) -> Cell:
    return escape(value), ""


def _number(html: str) -> Cell:
    return html, "n"


def _picture(data: bytes, what: str) -> str:
    return (
        f'<img alt="{escape(what)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def _dump(title: str, values: Mapping[str, Any]) -> str:
    text = json.dumps(values, indent=2, default=str)
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
