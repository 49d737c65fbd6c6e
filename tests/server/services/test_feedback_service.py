import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.loop_fakes import FakeWall
from trimtab.proto import feedback_pb2 as pb
from trimtab.server.errors import InvalidRequestError, NotFoundError, UnavailableError
from trimtab.server.logs.label_log import Label
from trimtab.server.services.feedback_service import MAX_LABELS, FeedbackService
from trimtab.server.services.handlers import CallContext, UnaryHandler


class FakeSink:
    def __init__(self, takes_text: bool | None = None) -> None:
        self.takes_text = takes_text
        self.taken: list[tuple[list[Label], int]] = []
        self.error: OSError | None = None

    def submit_labels(self, labels: Sequence[Label], event_time_ms: int) -> None:
        if self.error:
            raise self.error
        self.taken.append((list(labels), event_time_ms))


def submit(sink: FakeSink, request: pb.SubmitLabelsRequest | bytes) -> int:
    service = FeedbackService(
        lambda model: model == "m", lambda model: sink, max_request_rows=10, wall=FakeWall(99)
    )
    handler = service.handlers()["/trimtab.v1.Feedback/SubmitLabels"]
    assert isinstance(handler, UnaryHandler)
    raw = request if isinstance(request, bytes) else request.SerializeToString()

    async def call() -> bytes:
        return await handler.handle(raw, CallContext())

    return pb.SubmitLabelsResponse.FromString(asyncio.run(call())).accepted


def test_numbers_and_texts_are_taken_with_their_time() -> None:
    sink = FakeSink()
    labels = [pb.Label(id="a", row=3, number=-1.5), pb.Label(id="ü", text="")]
    request = pb.SubmitLabelsRequest(model_name="m", labels=labels, event_time_ms=5)
    assert submit(sink, request) == 2
    assert sink.taken == [([Label("a", 3, number=-1.5), Label("ü", 0, text="")], 5)]
    request.event_time_ms = 0
    submit(sink, request)
    assert sink.taken[1][1] == 99, "now"


def test_an_empty_list_is_fine() -> None:
    sink = FakeSink()
    assert submit(sink, pb.SubmitLabelsRequest(model_name="m")) == 0
    assert not sink.taken


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (pb.Label(row=1, number=1), "label 1 has no id"),
        (pb.Label(id="x" * 1025, number=1), "longer than 1,024 bytes"),
        (pb.Label(id="a", row=10, number=1), "row 10 is none, a request has at most 10"),
        (pb.Label(id="a", row=1), "neither number nor text"),
        (pb.Label(id="a", number=float("nan")), "nan is not a number"),
        (pb.Label(id="a", number=float("-inf")), "-inf is not a number"),
        (pb.Label(id="a", number=-1e300), r"-1e\+300 is beyond float32, whose largest is 3.4"),
        (pb.Label(id="a", text="x" * 65537), "longer than 65,536 bytes"),
    ],
)
def test_one_wrong_label_refuses_the_batch_and_is_named(label: pb.Label, message: str) -> None:
    sink = FakeSink()
    request = pb.SubmitLabelsRequest(model_name="m", labels=[pb.Label(id="a", number=1), label])
    with pytest.raises(InvalidRequestError, match=message) as error:
        submit(sink, request)
    assert "label 1" in str(error.value)
    assert not sink.taken


def test_what_else_can_be_wrong_with_a_request() -> None:
    sink = FakeSink()
    with pytest.raises(NotFoundError, match="'other' is not found"):
        submit(sink, pb.SubmitLabelsRequest(model_name="other"))
    with pytest.raises(InvalidRequestError, match="not a SubmitLabelsRequest"):
        submit(sink, b"\xff\xff")
    with pytest.raises(InvalidRequestError, match="before 1970"):
        submit(sink, pb.SubmitLabelsRequest(model_name="m", event_time_ms=-1))
    many = [pb.Label(id="a", number=1)] * (MAX_LABELS + 1)
    with pytest.raises(InvalidRequestError, match="100,001 labels for model 'm' exceed 100,000"):
        submit(sink, pb.SubmitLabelsRequest(model_name="m", labels=many))


def test_labels_of_a_type_that_the_model_cannot_have_are_refused() -> None:
    """Nobody could use them: the trainer leaves them out, and no answer can be held against them."""
    sink = FakeSink(takes_text=False)
    right, wrong = pb.Label(id="a", number=1), pb.Label(id="b", row=2, text="one")
    with pytest.raises(InvalidRequestError, match=r"label 1 \(id 'b', row 2\): 'one' is a text"):
        submit(sink, pb.SubmitLabelsRequest(model_name="m", labels=[right, wrong]))
    sink.takes_text = True
    with pytest.raises(InvalidRequestError, match=r"label 1 .*1 is a number, .* 'm' are texts"):
        submit(sink, pb.SubmitLabelsRequest(model_name="m", labels=[wrong, right]))
    assert not sink.taken
    sink.takes_text = None
    assert submit(sink, pb.SubmitLabelsRequest(model_name="m", labels=[wrong, right])) == 2


def test_a_full_disk_is_told_to_the_client() -> None:
    sink = FakeSink()
    sink.error = OSError(28, "No space left on device")
    request = pb.SubmitLabelsRequest(model_name="m", labels=[pb.Label(id="a", number=1)])
    with pytest.raises(UnavailableError, match=r"cannot be written: .*No space"):
        submit(sink, request)


def test_labels_do_not_wait_for_the_threads_that_operators_share() -> None:
    sink = FakeSink()
    service = FeedbackService(lambda model: True, lambda model: sink, max_request_rows=10)
    handler = service.handlers()["/trimtab.v1.Feedback/SubmitLabels"]
    assert isinstance(handler, UnaryHandler)
    request = pb.SubmitLabelsRequest(model_name="m", labels=[pb.Label(id="a", number=1)])

    async def call() -> None:
        stuck = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        operator = asyncio.ensure_future(asyncio.to_thread(stuck.wait, 20))
        try:
            await asyncio.wait_for(handler.handle(request.SerializeToString(), CallContext()), 5)
        finally:
            stuck.set()
            await operator

    asyncio.run(call())
    assert len(sink.taken) == 1
