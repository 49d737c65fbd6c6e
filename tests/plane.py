"""Requests to a data plane without a transport: sent as bytes, waited for like a frontend does."""

import math
import select
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab._native.data_plane import DataPlane, LoopInference, LoopTicket, Version
from trimtab.proto import open_inference_pb2 as pb


class Refused(Exception):  # noqa: N818  a value as much as an error
    """A request was answered with a gRPC status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Sent:
    """A request that was handed in."""

    ticket: LoopTicket

    def __init__(self, requests: "Requests") -> None:
        self._requests = requests
        self.outcome: tuple[int, bytes | str] | None = None

    def reply(self) -> pb.ModelInferResponse:
        """Waits; raises Refused."""
        code, body = self.wait()
        if isinstance(body, str):
            raise Refused(code, body)
        return pb.ModelInferResponse.FromString(body)

    def values(self) -> list[float]:
        """The first column of the first output, FP32."""
        reply = self.reply()
        array = np.frombuffer(reply.raw_output_contents[0], np.float32)
        return [float(each) for each in array.reshape(tuple(reply.outputs[0].shape))[:, 0]]

    def refusal(self) -> tuple[int, str]:
        code, body = self.wait()
        assert isinstance(body, str), f"was answered: {pb.ModelInferResponse.FromString(body)}"
        return code, body

    def wait(self) -> tuple[int, bytes | str]:
        while self.outcome is None:
            self._requests.drain(30.0)
        return self.outcome

    def done(self) -> bool:
        self._requests.drain(0.0)
        return self.outcome is not None

    def cancel(self) -> None:
        self.ticket.cancel()


class Requests:
    """A client of a data plane; for one thread."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self._calls = LoopInference(plane)

    def send(
        self,
        values: Sequence[float] = (1.0,),
        *,
        id: str = "",
        model: str = "m",
        version: str = "",
        width: int = 2,
        timeout_us: int = 0,
        event_time_ms: int | None = None,
        deadline_s: float = math.inf,
        outputs: Sequence[str] = (),
    ) -> Sent:
        """One row [value, value, …] per value, as input x."""
        rows = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
        return self.send_bytes(
            infer_request(
                rows,
                id=id,
                model=model,
                version=version,
                timeout_us=timeout_us,
                event_time_ms=event_time_ms,
                outputs=outputs,
            ).SerializeToString(),
            deadline_s,
        )

    def send_bytes(self, request: bytes, deadline_s: float = math.inf) -> Sent:
        sent = Sent(self)
        sent.ticket = self._calls.submit(request, deadline_s, sent)
        return sent

    def drain(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self._calls.fileno()], [], [], timeout_s)
        assert ready or not timeout_s, "no answer"
        for sent, code, body in self._calls.drain():
            assert sent.outcome is None, "finished twice"
            sent.outcome = (code, body)


def infer_request(
    rows: NDArray[np.float32],
    *,
    id: str = "",
    model: str = "m",
    version: str = "",
    timeout_us: int = 0,
    event_time_ms: int | None = None,
    outputs: Sequence[str] = (),
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    if event_time_ms is not None:
        request.parameters["event_time"].int64_param = event_time_ms
    return request


def plane_of(*versions: Version) -> DataPlane:
    """One model; the first version answers."""
    plane = DataPlane("test")
    plane.set_route(versions[0].model, versions[0], (0, ""), versions, {})
    return plane
