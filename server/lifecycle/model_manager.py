"""Which versions are loaded and which one answers: the registry's wishes made true.

A model's route is one immutable value, read without a lock by `resolve` and followed by requests
through the data plane, to which every new route is published.
Everything else prepares the next route and then swaps the reference, so that there is no moment in
which a model that has a version ready has none to answer. Versions are loaded one at a time on the
loader thread, and a session is dropped there too.

A change of champion comes from `promote` and `rollback` here or from another process through the
registry's files; both end in `_follow`, which reads the state under the model's lock, so that a
state never overtakes a newer one. The lock is held while references change and while the champion's
callback runs, never while a model loads.

Threads: `resolve`, `status`, `statuses`, `loaded`, `ready` from any; `promote`, `rollback`, `switch`,
`start`, `stop` block, and are called from neither the event loop nor a callback of this module.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from trimtab._native.data_plane import DataPlane
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import LockTimeoutError, RegistryError, RevisionConflictError
from trimtab.registry.state import State

from ..config import ConfigError, ServerConfig, load_model_policy
from ..errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    code_of,
)
from ..inference.executor import SHUTTING_DOWN, Executor
from ..inference.onnx_session import LoadError, one_line
from ..inference.servable import Servable
from .model_config import ModelConfigFile
from .repository_watcher import RepositoryWatcher
from .served_model import Inspection, Route, ServedModel, unknown_model
from .version_loader import TapFactory, VersionLoader
from .version_plan import ModelStatus, OnDisk

_logger = logging.getLogger(__name__)

_STARTING = ": the server is starting"
_NOT_FOUND = " is not found"
_ATTEMPTS = 100  # at a change, each of which somebody else's change outran

ChampionCallback = Callable[[str, Servable | None], None]
EventCallback = Callable[[str, str, int, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class ChampionChange:
    """What a promotion or a rollback did."""

    state: State
    elapsed_ms: float  # from the call until every new request was answered by the new champion


class ModelManager:
    """Every model of a registry; see the module."""

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
        self._versions = VersionLoader(
            config.batching,
            tap_factory,
            load,
            mirror_contents=config.server.output_contents == "mirror",
        )
        self._on_champion_changed = on_champion_changed
        self._on_event = on_event
        self._clock = clock
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._watcher = RepositoryWatcher(config.models_dir, self._follow_changes)
        # Requests are led by the data plane, whose routes are made from these.
        self.plane = DataPlane(secrets.token_hex(8))
        self.plane.set_unknown(code_of(UnavailableError()), _STARTING)
        self.plane.limit(config.server.max_in_flight, config.server.max_in_flight_bytes)
        self._routes: Mapping[str, Route] = {}  # read without a lock
        self._lock = threading.Lock()  # protects the fields below, and writers of _routes
        self._models: dict[str, ServedModel] = {}
        self._pending: dict[str, Future[None]] = {}  # reconciliations that have not begun
        self._started = False
        self._stopping = False

    def __repr__(self) -> str:
        return f"<ModelManager {self._config.models_dir}, {len(self._routes)} models>"

    # -- readers

    def resolve(self, model: str, version: str) -> Executor:
        """The executor that answers a request now; `version` empty: the server's choice.

        Raises NotFoundError or UnavailableError, with Triton's texts, or InvalidRequestError.
        """
        if self._stopping:
            raise UnavailableError(SHUTTING_DOWN)
        route = self._routes.get(model)
        if route is None:
            self._refuse_unknown(model)
        if not version:
            if route.default is None:
                raise route.no_answer()
            return route.default
        number = _version_number(version)
        executor = route.executors.get(number)
        if executor is None:
            raise route.refusals().get(number) or NotFoundError(
                f"{unknown_model(model)} version {number} is not found"
            )
        return executor

    def ready(self) -> bool:
        """Whether every model that should answer can. A repository without models is ready:
        there is nothing that could fail a request and everything is ready for the first model.
        """
        if not self._started or self._stopping:
            return False
        return all(
            route.default is not None or not route.required for route in self._routes.values()
        )

    def status(self, model: str) -> ModelStatus | None:
        """None: no such model."""
        route = self._routes.get(model)
        return None if route is None else route.current_status()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model, by name."""
        return tuple(route.current_status() for _, route in sorted(self._routes.items()))

    def loaded(self) -> tuple[tuple[str, int, Executor], ...]:
        """(model, version, executor) of every loaded version, by name and number."""
        return tuple(
            (name, version, executor)
            for name, route in sorted(self._routes.items())
            for version, executor in sorted(route.executors.items())
        )

    # -- starting and stopping

    def start(self) -> None:
        """Says what it recovers, loads what should be loaded, then follows changes."""
        for name in self._registry.models():
            self._recover(name)
        for job in [self.reconcile(name) for name in self._registry.models()]:
            job.result()
        self._started = True
        self.plane.set_unknown(code_of(NotFoundError()), _NOT_FOUND)
        if self._config.server.watch:
            self._watcher.start()

    def stop_accepting(self) -> None:
        """From now on requests are refused; those under way are finished."""
        self.plane.refuse(code_of(UnavailableError()), SHUTTING_DOWN)

    def stop(self, grace_s: float = 0.0) -> None:
        """Refuses new requests, computes those that wait for at most `grace_s`, ends the threads."""
        deadline = time.monotonic() + grace_s
        self._stopping = True
        self.stop_accepting()
        self._watcher.stop()
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            executors = [
                each for model in self._models.values() for each in model.executors.values()
            ]
            self._routes = {}
            self._models.clear()
            for job in self._pending.values():  # they were cancelled with the loader's queue
                job.set_result(None)
            self._pending.clear()
        for executor in executors:
            left = max(0.0, deadline - time.monotonic())
            if not executor.close(drain=left > 0, timeout_s=max(left, 0.1)):
                _logger.warning("%r: still computing after the grace of %s s", executor, grace_s)

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
    ) -> ChampionChange:
        """Makes a version the champion: loads and checks it first, then changes the registry, then
        lets it answer. Raises NotFoundError, PreconditionError or UnavailableError, and then nothing
        has changed.
        """
        return self._change(
            model,
            expected_revision,
            lambda directory: (version, expected_revision),
            lambda directory, revision: directory.promote(
                version,
                actor=actor,
                reason=reason,
                evidence=evidence,
                expected_revision=revision,
                event_time_ms=event_time_ms,
            ),
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
    ) -> ChampionChange:
        """Makes the previous champion the champion again. Raises as `promote` does.

        Without `expected_revision` the previous champion is the one at the time of the change.
        """

        def target(directory: ModelDirectory) -> tuple[int, int | None]:
            state = directory.state()
            if state.previous is None:
                raise PreconditionError(f"model '{model}' has no previous champion to return to")
            if expected_revision is None:
                return state.previous, state.revision
            return state.previous, expected_revision

        return self._change(
            model,
            expected_revision,
            target,
            lambda directory, revision: directory.rollback(
                actor=actor,
                reason=reason,
                evidence=evidence,
                expected_revision=revision,
                event_time_ms=event_time_ms,
            ),
        )

    def _change(
        self,
        name: str,
        expected_revision: int | None,
        target: Callable[[ModelDirectory], tuple[int, int | None]],
        commit: Callable[[ModelDirectory, int | None], State],
    ) -> ChampionChange:
        started = self._clock()
        try:
            model = self._model_to_change(name)
            attempts = _ATTEMPTS if expected_revision is None else 1
            while True:
                attempts -= 1
                version, revision = target(model.directory)
                try:
                    with self._loaded(model, version), model.lock:
                        state = commit(model.directory, revision)
                        elapsed = self._follow(model, state, started)
                    return ChampionChange(state, elapsed)
                except RevisionConflictError:
                    if attempts == 0:
                        raise
        except LockTimeoutError as error:
            raise UnavailableError(one_line(error)) from error
        except RegistryError as error:
            raise PreconditionError(one_line(error)) from error
        except OSError as error:
            raise UnavailableError(
                f"the models directory {self._config.models_dir} cannot be used: {one_line(error)}"
            ) from error
        finally:
            self.reconcile(name)  # retires what is no longer wanted

    def _model_to_change(self, name: str) -> ServedModel:
        if name not in self._registry.models():
            self._refuse_unknown(name)
        model = self._models.get(name)
        if model is None:
            self.reconcile(name).result()  # it may have come just now
            model = self._models.get(name)
        if model is None:
            self._refuse_unknown(name)
        if not model.directory.is_managed():
            raise PreconditionError(
                f"model '{name}' was not published by Trimtab: its highest version answers"
            )
        return model

    @contextlib.contextmanager
    def _loaded(self, model: ServedModel, version: int) -> Iterator[None]:
        """A version that is there is loaded, and stays so until the block ends."""
        if version not in model.directory.version_directories():
            raise NotFoundError(
                f"Request for unknown model: '{model.name}' version {version} is not found"
            )
        with model.lock:
            model.pinned[version] += 1
        try:
            self._ensure_loaded(model, version)
            yield
        finally:
            with model.lock:
                model.pinned[version] -= 1

    def _ensure_loaded(self, model: ServedModel, version: int) -> None:
        if version in model.executors:
            return
        try:
            self._loader.submit(self._load, model, version).result()
        except (RuntimeError, CancelledError) as error:  # the loader was shut down
            raise UnavailableError(SHUTTING_DOWN) from error
        if version not in model.executors:
            refusal = model.refusals.get(version)
            raise PreconditionError(
                f"version {version} of model '{model.name}' cannot be loaded: "
                f"{refusal or 'the model was removed'}"
            )

    # -- an operator's load and unload

    def switched(self, name: str) -> tuple[bool, ModelConfigFile | None]:
        """What `switch` was told of the model last: loaded, given."""
        model = self._models.get(name)
        return (True, None) if model is None else (not model.unloaded, model.given)

    def switch(
        self, name: str, *, loaded: bool, given: ModelConfigFile | None = None
    ) -> "Future[None]":
        """Lets a model answer, or nothing of it, until it is told otherwise or the server ends.
        As long, what is `given` stands in place of a known model's config.pbtxt.

        Requests are refused, or versions that failed tried again, from now on; the future is done
        when versions are loaded, or those that computed have finished.
        """
        model = self._models.get(name)
        if model is not None:
            with model.lock:
                model.unloaded = not loaded
                if given is not model.given:
                    model.give(given)
                for version in model.refusals:
                    model.inspected.pop(version, None)
                self._follow(model)
        return self.reconcile(name)

    # -- following the registry, on the loader thread

    def reconcile(self, model: str) -> "Future[None]":
        """Looks at the model's directory soon and makes the lifecycle follow it. Idempotent."""
        with self._lock:
            job = self._pending.get(model)
            if job is None:
                job = Future()
                self._pending[model] = job
                try:
                    self._loader.submit(self._reconcile, model, job)
                except RuntimeError:  # stopping
                    del self._pending[model]
                    job.set_result(None)
            return job

    def _follow_changes(self, names: set[str] | None) -> None:
        """What the watcher calls; None: look at everything."""
        if names is None:
            names = {*self._registry.models(), *self._routes}
        for name in names:
            self.reconcile(name)

    def _reconcile(self, name: str, job: "Future[None]") -> None:
        with self._lock:
            self._pending.pop(name, None)
        try:
            model = self._models.get(name)
            if name in self._registry.models():
                if model is None:
                    model = ServedModel(self._registry.model(name))
                    with self._lock:
                        self._models[name] = model
                self._reconcile_model(model)
            elif model is not None:
                self._remove(model)
        except OSError as error:  # what serves goes on serving; the watcher looks again
            _logger.error("model '%s': its directory could not be followed: %s", name, error)
        except Exception:  # an edge: a bug over one model must not end the loader of all
            _logger.exception("model '%s': its directory could not be followed", name)
        finally:
            job.set_result(None)

    def _reconcile_model(self, model: ServedModel) -> None:
        """Load, serve, retire, until the plan has nothing to load."""
        tried: set[int] = set()
        while not self._stopping:
            self._look(model)
            with model.lock:
                todo = model.plan()
            load = [version for version in todo.load if version not in tried]
            if not load:
                break
            tried.add(load[0])
            self._load(model, load[0])
        with model.lock:
            retired = [model.executors.pop(version) for version in model.plan().retire]
            model.loaded = {k: v for k, v in model.loaded.items() if k in model.executors}
            self._follow(model)
        self._versions.retire(retired)

    def _look(self, model: ServedModel) -> None:
        """Brings the fields up to the directory. Where that fails, what served goes on serving."""
        directory = model.directory
        problem = ""
        try:
            directories = tuple(directory.version_directories())
            managed = directory.is_managed()
            versions = tuple(directory.versions())
            extra = model.disk.extra
            version_policy = model.disk.policy
            # Whoever loads a version tells what is wrong with the file.
            with contextlib.suppress(LoadError):
                version_policy = model.config().version_policy
            try:
                policy = load_model_policy(directory.recipe_path, self._config.policy)
                extra = policy.serving.versions
            except ConfigError as error:
                problem = one_line(error)  # and no reason not to serve
            champion = directory.state().champion if managed else None
            # Reading and hashing files takes its time: without the lock.
            found = [
                model.inspect(each, managed=managed, champion=champion) for each in directories
            ]
            with model.lock:
                model.disk = OnDisk(
                    managed=managed,
                    versions=versions,
                    state=directory.state() if managed else State(),
                    extra=extra,
                    policy=version_policy,
                )
                model.directories = directories
                known = set(directories)
                model.refusals = {k: v for k, v in model.refusals.items() if k in known}
                for inspection in found:
                    if inspection is not None:
                        model.inspected[inspection.version] = inspection.fingerprint
                        model.refusals.pop(inspection.version, None)
        except (RegistryError, OSError) as error:
            problem = one_line(error)
            found = []
        if problem and problem != model.problem:
            _logger.error("model '%s': %s", model.name, problem)
        for inspection in found:
            if inspection is not None and inspection.reason:
                self._refused(model, inspection)
        with model.lock:
            model.problem = problem
            self._follow(model)

    def _load(self, model: ServedModel, version: int) -> None:
        """Loads one version, whatever is known against it; leaves an executor or a refusal."""
        if model.gone or (version in model.executors and version not in model.stale()):
            return
        with model.lock:
            model.loading = version
            self._follow(model)
        fingerprint = model.fingerprint(version)
        started = self._clock()
        executor = None
        reason = ""
        try:
            executor = self._versions.load(model.directory, version, model.given)
        except LoadError as error:
            reason = str(error)
        elapsed_ms = (self._clock() - started) * 1000
        with model.lock:
            model.loading = None
            replaced = None
            if executor is not None:
                model.refusals.pop(version, None)
                replaced = model.executors.get(version)
                model.executors[version] = executor
                model.loaded[version] = model.inspected[version] = fingerprint
                self._follow(model)
        if executor is None:
            self._refused(model, Inspection(version, fingerprint, reason))
            return
        notes = "".join(f"; {note}" for note in executor.servable.notes)
        self._tell(
            "loaded",
            model.name,
            version,
            f"loaded in {elapsed_ms:.0f} ms{notes}",
            {"elapsed_ms": elapsed_ms},
        )
        if replaced is not None:
            self._versions.retire([replaced])

    def _remove(self, model: ServedModel) -> None:
        with model.lock:
            model.gone = True
            retired = list(model.executors.values())
            model.executors.clear()
            model.disk = OnDisk(managed=False, versions=(), state=State())
            self._follow(model)
        with self._lock:
            self._models.pop(model.name, None)
            self._routes = {
                name: route for name, route in self._routes.items() if name != model.name
            }
            self.plane.remove_route(model.name)
        self._versions.retire(retired)

    def _refused(self, model: ServedModel, found: Inspection) -> None:
        with model.lock:
            model.refusals[found.version] = found.reason
            model.inspected[found.version] = found.fingerprint
            self._follow(model)
        _logger.error(
            "model '%s' version %d is not served: %s", model.name, found.version, found.reason
        )
        self._tell("load_failed", model.name, found.version, found.reason, {})

    def _recover(self, name: str) -> None:
        try:
            for text in self._registry.model(name).recover():
                _logger.warning("model '%s': %s", name, text)
                self._tell("recovered", name, 0, text, {})
        except (RegistryError, OSError) as error:
            _logger.error("model '%s': could not be recovered: %s", name, error)

    def _tell(
        self, kind: str, model: str, version: int, reason: str, evidence: Mapping[str, Any]
    ) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(kind, model, version, reason, evidence)
        except Exception:  # an edge: who listens must not stop what it is told of
            _logger.exception("the event '%s' of model '%s' was lost", kind, model)

    # -- the swap

    def _follow(
        self, model: ServedModel, state: State | None = None, started: float = 0.0
    ) -> float:
        """Makes the model's route what its fields say; returns the milliseconds since `started`.

        Called with the model's lock held. With `state`, that is the registry's newest.
        """
        if state is not None:
            model.disk = replace(model.disk, managed=True, state=state)
        route = model.route()
        with self._lock:
            before = self._routes.get(model.name)
            self._routes = {**self._routes, model.name: route}
            self._publish(model.name, route)
        elapsed_ms = (self._clock() - started) * 1000
        if self._on_champion_changed is not None:
            old = before.default if before is not None else None
            new = route.default
            if old is not new:
                try:
                    self._on_champion_changed(model.name, new.servable if new else None)
                except Exception:
                    _logger.exception("model '%s': following its new champion failed", model.name)
        return elapsed_ms

    def _publish(self, name: str, route: Route) -> None:
        """Lets requests follow the route; called with the manager's lock held."""
        none = route.no_answer()
        self.plane.set_route(
            name,
            route.default.version if route.default else None,
            (code_of(none), str(none)),
            [each.version for each in route.executors.values()],
            {version: (code_of(error), str(error)) for version, error in route.refusals().items()},
        )

    def _refuse_unknown(self, model: str) -> NoReturn:
        if not self._started:
            raise UnavailableError(f"{unknown_model(model)}{_STARTING}")
        raise NotFoundError(f"{unknown_model(model)}{_NOT_FOUND}")


def _version_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise InvalidRequestError(
            f"failed to get model version from specified version string '{text}' "
            "(version should be an integral value > 0)"
        )
    return int(text)
