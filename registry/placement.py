"""How a sealed directory becomes a numbered one, and how a numbered one goes.

Renaming a directory is one atomic step on a POSIX file system. Buckets mounted as file systems, and
some network ones, refuse it or do it piece by piece. What holds everywhere is the order of writing:
the manifest comes last and goes first, and a directory without one is no version. Where the rename
is refused, the directory is therefore made anew under its number (mkdir is the lock: it fails for
all but one), the files are put into it under their names, and then the manifest.

Callers hold the model's lock.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from . import durable
from .manifest import MANIFEST_NAME, Manifest
from .staging import MODEL_FILE_NAME

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # by a directory, or by a file
_REFUSED = (errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EINVAL)
_CHUNK_BYTES = 1 << 20


def place(staged: Path, target: Path) -> None:
    """Makes a sealed directory appear under its number, whole or not at all.

    FileExistsError if the number is taken; OSError if the disk fails, and then nothing has changed.
    """
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno in _TAKEN and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        if error.errno not in _TAKEN + _REFUSED:
            raise
        _copy(staged, target)


def take_back(target: Path, staged: Path) -> None:
    """Undoes `place`."""
    if staged.exists():
        _remove_in_place(target)
    else:
        target.rename(staged)


def take_away(directory: Path) -> Path | None:
    """Makes a numbered directory disappear in one step; nothing happens if it is not there.

    Returns where its contents are hidden now, for `discard`, if anywhere. OSError if it stays: as
    it was, or without its manifest.
    """
    hidden = None
    if directory.is_symlink():
        directory.unlink()
    else:
        hidden = durable.temporary_path(directory.parent)
        try:
            directory.rename(hidden)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _TAKEN + _REFUSED:
                raise
            _remove_in_place(directory)
            hidden = None
    durable.sync_directory(directory.parent)
    return hidden


def discard(path: Path) -> None:
    """Removes what nobody sees: a link itself, a directory with all that it holds."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):  # somebody else is at it
            shutil.rmtree(path)


def is_torso(directory: Path) -> bool:
    """Whether it is what a writer left that died while it copied: for numbers not yet given out."""
    names = [path.name for path in directory.iterdir()]
    return MANIFEST_NAME not in names and (
        not names or any(name.startswith(durable.TEMPORARY_PREFIX) for name in names)
    )


def is_complete(directory: Path, manifest: Manifest) -> bool:
    """Whether all files of the manifest are there in full length; a look, not a verification.

    A file system that renames piece by piece may have begun with the manifest.
    """
    try:
        return all(
            (directory / name).stat().st_size == entry.size
            for name, entry in manifest.files.items()
        )
    except OSError:
        return False


def _copy(staged: Path, target: Path) -> None:
    """The manifest comes first under a hidden name, by which `is_torso` knows an unfinished copy.

    The model gets its name when all else is there, since in a directory that was never published
    into, a version is what has a model.onnx; then the manifest gets its own.
    """
    target.mkdir()
    try:
        manifest = durable.temporary_path(target)
        durable.write_file(manifest, (staged / MANIFEST_NAME).read_bytes())
        model = durable.temporary_path(target)
        _copy_file(staged / MODEL_FILE_NAME, model)
        for source in sorted(staged.iterdir()):
            if source.name not in (MODEL_FILE_NAME, MANIFEST_NAME):
                _copy_file(source, target / source.name)
        model.replace(target / MODEL_FILE_NAME)
        durable.sync_directory(target)
        manifest.replace(target / MANIFEST_NAME)
        durable.sync_directory(target)
    except OSError:
        with contextlib.suppress(OSError):
            _remove_in_place(target)
        raise


def _copy_file(source: Path, target: Path) -> None:
    """A second name for the same data where there can be one; the source is synced already."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as data, target.open("xb", buffering=0) as copy:
            while chunk := data.read(_CHUNK_BYTES):
                durable.write_all(copy.fileno(), chunk)
            os.fsync(copy.fileno())


def _remove_in_place(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink(missing_ok=True)  # from here on it is no version
    with contextlib.suppress(OSError):
        durable.sync_directory(directory)
    shutil.rmtree(directory)
