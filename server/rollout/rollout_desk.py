"""One model's way of a version to the champion's place, and what is watched once it is there.

    policy auto     ─────────────────────────────→ promoted ─→ bake ─→ pass: stays
    policy shadow   shadow ─ pass ───────────────→ promoted          └ fail: rolled back, blocked
    policy canary   step, step, … ─ pass ────────→ promoted
                      └ fail: refused, blocked

    none → shadow → none        none → canary → none        none → bake → none

With `approval` a version waits before all of that until somebody approves it (approval.py); what
another one is going through goes on meanwhile.

A shadow or a canary compares a new version with the champion, a bake the new champion with the one
before, whoever promoted it. One phase at a time: a newer one ends the one before. What is judged
and by what is verdict.py's; here is what gives it its snapshot and does what it says.

No automatic action undoes a person's: a phase remembers the revision that it began with, and ends
as that changes, or as the model is frozen or its version blocked; and what a person promoted is
rolled back by a person, unless `undo_manual`. Every start, step, verdict and end is an event and in
the history, from where the next server learns what was cut short, and begins it anew.

Everything runs on the control loop's thread, except `status` and `labels` (any). While somebody
settles the model, phases are judged as it settles and not in between, so that a replay decides the
same each time; otherwise once a second.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..config import PromotionConfig
from ..logs.label_log import Label
from ..loop.loop_clock import Reading
from ..loop.model_context import ModelContext
from .approval import Waiting
from .approval_desk import Answer, Answered, ApprovalDesk
from .lifecycle import Lifecycle
from .rollout_actions import RolloutActions
from .rollout_past import ENDED, STARTED, STEPPED, VERDICT, Begun, RolloutPast
from .rollout_phase import NotComparableError, RolloutPhase, percent
from .status import Phase, RolloutStatus
from .verdict import Limits, Verdict, judge

_log = logging.getLogger(__name__)

_SETTLER_S = 60.0  # who settled the model so long ago may settle it again
_RESUME_MS = 24 * 3600 * 1000  # a promotion that was never baked: older ones are let be


class RolloutDesk:
    """See the module."""

    def __init__(
        self,
        context: ModelContext,
        lifecycle: Lifecycle,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._actions = RolloutActions(context, lifecycle)
        self._approvals = ApprovalDesk(context, self._actions, self._approved, self._not_approved)
        self._monotonic = monotonic
        self._past = RolloutPast()
        self._resume = False  # the past has something that the last server did not finish
        self._open: RolloutPhase | None = None  # replaced on the control loop's thread, read on any
        self._settled_at: float | None = None
        self._status = RolloutStatus(context.name)  # replaced, never changed: read on any thread

    def __repr__(self) -> str:
        return f"RolloutDesk({self._context.name}, {self._open or 'nothing under way'})"

    # On any thread.

    def status(self) -> RolloutStatus:
        """As of the last look, once a second, but for the counts of rows."""
        status, under_way = self._status, self._open
        if under_way is not None and status.phase != "none":
            stats = under_way.mirror.stats
            status = replace(status, rows_compared=stats.compared, rows_dropped=stats.dropped)
        return self._approvals.shown_in(status)

    def labels(self, labels: Sequence[Label]) -> None:
        """Labels came and are in the log."""
        under_way = self._open
        if under_way is not None:
            under_way.comparison.label(labels)

    # On the control loop's thread.

    @property
    def failed_bakes(self) -> tuple[int, int | None]:
        """How many promotions in a row were taken back, and when the last one was."""
        return self._past.failed_bakes, self._past.last_failed_ms

    @property
    def idle(self) -> bool:
        return self._open is None

    def open(self) -> None:
        """Takes up the past; what was cut short is begun anew as the champion answers."""
        self._past = RolloutPast.of(self._context.directory.history().entries)
        self._approvals.open(self._past)
        self._resume = True

    def close(self) -> None:
        """The server stops: the phase stays open in the history, for the next one to begin anew."""
        if self._open is not None:
            self._let_go(self._open)

    def begin(
        self, version: int, reason: str, evidence: Mapping[str, Any], expected_revision: int
    ) -> None:
        """A version passed its gates: what the policy says. `reason`: why it was trained."""
        self._approvals.overtake(version)
        if self._config.approval:
            self._approvals.want(version, reason, evidence, expected_revision)
            return
        if self._open is not None:
            self._end(self._open, f"version {version} came, which passed its gates")
        self._go_on(version, reason, evidence, expected_revision)

    def answer(self, answer: Answer, future: "Future[Answered]") -> None:
        """Somebody approves or rejects the version that waits; see ApprovalDesk."""
        self._approvals.answer(answer, future)

    def _go_on(
        self, version: int, reason: str, evidence: Mapping[str, Any], expected_revision: int
    ) -> None:
        """What the policy says of a version that nothing stands in the way of."""
        policy = self._config.policy
        if policy == "auto":
            self._actions.promote(version, reason, evidence, expected_revision)
            return
        if policy == "manual":  # it was another one as the version began to wait
            self._actions.hold(version, f"{reason}; the policy is manual", evidence)
            return
        champion = self._state().champion
        if champion is None:
            self._actions.hold(
                version, f"version {version} has no champion to be compared with", evidence
            )
            return
        phase: Phase = "canary" if policy == "canary" else "shadow"
        begun = Begun(phase, version, champion, expected_revision, reason, automatic=True)
        self._start(begun, evidence)

    def champion_changed(self) -> None:
        """Another version answers, or none, or the first one since the server started."""
        context = self._context
        seen = self._past.change.sequence if self._past.change is not None else 0
        entries = context.directory.history_since(seen)
        change = RolloutPast.of(entries).change or self._past.change
        came = change is not None and change.sequence > seen
        if came and change is not None:
            self._past = replace(self._past.after(change))
        if (under_way := self._open) is not None and (why := self._interfered(under_way)):
            self._end(under_way, why)
        self._approvals.look()
        watch = context.observed.champion
        if self._open is not None or watch is None:
            return
        try:
            state = self._state()
        except (RegistryError, OSError):
            return
        if watch.version != state.champion:
            return  # another one answers in its place
        resume, self._resume = self._resume, False
        if resume:
            self._approvals.take_up(state)
            if self._open is not None or self._state().revision != state.revision:
                return  # what follows from that comes first
        begun = self._past.begun
        if resume and begun is not None:
            self._past = replace(self._past, begun=None)
            if self._take_up(begun, state):
                return
        young = change is not None and context.wall() - change.time_ms < _RESUME_MS
        if change is not None and not self._past.baked and (came or young):
            self._bake(change.version, change.reason, state, change.evidence)

    def settling(self, now: Reading) -> str:
        """Somebody waits for the model to settle: what is under way, else judge."""
        self._settled_at = self._monotonic()
        self._approvals.look()
        if not self.hurry():
            return self.busy() or "rows were compared"
        return "a step of a roll-out" if self._look(now) else ""

    def hurry(self) -> bool:
        """Has what waits compared at once; True: nothing does."""
        return self._open is None or self._open.mirror.hurry()

    def busy(self) -> str:
        """What somebody who settles waits for; empty: nothing."""
        if self._open is None or not (waiting := self._open.mirror.waiting):
            return ""
        return f"{waiting:,} rows wait to be compared"

    def tick(self, now: Reading) -> None:
        """Once a second."""
        self._approvals.look()
        settled = self._settled_at
        if settled is None or self._monotonic() - settled > _SETTLER_S:
            self._look(now)
        elif (under_way := self._open) is not None and (why := self._interfered(under_way)):
            self._end(under_way, why)

    # Looking.

    @property
    def _config(self) -> PromotionConfig:
        return self._context.policy.promotion

    def _state(self) -> State:
        return self._context.directory.state()

    def _look(self, now: Reading) -> bool:
        """Judges the phase under way; True: something was done about it."""
        under_way = self._open
        if under_way is None:
            return False
        if why := self._interfered(under_way):
            self._end(under_way, why)
            return True
        under_way.seen(now.ms)
        under_way.figures = figures = under_way.comparison.figures()
        limits = self._limits(under_way, now.ms)
        verdict = judge(figures, self._config, limits)
        self._show(under_way, limits, verdict)
        if under_way.name != "canary" and figures.rows >= limits.rows and verdict.needs_no_rows:
            self._context.observed.mirror = None  # enough: only labels may still come
        if not verdict.outcome:
            return False
        self._conclude(under_way, verdict)
        return True

    def _interfered(self, under_way: RolloutPhase) -> str:
        """What somebody else did that ends the phase; empty: nothing."""
        if self._context.observed.champion is None:
            return "no version answers"
        try:
            state = self._state()
        except (RegistryError, OSError):
            return ""  # and nothing of ours can change it either
        if state.revision != under_way.begun.revision:
            return (
                f"the champion was changed by somebody else (revision {under_way.begun.revision} → "
                f"{state.revision}, now version {state.champion})"
            )
        if state.frozen:
            return f"the model was frozen: {state.frozen_reason or 'no reason was given'}"
        if under_way.begun.version in state.blocked:
            return f"the version was blocked: {state.blocked[under_way.begun.version]}"
        return ""

    def _limits(self, phase: RolloutPhase, now_ms: int) -> Limits:
        any_labels = self._context.labels.total_rows > 0
        return phase.limits(self._config, now_ms, any_labels=any_labels)

    def _show(self, phase: RolloutPhase, limits: Limits, verdict: Verdict | None = None) -> None:
        self._status = phase.status(self._context.name, self._config, limits, verdict)

    # Starting and ending.

    def _take_up(self, begun: Begun, state: State) -> bool:
        """Begins a phase anew that the last server left open, if all is as it was."""
        if state.frozen or state.revision != begun.revision or begun.version in state.blocked:
            reason = (
                f"the {begun.phase} of version {begun.version} was cut short as the server ended, "
                "and the champion or what was decided of it has changed since"
            )
            self._tell(ENDED, begun, reason)
            return False
        if begun.phase == "bake" and not self._config.bake:
            self._tell(ENDED, begun, "bakes were switched off while the server did not run")
            return True
        self._start(begun, {}, "; begun anew, as the server ended during it")
        return True

    def _bake(self, version: int, why: str, state: State, evidence: Mapping[str, Any]) -> None:
        self._past = replace(self._past, baked=True)
        if not self._config.bake or version != state.champion or state.previous is None:
            return
        if state.frozen:
            return  # nothing may be done about it by itself, whatever it shows
        automatic = evidence.get("automatic") is True
        self._start(Begun("bake", version, state.previous, state.revision, why, automatic), {})

    def _start(self, begun: Begun, evidence: Mapping[str, Any], also: str = "") -> None:
        """Holds both versions and has them compared from now on."""
        context, config = self._context, self._config
        try:
            phase = RolloutPhase.begin(
                begun,
                evidence,
                lambda version: self._lifecycle.hold(context.name, version),
                config,
                context.now.ms,
                on_empty=lambda: context.post(_nothing),
            )
        except Exception as error:  # noqa: BLE001  an edge: whatever loading raises
            self._not_started(begun, evidence, error)
            return
        limits = self._limits(phase, context.now.ms)
        self._tell(
            STARTED,
            begun,
            phase.announcement(config, limits) + also,
            rows=limits.rows,
            deadline_ms=phase.deadline_ms(config),
            share=phase.share(config),
        )
        if phase.name == "canary" and not self._split(phase):
            return
        self._open = phase
        phase.mirror.start()
        context.observed.mirror = phase.mirror
        self._show(phase, limits)

    def _not_started(self, begun: Begun, evidence: Mapping[str, Any], error: Exception) -> None:
        name, version = self._context.name, begun.version
        if not isinstance(error, NotComparableError):
            _log.warning("model '%s': no %s of version %d: %s", name, begun.phase, version, error)
        reason = f"version {version} cannot be compared with version {begun.against}: {error}"
        if begun.phase == "bake":
            self._tell(ENDED, begun, f"{reason}; it is champion without a bake")
        else:
            self._actions.hold(version, reason, evidence)

    def _split(self, under_way: RolloutPhase) -> bool:
        """Lets the canary have its share."""
        try:
            self._lifecycle.split(
                self._context.name, under_way.begun.version, under_way.share(self._config)
            )
        except Exception as error:  # noqa: BLE001  an edge
            self._let_go(under_way)
            reason = (
                f"version {under_way.begun.version} cannot have a share of the requests: {error}"
            )
            self._end_entry(under_way, reason)
            self._actions.hold(under_way.begun.version, reason, under_way.evidence)
            return False
        return True

    def _let_go(self, under_way: RolloutPhase) -> None:
        """No more rows, no more share, no version held."""
        self._context.observed.mirror = None
        self._open = None
        if under_way.name == "canary":
            try:
                self._lifecycle.split(self._context.name, None)
            except Exception as error:  # noqa: BLE001  an edge: the model may be gone
                _log.info("model '%s': %s", self._context.name, error)
        under_way.end()
        self._status = replace(self._status, phase="none", share=0.0)

    def _end(self, under_way: RolloutPhase, why: str) -> None:
        """The phase ends without a verdict."""
        under_way.figures = under_way.comparison.figures()
        self._show(under_way, self._limits(under_way, self._context.now.ms))
        self._let_go(under_way)
        reason = f"{under_way} ends without a verdict: {why}"
        self._status = replace(self._status, reason=reason)
        self._end_entry(under_way, reason)

    def _end_entry(self, under_way: RolloutPhase, reason: str) -> None:
        self._tell(ENDED, under_way.begun, reason, **self._status.evidence())

    # What follows from an answer.

    def _approved(self, waiting: Waiting, why: str) -> str:
        """Goes on with a version; a sentence on how."""
        version = waiting.version
        if self._open is not None:
            self._end(self._open, f"version {version} was approved")
        self._actions.held = None
        self._status = RolloutStatus(self._context.name, version=version, against=waiting.against)
        self._go_on(version, f"{waiting.why}; {why}", waiting.evidence, waiting.revision)
        under_way, held = self._open, self._actions.held
        if under_way is not None and under_way.begun.version == version:
            limits = self._limits(under_way, self._context.now.ms)
            return under_way.announcement(self._config, limits)
        if held is not None:
            self._status = replace(self._status, reason=held[1])
            return f"version {version} was approved and is held: {held[1]}"
        return f"version {version} is champion"

    def _not_approved(self, waiting: Waiting, reason: str) -> None:
        if self._open is None:
            name = self._context.name
            self._status = RolloutStatus(
                name, version=waiting.version, against=waiting.against, reason=reason
            )

    # What follows from a verdict.

    def _conclude(self, under_way: RolloutPhase, verdict: Verdict) -> None:
        config, version = self._config, under_way.begun.version
        more_steps = under_way.has_more_steps(config)
        if verdict.outcome == "pass" and more_steps:
            self._next_step(under_way, verdict)
            return
        self._let_go(under_way)
        reason = f"{under_way}: {verdict.outcome}: {verdict.reason}"
        facts = {**self._status.evidence(), **verdict.evidence()}
        self._tell(VERDICT, under_way.begun, reason, **facts)
        acts = verdict.outcome == "pass" or (
            verdict.outcome == "inconclusive" and config.on_inconclusive == "promote"
        )
        fails = verdict.outcome == "fail" or (
            verdict.outcome == "inconclusive" and config.on_inconclusive == "rollback"
        )
        phase = {"phase": under_way.name, "against": under_way.begun.against}
        evidence = {**under_way.evidence, **phase, **facts}
        if under_way.name == "bake":
            if fails:
                self._undo(under_way, verdict, reason, evidence)
        elif acts:
            why = f"{under_way.begun.why}; {reason}"
            self._actions.promote(version, why, evidence, under_way.begun.revision)
        elif fails:
            if verdict.outcome == "fail":
                self._actions.block(version, reason, evidence)
            self._actions.refuse(version, reason, evidence)
        else:
            self._actions.hold(version, f"{reason}; promote it by hand if it is wanted", evidence)
        self._context.tell_changes()

    def _next_step(self, under_way: RolloutPhase, verdict: Verdict) -> None:
        before = under_way.share(self._config)
        under_way.next_step(self._context.now.ms)
        share = under_way.share(self._config)
        reason = (
            f"the canary of version {under_way.begun.version} answers {percent(share)} of the "
            f"requests from now on; with {percent(before)}: {verdict.reason}"
        )
        self._tell(STEPPED, under_way.begun, reason, share=share, **self._status.evidence())
        if self._split(under_way):
            self._show(under_way, self._limits(under_way, self._context.now.ms))

    def _undo(
        self, under_way: RolloutPhase, verdict: Verdict, reason: str, evidence: Mapping[str, Any]
    ) -> None:
        """Back to the champion before, if nobody decided otherwise."""
        version = under_way.begun.version
        if not under_way.begun.automatic and not self._config.undo_manual:
            said = f"{reason}; a person promoted it, so a person rolls it back (trimtab rollback)"
            self._actions.hold(version, said, evidence)
            return
        if verdict.outcome == "fail":
            self._actions.block(version, reason, evidence)
        self._actions.roll_back(version, reason, evidence, under_way.begun.revision)

    def _tell(self, kind: str, begun: Begun, reason: str, **more: Any) -> None:
        """An event of a phase; the history's entry is what `RolloutPast` reads."""
        self._context.publish(
            kind,
            begun.version,
            reason=reason,
            evidence={
                "phase": begun.phase,
                "against": begun.against,
                "revision": begun.revision,
                "automatic": begun.automatic,
                "why": begun.why,
                **more,
            },
            record=True,
        )
        if kind == VERDICT:
            self._past = self._past.judged(
                begun.phase, str(more["verdict"]), self._context.now.ms, automatic=begun.automatic
            )


def _nothing() -> None:
    """Wakes the control loop, which then looks at who waits."""
