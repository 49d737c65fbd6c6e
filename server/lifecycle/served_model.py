"""One model as the lifecycle holds it, and the route that readers see of it.

`ServedModel` is state under a lock and has no threads of its own: the lifecycle changes its fields,
asks it what to do (`plan`) and publishes what follows from them (`route`). A `Route` never changes,
so whoever has one may read it without a lock for as long as it likes.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..errors import NotFoundError, PreconditionError, TrimtabError, UnavailableError
from ..inference.executor import Executor
from ..inference.onnx_session import one_line
from . import model_config
from .load_failures import Failures, is_transient
from .model_config import ModelConfigFile
from .version_plan import (
    Have,
    ModelStatus,
    OnDisk,
    Plan,
    Split,
    VersionState,
    VersionStatus,
    plan,
)


def unknown_model(name: str) -> str:
    """How Triton begins to say that something of a model does not answer."""
    return f"Request for unknown model: '{name}'"


SHARES = 10_000  # parts of the requests that name no version, as the data plane divides them

Fingerprint = tuple[tuple[str, int, int, int], ...]

DIRECTORY_GONE = "its directory is gone: it answers as it was loaded, and cannot be loaded again"

_CONFIG = f"../{model_config.FILE_NAME}"  # beside the version's files in its fingerprint


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found out about the files of a version."""

    version: int
    fingerprint: Fingerprint
    reason: str  # why they cannot be served; empty: nothing is known against them
    transient: bool = False  # and that may pass by itself


@dataclass(frozen=True, slots=True)
class Route:
    """All that readers need of one model; replaced, never changed."""

    default: Executor | None  # answers requests that name no version
    executors: Mapping[int, Executor]  # those that a request may name
    status: ModelStatus  # without the executors' counters
    required: bool  # the server is not ready while nothing answers
    challenger: Executor | None = None  # answers a share of those that name no version
    shares: int = 0  # of SHARES

    def no_answer(self) -> TrimtabError:
        """Why a request that names no version is refused where nothing answers."""
        unknown = unknown_model(self.status.model)
        for each in self.status.versions:
            if each.state.on_the_way:
                return UnavailableError(f"{unknown} version {each.version} is not at ready state")
        return NotFoundError(f"{unknown} has no available versions")

    def refusals(self) -> Mapping[int, TrimtabError]:
        """Why requests that name one of these versions are refused."""
        unknown = unknown_model(self.status.model)
        return {
            each.version: UnavailableError(
                f"{unknown} version {each.version} is not at ready state"
            )
            for each in self.status.versions
            if each.version not in self.executors
        }

    def current_status(self) -> ModelStatus:
        """The status with the executors' counters as of now."""
        versions = []
        for each in self.status.versions:
            executor = self.executors.get(each.version)
            versions.append(replace(each, stats=executor.statistics() if executor else None))
        return replace(self.status, versions=tuple(versions))


