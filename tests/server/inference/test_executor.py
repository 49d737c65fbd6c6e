"""The thread that runs a version: batches, isolation, the tap, closing."""

import logging
from typing import Self

import numpy as np
import pytest

from tests.fakes import FakeCall, FakeClock, FakeSession, fake_servable
from trimtab.server.config import BatchingConfig
from trimtab.server.errors import ModelExecutionError, UnavailableError
from trimtab.server.inference.executor import Executor
from trimtab.server.inference.observation import ObservedBatch
from trimtab.server.inference.request_queue import Call, Outcome, QueueClosedError, finish_here


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
        self.clock = FakeClock()
        self.observed: list[ObservedBatch] = []
        self.executor = Executor(
            fake_servable(self.session, batchable=batchable),
            BatchingConfig(max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows),
            tap=self.observed.append if tap else None,
            clock=self.clock,
        )
        self.executor.start()

    def busy(self) -> FakeCall:
        """Returns once the executor is inside a run, which `release` ends."""
        self.session.hold()
        first = FakeCall([0.0])
        self.executor.submit(first)
        assert self.session.entered.wait(30)
        return first

    def release(self) -> None:
        self.session.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.release()
        assert self.executor.close(timeout_s=30)


def test_an_idle_executor_answers_a_lone_call() -> None:
    with Harness() as it:
        call = FakeCall([3.0])
        it.executor.submit(call)
        assert call.values() == [6.0]


