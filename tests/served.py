"""A real `trimtab serve` in a process of its own, on free ports of 127.0.0.1."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from trimtab.proto import admin_pb2, feedback_pb2
from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.commands.admin_client import AdminClient

START_TIMEOUT_S = 60.0


@dataclass
class Served:
    """A running server and a client of each of its ports."""

    process: subprocess.Popen[str]
    banner: Mapping[str, Any]
    channel: grpc.Channel
    admin: AdminClient
    admin_channel: grpc.Channel

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[np.float32] | list[bytes]],
        *,
        shape: Mapping[str, tuple[int, ...]] | None = None,
        id: str = "",
        version: str = "",
        event_time_ms: int | None = None,
    ) -> pb.ModelInferResponse:
        request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
        if event_time_ms is not None:
            request.parameters["event_time"].int64_param = event_time_ms
        for name, value in inputs.items():
            if isinstance(value, list):
                raw = b"".join(len(item).to_bytes(4, "little") + item for item in value)
                dims = (shape or {}).get(name, (len(value), 1))
                request.inputs.add(name=name, datatype="BYTES", shape=dims)
            else:
                raw = value.tobytes()
                request.inputs.add(name=name, datatype="FP32", shape=value.shape)
            request.raw_input_contents.append(raw)
        call = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        return call(request, timeout=30)  # type: ignore[no-any-return]  # grpc's stubs know no type here

    def label(self, model: str, labels: Mapping[tuple[str, int], float], event_time_ms: int) -> int:
        request = feedback_pb2.SubmitLabelsRequest(model_name=model, event_time_ms=event_time_ms)
        for (id, row), value in labels.items():
            request.labels.add(id=id, row=row, number=value)
        call = self.channel.unary_unary(
            "/trimtab.v1.Feedback/SubmitLabels",
            feedback_pb2.SubmitLabelsRequest.SerializeToString,
            feedback_pb2.SubmitLabelsResponse.FromString,
        )
        return int(call(request, timeout=30).accepted)

    def settle(self, model: str, observed_rows: int) -> None:
        """Until the loop has seen so many rows and has nothing under way."""
        request = admin_pb2.AwaitSettledRequest(model_name=model, observed_rows=observed_rows)
        call = self.admin_channel.unary_unary(
            "/trimtab.v1.Admin/AwaitSettled",
            admin_pb2.AwaitSettledRequest.SerializeToString,
            admin_pb2.AwaitSettledResponse.FromString,
        )
        call(request, timeout=120)

    def kill(self) -> None:
        """kill -9: nothing is flushed, nothing is said."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def served(models_dir: Path, *options: str) -> Iterator[Served]:
    """Ends the server, however the test ends."""
    command = [
        sys.executable, "-m", "trimtab.server", "serve", str(models_dir), "--json",
        "--host", "127.0.0.1", "--port", "0", "--admin-port", "0", "--metrics-port", "0",
        *options,
    ]  # fmt: skip
    complaints = (models_dir.parent / f"{models_dir.name}.stderr").open("a+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
    assert process.stdout is not None
    with complaints, process.stdout:
        try:
            line = process.stdout.readline()
            if not line:
                process.wait(30)
                complaints.seek(0)
                raise AssertionError(f"the server did not start: {complaints.read()}")
            banner = json.loads(line)
            with (
                grpc.insecure_channel(banner["inference"]) as channel,
                grpc.insecure_channel(banner["admin"]) as admin_channel,
                AdminClient(banner["admin"]) as admin,
            ):
                yield Served(process, banner, channel, admin, admin_channel)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)
