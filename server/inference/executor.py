"""The one thread that runs a loaded version: take calls, compute, hand out, then observe.

Why one thread: a version is computed with one onnxruntime thread, and a second Python thread would
only fight for the interpreter lock. While the model runs the lock is free and the queue fills, which
is what makes the next batch.

A batch that fails is computed again call by call, so that one caller's bad row fails one caller. The
outcomes of a batch leave together, through the calls' sink; only then is the tap told, which can
therefore neither delay nor break a reply.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..config import BatchingConfig
from ..errors import ModelExecutionError, UnavailableError
from . import batch
from .observation import ObservedBatch, ObservedCall, Tap
from .request_queue import Call, Outcome, RequestQueue
from .servable import Servable
from .tensor import Tensor

_logger = logging.getLogger(__name__)

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."


@dataclass(frozen=True)
class ExecutorStats:
    """Counters of one loaded version since it was loaded. Each is exact; read while requests run,
    they need not belong to the same instant."""

    requests: int  # answered with a prediction
    rows: int  # in those
    batches: int  # runs of the model that gave them
    failures: int  # requests that were answered with an error after they were queued
    cancelled: int  # given up by the client before they ran
    expired: int  # past their deadline before they ran
    rejected: int  # refused because the queue was full
    waiting_rows: int  # in the queue now
    tap_failures: int  # batches that the tap failed on


class Executor:
    """Runs one servable. `submit` and `cancel` from any thread, after `start`."""

    def __init__(
        self,
        servable: Servable,
        batching: BatchingConfig,
        *,
        tap: Tap | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servable = servable
        self._max_rows = batching.max_batch_rows
        self._tap = tap
        self._queue = RequestQueue(
            batching.max_queue_rows, linger_s=batching.linger_ms / 1000, clock=clock
        )
        self._thread = threading.Thread(
            target=self._serve, name=f"executor {servable.model}/{servable.version}", daemon=True
        )
        # Written by the executor's thread alone.
        self._requests = self._rows = self._batches = self._failures = self._tap_failures = 0
        self._batchable = servable.batchable
        # A tap sees every output, whatever was requested.
        self._computed = servable.output_names if tap is not None else None

    def __repr__(self) -> str:
        return f"<Executor {self.servable.model}/{self.servable.version} {self._queue!r}>"

    def start(self) -> None:
        self._thread.start()

    def submit(self, call: Call) -> None:
        """Queues a call. Raises UnavailableError when full, QueueClosedError once closed."""
        self._queue.put(call)

    def cancel(self, call: Call) -> None:
        """The caller has gone: the call does not run, or its outcome is dropped."""
        self._queue.cancel(call)

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Ends the thread, after what waits was computed or, without `drain`, was refused.

        False: it still computes after `timeout_s`, and what waits was refused.
        """
        self._queue.close()
        if not drain:
            self._refuse_waiting()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._refuse_waiting()
            return False
        return True

    def stats(self) -> ExecutorStats:
        queue = self._queue.stats()
        return ExecutorStats(
            requests=self._requests,
            rows=self._rows,
            batches=self._batches,
            failures=self._failures,
            cancelled=queue.cancelled,
            expired=queue.expired,
            rejected=queue.rejected,
            waiting_rows=queue.waiting_rows,
            tap_failures=self._tap_failures,
        )

    def _serve(self) -> None:
        # A model whose calls cannot share a run takes them one at a time.
        while taken := self._queue.take(self._max_rows if self._batchable else 0):
            if taken.expired:
                self._failures += len(taken.expired)
                _hand_out([(call, call.expiry or _expired()) for call in taken.expired])
            try:
                if taken.calls:
                    self._process(taken.calls)
            except Exception:  # a bug, and the next batch may be without it
                _logger.exception("%r: a batch of %d calls was lost", self, len(taken.calls))
            # The next take may be long in coming: until then an idle version holds no tensors.
            del taken

    def _process(self, calls: list[Call]) -> None:
        """One batch from inputs to tap."""
        rows = [call.rows for call in calls]
        total = sum(rows)
        names = self._computed or tuple(
            dict.fromkeys([name for call in calls for name in call.outputs])
        )
        try:
            inputs = batch.join([call.inputs for call in calls])
            outputs = self._compute(inputs, total, names)
            if len(calls) > 1:
                self._check_rows(outputs, total)
            parts = batch.split(outputs, rows)
        except Exception as error:  # noqa: BLE001  an edge: the caller is told
            if len(calls) > 1:
                for call in calls:
                    if not call.cancelled:
                        self._process([call])
                return
            self._failures += 1
            _hand_out([(calls[0], error)])
            return
        self._requests += len(calls)
        self._rows += total
        self._batches += 1
        _hand_out(
            [
                (
                    call,
                    part if call.outputs == names else {name: part[name] for name in call.outputs},
                )
                for call, part in zip(calls, parts, strict=True)
            ]
        )
        if self._tap is not None:
            self._observe(self._tap, calls, total, inputs, outputs)

    def _compute(
        self, inputs: Mapping[str, Tensor], rows: int, names: Sequence[str]
    ) -> Mapping[str, Tensor]:
        if rows <= self._max_rows or not self._batchable:
            return self.servable.run(inputs, names)
        parts = []
        for chunk in batch.chunks(inputs, rows, self._max_rows):
            part = self.servable.run(chunk, names)
            try:
                self._check_rows(part, next(iter(chunk.values())).shape[0])
            except ModelExecutionError:
                return self.servable.run(inputs, names)
            parts.append(part)
        return batch.join(parts)

    def _check_rows(self, outputs: Mapping[str, Tensor], rows: int) -> None:
        """Rows can be given back to their callers only if there is one output row for each."""
        for name, tensor in outputs.items():
            if not tensor.shape or tensor.shape[0] != rows:
                self._batchable = False
                raise ModelExecutionError(
                    f"output '{name}' of model '{self.servable.model}' has shape "
                    f"{list(tensor.shape)} for {rows} rows"
                )

    def _observe(
        self,
        tap: Tap,
        calls: list[Call],
        rows: int,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        try:
            tap(
                ObservedBatch(
                    model=self.servable.model,
                    version=self.servable.version,
                    calls=tuple(
                        [
                            ObservedCall(call.id, call.rows, call.event_time_ms, call.received_ms)
                            for call in calls
                        ]
                    ),
                    rows=rows,
                    inputs=inputs,
                    outputs=outputs,
                )
            )
        except Exception:
            self._tap_failures += 1
            if self._tap_failures == 1:
                _logger.exception("%r: the tap failed; further failures are only counted", self)

    def _refuse_waiting(self) -> None:
        _hand_out([(call, UnavailableError(SHUTTING_DOWN)) for call in self._queue.empty()])


def _expired() -> Exception:
    return UnavailableError("Request timeout expired")


def _hand_out(outcomes: list[tuple[Call, Outcome]]) -> None:
    """Gives each sink its outcomes at once; nearly always there is one sink."""
    by_sink: dict[int, list[tuple[Call, Outcome]]] = {}
    for outcome in outcomes:
        by_sink.setdefault(id(outcome[0].sink), []).append(outcome)
    for mine in by_sink.values():
        try:
            mine[0][0].sink(mine)
        except Exception:  # nobody is left to tell; the others' outcomes still leave
            _logger.exception("the outcomes of %d calls were lost", len(mine))
