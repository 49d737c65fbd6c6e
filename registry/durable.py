"""Files that survive: what returned from here is on the disk, what raised left nothing behind.

Locks are flock locks on files of their own. The kernel drops them when their holder dies, however
it dies, so that a lock is never stale; they hold between threads as well as between processes. A
holder that lives and does not go on (a stopped process, a stuck disk) is not waited for without end.
"""

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import LockTimeoutError

TEMPORARY_PREFIX = ".tmp-"
LOCK_LIMIT_S = 10.0  # that a lock is waited for; holders need milliseconds

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02


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


def replace_file(path: Path, data: bytes, replaced: Callable[[], object] = lambda: None) -> None:
    """Replaces a file as a whole: every reader sees all of the old one or all of the new one.

    `replaced` is called when they see the new one, which may not survive a power cut yet. If the
    directory's sync fails then, this is so still: the only OSError after which something has changed.
    """
    temporary = temporary_path(path.parent)
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    try:
        replaced()
    finally:
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: what was created, renamed or removed there.

    A file system that does not know how to sync a directory is taken at its word.
    """
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file exclusively, waiting for whoever holds it.

    LockTimeoutError after LOCK_LIMIT_S.
    """
    with contextlib.ExitStack() as held:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            held.callback(os.close, fd)
            _wait_for(fd, path, LOCK_LIMIT_S)
            if _is_at(fd, path):
                break
            held.close()  # the file was removed meanwhile: whoever comes now locks another one
        yield


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _wait_for(fd: int, path: Path, limit_s: float) -> None:
    """Asks again and again: flock knows no limit, and only a main thread could be interrupted."""
    deadline = time.monotonic() + limit_s
    pause_s = _FIRST_PAUSE_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= deadline:
            raise LockTimeoutError(
                f"another process or thread has held the lock {path} for more than {limit_s:g} s"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


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
