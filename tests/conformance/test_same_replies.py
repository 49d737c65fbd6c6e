"""Both frontends say the same, byte for byte: a client cannot tell which transport answers it.

Requests are bytes, some of them no message at all. Where gRPC itself refuses a call, its text is that
of the gRPC library behind the frontend, and only the status is compared.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import grpc
import numpy as np
import pytest

from tests import models
from tests.live import infer_request, served
from trimtab.proto import open_inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
MAX_MESSAGE_BYTES = 8 << 20  # gRPC's own default is 4 MiB
CONFIG = """
max_batch_size: 8
dynamic_batching { default_queue_policy { default_timeout_microseconds: 30000000 } }
parameters { key: "team" value { string_value: "us" } }
"""
PATIENT = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 500000 }"

pytestmark = pytest.mark.skipif(
    find_spec("trimtab._native.grpc_frontend") is None,
    reason="the native frontend was not built here",
)


@dataclass
class Answer:
    """How one call ended."""

    replies: list[bytes] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""


class Server:
    """A channel to one of the two."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.channel = self.connect()

    def connect(self, *options: tuple[str, int]) -> grpc.Channel:
        return grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                *options,
            ],
        )

    def ask(self, method: str, request: bytes, **options: Any) -> Answer:
        path = method if "/" in method else SERVICE + method
        call = self.channel.unary_unary(path, None, None)
        try:
            return Answer([call(request, **{"timeout": 30, **options})])
        except grpc.RpcError as error:
            return Answer([], error.code(), error.details() or "")

    def converse(self, requests: list[bytes], **options: Any) -> Answer:
        call: Any = self.channel.stream_stream(f"{SERVICE}ModelStreamInfer", None, None)
        answer = Answer()
        try:
            for reply in call(iter(requests), **{"timeout": 30, **options}):
                answer.replies.append(reply)
        except grpc.RpcError as error:
            answer.code, answer.text = error.code(), error.details() or ""
        return answer


@dataclass
class Both:
    native: Server
    portable: Server

    def ask(self, method: str, request: bytes, **options: Any) -> Answer:
        """The answer that both gave."""
        answer = self.native.ask(method, request, **options)
        assert answer == self.portable.ask(method, request, **options)
        return answer

    def converse(self, requests: list[bytes]) -> Answer:
        answer = self.native.converse(requests)
        assert answer == self.portable.converse(requests)
        return answer


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("native", "portable"):
            models_dir = tmp_path_factory.mktemp(name)
            models.write(models_dir / "m/1", models.scaled(2.0))
            models.write(models_dir / "patient/1", models.scaled(2.0))
            (models_dir / "patient/config.pbtxt").write_text(PATIENT)
            (models_dir / "m/2").mkdir()
            (models_dir / "m/2/model.onnx").symlink_to("/dev/null")  # the same reason in both
            (models_dir / "m/config.pbtxt").write_text(f"{CONFIG} version_policy {{ all {{}} }}")
            models.write(models_dir / "flights/1", models.flights())
            models.write(models_dir / "words/1", models.identity([("BYTES", ["N", None])]))
            models.write(models_dir / "wide/1", models.identity([("FP32", ["N", None])]))
            models.write(models_dir / "scalar/1", models.identity([("FP32", [])]))
            server = stack.enter_context(
                served(
                    models_dir,
                    frontend=name,
                    max_message_bytes=MAX_MESSAGE_BYTES,
                    model_control=True,
                )
            )
            servers.append(Server(server.port))
            stack.callback(servers[-1].channel.close)
        yield Both(*servers)


def rows(count: int = 2, width: int = 2) -> Any:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def typed() -> pb.ModelInferRequest:
    """As KServe's client sends what is no raw tensor: typed contents, and parameters of its own."""
    request = pb.ModelInferRequest(model_name="m", id="typed")
    request.parameters["content_type"].string_param = "np"
    request.parameters["headers"].bool_param = True
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    tensor.parameters["binary_data"].bool_param = False
    tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    return request


def as_perf_analyzer() -> pb.ModelInferRequest:
    request = infer_request("m", {"x": rows()}, id="7", outputs=["y"])
    request.parameters["triton_enable_empty_final_response"].bool_param = False
    return request


def with_parameters(**parameters: Any) -> pb.ModelInferRequest:
    request = infer_request("m", {"x": rows()}, id="parameters")
    for name, (kind, value) in parameters.items():
        setattr(request.parameters[name], kind, value)
    return request


def with_class(tensor: str) -> pb.ModelInferRequest:
    request = infer_request("m", {"x": rows()}, id="class", outputs=["y"])
    request.outputs[0].parameters[tensor].int64_param = 1
    return request


