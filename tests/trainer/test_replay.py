"""The replay's client against a small gRPC server that answers as told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from trimtab.proto import feedback_pb2, open_inference_pb2
from trimtab.registry.manifest import TensorSpec
from trimtab.trainer.replay import Answers, ReplayClient, ReplayError, RequestEncoder, read_reply
from trimtab.trainer.replay_schedule import PlannedRequest

NUMERIC = TensorSpec("numeric", "FP32", (-1, 2), ("a", "b"))
STRINGS = TensorSpec("categorical", "BYTES", (-1, 2), ("c", "d"))
ROWS = 6
COLUMNS: dict[str, Any] = {
    "a": np.arange(ROWS, dtype=np.float32),
    "b": np.array([0.5, np.nan, 1.5, 2.5, 3.5, 4.5], dtype=np.float32),
    "c": np.array(["x", "", "ü", "x", "y", "x"], dtype=object),
    "d": np.array(["x", "long text", "", "", "y", "z"], dtype=object),
}
TIMES = np.arange(ROWS, dtype=np.int64) * 1_000
WHOLE = [PlannedRequest(0, 2), PlannedRequest(2, 3), PlannedRequest(3, 6)]


def encoder() -> RequestEncoder:
    return RequestEncoder("m", (NUMERIC, STRINGS), COLUMNS)


def reply_to(
    message: open_inference_pb2.ModelInferRequest, rows: int | None = None, width: int = 1
) -> open_inference_pb2.ModelInferResponse:
    rows = message.inputs[0].shape[0] if rows is None else rows
    numbers = np.frombuffer(message.raw_input_contents[0], "<f4").reshape(-1, 2)
    values = np.repeat(numbers[:rows, :1] * 10, width, axis=1).astype("<f4")
    reply = open_inference_pb2.ModelInferResponse(
        model_name="m", model_version="3", id=message.id, raw_output_contents=[values.tobytes()]
    )
    reply.outputs.add(name="variable", datatype="FP32", shape=(rows, width))
    return reply


class FakeServer:
    """Answers ModelInfer and SubmitLabels; `fail` names requests that it refuses."""

    def __init__(self) -> None:
        self.requests: list[open_inference_pb2.ModelInferRequest] = []
        self.labels: list[feedback_pb2.SubmitLabelsRequest] = []
        self.fail: set[str] = set()
        self.short: set[str] = set()
        self.under_way = 0
        self.most = 0

    async def infer(self, message: open_inference_pb2.ModelInferRequest, context: Any) -> Any:
        self.requests.append(message)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if message.id in self.fail:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        return reply_to(message, rows=1 if message.id in self.short else None)

    async def label(self, message: feedback_pb2.SubmitLabelsRequest, context: Any) -> Any:
        self.labels.append(message)
        accepted = 0 if "refuse" in self.fail else len(message.labels)
        return feedback_pb2.SubmitLabelsResponse(accepted=accepted)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[FakeServer, ReplayClient]]:
    fake = FakeServer()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService",
                {
                    "ModelInfer": grpc.unary_unary_rpc_method_handler(
                        fake.infer,
                        open_inference_pb2.ModelInferRequest.FromString,
                        open_inference_pb2.ModelInferResponse.SerializeToString,
                    )
                },
            ),
            grpc.method_handlers_generic_handler(
                "trimtab.v1.Feedback",
                {
                    "SubmitLabels": grpc.unary_unary_rpc_method_handler(
                        fake.label,
                        feedback_pb2.SubmitLabelsRequest.FromString,
                        feedback_pb2.SubmitLabelsResponse.SerializeToString,
                    )
                },
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = ReplayClient(f"127.0.0.1:{port}", f"127.0.0.1:{port}", "m", in_flight=2, timeout_s=20)
    try:
        yield fake, client
    finally:
        await client.aclose()
        await server.stop(None)


def one_column(version: int) -> Any:
    return np.zeros(1, dtype=np.intp)


def test_a_request_is_the_rows_in_raw_bytes() -> None:
    data = encoder().encode(PlannedRequest(1, 3), 2_000)
    message = open_inference_pb2.ModelInferRequest.FromString(data)
    assert (message.model_name, message.model_version, message.id) == ("m", "", "row-1")
    assert message.parameters["event_time"].int64_param == 2_000
    assert [(t.name, t.datatype, list(t.shape)) for t in message.inputs] == [
        ("numeric", "FP32", [2, 2]),
        ("categorical", "BYTES", [2, 2]),
    ]
    numbers = np.frombuffer(message.raw_input_contents[0], "<f4")
    np.testing.assert_array_equal(numbers, np.array([1, np.nan, 2, 1.5], dtype=np.float32))
    cells = ["", "long text", "ü", ""]
    wire = b"".join(len(c.encode()).to_bytes(4, "little") + c.encode() for c in cells)
    assert message.raw_input_contents[1] == wire


def test_every_answer_lands_in_its_row() -> None:
    async def scenario() -> None:
        async with running() as (fake, client):
            answers = Answers.empty(ROWS, 1)
            await client.replay(WHOLE, encoder(), TIMES, "variable", one_column, answers)
            assert answers.score[:, 0].tolist() == [0, 10, 20, 30, 40, 50]
            assert answers.version.tolist() == [3] * ROWS
            assert answers.answered_rows == ROWS
            assert (answers.failed_requests, answers.wrong_shapes) == (0, 0)
            assert fake.most <= 2
            times = {m.id: m.parameters["event_time"].int64_param for m in fake.requests}
            assert times == {"row-0": 1_000, "row-2": 2_000, "row-3": 5_000}

    asyncio.run(scenario())


def test_a_failed_request_is_counted_and_its_neighbours_are_not() -> None:
    async def scenario() -> None:
        async with running() as (fake, client):
            fake.fail.add("row-2")
            answers = Answers.empty(ROWS, 1)
            await client.replay(WHOLE, encoder(), TIMES, "variable", one_column, answers)
            assert answers.failed_requests == 1
            assert answers.failed_starts == [2]
            assert answers.failures == ["UNAVAILABLE: Exceeds maximum queue size"]
            assert answers.answered_rows == ROWS - 1
            assert answers.version.tolist() == [3, 3, 0, 3, 3, 3]
            assert np.isnan(answers.score[2, 0])

    asyncio.run(scenario())


def test_a_reply_with_too_few_rows_is_a_wrong_shape() -> None:
    async def scenario() -> None:
        async with running() as (fake, client):
            fake.short.add("row-3")
            answers = Answers.empty(ROWS, 1)
            await client.replay(WHOLE, encoder(), TIMES, "variable", one_column, answers)
            assert (answers.failed_requests, answers.wrong_shapes) == (0, 1)
            assert "asked were 3 rows" in answers.failures[0]

    asyncio.run(scenario())


def test_scores_of_a_version_that_knows_fewer_classes_go_to_their_columns() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            answers = Answers.empty(ROWS, 3)
            place = np.array([2], dtype=np.intp)
            await client.replay(WHOLE, encoder(), TIMES, "variable", lambda _: place, answers)
            assert answers.score.tolist() == [[0, 0, 10 * row] for row in range(ROWS)]

    asyncio.run(scenario())


def test_labels_are_sent_with_the_time_at_which_they_became_known() -> None:
    async def scenario() -> None:
        async with running() as (fake, client):
            labels = [feedback_pb2.Label(id="row-0", row=1, number=2.5)]
            await client.submit_labels(labels, 9_000)
            (sent,) = fake.labels
            assert (sent.model_name, sent.event_time_ms) == ("m", 9_000)
            assert list(sent.labels) == labels
            fake.fail.add("refuse")
            with pytest.raises(ReplayError, match="0 of 1 labels were accepted"):
                await client.submit_labels(labels, 9_000)

    asyncio.run(scenario())


def test_a_method_that_is_not_there_is_a_clear_error() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            with pytest.raises(ReplayError, match="GetDrift: UNIMPLEMENTED"):
                await client.drift()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: setattr(r, "id", "row-9"), "has the id 'row-9'"),
        (lambda r: r.raw_output_contents.append(b""), "1 outputs, but 2 raw contents"),
        (lambda r: r.raw_output_contents.__setitem__(0, b"123"), "has 3 bytes"),
        (lambda r: setattr(r.outputs[0], "name", "other"), "no numeric output 'variable'"),
    ],
)
def test_a_reply_that_does_not_fit_is_told_apart(change: Any, message: str) -> None:
    request = PlannedRequest(1, 3)
    sent = open_inference_pb2.ModelInferRequest.FromString(encoder().encode(request, 0))
    reply = reply_to(sent)
    assert read_reply(reply, request, "variable").tolist() == [[10], [20]]
    change(reply)
    with pytest.raises(ValueError, match=message):
        read_reply(reply, request, "variable")
