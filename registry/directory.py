"""A directory of models: the versions of each, which one is champion, what happened.

    MODELS_DIR/
      airtime/                  a ModelDirectory
        trimtab.toml            the operator's; the registry never writes it
        state.json history.jsonl .lock
        1/ manifest.json model.onnx ...
        .tmp-<uuid>/            versions in the making
      .trimtab/airtime/         the server's own data about the model

A version is made beside the others, synced file by file, sealed with its manifest and renamed to
its number. The rename is what makes it a version; it fails on a number that is taken. A version
never changes afterwards, and no number at or below the highest recorded one is given out again.
Entering it into the history is a second step: it covers every version that is there and not yet
recorded, so whoever writes next does it for a publisher that died in between.

Everything here may be used from any thread and any process at once. Readers take no lock and never
wait. Writers wait for each other on a lock file and sync to disk: milliseconds, so not for an event
loop. OSError (disk full, no permission) leaves nothing half done. Needs a local file system, or one
with POSIX rename and flock.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import durable, staging, version_files
from .errors import (
    InvalidVersionError,
    NoPreviousError,
    RevisionConflictError,
    VersionNotFoundError,
)
from .history import Draft, History, HistoryEntry
from .ledger import Ledger, LedgerWriter
from .manifest import MANIFEST_NAME, Manifest
from .names import check_model_name, is_plain
from .state import STATE_NAME, State, StoredState

RECIPE_NAME = "trimtab.toml"
DATA_DIRECTORY_NAME = ".trimtab"

_NO_MODEL = "lost+found"  # the file system's own, at the top of a volume
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # canonical, and an int64
_CHANGES = ("published", "promoted", "rolled_back")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


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


class ModelDirectory:
    """One model. Cheap to construct: nothing is read before it is asked for.

    Methods that write raise OSError if the disk does not let them, and then nothing has changed
    (except where a directory's last sync failed: the change is then there, but not yet durable).
    They also raise InvalidStateError if somebody damaged state.json, and LockTimeoutError if another
    writer does not let go of the model's lock. Times are milliseconds since the Unix epoch; an `event_time_ms` that is not given is the time of writing.
    """

    def __init__(self, path: Path, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self.path = path
        self.name = path.name
        self._clock_ms = clock_ms
        self._ledger = Ledger(path, clock_ms)

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE_NAME

    def version_path(self, version: int) -> Path:
        return self.path / str(version)

    def is_managed(self) -> bool:
        """Whether versions need a manifest here.

        So it is once something was published, and from the beginning where there is a recipe and
        nothing else. A plain Triton layout stays unmanaged, with a trimtab.toml or without.
        """
        directories = self.version_directories()
        return (
            (self.path / STATE_NAME).exists()
            or any((self.version_path(version) / MANIFEST_NAME).exists() for version in directories)
            or (self.recipe_path.exists() and not any(map(self._has_model, directories)))
        )

    def versions(self) -> list[int]:
        """The versions, ascending: with a readable manifest, or unmanaged with a model.onnx."""
        has = self._has_manifest if self.is_managed() else self._has_model
        return [version for version in self.version_directories() if has(version)]

    def version_directories(self) -> list[int]:
        """Every directory that is called like a version, whole or not, ascending."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(
                    int(entry.name)
                    for entry in entries
                    if _VERSION.fullmatch(entry.name) and entry.is_dir()
                )
        except FileNotFoundError:
            return []

    def manifest(self, version: int) -> Manifest:
        """VersionNotFoundError: no such directory. InvalidVersionError: no readable manifest."""
        directory = self.version_path(version)
        path = directory / MANIFEST_NAME
        try:
            return Manifest.from_json(path.read_bytes())
        except FileNotFoundError:
            if directory.is_dir():
                raise InvalidVersionError(f"{path}: missing") from None
            raise VersionNotFoundError(f"model '{self.name}' has no version {version}") from None
        except OSError as error:
            raise InvalidVersionError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise InvalidVersionError(f"{path}: {error}") from None

    def verify(self, version: int) -> Manifest:
        """Reads every file and compares it with the manifest; some 1 ms a megabyte.

        InvalidVersionError unless the directory holds the files of the manifest, as they were,
        and nothing else; no symbolic links. VersionNotFoundError as in `manifest`.
        """
        manifest = self.manifest(version)
        try:
            version_files.verify(self.version_path(version), manifest.files)
        except OSError as error:
            raise InvalidVersionError(f"{error.filename}: {error.strerror}") from None
        return manifest

    def state(self) -> State:
        """The state as it is now; State() if there never was a change. InvalidStateError."""
        return (self._ledger.read() or StoredState()).state

    def history(self) -> History:
        """All that happened. Reads the whole file: some 25 µs an entry."""
        return self._ledger.history()

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
    ) -> State:
        """Makes a version the champion, and the champion the previous one.

        Nothing changes and nothing is recorded if it is the champion already. It checks that the
        version has a readable manifest, not its hashes: `verify` is the caller's, before.

        RevisionConflictError if the revision is not the expected one, VersionNotFoundError,
        InvalidVersionError.
        """
        self.manifest(version)
        with self._writing() as writer:
            state = self._expect(writer, expected_revision)
            if version == state.champion:
                return state
            draft = Draft("promoted", version, actor, reason, evidence or {}, event_time_ms)
            return _change(writer, state.promoted(version), draft)

    def rollback(
        self,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
    ) -> State:
        """Makes the previous champion the champion again; a second one undoes the first.

        RevisionConflictError as in `promote`, NoPreviousError, and VersionNotFoundError or
        InvalidVersionError if the previous champion is no longer there.
        """
        with self._writing() as writer:
            state = self._expect(writer, expected_revision)
            if state.previous is None:
                raise NoPreviousError(f"model '{self.name}' has no previous champion")
            self.manifest(state.previous)
            draft = Draft(
                "rolled_back", state.previous, actor, reason, evidence or {}, event_time_ms
            )
            return _change(writer, state.rolled_back(), draft)

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
        "published", "promoted" and "rolled_back": those are written by what they tell of.
        """
        if kind in _CHANGES:
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
            return writer.repairs + self._remove_abandoned()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[LedgerWriter]:
        with self._ledger.writing() as writer:
            writer.repairs += [
                f"version {version}: entered into the history, its publisher had not come to it"
                for version in self._record_publications(writer)
            ]
            yield writer

    def _record_publications(self, writer: LedgerWriter) -> list[int]:
        """Enters every version that is there and not in the history yet; returns them."""
        state = writer.stored.state
        versions = []
        drafts = []
        for version in self.version_directories():
            if version <= writer.stored.published:
                continue
            try:
                manifest = self.manifest(version)
            except (InvalidVersionError, VersionNotFoundError):
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
            if by.champion_if_first and state.champion is None:
                state = state.promoted(version)
                drafts.append(
                    Draft("promoted", version, by.actor, "first version", {}, by.event_time_ms)
                )
        if versions:
            writer.commit(state, versions[-1], drafts)
        return versions

    def _place(self, staged: Path) -> int:
        """Turns a sealed directory into the next version."""
        with self._writing() as writer:
            version = max([writer.stored.published, *self.version_directories()])
            while True:
                version += 1
                target = self.version_path(version)
                try:
                    staged.rename(target)
                    break
                except OSError as error:
                    # A file of that name, or a directory that came just now by other means.
                    if error.errno not in (errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                        raise
            try:
                durable.sync_directory(self.path)
                self._record_publications(writer)
            except OSError:
                if (self._ledger.read() or StoredState()).published < version:
                    target.rename(staged)
                raise
            return version

    def _remove_abandoned(self) -> list[str]:
        """Removes temporary files and staged versions that have no living owner.

        The lock is held: no temporary file is being written, no staging is about to begin.
        """
        removed = []
        for path in sorted(self.path.glob(f"{durable.TEMPORARY_PREFIX}*")):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif staging.is_abandoned(path):
                shutil.rmtree(path)
            else:
                continue
            removed.append(f"{path.name}: removed, whoever made it is gone")
        return removed

    def _expect(self, writer: LedgerWriter, revision: int | None) -> State:
        state = writer.stored.state
        if revision is not None and revision != state.revision:
            raise RevisionConflictError(self.name, expected=revision, actual=state.revision)
        return state

    def _has_manifest(self, version: int) -> bool:
        try:
            self.manifest(version)
        except (VersionNotFoundError, InvalidVersionError):
            return False
        return True

    def _has_model(self, version: int) -> bool:
        return (self.version_path(version) / staging.MODEL_FILE_NAME).is_file()

    def __repr__(self) -> str:
        return f"ModelDirectory({str(self.path)!r})"


def _change(writer: LedgerWriter, state: State, draft: Draft) -> State:
    writer.commit(state, writer.stored.published, [draft])
    return state
