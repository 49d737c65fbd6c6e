"""A running server whose model has a recipe, a log of labelled rows, and trainings on demand.

The champion has learned the older half of the log, so that each training has rows to compare with it
on, passes its gates and publishes a version; nothing is promoted, and every training does the same
work. Trainings are seen from outside, as the server's child processes, so that watching them asks
nothing of the server.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import polars as pl
import training_memory
from load import METHOD, LoadError
from processes import ServerProcess

from trimtab._native import bytes_tensor
from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.commands.admin_client import AdminClient

MODEL = "trained"
_NUMERIC = tuple(f"x{index}" for index in range(25))
_CATEGORICAL = tuple(f"c{index}" for index in range(5))
_ACTOR = "benchmark"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.005
_TRAINER_STARTS_S, _CHILDREN_END_S = 10.0, 300.0
# Drift must start nothing: a load that sends one row over and over has drifted.
_POLICY = """\
[recipe]
task = "regression"
target = "y"
numeric = [{numeric}]
categorical = [{categorical}]
window_rows = {window_rows}
gate = "not_worse"
tolerance = 0.2
segment_tolerance = 1.0
baseline = "report"

[recipe.estimator]
max_iter = {trees}

[trigger]
on_drift = false
on_quality = false

[promotion]
policy = "manual"
"""


@dataclass(frozen=True)
class History:
    """How much there is to learn from."""

    rows: int = 300_000  # of the log, each with a label
    window_rows: int = 30_000  # newest ones, that are trained on
    trees: int = 100  # of the model


class Training:
    """A training that the server runs, on time.monotonic()'s clock."""

    def __init__(self, pid: int, began_s: float) -> None:
        self.pid = pid
        self.began_s = began_s  # as it was asked for
        self.ended_s = 0.0  # 0: not yet
        self._exited = os.pidfd_open(pid)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        ready, _, _ = select.select([self._exited], [], [], timeout_s)
        if ready and not self.ended_s:
            self.ended_s = time.monotonic()
        return bool(ready)

    def cpu_s(self) -> float:
        """Processor time that it took so far; 0 once it has ended."""
        with suppress(OSError):
            text = Path(f"/proc/{self.pid}/stat").read_text()
            fields = text.rpartition(")")[2].split()
            return sum(map(int, fields[11:13])) / _TICKS_PER_S
        return 0.0

    def close(self) -> None:
        """It goes on."""
        os.close(self._exited)


class TrainedServer:
    """See the module; made by `serving`."""

    def __init__(self, address: str, pid: int, process: ServerProcess, admin: AdminClient) -> None:
        self.address = address
        self.process = process
        self._pid = pid
        self._admin = admin
        self._trainings = 0

    def reply(self) -> bytes:
        """What the champion answers to `request`. LoadError if another version does."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            reply = bytes(channel.unary_unary(METHOD, None, None)(request(), timeout=30))
        version = pb.ModelInferResponse.FromString(reply).model_version
        if version != "1":
            raise LoadError(f"version {version} answered, not the champion")
        return reply

    def children(self) -> list[int]:
        """Processes of the trainer's side that run."""
        return _children(self._pid)

    def wait_until_alone(self) -> float:
        """Until no process of the trainer's side runs; the seconds that took. LoadError."""
        began = time.monotonic()
        while self.children():
            if time.monotonic() - began > _CHILDREN_END_S:
                raise LoadError(f"after {_CHILDREN_END_S:g} s a training or a roll still runs")
            time.sleep(0.05)
        return time.monotonic() - began

    @contextmanager
    def training(self) -> Iterator[Training]:
        """One that has just begun; when the block is left it has ended. LoadError."""
        began = time.monotonic()
        self._admin.train(MODEL, actor=_ACTOR, reason="measured")
        deadline = began + _TRAINER_STARTS_S
        while not (found := self.children()):
            if time.monotonic() > deadline:
                raise LoadError(f"no trainer came up: {self._last_failure()}")
            time.sleep(_POLL_S)
        training = Training(found[0], began)
        self._trainings += 1
        try:
            yield training
            if not training.wait(_CHILDREN_END_S):
                raise LoadError(f"a training did not end within {_CHILDREN_END_S:g} s")
        finally:
            training.close()

    def check_trainings(self) -> None:
        """LoadError unless each of them published a version."""
        self.wait_until_alone()
        (model,) = self._admin.list_versions(MODEL).models
        if len(model.versions) != self._trainings + 1:
            raise LoadError(
                f"{self._trainings} trainings left {len(model.versions) - 1} versions: "
                f"{self._last_failure()}"
            )

    def _last_failure(self) -> str:
        entries = [
            entry
            for entry in self._admin.history(MODEL).entries
            if entry.kind in ("training_failed", "refused")
        ]
        return entries[-1].reason if entries else "the history tells no failure"


