"""The child processes of a backtest: a check of the settings, the first training, the server, and
where a fast one is wanted the process that keeps the trainer warm.

They have a pipe for standard input that is never written to and end when it ends, so none outlives
a backtest that was killed. Waiting is always bounded, and a child that dies is
reported with the last lines it wrote for people.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Progress = Callable[[str, float, str], None]  # stage, fraction of the whole, message

# Every row is trained on and counted, however fast a replay is.
_SERVER_SETTINGS = (
    'server.host="127.0.0.1"',
    "server.port=0",
    'server.admin_host="127.0.0.1"',
    "server.admin_port=0",
    "server.metrics=false",
    "traffic.max_rows_per_s=0",
    "drift.max_rows_per_s=0",
)

_GRACE_S = 20.0
_TAIL_LINES = 8
_LINE_LIMIT = 4 * 1024 * 1024


class ChildError(Exception):
    """A child process failed; the message ends with what it said last."""


async def train(
    models_dir: Path,
    model: str,
    *,
    reason: str,
    event_time_ms: int,
    threads: int,
    timeout_s: float,
    on_progress: Progress,
    command: Sequence[str] = (sys.executable, "-m", "trimtab.trainer"),
) -> dict[str, Any]:
    """Runs the recipe once; the trainer's result, which may be a refusal. ChildError."""
    arguments = ["train", "--models-dir", str(models_dir), "--model", model]
    arguments += ["--actor", "backtest", "--reason", reason, "--event-time-ms", str(event_time_ms)]
    arguments += ["--threads", str(threads), "--progress", "json", "--record"]
    arguments += ["--exit-with-parent"]
    process = await _spawn([*command, *arguments], stderr=asyncio.subprocess.PIPE)
    result: dict[str, Any] | None = None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def read_progress() -> None:
        nonlocal result
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                message = json.loads(line)
                if "result" in message:
                    result = message["result"]
                else:
                    step = message["progress"]
                    on_progress(step["stage"], float(step["fraction"]), step.get("message", ""))
            except (ValueError, KeyError, TypeError):
                tail.append(line.decode(errors="replace").rstrip())

    async def read_complaints() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            if line.strip():
                tail.append(line.decode(errors="replace").rstrip())

    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(read_progress(), read_complaints())
            code = await process.wait()
    except TimeoutError:
        raise ChildError(f"the first training took longer than {timeout_s:g} s") from None
    finally:
        await _end(process)
    if result is None:
        last = tail[-1].removeprefix("error: ") if tail else "it said nothing"
        raise ChildError(f"the first training ended with exit code {code}: {last}")
    if result.get("outcome") == "failed":
        raise ChildError(f"the first training failed: {result.get('reason')}")
    return result


