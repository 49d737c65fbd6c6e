"""Files that survive: what returned from here is on the disk, what raised left nothing behind.

Locks are flock locks on files of their own. The kernel drops them when their holder dies, however
it dies, so that a lock is never stale; they hold between threads as well as between processes.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def temporary_path(directory: Path) -> Path:
    """A new hidden name in a directory, for what is not to be seen yet."""
    return directory / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def write_file(path: Path, data: bytes) -> None:
    """Writes and syncs a file; its directory is not synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: every reader sees all of the old one or all of the new one.

    If it is the directory's sync that fails, the new one is in place but may not survive a power
    cut: the only OSError after which something has changed.
    """
    temporary = temporary_path(path.parent)
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: what was created, renamed or removed there."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file exclusively, waiting for whoever holds it. The file stays for ever."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file; False if there is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
