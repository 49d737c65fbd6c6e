"""The log of labels: what the truth turned out to be, for predictions named by (id, row).

`append` returns once the labels are in `labels/active.frames`, so that an OK means they survive the
process; they survive the machine `fsync_ms` later at most (0: at once). Callers that come together
share one frame and one sync: whoever gets the file writes for all who wait, because a frame has a
price of its own and most labels come one by one.

Nothing is checked here but what the file needs; the feedback service does that. Any thread may
append; `sync_if_due` and `rotate` are the control loop's.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import arrow_frame
from .frame_log import FrameLog, Recovery


@dataclass(frozen=True, slots=True)
class Label:
    """The true value of one prediction: a number or a text."""

    id: str
    row: int
    number: float | None = None
    text: str | None = None


@dataclass(slots=True)
class _Waiting:
    """One caller's labels; `error` and `written` are set by whoever writes them."""

    labels: Sequence[Label]
    event_time_ms: int
    written: bool = False
    error: OSError | None = None


class LabelLog:
    """One model's labels."""

    def __init__(self, folder: Path, fsync_ms: int) -> None:
        self._fsync_s = fsync_ms / 1000
        self._waiting_lock = threading.Lock()  # guards _waiting
        self._waiting: list[_Waiting] = []
        self._file_lock = threading.Lock()  # guards _frames and _synced; taken before the other
        self._frames = FrameLog(folder)
        self._synced = time.monotonic()

    def __repr__(self) -> str:
        return f"LabelLog({self._frames.folder}, total_rows={self.total_rows})"

    @property
    def total_rows(self) -> int:
        """Labels ever taken, those of earlier processes included."""
        return self._frames.total_rows

    def start(self) -> Recovery:
        """Recovers what an earlier process left; raises OSError."""
        with self._file_lock:
            return self._frames.open()

    def append(self, labels: Sequence[Label], event_time_ms: int) -> None:
        """Returns once the labels are in the file; OSError: none of them is."""
        if not labels:
            return
        mine = _Waiting(labels, event_time_ms)
        with self._waiting_lock:
            self._waiting.append(mine)
        with self._file_lock:
            if not mine.written and mine.error is None:
                with self._waiting_lock:
                    together, self._waiting = self._waiting, []
                self._write(together)
        if mine.error is not None:
            raise mine.error

    def sync_if_due(self) -> None:
        """Syncs what is older than `fsync_ms`; raises OSError."""
        with self._file_lock:
            if self._frames.dirty and time.monotonic() - self._synced >= self._fsync_s:
                self._sync()

    def rotate(self) -> None:
        """Finishes the file, so that a trainer may read all of it; raises OSError."""
        with self._file_lock:
            self._frames.rotate()

    def closed_files(self) -> list[Path]:
        """The finished files that were not rolled yet."""
        return self._frames.closed_files()

    def close(self) -> None:
        """Syncs and lets go of the file; raises OSError."""
        with self._file_lock:
            self._frames.close()

    def _write(self, together: Sequence[_Waiting]) -> None:
        rows = sum(len(waiting.labels) for waiting in together)
        try:
            self._frames.append(_payload(together, rows), rows)
            if time.monotonic() - self._synced >= self._fsync_s:
                self._sync()
        except OSError as error:
            for waiting in together:
                waiting.error = error
        else:
            for waiting in together:
                waiting.written = True

    def _sync(self) -> None:
        self._synced = time.monotonic()
        self._frames.sync()


def _payload(together: Sequence[_Waiting], rows: int) -> bytes:
    labels = [label for waiting in together for label in waiting.labels]
    is_number = np.fromiter((label.number is not None for label in labels), np.bool_, rows)
    number = np.fromiter((label.number or 0.0 for label in labels), np.float64, rows)
    is_text = np.fromiter((label.text is not None for label in labels), np.bool_, rows)
    event_time = np.repeat(
        np.array([waiting.event_time_ms for waiting in together], np.int64),
        [len(waiting.labels) for waiting in together],
    )
    columns = [
        arrow_frame.strings("id", [label.id.encode() for label in labels]),
        arrow_frame.numbers("row", np.fromiter((label.row for label in labels), np.uint32, rows)),
        arrow_frame.numbers("number", number, is_number),
        arrow_frame.strings("text", [(label.text or "").encode() for label in labels], is_text),
        arrow_frame.numbers("event_time", event_time),
    ]
    return arrow_frame.encode(columns, rows)
