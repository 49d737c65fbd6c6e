"""Promotions and rollbacks that this server makes: load, then commit, then let it answer.

The version is held before the registry is changed, so a version that cannot be loaded is never
promoted; and the route is swapped under the lock under which the registry was changed, so a state
never overtakes a newer one. That is done as soon as the registry's readers see the change; whoever
asked is told when it is durable too, which on a busy machine takes longer. A change without an expected revision is about the registry as it is
at that moment: if another change outruns it, it is made anew.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import LockTimeoutError, RegistryError, RevisionConflictError
from trimtab.registry.state import State

from ..errors import PreconditionError, UnavailableError
from ..inference.onnx_session import one_line
from .held_version import HeldVersion
from .served_model import ServedModel

_ATTEMPTS = 100  # at a change, each of which somebody else's change outran


@dataclass(frozen=True)
class ChampionChange:
    """What a promotion or a rollback did."""

    state: State
    elapsed_ms: float  # from the call until every new request was answered by the new champion


class Lifecycle(Protocol):
    """What a change needs of the model manager."""

    def managed_model(self, name: str) -> ServedModel: ...
    def held(self, model: ServedModel, version: int) -> HeldVersion: ...
    def follow(self, model: ServedModel, state: State | None = None) -> float: ...


class ChampionChanges:
    """Blocks, from any thread; raises NotFoundError, PreconditionError or UnavailableError, and then
    nothing has changed."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        models_dir: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifecycle = lifecycle
        self._models_dir = models_dir
        self._clock = clock

    def promote(self, name: str, version: int, **how: Any) -> ChampionChange:
        """`how` are the keyword arguments of ModelDirectory.promote."""
        expected = how.pop("expected_revision")
        return self._change(
            name,
            expected,
            lambda _: (version, expected),
            lambda directory, revision, made: directory.promote(
                version, expected_revision=revision, made=made, **how
            ),
        )

    def rollback(self, name: str, to: int | None, **how: Any) -> ChampionChange:
        """Without `to` it goes to the previous champion, as of the time of the change if no revision
        is expected. `how` are the keyword arguments of ModelDirectory.rollback."""
        expected = how.pop("expected_revision")

        def target(directory: ModelDirectory) -> tuple[int, int | None]:
            state = directory.state()
            version = state.previous if to is None else to
            if version is None:
                raise PreconditionError(f"model '{name}' has no previous champion to return to")
            if to is None and expected is None:
                return version, state.revision
            return version, expected

        return self._change(
            name,
            expected,
            target,
            lambda directory, revision, made: directory.rollback(
                to=to, expected_revision=revision, made=made, **how
            ),
        )

    def _change(
        self,
        name: str,
        expected_revision: int | None,
        target: Callable[[ModelDirectory], tuple[int, int | None]],
        commit: Callable[[ModelDirectory, int | None, Callable[[State], None]], State],
    ) -> ChampionChange:
        started = self._clock()
        lifecycle = self._lifecycle
        with registry_refusals(self._models_dir):
            model = lifecycle.managed_model(name)
            attempts = _ATTEMPTS if expected_revision is None else 1
            while True:
                attempts -= 1
                version, revision = target(model.directory)
                try:
                    with lifecycle.held(model, version), model.lock:
                        followed: list[float] = []

                        def follow(state: State, followed: list[float] = followed) -> None:
                            followed.append(lifecycle.follow(model, state))

                        state = commit(model.directory, revision, follow)
                        if not followed:  # it was so already
                            follow(state)
                    return ChampionChange(state, (followed[0] - started) * 1000)
                except RevisionConflictError:
                    if attempts == 0:
                        raise


@contextlib.contextmanager
def registry_refusals(models_dir: Path) -> Iterator[None]:
    """Turns what the registry or its disk refuses into what a caller is told."""
    try:
        yield
    except LockTimeoutError as error:
        raise UnavailableError(one_line(error)) from error
    except RegistryError as error:
        raise PreconditionError(one_line(error)) from error
    except OSError as error:
        raise UnavailableError(
            f"the models directory {models_dir} cannot be used: {one_line(error)}"
        ) from error
