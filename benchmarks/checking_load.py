"""A load whose every answer is read: the C++ program in peers/checking_client.cpp, made and run.

h2load counts answers and times them but does not know one from another. This knows: each answer is
compared, byte for byte, with the replies that are expected, and written down with the time at which
it came, on the clock that `time.monotonic` reads in every process of this machine.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from load import Load, LoadError
from making import MADE, PEERS, run
from numpy.typing import NDArray
from processes import kill_session, killed_if_interrupted

_HINT = "; apt-get install g++"
_ANSWER = np.dtype([("at_ns", "<i8"), ("took_us", "<i4"), ("reply", "<i4")])
ERROR, UNEXPECTED = -1, -2  # in place of a reply's index


@dataclass(frozen=True)
class Answers:
    """One element an answer, in the order in which they came."""

    at_s: NDArray[np.float64]  # time.monotonic()
    took_us: NDArray[np.int32]
    reply: NDArray[np.int32]  # an index, ERROR or UNEXPECTED

    def between(self, first_s: float, last_s: float) -> "Answers":
        low, high = np.searchsorted(self.at_s, [first_s, last_s])
        return Answers(self.at_s[low:high], self.took_us[low:high], self.reply[low:high])


class CheckedLoad:
    """A load that runs until `stop`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.failed = 0
        self.unexpected = 0
        self.complaint = ""  # of the first that failed

    def stop(self) -> Answers:
        """Waits for what is under way."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        told = self._process.stdout.read()
        if self._process.wait(60):
            raise LoadError(f"the checking client ended with {self._process.returncode}")
        totals = json.loads(told)
        self.failed, self.unexpected = totals["failed"], totals["unexpected"]
        self.complaint = totals["complaint"]
        answers = np.fromfile(self._log, _ANSWER)
        self._log.unlink()
        return Answers(answers["at_ns"] / 1e9, answers["took_us"], answers["reply"])


@contextmanager
def sending(
    address: str, request: bytes, replies: Sequence[bytes], load: Load, folder: Path
) -> Iterator[CheckedLoad]:
    """The load, once the first answer has come; it is gone when the block is left, however.

    `address` is one of 127.0.0.1.
    """
    program = compiled()
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "request", *(folder / f"reply{index}" for index in range(len(replies)))]
    for file, message in zip(files, [request, *replies], strict=True):
        file.write_bytes(message)
    log = folder / "answers"
    port = address.rpartition(":")[2]
    command = [program, port, str(load.connections), str(load.streams), files[0], log]
    with killed_if_interrupted() as started:
        process = subprocess.Popen(
            [*map(str, command), *map(str, files[1:])],
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
                raise LoadError("the checking client got no answer")
            yield CheckedLoad(process, log)
        finally:
            kill_session(process)


def compiled() -> Path:
    """The program, made once for each state of its source. AbsentError where it cannot be."""
    source = PEERS / "checking_client.cpp"
    program = MADE / f"checking-client-{sha256(source.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    MADE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(".tmp")
    run("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", source, "-o", unfinished, hint=_HINT)
    unfinished.rename(program)
    return program
