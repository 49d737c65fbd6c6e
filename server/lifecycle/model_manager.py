"""Which versions are loaded and which one answers: the registry's wishes made true.

A model's route is one immutable value, followed by requests and readers without a lock
(`route_table`). Everything else prepares the next route and then swaps it, so that there is no
moment in which a model that has a version ready has none to answer: `registry_follower` does so
for what other processes change in the registry's files, `champion_changes` for what is promoted and
rolled back here, and this module for what an operator or a rollout asks of the server alone: to
hold a version, to give it a share of the requests, to load and to unload a model.

Threads: `resolve`, `status`, `statuses`, `loaded`, `ready`, `executor` from any; the rest block,
and are called from neither the event loop nor a callback of this module.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from trimtab._native.data_plane import DataPlane
from trimtab.registry.directory import Registry
from trimtab.registry.signing import TrustedKeys
from trimtab.registry.state import State

from ..config import ServerConfig
from ..errors import InvalidRequestError, NotFoundError, PreconditionError
from ..inference.executor import Executor
from ..inference.servable import Servable
from .champion_changes import ChampionChange, ChampionChanges, registry_refusals
from .held_version import HeldVersion
from .model_config import ModelConfigFile
from .registry_follower import ChampionCallback, EventCallback, RegistryFollower
from .repository_watcher import RepositoryWatcher
from .route_table import RouteTable
from .served_model import ServedModel
from .version_loader import TapFactory, VersionLoader
from .version_plan import ModelStatus, Split

_logger = logging.getLogger(__name__)


class ModelManager:
    """Every model of a registry; see the module. SigningError if a trusted key cannot be read."""

    def __init__(
        self,
        registry: Registry,
        config: ServerConfig,
        *,
        tap_factory: TapFactory | None = None,
        on_champion_changed: ChampionCallback | None = None,
        on_event: EventCallback | None = None,
        load: Callable[..., Servable] = Servable.load,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._config = config
        self._routes = RouteTable(
            max_in_flight=config.server.max_in_flight,
            max_in_flight_bytes=config.server.max_in_flight_bytes,
        )
        self._follower = RegistryFollower(
            registry,
            config,
            self._routes,
            VersionLoader(
                config.batching,
                tap_factory,
                load,
                mirror_contents=config.server.output_contents == "mirror",
                trusted_keys=_trusted_keys(config),
            ),
            on_champion_changed=on_champion_changed,
            on_event=on_event,
            clock=clock,
        )
        self._changes = ChampionChanges(self, config.models_dir, clock=clock)
        self._watcher = RepositoryWatcher(config.models_dir, self._follower.reconcile_all)

    def __repr__(self) -> str:
        return f"<ModelManager {self._config.models_dir}, {len(self._routes)} models>"

    # -- readers, see RouteTable

    @property
    def plane(self) -> DataPlane:
        """Where requests go in."""
        return self._routes.plane

    def resolve(self, model: str, version: str) -> Executor:
        return self._routes.resolve(model, version)

    def executor(self, model: str, version: int) -> Executor | None:
        """Of a version that is ready."""
        return self._routes.executor(model, version)

    def ready(self) -> bool:
        return self._routes.ready()

    def status(self, model: str) -> ModelStatus | None:
        return self._routes.status(model)

    def statuses(self) -> tuple[ModelStatus, ...]:
        return self._routes.statuses()

    def loaded(self) -> tuple[tuple[str, int, Executor], ...]:
        return self._routes.loaded()

    # -- starting and stopping

    def start(self) -> None:
        """Says what it recovers, loads what should be loaded, then follows changes."""
        self._follower.recover()
        for job in [self.reconcile(name) for name in self._registry.models()]:
            job.result()
        self._routes.begin()
        if self._config.server.watch:
            self._watcher.start()

    def stop_accepting(self) -> None:
        """From now on requests are refused; those under way are finished."""
        self._routes.refuse()

    def stop(self, grace_s: float = 0.0) -> None:
        """Refuses new requests, computes those that wait for at most `grace_s`, ends the threads."""
        deadline = time.monotonic() + grace_s
        self._routes.end()
        self._watcher.stop()
        executors = self._follower.stop()
        self._routes.clear()
        for executor in executors:
            left = max(0.0, deadline - time.monotonic())
            if not executor.close(drain=left > 0, timeout_s=max(left, 0.1)):
                _logger.warning("%r: still computing after the grace of %s s", executor, grace_s)

    def reconcile(self, model: str) -> "Future[None]":
        """Looks at the model's directory soon and makes the lifecycle follow it. Idempotent."""
        return self._follower.reconcile(model)

    # -- changes of champion

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
    ) -> ChampionChange:
        """Makes a version the champion: loads and checks it first, then changes the registry, then
        lets it answer. Raises NotFoundError, PreconditionError or UnavailableError, and then nothing
        has changed; PreconditionError also where an `automatic` change is not allowed.
        """
        return self._changes.promote(
            model,
            version,
            actor=actor,
            reason=reason,
            evidence=evidence,
            expected_revision=expected_revision,
            event_time_ms=event_time_ms,
            automatic=automatic,
        )

    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        to: int | None = None,
        automatic: bool = False,
    ) -> ChampionChange:
        """Makes the previous champion, or the earlier one named by `to`, the champion again. Raises
        as `promote` does.

        Without `expected_revision` the previous champion is the one at the time of the change.
        """
        return self._changes.rollback(
            model,
            to,
            actor=actor,
            reason=reason,
            evidence=evidence,
            expected_revision=expected_revision,
            event_time_ms=event_time_ms,
            automatic=automatic,
        )

    # -- what a rollout needs

    def hold(self, model: str, version: int) -> HeldVersion:
        """Loads and verifies a version, and keeps it loaded and warm until it is released. Raises as
        `promote` does."""
        with registry_refusals(self._config.models_dir):
            return self.held(self.managed_model(model), version)

    def split(self, model: str, version: int | None, share: float = 0.0) -> None:
        """From now on a held version answers this share (0 to 1) of the requests that name none;
        None: no version does.

        The request's id chooses, so that the same id meets the same version, and a larger share
        meets all ids of a smaller one. It ends by itself when the champion changes, or when the
        version is not ready any more. Raises NotFoundError, InvalidRequestError or
        PreconditionError, and then nothing has changed.
        """
        if not 0.0 <= share <= 1.0:
            raise InvalidRequestError(f"a share of {share} is not between 0 and 1")
        served = self._follower.get(model)
        if served is None:
            self._routes.refuse_unknown(model)
        with served.lock:
            served.divide(None if version is None else Split(version, share))
            self._follower.follow(served)

    # -- an operator's load and unload

    def switched(self, name: str) -> tuple[bool, ModelConfigFile | None]:
        """What `switch` was told of the model last: loaded, given."""
        model = self._follower.get(name)
        return (True, None) if model is None else (not model.unloaded, model.given)

    def switch(
        self, name: str, *, loaded: bool, given: ModelConfigFile | None = None
    ) -> "Future[None]":
        """Lets a model answer, or nothing of it, until it is told otherwise or the server ends.
        As long, what is `given` stands in place of a known model's config.pbtxt.

        Requests are refused, or versions that failed tried again, from now on; the future is done
        when versions are loaded, or those that computed have finished.
        """
        model = self._follower.get(name)
        if model is not None:
            with model.lock:
                model.unloaded = not loaded
                if given is not model.given:
                    model.give(given)
                model.forget_failures()
                self._follower.follow(model)
        return self.reconcile(name)

    # -- for changes of champion

    def managed_model(self, name: str) -> ServedModel:
        """A model whose champion can be changed. NotFoundError, PreconditionError; OSError."""
        if name not in self._registry.models():
            self._routes.refuse_unknown(name)
        model = self._follower.get(name)
        if model is None:
            self.reconcile(name).result()  # it may have come just now
            model = self._follower.get(name)
        if model is None:
            self._routes.refuse_unknown(name)
        if not (model.disk.managed or model.directory.is_managed()):
            raise PreconditionError(
                f"model '{name}' was not published by Trimtab: its highest version answers"
            )
        return model

    def held(self, model: ServedModel, version: int) -> HeldVersion:
        """As `hold`, of a model that `managed_model` gave."""
        loaded = version in model.executors  # the registry looks again whether it is there
        if not loaded and version not in model.directory.version_directories():
            raise NotFoundError(f"model '{model.name}' has no version {version}")
        with model.lock:
            model.holds[version] += 1
        try:
            executor = self._follower.load(model, version)
        except BaseException:
            with model.lock:
                model.let_go(version)
            self.reconcile(model.name)
            raise
        return HeldVersion(model, version, executor, lambda: self.reconcile(model.name))

    def follow(self, model: ServedModel, state: State | None = None) -> float:
        """See RegistryFollower."""
        return self._follower.follow(model, state)


def _trusted_keys(config: ServerConfig) -> TrustedKeys | None:
    """Whose signatures count; None: none is required."""
    if not config.registry.require_signature:
        return None
    return TrustedKeys.load(map(Path, config.registry.trusted_keys))
