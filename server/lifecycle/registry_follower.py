"""Makes the models in memory what the registry's files ask for: looks, loads, swaps, retires.

Versions are loaded one at a time on one thread, the loader, and sessions are dropped there too,
never on a thread that serves. `reconcile` asks for a look at a model; it is idempotent, and a look
that fails, as a load that does, leaves what served serving. The loader goes on, and looks again
when something changes or when it is worth another try (`load_failures`).

A model's lock is held while references change and while the champion's callback runs, never while a
model loads.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from trimtab.registry.directory import Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..config import ConfigError, ServerConfig, load_model_policy
from ..errors import PreconditionError, UnavailableError
from ..inference.executor import SHUTTING_DOWN, Executor
from ..inference.onnx_session import LoadError, one_line
from ..inference.servable import Servable
from .alarm_clock import AlarmClock
from .load_failures import is_transient
from .route_table import RouteTable
from .served_model import DIRECTORY_GONE, Inspection, ServedModel
from .version_loader import VersionLoader
from .version_plan import OnDisk, VersionState

_logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0  # after a look that failed

ChampionCallback = Callable[[str, Servable | None], None]
EventCallback = Callable[[str, str, int, str, Mapping[str, Any]], None]


class RegistryFollower:
    """The models and the loader thread. `get`, `reconcile`, `load` and `follow` from any thread but
    the loader's."""

    def __init__(
        self,
        registry: Registry,
        config: ServerConfig,
        routes: RouteTable,
        versions: VersionLoader,
        *,
        on_champion_changed: ChampionCallback | None = None,
        on_event: EventCallback | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._config = config
        self._routes = routes
        self._versions = versions
        self._on_champion_changed = on_champion_changed
        self._on_event = on_event
        self._clock = clock
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._alarms = AlarmClock(self.reconcile)
        self._lock = threading.Lock()  # protects the fields below
        self._models: dict[str, ServedModel] = {}
        self._pending: dict[str, Future[None]] = {}  # looks that have not begun
        self._stopping = False

    def __repr__(self) -> str:
        return f"<RegistryFollower {self._registry.path}, {len(self._models)} models>"

    def get(self, name: str) -> ServedModel | None:
        return self._models.get(name)

    def recover(self) -> None:
        """Finishes what dead writers began in any model, and says so."""
        for name in self._registry.models():
            try:
                for text in self._registry.model(name).recover():
                    _logger.warning("model '%s': %s", name, text)
                    self._tell("recovered", name, 0, text, {})
            except (RegistryError, OSError) as error:
                _logger.error("model '%s': could not be recovered: %s", name, error)

    def stop(self) -> list[Executor]:
        """Ends the loader; returns the executors there were, which still run."""
        self._stopping = True
        self._alarms.stop()
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            executors = [
                each for model in self._models.values() for each in model.executors.values()
            ]
            self._models.clear()
            for job in self._pending.values():  # they were cancelled with the loader's queue
                job.set_result(None)
            self._pending.clear()
        return executors

    # -- asked from any thread

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

    def reconcile_all(self, names: Iterable[str] | None) -> None:
        """What the watcher calls; None: look at everything."""
        for name in {*self._registry.models(), *self._routes.names()} if names is None else names:
            self.reconcile(name)

    def load(self, model: ServedModel, version: int) -> Executor:
        """The executor of the version, once it is loaded. PreconditionError, UnavailableError."""
        found = model.executors.get(version)
        if found is not None:
            return found
        try:
            self._loader.submit(self._load, model, version).result()
        except (RuntimeError, CancelledError) as error:  # the loader was shut down
            raise UnavailableError(SHUTTING_DOWN) from error
        found = model.executors.get(version)
        if found is None:
            refusal = model.refusals.get(version)
            raise PreconditionError(
                f"version {version} of model '{model.name}' cannot be loaded: "
                f"{refusal or 'the model was removed'}"
            )
        return found

    def follow(self, model: ServedModel, state: State | None = None) -> float:
        """Makes the model's route what its fields say; returns the clock's time when it was.

        Called with the model's lock held. With `state`, that is the registry's newest.
        """
        if state is not None:
            model.disk = replace(model.disk, managed=True, state=state)
        route = model.route()
        before = self._routes.set(model.name, route)
        done = self._clock()
        if self._on_champion_changed is not None:
            old = before.default if before is not None else None
            new = route.default
            if old is not new:
                try:
                    self._on_champion_changed(model.name, new.servable if new else None)
                except Exception:
                    _logger.exception("model '%s': following its new champion failed", model.name)
        return done

    # -- on the loader thread

    def _reconcile(self, name: str, job: "Future[None]") -> None:
        with self._lock:
            self._pending.pop(name, None)
        again: float | None = None
        try:
            model = self._models.get(name)
            if name in self._registry.models():
                if model is None:
                    model = ServedModel(self._registry.model(name))
                    with self._lock:
                        self._models[name] = model
                again = self._reconcile_model(model)
            elif model is not None:
                self._remove(model)
        except OSError as error:  # what serves goes on serving
            again = _LOOK_AGAIN_S
            _logger.error("model '%s': its directory could not be followed: %s", name, error)
        except Exception:  # an edge: a bug over one model must not end the loader of all
            _logger.exception("model '%s': its directory could not be followed", name)
        finally:
            if again is not None:
                self._alarms.set(name, again)
            job.set_result(None)

    def _reconcile_model(self, model: ServedModel) -> float | None:
        """Load, serve, retire, until the plan has nothing to load. Returns in how many seconds to
        look again by itself, if at all."""
        tried: set[int] = set()
        look_failed = False
        while not self._stopping:
            look_failed = self._look(model)
            with model.lock:
                todo = model.plan()
            load = [version for version in todo.load if version not in tried]
            if not load:
                break
            tried.add(load[0])
            self._load(model, load[0])
        with model.lock:
            retired = {version: model.executors.pop(version) for version in model.plan().retire}
            model.loaded = {k: v for k, v in model.loaded.items() if k in model.executors}
            model.draining.update(retired)
            self.follow(model)
        if retired:
            self._versions.retire(list(retired.values()))
            with model.lock:
                model.draining.clear()
                self.follow(model)
        if look_failed:
            return _LOOK_AGAIN_S
        now = self._clock()
        at = model.look_again_at(now)
        return None if at is None else at - now

    def _look(self, model: ServedModel) -> bool:
        """Brings the fields up to the directory; True: the disk did not let it, and what served goes
        on serving."""
        directory = model.directory
        problem = ""
        failed = False
        try:
            directories = tuple(directory.version_directories())
            managed = directory.is_managed()
            # A loader reads the manifests that it needs: here that would be all of them, every time.
            versions = directories if managed else tuple(directory.versions())
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
            found = model.inspect_all(
                directories, self._clock(), managed=managed, champion=champion
            )
            with model.lock:
                gone = model.see(directories, found)
                model.disk = OnDisk(
                    managed=managed,
                    versions=versions,
                    state=directory.state() if managed else State(),
                    extra=extra,
                    policy=version_policy,
                )
            for version in gone if managed else ():
                _logger.error("model '%s' version %d: %s", model.name, version, DIRECTORY_GONE)
        except (RegistryError, OSError) as error:
            problem = one_line(error)
            failed = is_transient(error)
            found = []
        if problem and problem != model.problem:
            _logger.error("model '%s': %s", model.name, problem)
        for inspection in found:
            if inspection.reason:
                self._refused(model, inspection, tried=inspection.transient)
        with model.lock:
            model.problem = problem
            self.follow(model)
        return failed

    def _load(self, model: ServedModel, version: int) -> None:
        """Loads one version, whatever is known against it; leaves an executor or a refusal."""
        if model.gone or (version in model.executors and version not in model.stale()):
            return

        def enter(state: VersionState) -> None:
            with model.lock:
                model.loading = (version, state)
                self.follow(model)

        enter(VersionState.LOADING)
        fingerprint = model.fingerprint(version)
        started = self._clock()
        executor = None
        refused = None
        try:
            executor = self._versions.load(model.directory, version, model.given, enter)
        except LoadError as error:
            refused = Inspection(version, fingerprint, str(error), is_transient(error))
        elapsed_ms = (self._clock() - started) * 1000
        with model.lock:
            model.loading = None
            replaced = None
            if executor is not None:
                replaced = model.ready(version, executor, fingerprint)
                self.follow(model)
        if refused is not None or executor is None:
            assert refused is not None
            self._refused(model, refused, tried=True)
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
            self.follow(model)
        with self._lock:
            self._models.pop(model.name, None)
        self._routes.remove(model.name)
        self._versions.retire(retired)

    def _refused(self, model: ServedModel, found: Inspection, *, tried: bool) -> None:
        with model.lock:
            model.refuse(found, self._clock() if tried else None)
            self.follow(model)
        _logger.error(
            "model '%s' version %d is not served: %s", model.name, found.version, found.reason
        )
        self._tell("load_failed", model.name, found.version, found.reason, {})

    def _tell(
        self, kind: str, model: str, version: int, reason: str, evidence: Mapping[str, Any]
    ) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(kind, model, version, reason, evidence)
        except Exception:  # an edge: who listens must not stop what it is told of
            _logger.exception("the event '%s' of model '%s' was lost", kind, model)
