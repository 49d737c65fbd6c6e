"""One server per models directory, and how the command line finds it.

Two servers would write the same traffic log and decide over each other's head, so a server holds
an advisory lock while it runs; the kernel lets it go however the server ends. Beside the lock lies
`server.json` with the process id and the addresses. It is only believed together with the lock or a
live process, since a killed server leaves it behind.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import IO

from trimtab.registry.directory import DATA_DIRECTORY_NAME

LOCK_NAME = "server.lock"
ADDRESS_NAME = "server.json"


class AlreadyServedError(Exception):
    """Another server runs on the directory; the message names its process and addresses."""


class ServerLock:
    """Held from `take` to `release`."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._folder = models_dir / DATA_DIRECTORY_NAME
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Raises AlreadyServedError, or OSError when the directory cannot be written."""
        self._folder.mkdir(exist_ok=True)
        file = (self._folder / LOCK_NAME).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AlreadyServedError(
                f"{self._models_dir} is already served{self._other()}; stop that server first"
            ) from None
        self._file = file

    def tell(
        self, inference: str, admin: str, metrics: str | None = None, *, admin_tls: bool = False
    ) -> None:
        """Lets the command line find this server."""
        content = {
            "pid": os.getpid(),
            "inference": inference,
            "admin": admin,
            "admin_tls": admin_tls,
            "metrics": metrics,
        }
        target = self._folder / ADDRESS_NAME
        staged = target.with_suffix(".tmp")
        staged.write_text(json.dumps(content) + "\n", encoding="utf-8")
        staged.replace(target)

    def release(self) -> None:
        if self._file is not None:
            (self._folder / ADDRESS_NAME).unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _other(self) -> str:
        try:
            told = json.loads((self._folder / ADDRESS_NAME).read_text(encoding="utf-8"))
            return (
                f" by process {told['pid']} (inference {told['inference']}, admin {told['admin']})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            return " by another process"
