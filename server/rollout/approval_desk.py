"""Asks for somebody's approval of a version, takes the answer, and notices when none is needed more.

What follows from state, clock and answer is approval.py's. The wait is in the history from its first
moment, so the next server goes on with it; an approval is recorded before anything follows from it, so
one that a crash kept from its consequences is carried out by the next server.

On the control loop's thread, except `shown_in` (any).
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..errors import PreconditionError, TrimtabError, UnavailableError
from ..loop.model_context import ModelContext
from .approval import Waiting, hindrance, outlook, span
from .rollout_actions import RolloutActions
from .rollout_past import APPROVAL_WANTED, APPROVED, ENDED, RolloutPast
from .status import RolloutStatus

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's, or another system's."""

    version: int
    approve: bool  # False: reject
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer led to; `text` is a sentence."""

    state: State
    text: str


class ApprovalDesk:
    """One model's; see the module."""

    def __init__(
        self,
        context: ModelContext,
        actions: RolloutActions,
        go_on: Callable[[Waiting, str], str],
        on_end: Callable[[Waiting, str], None],
    ) -> None:
        """`go_on(waiting, why)` does what the policy says and tells what that was; `on_end` is told
        of a wait that ended otherwise, and why."""
        self._context = context
        self._actions = actions
        self._go_on = go_on
        self._on_end = on_end
        self._waiting: Waiting | None = None  # replaced, never changed
        self._approved: Waiting | None = None  # by the last server, which ended before it went on

    def __repr__(self) -> str:
        return f"ApprovalDesk({self._context.name}, {self._waiting or 'nothing waits'})"

    def shown_in(self, status: RolloutStatus) -> RolloutStatus:
        """A status with the version that waits: as the phase, if there is no other. On any thread."""
        if (waiting := self._waiting) is None:
            return status
        said = f"version {waiting.version} waits for approval, {waiting.left(self._context.wall())}"
        if status.phase != "none":
            reason = f"{status.reason}; {said}"
            return replace(status, reason=reason, awaiting_approval=waiting.version)
        return RolloutStatus(
            status.model,
            phase="approval",
            version=waiting.version,
            against=waiting.against,
            since_ms=waiting.since_ms,
            deadline_ms=waiting.deadline_ms,
            reason=f"{said}: {waiting.why}",
            awaiting_approval=waiting.version,
        )

    def open(self, past: RolloutPast) -> None:
        """Takes up the past."""
        self._waiting, self._approved = past.waiting, past.approved

    def want(self, version: int, why: str, evidence: Mapping[str, Any], revision: int) -> None:
        """Asks for approval of a version that passed its gates."""
        context = self._context
        try:
            against = context.directory.state().champion or 0
        except (RegistryError, OSError) as error:
            self._actions.hold(version, f"nobody can be asked for approval: {error}", evidence)
            return
        since_ms, given_s = context.wall(), context.policy.promotion.approval_s
        deadline_ms = since_ms + round(given_s * 1000)
        waiting = Waiting(version, against, revision, why, since_ms, deadline_ms, evidence)
        context.publish(
            APPROVAL_WANTED,
            version,
            reason=f"version {version} waits for approval, for {span(given_s)} at most: {why}",
            evidence=waiting.recorded(),
            record=True,
        )
        self._waiting = waiting

    def overtake(self, version: int) -> None:
        """A newer version came: who waits, waits no more."""
        if self._waiting is not None:
            self._end(self._waiting, f"version {version} came, which passed its gates")

    def take_up(self, state: State) -> None:
        """Carries out an approval that the last server's end cut short, if all is as it was."""
        approved, self._approved = self._approved, None
        if approved is None:
            return
        frozen = f"the model is frozen: {state.frozen_reason}" if state.frozen else ""
        is_there = self._is_there(approved)
        why = frozen or outlook(approved, state, approved.since_ms, is_there=is_there).reason
        if why:
            self._end(approved, f"it was approved as the server ended, and since then: {why}")
        else:
            self._go_on(approved, "approved before the server was started anew")

    def look(self) -> None:
        """Ends a wait that is out of time, or overtaken."""
        if (waiting := self._waiting) is None:
            return
        try:
            state = self._context.directory.state()
        except (RegistryError, OSError):
            return  # and nothing of ours can change it either
        found = outlook(waiting, state, self._context.wall(), is_there=self._is_there(waiting))
        if found.action == "refuse":
            self._waiting = None
            evidence = {**waiting.evidence, **waiting.marks}
            self._actions.refuse(waiting.version, found.reason, evidence)
            self._on_end(waiting, found.reason)
        elif found.action == "end":
            self._end(waiting, found.reason)

    def answer(self, answer: Answer, future: "Future[Answered]") -> None:
        """Approves or rejects. The future's: PreconditionError, UnavailableError (nothing changed)."""
        try:
            self.look()
            done = self._approve(answer) if answer.approve else self._reject(answer)
        except TrimtabError as error:
            future.set_exception(error)
        except (RegistryError, OSError) as error:
            future.set_exception(UnavailableError(f"the answer cannot be recorded: {error}"))
        except Exception as error:  # noqa: BLE001  an edge: who asked must not wait for ever
            _log.exception("model '%s': version %d", self._context.name, answer.version)
            future.set_exception(error)
        else:
            future.set_result(done)

    def _approve(self, answer: Answer) -> Answered:
        waiting = self._answerable(answer)
        context = self._context
        context.directory.record(
            APPROVED,
            actor=answer.actor,
            reason=answer.reason,
            version=waiting.version,
            evidence=self._waited(waiting),
            event_time_ms=context.now.ms,
        )
        self._waiting = None
        context.tell_changes()
        text = self._go_on(waiting, f"approved by {answer.actor}: {answer.reason}")
        return Answered(context.directory.state(), text)

    def _reject(self, answer: Answer) -> Answered:
        waiting = self._answerable(answer)
        context, reason = self._context, f"rejected by {answer.actor}: {answer.reason}"
        evidence = {**waiting.evidence, **self._waited(waiting)}
        why: Any = {"actor": answer.actor, "reason": reason, "event_time_ms": context.now.ms}
        context.directory.block(waiting.version, evidence=waiting.marks, **why)
        context.directory.record("refused", version=waiting.version, evidence=evidence, **why)
        self._waiting = None
        context.tell_changes()
        self._on_end(waiting, reason)
        text = f"version {waiting.version} was refused and is blocked"
        return Answered(context.directory.state(), text)

    def _answerable(self, answer: Answer) -> Waiting:
        """What waits, if it is what was answered. Raises PreconditionError."""
        context, waiting = self._context, self._waiting
        state = context.directory.state()
        why = hindrance(waiting, answer.version, state, context.name, approve=answer.approve)
        if why or waiting is None:
            raise PreconditionError(why)
        return waiting

    def _waited(self, waiting: Waiting) -> dict[str, Any]:
        return {**waiting.marks, "waited_s": (self._context.wall() - waiting.since_ms) // 1000}

    def _is_there(self, waiting: Waiting) -> bool:
        return self._context.directory.version_path(waiting.version).is_dir()

    def _end(self, waiting: Waiting, why: str) -> None:
        """Nobody is asked any more, and nothing follows."""
        self._waiting = None
        reason = f"{waiting} ends: {why}"
        self._context.publish(
            ENDED, waiting.version, reason=reason, evidence=waiting.marks, record=True
        )
        self._on_end(waiting, reason)