def shape_of(request: pb.ModelInferRequest, *shape: int) -> pb.ModelInferRequest:
    request.inputs[0].shape[:] = shape
    return request


FLIGHT: dict[str, Any] = {"numeric": rows(1), "categorical": [b"UA"]}
ANSWERED: Mapping[str, pb.ModelInferRequest] = {
    "one row": infer_request("m", {"x": rows(1)}, id="a"),
    "a version": infer_request("m", {"x": rows(3)}, id="b", version="1"),
    "more rows than a batch": infer_request("m", {"x": rows(100)}, id="c" * 256),
    "several tensors": infer_request("flights", FLIGHT, id="ü€"),
    "some outputs": infer_request("flights", FLIGHT, id="e", outputs=["label", "variable"]),
    "strings": infer_request("words", {"in0": ["Zürich".encode(), b"", b"a\0b"]}, id="f"),
    "no dimension": infer_request("scalar", {"in0": np.array(1.5, dtype=np.float32)}, id="g"),
    "no column": infer_request("wide", {"in0": rows(3, 0)}, id="h"),
    "typed contents": typed(),
    "perf_analyzer's": as_perf_analyzer(),
    "parameters": with_parameters(
        event_time=("int64_param", 1_700_000_000_000),
        timeout=("int64_param", 30_000_000),
        priority=("uint64_param", 1),
        sequence_id=("int64_param", 0),
        else_where=("double_param", 0.5),
    ),
}
REFUSED: Mapping[str, pb.ModelInferRequest] = {
    "unknown model": infer_request("nope", {"x": rows()}, id="a"),
    "no model": infer_request("", {"x": rows()}, id="a"),
    "unknown version": infer_request("m", {"x": rows()}, id="a", version="9"),
    "broken version": infer_request("m", {"x": rows()}, id="a", version="2"),
    "no number": infer_request("m", {"x": rows()}, id="a", version="new"),
    "wrong type": infer_request("m", {"x": rows().astype(np.float64)}, id="a"),
    "wrong shape": infer_request("m", {"x": rows(2, 3)}, id="a"),
    "wrong size": shape_of(infer_request("m", {"x": rows(2)}, id="a"), 3, 2),
    "negative shape": shape_of(infer_request("m", {"x": rows(2)}, id="a"), -2, 2),
    "huge shape": shape_of(infer_request("wide", {"in0": rows(2)}, id="a"), 1 << 40, 0, 1 << 40),
    "zero rows": infer_request("m", {"x": rows(0)}, id="a"),
    "too many rows": infer_request("m", {"x": rows(70_000)}, id="a"),
    "unequal rows": infer_request("flights", {**FLIGHT, "numeric": rows(2)}, id="a"),
    "no input": pb.ModelInferRequest(model_name="m", id="a"),
    "one input of two": infer_request("flights", {"numeric": rows(1)}, id="a"),
    "another input": infer_request("m", {"ž": rows()}, id="a"),
    "another output": infer_request("m", {"x": rows()}, id="a", outputs=["z" * 2000]),
    "an output twice": infer_request("m", {"x": rows()}, id="a", outputs=["y", "y"]),
    "no UTF-8": infer_request("words", {"in0": [b"\xff\xfe"]}, id="a"),
    "long id": infer_request("m", {"x": rows()}, id="i" * 257),
    "wrong parameter": with_parameters(event_time=("string_param", "now\n\t%€")),
    "wrong timeout": with_parameters(timeout=("bool_param", True)),
    "a region": with_parameters(),
    "a classification": with_class("classification"),
}
REFUSED["a region"].inputs[0].parameters["shared_memory_region"].string_param = "r"
GARBAGE = {
    "empty": b"",
    "no message": b"\xff\xff\xff\xff",
    "torn": infer_request("m", {"x": rows()}, id="a").SerializeToString()[:-3],
    "twice": 2 * infer_request("m", {"x": rows()}, id="a").SerializeToString(),
    "unknown fields": infer_request("m", {"x": rows()}, id="a").SerializeToString()
    + b"\xfa\x3e\x03abc",
    "no UTF-8 in the id": b"\x0a\x01m\x1a\x02\xff\xfe",
    "no UTF-8": b"\x0a\x02\xff\xfe",
}


