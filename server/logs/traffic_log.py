"""The log of predictions: what came in, what went out and when, for the trainer to learn from.

`append` takes a batch on the executor's thread in a microsecond and never waits: it puts the batch
into a queue that is bounded in rows and bytes and counts what does not fit, exactly. So does it
with what exceeds `max_rows_per_s`: a saturated server would fill a disk in hours with rows that no
training has the time to read.

A thread of the log gathers batches into frames of `flush_rows` rows or `flush_ms` age, since a
frame has a price of its own, writes them to `traffic/active.frames` (frame_log.py) and syncs that
every `fsync_ms`. So a killed process loses what was not yet flushed, a machine that loses its power
what was not yet synced, and nothing else. The file is finished, and another begun, after
`segment_rows` rows (fewer of very wide ones), and when a training is about to read it.

Frames of one file need not have the same columns, since a model may take rows of any width. But no
file has two types under one name, which its readers could not join.

A disk that is full or broken never stops serving: the frame at hand is tried again until it goes
through, the queue fills, and further rows are dropped and counted. It is reported once per outage.

Every appended row is in exactly one of `rows_written`, `rows_dropped` and `rows_queued`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..config import TrafficConfig
from ..inference.observation import ObservedBatch
from . import arrow_frame
from .frame_log import FrameLog, Recovery
from .traffic_rows import Shape, TrafficLayout, columns_of

_log = logging.getLogger(__name__)

_MAX_QUEUED_BYTES = 512 * 1024 * 1024
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_MAX_FILE_CELLS = 64 * 1024 * 1024  # rows × columns of all frames, as a reader may lay them out
_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # waits between tries of a frame; the last one repeats


@dataclass(frozen=True)
class TrafficStats:
    """Counts since the log was opened."""

    rows_logged: int = 0  # ever taken into the queue
    rows_dropped: int = (
        0  # not taken because of the rate or a full queue, or taken and never writable
    )
    rows_written: int = 0
    rows_queued: int = 0
    bytes_written: int = 0
    frames: int = 0
    write_errors: int = 0
    failing: str = ""  # why nothing can be written at the moment


@dataclass(slots=True)
class _Entry:
    batch: ObservedBatch
    layout: TrafficLayout
    size: int


@dataclass(slots=True)
class _Barrier:
    """Answered once everything before it is in the file."""

    rotate: bool
    done: threading.Event = field(default_factory=threading.Event)
    written: bool = False


class TrafficLog:
    """One model's log; `append` from any thread, the rest from the control loop's."""

    def __init__(
        self,
        folder: Path,
        config: TrafficConfig,
        on_problem: Callable[[str], None] = lambda reason: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_problem` is told, on the log's thread, when writing begins to fail ("" as it ends)."""
        self._config = config
        self._frames = FrameLog(folder)
        self._on_problem = on_problem
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name=f"traffic-{folder.parent.name}")
        self._thread.daemon = True  # a stuck disk must not keep the process
        # `_changed` guards every field below down to the blank line.
        self._changed = threading.Condition()
        self._queue: deque[_Entry | _Barrier] = deque()
        self._queued_rows = 0
        self._queued_bytes = 0
        self._barriers = 0
        self._oldest = 0.0  # when the queue's first entry came, time.monotonic()
        self._closing = False
        self._rows_logged = 0
        self._rows_dropped = 0
        self._rows_written = 0
        self._bytes_written = 0
        self._frame_count = 0
        self._write_errors = 0
        self._failing = ""
        self._allowance = float(config.max_rows_per_s)  # rows that the rate still allows
        self._refilled = clock()

        # Of the active file, by column; None: of an earlier process. The log's thread's.
        self._kinds: dict[str, str] | None = None
        self._synced = time.monotonic()

    def __repr__(self) -> str:
        return f"TrafficLog({self._frames.folder}, {self.stats})"

    @property
    def stats(self) -> TrafficStats:
        with self._changed:
            return TrafficStats(
                rows_logged=self._rows_logged,
                rows_dropped=self._rows_dropped,
                rows_written=self._rows_written,
                rows_queued=self._queued_rows,
                bytes_written=self._bytes_written,
                frames=self._frame_count,
                write_errors=self._write_errors,
                failing=self._failing,
            )

    def start(self) -> Recovery:
        """Recovers what an earlier process left and begins to write; raises OSError."""
        recovery = self._frames.open()
        self._thread.start()
        return recovery

    def append(self, batch: ObservedBatch, layout: TrafficLayout) -> None:
        """Takes a batch, or drops and counts it beyond the rate or the queue's end; never waits."""
        size = sum(_size(tensor.data) for tensor in batch.inputs.values())
        size += sum(_size(tensor.data) for tensor in batch.outputs.values())
        with self._changed:
            if (
                self._closing
                or not self._within_rate(batch.rows)
                or self._queued_rows + batch.rows > self._config.queue_rows
                or self._queued_bytes + size > _MAX_QUEUED_BYTES
            ):
                self._rows_dropped += batch.rows
                return
            was = self._queued_rows
            self._queue.append(_Entry(batch, layout, size))
            self._queued_rows += batch.rows
            self._queued_bytes += size
            self._rows_logged += batch.rows
            if not was:
                self._oldest = time.monotonic()
            # The writer is woken twice a frame, not once a batch: to start its timer, and when full.
            if not was or was < self._config.flush_rows <= self._queued_rows:
                self._changed.notify()

    def _within_rate(self, rows: int) -> bool:
        """A bucket that holds a second's rows; a batch is taken whole once it is not empty."""
        rate = self._config.max_rows_per_s
        if not rate:
            return True
        now = self._clock()
        self._allowance = min(rate, self._allowance + (now - self._refilled) * rate)
        self._refilled = now
        if self._allowance <= 0:
            return False
        self._allowance -= rows
        return True

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Waits until all that was appended is in the file; False if it could not be written."""
        return self._barrier(rotate=False, timeout_s=timeout_s)

    def rotate(self, timeout_s: float = 30.0) -> bool:
        """Like `flush`, and finishes the file, so that a trainer may read all of it."""
        return self._barrier(rotate=True, timeout_s=timeout_s)

    def closed_files(self) -> list[Path]:
        """The finished files that were not rolled into Parquet yet."""
        return self._frames.closed_files()

    def close(self, timeout_s: float = 30.0) -> None:
        """Writes what is queued, syncs and stops; what cannot be written counts as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _barrier(self, rotate: bool, timeout_s: float) -> bool:
        barrier = _Barrier(rotate)
        with self._changed:
            if self._closing or not self._thread.is_alive():
                return False
            self._queue.append(barrier)
            self._barriers += 1
            self._changed.notify()
        return barrier.done.wait(timeout_s) and barrier.written

    # From here on everything runs on the log's own thread.

    def _run(self) -> None:
        try:
            while True:
                entries, barrier, closing = self._take()
                self._write_entries(entries)
                if barrier is not None:
                    self._answer(barrier)
                elif self._sync_due() <= time.monotonic():
                    self._try(self._sync)
                if closing and not entries and barrier is None:
                    break
        finally:
            self._try(self._frames.close)
            self._fail_barriers()

    def _take(self) -> tuple[list[_Entry], _Barrier | None, bool]:
        """Waits for a frame's worth of batches, a barrier, a sync that is due, or the end."""
        with self._changed:
            while not self._barriers and not self._closing:
                now = time.monotonic()
                if self._queued_rows >= self._config.flush_rows:
                    break
                due = self._sync_due()
                if self._queue:
                    due = min(due, self._oldest + self._config.flush_ms / 1000)
                if due <= now:
                    break
                self._changed.wait(None if due == float("inf") else due - now)
            entries: list[_Entry] = []
            rows = size = 0
            full = (self._config.flush_rows, _MAX_FRAME_BYTES)
            while self._queue and rows < full[0] and size < full[1]:
                entry = self._queue[0]
                if isinstance(entry, _Barrier):
                    break
                self._queue.popleft()
                entries.append(entry)
                rows += entry.batch.rows
                size += entry.size
            # A barrier stays in the queue while what is before it is written, so that it can be
            # answered if that fails.
            barrier = None
            if not entries and self._queue and isinstance(self._queue[0], _Barrier):
                barrier = self._queue[0]
                self._queue.popleft()
                self._barriers -= 1
            self._oldest = time.monotonic()
            return entries, barrier, self._closing

    def _sync_due(self) -> float:
        if not self._frames.dirty:
            return float("inf")
        return self._synced + self._config.fsync_ms / 1000

    def _write_entries(self, entries: list[_Entry]) -> None:
        start = 0
        shapes = [_shape_of(entry) for entry in entries]
        for end in range(1, len(entries) + 1):
            if end == len(entries) or shapes[end] != shapes[start]:
                self._write_frame(shapes[start], entries[start:end])
                start = end

    def _write_frame(self, shape: tuple[int, Shape] | None, entries: list[_Entry]) -> None:
        rows = sum(entry.batch.rows for entry in entries)
        written = 0
        try:
            if shape is not None:
                columns = columns_of(shape[1], [entry.batch for entry in entries])
                kinds = {column.name: column.kind for column in columns}
                payload = arrow_frame.encode(columns, rows)
                written = self._insist(lambda: self._append(payload, rows, kinds))
        except Exception:  # noqa: BLE001  an edge
            _log.exception("traffic log %s: %d rows are not loggable", self._frames.folder, rows)
        with self._changed:
            self._queued_rows -= rows
            self._queued_bytes -= sum(entry.size for entry in entries)
            if written:
                self._rows_written += rows
                self._bytes_written += written
                self._frame_count += 1
            else:
                self._rows_dropped += rows

    def _append(self, payload: bytes, rows: int, kinds: dict[str, str]) -> int:
        known = self._kinds
        if self._frames.rows and (
            known is None or any(known.get(name, kind) != kind for name, kind in kinds.items())
        ):
            self._frames.rotate()
        if known is None or not self._frames.rows:
            self._kinds = known = {}
        size = self._frames.append(payload, rows)
        known.update(kinds)
        return size

    def _is_full(self) -> bool:
        rows, columns = self._frames.rows, len(self._kinds or ())
        return rows >= self._config.segment_rows or rows * columns >= _MAX_FILE_CELLS

    def _insist(self, write: Callable[[], int]) -> int:
        """Tries until it goes through; 0 if the log is closed before that."""
        attempt = 0
        while True:
            try:
                size = write()
            except OSError as error:
                self._failed(error)
            else:
                self._recovered()
                if self._is_full():
                    self._try(self._rotate)
                return size
            self._fail_barriers()
            with self._changed:
                if self._closing:
                    return 0
                wait_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                self._changed.wait_for(lambda: self._closing or self._barriers, wait_s)
            attempt += 1

    def _rotate(self) -> None:
        self._frames.rotate()
        self._synced = time.monotonic()

    def _sync(self) -> None:
        self._synced = time.monotonic()
        self._frames.sync()

    def _answer(self, barrier: _Barrier) -> None:
        barrier.written = self._try(self._rotate if barrier.rotate else self._sync)
        barrier.done.set()

    def _try(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _fail_barriers(self) -> None:
        with self._changed:
            barriers = [entry for entry in self._queue if isinstance(entry, _Barrier)]
            if barriers:
                self._queue = deque(e for e in self._queue if isinstance(e, _Entry))
                self._barriers = 0
        for barrier in barriers:
            barrier.done.set()

    def _failed(self, error: OSError) -> None:
        reason = f"the traffic log in {self._frames.folder} cannot be written: {error}"
        with self._changed:
            first = not self._failing
            self._failing = reason
            self._write_errors += 1
        if first:
            _log.error("%s; serving goes on, rows that do not fit the queue are dropped", reason)
            self._on_problem(reason)

    def _recovered(self) -> None:
        with self._changed:
            was, self._failing = self._failing, ""
        if was:
            _log.warning("the traffic log in %s is written again", self._frames.folder)
            self._on_problem("")


def _size(data: object) -> int:
    return len(data) if isinstance(data, bytes) else int(data.nbytes)  # type: ignore[attr-defined]  # else an array


def _shape_of(entry: _Entry) -> tuple[int, Shape] | None:
    """What must be equal for batches to share a frame; None where that cannot be told."""
    try:
        return entry.batch.version, entry.layout.shape_of(entry.batch)
    except Exception:  # noqa: BLE001  an edge
        _log.exception("traffic log: batch of model %s is not loggable", entry.batch.model)
        return None
