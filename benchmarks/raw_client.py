"""A C++ program of peers/ that speaks HTTP/2 by itself, made and run: the base of two kinds of load.

`NAME_client.cpp` sends one request over and over until its input ends, compares each answer, byte for
byte, with the replies that are expected, writes a record for each to a log, and prints totals.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from load import LoadError
from making import MADE, PEERS, run
from numpy.typing import NDArray
from processes import kill_session, killed_if_interrupted

_HINT = "; apt-get install g++"


class RawClient:
    """A program that sends until `records` is called; made by `running`."""

    name: ClassVar[str]

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.failed = 0
        self.unexpected = 0
        self.complaint = ""  # of the first that failed

    def records(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Ends it and waits for what is under way; the log. LoadError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        told = self._process.stdout.read()
        if self._process.wait(60):
            raise LoadError(f"the {self.name} client ended with {self._process.returncode}")
        totals = json.loads(told)
        self.failed, self.unexpected = totals["failed"], totals["unexpected"]
        self.complaint = totals["complaint"]
        answers = np.fromfile(self._log, dtype)
        self._log.unlink()
        return answers


_Client = TypeVar("_Client", bound=RawClient)


@contextmanager
def running(
    client: type[_Client],
    address: str,
    options: Sequence[object],
    request: bytes,
    replies: Sequence[bytes],
    folder: Path,
) -> Iterator[_Client]:
    """The program, once its first answer has come; it is gone when the block is left, however.

    `address` is one of 127.0.0.1.
    """
    program = compiled(client.name)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "request", *(folder / f"reply{index}" for index in range(len(replies)))]
    for file, message in zip(files, [request, *replies], strict=True):
        file.write_bytes(message)
    log = folder / "answers"
    command = [program, address.rpartition(":")[2], *options, files[0], log, *files[1:]]
    with killed_if_interrupted() as started:
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        try:
            if process.stdout.readline() != "sending\n":
                raise LoadError(f"the {client.name} client got no answer")
            yield client(process, log)
        finally:
            kill_session(process)


def compiled(name: str) -> Path:
    """The program, made once for each state of its source. AbsentError where it cannot be."""
    source = PEERS / f"{name}_client.cpp"
    program = MADE / f"{name}-client-{sha256(source.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    MADE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(".tmp")
    run("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", source, "-o", unfinished, hint=_HINT)
    unfinished.rename(program)
    return program