async def verify(
    models_dir: Path, *, command: Sequence[str] = (sys.executable, "-m", "trimtab.server")
) -> None:
    """Has the server's settings of the models checked, which only the server knows. ChildError."""
    process = await _spawn([*command, "verify", str(models_dir)], stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            _, complaints = await process.communicate()
    except TimeoutError:
        raise ChildError("the settings could not be checked within 60 s") from None
    finally:
        await _end(process)
    if process.returncode:
        lines = complaints.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ChildError(lines[-1].removeprefix("error: "))


class ServerProcess:
    """`trimtab serve` as a child: `start`, then `inference` and `admin` are addresses."""

    def __init__(
        self,
        models_dir: Path,
        log: Path,
        *,
        trainers: "WarmTrainers | None" = None,
        command: Sequence[str] = (sys.executable, "-m", "trimtab.server"),
    ) -> None:
        self._trainers = trainers  # that its trainings are run by
        self._models_dir = models_dir
        self._log = log  # its standard error
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self.inference = ""
        self.admin = ""
        self.frontend = ""

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"ServerProcess({str(self._models_dir)!r}, pid={pid})"

    async def start(self, timeout_s: float = 60.0) -> None:
        """Returns when it listens; ChildError."""
        if (trainers := self._trainers) is None:
            arguments = ["serve", str(self._models_dir), "--json", "--until-eof"]
        else:
            arguments = ["serve-replay", str(self._models_dir)]
            arguments += ["--trainer-command", json.dumps(trainers.command)]
            arguments += ["--trainer-threads", str(trainers.threads)]
        for setting in _SERVER_SETTINGS:
            arguments += ["--set", setting]
        with self._log.open("wb") as log:
            self._process = await _spawn([*self._command, *arguments], stderr=log.fileno())
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ChildError(
                f"the server did not listen within {timeout_s:g} s: {self.tail()}"
            ) from None
        if not line:
            code = await self._process.wait()
            raise ChildError(f"the server ended with exit code {code}: {self.tail()}")
        try:
            message = json.loads(line)
            self.inference, self.admin = message["inference"], message["admin"]
            self.frontend = message["frontend"]
        except (ValueError, KeyError, TypeError) as error:
            raise ChildError(f"the server said {line!r} instead of where it listens") from error
        self._drain = asyncio.create_task(self._discard(self._process.stdout))

    async def wait_for_death(self) -> ChildError:
        """Returns only if the server ends by itself, with the error to raise."""
        assert self._process is not None
        code = await self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ChildError(f"the server {how} during the replay: {self.tail()}")

    async def aclose(self) -> None:
        """Asks it to end, then kills it; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        if self._drain is not None:
            self._drain.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drain
            self._drain = None

    def tail(self) -> str:
        """The last lines that it wrote for people."""
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return (
            "\n  ".join(["its last lines are", *lines[-_TAIL_LINES:]])
            if lines
            else "it said nothing"
        )

    @staticmethod
    async def _discard(stream: asyncio.StreamReader) -> None:
        while await stream.read(65536):
            pass


class WarmTrainers:
    """The process that runs trainings without starting Python for each; `start`, then `command`."""

    def __init__(
        self,
        threads: int,
        log: Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "trimtab.trainer.backtest_trainers"),
    ) -> None:
        """Whatever it runs has so many `threads`, as those who ask it must know."""
        self.threads = threads
        self._log = log  # its standard error
        self._host = tuple(command)
        self._directory: Path | None = None
        self._process: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"WarmTrainers(threads={self.threads}, pid={pid})"

    @property
    def command(self) -> tuple[str, ...]:
        """Runs the trainer's command line: to it come the limits, in JSON, and the arguments."""
        assert self._directory is not None, "not started"
        script = Path(__file__).with_name("backtest_call.py")
        return (sys.executable, "-I", "-S", str(script), str(self._directory / "socket"))

    async def start(self, timeout_s: float = 60.0) -> None:
        """Returns when its libraries are loaded; ChildError."""
        # A socket's path must be short, and nobody else's runs may come in by it.
        self._directory = Path(tempfile.mkdtemp(prefix="trimtab-trainers-"))
        threads = str(self.threads)
        sizes = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = dict.fromkeys(sizes, threads) | {"ORT_DISABLE_TELEMETRY": "1"}
        with self._log.open("wb") as log:
            self._process = await _spawn(
                [*self._host, str(self._directory / "socket")], log.fileno(), environment
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ChildError(
                f"the trainer's libraries were not loaded within {timeout_s:g} s"
            ) from None
        if not line:
            code = await self._process.wait()
            said = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ChildError(
                f"the process that keeps trainers warm ended with exit code {code}: {said[-1]}"
            )

    async def aclose(self) -> None:
        """Ends it and whatever it runs; idempotent."""
        process, self._process = self._process, None
        directory, self._directory = self._directory, None
        try:
            if process is not None:
                await _end(process)
        finally:
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


async def _spawn(
    command: Sequence[str], stderr: int, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    # A session of its own: Ctrl-C is ours to handle, and the child is then ended in order.
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=_LINE_LIMIT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
    except OSError as error:
        raise ChildError(f"{command[0]} cannot be started: {error}") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminates the child, and kills it if it does not end in time, even while we are cancelled."""

    async def end() -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_GRACE_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    ending = asyncio.ensure_future(end())
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise
