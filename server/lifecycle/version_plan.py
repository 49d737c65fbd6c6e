"""Which versions of a model should be loaded and which one answers: values in, a decision out.

The lifecycle looks at the disk and at what it has, asks here, and does it. Everything is a desired
list ("these versions should be loaded"), so that a restart, a retry and a change made by another
process need no code of their own.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trimtab.registry.state import State

from ..inference.statistics import VersionStatistics


class VersionState(enum.Enum):
    """What becomes of a version; see TRANSITIONS."""

    UNLOADED = "UNLOADED"
    LOADING = "LOADING"  # its files are compared with their hashes, its session is made
    VERIFYING = "VERIFYING"  # its signature is compared, its golden rows are replayed
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"  # takes no more requests, and computes those that it has
    FAILED = "FAILED"

    @property
    def on_the_way(self) -> bool:
        """It will be READY soon, if nothing fails."""
        return self in (VersionState.LOADING, VersionState.VERIFYING, VersionState.WARMING)


_S = VersionState

# A version that is READY stays so while its changed files are loaded or if they are refused.
TRANSITIONS: Mapping[VersionState, frozenset[VersionState]] = {
    # FAILED at once: its files are broken, no need to load it to know.
    _S.UNLOADED: frozenset({_S.LOADING, _S.FAILED}),
    _S.LOADING: frozenset({_S.VERIFYING, _S.FAILED}),
    _S.VERIFYING: frozenset({_S.WARMING, _S.FAILED}),
    # DRAINING at once: an operator unloaded the model meanwhile.
    _S.WARMING: frozenset({_S.READY, _S.FAILED, _S.DRAINING}),
    _S.READY: frozenset({_S.DRAINING}),
    # READY: wanted again before it was gone. FAILED: its files had been changed and are refused.
    _S.DRAINING: frozenset({_S.UNLOADED, _S.READY, _S.FAILED}),
    # LOADING: its files changed, or it is time to try again, or somebody asks for it.
    # UNLOADED: repaired and not wanted, or an operator unloaded the model.
    _S.FAILED: frozenset({_S.LOADING, _S.UNLOADED}),
}


@dataclass(frozen=True)
class VersionStatus:
    """One version directory as RepositoryIndex and ListVersions show it."""

    version: int
    state: VersionState
    reason: str  # why it is not READY, or what an operator should know
    role: str  # champion, previous or empty
    stats: VersionStatistics | None  # of the loaded version
    refusal: str = ""  # why its files as they are now cannot be served, though earlier ones may be


@dataclass(frozen=True)
class Split:
    """A challenger answers a share of the requests that name no version."""

    version: int
    share: float  # 0 to 1


@dataclass(frozen=True)
class ModelStatus:
    """One model directory."""

    model: str
    managed: bool
    revision: int
    champion: int | None  # should answer: as the registry says, or the highest unmanaged version
    previous: int | None
    serving: int | None  # answers requests that name no version
    versions: tuple[VersionStatus, ...]  # ascending
    reason: str  # why nothing of it can be served
    split: Split | None = None


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of an unmanaged model are loaded; the highest of them answers."""

    latest: int = 1  # so many of the highest; 0: no limit
    only: frozenset[int] | None = None  # of these alone


@dataclass(frozen=True)
class OnDisk:
    """A model directory as it was found."""

    managed: bool
    versions: tuple[int, ...]  # ascending
    state: State
    extra: tuple[int, ...] = ()  # versions that the operator wants loaded
    policy: VersionPolicy = VersionPolicy()  # of a model that is not managed


@dataclass(frozen=True)
class Have:
    """What the lifecycle has of the model."""

    ready: Collection[int]
    failed: Collection[int]  # refused, and not to be tried again now
    stale: Collection[int] = ()  # ready, but their files changed since
    serving: int | None = None


@dataclass(frozen=True)
class Plan:
    """What to do: load in this order, then let `serve` answer, then retire."""

    champion: int | None  # should answer
    load: tuple[int, ...]
    serve: int | None  # of those that are ready now
    retire: tuple[int, ...]


def plan(disk: OnDisk, have: Have, held: Collection[int] = (), *, unloaded: bool = False) -> Plan:
    """`held` versions are needed by somebody: they stay whatever the rest says. `unloaded`: an
    operator wants nothing of the model to answer."""
    if disk.managed:
        champion = disk.state.champion
        order = [champion, disk.state.previous, *disk.extra]
        wanted = [version for version in order if version is not None]
    else:
        # The highest versions, or the highest ones that can be loaded.
        only = disk.policy.only
        allowed = [version for version in disk.versions if only is None or version in only]
        champion = allowed[-1] if allowed else None
        wanted = []
        good = 0
        for version in reversed(allowed):
            wanted.append(version)
            good += version in have.ready or version not in have.failed
            if good and good == disk.policy.latest:
                break
        wanted += [version for version in disk.extra if version in disk.versions]
    if unloaded:
        wanted = []
    wanted = list(dict.fromkeys([*wanted, *held]))
    serve = None if unloaded else _serving(champion, wanted, have)
    load = [
        version
        for version in wanted
        if version not in have.failed and (version not in have.ready or version in have.stale)
    ]
    retire = [version for version in have.ready if version not in wanted and version != serve]
    return Plan(champion, tuple(load), serve, tuple(sorted(retire)))


def _serving(champion: int | None, wanted: list[int], have: Have) -> int | None:
    """The champion; while it cannot, the one that answers now; else the next best."""
    if champion is None:
        return None
    for version in [champion, have.serving, *wanted]:
        if version is not None and version in have.ready:
            return version
    return None