def test_what_arrives_during_a_run_becomes_one_batch_and_each_gets_its_rows() -> None:
    with Harness() as it:
        first = it.busy()
        calls = [FakeCall([float(n), n + 0.5]) for n in range(1, 4)]
        for call in calls:
            it.executor.submit(call)
        it.release()
        assert [call.values() for call in calls] == [[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
        assert first.values() == [0.0]
        assert [len(batch) for batch in it.session.batches] == [1, 6]


def test_a_batch_does_not_exceed_its_rows() -> None:
    with Harness(max_batch_rows=4) as it:
        it.busy()
        calls = [FakeCall([1.0, 2.0]) for _ in range(3)]
        for call in calls:
            it.executor.submit(call)
        it.release()
        for call in calls:
            call.wait()
        assert [len(batch) for batch in it.session.batches] == [1, 4, 2]


def test_a_request_larger_than_a_batch_is_computed_in_chunks_and_answered_whole() -> None:
    with Harness(max_batch_rows=4, tap=True) as it:
        call = FakeCall([float(n) for n in range(10)])
        it.executor.submit(call)
        assert call.values() == [2.0 * n for n in range(10)]
        assert [len(batch) for batch in it.session.batches] == [4, 4, 2]
        it.executor.close()
        assert [batch.rows for batch in it.observed] == [10]


def test_a_model_without_a_batch_dimension_is_run_call_by_call() -> None:
    with Harness(batchable=False) as it:
        it.busy()
        calls = [FakeCall([1.0]) for _ in range(3)]
        for call in calls:
            it.executor.submit(call)
        it.release()
        for call in calls:
            call.wait()
        assert [len(batch) for batch in it.session.batches] == [1, 1, 1, 1]


def test_a_bad_row_fails_its_caller_and_nobody_else() -> None:
    def compute(x: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> object:
        if (x == 13).any():
            raise RuntimeError("unlucky")
        return x * 2

    with Harness(session=FakeSession(compute)) as it:  # type: ignore[arg-type]  # an array, always
        it.busy()
        good, bad, fine = FakeCall([1.0]), FakeCall([13.0]), FakeCall([2.0])
        for call in (good, bad, fine):
            it.executor.submit(call)
        it.release()
        assert (good.values(), fine.values()) == ([2.0], [4.0])
        outcome = bad.wait()
        assert isinstance(outcome, ModelExecutionError)
        assert str(outcome) == "model 'm' version 1 failed: unlucky"
        it.executor.close()
        stats = it.executor.stats()
        assert (stats.requests, stats.failures) == (3, 1)


def test_a_cancelled_caller_does_not_fail_its_batch() -> None:
    with Harness() as it:
        it.busy()
        before, gone, after = FakeCall([1.0]), FakeCall([2.0]), FakeCall([3.0])
        for call in (before, gone, after):
            it.executor.submit(call)
        it.executor.cancel(gone)
        it.release()
        assert (before.values(), after.values()) == ([2.0], [6.0])
        assert gone.outcome is None
        assert [len(batch) for batch in it.session.batches] == [1, 2]
        assert it.executor.stats().cancelled == 1


def test_an_expired_call_never_runs() -> None:
    with Harness() as it:
        it.busy()
        late = FakeCall([1.0], deadline=it.clock() + 1, expiry=UnavailableError("too late"))
        it.executor.submit(late)
        it.clock.advance(2)
        it.release()
        assert str(late.wait()) == "too late"
        it.executor.close()
        assert [len(batch) for batch in it.session.batches] == [1]
        assert it.executor.stats().expired == 1


def test_a_full_queue_refuses_and_what_waits_is_answered() -> None:
    with Harness(max_queue_rows=1) as it:
        it.busy()
        waits = FakeCall([1.0])
        it.executor.submit(waits)
        with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
            it.executor.submit(FakeCall([2.0]))
        it.release()
        assert waits.values() == [2.0]


def test_outcomes_of_a_batch_reach_their_sink_together() -> None:
    deliveries: list[int] = []

    def sink(outcomes: list[tuple[Call, Outcome]]) -> None:
        deliveries.append(len(outcomes))
        finish_here(outcomes)

    with Harness() as it:
        it.busy()
        calls = [FakeCall([1.0], sink=sink) for _ in range(5)]
        for call in calls:
            it.executor.submit(call)
        it.release()
        for call in calls:
            call.wait()
        assert deliveries == [5]


def test_two_sinks_get_their_own_outcomes() -> None:
    seen: dict[str, list[str]] = {"a": [], "b": []}

    def sink(name: str) -> object:
        def take(outcomes: list[tuple[Call, Outcome]]) -> None:
            seen[name] += [call.id for call, _ in outcomes]
            finish_here(outcomes)

        return take

    a, b = sink("a"), sink("b")
    with Harness() as it:
        it.busy()
        calls = [
            FakeCall([1.0], id=str(number), sink=a if number % 2 else b)  # type: ignore[arg-type]  # a sink
            for number in range(4)
        ]
        for call in calls:
            it.executor.submit(call)
        it.release()
        for call in calls:
            call.wait()
    assert seen == {"a": ["1", "3"], "b": ["0", "2"]}


def test_a_sink_that_fails_does_not_end_the_executor(caplog: pytest.LogCaptureFixture) -> None:
    def broken(outcomes: list[tuple[Call, Outcome]]) -> None:
        raise RuntimeError("the loop has gone")

    with Harness() as it:
        it.executor.submit(FakeCall([1.0], sink=broken))
        call = FakeCall([2.0])
        it.executor.submit(call)
        assert call.values() == [4.0]
    assert "the outcomes of 1 calls were lost" in caplog.text


def test_the_tap_sees_the_whole_batch_after_the_replies_left() -> None:
    order: list[str] = []

    def sink(outcomes: list[tuple[Call, Outcome]]) -> None:
        order.append("replies")
        finish_here(outcomes)

    session = FakeSession()
    seen: list[ObservedBatch] = []

    def tap(batch: ObservedBatch) -> None:
        order.append("tap")
        seen.append(batch)

    executor = Executor(fake_servable(session, model="air", version=7), BatchingConfig(), tap=tap)
    executor.start()
    session.hold()
    executor.submit(FakeCall([0.0], sink=sink))
    assert session.entered.wait(30)
    for number in (1, 2):
        call = FakeCall([float(number)] * number, id=f"id{number}", sink=sink)
        call.event_time_ms = number
        executor.submit(call)
    session.release()
    executor.close()
    assert order == ["replies", "tap", "replies", "tap"]
    batch = seen[1]
    assert (batch.model, batch.version, batch.rows) == ("air", 7, 3)
    assert [(each.id, each.rows, each.event_time_ms) for each in batch.calls] == [
        ("id1", 1, 1),
        ("id2", 2, 2),
    ]
    assert batch.inputs["x"].array()[:, 0].tolist() == [1.0, 2.0, 2.0]
    assert batch.outputs["y"].array()[:, 0].tolist() == [2.0, 4.0, 4.0]


def test_a_tap_that_fails_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def tap(batch: ObservedBatch) -> None:
        raise RuntimeError("the disk is full")

    executor = Executor(fake_servable(FakeSession()), BatchingConfig(), tap=tap)
    executor.start()
    for _ in range(3):
        call = FakeCall([1.0])
        executor.submit(call)
        call.values()
    executor.close()
    assert executor.stats().tap_failures == 3
    logged = [record for record in caplog.records if "tap failed" in record.message]
    assert len(logged) == 1 and logged[0].exc_info is not None


def test_a_model_that_gives_another_number_of_rows_is_run_call_by_call_from_then_on() -> None:
    session = FakeSession(lambda x: x[:1] * 2)
    with Harness(session=session) as it:
        for _ in range(2):
            it.busy()
            calls = [FakeCall([1.0]), FakeCall([2.0])]
            for call in calls:
                it.executor.submit(call)
            it.release()
            assert [call.values() for call in calls] == [[2.0], [4.0]]
        assert [len(batch) for batch in session.batches] == [1, 2, 1, 1, 1, 1, 1]


def test_closing_computes_what_waits() -> None:
    with Harness() as it:
        it.busy()
        call = FakeCall([1.0])
        it.executor.submit(call)
        it.release()
        assert it.executor.close(timeout_s=30)
        assert call.values() == [2.0]
        with pytest.raises(QueueClosedError):
            it.executor.submit(FakeCall())


def test_closing_without_draining_refuses_what_waits() -> None:
    with Harness() as it:
        running = it.busy()
        call = FakeCall([1.0])
        it.executor.submit(call)
        assert not it.executor.close(drain=False, timeout_s=0.0)
        assert isinstance(call.wait(), UnavailableError)
        it.release()
        assert running.values() == [0.0]


def test_the_counters_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with Harness() as it:
        it.busy()
        for count in (1, 2, 3):
            it.executor.submit(FakeCall([1.0] * count))
        it.release()
        it.executor.close()
        stats = it.executor.stats()
        assert (stats.requests, stats.rows, stats.batches, stats.failures) == (4, 7, 2, 0)
        assert stats.waiting_rows == 0
