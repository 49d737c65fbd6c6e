"""The Open Inference Protocol over a real connection, from request to reply."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests import models
from tests.live import LiveServer, infer_request, live_server, unary
from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.config import BatchingConfig
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.inference.servable import Servable

Status = grpc.StatusCode
Body = Callable[[LiveServer], Coroutine[Any, Any, None]]


def serve(models_dir: Path, body: Body, **options: Any) -> None:
    """Runs `body` against a server of everything in `models_dir`."""

    async def main() -> None:
        async with live_server(models_dir, **options) as server:
            await body(server)

    asyncio.run(main())


def x(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def output(reply: pb.ModelInferResponse, name: str) -> NDArray[Any]:
    """An FP32 output of the reply."""
    index = [each.name for each in reply.outputs].index(name)
    array = np.frombuffer(reply.raw_output_contents[index], dtype=np.float32)
    return array.reshape(tuple(reply.outputs[index].shape))


class Gate:
    """Holds every run of a version's session until it is opened."""

    def __init__(self, servable: Servable, loop: asyncio.AbstractEventLoop) -> None:
        self._session = servable._session
        self._loop = loop
        self.running = asyncio.Event()
        self._open = asyncio.Event()
        self.batches: list[int] = []
        servable._session = self

    def run(self, names: Any, feed: Any) -> Any:
        self.batches.append(len(next(iter(feed.values()))))
        self._loop.call_soon_threadsafe(self.running.set)
        asyncio.run_coroutine_threadsafe(self._open.wait(), self._loop).result(30)
        assert self._session is not None
        return self._session.run(names, feed)

    def open(self) -> None:
        self._open.set()


async def waiting(server: LiveServer, count: int) -> None:
    """Returns once `count` calls wait in the queue of model m."""
    executor = server.manager.resolve("m", "")
    while executor.statistics().waiting_rows < count:
        await asyncio.sleep(0)


# -- predictions


def test_a_prediction_is_onnxruntimes_and_names_its_version(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.logistic())

    async def body(server: LiveServer) -> None:
        rows = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
        reply = await server.client.infer(infer_request("m", {"input": rows}, id="mine"))
        direct = onnxruntime.InferenceSession(str(tmp_path / "m/1/model.onnx")).run(
            None, {"input": rows}
        )
        assert (reply.model_name, reply.model_version, reply.id) == ("m", "1", "mine")
        assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
            ("label", "INT64", [3]),
            ("probabilities", "FP32", [3, 2]),
        ]
        assert [value.tobytes() for value in direct] == list(reply.raw_output_contents)
        assert not any(each.HasField("contents") for each in reply.outputs)

    serve(tmp_path, body)


def test_several_inputs_and_outputs_with_strings_in_the_order_requested(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())

    async def body(server: LiveServer) -> None:
        request = infer_request(
            "m",
            {"categorical": [b"EWR", "Zürich".encode()], "numeric": x([1, 2], [3, -5])},
            outputs=("label", "variable"),
        )
        reply = await server.client.infer(request)
        assert [each.name for each in reply.outputs] == ["label", "variable"]
        assert reply.raw_output_contents[0] == request.raw_input_contents[0]
        assert output(reply, "variable").tolist() == [[3.0], [-2.0]]
        # The tap is told of every output all the same.
        server.manager.resolve("m", "").close()
        (batch,) = server.observed
        assert set(batch.outputs) == {"variable", "label", "positive"}

    serve(tmp_path, body)


