"""Replays rows of a frame through a running server over gRPC, and keeps what it answered.

The wire form is made here with numpy and nothing of the server: numeric tensors are slices of one
float32 matrix, string tensors are joined from the wire form of each distinct string, so a request
costs microseconds and the server is what is measured. Every reply is checked: the right
request, one row of output per row of input, whole buffers.

All coroutines run in one event loop. A call that fails is counted, with its first reasons, and is
not tried again: a failed request is a result of the backtest.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from trimtab.proto import admin_pb2, feedback_pb2, open_inference_pb2
from trimtab.registry.manifest import TensorSpec

from .replay_schedule import PlannedRequest

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LABELS = "/trimtab.v1.Feedback/SubmitLabels"
_ADMIN = "/trimtab.v1.Admin/"
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),  # the server is on this machine
    ("grpc.use_local_subchannel_pool", 1),
]
_LABELS_PER_CALL = 10_000
_KEPT_FAILURES = 5
_DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}
_Reply = TypeVar("_Reply", bound=Message)


class ReplayError(Exception):
    """The replay cannot go on; the message says why."""


class RequestEncoder:
    """Makes ModelInfer messages of a frame's rows, for one signature of inputs."""

    def __init__(
        self, model: str, inputs: Sequence[TensorSpec], columns: Mapping[str, NDArray[Any]]
    ) -> None:
        """`columns`: float32 or object (str) arrays, all of one length, by column name."""
        self._model = model
        self._specs = tuple(inputs)
        self._numeric: dict[str, NDArray[np.float32]] = {}
        self._codes: dict[str, NDArray[np.int32]] = {}
        self._cells: dict[str, list[bytes]] = {}
        for spec in inputs:
            if spec.datatype == "BYTES":
                self._add_strings(spec, columns)
            elif spec.datatype == "FP32":
                matrix = np.column_stack([columns[name] for name in spec.columns])
                self._numeric[spec.name] = np.ascontiguousarray(matrix, dtype="<f4")
            else:
                raise ReplayError(
                    f"input {spec.name} is {spec.datatype}: the replay cannot make it"
                )

    def _add_strings(self, spec: TensorSpec, columns: Mapping[str, NDArray[Any]]) -> None:
        codes = []
        cells: list[bytes] = []
        known: dict[str, int] = {}
        for name in spec.columns:
            column = np.empty(len(columns[name]), dtype=np.int32)
            for row, value in enumerate(columns[name].tolist()):
                code = known.get(value)
                if code is None:
                    data = value.encode()
                    code = known[value] = len(cells)
                    cells.append(len(data).to_bytes(4, "little") + data)
                column[row] = code
            codes.append(column)
        self._codes[spec.name] = np.column_stack(codes)
        self._cells[spec.name] = cells

    def encode(self, request: PlannedRequest, event_time_ms: int, version: str = "") -> bytes:
        """One request, serialised."""
        rows = request.stop - request.start
        message = open_inference_pb2.ModelInferRequest(
            model_name=self._model, model_version=version, id=request.id
        )
        message.parameters["event_time"].int64_param = event_time_ms
        for spec in self._specs:
            message.inputs.add(
                name=spec.name, datatype=spec.datatype, shape=(rows, *spec.shape[1:])
            )
            if spec.name in self._numeric:
                raw = self._numeric[spec.name][request.start : request.stop].tobytes()
            else:
                codes = self._codes[spec.name][request.start : request.stop]
                raw = b"".join(map(self._cells[spec.name].__getitem__, codes.ravel().tolist()))
            message.raw_input_contents.append(raw)
        return message.SerializeToString()


