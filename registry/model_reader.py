"""What there is of a model: its versions, its state, its history. Takes no lock and never waits.

Readers see every change whole: a version appears and goes in one step, state.json is replaced in
one, and entries that a writer has not copied yet are read where they are.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from . import staging, version_files
from .errors import InvalidVersionError, VersionNotFoundError
from .history import History, HistoryEntry
from .ledger import Ledger
from .manifest import MANIFEST_NAME, Manifest
from .state import STATE_NAME, State, StoredState

RECIPE_NAME = "trimtab.toml"

_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # canonical, and an int64


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class ModelReader:
    """One model; nothing is read before it is asked for. `clock_ms` is the writers'."""

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
        and nothing else; no symbolic links; and the manifest is the one in the history, if it is
        there. VersionNotFoundError as in `manifest`.
        """
        manifest = self.manifest(version)
        path = self.version_path(version) / MANIFEST_NAME
        try:
            version_files.verify(self.version_path(version), manifest.files)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InvalidVersionError(f"{error.filename}: {error.strerror}") from None
        entry = self._ledger.find("published", version)
        if entry and entry.evidence.get("manifest_sha256", digest) != digest:
            raise InvalidVersionError(
                f"{path}: is not the one that was published: its SHA-256 is not that in entry"
                f" {entry.sequence} of the history"
            )
        return manifest

    def state(self) -> State:
        """The state as it is now; State() if there never was a change. InvalidStateError."""
        return (self._ledger.read() or StoredState()).state

    def history(self) -> History:
        """All that happened. Reads the whole file: some 25 µs an entry."""
        return self._ledger.history()

    def history_since(self, sequence: int) -> list[HistoryEntry]:
        """The entries after the one with that number; costs as much as they do, however long the
        history is. Their chain is not checked."""
        return self._ledger.since(sequence)

    def _has_manifest(self, version: int) -> bool:
        try:
            self.manifest(version)
        except (VersionNotFoundError, InvalidVersionError):
            return False
        return True

    def _has_model(self, version: int) -> bool:
        return (self.version_path(version) / staging.MODEL_FILE_NAME).is_file()
