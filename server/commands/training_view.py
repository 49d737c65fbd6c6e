"""A model's trainings, read from its history, and as rich prints them.

Pure: the admin port's messages go in. A training is what a server began (or, in a dry run, would have
begun); what people train by hand is in the history under its own kinds.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trimtab.proto import admin_pb2

from ..loop.training_progress import span
from .report_tables import moment

SKIPPED = "would have trained"
_OUTCOMES: Mapping[str, str] = {
    "published": "published",
    "promoted": "promoted",
    "approval_wanted": "waits for approval",
    "held": "held",
    "refused": "refused",
    "rolled_back": "rolled back",
    "training_failed": "failed",
    "training_cancelled": "cancelled",
    "data_broken": "data broken",
}
_MADE_A_VERSION = ("published", "promoted", "waits for approval", "held", "rolled back")
_STYLES = {"failed": "bold red", "data broken": "bold red", "promoted": "green", SKIPPED: "cyan"}


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """One training, or one that a dry run kept from beginning."""

    training_id: str  # empty: it never began
    started_ms: int  # wall clock
    signal: str  # drift, quality, schedule or admin
    actor: str
    reason: str  # why it began, or would have
    outcome: str = "running"
    detail: str = ""  # of the outcome, in words
    version: int = 0  # that it made; 0: none
    ended_ms: int = 0  # 0: it has not

    @property
    def made_a_version(self) -> bool:
        return self.outcome in _MADE_A_VERSION

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def trainings_of(entries: Iterable[admin_pb2.Event]) -> list[TrainingRecord]:
    """Every training that the entries of a history tell of, oldest first."""
    found: dict[str | int, TrainingRecord] = {}
    latest = ""
    for entry in entries:
        if entry.kind not in ("training_started", "training_skipped", *_OUTCOMES):
            continue
        evidence = json.loads(entry.evidence_json or "{}")
        told = str(evidence.get("training_id", ""))
        if entry.kind in ("training_started", "training_skipped"):
            skipped = entry.kind == "training_skipped"
            found[told or -entry.history_sequence] = TrainingRecord(
                training_id=told,
                started_ms=entry.time_ms,
                signal=str(evidence.get("signal", "")),
                actor=entry.actor,
                reason=str(evidence.get("reason", "")) or entry.reason,
                outcome=SKIPPED if skipped else "running",
                ended_ms=entry.time_ms if skipped else 0,
            )
            latest = latest if skipped else told
            continue
        interrupted = bool(evidence.get("interrupted"))
        record = found.get(told or (latest if interrupted else ""))
        if record is None or not record.training_id:
            continue
        found[record.training_id] = replace(
            record,
            outcome="interrupted" if interrupted else _OUTCOMES[entry.kind],
            detail=entry.reason,
            version=entry.version or record.version,
            ended_ms=record.ended_ms or entry.time_ms,
        )
    return list(found.values())


def in_the_last(
    records: Sequence[TrainingRecord], days: float, now_ms: int
) -> list[TrainingRecord]:
    """Those that began, or would have, in so many days of the wall clock; 0: all."""
    since_ms = now_ms - days * 86_400_000 if days else 0
    return [record for record in records if record.started_ms >= since_ms]


def summary(model: str, records: Sequence[TrainingRecord], days: float) -> str:
    """How many there were, in a sentence."""
    span_of = f" in the last {days:g} day{'s' * (days != 1)}" if days else ""
    trained = [record for record in records if record.training_id]
    skipped = len(records) - len(trained)
    counts = Counter(record.outcome for record in trained)
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
    text = f"{model}: {_times(len(trained), 'training')}{span_of}{f' ({told})' * bool(told)}"
    return f"{text}; would have trained {_times(skipped, 'time')} (dry run)" if skipped else text


def trainings_view(
    model: str,
    records: Sequence[TrainingRecord],
    days: float,
    status: admin_pb2.TrainingStatusResponse | None,
) -> RenderableType:
    """The summary, what runs now (`status`: None without a server), and the table."""
    parts: list[RenderableType] = [Text(summary(model, records, days), "bold")]
    if status is not None and (line := status_line(status)):
        parts.append(Text(line))
    if records:
        parts.append(_table(records))
    return Group(*parts)


def status_line(status: admin_pb2.TrainingStatusResponse) -> str:
    """What runs, or waits, in a line; empty: nothing does."""
    if status.training_id:
        return f"{status.training_id} runs: {progress_text(status)}"
    if status.waits:
        return f"waits: {status.waits}"
    return "dry run: nothing is trained by itself" if status.dry_run else ""


def progress_text(status: admin_pb2.TrainingStatusResponse) -> str:
    """Stage, share of the time, what is left."""
    words = [f"{status.stage or 'starting'} {status.fraction:.0%}"]
    if status.HasField("eta_s"):
        words.append(f"about {span(status.eta_s)} left")
    if status.message:
        words.append(status.message)
    return ", ".join(words)


def _table(records: Sequence[TrainingRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("training", no_wrap=True)
    table.add_column("began (UTC)", no_wrap=True)
    table.add_column("signal", no_wrap=True)
    table.add_column("outcome", overflow="fold")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for record in records:
        took_s = (record.ended_ms - record.started_ms) / 1000
        why = f"{record.reason} → {record.detail}" if record.detail else record.reason
        table.add_row(
            escape(record.training_id or "–"),
            moment(record.started_ms)[:16],
            escape(record.signal),
            Text(record.outcome, _STYLES.get(record.outcome, "default")),
            span(max(0.0, took_s)) if record.ended_ms and record.training_id else "",
            str(record.version or ""),
            escape(why),
        )
    return table


def _times(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
