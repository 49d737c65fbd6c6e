"""The load generator: nghttp2's h2load, sending one gRPC message over and over.

h2load keeps so many streams busy on so many connections and writes down when each answer came. It
knows HTTP only: a gRPC error travels in the trailers behind status 200 and looks like an answer to
it. What it does know is how many bytes of messages came, and an error has none, so `Sent.data_bytes`
tells them apart.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from processes import kill_session, killed_if_interrupted

PACKAGE = "nghttp2-client"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
FRAME_BYTES = 5  # what gRPC puts before each message: a flag and the length

_BEGAN = "Main benchmark duration is started"
_ENDED = "Main benchmark duration is over"


class LoadError(Exception):
    """h2load did not do what was asked; the text says what it said."""


@dataclass(frozen=True)
class Load:
    """So many connections, each with so many requests in flight all the time."""

    connections: int
    streams: int

    @property
    def in_flight(self) -> int:
        return self.connections * self.streams


@dataclass(frozen=True)
class Sent:
    """The totals that h2load prints."""

    done: int
    succeeded: int
    data_bytes: int  # of all answers' messages, with their frames; an error has none


@dataclass(frozen=True)
class Answers:
    """What the log says, one element a request."""

    started_us: NDArray[np.int64]  # wall clock
    took_us: NDArray[np.int64]
    status: NDArray[np.int64]  # of HTTP; -1: the stream failed

    def ended_between(self, first_s: float, last_s: float) -> NDArray[np.int64]:
        """Microseconds that each request took whose answer came between two wall clock times."""
        ended = self.started_us + self.took_us
        return self.took_us[(ended >= first_s * 1e6) & (ended < last_s * 1e6)]


@dataclass(frozen=True)
class Timed:
    """One timed run: what was answered between two moments, and the totals of all of it."""

    took_us: NDArray[np.int64]  # of each request answered between the two moments
    seconds: float  # between them
    cpu_s: float  # that the server used between them
    sent: Sent


def is_installed() -> bool:
    return shutil.which("h2load") is not None


def version() -> str:
    told = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False)
    return told.stdout.strip()


def framed(message: bytes) -> bytes:
    """As gRPC sends it: not compressed, the length in four bytes, the message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def parse_totals(text: str) -> Sent:
    requests = re.search(r"^requests: .*?(\d+) done, (\d+) succeeded", text, re.MULTILINE)
    traffic = re.search(r"^traffic: .*\((\d+)\) data$", text, re.MULTILINE)
    if requests is None or traffic is None:
        raise LoadError(f"h2load said nothing that is known: {text.strip()[-500:]}")
    return Sent(int(requests[1]), int(requests[2]), int(traffic[1]))


def parse_log(text: str) -> Answers:
    """Three columns: start in µs since 1970, HTTP status, µs until the end of the answer."""
    columns = np.array(text.split(), dtype=np.int64).reshape(-1, 3)
    return Answers(columns[:, 0], columns[:, 2], columns[:, 1])


def timed(
    address: str, body: Path, load: Load, seconds: float, server_cpu_s: Callable[[], float]
) -> Timed:
    """Loads the server for so long; `body` holds a framed message, its folder takes the log.

    The server's processor time is read as h2load begins and as it ends, and the answers are
    counted between the same two moments, so both belong to the same stretch of time.
    """
    log = body.with_suffix(".log")
    log.unlink(missing_ok=True)
    options = ["-D", f"{round(seconds * 1000)}ms", "--log-file", str(log)]
    said: list[str] = []
    marks: list[tuple[float, float]] = []
    with _running(address, body, load, options) as output:
        for line in output:
            said.append(line)
            if line.startswith((_BEGAN, _ENDED)):
                marks.append((time.time(), server_cpu_s()))
    if len(marks) != 2:
        raise LoadError(f"h2load did not begin and end: {''.join(said).strip()[-500:]}")
    (first, cpu_before), (last, cpu_after) = marks
    answers = parse_log(log.read_text())
    log.unlink()
    if not len(answers.status) or (answers.status != 200).any():
        found = sorted({int(status) for status in answers.status})
        raise LoadError(f"not every request got HTTP status 200: {found}")
    sent = parse_totals("".join(said))
    took = answers.ended_between(first, last)
    if not len(took):
        raise LoadError(f"none of {sent.done} answers came in the timed part")
    return Timed(took, last - first, cpu_after - cpu_before, sent)


def counted(address: str, body: Path, load: Load, requests: int) -> Sent:
    """Sends so many requests and waits for the last answer."""
    with _running(address, body, load, ["-n", str(requests)]) as output:
        sent = parse_totals(output.read())
    if sent.succeeded != requests:
        raise LoadError(f"{sent.succeeded} of {requests} requests got HTTP status 200")
    return sent


@contextmanager
def _running(address: str, body: Path, load: Load, options: list[str]) -> Iterator[IO[str]]:
    """What h2load prints; it is gone when the block is left, however."""
    command = ["h2load", "-t", "1", "-c", str(load.connections), "-m", str(load.streams), *options]
    command += ["-d", str(body), "-H", "te: trailers", "-H", "content-type: application/grpc"]
    command.append(f"http://{address}{METHOD}")
    with killed_if_interrupted() as started:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process.stdout
            process.wait(30)
        finally:
            kill_session(process)
    if process.returncode:
        raise LoadError(f"h2load ended with {process.returncode}: {' '.join(command)}")
