"""What the commands print: tables, sparklines and lines made of the admin port's messages.

Pure: a message goes in, something that rich can print comes out. Colours only repeat what the words
say, so a pipe or a colour-blind reader loses nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trimtab.proto import admin_pb2

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {
    "READY": "green",
    "FAILED": "bold red",
    "LOADING": "yellow",
    "VERIFYING": "yellow",
    "WARMING": "yellow",
    "DRAINING": "yellow",
    "ok": "green",
    "warning": "yellow",
    "drift": "bold red",
    "data_quality": "bold magenta",
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "champion": "bold green",
}


def sparkline(shares: Sequence[float], top: float | None = None) -> str:
    """One character per share, as high as its part of `top` (the largest one by default)."""
    top = max(shares, default=0.0) if top is None else top
    if top <= 0:
        return _BARS[0] * len(shares)
    last = len(_BARS) - 1
    return "".join(_BARS[min(last, max(0, round(share / top * last)))] for share in shares)


def moment(time_ms: int) -> str:
    """Milliseconds since the epoch, as UTC to the second; empty for 0."""
    if not time_ms:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def versions_view(models: Iterable[admin_pb2.ModelVersions], *, served: bool) -> RenderableType:
    """Every version of every model, the newest first; without a server, without what only it knows."""
    parts: list[RenderableType] = []
    for model in models:
        title = Text(model.model_name, "bold")
        if not model.managed:
            title.append("  unmanaged: nothing here was published by Trimtab", "not bold")
        else:
            champion = f"champion {model.champion}" if model.champion else "no champion"
            title.append(f"  {champion}, revision {model.revision}", "not bold")
        if model.frozen:
            title.append("  frozen", "bold cyan")
            title.append(f": {model.frozen_reason}" if model.frozen_reason else "", "not bold")
        if model.log_rows_dropped:
            title.append(f"  {model.log_rows_dropped:,} rows dropped by the traffic log", "red")
        if model.log_failing:
            title.append(f"  {model.log_failing}", "red")
        parts.append(title)
        if model.versions:
            parts.append(_versions_table(model.versions, served))
        else:
            parts.append(Text("  no version"))
    return Group(*parts)


def _versions_table(versions: Iterable[admin_pb2.VersionInfo], served: bool) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("role", overflow="fold")
    if served:
        table.add_column("state", overflow="fold")
        table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("created (UTC)", no_wrap=True)
    table.add_column("metrics", overflow="fold")
    for item in sorted(versions, key=lambda item: -item.version):
        state = _styled(item.state)
        if item.reason and item.state != "UNLOADED":
            state.append(f": {item.reason}", "default")
        # Those of the champion it was compared with are in the report of the version.
        own = {name: v for name, v in item.metrics.items() if not name.startswith("champion_")}
        live: list[Text] = [state, Text(f"{item.rows:,}")] if served else []
        table.add_row(
            str(item.version),
            _role(item),
            *live,
            moment(item.created_ms)[:16],
            escape("  ".join(f"{name} {value:.4g}" for name, value in sorted(own.items()))),
        )
    return table


def _role(item: admin_pb2.VersionInfo) -> Text:
    """With what was decided about the version."""
    words = [_styled(item.role)] if item.role else []
    if item.pinned:
        words.append(Text("pinned", "cyan"))
    if item.blocked:
        why = f" ({item.blocked_reason})" if item.blocked_reason else ""
        words.append(Text.assemble(("blocked", "bold red"), why))
    return Text(", ").join(words)


def drift_table(report: admin_pb2.DriftReport, limit: int) -> RenderableType:
    """The state in words and the features that moved most, at most `limit` of them (0: all)."""
    head = Text.assemble(
        (f"{report.model_name} version {report.version}: "), _styled(report.state), style="bold"
    )
    if report.reason:
        head.append(f" — {report.reason}", style="not bold")
    known = {
        "training": f"{report.reference_rows:,} rows of its training",
        "bootstrap": f"its first {report.reference_rows:,} live rows",
        "none": "nothing: it has no reference yet",
    }
    against = known.get(report.reference, report.reference or known["none"])
    text = Text(
        f"window of {report.window_rows:,} rows against {against}; "
        f"{report.observed_rows:,} rows since it became champion"
    )
    if report.passed_over_rows:
        counted = report.observed_rows - report.passed_over_rows
        text.append(f", {counted:,} of them counted")
    shown = list(report.features)[: limit or None]
    if not shown:
        return Group(head, text)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("feature", overflow="fold", min_width=12)
    table.add_column("verdict", no_wrap=True)
    table.add_column("PSI", justify="right")
    table.add_column("at least", justify="right", no_wrap=True)
    table.add_column("KS ≥", justify="right", no_wrap=True)
    evidence = any(item.HasField("log_evidence") for item in shown)
    if evidence:
        table.add_column("evidence", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    table.add_column("unseen", justify="right", no_wrap=True)
    table.add_column("reference", no_wrap=True)
    table.add_column("window", no_wrap=True)
    for item in shown:
        top = max([*item.reference_shares, *item.window_shares], default=0.0)
        name = item.name if item.role != "output" else f"{item.name} (output)"
        missing = f"{item.missing_rate:.0%}"
        if f"{item.reference_missing_rate:.0%}" != missing:
            missing = f"{item.reference_missing_rate:.0%} → {missing}"
        numeric = item.kind == "numeric"
        table.add_row(
            escape(name),
            _styled(item.verdict),
            f"{item.psi:.3f}",
            f"{item.psi_low:.3f}",
            f"{item.ks_low:.2f}" if numeric else "",
            *([_odds(item)] if evidence else []),
            missing,
            "" if numeric else f"{item.unseen_rate:.0%}",
            sparkline(item.reference_shares, top),
            sparkline(item.window_shares, top),
        )
    parts: list[RenderableType] = [head, text, table]
    if len(shown) < len(report.features):
        parts.append(Text(f"{len(report.features) - len(shown)} more; --all shows them", "dim"))
    return Group(*parts)


def _odds(item: admin_pb2.FeatureDrift) -> str:
    """Evidence as odds against chance: 1 is none, 1e+04 one false alarm in 10,000 panes."""
    if not item.HasField("log_evidence"):
        return ""
    return f"{math.exp(item.log_evidence):.0e}" if item.log_evidence < 690 else "> 1e+300"


def history_table(entries: Iterable[admin_pb2.Event]) -> Table:
    """What was changed, when, by whom and why; oldest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("version", justify="right")
    table.add_column("who", overflow="fold")
    table.add_column("why", overflow="fold")
    for entry in entries:
        table.add_row(
            str(entry.sequence),
            moment(entry.time_ms)[:16],
            _styled(entry.kind),
            str(entry.version or ""),
            escape(entry.actor),
            escape(entry.reason),
        )
    return table


def event_line(event: admin_pb2.Event) -> Text:
    """One event in one line."""
    line = Text(moment(event.time_ms), "dim")
    line.append(f"  {event.model_name}  ", "default not dim")
    line.append_text(_styled(event.kind))
    if event.version:
        line.append(f" version {event.version}", "default not dim")
    if event.reason:
        line.append(f": {event.reason}", "default not dim")
    if event.actor:
        line.append(f"  ({event.actor})")
    return line


def gates_table(gates: Sequence[Mapping[str, Any]]) -> Table:
    """What a candidate was held against, as the trainer's result tells it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("gate", no_wrap=True)
    table.add_column("verdict")
    table.add_column("why", overflow="fold")
    for gate in gates:
        table.add_row(
            escape(str(gate.get("name", ""))),
            _styled(str(gate.get("verdict", ""))),
            escape(str(gate.get("reason", ""))),
        )
    return table


def _styled(word: str) -> Text:
    return Text(word, _STYLES.get(word, "default"))
