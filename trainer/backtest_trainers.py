"""Keeps the trainer warm: carries out runs of its command line without starting it anew.

Of a training on a window of usual size more than half is starting Python, importing scikit-learn,
ONNX and matplotlib, and taking all that down again. Here the libraries are imported once, and each
run is a fork of that: same code, same arguments, its own process, and nothing left of the run
before.

Only a process of one thread may fork, so Polars, which begins threads as it is imported, comes
after it: in a spare child, which is forked ahead, imports the rest and waits for work. The
thread pools are sized by the environment as this starts, for all runs.

    backtest_call.py ─ job, standard streams ─→ this ─→ spare child: runs, ends
                     ←──────── how it ended ───┘    └─→ the next spare child

Run as `python -m trimtab.trainer.backtest_trainers SOCKET`; prints one line when it takes work and
ends, and its children with it, when its standard input does. Each child leads a session of its own,
and whatever it left behind there is killed when it ends, as it is when the caller is.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

READY = "ready"

# What trainings import, but for Polars and what imports it.
_LIBRARIES = (
    "onnxruntime",
    "onnx",
    "skl2onnx",
    "sklearn.ensemble",
    "sklearn.inspection",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "typer",
)
_IN_THE_CHILD = ("trimtab.trainer.training",)
_PROGRAM = "trimtab.trainer.__main__"
_MAX_JOB = 1024 * 1024
_STANDARD_STREAMS = 3


@dataclass(slots=True)
class _Child:
    """A spare, or one that works for a caller."""

    pid: int
    pidfd: int
    channel: socket.socket  # takes one job
    caller: socket.socket | None = None


class TrainerHost:
    """Listens on one socket; one thread, which must be the process's only one."""

    def __init__(
        self,
        path: str,
        libraries: Sequence[str] = _LIBRARIES,
        for_children: Sequence[str] = _IN_THE_CHILD,
        program: str = _PROGRAM,
    ) -> None:
        """Imports the libraries; `program` is the module whose `main` is run.

        RuntimeError where the libraries begin threads; OSError.
        """
        for name in libraries:
            importlib.import_module(name)
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(
                f"the trainer's libraries began {threads - 1} threads, so it cannot be forked"
            )
        self._for_children = tuple(for_children)
        self._program = program
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._working: dict[socket.socket, _Child] = {}
        # What is there now is never garbage, and a fork need not copy it to find that out.
        gc.collect()
        gc.freeze()
        self._spare = self._fork()

    def __repr__(self) -> str:
        return f"TrainerHost({self._listener.getsockname()!r}, working={len(self._working)})"

    def run(self, stdin: int = 0) -> None:
        """Returns when `stdin` ends. RuntimeError where a child dies before it has work."""
        self._selector.register(stdin, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select():
                    if isinstance(key.data, _Child):
                        self._ended(key.data)
                    elif key.fileobj is self._listener:
                        caller, _ = self._listener.accept()
                        self._selector.register(caller, selectors.EVENT_READ)
                    elif isinstance(key.fileobj, socket.socket):
                        self._heard(key.fileobj)
                    elif not os.read(stdin, 4096):
                        return
        finally:
            for child in (self._spare, *self._working.values()):
                _kill(child.pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)

    def _heard(self, caller: socket.socket) -> None:
        """A job, a wish to stop it, or that the caller is gone."""
        try:
            message, streams, _, _ = socket.recv_fds(caller, _MAX_JOB, _STANDARD_STREAMS)
        except ConnectionError:
            message, streams = b"", []
        try:
            child = self._working.get(caller)
            if child is not None:
                _kill(child.pid, signal.SIGTERM if message == b"stop" else signal.SIGKILL)
                if not message:
                    self._selector.unregister(caller)
            elif len(streams) == _STANDARD_STREAMS:
                self._begin(caller, message, streams)
            else:
                self._selector.unregister(caller)
                caller.close()
        finally:
            for stream in streams:
                os.close(stream)

    def _begin(self, caller: socket.socket, job: bytes, streams: list[int]) -> None:
        child = self._spare
        child.caller = caller
        self._working[caller] = child
        with contextlib.suppress(ConnectionError):  # it has died: its end is told as any is
            socket.send_fds(child.channel, [job], streams)
        self._spare = self._fork()

    def _ended(self, child: _Child) -> None:
        _kill(child.pid, signal.SIGKILL)  # what it left behind; it is not reaped yet
        _, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.channel.close()
        caller = child.caller
        if caller is None:
            raise RuntimeError("a trainer ended before it had work; see what it wrote")
        del self._working[caller]
        code = os.waitstatus_to_exitcode(status)
        answer = f"exit {code}" if code >= 0 else f"signal {-code}"
        with contextlib.suppress(OSError):  # it is gone
            caller.send(answer.encode())
        with contextlib.suppress(KeyError):
            self._selector.unregister(caller)
        caller.close()

    def _fork(self) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _be_spare(theirs, self._for_children, self._program)
        theirs.close()
        child = _Child(pid, os.pidfd_open(pid), ours)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        return child


def _be_spare(channel: socket.socket, modules: Sequence[str], program: str) -> NoReturn:
    """In the child: imports what is left, takes a job, does it, ends."""
    code = 1
    try:
        os.setsid()
        # The host's own: if it dies its sockets must not live on here.
        os.closerange(_STANDARD_STREAMS, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        for name in modules:
            importlib.import_module(name)
        run = importlib.import_module(program).main
        message, streams, _, _ = socket.recv_fds(channel, _MAX_JOB, _STANDARD_STREAMS)
        if not message:
            os._exit(0)  # there is no work any more
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        channel.close()
        code = _work(run, json.loads(message))
    except BaseException:  # noqa: BLE001  the process's edge
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):  # nobody reads them any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(
            code
        )  # taking the interpreter down takes half a second, and it has nothing to save


def _work(run: Callable[[], None], job: dict[str, Any]) -> int:
    """Runs the trainer's command line; its exit code."""
    if job.get("nice"):
        os.nice(job["nice"])
    if job.get("memory_mb"):
        size = job["memory_mb"] * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    sys.argv = ["trimtab.trainer", *job["arguments"]]
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        if end.code is not None:
            print(end.code, file=sys.stderr)
        return int(end.code is not None)
    return 0


def _kill(pid: int, number: signal.Signals) -> None:
    """The whole session of a child, or a child that has none yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    host = TrainerHost(sys.argv[1])
    print(READY, flush=True)
    host.run()


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
