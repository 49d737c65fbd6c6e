"""The one thread that runs a loaded version: take a batch, compute, hand out, then observe.

Why one thread: a version is computed with one onnxruntime thread, and a second Python thread would
only fight for the interpreter lock. While the model runs the lock is free and the queue fills, which
is what makes the next batch. Requests come into the queue, and replies leave, in C++
(`trimtab._native.data_plane`): what is here happens once per batch.

A batch that fails is computed again call by call, so that one caller's bad row fails one caller. The
tap is told after the replies left, and can therefore neither delay nor break one.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from trimtab._native.data_plane import Batch, Version
from trimtab.registry.manifest import TensorSpec

from ..config import BatchingConfig
from ..errors import ModelExecutionError, code_of
from . import batch as rows_of
from .observation import ObservedBatch, ObservedCalls, Tap
from .servable import Servable
from .statistics import RunsOfSize, Total, VersionStatistics
from .tensor import Tensor

_logger = logging.getLogger(__name__)

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
UNAVAILABLE = 14  # gRPC's number

# Batches of fewer rows are shown to the tap together, so many rows at a time or after so long: the tap
# has a price per batch (25 µs) that a lone request would pay before the next one is looked at.
_KEPT_ROWS = 64
_KEPT_S = 0.002


class Executor:
    """Runs one servable. `version` takes requests, from any thread, until `close`."""

    def __init__(
        self,
        servable: Servable,
        batching: BatchingConfig,
        *,
        tap: Tap | None = None,
        mirror_contents: bool = False,
    ) -> None:
        self.servable = servable
        self.version = Version(
            servable.model,
            servable.version,
            [(spec.name, spec.datatype, spec.shape) for spec in servable.signature.inputs],
            [(spec.name, spec.datatype) for spec in servable.signature.outputs],
            batchable=servable.batchable,
            max_request_rows=batching.max_request_rows,
            max_batch_rows=batching.max_batch_rows,
            max_queue_rows=batching.max_queue_rows,
            max_string_bytes=batching.max_string_bytes,
            linger_s=batching.linger_ms / 1000,
            default_timeout_us=servable.settings.default_timeout_us,
            mirror_contents=mirror_contents,
        )
        self._max_rows = batching.max_batch_rows
        self._tap = tap
        self._thread = threading.Thread(
            target=self._serve, name=f"executor {servable.model}/{servable.version}", daemon=True
        )
        self._tap_failures = 0
        self._batchable = servable.batchable
        self._index = {name: index for index, name in enumerate(servable.output_names)}

    def __repr__(self) -> str:
        return f"<Executor {self.servable.model}/{self.servable.version}>"

    def start(self) -> None:
        self._thread.start()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Ends the thread, after what waits was computed or, without `drain`, was refused.

        False: it still computes after `timeout_s`, and what waits was refused.
        """
        self.version.close()
        if not drain:
            self.version.refuse_waiting(UNAVAILABLE, SHUTTING_DOWN)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.version.refuse_waiting(UNAVAILABLE, SHUTTING_DOWN)
            return False
        return True

    def statistics(self) -> VersionStatistics:
        """All counters of one instant."""
        counts = self.version.counts()
        compute = counts.pop("compute")
        sizes = counts.pop("runs_by_size")
        for name in ("success", "fail", "queue"):
            counts[name] = Total(*counts[name])
        return VersionStatistics(
            **counts,
            compute_input=Total(*compute[0]),
            compute_infer=Total(*compute[1]),
            compute_output=Total(*compute[2]),
            tap_failures=self._tap_failures,
            runs_by_size=tuple(
                RunsOfSize(rows, *(Total(*total) for total in totals)) for rows, totals in sizes
            ),
        )

    def _serve(self) -> None:
        take = self.version.take
        while (batch := take(self._batchable, self._idle_s())) is not None:
            if isinstance(batch, Batch):
                self._run(batch)
            else:
                self._observe_kept()
            # The next take may be long in coming: until then an idle version holds no tensors.
            del batch
        self._observe_kept()

    def _idle_s(self) -> float:
        return _KEPT_S if self.version.kept_rows else 0.0

    def _run(self, batch: Batch) -> None:
        try:
            self._process(batch)
        except Exception:  # a bug, and the next batch may be without it
            _logger.exception("%r: %r was lost", self, batch)

    def _process(self, batch: Batch) -> None:
        """One batch from inputs to tap."""
        servable = self.servable
        inputs = _tensors(servable.signature.inputs, batch.inputs())
        # A tap sees every output, whatever was requested.
        names = (
            servable.output_names
            if self._tap is not None
            else [servable.output_names[index] for index in batch.wanted()]
        )
        keep = self._tap is not None and batch.rows < _KEPT_ROWS and self._batchable
        try:
            batch.running()
            outputs = self._compute(inputs, batch.rows, names)
            problem = batch.reply(
                [(self._index[name], each.shape, each.data) for name, each in outputs.items()], keep
            )
            if problem:
                self._batchable = False
                raise ModelExecutionError(problem)
        except Exception as error:  # noqa: BLE001  an edge: the caller is told
            if batch.requests > 1:
                for single in batch.singles():
                    self._process(single)
            else:
                batch.fail(code_of(error), str(error) or type(error).__name__)
                self._tell_failure(inputs, batch.rows)
            return
        if self._tap is None:
            return
        if batch.kept:
            if self.version.kept_rows >= _KEPT_ROWS:
                self._observe_kept()
            return
        self._observe_kept()  # these rows came before
        self._observe(batch, batch.rows, inputs, outputs, batch.latest_event_time_ms)

    def _tell_failure(self, inputs: Mapping[str, Tensor], rows: int) -> None:
        """A tap may want to know what another version makes of the rows that this one failed on."""
        failed = getattr(self._tap, "failed", None)
        if failed is None:
            return
        try:
            failed(self.servable.model, self.servable.version, inputs, rows)
        except Exception:  # noqa: BLE001  an edge, as in _observe
            self._tap_failures += 1

    def _compute(
        self, inputs: Mapping[str, Tensor], rows: int, names: Sequence[str]
    ) -> Mapping[str, Tensor]:
        if rows <= self._max_rows or not self._batchable:
            return self.servable.run(inputs, names)
        parts = []
        for chunk in rows_of.chunks(inputs, rows, self._max_rows):
            part = self.servable.run(chunk, names)
            expected = next(iter(chunk.values())).shape[0]
            if any(not each.shape or each.shape[0] != expected for each in part.values()):
                return self.servable.run(inputs, names)
            parts.append(part)
        return rows_of.join(parts)

    def _observe_kept(self) -> None:
        """Shows the tap what small batches left, as one."""
        if not self.version.kept_rows:
            return
        rows, inputs, outputs, calls, latest_event_time_ms = self.version.take_kept()
        signature = self.servable.signature
        self._observe(
            ObservedCalls(*calls),
            rows,
            _tensors(signature.inputs, inputs),
            _tensors(signature.outputs, outputs),
            latest_event_time_ms,
        )

    def _observe(
        self,
        calls: ObservedCalls | Batch,
        rows: int,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        latest_event_time_ms: int,
    ) -> None:
        assert self._tap is not None
        model, version = self.servable.model, self.servable.version
        try:
            self._tap(
                ObservedBatch(model, version, calls, rows, inputs, outputs, latest_event_time_ms)
            )
        except Exception:  # an edge: the replies have left, and nobody waits for the tap
            self._tap_failures += 1
            if self._tap_failures == 1:
                _logger.exception("%r: the tap failed; further failures are only counted", self)


def _tensors(
    specs: Sequence[TensorSpec], tensors: Sequence[tuple[tuple[int, ...], NDArray[Any] | bytes]]
) -> Mapping[str, Tensor]:
    return {
        spec.name: Tensor(spec.datatype, shape, data)
        for spec, (shape, data) in zip(specs, tensors, strict=True)
    }
