"""The queue of a version: what shares a batch, what leaves it, what never runs."""

import math
import struct
import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.plane import Requests, Sent, plane_of
from trimtab._native.data_plane import Batch, Version
from trimtab.proto import open_inference_pb2 as pb

UNAVAILABLE, CANCELLED = 14, 1
FULL = (UNAVAILABLE, "Exceeds maximum queue size")


class Queue:
    """A version that nobody runs but the test."""

    def __init__(
        self,
        *,
        max_queue_rows: int = 1000,
        max_batch_rows: int = 100,
        linger_s: float = 0.0,
        default_timeout_us: int = 0,
    ) -> None:
        self.version = Version(
            "m",
            1,
            [("x", "FP32", (-1, -1))],
            [("y", "FP32")],
            batchable=True,
            max_request_rows=1000,
            max_batch_rows=max_batch_rows,
            max_queue_rows=max_queue_rows,
            linger_s=linger_s,
            default_timeout_us=default_timeout_us,
        )
        self.requests = Requests(plane_of(self.version))

    def send(self, rows: int = 1, *, width: int = 2, id: str = "", **options: float) -> Sent:
        return self.requests.send([float(rows)] * rows, width=width, id=id, **options)  # type: ignore[arg-type]  # numbers all

    def take(self, together: bool = True) -> list[str]:
        """Ids of the next batch, which is answered."""
        batch = self.version.take(together)
        return answer(batch) if isinstance(batch, Batch) else []

    @property
    def counts(self) -> dict[str, int]:
        return self.version.counts()


def answer(batch: Batch) -> list[str]:
    ((shape, data),) = batch.inputs()
    assert isinstance(data, np.ndarray) and shape[0] == batch.rows
    assert batch.reply([(0, shape, data)]) == ""
    ids, ends, *_ = batch.observed()
    starts = [0, *ends[:-1].tolist()]
    return [ids[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=True)]


def test_what_waits_comes_out_together_in_the_order_of_arrival() -> None:
    queue = Queue()
    sent = [queue.send(id=name) for name in "abc"]
    assert queue.take() == ["a", "b", "c"]
    assert [each.reply().id for each in sent] == ["a", "b", "c"]
    assert (queue.counts["waiting_rows"], queue.counts["waiting_requests"]) == (0, 0)


def test_rows_are_counted_and_not_calls() -> None:
    queue = Queue(max_batch_rows=5)
    for name, rows in (("a", 2), ("b", 3), ("c", 1)):
        queue.send(rows, id=name)
    assert [queue.take(), queue.take()] == [["a", "b"], ["c"]]


def test_a_call_larger_than_a_batch_comes_out_alone() -> None:
    queue = Queue(max_batch_rows=4)
    queue.send(9, id="large")
    queue.send(1, id="small")
    assert [queue.take(), queue.take()] == [["large"], ["small"]]


def test_calls_come_out_one_by_one_where_they_cannot_share_a_run() -> None:
    queue = Queue()
    queue.send(id="a")
    queue.send(id="b")
    assert [queue.take(False), queue.take(False)] == [["a"], ["b"]]


def test_only_calls_of_equal_trailing_shapes_share_a_batch_and_the_longest_waiting_goes_first() -> (
    None
):
    queue = Queue()
    for name, width in (("a1", 2), ("b1", 3), ("a2", 2), ("c1", 4), ("b2", 3)):
        queue.send(id=name, width=width)
    assert [queue.take() for _ in range(3)] == [["a1", "a2"], ["b1", "b2"], ["c1"]]


def test_a_full_queue_refuses_with_tritons_words() -> None:
    queue = Queue(max_queue_rows=3)
    queue.send(2, id="a")
    assert queue.send(2).refusal() == FULL
    queue.send(1, id="b")
    assert queue.counts["rejected"] == 1
    assert queue.take() == ["a", "b"]


def test_a_call_larger_than_the_queue_is_taken_when_nothing_else_waits() -> None:
    queue = Queue(max_queue_rows=3)
    queue.send(5, id="large")
    assert queue.send(1).refusal() == FULL
    assert queue.take() == ["large"]


def test_a_cancelled_call_never_comes_out_and_gives_its_rows_back_at_once() -> None:
    queue = Queue(max_queue_rows=3)
    gone, _ = queue.send(2, id="gone"), queue.send(1, id="stays")
    gone.cancel()
    assert gone.refusal()[0] == CANCELLED
    assert queue.counts["waiting_rows"] == 1
    assert not queue.send(2, id="new").done()
    assert queue.take() == ["stays", "new"]
    assert queue.counts["cancelled"] == 1
    assert queue.requests.plane.requests_in_flight == 0
    assert queue.requests.plane.bytes_in_flight == 0


def test_a_call_that_is_cancelled_after_it_was_taken_is_answered_once() -> None:
    queue = Queue()
    sent = queue.send(id="a")
    batch = queue.version.take()
    assert isinstance(batch, Batch)
    sent.cancel()
    assert not sent.done()
    answer(batch)
    assert sent.reply().id == "a"
    sent.cancel()
    assert queue.counts["cancelled"] == 0


