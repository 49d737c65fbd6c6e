"""What a roll-out does to the registry, in its own name, and what is said where that cannot be.

Every change is automatic, so a frozen model or a blocked version refuses it, and by compare-and-swap
on the revision that was judged, so it never comes on top of somebody else's. What does not succeed
leaves the version held for a person, with the reason. On the control loop's thread.
"""

import logging
from collections.abc import Mapping
from typing import Any

from trimtab.registry.errors import RegistryError

from ..loop.model_context import ACTOR, ModelContext
from .lifecycle import Lifecycle

_log = logging.getLogger(__name__)

Evidence = Mapping[str, Any]


class RolloutActions:
    """One model's."""

    def __init__(self, context: ModelContext, lifecycle: Lifecycle) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self.held: tuple[int, str] | None = None  # the version that was held last, and why

    def promote(
        self, version: int, reason: str, evidence: Evidence, expected_revision: int
    ) -> None:
        """Makes the version champion, or holds it."""
        context = self._context
        try:
            self._lifecycle.promote(
                context.name,
                version,
                actor=ACTOR,
                reason=reason,
                evidence=evidence,
                expected_revision=expected_revision,
                event_time_ms=context.now.ms,
                automatic=True,
            )
        except Exception as error:  # noqa: BLE001  an edge
            _log.exception("model '%s': version %d", context.name, version)
            self.hold(version, f"version {version} could not be promoted: {error}", evidence)
        context.tell_changes()

    def roll_back(
        self, version: int, reason: str, evidence: Evidence, expected_revision: int
    ) -> None:
        """From the version to the champion before it."""
        context = self._context
        try:
            self._lifecycle.rollback(
                context.name,
                actor=ACTOR,
                reason=reason,
                evidence=evidence,
                expected_revision=expected_revision,
                event_time_ms=context.now.ms,
                automatic=True,
            )
        except Exception as error:  # noqa: BLE001  an edge
            _log.exception("model '%s': version %d", context.name, version)
            self.hold(version, f"{reason}; it could not be rolled back: {error}", evidence)

    def block(self, version: int, reason: str, evidence: Evidence) -> None:
        """So that nothing but a person makes it the champion again."""
        context = self._context
        try:
            context.directory.block(
                version,
                actor=ACTOR,
                reason=reason,
                evidence=evidence,
                event_time_ms=context.now.ms,
            )
        except (RegistryError, OSError) as error:
            _log.error("model '%s': version %d was not blocked: %s", context.name, version, error)

    def hold(self, version: int, reason: str, evidence: Evidence) -> None:
        """It waits for a person."""
        self.held = (version, reason)
        self._context.publish("held", version, reason=reason, evidence=evidence, record=True)

    def refuse(self, version: int, reason: str, evidence: Evidence) -> None:
        """It is not rolled out."""
        self._context.publish("refused", version, reason=reason, evidence=evidence, record=True)