def request() -> bytes:
    """A row like those of the log; the id makes every reply of one version the same."""
    message = pb.ModelInferRequest(model_name=MODEL, id="measured")
    numbers = np.linspace(-1, 1, len(_NUMERIC), dtype=np.float32)
    message.inputs.add(name="numeric", datatype="FP32", shape=(1, len(_NUMERIC)))
    message.raw_input_contents.append(numbers.tobytes())
    words = np.array(["category 7"] * len(_CATEGORICAL), dtype=object)
    message.inputs.add(name="categorical", datatype="BYTES", shape=(1, len(_CATEGORICAL)))
    message.raw_input_contents.append(bytes(bytes_tensor.encode(words)))
    return message.SerializeToString()


@contextmanager
def serving(folder: Path, history: History, *options: str) -> Iterator[TrainedServer]:
    """`trimtab serve` as it is by default, the native frontend, on such a model."""
    models_dir = folder / "models"
    _make(models_dir, history)
    command: list[str | Path] = [sys.executable, "-m", "trimtab.server", "serve", models_dir]
    command += ["--frontend", "native", "--json", "--log-level", "error", "--host", "127.0.0.1"]
    command += ["--port", "0", "--admin-port", "0", "--set", "server.metrics_port=0"]
    # The load does not heed a limit of calls on a connection, and is cut off at one.
    command += ["--set", "server.max_concurrent_streams=0"]
    # The log's rows are years old, and a roll would remove them as the first of today's came.
    command += ["--set", "traffic.keep_days=36500", *options]
    with ServerProcess(command, folder / "process") as process, ExitStack() as clients:
        banner = json.loads(process.first_line())
        admin = clients.enter_context(AdminClient(banner["admin"]))
        pid = int(json.loads((models_dir / ".trimtab" / "server.json").read_text())["pid"])
        yield TrainedServer(str(banner["inference"]), pid, process, admin)


def _make(models_dir: Path, history: History) -> None:
    """Writes the recipe and the log, and trains the champion on its older half."""
    data = models_dir / ".trimtab" / MODEL
    data.mkdir(parents=True)
    training_memory.write_log(data, history.rows, len(_NUMERIC + _CATEGORICAL), 1.0)
    times = pl.scan_parquet(data / "traffic" / "day=*" / "seg-*.parquet").select("event_time")
    oldest, newest = (
        times.select(first=pl.min("event_time"), last=pl.max("event_time")).collect().row(0)
    )
    (models_dir / MODEL).mkdir()
    (models_dir / MODEL / "trimtab.toml").write_text(
        _POLICY.format(
            numeric=json.dumps(_NUMERIC)[1:-1],
            categorical=json.dumps(_CATEGORICAL)[1:-1],
            window_rows=history.window_rows,
            trees=history.trees,
        )
    )
    command = [sys.executable, "-m", "trimtab.trainer", "train", "--models-dir", str(models_dir)]
    command += ["--model", MODEL, "--actor", _ACTOR, "--reason", "the first", "--progress", "none"]
    command += ["--event-time-ms", str(newest)]
    command += ["--label-maturity-s", str((newest - oldest) // 2000)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadError(f"the first training failed: {done.stderr.strip()[-500:]}")


def _children(parent: int) -> list[int]:
    """Those that have not ended yet."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return sorted(found)
