"""What trainings a model had, as far as the trigger needs to know; read from the history at start.

An immutable value with one method per thing that can happen. It is rebuilt from history.jsonl, so
cooldown, budget, back-off and the circuit breaker hold across restarts of the server. A training
that was cut short because the server stopped is no failure and counts for the budget alone. One that
an operator cancelled, or that found its data broken, is no failure either, but uses its labels up and
begins a cooldown: what it would have learned is not tried again before there is something new.

People train by hand beside the server, and that is in the history too. Only what carries the id of
the training that the server started ends it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trimtab.registry.history import CHAMPION_CHANGES

_KEPT_STARTS = 1000  # more than any budget per day
_GAVE_A_RESULT = ("published", "promoted", "held", "approval_wanted")
LAST_STAGE = "publish"
_SET_ASIDE = ("training_cancelled", "data_broken")


class Entry(Protocol):
    """A line of the history."""

    @property
    def kind(self) -> str: ...
    @property
    def event_time_ms(self) -> int: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class TrainingPast:
    """See trigger.TriggerSnapshot for what the fields are for."""

    started: int = 0  # trainings ever started by a server
    starts_ms: tuple[int, ...] = ()
    last_training_ms: int | None = None
    labels_at_last: int = 0  # mature labels as the last one that did not fail began
    refusals: int = 0  # in a row, beside the same champion
    failures: int = 0
    last_failure_ms: int | None = None
    open_ms: int | None = None  # start of the one that runs
    open_labels: int = 0
    open_id: str = ""
    stages_s: Mapping[str, float] = field(default_factory=dict)  # of the last one that published

    def start(self, now_ms: int, labels: int, training_id: str = "") -> "TrainingPast":
        return replace(
            self,
            started=self.started + 1,
            starts_ms=(*self.starts_ms[-_KEPT_STARTS:], now_ms),
            open_ms=now_ms,
            open_labels=labels,
            open_id=training_id,
        )

    def finish(self) -> "TrainingPast":
        """It gave a result: a version, or a refusal."""
        return replace(
            self,
            last_training_ms=self.open_ms,
            labels_at_last=self.open_labels,
            failures=0,
            last_failure_ms=None,
            open_ms=None,
        )

    def refuse(self) -> "TrainingPast":
        """It gave a result, and that was refused."""
        return replace(self.finish(), refusals=self.refusals + 1)

    def champion_changed(self) -> "TrainingPast":
        """What was refused was compared with another champion."""
        return replace(self, refusals=0)

    def fail(self, now_ms: int) -> "TrainingPast":
        return replace(self, failures=self.failures + 1, last_failure_ms=now_ms, open_ms=None)

    def interrupt(self) -> "TrainingPast":
        """The server stopped, or was killed, while it ran."""
        return replace(self, open_ms=None)

    def set_aside(self) -> "TrainingPast":
        """It was cancelled, or its data were broken: a training, and neither a failure nor the end
        of a row of them."""
        return replace(
            self, last_training_ms=self.open_ms, labels_at_last=self.open_labels, open_ms=None
        )

    def skip(self, now_ms: int, labels: int) -> "TrainingPast":
        """One would have begun, and would have given a result at once; nothing is open."""
        return replace(
            self,
            starts_ms=(*self.starts_ms[-_KEPT_STARTS:], now_ms),
            last_training_ms=now_ms,
            labels_at_last=labels,
        )

    def timed(self, stages_s: Mapping[str, float]) -> "TrainingPast":
        """A training took so long, stage by stage; one that did not come to its last says nothing."""
        return replace(self, stages_s=dict(stages_s)) if LAST_STAGE in stages_s else self

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "TrainingPast":
        """From a model's history, oldest first."""
        past = cls()
        for entry in entries:
            if past.open_id and _id_in(entry) == past.open_id:
                past = past.timed(_stages_in(entry))  # whichever tells: it may be open no more
            if entry.kind == "training_started":
                past = past.start(entry.event_time_ms, _labels_in(entry), _id_in(entry))
                continue
            if entry.kind == "training_skipped":
                past = past.skip(entry.event_time_ms, _labels_in(entry))
                continue
            if entry.kind in CHAMPION_CHANGES:
                past = past.champion_changed()
            if past.open_ms is None:
                continue
            if entry.kind == "training_failed" and entry.evidence.get("interrupted"):
                past = past.interrupt()  # whichever was open
            elif _id_in(entry) != past.open_id:
                continue  # a training by hand, outside the server
            elif entry.kind == "refused":
                past = past.refuse()
            elif entry.kind in _GAVE_A_RESULT:
                past = past.finish()
            elif entry.kind in _SET_ASIDE:
                past = past.set_aside()
            elif entry.kind == "training_failed":
                past = past.fail(entry.event_time_ms)
        return past


def _id_in(entry: Entry) -> str:
    return str(entry.evidence.get("training_id", ""))


def _labels_in(entry: Entry) -> int:
    labels = entry.evidence.get("labels_total", 0)
    return labels if isinstance(labels, int) else 0


def _stages_in(entry: Entry) -> dict[str, float]:
    told = entry.evidence.get("stages_s")
    if not isinstance(told, Mapping):
        return {}
    return {str(k): float(v) for k, v in told.items() if isinstance(v, int | float) and v >= 0}
