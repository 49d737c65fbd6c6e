"""Other people's inference servers: MLServer and Triton, each in an environment of its own.

Both come from PyPI, pinned in peers/*.txt, with the onnxruntime that Trimtab runs here, opened with
the same options. Triton's binary is in NVIDIA's PyTriton package, which holds its Python backend
but not its onnxruntime backend: the model runs in Triton's Python process.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import grpc
from contestants import Contestant, Trial
from making import PEERS, AbsentError, environment, run
from processes import NotStartedError, ServerProcess
from serving_models import Question

from trimtab.proto import open_inference_pb2 as pb

ENVIRONMENTS = {"mlserver": PEERS / "mlserver.txt", "triton_python_backend": PEERS / "triton.txt"}

# Of those tried (off; 32 to 256 requests; 0.1 to 20 ms), what gave MLServer the most requests/s.
_BATCH_REQUESTS = 64
_BATCH_S = 0.005
_TRITON_TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}


def requirements(name: str) -> list[str]:
    """What is installed for a server."""
    pinned = ENVIRONMENTS[name].read_text().split()
    return [*pinned, f"onnxruntime=={version('onnxruntime')}"]


@contextmanager
def mlserver(trial: Trial, folder: Path) -> Iterator[Contestant]:
    """MLServer in one process: a worker would have to be handed each request's tensors."""
    python = environment("mlserver", requirements("mlserver"))
    model_of = trial.question.model
    rest, port, metrics = _free_ports(3)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": rest,
        "grpc_port": port,
        "metrics_port": metrics,
        "parallel_workers": 0,
    }
    alone = trial.load.in_flight == 1
    model = {
        "name": model_of.name,
        "implementation": "mlserver_runtime.OnnxModel",
        "parameters": {"uri": str(model_of.file)},
        "max_batch_size": 0 if alone else _BATCH_REQUESTS,  # nobody to wait for: do not wait
        "max_batch_time": 0.0 if alone else _BATCH_S,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command: list[str | Path] = [python.with_name("mlserver"), "start", folder]
    with ServerProcess(command, folder, environment={"PYTHONPATH": str(PEERS)}) as process:
        yield _ready(process, f"127.0.0.1:{port}", trial.question)


@contextmanager
def triton_python_backend(trial: Trial, folder: Path) -> Iterator[Contestant]:
    name = "triton_python_backend"
    python = environment(name, requirements(name))
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    triton = packages / "pytriton" / "tritonserver"
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / release / "triton_python_backend_stub"
    if not stub.exists():
        raise AbsentError(f"this Triton has no Python backend for Python {release}")
    # Where Triton looks for it; the path to the package's libraries stays as long.
    shutil.copy(stub, triton / "backends" / "python" / stub.name)
    binary = triton / "bin" / "tritonserver"
    for program in (binary, triton / "backends" / "python" / stub.name):
        program.chmod(0o755)
    question = trial.question
    served = folder / "models" / question.model.name
    (served / "1").mkdir(parents=True)
    shutil.copy(question.model.file, served / "1" / "model.onnx")
    shutil.copy(PEERS / "triton_model.py", served / "1" / "model.py")
    (served / "config.pbtxt").write_text(_triton_config(question))
    rest, port = _free_ports(2)
    command: list[str | Path] = [
        binary, f"--model-repository={served.parent}", f"--backend-directory={triton / 'backends'}",
        "--http-address=127.0.0.1", f"--http-port={rest}",
        "--grpc-address=127.0.0.1", f"--grpc-port={port}",
        "--allow-metrics=false", "--log-info=false",
    ]  # fmt: skip
    # The Python inside finds its packages beside the first python3 on the path.
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    with ServerProcess(command, folder / "process", environment=path) as process:
        yield _ready(process, f"127.0.0.1:{port}", question)


def _triton_config(question: Question) -> str:
    def tensor(name: str, datatype: str, width: int) -> str:
        return f'{{ name: "{name}" data_type: {_TRITON_TYPES[datatype]} dims: [{width}] }}'

    inputs = [tensor(each.name, each.datatype, each.shape[1]) for each in question.message.inputs]
    outputs = [
        tensor(name, "INT64" if values.dtype == "int64" else "FP32", values[0].size)
        for name, values in question.outputs.items()
    ]
    return (
        f'backend: "python"\nmax_batch_size: 1024\ndynamic_batching {{}}\n'
        f"input [{', '.join(inputs)}]\noutput [{', '.join(outputs)}]\n"
        "instance_group [{ kind: KIND_CPU count: 1 }]\n"
    )


def _ready(process: ServerProcess, address: str, question: Question) -> Contestant:
    """Waits until the model answers. AbsentError."""

    def ready() -> bool:
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady", None, None)
            request = pb.ModelReadyRequest(name=question.model.name)
            try:
                reply = call(request.SerializeToString(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(pb.ModelReadyResponse.FromString(reply).ready)

    try:
        process.wait_until(ready)
    except NotStartedError as error:
        raise AbsentError(str(error)) from error
    return Contestant(address, process, question.check_prediction)


def _free_ports(count: int) -> list[int]:
    """For servers that cannot choose a port by themselves and say which."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
