"""The files of a version: plain names, regular files, one level, each with its hash.

A symbolic link or an unlisted file would be a way around the hashes: onnxruntime, for one, opens
whatever external data a model file names beside itself.
"""

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import InvalidVersionError
from .manifest import MANIFEST_NAME, FileEntry
from .names import is_plain


def read_entries(directory: Path) -> dict[str, FileEntry]:
    """Hashes every file but the manifest. InvalidVersionError if there is anything else."""
    entries = {}
    for path in sorted(directory.iterdir()):
        if not is_plain(path.name):
            raise InvalidVersionError(f"{str(path)!r}: not allowed as the name of a version's file")
        _check_regular(path)
        if path.name != MANIFEST_NAME:
            entries[path.name] = _read_entry(path)
    return entries


def verify(directory: Path, expected: Mapping[str, FileEntry]) -> None:
    """InvalidVersionError unless these files are there, as they were, and nothing else is."""
    if directory.is_symlink():
        raise InvalidVersionError(f"{directory}: a symbolic link")
    _check_regular(directory / MANIFEST_NAME)
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST_NAME and path.name not in expected:
            raise InvalidVersionError(f"{path}: not in the manifest")
    for name, entry in expected.items():
        path = directory / name
        _check_regular(path)
        actual = _read_entry(path)
        if actual.size != entry.size:
            raise InvalidVersionError(
                f"{path}: has {actual.size} bytes, the manifest says {entry.size}"
            )
        if actual.sha256 != entry.sha256:
            raise InvalidVersionError(f"{path}: its SHA-256 is not the one in the manifest")


def _check_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise InvalidVersionError(f"{path}: missing") from None
    if not stat.S_ISREG(mode):
        raise InvalidVersionError(f"{path}: not a regular file")


def _read_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(digest.hexdigest(), file.tell())
