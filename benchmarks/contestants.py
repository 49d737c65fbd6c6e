"""The servers that are compared: how each is made, started, asked and known to be right.

A starter is a context manager that gives a `Contestant`: a server that listens on a free port of
127.0.0.1 and is ready. Leaving it kills all of the server's processes. AbsentError says in one
sentence why a server cannot take part here. Servers of others are in peer_servers.py.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from echo_program import compiled_echo
from load import METHOD, Load
from making import PEERS, AbsentError
from processes import NotStartedError, ServerProcess
from serving_models import Question, WrongAnswerError

from trimtab.server.commands.admin_client import AdminClient

NOT_WATCHED = "[drift]\nenabled = false\n\n[traffic]\nenabled = false\n"
EVERY_ROW = "[drift]\nmax_rows_per_s = 0\n"


@dataclass(frozen=True)
class Counters:
    """What Trimtab says that it did. All of them only grow."""

    requests: int
    rows: int
    observed_rows: int  # that the drift monitor counted
    logged_rows: int  # that the traffic log wrote or dropped
    dropped_rows: int  # of those, the ones it had no room for


@dataclass(frozen=True)
class Contestant:
    """A server that runs."""

    address: str
    process: ServerProcess
    check: Callable[[bytes], None]  # WrongAnswerError where a reply is not what it should be
    counters: Callable[[], Counters] | None = None

    def ask(self, request: bytes) -> int:
        """Sends one real gRPC call and checks the reply; the reply's length. WrongAnswerError."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            try:
                reply: bytes = channel.unary_unary(METHOD, None, None)(request, timeout=30)
            except grpc.RpcError as error:
                raise WrongAnswerError(f"{error.code().name}: {error.details()}") from error
        self.check(reply)
        return len(reply)


@dataclass(frozen=True)
class Trial:
    """What a server is started for."""

    question: Question
    load: Load
    settings: str = ""  # of Trimtab, as TOML


Starter = Callable[[Trial, Path], AbstractContextManager[Contestant]]  # with a folder to work in


@contextmanager
def trimtab(frontend: str, trial: Trial, folder: Path) -> Iterator[Contestant]:
    """`trimtab serve` with one gRPC frontend, on a copy of the model's directory."""
    models_dir = folder / "models"
    shutil.copytree(trial.question.model.models_dir, models_dir)
    settings = folder / "server.toml"
    settings.write_text(trial.settings)
    command: list[str | Path] = [sys.executable, "-m", "trimtab.server", "serve", models_dir]
    command += ["--config", settings, "--frontend", frontend, "--json", "--log-level", "error"]
    command += ["--host", "127.0.0.1", "--port", "0", "--admin-port", "0"]
    command += ["--set", "server.metrics_port=0"]
    with ServerProcess(command, folder / "process") as process, ExitStack() as open_clients:
        try:
            banner = json.loads(process.first_line())
        except NotStartedError as error:
            raise AbsentError(f"trimtab serve --frontend {frontend} {error}") from error
        if banner["frontend"] != frontend:
            raise AbsentError(f"the server took the frontend {banner['frontend']}")
        admin = open_clients.enter_context(AdminClient(banner["admin"]))
        count = partial(_counters, admin, trial.question.model.name)
        yield Contestant(banner["inference"], process, trial.question.check_prediction, count)


def _counters(admin: AdminClient, model: str) -> Counters:
    (found,) = admin.list_versions(model).models
    return Counters(
        requests=sum(version.requests for version in found.versions),
        rows=sum(version.rows for version in found.versions),
        observed_rows=admin.drift(model).observed_rows,
        logged_rows=found.log_rows_written + found.log_rows_dropped,
        dropped_rows=found.log_rows_dropped,
    )


@contextmanager
def grpc_aio_echo(trial: Trial, folder: Path) -> Iterator[Contestant]:
    with ServerProcess([sys.executable, PEERS / "aio_echo.py"], folder) as process:
        yield Contestant(
            f"127.0.0.1:{process.first_line()}", process, trial.question.check_same_bytes
        )


@contextmanager
def cpp_echo(trial: Trial, folder: Path) -> Iterator[Contestant]:
    with ServerProcess([compiled_echo()], folder) as process:
        yield Contestant(
            f"127.0.0.1:{process.first_line()}", process, trial.question.check_same_tensors
        )
