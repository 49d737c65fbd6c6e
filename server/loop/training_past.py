"""What trainings a model had, as far as the trigger needs to know; read from the history at start.

An immutable value with one method per thing that can happen. It is rebuilt from history.jsonl, so
cooldown, budget, back-off and the circuit breaker hold across restarts of the server. A training
that was cut short because the server stopped is no failure and counts for the budget alone.

People train by hand beside the server, and that is in the history too. Only what carries the id of
the training that the server started ends it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

_KEPT_STARTS = 1000  # more than any budget per day
_GAVE_A_RESULT = ("published", "promoted", "held", "refused")


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
    failures: int = 0
    last_failure_ms: int | None = None
    open_ms: int | None = None  # start of the one that runs
    open_labels: int = 0
    open_id: str = ""

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

    def fail(self, now_ms: int) -> "TrainingPast":
        return replace(self, failures=self.failures + 1, last_failure_ms=now_ms, open_ms=None)

    def interrupt(self) -> "TrainingPast":
        """The server stopped, or was killed, while it ran."""
        return replace(self, open_ms=None)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "TrainingPast":
        """From a model's history, oldest first."""
        past = cls()
        for entry in entries:
            if entry.kind == "training_started":
                labels = entry.evidence.get("labels_total", 0)
                labels = labels if isinstance(labels, int) else 0
                past = past.start(entry.event_time_ms, labels, _id_in(entry))
            elif past.open_ms is None:
                continue
            elif entry.kind == "training_failed" and entry.evidence.get("interrupted"):
                past = past.interrupt()  # whichever was open
            elif _id_in(entry) != past.open_id:
                continue  # a training by hand, outside the server
            elif entry.kind in _GAVE_A_RESULT:
                past = past.finish()
            elif entry.kind == "training_failed":
                past = past.fail(entry.event_time_ms)
        return past


def _id_in(entry: Entry) -> str:
    return str(entry.evidence.get("training_id", ""))
