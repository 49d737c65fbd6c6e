"""A version in the making: a hidden directory to write into, then one step that publishes it.

    .tmp-<uuid>/
      lock          held as long as its maker lives, so that `recover` can tell
      version/      what becomes the version: the maker writes here

The lock, not an age, tells who is alive: a training may take a day, and clocks go back.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import durable
from .errors import InvalidVersionError, LockTimeoutError
from .manifest import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    Publication,
    Signature,
)
from .version_files import read_entries

if TYPE_CHECKING:
    from .signing import SigningKey

MODEL_FILE_NAME = "model.onnx"

_LOCK_NAME = "lock"


class StagedVersion:
    """A context manager; leaving it removes whatever was not published, and a model made for it.

    Write the files into `path`, without subdirectories, then call `publish`. One thread at a time.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        model_lock: Path,
        clock_ms: Callable[[], int],
        place: Callable[[Path], int],
    ) -> None:
        self._model_path = model_path
        self._model_lock = model_lock
        self._clock_ms = clock_ms
        self._place = place  # makes a sealed directory the next version
        self._temporary = durable.temporary_path(model_path)
        self._held = contextlib.ExitStack()
        self._made_model = False
        self._published = False

    @property
    def path(self) -> Path:
        """Where to write; there inside the `with` statement, until it is published."""
        return self._temporary / "version"

    def __enter__(self) -> Self:
        while True:
            self._made_model = self._make_model()
            try:
                self._hold()
                return self
            except FileNotFoundError:
                if os.path.lexists(self._model_path):
                    raise
                # Whoever had made it, for a version that came to nothing, removed it just now.

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()
        if self._made_model and not self._published:
            self._remove_empty_model()

    def _make_model(self) -> bool:
        """Whether the model's directory was not there before."""
        try:
            self._model_path.mkdir()
        except FileExistsError:
            return False
        durable.sync_directory(self._model_path.parent)
        return True

    def _hold(self) -> None:
        self._held.callback(shutil.rmtree, self._temporary, ignore_errors=True)
        try:
            # Nobody may find the directory while its lock is not held yet.
            with durable.locked(self._model_lock):
                self._temporary.mkdir()
                self._held.enter_context(durable.locked(self._temporary / _LOCK_NAME))
            self.path.mkdir()
        except BaseException:
            self._held.close()
            raise

    def _remove_empty_model(self) -> None:
        """A model that never had anything in it is none, and would be listed as one."""
        with contextlib.suppress(OSError, LockTimeoutError), durable.locked(self._model_lock):
            if list(self._model_path.iterdir()) == [self._model_lock]:
                self._model_lock.unlink()
                self._model_path.rmdir()

    def publish(
        self,
        *,
        signature: Signature,
        task: str,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, float],
        actor: str,
        reason: str,
        champion_if_first: bool = True,
        event_time_ms: int | None = None,
        signing_key: "SigningKey | None" = None,
    ) -> int:
        """Makes the next version of the files in `path`; returns its number.

        Syncs and hashes every file, so its time grows with their size: some 10 ms and more. With a
        key the manifest is signed. The version is entered into the history as "published" and, if there is no champion yet and
        `champion_if_first`, becomes it ("promoted").

        InvalidVersionError if a file is not a regular one, is hidden, or there is no model.onnx;
        TypeError or ValueError if what is to go into the manifest does not fit it; OSError if the
        disk fails: nothing is published then, and the call may be repeated.
        """
        now_ms = self._clock_ms()
        files = read_entries(self.path)
        if MODEL_FILE_NAME not in files:
            raise InvalidVersionError(f"{self.path}: has no {MODEL_FILE_NAME}")
        manifest = Manifest(
            format=MANIFEST_FORMAT,
            model=self._model_path.name,
            created_ms=now_ms,
            files=files,
            signature=signature,
            task=task,
            lineage=lineage,
            metrics=metrics,
            publication=Publication(
                actor, reason, now_ms if event_time_ms is None else event_time_ms, champion_if_first
            ),
        )
        text = manifest.to_json()
        Manifest.from_json(text)  # what nobody could read must not be published
        for name in files:
            durable.sync_file(self.path / name)
        sealed = text.encode()
        if signing_key is None:
            (self.path / SIGNATURE_NAME).unlink(missing_ok=True)  # of something else, by its maker
        else:
            durable.write_file(self.path / SIGNATURE_NAME, signing_key.sign(sealed))
        durable.write_file(self.path / MANIFEST_NAME, sealed)
        durable.sync_directory(self.path)
        version = self._place(self.path)
        self._published = True
        return version


def is_abandoned(temporary: Path) -> bool:
    """Whether nobody is at work in it any more. To be asked with the model's lock held."""
    return not durable.is_locked(temporary / _LOCK_NAME)
