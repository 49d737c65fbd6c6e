"""A running server whose champion is changed through its admin port, over and over."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import hot_swap_models
from load import METHOD, LoadError
from processes import ServerProcess

from trimtab.server.commands.admin_client import AdminClient

_ACTOR = "benchmark"


@dataclass(frozen=True)
class Swap:
    """A change of champion, on time.monotonic()'s clock."""

    to: int
    called_s: float
    returned_s: float


class SwapServer:
    """A running server with one model and its replies; see `serving`."""

    def __init__(
        self, banner: dict[str, Any], process: ServerProcess, model: str, admin: AdminClient
    ) -> None:
        self.address = str(banner["inference"])
        self.process = process
        self.admin = admin
        self.model = model
        self.champion = 1

    def reply(self, version: int) -> bytes:
        """What a version says that is ready; LoadError if it is not what it should be."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            call = channel.unary_unary(METHOD, None, None)
            reply = bytes(call(hot_swap_models.request(self.model, version), timeout=30))
        named, value = hot_swap_models.prediction(reply)
        if named != str(version) or (self.model == "linear" and value != version):
            raise LoadError(f"version {version} answered {value} as version {named}")
        return reply

    def replies(self, versions: int) -> list[bytes]:
        return [self.reply(version) for version in range(1, versions + 1)]

    def wait_for_bake(self, timeout_s: float = 10.0) -> None:
        """Until the version before runs beside the champion. LoadError."""
        deadline = time.monotonic() + timeout_s
        while (status := self.admin.rollout(self.model)).phase != "bake":
            if time.monotonic() > deadline:
                raise LoadError(f"after {timeout_s:g} s no bake: {status}")
            time.sleep(0.01)

    def wait_until_retired(self, timeout_s: float = 10.0) -> None:
        """Until the champion and the previous one are all that is loaded. LoadError."""
        deadline = time.monotonic() + timeout_s
        while True:
            (model,) = self.admin.list_versions(self.model).models
            if sum(version.state != "UNLOADED" for version in model.versions) <= 2:
                return
            if time.monotonic() > deadline:
                raise LoadError(f"after {timeout_s:g} s: {model}")
            time.sleep(0.01)

    def promote(self, version: int) -> Swap:
        called = time.monotonic()
        self.admin.promote(self.model, version, actor=_ACTOR, reason="measured")
        self.champion = version
        return Swap(version, called, time.monotonic())

    def swap(self) -> Swap:
        """To version 2 by promotion, and back to version 1 by rollback."""
        if self.champion == 1:
            return self.promote(2)
        called = time.monotonic()
        self.admin.rollback(self.model, actor=_ACTOR, reason="measured")
        self.champion = 1
        return Swap(1, called, time.monotonic())


@contextmanager
def serving(
    folder: Path, make: Callable[[Path, int], str], versions: int, *options: str
) -> Iterator[SwapServer]:
    """`trimtab serve` as it is by default, the native frontend, on a model of its own."""
    models_dir = folder / "models"
    models_dir.mkdir(parents=True)
    model = make(models_dir, versions)
    command: list[str | Path] = [sys.executable, "-m", "trimtab.server", "serve", models_dir]
    command += ["--frontend", "native", "--json", "--log-level", "error", "--host", "127.0.0.1"]
    command += ["--port", "0", "--admin-port", "0", "--set", "server.metrics_port=0", *options]
    with ServerProcess(command, folder / "process") as process, ExitStack() as clients:
        banner = json.loads(process.first_line())
        admin = clients.enter_context(AdminClient(banner["admin"]))
        yield SwapServer(banner, process, model, admin)