def test_an_expired_call_is_told_and_does_not_run() -> None:
    queue = Queue()
    late = queue.send(id="late", deadline_s=time.monotonic() - 1.0)
    queue.send(id="timely", deadline_s=time.monotonic() + 3600.0)
    queue.send(id="patient", deadline_s=math.inf)
    assert queue.take() == ["timely", "patient"]
    assert late.refusal() == (4, "the deadline passed before the request was run")
    assert queue.counts["expired"] == 1


def test_a_models_timeout_can_be_shortened_and_not_lengthened() -> None:
    queue = Queue(default_timeout_us=1)
    late = [queue.send(), queue.send(timeout_us=3_600_000_000)]
    patient = Queue(default_timeout_us=3_600_000_000)
    late += [patient.send(timeout_us=1)]
    patient.send(id="patient")
    assert patient.take() == ["patient"]
    queue.version.close()
    assert queue.version.take() is None
    assert {each.refusal() for each in late} == {(UNAVAILABLE, "Request timeout expired")}


def test_after_closing_what_waits_still_comes_out_and_nothing_goes_in() -> None:
    queue = Queue()
    queue.send(id="a")
    queue.version.close()
    assert queue.send().refusal()[0] == UNAVAILABLE
    assert queue.take() == ["a"]
    assert queue.version.take() is None


def test_refusing_what_waits_tells_every_live_call() -> None:
    queue = Queue()
    sent = [queue.send() for _ in range(3)]
    sent[1].cancel()
    queue.version.refuse_waiting(UNAVAILABLE, "no more")
    assert [each.refusal()[0] for each in sent] == [UNAVAILABLE, CANCELLED, UNAVAILABLE]
    assert queue.counts["waiting_rows"] == 0


def test_a_batch_that_nobody_answers_is_an_error_for_its_callers() -> None:
    queue = Queue()
    sent = queue.send()
    batch = queue.version.take()
    del batch
    assert sent.refusal() == (13, "the batch was lost")


def test_a_taker_that_waits_is_woken_by_the_first_call() -> None:
    queue = Queue()
    taken: list[list[str]] = []
    taker = threading.Thread(target=lambda: taken.append(queue.take()))
    taker.start()
    sent = queue.send(id="a")
    assert sent.reply().id == "a"
    taker.join(30)
    assert taken == [["a"]]


def test_lingering_ends_with_a_full_batch() -> None:
    queue = Queue(max_batch_rows=3, linger_s=3600.0)
    queue.send(1, id="a")
    queue.send(2, id="b")
    assert queue.take() == ["a", "b"]


def test_lingering_ends_with_its_time() -> None:
    queue = Queue(max_batch_rows=3, linger_s=0.01)
    queue.send(1, id="a")
    assert queue.take() == ["a"]


def test_a_version_that_is_closed_does_not_linger() -> None:
    queue = Queue(linger_s=3600.0)
    queue.send(1, id="a")
    queue.version.close()
    assert queue.take() == ["a"]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from(["live", "cancel"])),
        max_size=30,
    ),
    st.integers(1, 8),
)
def test_every_live_call_comes_out_exactly_once(
    calls: list[tuple[int, int, str]], max_rows: int
) -> None:
    queue = Queue(max_queue_rows=10_000, max_batch_rows=max_rows)
    live: list[tuple[str, int, int]] = []
    for number, (rows, width, fate) in enumerate(calls):
        sent = queue.send(rows, width=width, id=str(number))
        if fate == "cancel":
            sent.cancel()
        else:
            live.append((str(number), rows, width))
    queue.version.close()
    about = {id: (rows, width) for id, rows, width in live}
    seen: list[str] = []
    while ids := queue.take():
        assert len({about[id][1] for id in ids}) == 1
        assert len(ids) == 1 or sum(about[id][0] for id in ids) <= max_rows
        seen += ids
    assert sorted(seen) == sorted(about)
    for width in (1, 2, 3):
        expected = [id for id, _, its_width in live if its_width == width]
        assert [id for id in seen if about[id][1] == width] == expected
    assert queue.counts["waiting_rows"] == 0
    assert queue.requests.plane.requests_in_flight == 0


def test_a_string_beyond_the_limit_is_refused_raw_or_typed() -> None:
    version = Version(
        "m",
        1,
        [("s", "BYTES", (-1,))],
        [("y", "FP32")],
        batchable=True,
        max_request_rows=10,
        max_batch_rows=10,
        max_queue_rows=10,
        max_string_bytes=3,
    )
    requests = Requests(plane_of(version))
    for raw in (True, False):
        for word in (b"abc", b"abcd"):
            message = pb.ModelInferRequest(model_name="m")
            tensor = message.inputs.add(name="s", datatype="BYTES", shape=[2])
            if raw:
                message.raw_input_contents.append(b"\0\0\0\0" + struct.pack("<I", len(word)) + word)
            else:
                tensor.contents.bytes_contents.extend([b"", word])
            sent = requests.send_bytes(message.SerializeToString())
            if word == b"abc":
                assert not sent.done()
                sent.cancel()
            else:
                text = (
                    "input 's' for model 'm': BYTES element 1 has 4 bytes, the limit is 3 "
                    "(max_string_bytes)"
                )
                assert sent.refusal() == (3, text)
