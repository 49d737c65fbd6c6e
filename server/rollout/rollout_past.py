"""What the history says of a model's roll-outs, as far as a server that starts needs to know. Pure.

An immutable value; `after` takes the entries one by one. A phase that was begun and neither judged
nor ended was cut short by the end of a server. Bakes that failed in a row are counted, so that
trainings are held back across restarts too. Who waited for approval waits on; what was approved, and
nothing followed from it, is still to be carried out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trimtab.registry.history import CHAMPION_CHANGES

from .approval import Waiting

STARTED, STEPPED = "rollout_started", "rollout_step"
VERDICT, ENDED = "rollout_verdict", "rollout_ended"
APPROVAL_WANTED, APPROVED = "approval_wanted", "approved"

_FOLLOWS_APPROVAL = (*CHAMPION_CHANGES, STARTED, ENDED, "held", "refused")


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
    waiting: Waiting | None = None  # for approval
    approved: Waiting | None = None  # and nothing has followed

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "RolloutPast":
        """From a model's history, oldest first."""
        past = cls()
        for entry in entries:
            past = past.after(entry)
        return past

    def after(self, entry: Entry) -> "RolloutPast":
        if entry.kind == APPROVAL_WANTED:
            waiting = Waiting.read(entry.version, entry.evidence)
            return replace(self, waiting=waiting, approved=None)
        if entry.kind == APPROVED:
            waited = self.waiting if _is(self.waiting, entry.version) else None
            return replace(self, waiting=None, approved=waited)
        return self._after_answer(entry)._after_phase(entry)

    def _after_answer(self, entry: Entry) -> "RolloutPast":
        """Whatever is decided of a version that waited, or was approved, is what followed."""
        past, kind, version = self, entry.kind, entry.version
        of_wait = entry.evidence.get("phase") == "approval"
        if _is(past.waiting, version) and of_wait and kind in (ENDED, "refused"):
            past = replace(past, waiting=None)
        if _is(past.approved, version) and kind in _FOLLOWS_APPROVAL:
            past = replace(past, approved=None)
        return past

    def _after_phase(self, entry: Entry) -> "RolloutPast":
        if entry.kind in CHAMPION_CHANGES:
            first = self.change is None
            return replace(self, change=entry, baked=first or entry.kind != "promoted")
        if entry.kind == STARTED:
            begun = _begun(entry)
            baked = self.baked or (begun is not None and begun.phase == "bake")
            return replace(self, begun=begun, baked=baked)
        if entry.kind == ENDED and entry.evidence.get("phase") != "approval":
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


def _is(waiting: Waiting | None, version: int) -> bool:
    return waiting is not None and waiting.version == version


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
