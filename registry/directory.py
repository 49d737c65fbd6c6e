"""A directory of models: the versions of each, which one is champion, what happened.

    MODELS_DIR/
      airtime/                  a ModelDirectory
        trimtab.toml            the operator's; the registry never writes it
        state.json history.jsonl .lock
        1/ manifest.json model.onnx ...
        .tmp-<uuid>/            versions in the making, or on their way out
      .trimtab/airtime/         the server's own data about the model

A version is made beside the others, synced file by file, sealed with its manifest and renamed to
its number (`placement` knows what to do where directories cannot be renamed). The rename is what
makes it a version; it fails on a number that is taken. A version never changes afterwards, and no
number at or below the highest recorded one is given out again. Entering it into the history is a
second step: it covers every version that is there and not yet recorded, so whoever writes next does
it for a publisher that died in between. Removing a version begins with its entry in the history;
whoever writes next takes the directory away if the remover did not come to it.

Everything here may be used from any thread and any process at once. Readers take no lock and never
wait. Writers wait for each other on a lock file and sync to disk: milliseconds, so not for an event
loop. OSError (disk full, no permission) leaves nothing half done. Needs a file system with flock
and an atomic rename of files.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from . import durable, placement, retention, staging
from .errors import (
    BlockedVersionError,
    FrozenModelError,
    InvalidVersionError,
    NoPreviousError,
    RevisionConflictError,
    UnmanagedModelError,
    VersionInUseError,
    VersionNotFoundError,
)
from .history import Draft, HistoryEntry
from .ledger import LedgerWriter
from .manifest import MANIFEST_NAME
from .model_reader import ModelReader
from .names import check_model_name, is_plain
from .state import CHANGES, State, StoredState

DATA_DIRECTORY_NAME = ".trimtab"

_NO_MODEL = "lost+found"  # the file system's own, at the top of a volume


class Why(TypedDict, total=False):
    """What every change is recorded with, as the keyword arguments of the methods that make one."""

    actor: Required[str]
    reason: Required[str]
    evidence: Mapping[str, Any] | None
    expected_revision: int | None  # RevisionConflictError if it is another one by now
    event_time_ms: int | None


class Registry:
    """The models of a directory, by name."""

    def __init__(self, models_dir: Path) -> None:
        self.path = models_dir

    def models(self) -> list[str]:
        """The names in order: every directory whose name is one. OSError if there is no such path."""
        with os.scandir(self.path) as entries:
            return sorted(
                entry.name
                for entry in entries
                if is_plain(entry.name) and entry.name != _NO_MODEL and entry.is_dir()
            )

    def model(self, name: str) -> "ModelDirectory":
        """Does not look whether it is there. InvalidNameError if it cannot be."""
        check_model_name(name)
        return ModelDirectory(self.path / name)

    def data_path(self, name: str) -> Path:
        """Where a server keeps its own data about a model. InvalidNameError as in `model`."""
        check_model_name(name)
        return self.path / DATA_DIRECTORY_NAME / name

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"


class ModelDirectory(ModelReader):
    """One model: what there is of it, and every change of it. Cheap to construct.

    Methods that write raise OSError if the disk does not let them, and then nothing has changed
    (except where a directory's last sync failed: the change is then there, but not yet durable).
    They also raise InvalidStateError if somebody damaged state.json, and LockTimeoutError if another
    writer does not let go of the model's lock. Times are milliseconds since the Unix epoch; an
    `event_time_ms` that is not given is the time of writing.

    The revision that a change may expect counts changes of the champion and of what a rollback
    returns to. Freezing, pinning and the like leave it alone, so that they never make a promotion
    fail that is about something else; a promotion that they are to stop says `automatic`.
    """

    def stage(self) -> staging.StagedVersion:
        """A version to be made; use it in a `with` statement. The model need not exist yet."""
        return staging.StagedVersion(
            self.path,
            model_lock=self._ledger.lock_path,
            clock_ms=self._clock_ms,
            place=self._place,
        )

    def promote(
        self,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        automatic: bool = False,
        made: Callable[[State], object] | None = None,
    ) -> State:
        """Makes a version the champion, and the champion the previous one.

        Nothing changes and nothing is recorded if it is the champion already. It checks that the
        version has a readable manifest, not its hashes: `verify` is the caller's, before.
        `automatic`: no person has asked for it. A person may promote what is blocked, and that
        lifts the block. `made` is called with the new state as soon as readers see it, some syncs of
        the disk before it is durable, which it is on return; not where nothing changes.

        RevisionConflictError if the revision is not the expected one, VersionNotFoundError,
        InvalidVersionError; FrozenModelError or BlockedVersionError if it is automatic.
        """
        self.manifest(version)  # before anything is written: a plain layout stays as it is
        with self._writing() as writer:
            self._check_there(writer, version)
            state = _expect(self.name, writer, expected_revision)
            if version == state.champion:
                return state
            if automatic:
                self._check_automatic(state, version)
            evidence = _marked(evidence, automatic)
            return writer.commit(
                [Draft("promoted", version, actor, reason, evidence, event_time_ms)], made=made
            )

    def rollback(
        self,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        to: int | None = None,
        automatic: bool = False,
        made: Callable[[State], object] | None = None,
    ) -> State:
        """Makes the previous champion the champion again, or the earlier one named by `to`.

        The champion it leaves becomes the previous one, so a second rollback undoes the first;
        unless it is blocked, which to do before keeps every rollback from returning to it. `made` as
        in `promote`.

        RevisionConflictError as in `promote`; NoPreviousError also if `to` is not in the rollback
        window (`State.champions`); VersionNotFoundError or InvalidVersionError if it is no longer
        there; FrozenModelError if it is automatic.
        """
        with self._writing() as writer:
            state = _expect(self.name, writer, expected_revision)
            version = state.previous if to is None else to
            if version is None:
                raise NoPreviousError(f"model '{self.name}' has no previous champion")
            if version not in state.champions:
                window = ", ".join(map(str, state.champions)) or "there are none"
                raise NoPreviousError(
                    f"version {version} is not among the earlier champions of model '{self.name}'"
                    f" that a rollback may return to ({window})"
                )
            self._check_there(writer, version)
            if automatic:
                self._check_automatic(state, version)
            evidence = _marked(evidence, automatic)
            return writer.commit(
                [Draft("rolled_back", version, actor, reason, evidence, event_time_ms)], made=made
            )

    def freeze(self, **why: Unpack[Why]) -> State:
        """From now on no automatic change of champion, until `unfreeze`.

        As for all of the following: nothing is recorded if nothing changes, such as if it is
        frozen for that reason already; UnmanagedModelError for a plain layout.
        """
        return self._mark("frozen", 0, why)

    def unfreeze(self, **why: Unpack[Why]) -> State:
        return self._mark("unfrozen", 0, why)

    def pin(self, version: int, **why: Unpack[Why]) -> State:
        """The version is not removed until `unpin`. Raises as `manifest` does."""
        self.manifest(version)
        return self._mark("pinned", version, why)

    def unpin(self, version: int, **why: Unpack[Why]) -> State:
        return self._mark("unpinned", version, why)

    def block(self, version: int, **why: Unpack[Why]) -> State:
        """No automatic promotion of the version until `unblock`, and no rollback to it at all.

        It leaves the rollback window; if it was the previous champion, the one before takes its
        place, and that counts as a revision. If it is the champion it stays so, and will not enter
        the window when it is left. Raises as `manifest` does.
        """
        self.manifest(version)
        return self._mark("blocked", version, why)

    def unblock(self, version: int, **why: Unpack[Why]) -> State:
        """It may be promoted automatically again; the rollback window stays as it is."""
        return self._mark("unblocked", version, why)

    def challenge(self, version: int, **why: Unpack[Why]) -> State:
        """The version runs beside the champion, to be compared with it; it takes the place of
        another challenger. It ceases to be one when it is promoted or blocked.

        VersionInUseError if it is the champion, BlockedVersionError; raises as `manifest` does.
        """
        self.manifest(version)
        return self._mark("challenged", version, why)

    def unchallenge(self, **why: Unpack[Why]) -> State:
        """There is no challenger any more."""
        return self._mark("unchallenged", 0, why)

    def remove(self, version: int, **why: Unpack[Why]) -> State:
        """Removes a version for good; its number is not used again.

        Readers that have its files open may go on. VersionInUseError if it is champion, previous,
        challenger, in the rollback window or pinned; VersionNotFoundError. OSError may also come
        after the removal was recorded: the next writer then tries to take the directory away.
        """
        self._check_managed()
        if version not in self.version_directories():
            raise VersionNotFoundError(f"model '{self.name}' has no version {version}")
        with self._writing() as writer:
            self._check_not_removed(writer, version)
            state = _expect(self.name, writer, why.get("expected_revision"))
            if role := retention.held(version, state):
                raise VersionInUseError(
                    f"version {version} of model '{self.name}' is {role}: it is not removed"
                )
            state = writer.commit(
                [_draft("removed", version, why)], published=version, removing=version
            )
            hidden = placement.take_away(self.version_path(version))
            writer.removed(version)
        if hidden:
            with contextlib.suppress(OSError):  # `recover` finishes it
                placement.discard(hidden)
        return state

    def retain(self, keep: int, **why: Unpack[Why]) -> list[int]:
        """Removes what `retention.plan` says; returns it. Raises as `remove` does."""
        self._check_managed()
        removed = []
        for version in retention.plan(self.versions(), self.state(), keep):
            # Somebody else may have removed or promoted it in between.
            with contextlib.suppress(VersionNotFoundError, VersionInUseError):
                self.remove(version, **why)
                removed.append(version)
        return removed

    def record(
        self,
        kind: str,
        *,
        actor: str,
        reason: str,
        version: int = 0,
        evidence: Mapping[str, Any] | None = None,
        event_time_ms: int | None = None,
    ) -> HistoryEntry:
        """Adds an entry to the history that changes no state.

        TypeError if the evidence has no JSON form (NaN and infinity become null). ValueError for
        "published", "promoted" and whatever else is written by what it tells of.
        """
        if kind in CHANGES:
            raise ValueError(f"{kind!r} is recorded by the change itself")
        with self._ledger.writing() as writer:
            return writer.record(Draft(kind, version, actor, reason, evidence or {}, event_time_ms))

    def recover(self) -> list[str]:
        """Finishes what dead writers began, or takes it back; says in sentences what it did.

        To be called when a server starts, safe at any time: it harms no living writer. Every
        writer does the same on its way, save for removing what dead publishers left behind. Where
        nothing was ever published or recorded it writes nothing, so a plain layout may be read-only.
        """
        if not self.is_managed() and not self._ledger.lock_path.exists():
            return []  # nobody ever wrote here, and perhaps nobody may
        with self._writing() as writer:
            return writer.repairs + self._remove_abandoned(writer.stored.published)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[LedgerWriter]:
        with self._ledger.writing() as writer:
            writer.repairs += self._finish_removals(writer)
            writer.repairs += [
                f"version {version}: entered into the history, its publisher had not come to it"
                for version in self._record_publications(writer)
            ]
            yield writer

    def _finish_removals(self, writer: LedgerWriter) -> list[str]:
        """Takes away what is recorded as removed. What stays all the same stops no writer."""
        repairs = []
        for version in writer.stored.removing:
            try:
                placement.take_away(self.version_path(version))
                writer.removed(version)
                repairs.append(f"version {version}: taken away, it had been removed")
            except OSError as error:
                repairs.append(f"version {version}: removed, but it cannot be taken away: {error}")
        return repairs

    def _record_publications(self, writer: LedgerWriter) -> list[int]:
        """Enters every version that is there and not in the history yet; returns them."""
        state = writer.stored.state
        first = state.champion is None and not state.frozen
        versions = []
        drafts = []
        for version in self.version_directories():
            if version <= writer.stored.published:
                continue
            try:
                manifest = self.manifest(version)
            except (InvalidVersionError, VersionNotFoundError):
                continue
            if not placement.is_complete(self.version_path(version), manifest):
                continue
            sealed = (self.version_path(version) / MANIFEST_NAME).read_bytes()
            by = manifest.publication
            evidence = {"manifest_sha256": hashlib.sha256(sealed).hexdigest()}
            trigger = manifest.lineage.get("trigger")
            if isinstance(trigger, Mapping) and isinstance(trigger.get("training_id"), str):
                evidence["training_id"] = trigger["training_id"]
            versions.append(version)
            drafts.append(
                Draft("published", version, by.actor, by.reason, evidence, by.event_time_ms)
            )
            if by.champion_if_first and first:
                first = False
                drafts.append(
                    Draft("promoted", version, by.actor, "first version", {}, by.event_time_ms)
                )
        if versions:
            writer.commit(drafts, published=versions[-1])
        return versions

    def _place(self, staged: Path) -> int:
        """Turns a sealed directory into the next version."""
        with self._writing() as writer:
            version = max([writer.stored.published, *self.version_directories()])
            while True:
                version += 1
                target = self.version_path(version)
                try:
                    placement.place(staged, target)
                    break
                except FileExistsError:
                    pass  # a file of that name, or a directory that came just now by other means
            try:
                durable.sync_directory(self.path)
                self._record_publications(writer)
            except OSError:
                if (self._ledger.read() or StoredState()).published < version:
                    placement.take_back(target, staged)
                raise
            return version

    def _remove_abandoned(self, published: int) -> list[str]:
        """Removes temporary files, staged versions and half copies that have no living owner.

        The lock is held: no temporary file is being written, no staging is about to begin.
        """
        removed = []
        for path in sorted(self.path.glob(f"{durable.TEMPORARY_PREFIX}*")):
            if path.is_symlink() or not path.is_dir() or staging.is_abandoned(path):
                placement.discard(path)
                removed.append(f"{path.name}: removed, whoever made it is gone")
        for version in self.version_directories():
            path = self.version_path(version)
            if version > published and placement.is_torso(path):
                placement.discard(path)
                removed.append(f"version {version}: removed, it never came to be whole")
        return removed

    def _mark(self, kind: str, version: int, why: Why) -> State:
        self._check_managed()
        with self._writing() as writer:
            state = _expect(self.name, writer, why.get("expected_revision"))
            if kind in ("pinned", "blocked", "challenged"):
                self._check_there(writer, version)
            if kind == "challenged":
                self._check_challenger(state, version)
            if state.after(kind, version, why["reason"]) == state:
                return state
            return writer.commit([_draft(kind, version, why)])

    def _check_managed(self) -> None:
        if not self.is_managed():
            raise UnmanagedModelError(
                f"model '{self.name}' is not managed: nothing was published into it"
            )

    def _check_there(self, writer: LedgerWriter, version: int) -> None:
        """With the lock held: what was there before may have been removed since."""
        self._check_not_removed(writer, version)
        self.manifest(version)

    def _check_not_removed(self, writer: LedgerWriter, version: int) -> None:
        if version in writer.stored.removing or not self.version_path(version).is_dir():
            raise VersionNotFoundError(f"model '{self.name}' has no version {version} any more")

    def _check_automatic(self, state: State, version: int) -> None:
        if state.frozen:
            raise FrozenModelError(
                f"model '{self.name}' is frozen and takes no automatic change:"
                f" {state.frozen_reason or 'no reason was given'}"
            )
        self._check_not_blocked(state, version)

    def _check_challenger(self, state: State, version: int) -> None:
        if version == state.champion:
            raise VersionInUseError(
                f"version {version} of model '{self.name}' is the champion: it is no challenger"
            )
        self._check_not_blocked(state, version)

    def _check_not_blocked(self, state: State, version: int) -> None:
        if version in state.blocked:
            raise BlockedVersionError(
                f"version {version} of model '{self.name}' is blocked:"
                f" {state.blocked[version] or 'no reason was given'}"
            )

    def __repr__(self) -> str:
        return f"ModelDirectory({str(self.path)!r})"


def _expect(model: str, writer: LedgerWriter, revision: int | None) -> State:
    state = writer.stored.state
    if revision is not None and revision != state.revision:
        raise RevisionConflictError(model, expected=revision, actual=state.revision)
    return state


def _draft(kind: str, version: int, why: Why) -> Draft:
    evidence = why.get("evidence") or {}
    return Draft(kind, version, why["actor"], why["reason"], evidence, why.get("event_time_ms"))


def _marked(evidence: Mapping[str, Any] | None, automatic: bool) -> Mapping[str, Any]:
    """With what tells an automatic change from a person's."""
    return {**(evidence or {}), "automatic": True} if automatic else evidence or {}