@dataclass
class Answers:
    """What was answered, row by row; rows that were not answered have version 0."""

    version: NDArray[np.int64]
    score: NDArray[np.float64]  # (rows, width): the value, or the probabilities of the classes
    failed_requests: int = 0
    wrong_shapes: int = 0
    answered_rows: int = 0
    failures: list[str] = field(default_factory=list)  # the first few reasons
    failed_starts: list[int] = field(default_factory=list)  # first row of each failed request

    @classmethod
    def empty(cls, rows: int, width: int) -> "Answers":
        return cls(np.zeros(rows, dtype=np.int64), np.full((rows, width), np.nan))

    def count_failure(self, request: PlannedRequest, reason: str) -> None:
        self.failed_requests += 1
        self.failed_starts.append(request.start)
        self._keep(reason)

    def count_wrong_shape(self, reason: str) -> None:
        self.wrong_shapes += 1
        self._keep(reason)

    def _keep(self, reason: str) -> None:
        if len(self.failures) < _KEPT_FAILURES and reason not in self.failures:
            self.failures.append(reason)


def read_reply(
    reply: open_inference_pb2.ModelInferResponse, request: PlannedRequest, output: str
) -> NDArray[np.float64]:
    """The named output as (rows, width); ValueError where the reply does not fit the request."""
    rows = request.stop - request.start
    if reply.id != request.id:
        raise ValueError(f"the reply to {request.id} has the id {reply.id!r}")
    if len(reply.raw_output_contents) != len(reply.outputs):
        raise ValueError(
            f"{len(reply.outputs)} outputs, but {len(reply.raw_output_contents)} raw contents"
        )
    found: NDArray[np.float64] | None = None
    for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        shape = tuple(tensor.shape)
        if not shape or shape[0] != rows:
            raise ValueError(f"output {tensor.name} has shape {shape}, asked were {rows} rows")
        dtype = _DTYPES.get(tensor.datatype)
        if dtype is None:
            continue
        if len(raw) != int(np.prod(shape)) * np.dtype(dtype).itemsize:
            raise ValueError(f"output {tensor.name} of shape {shape} has {len(raw)} bytes")
        if tensor.name == output:
            found = np.frombuffer(raw, dtype=dtype).reshape(rows, -1).astype(np.float64)
    if found is None:
        raise ValueError(f"the reply has no numeric output {output!r}")
    return found