class ServedModel:
    """The fields change with `lock` held, on the loader thread or in a change of champion; the
    loader thread alone changes what is about files, and may therefore read that without."""

    def __init__(self, directory: ModelDirectory) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        self.disk = OnDisk(managed=False, versions=(), state=State())
        self.directories: tuple[int, ...] = ()  # every version directory, whole or not
        self.executors: dict[int, Executor] = {}  # the versions that are READY
        self.loaded: dict[int, Fingerprint] = {}  # the files that those were loaded from
        self.refusals: dict[int, str] = {}  # why a version is not served
        self.inspected: dict[int, Fingerprint] = {}  # the files that this was found about
        self.failures: dict[int, Failures] = {}  # of loads, since the version was last loaded
        self.holds: Counter[int] = Counter()  # of versions that somebody needs loaded
        self.split: Split | None = None
        self.loading: tuple[int, VersionState] | None = None
        self.draining: set[int] = set()
        self.serving: int | None = None
        self.problem = ""  # why the directory could not be followed
        self.given: ModelConfigFile | None = None  # by an operator, in place of config.pbtxt
        self._given_times = 0  # tells one that was given from the next
        self.unloaded = False  # by an operator, until it is loaded again
        self.gone = False

    @property
    def name(self) -> str:
        return self.directory.name

    def __repr__(self) -> str:
        return f"<ServedModel {self.name}, {sorted(self.executors)} ready, {self.serving} answers>"

    def give(self, config: ModelConfigFile | None) -> None:
        """From now on this stands in place of config.pbtxt; None: that file counts."""
        self.given = config
        self._given_times += 1

    def config(self) -> ModelConfigFile:
        """What holds of a configuration. Raises LoadError."""
        return self.given or model_config.read(self.directory.path)

    def fingerprint(self, version: int) -> Fingerprint:
        """Changes when a file of the version does, or the model's configuration; empty when the
        directory cannot be read."""
        entries = []
        path = self.directory.version_path(version)
        with contextlib.suppress(OSError), os.scandir(path) as files:
            for file in files:
                about = file.stat()
                entries.append((file.name, about.st_size, about.st_mtime_ns, about.st_ino))
            if self.given is not None:
                entries.append((_CONFIG, -1, self._given_times, 0))
                return tuple(sorted(entries))
            with contextlib.suppress(FileNotFoundError):
                about = (self.directory.path / model_config.FILE_NAME).stat()
                entries.append((_CONFIG, about.st_size, about.st_mtime_ns, about.st_ino))
        return tuple(sorted(entries))

    def inspect(self, version: int, *, managed: bool, champion: int | None) -> Inspection | None:
        """Finds broken directories and changed files without loading anything; None: unchanged.

        Versions newer than the champion are checked whole, since they are next in turn.
        """
        fingerprint = self.fingerprint(version)
        if self.inspected.get(version) == fingerprint:
            return None
        reason, transient = "", False
        if managed and version not in self.executors:
            try:
                if version > (champion or 0):
                    self.directory.verify(version)
                else:
                    self.directory.manifest(version)
            except RegistryError as error:
                reason, transient = one_line(error), is_transient(error)
        return Inspection(version, fingerprint, reason, transient)

    def inspect_all(
        self, directories: Iterable[int], now: float, *, managed: bool, champion: int | None
    ) -> list[Inspection]:
        """Of the versions that are to be looked at now, what is new about them."""
        found = []
        for version in directories:
            failures = self.failures.get(version)
            if failures is not None and now < failures.changed_at:
                continue  # its files change, and it failed again and again
            if failures is not None and failures.retry_at is not None and failures.retry_at <= now:
                self.inspected.pop(version, None)
            inspection = self.inspect(version, managed=managed, champion=champion)
            if inspection is not None:
                found.append(inspection)
        return found

    def see(self, directories: tuple[int, ...], found: Iterable[Inspection]) -> set[int]:
        """These directories are there. Returns the loaded versions whose directories went."""
        gone = (self.executors.keys() & self.directories) - set(directories)
        self.directories = directories
        known = set(directories)
        self.refusals = {k: v for k, v in self.refusals.items() if k in known}
        self.failures = {k: v for k, v in self.failures.items() if k in known}
        for inspection in found:
            self.inspected[inspection.version] = inspection.fingerprint
            self.refusals.pop(inspection.version, None)
        return gone

    def forget_failures(self) -> None:
        """What failed is tried again, whatever is known against it."""
        for version in self.refusals:
            self.inspected.pop(version, None)
        self.failures.clear()

    def stale(self) -> list[int]:
        """The loaded versions whose files have changed. A managed version's own never do: they are
        checked against its manifest when it is loaded."""
        stale = []
        for version, then in self.loaded.items():
            now = self.inspected.get(version, ())
            if self.disk.managed:
                then, now = _config_of(then), _config_of(now)
            if version in self.disk.versions and then != now:
                stale.append(version)
        return stale

    def held(self, version: int) -> bool:
        return self.holds[version] > 0

    def let_go(self, version: int) -> None:
        """One hold less."""
        self.holds[version] -= 1
        if not self.held(version):
            del self.holds[version]

    def divide(self, split: Split | None) -> None:
        """Lets a challenger answer a share from the next route on. PreconditionError."""
        if split is not None:
            version = f"version {split.version} of model '{self.name}'"
            if split.version not in self.executors or self.unloaded:
                raise PreconditionError(f"{version} is not ready: it cannot answer a share")
            if not self.held(split.version):
                raise PreconditionError(f"{version} is not held: it cannot answer a share")
            if self.serving is None or split.version == self.serving:
                raise PreconditionError(
                    f"{version} cannot answer a share beside version {self.serving}"
                )
        self.split = split

    def refuse(self, found: Inspection, failed_at: float | None) -> None:
        """The version is not served as its files are; `failed_at` the clock's time of an attempt."""
        version = found.version
        self.refusals[version] = found.reason
        self.inspected[version] = found.fingerprint
        if failed_at is not None:
            before = self.failures.get(version)
            count = 1 if before is None else before.count + 1
            self.failures[version] = Failures(count, failed_at, found.transient)
        else:
            self.failures.pop(version, None)

    def ready(self, version: int, executor: Executor, fingerprint: Fingerprint) -> Executor | None:
        """The version was loaded from these files; returns the executor that it replaces."""
        replaced = self.executors.get(version)
        self.executors[version] = executor
        self.loaded[version] = self.inspected[version] = fingerprint
        self.refusals.pop(version, None)
        self.failures.pop(version, None)
        self.directories = tuple(sorted({*self.directories, version}))
        return replaced

    def look_again_at(self, now: float) -> float | None:
        """When to look again though nobody told of a change: the clock's time, after `now`."""
        times = [
            time
            for version, failures in self.failures.items()
            if version in self.refusals
            for time in (failures.changed_at, failures.retry_at)
            if time is not None and time > now
        ]
        return min(times, default=None)

    def plan(self) -> Plan:
        """What to do next."""
        return plan(
            self.disk,
            Have(
                ready=set(self.executors),
                failed=set(self.refusals),
                stale=self.stale(),
                serving=self.serving,
            ),
            self.holds.keys(),
            unloaded=self.unloaded,
        )

    def route(self) -> Route:
        """The route that follows from the fields; from now on its version counts as serving."""
        todo = self.plan()
        challenger = None
        if self.split is not None:
            challenger = None if self.unloaded else self.executors.get(self.split.version)
            # What it was compared with no longer answers, or there is nothing to divide.
            if challenger is None or todo.serve is None or todo.serve != self.serving:
                self.split = challenger = None
        self.serving = todo.serve
        return Route(
            default=None if todo.serve is None else self.executors[todo.serve],
            executors={} if self.unloaded else dict(self.executors),
            status=self._status(todo.champion),
            required=not self.unloaded and (todo.champion is not None or bool(self.problem)),
            challenger=challenger,
            shares=round(self.split.share * SHARES) if self.split is not None else 0,
        )

    def _status(self, champion: int | None) -> ModelStatus:
        previous = self.disk.state.previous
        versions = []
        known = {*self.directories, *self.executors, *self.refusals, *self.draining}
        if self.loading is not None:
            known.add(self.loading[0])  # published since the directory was last looked at
        for version in sorted(known):
            state, reason = self._state(version)
            role = "champion" if version == champion else "previous" if version == previous else ""
            refusal = self.refusals.get(version, "")
            versions.append(VersionStatus(version, state, reason, role, None, refusal))
        return ModelStatus(
            model=self.name,
            managed=self.disk.managed,
            revision=self.disk.state.revision,
            champion=champion,
            previous=previous,
            serving=self.serving,
            versions=tuple(versions),
            reason=self.problem or ("" if versions else "no versions"),
            split=self.split,
        )

    def _state(self, version: int) -> tuple[VersionState, str]:
        refusal = self.refusals.get(version)
        if version in self.executors:
            if self.unloaded:
                return VersionState.DRAINING, "unloaded"
            if version not in self.directories:
                return VersionState.READY, DIRECTORY_GONE
            if refusal is not None:
                return VersionState.READY, f"its changed files are refused: {refusal}"
            return VersionState.READY, "; ".join(self.executors[version].servable.notes)
        if self.loading is not None and version == self.loading[0]:
            return self.loading[1], ""
        if version in self.draining:
            return VersionState.DRAINING, ""
        if self.unloaded or refusal is None:
            return VersionState.UNLOADED, "unloaded"
        return VersionState.FAILED, refusal


def _config_of(fingerprint: Fingerprint) -> Fingerprint:
    return tuple(entry for entry in fingerprint if entry[0] == _CONFIG)
