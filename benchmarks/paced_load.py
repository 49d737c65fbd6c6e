"""A load at a fixed rate: the C++ program in peers/paced_client.cpp, made and run.

The loads of load.py and checking_load.py send a request when an answer comes, so that a server which
stalls is asked less meanwhile. This one sends when a request is due and counts its time from then.
Every reply is compared, byte for byte, with those that are expected.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from load import LoadError
from making import MADE, PEERS, run
from numpy.typing import NDArray
from processes import kill_session, killed_if_interrupted

_HINT = "; apt-get install g++"
_ANSWER = np.dtype(
    [("due_ns", "<i8"), ("took_us", "<i4"), ("late_us", "<i4"), ("reply", "<i4"), ("", "<i4")]
)


@dataclass(frozen=True)
class Pace:
    """So many requests a second, evenly, given to the connections in turn."""

    connections: int
    per_s: float


@dataclass(frozen=True)
class Arrivals:
    """One element a request, in the order in which they were due."""

    due_s: NDArray[np.float64]  # time.monotonic()
    took_us: NDArray[np.int32]  # from then until the answer
    late_us: NDArray[np.int32]  # from then until it was sent: the generator's own delay

    def between(self, first_s: float, last_s: float) -> "Arrivals":
        """The requests that were due then, however late they were answered."""
        low, high = np.searchsorted(self.due_s, [first_s, last_s])
        return Arrivals(self.due_s[low:high], self.took_us[low:high], self.late_us[low:high])


class PacedLoad:
    """A load that runs until `stop`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.failed = 0
        self.unexpected = 0
        self.complaint = ""  # of the first that failed

    def stop(self) -> Arrivals:
        """Waits for what is under way."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        told = self._process.stdout.read()
        if self._process.wait(60):
            raise LoadError(f"the paced client ended with {self._process.returncode}")
        totals = json.loads(told)
        self.failed, self.unexpected = totals["failed"], totals["unexpected"]
        self.complaint = totals["complaint"]
        answers = np.fromfile(self._log, _ANSWER)
        self._log.unlink()
        answers = answers[np.argsort(answers["due_ns"], kind="stable")]
        return Arrivals(answers["due_ns"] / 1e9, answers["took_us"], answers["late_us"])


@contextmanager
def pacing(
    address: str, request: bytes, replies: Sequence[bytes], pace: Pace, folder: Path
) -> Iterator[PacedLoad]:
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
    command = [program, port, str(pace.connections), str(pace.per_s), files[0], log]
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
                raise LoadError("the paced client got no answer")
            yield PacedLoad(process, log)
        finally:
            kill_session(process)


def compiled() -> Path:
    """The program, made once for each state of its source. AbsentError where it cannot be."""
    source = PEERS / "paced_client.cpp"
    program = MADE / f"paced-client-{sha256(source.read_bytes()).hexdigest()[:16]}"
    if program.exists():
        return program
    MADE.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_suffix(".tmp")
    run("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", source, "-o", unfinished, hint=_HINT)
    unfinished.rename(program)
    return program
