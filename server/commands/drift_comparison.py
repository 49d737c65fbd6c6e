"""Two counted files, judged as a champion's window is judged, and how that is shown.

`drift_report.evaluate` takes the current file's counts for a window, so the figures are those of a
server. The counts come from the trainer's side (drift_check_command.py).
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab._native.live_counts import LiveCounts
from trimtab._native.reference import ReferenceProfile
from trimtab.proto import admin_pb2

from ..config import DriftConfig
from ..drift.drift_evidence import of_two_samples
from ..drift.drift_report import (
    DATA_QUALITY,
    DRIFT,
    OK,
    WARNING,
    DriftReport,
    FeatureDrift,
    WindowSnapshot,
    evaluate,
    summary,
    worst,
)
from ..drift.feature_faults import Key, TensorCounts
from ..drift.yardstick import Yardstick
from ..services.admin.drift_messages import drift_message
from .admin_client import as_dict
from .report_tables import drift_table

_ALPHA = 0.01  # the probability that chance alone is taken for drift, over all features
DRIFTED = 3  # exit code: something drifted or broke
_STYLES = {OK: "green", WARNING: "yellow", DRIFT: "bold red", DATA_QUALITY: "bold magenta"}


@dataclass(frozen=True)
class Comparison:
    """Both sides, judged."""

    state: str  # ok, warning, drift or data_quality
    reason: str
    reference_rows: int
    current_rows: int
    features: tuple[FeatureDrift, ...]  # the strongest drift first
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return DRIFTED if self.state in (DRIFT, DATA_QUALITY) else 0


def judge(directory: Path, config: DriftConfig) -> Comparison:
    """What the counts that the trainer's side left there mean."""
    reference = ReferenceProfile.load(directory / "reference.npz")
    current = LiveCounts.load(directory / "current.npz")
    told = json.loads((directory / "notes.json").read_text())
    faults = {(fault["role"], fault["feature"]): fault["reason"] for fault in told["faults"]}
    return compare(reference, current, config, faults, tuple(told["notes"]))


def compare(
    reference: ReferenceProfile,
    current: LiveCounts,
    config: DriftConfig,
    faults: Mapping[Key, str],
    notes: tuple[str, ...] = (),
) -> Comparison:
    """The figures of the current counts as those of a window; ValueError over other bins."""
    window = WindowSnapshot(
        rows=current.rows,
        observed_rows=current.rows,
        newest_pane=1,
        tensors=tuple(
            None if tensor is None else TensorCounts(tensor.counts, tensor.lowest, tensor.highest)
            for tensor in current.over(reference)
        ),
    )
    features = tuple(
        dataclasses.replace(found, reason=faults.get((found.role, found.name), found.reason))
        for found in evaluate(
            Yardstick(reference),
            window,
            config,
            faults,
            of_two_samples(reference, window.tensors, _ALPHA),
        )
    )
    state = worst(features)
    reason = summary(features, state) if state != OK else ""
    broken = summary(features, DATA_QUALITY)
    if broken and state != DRIFT:
        state, reason = DATA_QUALITY, broken
    return Comparison(state, reason, reference.rows, current.rows, features, notes)


def as_json(reference: Path, current: Path, comparison: Comparison) -> dict[str, Any]:
    return {
        "reference": str(reference),
        "current": str(current),
        "state": comparison.state,
        "reason": comparison.reason,
        "reference_rows": comparison.reference_rows,
        "current_rows": comparison.current_rows,
        "features": as_dict(_message(comparison))["features"],
        "notes": list(comparison.notes),
    }


def view(reference: Path, current: Path, comparison: Comparison, limit: int) -> RenderableType:
    """The table of `trimtab drift` under words of our own."""
    report = drift_table(_message(comparison), limit)
    parts: list[RenderableType] = list(report.renderables) if isinstance(report, Group) else []
    table = next((at for at, part in enumerate(parts) if isinstance(part, Table)), len(parts))
    head = Text.assemble(
        f"{current}: ", (comparison.state, _STYLES[comparison.state]), style="bold"
    )
    if comparison.reason:
        head.append(f" — {comparison.reason}", style="not bold")
    text = Text(
        f"{comparison.current_rows:,} rows against {comparison.reference_rows:,} of {reference}"
    )
    return Group(head, text, *parts[table:])


def _message(comparison: Comparison) -> admin_pb2.DriftReport:
    """In the form that the tables print."""
    return drift_message(
        DriftReport(
            model="",
            version=0,
            state=comparison.state,
            reason=comparison.reason,
            window_rows=comparison.current_rows,
            reference_rows=comparison.reference_rows,
            features=comparison.features,
        )
    )
