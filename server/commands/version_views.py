"""One version in full, and how a roll-out stands: made of the admin port's messages, as rich prints it.

Pure, as the tables beside it.
"""

import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.proto import admin_pb2

from .lineage_lines import lineage_lines
from .report_tables import gates_table, history_table, moment

_SHOWN_COLUMNS = 8  # names of columns; the rest are counted


def description_view(version: admin_pb2.VersionDescription) -> RenderableType:
    """Everything, in the order in which it is asked for."""
    info = version.info
    head = Text(f"{version.model_name} version {info.version}", "bold")
    words = [info.role, info.state, "pinned" * info.pinned, "blocked" * info.blocked]
    if told := ", ".join(word for word in words if word):
        head.append(f"  {told}", "not bold")
    parts: list[RenderableType] = [head]
    if info.blocked_reason:
        parts.append(Text(f"blocked: {info.blocked_reason}"))
    if info.reason:
        parts.append(Text(info.reason))
    if not version.managed:
        parts.append(Text("unmanaged: nothing here was published by Trimtab"))
    facts = _facts(version)
    if facts.row_count:
        parts.append(facts)
    if version.gates:
        parts.append(Text("\ngates", "dim"))
        gates = [
            {"name": gate.name, "verdict": gate.verdict, "reason": gate.reason}
            for gate in version.gates
        ]
        parts.append(gates_table(gates))
    if version.files:
        parts.append(_files(version))
    if version.history:
        parts.append(Text("\nhistory", "dim"))
        parts.append(history_table(version.history))
    return Group(*parts)


def _facts(version: admin_pb2.VersionDescription) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, value: str) -> None:
        if value:
            table.add_row(name, Text(value))

    info = version.info
    created = moment(info.created_ms)
    add("created", f"{created} UTC" if created else "")
    add("task", version.task)
    add("metrics", "  ".join(f"{name} {v:.4g}" for name, v in sorted(info.metrics.items())))
    if info.rows:
        add("answered", f"{info.requests:,} requests, {info.rows:,} rows")
    for kind, tensors in (("input", version.inputs), ("output", version.outputs)):
        for tensor in tensors:
            add(kind, _tensor(tensor))
    for name, value in lineage_lines(json.loads(version.lineage_json or "{}")):
        add(name, value)
    if version.manifest_sha256:
        signed = ", signed" if version.signed else ", not signed"
        add("manifest", f"sha256 {version.manifest_sha256}{signed}")
    return table


def _tensor(tensor: admin_pb2.TensorInfo) -> str:
    text = f"{tensor.name}  {tensor.datatype} {list(tensor.shape)}"
    if tensor.columns:
        text += f"  {', '.join(tensor.columns[:_SHOWN_COLUMNS])}"
        more = len(tensor.columns) - _SHOWN_COLUMNS
        text += f" and {more} more" if more > 0 else ""
    return text


def _files(version: admin_pb2.VersionDescription) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("sha256", no_wrap=True)
    for file in version.files:
        table.add_row(Text(file.name), f"{file.size:,}", file.sha256[:16])
    return table


def rollout_view(status: admin_pb2.RolloutStatusResponse) -> RenderableType:
    """What runs, or ran last, and what was found."""
    if not status.version:
        return Text(f"{status.model_name}: no roll-out since the server started")
    over = status.phase in ("", "none")
    head = Text(f"{status.model_name}: ", "bold")
    if over:
        head.append(f"no roll-out; the last one was of version {status.version}", "not bold")
    elif status.phase == "approval":
        head.append(f"version {status.version} waits for approval")
    else:
        head.append(f"{status.phase} of version {status.version} against {status.against}")
    if status.verdict:
        head.append(f"  {status.verdict}", "not bold")
    parts: list[RenderableType] = [head]
    if status.reason:
        parts.append(Text(status.reason))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _figures(status):
        table.add_row(name, Text(value))
    parts.append(table)
    return Group(*parts)


def _figures(status: admin_pb2.RolloutStatusResponse) -> list[tuple[str, str]]:
    rows = f"{status.rows_compared:,}"
    if status.rows_wanted:
        rows += f" of {status.rows_wanted:,}"
    if status.rows_dropped:
        rows += f"; {status.rows_dropped:,} not compared for want of time"
    found = [("rows compared", rows)] if status.phase != "approval" else []
    if status.phase == "canary":
        found.append(("share", f"{status.share:.1%} of requests"))
    if status.since_ms:
        until = f", until {moment(status.deadline_ms)} at the latest" if status.deadline_ms else ""
        found.append(("since", f"{moment(status.since_ms)}{until}"))
    failed = {version: rows for version, rows in sorted(status.requests_failed.items()) if rows}
    if failed:
        told = ", ".join(f"{rows:,} of version {version}" for version, rows in failed.items())
        found.append(("failed", told))
    if status.HasField("latency_ratio"):
        found.append(("latency", f"{status.latency_ratio:.2f} times that of the other"))
    if status.HasField("agreement"):
        found.append(("agreement", f"{status.agreement:.2%} of rows"))
    if status.HasField("prediction_psi"):
        found.append(("PSI", f"{status.prediction_psi:.3f} of {status.psi_output}"))
    if status.HasField("improvement"):
        interval = ""
        if status.HasField("low") and status.HasField("high"):
            interval = f" [{status.low:.4g}, {status.high:.4g}]"
        found.append(
            (
                status.metric or "labels",
                f"better by {status.improvement:.4g}{interval} on {status.labelled_rows:,} rows",
            )
        )
    return found
