"""The log of predictions: what came in, what went out and when, for the trainer to learn from.

`append` copies a batch on the executor's thread, in a few microseconds, and never waits: the rows
that are not yet written are bounded in rows and bytes, and it counts what does not fit, exactly. So
does it with what exceeds `max_rows_per_s`: a saturated server would fill a disk in hours with rows
that no training has the time to read. A batch that is dropped is not even looked at, since a
saturated server drops most.

Rows are gathered into frames of `flush_rows` rows or `flush_ms` age, since a frame has a price of
its own: one open frame per version and shape of its tensors, so that a version that only shadows
does not cut the frames of the one that answers. A thread of the log writes full and old ones to
`traffic/active.frames` (frame_log.py) and syncs that every `fsync_ms`. So a killed process loses
what was not yet flushed, a machine that loses its power what was not yet synced, and nothing else.
The file is finished, and another begun, after `segment_rows` rows (fewer of very wide ones), and
when a training is about to read it.

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
from .traffic_rows import Rows, Shape, TrafficLayout

_log = logging.getLogger(__name__)

_MAX_QUEUED_BYTES = 512 * 1024 * 1024
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_MAX_OPEN = 64  # shapes that rows are gathered of at once
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
        # `_lock` guards every field below down to the blank line; `_changed` wakes the log's thread.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._open: dict[Shape, Rows] = {}  # still gathered, the oldest first
        self._queue: deque[Rows | _Barrier] = deque()  # to be written and answered
        self._queued_rows = 0  # of both, and of what is being written
        self._queued_bytes = 0
        self._barriers = 0
        self._closing = False
        self._unloggable = 0  # batches
        self._rows_logged = 0
        self._rows_dropped = 0
        self._rows_written = 0
        self._bytes_written = 0
        self._frame_count = 0
        self._write_errors = 0
        self._failing = ""
        # The rate is a bucket that holds a second's rows: empty until then, full a second later. A
        # batch is taken whole once it is not empty.
        self._spent_until = clock() - 1.0
        self._s_per_row = 1 / config.max_rows_per_s if config.max_rows_per_s else 0.0

        # Of the active file, by column; None: of an earlier process. The log's thread's.
        self._kinds: dict[str, str] | None = None
        self._synced = time.monotonic()

    def __repr__(self) -> str:
        return f"TrafficLog({self._frames.folder}, {self.stats})"

    @property
    def stats(self) -> TrafficStats:
        with self._lock:
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
        """Copies a batch, or drops and counts it beyond the rate or the queue's end; never waits."""
        rows = batch.rows
        problem = None
        # A saturated server drops nearly every batch: 0.25 µs (`dropped_us` of benchmarks/watching.py),
        # and 0.4 with a `with` in place of acquire and release.
        self._lock.acquire()
        try:
            now = self._clock()
            if (
                now <= self._spent_until
                or self._queued_rows + rows > self._config.queue_rows
                or self._closing
            ):
                self._rows_dropped += rows
                return
            self._spent_until = max(self._spent_until, now - 1.0) + rows * self._s_per_row
            try:
                self._gather(batch, layout)
            except Exception as error:  # noqa: BLE001  an edge: one batch's fault is not the next's
                problem = None if self._unloggable else error
                self._rows_dropped += rows
                self._unloggable += 1
        finally:
            self._lock.release()
        if problem is not None:
            _log.error("%r is not loggable; more are only counted", batch, exc_info=problem)

    def _gather(self, batch: ObservedBatch, layout: TrafficLayout) -> None:
        """Copies a batch into the open frame of its shape, if there is room for its bytes."""
        shape = layout.shape_of(batch)
        size = shape.size_of(batch)
        if self._queued_bytes + size > _MAX_QUEUED_BYTES:
            self._rows_dropped += batch.rows
            return
        gathered = self._open.get(shape)
        if gathered is None:
            # The writer is woken twice a frame, not once a batch: to start its timer, and when full.
            if not self._open:
                self._changed.notify()
            elif len(self._open) >= _MAX_OPEN:
                self._finish(next(iter(self._open)))
            gathered = self._open[shape] = Rows(shape, time.monotonic())
        try:
            gathered.gather(batch, size)
        except Exception:  # part of the batch is in it
            del self._open[shape]
            self._queued_rows -= gathered.rows
            self._queued_bytes -= gathered.size
            self._rows_dropped += gathered.rows
            raise
        self._queued_rows += batch.rows
        self._queued_bytes += size
        self._rows_logged += batch.rows
        if gathered.rows >= self._config.flush_rows or gathered.size >= _MAX_FRAME_BYTES:
            self._finish(shape)

    def _finish(self, shape: Shape) -> None:
        """Nothing more is gathered into the open frame of that shape: it is to be written."""
        self._queue.append(self._open.pop(shape))
        self._changed.notify()

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
        with self._lock:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _barrier(self, rotate: bool, timeout_s: float) -> bool:
        barrier = _Barrier(rotate)
        with self._lock:
            if self._closing or not self._thread.is_alive():
                return False
            for shape in list(self._open):
                self._finish(shape)
            self._queue.append(barrier)
            self._barriers += 1
            self._changed.notify()
        return barrier.done.wait(timeout_s) and barrier.written

    # From here on everything runs on the log's own thread.

    def _run(self) -> None:
        try:
            while True:
                item, closing = self._take()
                if isinstance(item, Rows):
                    self._write(item)
                if isinstance(item, _Barrier):
                    self._answer(item)
                elif self._sync_due() <= time.monotonic():
                    self._try(self._sync)
                if closing and item is None:
                    break
        finally:
            self._try(self._frames.close)
            self._fail_barriers()

    def _take(self) -> tuple[Rows | _Barrier | None, bool]:
        """Waits for a frame that is full or old, a barrier, a sync that is due, or the end.

        A barrier stays in the queue while what is before it is written, so that it can be answered
        if that fails.
        """
        with self._lock:
            while True:
                now = time.monotonic()
                due = self._finish_old(now)
                if self._queue or self._closing:
                    break
                due = min(due, self._sync_due())
                if due <= now:
                    break
                self._changed.wait(None if due == float("inf") else due - now)
            item = self._queue.popleft() if self._queue else None
            self._barriers -= isinstance(item, _Barrier)
            return item, self._closing

    def _finish_old(self, now: float) -> float:
        """Finishes the frames that are old enough; returns when the next one will be."""
        while self._open:
            shape, oldest = next(iter(self._open.items()))
            due = oldest.began + self._config.flush_ms / 1000
            if due > now and not self._closing:
                return due
            self._finish(shape)
        return float("inf")

    def _sync_due(self) -> float:
        if not self._frames.dirty:
            return float("inf")
        return self._synced + self._config.fsync_ms / 1000

    def _write(self, gathered: Rows) -> None:
        rows = gathered.rows
        written = 0
        try:
            columns = gathered.columns()
            kinds = {name: each.kind for each in columns for name in each.names}
            payload = arrow_frame.encode(columns, rows)
            written = self._insist(lambda: self._append(payload, rows, kinds))
        except Exception:  # noqa: BLE001  an edge
            _log.exception("traffic log %s: %d rows are not loggable", self._frames.folder, rows)
        with self._lock:
            self._queued_rows -= rows
            self._queued_bytes -= gathered.size
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
            with self._lock:
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
        with self._lock:
            barriers = [item for item in self._queue if isinstance(item, _Barrier)]
            if barriers:
                self._queue = deque(item for item in self._queue if isinstance(item, Rows))
                self._barriers = 0
        for barrier in barriers:
            barrier.done.set()

    def _failed(self, error: OSError) -> None:
        reason = f"the traffic log in {self._frames.folder} cannot be written: {error}"
        with self._lock:
            first = not self._failing
            self._failing = reason
            self._write_errors += 1
        if first:
            _log.error("%s; serving goes on, rows that do not fit the queue are dropped", reason)
            self._on_problem(reason)

    def _recovered(self) -> None:
        with self._lock:
            was, self._failing = self._failing, ""
        if was:
            _log.warning("the traffic log in %s is written again", self._frames.folder)
            self._on_problem("")
