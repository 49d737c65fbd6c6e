"""What becomes of a training's result: roll it out, hold it for a person, refuse it, or a failure.

The trainer has run the gates; this decides what the server does about them. A version is rolled
out by itself only if the policy says so, the model is not frozen, and nobody changed the champion
while it was being trained: it was compared with that champion, and no automatic action undoes a
person's. Pure.
"""

from dataclasses import dataclass
from typing import Literal

from trimtab.registry.state import State

from ..config import PromotionConfig
from ..loop.training_run import TrainingResult

Action = Literal["roll out", "hold", "refuse", "fail", "none"]


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """`expected_revision` is what a change of champion must still find."""

    action: Action
    reason: str
    version: int = 0
    expected_revision: int = 0


def after_training(
    result: TrainingResult, policy: PromotionConfig, at_start: State, now: State
) -> RolloutDecision:
    """The decision, from the registry's state as the training began and as it is now."""
    if result.outcome == "failed":
        return RolloutDecision("fail", result.reason or "the trainer gave no reason")
    if result.outcome == "refused":
        return RolloutDecision("refuse", result.reason or "a gate refused the candidate")
    version = result.version
    if version is None:
        return RolloutDecision("fail", "the trainer said published and named no version")
    if now.champion == version:
        return RolloutDecision("none", f"version {version} is the champion already", version)
    if now.revision != at_start.revision:
        return RolloutDecision(
            "hold",
            f"version {version} passed its gates against version {at_start.champion}, but the "
            f"champion was changed meanwhile (revision {at_start.revision} → {now.revision}, now "
            f"version {now.champion}): promote it by hand if it is still wanted",
            version,
        )
    passed = f"version {version} passed its gates"
    if policy.policy == "manual":
        return RolloutDecision("hold", f"{passed}; the policy is manual", version)
    if now.frozen:
        why = now.frozen_reason or "no reason was given"
        return RolloutDecision("hold", f"{passed}; the model is frozen: {why}", version)
    if version in now.blocked:
        why = now.blocked[version] or "no reason was given"
        return RolloutDecision("hold", f"{passed}; it is blocked: {why}", version)
    return RolloutDecision("roll out", result.reason or passed, version, now.revision)
