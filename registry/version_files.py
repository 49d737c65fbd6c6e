"""The files of a version: plain names, regular files, one level, each with its hash.

The manifest and its signature are not among them: a manifest cannot hold its own hash, and the
signature is of it. A symbolic link or an unlisted file would be a way around the hashes:
onnxruntime, for one, opens whatever external data a model file names beside itself.
"""

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

from .errors import InvalidVersionError
from .manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry
from .names import is_plain

_UNLISTED = (MANIFEST_NAME, SIGNATURE_NAME)


def read_entries(directory: Path) -> dict[str, FileEntry]:
    """Hashes every file that a manifest lists. InvalidVersionError if there is what it cannot."""
    entries = {}
    for path in sorted(directory.iterdir()):
        if not is_plain(path.name):
            raise InvalidVersionError(f"{str(path)!r}: not allowed as the name of a version's file")
        _check_regular(path)
        if path.name not in _UNLISTED:
            entries[path.name] = _read_entry(path)
    return entries


def verify(directory: Path, expected: Mapping[str, FileEntry]) -> None:
    """InvalidVersionError unless these files are there, as they were, and nothing else is."""
    if directory.is_symlink():
        raise InvalidVersionError(f"{directory}: a symbolic link")
    _check_regular(directory / MANIFEST_NAME)
    for path in sorted(directory.iterdir()):
        if path.name == SIGNATURE_NAME:
            _check_regular(path)
        elif path.name != MANIFEST_NAME and path.name not in expected:
            raise InvalidVersionError(f"{path}: not in the manifest")
    for name, entry in expected.items():
        path = directory / name
        size = _check_regular(path)
        if size != entry.size:  # not read then: it may be gigabytes of anything
            raise InvalidVersionError(f"{path}: has {size} bytes, the manifest says {entry.size}")
        if _read_entry(path) != entry:
            raise InvalidVersionError(f"{path}: its SHA-256 is not the one in the manifest")


def _check_regular(path: Path) -> int:
    """The file's size in bytes."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise InvalidVersionError(f"{path}: missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidVersionError(f"{path}: not a regular file")
    return status.st_size


def _read_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(digest.hexdigest(), file.tell())
