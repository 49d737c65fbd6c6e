"""The lock that one training or rolling of a model holds: flock on `trainer.lock`.

The kernel releases it when its holder ends, however it ends. The file names the holder's process
for the message that the next one gets; it is never removed, because a waiting process could then
lock a file that is no longer there.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BusyError


@contextmanager
def trainer_lock(data: Path, model: str) -> Iterator[None]:
    """Holds the lock of the model whose data directory is `data`; BusyError where it is taken."""
    data.mkdir(parents=True, exist_ok=True)
    path = data / "trainer.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = path.read_text(errors="replace").strip() or "unknown"
            raise BusyError(
                f"another process (pid {holder}) is training {model} or rolling its log; "
                f"it holds {path}"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)
