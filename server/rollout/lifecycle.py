"""What a roll-out needs of the lifecycle: change the champion, hold a version, split the requests.

The model manager is one. All of it may block (a version is loaded), and raises PreconditionError,
NotFoundError or UnavailableError where nothing has changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trimtab.registry.manifest import Signature

from .mirror import Runner


class LoadedVersion(Runner, Protocol):
    """A version that can be run, as a Servable is one."""

    @property
    def signature(self) -> Signature: ...
    @property
    def reference_path(self) -> Path | None: ...


class Held(Protocol):
    """A version that stays loaded until `release`, which may be called twice."""

    @property
    def servable(self) -> LoadedVersion: ...
    def release(self) -> None: ...


class Lifecycle(Protocol):
    """`automatic`: no person has asked for it, so a frozen model or a blocked version refuses it."""

    def promote(
        self,
        model: str,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        automatic: bool = False,
    ) -> object: ...
    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        automatic: bool = False,
    ) -> object: ...
    def hold(self, model: str, version: int) -> Held: ...
    def split(self, model: str, version: int | None, share: float = 0.0) -> None:
        """Has that share of the requests which name no version answered by `version`; None: none."""
