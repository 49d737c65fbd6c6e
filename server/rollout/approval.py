"""A version that passed its gates and waits until somebody approves it: how the wait ends. Pure.

    wanted → approved      goes on as the policy says
           → rejected      refused and blocked
           → out of time   refused, not blocked
           → overtaken     a newer version came, the champion was changed, the version was blocked or
                           removed: it waits no more; a person may still promote it

Nothing of it goes by the loop's clock: who is asked lives by the wall's, and has as long to answer
whatever times the requests carry. A frozen model keeps its version waiting: it can be rejected, and
approved once it is frozen no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.registry.state import State

_MARKS = ("phase", "against", "revision", "why", "since_ms", "deadline_ms")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits; times are the wall clock's."""

    version: int
    against: int  # the champion that its gates held it against; 0: none
    revision: int  # that a change of champion must still find
    why: str  # it was trained, and passed
    since_ms: int
    deadline_ms: int
    evidence: Mapping[str, Any]  # of the training: gates, metrics

    def __str__(self) -> str:
        return f"the wait for approval of version {self.version}"

    @property
    def marks(self) -> dict[str, Any]:
        """What an entry of the history tells of the wait."""
        return {"phase": "approval", "against": self.against, "revision": self.revision}

    def recorded(self) -> dict[str, Any]:
        """The evidence of `approval_wanted`, of which `read` makes the same again."""
        own = {"why": self.why, "since_ms": self.since_ms, "deadline_ms": self.deadline_ms}
        return {**self.evidence, **self.marks, **own}

    @classmethod
    def read(cls, version: int, recorded: Mapping[str, Any]) -> "Waiting | None":
        """None: not as this Trimtab writes it."""
        numbers = [recorded.get(n) for n in ("against", "revision", "since_ms", "deadline_ms")]
        if not all(isinstance(number, int) for number in numbers):
            return None
        against, revision, since_ms, deadline_ms = (int(number or 0) for number in numbers)
        evidence = {name: value for name, value in recorded.items() if name not in _MARKS}
        why = str(recorded.get("why", ""))
        return cls(version, against, revision, why, since_ms, deadline_ms, evidence)

    def left(self, now_ms: int) -> str:
        """As `3 h left`."""
        return f"{span((self.deadline_ms - now_ms) / 1000)} left"


@dataclass(frozen=True, slots=True)
class Outlook:
    """Whether the wait goes on; `reason` is empty if it does."""

    action: Literal["wait", "end", "refuse"] = "wait"
    reason: str = ""


def outlook(waiting: Waiting, state: State, now_ms: int, *, is_there: bool) -> Outlook:
    """How a wait stands. `is_there`: the version has not been removed."""
    version = waiting.version
    if state.champion == version:
        return Outlook("end", f"version {version} was made champion by hand")
    if version in state.blocked:
        return Outlook("end", f"the version was blocked: {state.blocked[version]}")
    if not is_there:
        return Outlook("end", "the version was removed")
    if state.revision != waiting.revision:
        return Outlook(
            "end",
            f"its gates held it against version {waiting.against or 'none'}, and the champion was "
            f"changed meanwhile (revision {waiting.revision} → {state.revision}, now version "
            f"{state.champion}): promote it by hand if it is still wanted",
        )
    if now_ms >= waiting.deadline_ms:
        given = span((waiting.deadline_ms - waiting.since_ms) / 1000)
        return Outlook("refuse", f"nobody approved version {version} within {given}")
    return Outlook()


def hindrance(
    waiting: Waiting | None, version: int, state: State, model: str, *, approve: bool
) -> str:
    """Why a version of a model cannot be approved or rejected now; empty: it can."""
    if waiting is None or waiting.version != version:
        who = "none does" if waiting is None else f"version {waiting.version} does"
        return f"version {version} of model '{model}' does not wait for approval: {who}"
    if approve and state.frozen:
        why = state.frozen_reason or "no reason was given"
        return (
            f"version {version} of model '{model}' cannot be approved while the model is frozen "
            f"({why}); unfreeze it before"
        )
    return ""


def span(seconds: float) -> str:
    """A length of time in its largest unit, rounded down: 7 d, 3 h, 20 min, 5 s."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