@pytest.mark.parametrize("name", ANSWERED)
def test_predictions_are_the_same(both: Both, name: str) -> None:
    answer = both.ask("ModelInfer", ANSWERED[name].SerializeToString())
    assert answer.code is grpc.StatusCode.OK, answer
    assert pb.ModelInferResponse.FromString(answer.replies[0]).id == ANSWERED[name].id


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_same(both: Both, name: str) -> None:
    answer = both.ask("ModelInfer", REFUSED[name].SerializeToString())
    assert answer.code is not grpc.StatusCode.OK and answer.text


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_request_is_answered_the_same(both: Both, name: str) -> None:
    both.ask("ModelInfer", GARBAGE[name])


def test_streams_are_the_same(both: Both) -> None:
    named = [*ANSWERED.values(), *REFUSED.values(), *ANSWERED.values()]
    answer = both.converse([each.SerializeToString() for each in named])
    assert answer.code is grpc.StatusCode.OK and len(answer.replies) == len(named)
    replies = [pb.ModelStreamInferResponse.FromString(reply) for reply in answer.replies]
    assert [reply.infer_response.id for reply in replies] == [each.id for each in named]
    assert both.converse([]) == Answer()


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_request_does_not_end_a_stream(both: Both, name: str) -> None:
    good = ANSWERED["one row"].SerializeToString()
    answer = both.converse([good, GARBAGE[name], good])
    assert answer.code is grpc.StatusCode.OK and len(answer.replies) == 3
    assert answer.replies[0] == answer.replies[2]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ServerLive", pb.ServerLiveRequest()),
        ("ServerReady", pb.ServerReadyRequest()),
        ("ModelReady", pb.ModelReadyRequest(name="m")),
        ("ModelReady", pb.ModelReadyRequest(name="nope")),
        ("ModelReady", pb.ModelReadyRequest(name="m", version="new")),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="flights")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nöpe")),
        ("ModelConfig", pb.ModelConfigRequest(name="scalar", version="1")),
        ("ModelConfig", pb.ModelConfigRequest(name="m", version="9")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="nope")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="n" * 3000)),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="scalar")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="scalar")),
        ("TraceSetting", pb.TraceSettingRequest(model_name="nope")),
        ("LogSettings", pb.LogSettingsRequest()),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r")),
        ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(str(value).split())[:30],
)
def test_every_other_method_answers_the_same(both: Both, method: str, request_: Any) -> None:
    both.ask(method, request_.SerializeToString())
    both.ask(method, b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "method", ["ModelInfers", "modelinfer", "", "/inference.Nothing/ModelInfer", "/no/such/thing"]
)
def test_a_method_that_is_not_there_is_unimplemented(both: Both, method: str) -> None:
    for server in (both.native, both.portable):
        assert server.ask(method, b"").code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_the_same(both: Both, compression: grpc.Compression) -> None:
    for request in ANSWERED.values():
        plain = both.ask("ModelInfer", request.SerializeToString())
        assert both.ask("ModelInfer", request.SerializeToString(), compression=compression) == plain


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_large_message_goes_both_ways_and_a_larger_one_is_refused(
    both: Both, compression: grpc.Compression | None
) -> None:
    zeros = np.zeros((1, MAX_MESSAGE_BYTES // 4), np.float32)
    large = infer_request("wide", {"in0": zeros[:, :-200]}, id="large")
    answer = both.ask("ModelInfer", large.SerializeToString(), compression=compression)
    assert pb.ModelInferResponse.FromString(answer.replies[0]).raw_output_contents == [
        large.raw_input_contents[0]
    ]
    larger = infer_request("wide", {"in0": zeros}, id="larger")
    for server in (both.native, both.portable):
        refused = server.ask("ModelInfer", larger.SerializeToString(), compression=compression)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_time_that_passes_in_the_queue_is_told_the_same(both: Both) -> None:
    request = infer_request("patient", {"x": rows()}, id="late")
    for server in (both.native, both.portable):
        late = server.ask("ModelInfer", request.SerializeToString(), timeout=0.05)
        assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    request.parameters["timeout"].int64_param = 50_000
    assert both.ask("ModelInfer", request.SerializeToString()) == Answer(
        [], grpc.StatusCode.UNAVAILABLE, "Request timeout expired"
    )
    answer = both.converse([request.SerializeToString()])
    assert pb.ModelStreamInferResponse.FromString(answer.replies[0]).error_message == (
        "Request timeout expired"
    )


def test_a_client_may_test_its_connection(both: Both) -> None:
    """Triton's example of a client that keeps its connection alive pings with calls under way."""
    request = ANSWERED["one row"].SerializeToString()
    for server in (both.native, both.portable):
        channel = server.connect(
            ("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 2)
        )
        with channel:
            call = channel.unary_unary(f"{SERVICE}ModelInfer", None, None)
            for _ in range(200):
                assert call(request, timeout=30)