class ReplayClient:
    """One connection to each port of a server. `aclose` when done."""

    def __init__(
        self, inference: str, admin: str, model: str, *, in_flight: int = 16, timeout_s: float = 60
    ) -> None:
        self._model = model
        self._timeout_s = timeout_s
        self._inference = grpc.aio.insecure_channel(inference, options=_OPTIONS)
        self._admin = grpc.aio.insecure_channel(admin, options=_OPTIONS)
        self._infer = self._inference.unary_unary(
            _INFER,
            request_serializer=None,  # it is encoded already
            response_deserializer=open_inference_pb2.ModelInferResponse.FromString,
        )
        self._slots = asyncio.Semaphore(in_flight)

    async def aclose(self) -> None:
        await self._inference.close(None)
        await self._admin.close(None)

    async def replay(
        self,
        requests: Sequence[PlannedRequest],
        encoder: RequestEncoder,
        times_ms: NDArray[np.int64],
        output: str,
        places: Callable[[int], NDArray[np.intp]],
        answers: Answers,
    ) -> None:
        """Sends all requests, some at a time, and returns when each is answered or has failed.

        `output` holds the scores; `places` tells for a version in which columns of the answers
        the columns of its scores belong.
        """

        async def one(request: PlannedRequest) -> None:
            async with self._slots:
                # A request is made when its newest row has happened.
                message = encoder.encode(request, int(times_ms[request.stop - 1]))
                try:
                    reply = await self._infer(message, timeout=self._timeout_s)
                except grpc.aio.AioRpcError as error:
                    answers.count_failure(request, f"{error.code().name}: {error.details()}")
                    return
            answers.answered_rows += request.stop - request.start
            rows = slice(request.start, request.stop)
            version = int(reply.model_version)
            answers.version[rows] = version
            try:
                score = read_reply(reply, request, output)
                columns = places(version)
                if score.shape[1] != len(columns):
                    raise ValueError(
                        f"output {output} of version {version} is {score.shape[1]} wide, "
                        f"expected {len(columns)}"
                    )
            except ValueError as error:
                answers.count_wrong_shape(str(error))
                return
            answers.score[rows] = 0.0
            answers.score[rows, columns] = score

        await asyncio.gather(*map(one, requests))

    async def version_of(self, encoder: RequestEncoder, request: PlannedRequest, at_ms: int) -> int:
        """Asks for one prediction and returns the version that answered."""
        try:
            reply = await self._infer(encoder.encode(request, at_ms), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise ReplayError(
                f"a request failed: {error.code().name}: {error.details()}"
            ) from error
        return int(reply.model_version)

    async def submit_labels(self, labels: Sequence[feedback_pb2.Label], event_time_ms: int) -> None:
        """Tells labels that became known at that time; ReplayError."""
        method = self._inference.unary_unary(
            _LABELS,
            request_serializer=feedback_pb2.SubmitLabelsRequest.SerializeToString,
            response_deserializer=feedback_pb2.SubmitLabelsResponse.FromString,
        )
        for start in range(0, len(labels), _LABELS_PER_CALL):
            part = labels[start : start + _LABELS_PER_CALL]
            request = feedback_pb2.SubmitLabelsRequest(
                model_name=self._model, labels=part, event_time_ms=event_time_ms
            )
            try:
                reply = await method(request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                raise ReplayError(
                    f"labels were refused: {error.code().name}: {error.details()}"
                ) from error
            if reply.accepted != len(part):
                raise ReplayError(f"{reply.accepted:,} of {len(part):,} labels were accepted")

    async def await_settled(
        self, observed_rows: int, timeout_s: float, watermark_ms: int | None = None
    ) -> admin_pb2.AwaitSettledResponse:
        """Returns once the loop has seen the rows and has nothing under way; ReplayError.

        `watermark_ms`: no further request will have an earlier event time.
        """
        request = admin_pb2.AwaitSettledRequest(
            model_name=self._model,
            observed_rows=observed_rows,
            timeout_s=timeout_s,
            watermark_ms=watermark_ms,
        )
        return await self._ask(
            "AwaitSettled", request, admin_pb2.AwaitSettledResponse, timeout_s + 10
        )

    async def drift(self) -> admin_pb2.DriftReport:
        request = admin_pb2.GetDriftRequest(model_name=self._model)
        return await self._ask("GetDrift", request, admin_pb2.DriftReport)

    async def versions(self) -> admin_pb2.ModelVersions:
        request = admin_pb2.ListVersionsRequest(model_name=self._model)
        answer = await self._ask("ListVersions", request, admin_pb2.ListVersionsResponse)
        return answer.models[0]

    async def rollback(self, reason: str) -> admin_pb2.ChangeResponse:
        request = admin_pb2.RollbackRequest(model_name=self._model, actor="backtest", reason=reason)
        return await self._ask("Rollback", request, admin_pb2.ChangeResponse)

    async def promote(self, version: int, reason: str) -> admin_pb2.ChangeResponse:
        request = admin_pb2.PromoteRequest(
            model_name=self._model, version=version, actor="backtest", reason=reason
        )
        return await self._ask("Promote", request, admin_pb2.ChangeResponse)

    async def events(self) -> AsyncIterator[admin_pb2.Event]:
        """Every event from when the server takes the call, until it stops."""
        method = self._admin.unary_stream(
            _ADMIN + "WatchEvents",
            request_serializer=admin_pb2.WatchEventsRequest.SerializeToString,
            response_deserializer=admin_pb2.Event.FromString,
        )
        call = method(admin_pb2.WatchEventsRequest(model_name=self._model))
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise ReplayError(f"WatchEvents: {error.code().name}: {error.details()}") from error
        finally:
            call.cancel()

    async def _ask(
        self, name: str, request: Message, reply: type[_Reply], timeout_s: float | None = None
    ) -> _Reply:
        method = self._admin.unary_unary(
            _ADMIN + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            answer: _Reply = await method(request, timeout=timeout_s or self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise ReplayError(f"{name}: {error.code().name}: {error.details()}") from error
        return answer
