"""A load whose every answer is read: the C++ program in peers/checking_client.cpp, made and run.

h2load counts answers and times them but does not know one from another. This knows: each answer is
compared, byte for byte, with the replies that are expected, and written down with the time at which
it came, on the clock that `time.monotonic` reads in every process of this machine.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import raw_client
from load import Load
from numpy.typing import NDArray
from raw_client import RawClient, running

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


class CheckedLoad(RawClient):
    """A load that runs until `stop`."""

    name = "checking"

    def stop(self) -> Answers:
        """Waits for what is under way."""
        answers = self.records(_ANSWER)
        return Answers(answers["at_ns"] / 1e9, answers["took_us"], answers["reply"])


@contextmanager
def sending(
    address: str, request: bytes, replies: Sequence[bytes], load: Load, folder: Path
) -> Iterator[CheckedLoad]:
    """The load, once the first answer has come; it is gone when the block is left, however.

    `address` is one of 127.0.0.1.
    """
    options = (load.connections, load.streams)
    with running(CheckedLoad, address, options, request, replies, folder) as sent:
        yield sent


def compiled() -> Path:
    """The program. AbsentError where it cannot be made."""
    return raw_client.compiled(CheckedLoad.name)
