"""What is noted during a replay, and the figures that become of it.

Events and drift belong to the period whose time they have, by the loop's clock: the last chunk of a
period reaches into the next one, and what is decided after it is the next one's.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trimtab.proto import admin_pb2

from .backtest_baselines import Scores, empty_scores, metric_of
from .backtest_data import Dataset
from .backtest_decisions import Decision, LoopEvent, tally
from .backtest_report import Overall, PeriodReport
from .recipe import Metric
from .replay import Answers


class ReplayRecord:
    """Answers, events and drift of one replay of a dataset. Used by one thread."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._times = dataset.times_ms
        self._begins = np.array([self._times[period.start] for period in dataset.periods])
        rows, width = empty_scores(dataset).shape
        self.answers = Answers.empty(rows, width)
        self.rollback_ms: float | None = None
        self.promote_ms: float | None = None
        self._events: list[list[dict[str, Any]]] = [[] for _ in dataset.periods]
        self.loop_events: list[LoopEvent] = []
        self.labels_told = dataset.periods[0].stop  # rows before this one
        self._drift: dict[int, dict[str, Any]] = {}  # the worst, by the period's number

    def note_event(self, event: admin_pb2.Event) -> Mapping[str, Any]:
        """Keeps an event of the loop; returns it as the report has it."""
        number = self._period_at(event.event_time_ms)
        period = self._dataset.periods[number]
        times = self._times[period.start : period.stop]
        noted: dict[str, Any] = {
            "kind": event.kind,
            "version": event.version,
            "actor": event.actor,
            "reason": event.reason,
            "time": _moment(event.event_time_ms),
            "after_rows": int(np.searchsorted(times, event.event_time_ms, side="right")),
        }
        evidence = json.loads(event.evidence_json or "{}")
        if event.kind in ("drift", "data_quality"):
            noted["features"] = _named(evidence, event.kind, event.reason)
        self._events[number].append(noted)
        self.loop_events.append(
            LoopEvent(
                kind=event.kind,
                version=event.version,
                reason=event.reason,
                time=noted["time"],
                row=period.start + noted["after_rows"],
                labelled=self.labels_told,
                time_ms=event.event_time_ms,
            )
        )
        # A window that made the loop promote another version is gone when it is asked for.
        drifted = event.kind in ("drift", "drift_warning")
        for feature in evidence.get("features", ()) if drifted else ():
            ks_low, ks_high = feature["ks"]
            worst = {"feature": feature["feature"], "role": feature["role"], "psi": feature["psi"]}
            worst |= {"ks_low": ks_low, "ks_high": ks_high}
            worst |= {name: feature[name] for name in ("missing_rate", "unseen_rate", "verdict")}
            state = event.kind.removeprefix("drift_")  # as a report has it: it may tell of the same
            self._keep_worst(number, {**worst, "state": state, "version": event.version})
        return noted

    def note_drift(self, report: admin_pb2.DriftReport, clock_ms: int) -> None:
        """Keeps the worst feature of the report if nothing worse was seen in that period."""
        if not report.features or report.state == "collecting":
            return
        worst = max(report.features, key=lambda feature: feature.psi)
        self._keep_worst(
            self._period_at(clock_ms),
            {
                "feature": worst.name,
                "role": worst.role,
                "psi": round(worst.psi, 4),
                "ks_low": round(worst.ks_low, 4),
                "ks_high": round(worst.ks_high, 4),
                "missing_rate": round(worst.missing_rate, 4),
                "unseen_rate": round(worst.unseen_rate, 4),
                "verdict": worst.verdict,
                "state": report.state,
                "version": report.version,
            },
        )

    def _keep_worst(self, number: int, found: dict[str, Any]) -> None:
        known = self._drift.get(number)
        if known is None or found["psi"] > known["psi"]:
            self._drift[number] = found

    def periods(
        self, metric: Metric, frozen: Scores, retrained: Scores, oracle: Scores
    ) -> tuple[PeriodReport, ...]:
        """Every replayed period."""
        dataset, managed = self._dataset, self.answers.score
        failed = np.array(self.answers.failed_starts, dtype=np.int64)
        champion = 1
        found = []
        for number, period in enumerate(dataset.periods[1:], 1):
            events = self._events[number]
            for event in events:
                if event["kind"] in ("promoted", "rolled_back") and event["version"]:
                    champion = event["version"]
            here = (failed >= period.start) & (failed < period.stop)
            found.append(
                PeriodReport(
                    period=period.name,
                    rows=period.rows,
                    metric_frozen=metric_of(metric, dataset, frozen, period),
                    metric_managed=metric_of(metric, dataset, managed, period),
                    metric_retrain_every_period=metric_of(metric, dataset, retrained, period),
                    metric_oracle=metric_of(metric, dataset, oracle, period),
                    champion_version=champion,
                    drift=self._drift.get(number),
                    events=tuple(events),
                    failed_requests=int(here.sum()),
                )
            )
        return tuple(found)

    def overall(
        self,
        metric: Metric,
        frozen: Scores,
        retrained: Scores,
        oracle: Scores,
        requests: int,
        decisions: Sequence[Decision],
    ) -> Overall:
        """All replayed periods together."""
        dataset = self._dataset
        start, stop = dataset.periods[0].stop, dataset.frame.height
        rows = slice(start, stop)
        kinds = [event["kind"] for events in self._events for event in events]
        return Overall(
            metric=metric,
            metric_frozen=metric_of(metric, dataset, frozen, rows),
            metric_managed=metric_of(metric, dataset, self.answers.score, rows),
            metric_retrain_every_period=metric_of(metric, dataset, retrained, rows),
            metric_oracle=metric_of(metric, dataset, oracle, rows),
            rows=stop - start,
            requests=requests,
            failed_requests=self.answers.failed_requests,
            wrong_shapes=self.answers.wrong_shapes,
            promotions=kinds.count("promoted"),
            refused=kinds.count("refused"),
            rolled_back=kinds.count("rolled_back"),
            trainings=kinds.count("training_started"),
            drift_alarms=kinds.count("drift"),
            data_quality_alarms=kinds.count("data_quality"),
            verdicts=tally(decisions),
            rollback_ms=self.rollback_ms,
            promote_ms=self.promote_ms,
        )

    def _period_at(self, time_ms: int) -> int:
        """The number of the replayed period that the time lies in."""
        number = int(np.searchsorted(self._begins, time_ms, side="right")) - 1
        return min(max(1, number), len(self._dataset.periods) - 1)


def _named(evidence: Mapping[str, Any], kind: str, reason: str) -> list[str]:
    """The features that an alarm is about: the evidence has others beside them."""
    found = [
        str(each["feature"]) for each in evidence.get("features", ()) if each.get("verdict") == kind
    ]
    if kind == "data_quality":  # a fault of the newest pane alone is in the reason only
        every = [str(each["feature"]) for each in evidence.get("features", ())]
        found += [name for name in every if name not in found and f"{name}: " in reason]
    return found


def _moment(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
