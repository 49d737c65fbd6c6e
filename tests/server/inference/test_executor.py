"""The thread that runs a version: batches, isolation, the tap, closing."""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes import FakeSession, fake_servable
from tests.plane import Requests, Sent, plane_of
from trimtab._native import bytes_tensor
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import BatchingConfig
from trimtab.server.inference.executor import SHUTTING_DOWN, Executor
from trimtab.server.inference.observation import ObservedBatch
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.statistics import BATCH_BOUNDS

INTERNAL, UNAVAILABLE, CANCELLED = 13, 14, 1


class Harness:
    """An executor over a fake session that can be held in its first run while a batch gathers."""

    def __init__(
        self,
        *,
        session: FakeSession | None = None,
        max_batch_rows: int = 100,
        max_queue_rows: int = 1000,
        batchable: bool = True,
        tap: bool = False,
    ) -> None:
        self.session = session or FakeSession()
        self.observed: list[ObservedBatch] = []
        self.executor = Executor(
            fake_servable(self.session, batchable=batchable),
            BatchingConfig(max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows),
            tap=self.observed.append if tap else None,
        )
        self.requests = Requests(plane_of(self.executor.version))
        self.send = self.requests.send
        self.executor.start()

    def busy(self) -> Sent:
        """Returns once the executor is inside a run, which `release` ends."""
        self.session.hold()
        first = self.send([0.0])
        assert self.session.entered.wait(30)
        return first

    def release(self) -> None:
        self.session.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.release()
        assert self.executor.close(timeout_s=30)
        assert self.requests.plane.requests_in_flight == 0
        assert self.requests.plane.bytes_in_flight == 0


def test_an_idle_executor_answers_a_lone_call() -> None:
    with Harness() as it:
        assert it.send([3.0]).values() == [6.0]


def test_what_arrives_during_a_run_becomes_one_batch_and_each_gets_its_rows() -> None:
    with Harness() as it:
        first = it.busy()
        calls = [it.send([float(n), n + 0.5]) for n in range(1, 4)]
        it.release()
        assert [call.values() for call in calls] == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
        assert first.values() == [0.0]
        assert [len(batch) for batch in it.session.batches] == [1, 6]


def test_a_batch_does_not_exceed_its_rows() -> None:
    with Harness(max_batch_rows=4) as it:
        it.busy()
        calls = [it.send([1.0, 2.0]) for _ in range(3)]
        it.release()
        for call in calls:
            call.values()
        assert [len(batch) for batch in it.session.batches] == [1, 4, 2]


def test_a_request_larger_than_a_batch_is_computed_in_chunks_and_answered_whole() -> None:
    with Harness(max_batch_rows=4, tap=True) as it:
        call = it.send([float(n) for n in range(10)])
        assert call.values() == [2.0 * n for n in range(10)]
        assert [len(batch) for batch in it.session.batches] == [4, 4, 2]
        it.executor.close()
        assert [batch.rows for batch in it.observed] == [10]


def test_a_model_without_a_batch_dimension_is_run_call_by_call() -> None:
    with Harness(batchable=False) as it:
        it.busy()
        calls = [it.send([1.0]) for _ in range(3)]
        it.release()
        for call in calls:
            call.values()
        assert [len(batch) for batch in it.session.batches] == [1, 1, 1, 1]


