"""One model as the lifecycle holds it, and the route that readers see of it.

`ServedModel` is state under a lock and has no threads of its own: the lifecycle changes its fields,
asks it what to do (`plan`) and publishes what follows from them (`route`). A `Route` never changes,
so whoever has one may read it without a lock for as long as it likes.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..errors import NotFoundError, TrimtabError, UnavailableError
from ..inference.executor import Executor
from ..inference.onnx_session import one_line
from . import model_config
from .model_config import ModelConfigFile
from .version_plan import Have, ModelStatus, OnDisk, Plan, VersionState, VersionStatus, plan


def unknown_model(name: str) -> str:
    """How Triton begins to say that something of a model does not answer."""
    return f"Request for unknown model: '{name}'"


Fingerprint = tuple[tuple[str, int, int, int], ...]

_CONFIG = f"../{model_config.FILE_NAME}"  # beside the version's files in its fingerprint


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found out about the files of a version."""

    version: int
    fingerprint: Fingerprint
    reason: str  # why they cannot be served; empty: nothing is known against them


@dataclass(frozen=True, slots=True)
class Route:
    """All that readers need of one model; replaced, never changed."""

    default: Executor | None  # answers requests that name no version
    executors: Mapping[int, Executor]  # those that a request may name
    status: ModelStatus  # without the executors' counters
    required: bool  # the server is not ready while nothing answers

    def no_answer(self) -> TrimtabError:
        """Why a request that names no version is refused where nothing answers."""
        unknown = unknown_model(self.status.model)
        for each in self.status.versions:
            if each.state is VersionState.LOADING:
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
        self.pinned: Counter[int] = Counter()  # about to be promoted
        self.loading: int | None = None
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
        reason = ""
        if managed and version not in self.executors:
            try:
                if version > (champion or 0):
                    self.directory.verify(version)
                else:
                    self.directory.manifest(version)
            except RegistryError as error:
                reason = one_line(error)
        return Inspection(version, fingerprint, reason)

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
            [version for version, count in self.pinned.items() if count > 0],
            unloaded=self.unloaded,
        )

    def route(self) -> Route:
        """The route that follows from the fields; from now on its version counts as serving."""
        todo = self.plan()
        self.serving = todo.serve
        return Route(
            default=None if todo.serve is None else self.executors[todo.serve],
            executors={} if self.unloaded else dict(self.executors),
            status=self._status(todo.champion),
            required=not self.unloaded and (todo.champion is not None or bool(self.problem)),
        )

    def _status(self, champion: int | None) -> ModelStatus:
        previous = self.disk.state.previous
        versions = []
        known = {*self.directories, *self.executors, *self.refusals}
        if self.loading is not None:
            known.add(self.loading)  # published since the directory was last looked at
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
        )

    def _state(self, version: int) -> tuple[VersionState, str]:
        refusal = self.refusals.get(version)
        if self.unloaded:
            return VersionState.UNLOADED, "unloaded"
        if version in self.executors:
            if refusal is not None:
                return VersionState.READY, f"its changed files are refused: {refusal}"
            return VersionState.READY, "; ".join(self.executors[version].servable.notes)
        if version == self.loading:
            return VersionState.LOADING, ""
        if refusal is not None:
            return VersionState.FAILED, refusal
        return VersionState.UNLOADED, "unloaded"


def _config_of(fingerprint: Fingerprint) -> Fingerprint:
    return tuple(entry for entry in fingerprint if entry[0] == _CONFIG)
