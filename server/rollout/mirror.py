"""Has the other version compute what the answering one was asked: beside the requests, never in them.

Executors `offer` each batch that they observed. While there is room it waits in a queue, whole and
not copied; else it is dropped, and its rows are counted. Once full the queue takes no more until
half of it is done, so that what gets in does not depend on a batch's size. One thread of low
priority runs the other version on what waits, and sleeps between runs, so that it takes `cpu` of
one core on average and no more: at saturation most rows are dropped. While somebody waits for the
queue to be empty (`hurry`) it does not sleep. Which rows are compared is thus a matter of the
queue's size alone; a replay that waits after each chunk that fits has all of them compared.

Both versions' compute time is that of this thread, on the same rows right after each other: a
busy machine slows both. It is taken on the first runs, which are small, and on every eighth after.
A run that fails is tried again request by request, and what fails then has failed on that version.

A queued batch keeps the memory of its requests: at most `max_rows` rows and `max_bytes` of them.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..inference import batch as rows_of
from ..inference.observation import ObservedBatch, ObservedCalls
from ..inference.tensor import Tensor
from .comparison import Comparison, Tensors

_log = logging.getLogger(__name__)

# Not 19: who holds the interpreter lock and gets no core keeps the executors waiting for it.
_NICE = 10
_SMALL_RUN, _RUN = 32, 256  # rows; small ones until enough of them were timed
_TIMED_RUNS = 64
_TIME_EVERY = 8
_LONGEST_SLEEP_S = 60.0


class Runner(Protocol):
    """A loaded version, as a Servable is one; several threads may run it."""

    @property
    def batchable(self) -> bool: ...
    @property
    def output_names(self) -> tuple[str, ...]: ...
    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class MirrorStats:
    """Rows since the start: offered = compared + dropped + waiting."""

    offered: int = 0
    compared: int = 0
    dropped: int = 0
    waiting: int = 0
    failures: int = 0  # batches lost to a bug


class Mirror:
    """One comparison's. `offer` and `failed` from any executor, the rest from the control loop."""

    def __init__(
        self,
        version: tuple[int, Runner],
        against: tuple[int, Runner],
        comparison: Comparison,
        *,
        cpu: float,
        max_rows: int,
        max_bytes: int,
        on_empty: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        """`on_empty` is called on the mirror's thread as the queue that was hurried is empty."""
        self._version, self._runner = version
        self._against, self._other = against
        self._comparison = comparison
        self._rest = 1 / cpu - 1  # seconds of sleep for each of work
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._on_empty = on_empty
        self._clock = clock
        self._lock = threading.Lock()  # guards the fields below
        self._wake = threading.Condition(self._lock)
        self._queue: deque[tuple[ObservedBatch, int]] = deque()  # with its bytes
        self._rows = self._bytes = 0  # that wait or are being compared
        self._full = False
        self._idle = False
        self._hurried = False
        self._stopped = False
        self._offered = self._compared = self._dropped = 0
        self._failures = 0  # these two are the thread's own
        self._runs = 0
        self._thread = threading.Thread(
            target=self._work, name=f"mirror {version[0]}/{against[0]}", daemon=True
        )

    def __repr__(self) -> str:
        return f"Mirror({self._version}, {self._against}, {self.stats})"

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """What waits is not compared any more; returns when no run is under way, or too late."""
        with self._wake:
            self._stopped = True
            self._dropped += sum(batch.rows for batch, _ in self._queue)
            self._queue.clear()
            self._wake.notify()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def stats(self) -> MirrorStats:
        with self._wake:
            waiting = self._offered - self._compared - self._dropped
            return MirrorStats(
                self._offered, self._compared, self._dropped, waiting, self._failures
            )

    @property
    def waiting(self) -> int:
        """Rows that are to be compared yet."""
        with self._wake:
            return self._offered - self._compared - self._dropped

    def hurry(self) -> bool:
        """Somebody waits for the queue to be empty; True: it is."""
        with self._wake:
            empty = not self._rows
            self._hurried = not empty
            self._wake.notify()
            return empty

    def offer(self, batch: ObservedBatch) -> None:
        """A batch was observed; one without outputs failed. 1 to 3 µs."""
        if batch.version not in (self._version, self._against):
            return
        with self._lock:
            if self._stopped:
                return
            self._offered += batch.rows
            if not self._full:
                size = _size(batch.inputs) + _size(batch.outputs)
                self._full = bool(self._queue) and (
                    self._rows + batch.rows > self._max_rows or self._bytes + size > self._max_bytes
                )
            if self._full:
                self._dropped += batch.rows
                return
            self._rows += batch.rows
            self._bytes += size
            self._queue.append((batch, size))
            if self._idle:
                self._wake.notify()

    # On the mirror's thread.

    def _work(self) -> None:
        with suppress(OSError):  # then it has the priority of the others
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (item := self._take()) is not None:
            batch, size = item
            began = self._clock()
            try:
                self._compare(batch)
            except Exception:  # noqa: BLE001  an edge: nothing here may end the thread
                self._failures += 1
                if self._failures == 1:
                    _log.exception("%r lost %r; further ones are only counted", self, batch)
            self._finish(batch.rows, size, (self._clock() - began) / 1e9)
            # The next one may be long in coming: until then nothing is held.
            del batch, item

    def _take(self) -> tuple[ObservedBatch, int] | None:
        with self._wake:
            while not self._queue and not self._stopped:
                self._idle = True
                self._wake.wait()
            self._idle = False
            return None if self._stopped else self._queue.popleft()

    def _finish(self, rows: int, size: int, took_s: float) -> None:
        """Counts a batch as compared, then sleeps as long as its share of the core demands."""
        with self._wake:
            self._compared += rows
            self._rows -= rows
            self._bytes -= size
            if (
                self._full
                and 2 * self._rows <= self._max_rows
                and 2 * self._bytes <= self._max_bytes
            ):
                self._full = False
            emptied = self._hurried and not self._rows
            self._hurried = self._hurried and not emptied
        if emptied:
            self._on_empty()
        until = time.monotonic() + min(took_s * self._rest, _LONGEST_SLEEP_S)
        with self._wake:
            while not (self._hurried or self._stopped):
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._wake.wait(left)

    def _compare(self, batch: ObservedBatch) -> None:
        """One batch from the queue to the comparison."""
        answered = batch.version == self._version
        given: Tensors | None = batch.outputs or None
        calls: ObservedCalls | Sequence[int] = batch.calls if given else [batch.rows]
        other = self._other if answered else self._runner
        try:
            computed = self._run(other, self._runner if answered else self._other, batch)
        except Exception:  # noqa: BLE001  an edge: whose fault it was is found out now
            for call, inputs, outputs in _singles(batch, calls, given):
                self._add(call, outputs, _tried(other, inputs), answered)
            return
        self._add(calls, given, computed, answered)

    def _add(
        self,
        calls: ObservedCalls | Sequence[int],
        given: Tensors | None,
        computed: Tensors | None,
        answered: bool,
    ) -> None:
        version, against = (given, computed) if answered else (computed, given)
        self._comparison.add(calls, version, against, answered=answered)

    def _run(self, other: Runner, answering: Runner, batch: ObservedBatch) -> Tensors:
        """Has the other version compute the batch, and now and then the answering one, for its time.

        Raises whatever the run does.
        """
        parts = []
        for inputs in self._parts(batch):
            timed = bool(batch.outputs) and (
                self._runs < _TIMED_RUNS or self._runs % _TIME_EVERY == 0
            )
            runners = [other, answering] if timed else [other]
            if self._runs % 2:
                runners.reverse()  # the second one finds the rows in the cache
            times = {}
            for runner in runners:
                began = self._clock()
                outputs = runner.run(inputs, runner.output_names)
                times[runner] = self._clock() - began
                if runner is other:
                    parts.append(outputs)
            if timed:
                self._comparison.add_times(times[self._runner], times[self._other])
            self._runs += 1
        return rows_of.join(parts) if len(parts) > 1 else parts[0]

    def _parts(self, batch: ObservedBatch) -> Sequence[Mapping[str, Tensor]]:
        """The rows of one run each: a batch may be larger than is good for the other threads."""
        if not (self._runner.batchable and self._other.batchable):
            return [inputs for _, inputs, _ in _singles(batch, batch.calls.rows.tolist(), None)]
        rows = _SMALL_RUN if self._runs < _TIMED_RUNS else _RUN
        return list(rows_of.chunks(batch.inputs, batch.rows, rows))


def _singles(
    batch: ObservedBatch, calls: ObservedCalls | Sequence[int], outputs: Tensors | None
) -> list[tuple[ObservedCalls | Sequence[int], Mapping[str, Tensor], Tensors | None]]:
    """A batch call by call: its rows (with its id, if that is known), inputs and outputs."""
    rows = calls.rows.tolist() if isinstance(calls, ObservedCalls) else list(calls)
    if len(rows) == 1:
        return [(calls, batch.inputs, outputs)]
    inputs = rows_of.split(batch.inputs, rows)
    results: Sequence[Tensors | None] = [None] * len(rows)
    if outputs is not None:
        results = rows_of.split(outputs, rows)
    singles: list[ObservedCalls | Sequence[int]] = [[count] for count in rows]
    if isinstance(calls, ObservedCalls):
        singles = [ObservedCalls.of([call]) for call in calls.each()]
    return list(zip(singles, inputs, results, strict=True))


def _tried(runner: Runner, inputs: Mapping[str, Tensor]) -> Tensors | None:
    try:
        return runner.run(inputs, runner.output_names)
    except Exception:  # noqa: BLE001  an edge: it is what is being found out
        return None


def _size(tensors: Mapping[str, Tensor]) -> int:
    size = 0
    for tensor in tensors.values():
        data = tensor.data
        size += len(data) if isinstance(data, bytes) else data.nbytes
    return size