def test_a_bad_row_fails_its_caller_and_nobody_else() -> None:
    def compute(x: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> object:
        if (x == 13).any():
            raise RuntimeError("unlucky")
        return x * 2

    with Harness(session=FakeSession(compute)) as it:  # type: ignore[arg-type]  # an array, always
        it.busy()
        good, bad, fine = it.send([1.0]), it.send([13.0]), it.send([2.0])
        it.release()
        assert (good.values(), fine.values()) == ([2.0], [4.0])
        assert bad.refusal() == (INTERNAL, "model 'm' version 1 failed: unlucky")
        it.executor.close()
        stats = it.executor.statistics()
        assert (stats.success.count, stats.failed, stats.fail.count) == (3, 1, 1)


def test_a_cancelled_caller_does_not_fail_its_batch() -> None:
    with Harness() as it:
        it.busy()
        before, gone, after = it.send([1.0]), it.send([2.0]), it.send([3.0])
        gone.cancel()
        gone.cancel()
        assert gone.refusal() == (CANCELLED, "cancelled")
        it.release()
        assert (before.values(), after.values()) == ([2.0], [6.0])
        assert [len(batch) for batch in it.session.batches] == [1, 2]
        assert it.executor.statistics().cancelled == 1


def test_a_caller_that_leaves_during_its_run_is_answered_all_the_same() -> None:
    with Harness() as it:
        running = it.busy()
        running.cancel()
        it.release()
        assert running.values() == [0.0]
        assert it.executor.statistics().cancelled == 0


def test_a_call_past_its_deadline_never_runs() -> None:
    with Harness() as it:
        it.busy()
        late, timely = it.send([1.0], deadline_s=0.0), it.send([2.0], deadline_s=math.inf)
        it.release()
        code, text = late.refusal()
        assert (code, text) == (4, "the deadline passed before the request was run")
        assert timely.values() == [4.0]
        assert [len(batch) for batch in it.session.batches] == [1, 1]
        stats = it.executor.statistics()
        assert (stats.expired, stats.fail.count) == (1, 1)


def test_the_timeout_of_a_request_bounds_its_wait() -> None:
    with Harness() as it:
        it.busy()
        late, timely = it.send([1.0], timeout_us=1), it.send([2.0], timeout_us=3_600_000_000)
        it.release()
        assert late.refusal() == (UNAVAILABLE, "Request timeout expired")
        assert timely.values() == [4.0]


def test_a_full_queue_refuses_and_what_waits_is_answered() -> None:
    with Harness(max_queue_rows=1) as it:
        it.busy()
        waits = it.send([1.0])
        assert it.send([2.0]).refusal() == (UNAVAILABLE, "Exceeds maximum queue size")
        it.release()
        assert waits.values() == [2.0]
        assert it.executor.statistics().rejected == 1


def test_the_tap_sees_all_rows_in_order_after_the_replies_left() -> None:
    session = FakeSession()
    seen: list[ObservedBatch] = []
    answered: list[bool] = []
    sent: list[Sent] = []

    def tap(batch: ObservedBatch) -> None:
        seen.append(batch)
        answered.append(all(each.done() for each in sent[: sum(len(b.calls) for b in seen)]))

    executor = Executor(fake_servable(session, model="air", version=7), BatchingConfig(), tap=tap)
    requests = Requests(plane_of(executor.version))
    executor.start()
    session.hold()
    sent.append(requests.send([0.0], model="air"))
    assert session.entered.wait(30)
    for number in (1, 2):
        sent.append(
            requests.send(
                [float(number)] * number, id=f"id{number}", model="air", event_time_ms=number
            )
        )
    session.release()
    executor.close()
    assert all(answered)
    assert {(batch.model, batch.version) for batch in seen} == {("air", 7)}
    assert [
        (each.id, each.rows, each.event_time_ms) for batch in seen for each in batch.calls.each()
    ] == [("test-1", 1, None), ("id1", 1, 1), ("id2", 2, 2)]
    assert seen[-1].latest_event_time_ms == 2
    for name, factor in (("x", 1.0), ("y", 2.0)):
        sides = [batch.inputs if name == "x" else batch.outputs for batch in seen]
        values = np.concatenate([side[name].array()[:, 0] for side in sides])
        assert values.tolist() == [factor * value for value in (0.0, 1.0, 2.0, 2.0)]


def test_small_batches_are_shown_together_large_ones_at_once_and_none_is_overtaken() -> None:
    with Harness(tap=True) as it:
        for rows in (1, 2, 70, 3, 64, 5):
            it.send([float(rows)] * rows).values()
        it.executor.close()
        values = [value for b in it.observed for value in b.inputs["x"].array()[:, 0].tolist()]
        assert values == [float(rows) for rows in (1, 2, 70, 3, 64, 5) for _ in range(rows)]
        assert {70, 64} <= {batch.rows for batch in it.observed}
        assert sum(len(batch.calls) for batch in it.observed) == 6


def test_what_a_lone_request_left_is_shown_soon_though_nothing_follows() -> None:
    shown = threading.Event()
    executor = Executor(
        fake_servable(FakeSession()), BatchingConfig(), tap=lambda batch: shown.set()
    )
    requests = Requests(plane_of(executor.version))
    executor.start()
    requests.send([1.0]).values()
    assert shown.wait(30)
    executor.close()


def test_small_batches_of_other_shapes_or_strings_are_shown_as_they_were() -> None:
    """Whatever the order, each row is seen once, with its own tensors."""
    inputs = (TensorSpec("x", "FP32", (-1, -1), ()), TensorSpec("s", "BYTES", (-1,), ()))
    outputs = (TensorSpec("y", "FP32", (-1, -1), ()), TensorSpec("t", "BYTES", (-1,), ()))

    class Echo:
        def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            return [feed["x"], feed["s"]]

    servable = Servable(
        model="m",
        version=1,
        session=Echo(),
        signature=Signature(inputs=inputs, outputs=outputs),
        batchable=True,
    )
    seen: list[ObservedBatch] = []
    executor = Executor(servable, BatchingConfig(), tap=seen.append)
    requests = Requests(plane_of(executor.version))
    executor.start()
    expected = []
    for number, width in enumerate((1, 1, 2, 2, 1, 3)):
        message = pb.ModelInferRequest(model_name="m", id=str(number))
        message.inputs.add(name="x", datatype="FP32", shape=[2, width])
        message.inputs.add(name="s", datatype="BYTES", shape=[2])
        word = f"w{number}".encode()
        message.raw_input_contents.extend(
            [np.full((2, width), number, np.float32).tobytes(), 2 * (b"\2\0\0\0" + word)]
        )
        requests.send_bytes(message.SerializeToString()).reply()
        expected += [(width, float(number), word)] * 2
    executor.close()
    found = []
    for batch in seen:
        for side, x, s in ((batch.inputs, "x", "s"), (batch.outputs, "y", "t")):
            words = bytes_tensor.decode(side[s].wire(), batch.rows)
            assert side[x].array().shape == side[x].shape
            if side is batch.inputs:
                found += [
                    (row.size, float(row[0]), word.encode())
                    for row, word in zip(side[x].array(), words, strict=True)
                ]
        assert batch.inputs["s"].wire() == batch.outputs["t"].wire()
    assert found == expected


def test_what_a_tap_keeps_stays_as_it_was() -> None:
    with Harness(tap=True) as it:
        for number in range(50):
            assert it.send([float(number)] * 3).values() == [2.0 * number] * 3
        it.executor.close()
        kept = [value for b in it.observed for value in b.inputs["x"].array()[:, 0].tolist()]
        assert kept == [float(number) for number in range(50) for _ in range(3)]
        with pytest.raises(ValueError, match="read-only"):
            it.observed[0].inputs["x"].array()[0, 0] = 1.0


def test_a_tap_that_fails_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def tap(batch: ObservedBatch) -> None:
        raise RuntimeError("the disk is full")

    executor = Executor(fake_servable(FakeSession()), BatchingConfig(), tap=tap)
    requests = Requests(plane_of(executor.version))
    executor.start()
    for _ in range(3):
        requests.send([1.0] * 64).values()
    executor.close()
    assert executor.statistics().tap_failures == 3
    logged = [record for record in caplog.records if "tap failed" in record.message]
    assert len(logged) == 1 and logged[0].exc_info is not None


def test_a_model_that_gives_another_number_of_rows_is_run_call_by_call_from_then_on() -> None:
    session = FakeSession(lambda x: x[:1] * 2)
    with Harness(session=session) as it:
        for _ in range(2):
            it.busy()
            calls = [it.send([1.0]), it.send([2.0])]
            it.release()
            assert [call.values() for call in calls] == [[2.0], [4.0]]
        assert [len(batch) for batch in session.batches] == [1, 2, 1, 1, 1, 1, 1]


def test_a_caller_that_left_does_not_run_when_its_batch_is_computed_call_by_call() -> None:
    calls: list[Sent] = []

    def compute(x: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> object:
        if len(x) > 1:
            calls[0].cancel()
            raise RuntimeError("not together")
        return x * 2

    with Harness(session=FakeSession(compute)) as it:  # type: ignore[arg-type]  # an array, always
        it.busy()
        calls += [it.send([1.0]), it.send([2.0])]
        it.release()
        assert calls[0].refusal()[0] == CANCELLED
        assert calls[1].values() == [4.0]
        assert [len(batch) for batch in it.session.batches] == [1, 2, 1]


def test_closing_computes_what_waits() -> None:
    with Harness() as it:
        it.busy()
        call = it.send([1.0])
        it.release()
        assert it.executor.close(timeout_s=30)
        assert call.values() == [2.0]
        assert it.send([1.0]).refusal()[0] == UNAVAILABLE


def test_closing_without_draining_refuses_what_waits() -> None:
    with Harness() as it:
        running = it.busy()
        call = it.send([1.0])
        assert not it.executor.close(drain=False, timeout_s=0.0)
        assert call.refusal() == (UNAVAILABLE, SHUTTING_DOWN)
        it.release()
        assert running.values() == [0.0]


def test_the_counters_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with Harness() as it:
        it.busy()
        for count in (1, 2, 3):
            it.send([1.0] * count)
        waiting = it.executor.statistics()
        assert (waiting.waiting_requests, waiting.waiting_rows) == (3, 6)
        it.release()
        it.executor.close()
        stats = it.executor.statistics()
        assert (stats.success.count, stats.rows, stats.runs, stats.failed) == (4, 7, 2, 0)
        assert (stats.waiting_requests, stats.waiting_rows) == (0, 0)
        counts = [stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output]
        assert [each.count for each in counts] == [4] * 4
        assert sum(each.ns for each in counts) <= stats.success.ns
        assert sum(stats.latency_us) == 4
        assert [run.rows for run in stats.runs_by_size] == [1, 6]
        assert stats.batch_rows[BATCH_BOUNDS.index(1)] == 1
        assert stats.batch_rows[BATCH_BOUNDS.index(8)] == 1
        assert stats.last_inference_ms > 0
