"""A load at a fixed rate: the C++ program in peers/paced_client.cpp, made and run.

The loads of load.py and checking_load.py send a request when an answer comes, so that a server which
stalls is asked less meanwhile. This one sends when a request is due and counts its time from then.
Every reply is compared, byte for byte, with those that are expected.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import raw_client
from numpy.typing import NDArray
from raw_client import RawClient, running

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


class PacedLoad(RawClient):
    """A load that runs until `stop`."""

    name = "paced"

    def stop(self) -> Arrivals:
        """Waits for what is under way."""
        answers = self.records(_ANSWER)
        answers = answers[np.argsort(answers["due_ns"], kind="stable")]
        return Arrivals(answers["due_ns"] / 1e9, answers["took_us"], answers["late_us"])


@contextmanager
def pacing(
    address: str, request: bytes, replies: Sequence[bytes], pace: Pace, folder: Path
) -> Iterator[PacedLoad]:
    """The load, once the first answer has come; it is gone when the block is left, however.

    `address` is one of 127.0.0.1.
    """
    options = (pace.connections, pace.per_s)
    with running(PacedLoad, address, options, request, replies, folder) as load:
        yield load


def compiled() -> Path:
    """The program. AbsentError where it cannot be made."""
    return raw_client.compiled(PacedLoad.name)
