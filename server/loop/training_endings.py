"""What becomes of a training that has ended: roll its version out, refuse it, page, or count a failure.

Whichever it is, it is one event with the evidence, in the history, and a change of the past that the
trigger goes by. Where somebody cancelled it, the answer tells whether that came in time. What a training
has published is not undone by ending it; but nothing of it is promoted by itself then, as no
automatic action undoes a person's. On the control loop's thread.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from trimtab.registry.errors import RegistryError

from ..errors import PreconditionError
from ..rollout.after_training import RolloutDecision, after_training
from .model_context import ACTOR, ModelContext
from .training_past import TrainingPast
from .training_request import Cancelled
from .training_run import TrainingResult
from .training_underway import Underway

_log = logging.getLogger(__name__)


class Rollout(Protocol):
    """What becomes of versions that passed their gates, as RolloutDesk does it."""

    @property
    def failed_bakes(self) -> tuple[int, int | None]:
        """How many promotions in a row were taken back, and when the last one was."""

    def begin(
        self, version: int, reason: str, evidence: Mapping[str, Any], expected_revision: int
    ) -> None: ...


class TrainingEndings:
    """One model's; see the module."""

    def __init__(self, context: ModelContext, rollout: Rollout) -> None:
        self._context = context
        self._rollout = rollout

    def __repr__(self) -> str:
        return f"TrainingEndings({self._context.name})"

    def conclude(
        self,
        training: Underway,
        result: TrainingResult,
        stages_s: Mapping[str, float],
        past: TrainingPast,
    ) -> tuple[TrainingPast, str]:
        """Does what follows from a result; the past with it, and how it counts (TrainingStats.ended).

        `stages_s`: seconds of each stage, as far as it came.
        """
        past = past.timed(stages_s)
        evidence: dict[str, Any] = {"training_id": training.id, **result.evidence()}
        if stages_s:
            evidence["stages_s"] = dict(stages_s)
        if training.cancels:
            return self._cancelled(training, result, evidence, past)
        if result.outcome == "failed" and result.quality:
            return self._data_broken(result, evidence, past)
        return self._ended(training, result, evidence, past)

    def retain(self) -> None:
        """Removes what `[registry] keep` does not keep; one that cannot be removed waits."""
        context = self._context
        if not (keep := context.config.registry.keep):
            return
        try:
            removed = context.directory.retain(
                keep, actor=ACTOR, reason=f"[registry] keep = {keep}: older than the newest {keep}"
            )
        except (RegistryError, OSError) as error:
            _log.warning("model '%s': old versions stay: %s", context.name, error)
            return
        if removed:
            context.tell_changes()

    def _ended(
        self,
        training: Underway,
        result: TrainingResult,
        evidence: Mapping[str, Any],
        past: TrainingPast,
    ) -> tuple[TrainingPast, str]:
        context = self._context
        decision = self._after(training, result)
        if decision.action == "fail":
            past = past.fail(context.now.ms)
            limit = context.policy.trigger.max_failures
            row = f"failure {past.failures} in a row, automatic ones stop after {limit}"
            reason = f"{decision.reason} ({row})"
            context.publish("training_failed", reason=reason, evidence=evidence, record=True)
            return past, decision.action
        context.tell_changes()
        if decision.action == "refuse":
            context.publish("refused", reason=decision.reason, evidence=evidence, record=True)
        elif decision.action == "hold":
            self._hold(decision.version, decision.reason, evidence)
        elif decision.action == "roll out" and training.cancels:
            by = training.cancels[0]
            reason = f"it was published as {by.actor} cancelled its training ({by.reason})"
            self._hold(decision.version, f"{reason}: promote it by hand if it is wanted", evidence)
        elif decision.action == "roll out":
            self._rollout.begin(
                decision.version,
                f"{training.reason}; {decision.reason}",
                evidence,
                decision.expected_revision,
            )
        return past.refuse() if decision.action == "refuse" else past.finish(), decision.action

    def _data_broken(
        self, result: TrainingResult, evidence: Mapping[str, Any], past: TrainingPast
    ) -> tuple[TrainingPast, str]:
        """Somebody must look at the data; the trainer did what it should."""
        found = [each for each in result.quality if each.get("severity") != "warning"]
        columns = sorted({str(each.get("column", "")) for each in found} - {""})
        self._context.publish(
            "data_broken",
            reason=f"{result.reason} (the next training waits for new labels and the cooldown)",
            evidence={**evidence, "columns": columns},
            record=True,
        )
        return past.set_aside(), "data broken"

    def _cancelled(
        self,
        training: Underway,
        result: TrainingResult,
        evidence: Mapping[str, Any],
        past: TrainingPast,
    ) -> tuple[TrainingPast, str]:
        """It ended after somebody wanted it to: for that, or by itself at the same moment."""
        first = training.cancels[0]
        version = self._published_by(training) if result.killed else None
        answer: Cancelled | Exception
        if result.killed and version is None:
            past, action = past.set_aside(), "cancel"
            self._context.publish(
                "training_cancelled",
                actor=first.actor,
                reason=first.reason,
                evidence={**evidence, "training": str(training)},
                record=True,
            )
            answer = Cancelled(training.id, f"training {training} was cancelled")
        else:
            if version is not None:  # it was killed before it could say so
                result = replace(result, outcome="published", version=version)
            past, action = self._ended(training, result, evidence, past)
            how = f"{result.outcome}: {result.reason}"
            if result.outcome == "published":
                how = f"it published version {result.version}, which is not rolled out by itself"
            answer = PreconditionError(
                f"training {training.id} of model '{self._context.name}' had ended by then: {how}"
            )
        for request in training.cancels:
            request.answer(answer)
        return past, action

    def _published_by(self, training: Underway) -> int | None:
        """The version that a killed training has left, whole: publishing is one rename."""
        try:
            entries = self._context.directory.history().entries
        except (RegistryError, OSError):
            return None
        for entry in reversed(entries):
            if entry.kind == "training_started":
                break
            if entry.kind == "published" and entry.evidence.get("training_id") == training.id:
                return entry.version
        return None

    def _after(self, training: Underway, result: TrainingResult) -> RolloutDecision:
        """What becomes of a result; one is never lost because the state cannot be read."""
        context = self._context
        now = training.state
        try:
            now = context.directory.state()
        except (RegistryError, OSError) as error:
            if result.outcome == "published" and result.version is not None:
                reason = f"version {result.version} passed its gates and was not promoted: {error}"
                return RolloutDecision("hold", reason, result.version)
        return after_training(result, context.policy.promotion, training.state, now)

    def _hold(self, version: int, reason: str, evidence: Mapping[str, Any]) -> None:
        self._context.publish("held", version, reason=reason, evidence=evidence, record=True)
