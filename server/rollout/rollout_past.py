"""What the history says of a model's roll-outs, as far as a server that starts needs to know. Pure.

An immutable value; `after` takes the entries one by one. A phase that was begun and neither judged
nor ended was cut short by the end of a server. Bakes that failed in a row are counted, so that
trainings are held back across restarts too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trimtab.registry.history import CHAMPION_CHANGES

STARTED, STEPPED = "rollout_started", "rollout_step"
VERDICT, ENDED = "rollout_verdict", "rollout_ended"


class Entry(Protocol):
    """A line of the history."""

    @property
    def sequence(self) -> int: ...
    @property
    def time_ms(self) -> int: ...
    @property
    def event_time_ms(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Begun:
    """A phase as its first entry tells of it."""

    phase: str
    version: int
    against: int
    revision: int
    why: str  # the version was promoted, or is to be
    automatic: bool  # no person has asked for it


@dataclass(frozen=True, slots=True)
class RolloutPast:
    """See the module."""

    change: Entry | None = None  # the latest change of champion
    baked: bool = False  # a bake was begun since, or there was nothing to compare with
    begun: Begun | None = None  # a phase that nothing has ended
    failed_bakes: int = 0  # in a row
    last_failed_ms: int | None = None  # by the loop's clock

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "RolloutPast":
        """From a model's history, oldest first."""
        past = cls()
        for entry in entries:
            past = past.after(entry)
        return past

    def after(self, entry: Entry) -> "RolloutPast":
        if entry.kind in CHAMPION_CHANGES:
            first = self.change is None
            return replace(self, change=entry, baked=first or entry.kind != "promoted")
        if entry.kind == STARTED:
            begun = _begun(entry)
            baked = self.baked or (begun is not None and begun.phase == "bake")
            return replace(self, begun=begun, baked=baked)
        if entry.kind == ENDED:
            return replace(self, begun=None)
        if entry.kind == VERDICT:
            phase, verdict = (str(entry.evidence.get(key)) for key in ("phase", "verdict"))
            automatic = entry.evidence.get("automatic") is True
            return self.judged(phase, verdict, entry.event_time_ms, automatic=automatic)
        return self

    def judged(self, phase: str, verdict: str, now_ms: int, *, automatic: bool) -> "RolloutPast":
        """A phase ended with a verdict; `automatic`: no person had asked for the promotion."""
        past = replace(self, begun=None)
        if phase != "bake" or not automatic:
            return past
        if verdict == "fail":
            return replace(past, failed_bakes=self.failed_bakes + 1, last_failed_ms=now_ms)
        return replace(past, failed_bakes=0, last_failed_ms=None)


def _begun(entry: Entry) -> Begun | None:
    """None: not as this Trimtab writes it."""
    evidence = entry.evidence
    phase, why = evidence.get("phase"), evidence.get("why")
    against, revision = evidence.get("against"), evidence.get("revision")
    if not (isinstance(against, int) and isinstance(revision, int)):
        return None
    if phase not in ("shadow", "canary", "bake"):
        return None
    automatic = evidence.get("automatic") is True
    return Begun(phase, entry.version, against, revision, str(why or ""), automatic)