def test_a_request_without_an_id_gets_a_short_unique_one(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        request = infer_request("m", {"x": x([1, 2])})
        replies = await asyncio.gather(*[server.client.infer(request) for _ in range(20)])
        ids = {reply.id for reply in replies}
        assert len(ids) == 20
        assert all(0 < len(each) <= 32 for each in ids)
        server.manager.resolve("m", "").close()
        assert {call.id for batch in server.observed for call in batch.calls.each()} == ids

    serve(tmp_path, body)


def test_the_event_time_of_a_request_reaches_the_tap(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        request = infer_request("m", {"x": x([1, 2])})
        await server.client.infer(request)
        request.parameters["event_time"].int64_param = 1_357_000_000_000
        await server.client.infer(request)
        server.manager.resolve("m", "").close()
        times = [call.event_time_ms for batch in server.observed for call in batch.calls.each()]
        assert times == [None, 1_357_000_000_000]

    serve(tmp_path, body)


def test_what_arrives_while_the_model_runs_shares_the_next_run(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def body(server: LiveServer) -> None:
        gate = Gate(server.manager.resolve("m", "").servable, asyncio.get_running_loop())
        first = asyncio.ensure_future(server.client.infer(infer_request("m", {"x": x([0, 0])})))
        await gate.running.wait()
        others = [
            asyncio.ensure_future(server.client.infer(infer_request("m", {"x": x([n, n + 0.5])})))
            for n in range(10)
        ]
        await waiting(server, 10)
        gate.open()
        replies = await asyncio.gather(*others)
        assert [output(reply, "y").tolist() for reply in replies] == [
            [[2.0 * n, 2 * n + 1.0]] for n in range(10)
        ]
        assert output(await first, "y").tolist() == [[0.0, 0.0]]
        assert gate.batches == [1, 10]

    serve(tmp_path, body)


def test_a_bad_string_in_a_batch_fails_its_caller_alone(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())

    async def body(server: LiveServer) -> None:
        gate = Gate(server.manager.resolve("m", "").servable, asyncio.get_running_loop())

        def request(word: bytes) -> pb.ModelInferRequest:
            return infer_request("m", {"numeric": x([1, 1], [2, 2]), "categorical": [b"ok", word]})

        first = asyncio.ensure_future(server.client.infer(request(b"a")))
        await gate.running.wait()
        good = [asyncio.ensure_future(server.client.infer(request(b"b"))) for _ in range(3)]
        bad = asyncio.ensure_future(server.client.refusal(request(b"\xc3\x28")))
        await waiting(server, 8)
        gate.open()
        assert all(len(reply.outputs) == 3 for reply in await asyncio.gather(first, *good))
        code, text = await bad
        assert code is Status.INVALID_ARGUMENT
        assert text.startswith("input 'categorical' for model 'm': ") and "1" in text

    serve(tmp_path, body)


def test_a_row_that_onnxruntime_cannot_compute_is_an_internal_error_of_one_caller(
    tmp_path: Path,
) -> None:
    models.publish(tmp_path, "m", models.lookup())

    async def body(server: LiveServer) -> None:
        def request(index: int) -> pb.ModelInferRequest:
            return infer_request("m", {"index": np.array([index], dtype=np.int64)})

        bad = asyncio.ensure_future(server.client.refusal(request(4)))
        replies = await asyncio.gather(*[server.client.infer(request(n)) for n in range(4)])
        assert [output(reply, "value")[0] for reply in replies] == [0.0, 10.0, 20.0, 30.0]
        code, text = await bad
        assert code is Status.INTERNAL and text.startswith("model 'm' version 1 failed: ")

    serve(tmp_path, body)


def test_a_request_larger_than_a_batch_is_answered_whole(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())

    async def body(server: LiveServer) -> None:
        numbers = np.arange(20, dtype=np.float32).reshape(10, 2)
        names = [str(n).encode() for n in range(10)]
        request = infer_request("m", {"numeric": numbers, "categorical": names})
        reply = await server.client.infer(request)
        assert output(reply, "variable")[:, 0].tolist() == numbers.sum(axis=1).tolist()
        assert reply.raw_output_contents[1] == request.raw_input_contents[1]

    serve(tmp_path, body, batching=BatchingConfig(max_batch_rows=3))


@pytest.mark.parametrize("shape", [[2, 3], [], [4]])
def test_models_without_a_batch_dimension_are_served_call_by_call(
    tmp_path: Path, shape: list[int]
) -> None:
    models.write(tmp_path / "m/1", models.identity([("FP32", shape)]))

    async def body(server: LiveServer) -> None:
        values = [np.full(shape, n, dtype=np.float32) for n in range(5)]
        replies = await asyncio.gather(
            *[server.client.infer(infer_request("m", {"in0": value})) for value in values]
        )
        for value, reply in zip(values, replies, strict=True):
            assert np.array_equal(output(reply, "out0"), value)

    serve(tmp_path, body)


def test_rows_that_influence_each_other_are_never_batched(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.centred())

    async def body(server: LiveServer) -> None:
        replies = await asyncio.gather(
            *[server.client.infer(infer_request("m", {"x": x([n, n])})) for n in range(20)]
        )
        assert all(output(reply, "y").tolist() == [[0.0, 0.0]] for reply in replies)

    serve(tmp_path, body)


# -- refusals: the ways of a bad message are in tests/native/test_infer_message.py


def test_refusals_carry_the_protocols_status_and_text(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def body(server: LiveServer) -> None:
        good = {"x": x([1, 2])}
        for request, code, text in [
            (
                infer_request("nope", good),
                Status.NOT_FOUND,
                "Request for unknown model: 'nope' is not found",
            ),
            (
                infer_request("m", good, version="9"),
                Status.NOT_FOUND,
                "Request for unknown model: 'm' version 9 is not found",
            ),
            (
                infer_request("m", good, version="2"),
                Status.UNAVAILABLE,
                "Request for unknown model: 'm' version 2 is not at ready state",
            ),
            (
                infer_request("m", {"x": x([1, 2]).astype(np.float64)}),
                Status.INVALID_ARGUMENT,
                "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'",
            ),
            (
                infer_request("m", {"x": np.zeros((0, 2), dtype=np.float32)}),
                Status.INVALID_ARGUMENT,
                "input 'x' for model 'm' has zero rows: [0,2]",
            ),
            (
                infer_request("m", {"x": np.zeros((6, 2), dtype=np.float32)}),
                Status.INVALID_ARGUMENT,
                "request of 6 rows for model 'm' exceeds the limit of 5 rows (max_request_rows)",
            ),
        ]:
            assert await server.client.refusal(request) == (code, text)
        assert len((await server.client.infer(infer_request("m", good))).outputs) == 1

    serve(tmp_path, body, batching=BatchingConfig(max_request_rows=5))


def test_a_message_that_is_not_one_is_an_invalid_argument(tmp_path: Path) -> None:
    async def body(server: LiveServer) -> None:
        stub = unary(server.client.channel, "/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(b"\xff\xff\xff")
        assert caught.value.code() is Status.INVALID_ARGUMENT
        assert "not a inference.ModelInferRequest" in (caught.value.details() or "")

    serve(tmp_path, body)


def test_a_message_beyond_the_limit_is_refused_by_the_transport(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        large = infer_request("m", {"x": np.zeros((1000, 2), dtype=np.float32)})
        code, _ = await server.client.refusal(large)
        assert code is Status.RESOURCE_EXHAUSTED

    serve(tmp_path, body, max_message_bytes=4096)


def test_a_full_queue_is_unavailable_and_nobody_else_suffers(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        gate = Gate(server.manager.resolve("m", "").servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        first = asyncio.ensure_future(server.client.infer(request))
        await gate.running.wait()
        queued = [asyncio.ensure_future(server.client.infer(request)) for _ in range(3)]
        await waiting(server, 3)
        assert await server.client.refusal(request) == (
            Status.UNAVAILABLE,
            "Exceeds maximum queue size",
        )
        gate.open()
        await asyncio.gather(first, *queued)

    serve(tmp_path, body, batching=BatchingConfig(max_queue_rows=3))


# -- cancellation and time


def test_a_cancelled_call_does_not_run_and_its_neighbours_do(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        executor = server.manager.resolve("m", "")
        gate = Gate(executor.servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        first = asyncio.ensure_future(server.client.infer(request))
        await gate.running.wait()
        before = asyncio.ensure_future(server.client.infer(request))
        gone = server.client.call("ModelInfer", request)
        after = asyncio.ensure_future(server.client.infer(request))
        await waiting(server, 3)
        gone.cancel()
        while executor.statistics().cancelled == 0:
            await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(first, before, after)
        assert gate.batches == [1, 2]

    serve(tmp_path, body)


def test_a_caller_that_leaves_during_the_run_harms_nobody(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        gate = Gate(server.manager.resolve("m", "").servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        gone = server.client.call("ModelInfer", request)
        await gate.running.wait()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open()
        await server.client.infer(request)

    serve(tmp_path, body)


def test_a_call_past_its_deadline_does_not_run(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        executor = server.manager.resolve("m", "")
        gate = Gate(executor.servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        first = asyncio.ensure_future(server.client.infer(request))
        await gate.running.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.client.infer(request, timeout=0.05)
        assert caught.value.code() is Status.DEADLINE_EXCEEDED
        while executor.statistics().cancelled + executor.statistics().expired == 0:
            await asyncio.sleep(0)
            if executor.statistics().waiting_rows == 1:
                gate.open()  # the transport has not told us yet: the queue's clock will
        gate.open()
        await first
        assert gate.batches == [1]

    serve(tmp_path, body)


def test_the_timeout_parameter_bounds_the_wait_in_the_queue(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        executor = server.manager.resolve("m", "")
        gate = Gate(executor.servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        first = asyncio.ensure_future(server.client.infer(request))
        await gate.running.wait()
        request.parameters["timeout"].int64_param = 1  # a microsecond
        late = asyncio.ensure_future(server.client.refusal(request))
        await waiting(server, 1)
        gate.open()
        assert await late == (Status.UNAVAILABLE, "Request timeout expired")
        await first
        assert executor.statistics().expired == 1

    serve(tmp_path, body)


def test_a_model_may_bound_the_wait_of_every_request(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    (tmp_path / "m" / "config.pbtxt").write_text(
        "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1 } }"
    )

    async def body(server: LiveServer) -> None:
        request = infer_request("m", {"x": x([1, 2])})
        # Checking a request takes that long already.
        assert await server.client.refusal(request) == (
            Status.UNAVAILABLE,
            "Request timeout expired",
        )

    serve(tmp_path, body)


# -- swaps


def test_ten_promotes_and_rollbacks_under_load_fail_no_request(tmp_path: Path) -> None:
    for factor in (1.0, 2.0):
        models.publish(tmp_path, "m", models.scaled(factor))

    async def body(server: LiveServer) -> None:
        done = asyncio.Event()
        counts = {"1": 0, "2": 0}

        async def client(number: int) -> None:
            for n in itertools.count(number):
                if done.is_set():
                    return
                reply = await server.client.infer(infer_request("m", {"x": x([n, 1])}))
                factor = float(reply.model_version)
                assert output(reply, "y").tolist() == [[factor * n, factor]]
                counts[reply.model_version] += 1

        clients = [asyncio.ensure_future(client(number)) for number in range(16)]
        for _ in range(10):
            for change in (
                lambda: server.manager.promote("m", 2, actor="a", reason="r"),
                lambda: server.manager.rollback("m", actor="a", reason="r"),
            ):
                before = sum(counts.values())
                await asyncio.to_thread(change)
                while sum(counts.values()) < before + 16:
                    await asyncio.sleep(0)
                    assert not any(each.done() for each in clients)
        done.set()
        await asyncio.gather(*clients)
        assert min(counts.values()) > 100

    serve(tmp_path, body)


def test_a_swap_to_another_signature_checks_the_request_against_the_new_one(
    tmp_path: Path,
) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0, width=2))
    models.publish(tmp_path, "m", models.scaled(1.0, width=3))

    async def body(server: LiveServer) -> None:
        request = infer_request("m", {"x": x([1, 2])})
        await server.client.infer(request)
        await asyncio.to_thread(server.manager.promote, "m", 2, actor="a", reason="r")
        _, text = await server.client.refusal(request)
        assert text == "unexpected shape for input 'x' for model 'm'. Expected [-1,3], got [1,2]"
        request.model_version = "1"
        await server.client.infer(request)

    serve(tmp_path, body)


# -- shutting down


def test_a_server_that_stops_refuses_new_requests_and_answers_those_it_has(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        gate = Gate(server.manager.resolve("m", "").servable, asyncio.get_running_loop())
        request = infer_request("m", {"x": x([1, 2])})
        running = asyncio.ensure_future(server.client.infer(request))
        await gate.running.wait()
        queued = asyncio.ensure_future(server.client.infer(request))
        await waiting(server, 1)
        server.service.stop_accepting()
        server.manager.stop_accepting()
        assert await server.client.refusal(request) == (Status.UNAVAILABLE, SHUTTING_DOWN)
        ready = await server.client.call("ServerReady", pb.ServerReadyRequest())
        assert not pb.ServerReadyResponse.FromString(ready).ready
        stopping = asyncio.ensure_future(server.frontend.stop(30.0))
        gate.open()
        await asyncio.gather(running, queued, stopping)

    serve(tmp_path, body)


# -- the other methods


def test_live_and_ready(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def body(server: LiveServer) -> None:
        call = server.client.call
        live = pb.ServerLiveResponse.FromString(await call("ServerLive", pb.ServerLiveRequest()))
        ready = pb.ServerReadyResponse.FromString(
            await call("ServerReady", pb.ServerReadyRequest())
        )
        assert live.live and ready.ready
        for name, version, expected in [
            ("m", "", True),
            ("m", "1", True),
            ("m", "2", False),
            ("m", "7", False),
            ("x", "", False),
        ]:
            reply = await call("ModelReady", pb.ModelReadyRequest(name=name, version=version))
            assert pb.ModelReadyResponse.FromString(reply).ready is expected, (name, version)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call("ModelReady", pb.ModelReadyRequest(name="m", version="new"))
        assert caught.value.code() is Status.INVALID_ARGUMENT

    serve(tmp_path, body)


def test_metadata(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())

    async def body(server: LiveServer) -> None:
        about = pb.ServerMetadataResponse.FromString(
            await server.client.call("ServerMetadata", pb.ServerMetadataRequest())
        )
        assert (about.name, about.version) == ("trimtab", "1.2.3")
        assert list(about.extensions) == [
            "model_repository",
            "model_repository(unload_dependents)",
            "model_configuration",
            "binary_tensor_data",
            "parameters",
            "statistics",
            "logging",
        ]
        model = pb.ModelMetadataResponse.FromString(
            await server.client.call("ModelMetadata", pb.ModelMetadataRequest(name="m"))
        )
        assert (model.name, list(model.versions), model.platform) == (
            "m",
            ["1"],
            "onnxruntime_onnx",
        )
        assert [(t.name, t.datatype, list(t.shape)) for t in [*model.inputs, *model.outputs]] == [
            ("numeric", "FP32", [-1, 2]),
            ("categorical", "BYTES", [-1, 1]),
            ("variable", "FP32", [-1, 1]),
            ("label", "BYTES", [-1, 1]),
            ("positive", "BOOL", [-1, 1]),
        ]

    serve(tmp_path, body)
