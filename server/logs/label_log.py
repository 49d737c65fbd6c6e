"""The log of labels: what the truth turned out to be, for predictions named by (id, row).

`append` returns once the labels are in `labels/active.frames`, so that an OK means they survive the
process; they survive the machine `fsync_ms` later at most (0: at once). Callers that come together
share one frame and one sync: whoever gets the file writes for all who wait, because a frame has a
price of its own and most labels come one by one.

Beside the total, the ages of the labels are kept (label_ages.py), so that young ones can be told
from mature ones. `ages.json` has those of the finished files, which are rolled and removed; those of
the active file are in its frames.

Nothing is checked here but what the file needs; the feedback service does that. Any thread may
append and `sync`; `sync_if_due` and `rotate` are the control loop's.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import arrow_frame
from .frame_log import FrameLog, Recovery, read_frames
from .label_ages import LabelAges

_AGES = "ages.json"


@dataclass(frozen=True, slots=True)
class Label:
    """The true value of one prediction: a number or a text."""

    id: str
    row: int
    number: float | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Labels ever taken, at one moment."""

    mature: int
    young: int


@dataclass(slots=True)
class _Waiting:
    """One caller's labels; `error` and `written` are set by whoever writes them."""

    labels: Sequence[Label]
    event_time_ms: int
    written: bool = False
    error: OSError | None = None


class LabelLog:
    """One model's labels."""

    def __init__(
        self, folder: Path, fsync_ms: int, believed: Callable[[int], int] = lambda time_ms: time_ms
    ) -> None:
        """`believed`: when labels became known that say they did at some time."""
        self._believed = believed
        self._fsync_s = fsync_ms / 1000
        self._waiting_lock = threading.Lock()  # guards _waiting
        self._waiting: list[_Waiting] = []
        self._file_lock = threading.Lock()  # guards _frames and _synced; taken before the other
        self._frames = FrameLog(folder)
        self._synced = time.monotonic()
        self._ages_lock = threading.Lock()  # guards the two below, which change under _file_lock
        self._ages = LabelAges()
        self._counted = 0  # the total that _ages goes with

    def __repr__(self) -> str:
        return f"LabelLog({self._frames.folder}, total_rows={self.total_rows})"

    @property
    def total_rows(self) -> int:
        """Labels ever taken, those of earlier processes included."""
        return self._frames.total_rows

    def start(self) -> Recovery:
        """Recovers what an earlier process left; raises OSError."""
        with self._file_lock:
            recovery = self._frames.open()
            self._recover_ages()
            return recovery

    def counts(self, now_ms: int, maturity_ms: int) -> LabelCounts:
        """Mature are labels that became known `maturity_ms` ago or earlier; with 0 all are."""
        if not maturity_ms:
            return LabelCounts(self.total_rows, 0)
        with self._ages_lock:
            young = self._ages.young(now_ms, maturity_ms)
            return LabelCounts(self._counted - young, young)

    def append(self, labels: Sequence[Label], event_time_ms: int) -> None:
        """Returns once the labels are in the file; OSError: none of them is."""
        self.append_parts([(labels, event_time_ms)])

    def append_parts(self, parts: Sequence[tuple[Sequence[Label], int]]) -> None:
        """Labels that became known at several times, in one frame; as `append`."""
        mine = [_Waiting(labels, time_ms) for labels, time_ms in parts if labels]
        if not mine:
            return
        last = mine[-1]  # whoever writes one of them writes all
        with self._waiting_lock:
            self._waiting += mine
        with self._file_lock:
            if not last.written and last.error is None:
                with self._waiting_lock:
                    together, self._waiting = self._waiting, []
                self._write(together)
        if last.error is not None:
            raise last.error

    def sync(self) -> None:
        """Returns once all that was appended is on the disk; raises OSError."""
        with self._file_lock:
            if self._frames.dirty:
                self._sync()

    def sync_if_due(self) -> None:
        """Syncs what is older than `fsync_ms`; raises OSError."""
        with self._file_lock:
            if self._frames.dirty and time.monotonic() - self._synced >= self._fsync_s:
                self._sync()

    def rotate(self) -> None:
        """Finishes the file, so that a trainer may read all of it; raises OSError."""
        with self._file_lock:
            closed = self._frames.rotate()
            if closed is not None:
                self._write_ages(self._ages, closed)

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
            with self._ages_lock:
                for waiting in together:
                    self._ages.add(self._believed(waiting.event_time_ms), len(waiting.labels))
                self._counted = self._frames.total_rows
            for waiting in together:
                waiting.written = True

    def _sync(self) -> None:
        self._synced = time.monotonic()
        self._frames.sync()

    def _recover_ages(self) -> None:
        """From `ages.json`, the files that were finished after it was written, and the active one."""
        ages, through = LabelAges(), ""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or torn
            written = json.loads((self._frames.folder / _AGES).read_text(encoding="utf-8"))
            ages, through = LabelAges.load(written["ages"]), str(written["through"])
        later = [path for path in self._frames.closed_files() if path.name > through]
        for path in later:
            self._add_ages(ages, path)
        if later:
            self._write_ages(ages, later[-1])
        self._add_ages(ages, self._frames.active)
        with self._ages_lock:
            self._ages, self._counted = ages, self._frames.total_rows

    def _add_ages(self, ages: LabelAges, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # rolled meanwhile: its labels are mature
            for rows, payload in read_frames(path):
                known = arrow_frame.last_int64(payload, rows).tolist()
                for event_time_ms, same in itertools.groupby(known):
                    ages.add(self._believed(event_time_ms), sum(1 for _ in same))

    def _write_ages(self, ages: LabelAges, through: Path) -> None:
        """Replaces `ages.json`; if it fails, the finished files are read at the next start."""
        path = self._frames.folder / _AGES
        temporary = path.with_suffix(".json.tmp")
        with contextlib.suppress(OSError), temporary.open("w", encoding="utf-8") as file:
            json.dump({"through": through.name, "ages": ages.dump()}, file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)


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
