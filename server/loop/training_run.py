"""One child process of the trainer's side: a training, or the rolling of the log into Parquet.

The child is `python -m trimtab.trainer …` in a session of its own, at low priority, with a limit of
time and, if wanted, of memory. Whatever it does (hang, crash, print garbage, be killed) ends in
exactly one `TrainingResult`, given to `on_finished` on the run's own thread; the server only notices
an event. What it started itself ends with it: the whole process group is killed as its leader ends,
before the leader's id can be taken by another.

A child must not outlive a killed server, or two trainers would write one model. It has a pipe for
standard input that is never written to, and with `--exit-with-parent` it exits as that pipe ends,
which the kernel sees to even on kill -9.

The child's standard output is lines of JSON (`{"progress": …}`, at last `{"result": …}`), its
standard error is for people; the last lines of it are the reason of a failure without a result. What
it has published stays published: a result that says so holds, also where the child was ended then.
"""

import contextlib
import json
import logging
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..config import TrainingConfig

_log = logging.getLogger(__name__)

_MAX_WAIT_S = 3600.0  # epoll takes no month
_GRACE_S = 5.0  # between asking a child to end and killing it
_MAX_LINE = 4 * 1024 * 1024  # of standard output; a longer one is garbage
_TAIL_LINES = 20
_AUTOGROUP_TRIES, _AUTOGROUP_WAIT_S = 5, 0.11
_OUT_OF_MEMORY = re.compile(  # as Python, C++, Rust and the C library tell it
    r"MemoryError|bad_alloc|memory allocation of \d+ bytes failed|[Cc]annot allocate memory"
    r"|[Oo]ut of memory|failed to map segment|Thread creation failed"
)

Outcome = Literal["published", "refused", "failed"]
_EXIT_CODES: Mapping[str, int] = {"published": 0, "failed": 1, "refused": 3}


@dataclass(frozen=True)
class TrainingResult:
    """How a child ended. `reason` is a sentence; the rest is as the trainer measured it."""

    outcome: Outcome
    reason: str = ""
    version: int | None = None
    gates: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    elapsed_s: float = 0.0
    quality: tuple[Mapping[str, Any], ...] = ()  # of broken data: what was found, column by column
    killed: bool = False  # `kill` ended it

    def evidence(self) -> dict[str, Any]:
        """What goes into the history."""
        return {
            "gates": [dict(gate) for gate in self.gates],
            "metrics": dict(self.metrics),
            "rows": self.rows,
            "elapsed_s": round(self.elapsed_s, 3),
            **({"quality": [dict(found) for found in self.quality]} if self.quality else {}),
        }


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is: a stage begins."""

    stage: str
    fraction: float  # of a usual training's time that is over then
    message: str
    until: float = 0.0  # the same as the stage ends; 0: not known


class TrainingRun:
    """A child process and the thread that waits for it; `start` once, `kill` from any thread."""

    def __init__(
        self,
        arguments: Sequence[str],
        limits: TrainingConfig,
        on_finished: Callable[[TrainingResult], None],
        on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
        *,
        needs_result: bool = True,
        command: Sequence[str] = (sys.executable, "-m", "trimtab.trainer"),
    ) -> None:
        """`needs_result`: without a result line a run has failed (a roll prints none)."""
        self._command = [*command, *arguments]
        self._limits = limits
        self._on_finished = on_finished
        self._on_progress = on_progress
        self._needs_result = needs_result
        self._thread = threading.Thread(target=self._run, name=f"trainer {' '.join(arguments[:1])}")
        self._thread.daemon = True
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._kill_lock = threading.Lock()  # guards _killed and the life of _wake
        self._killed = ""
        self._result: Mapping[str, Any] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.pid = 0

    def __repr__(self) -> str:
        return f"TrainingRun({' '.join(self._command)}, pid={self.pid})"

    def start(self) -> None:
        """Spawns the child on the run's thread; what goes wrong there is a failed result."""
        self._thread.start()

    def kill(self, reason: str) -> None:
        """Ends the child, gently first; its result is a failure with that reason."""
        with self._kill_lock:
            self._killed = self._killed or reason
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits until `on_finished` has returned; False if it has not by then."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            result = self._supervise(began)
        except Exception as error:  # noqa: BLE001  an edge
            if not isinstance(error, OSError):
                _log.exception("%r failed", self)
            result = TrainingResult("failed", f"the trainer could not be run: {error}")
        finally:
            with self._kill_lock:
                os.close(self._wake)
                self._wake = -1
        self._on_finished(result)

    def _supervise(self, began: float) -> TrainingResult:
        threads = str(self._limits.threads)
        environment = dict(os.environ)  # passed on, not read
        for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = threads
        with subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        ) as child:
            self.pid = child.pid
            try:
                self._limit(child.pid)
                ended_by = self._follow(child, began)
            finally:
                # The leader is not reaped yet, so its id is still the group's.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
        return self._verdict(code, ended_by, time.monotonic() - began)

    def _limit(self, pid: int) -> None:
        """Priority and memory, before the child's interpreter is up; it may have ended already."""
        with contextlib.suppress(ProcessLookupError):
            nice = os.getpriority(os.PRIO_PROCESS, 0) + self._limits.nice
            os.setpriority(os.PRIO_PROCESS, pid, min(nice, 19))
            if self._limits.memory_mb:
                size = self._limits.memory_mb * 1024 * 1024
                resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
            _lower_session(pid, self._limits.nice)

    def _follow(self, child: subprocess.Popen[bytes], began: float) -> str:
        """Reads what the child says until it has ended; why it was ended, if it was."""
        assert child.stdout is not None and child.stderr is not None
        exited = os.pidfd_open(child.pid)
        output, complaints = _Lines(self._on_line), _Lines(self._on_complaint)
        deadline = began + self._limits.timeout_s
        ended_by, asked, running = "", False, True
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(exited, selectors.EVENT_READ)
                selector.register(self._wake, selectors.EVENT_READ)
                selector.register(child.stdout.fileno(), selectors.EVENT_READ, output)
                selector.register(child.stderr.fileno(), selectors.EVENT_READ, complaints)
                while running:
                    for key, _ in selector.select(
                        min(max(0.0, deadline - time.monotonic()), _MAX_WAIT_S)
                    ):
                        if isinstance(key.data, _Lines):
                            if not key.data.read(key.fd):
                                selector.unregister(key.fd)
                        elif key.fd == exited:
                            running = False
                        else:
                            selector.unregister(key.fd)
                            ended_by = self._killed
                    late = time.monotonic() >= deadline
                    if running and (ended_by or late) and not asked:
                        ended_by = ended_by or f"took longer than {self._limits.timeout_s:g} s"
                        _signal_group(child.pid, signal.SIGTERM)
                        asked, deadline = True, time.monotonic() + _GRACE_S
                    elif running and late:
                        _signal_group(child.pid, signal.SIGKILL)
                        deadline = time.monotonic() + _GRACE_S
            _signal_group(child.pid, signal.SIGKILL)  # what the leader left behind
            for lines, stream in ((output, child.stdout), (complaints, child.stderr)):
                os.set_blocking(stream.fileno(), False)
                with contextlib.suppress(BlockingIOError):
                    while lines.read(stream.fileno()):
                        pass
                lines.end()
        finally:
            os.close(exited)
        return ended_by

    def _on_line(self, line: str) -> None:
        try:
            message = json.loads(line)
            if "result" in message:
                self._result = dict(message["result"])
            else:
                said = message["progress"]
                progress = TrainingProgress(
                    str(said["stage"]),
                    float(said["fraction"]),
                    str(said.get("message", "")),
                    float(said.get("until", 0.0)),
                )
                self._on_progress(progress)
        except (ValueError, KeyError, TypeError):
            self._on_complaint(line)

    def _on_complaint(self, line: str) -> None:
        if line.strip():
            self._tail.append(line.rstrip())

    def _verdict(self, code: int, ended_by: str, elapsed_s: float) -> TrainingResult:
        said = self._result
        if said is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                result = _parse(said, elapsed_s)
                if code == _EXIT_CODES[result.outcome]:
                    return self._told_of_memory(result)
                if ended_by and result.outcome == "published":  # as it was about to leave
                    return result
        if ended_by:
            killed = ended_by == self._killed
            reason = f"the trainer {ended_by}"
            return TrainingResult("failed", reason, elapsed_s=elapsed_s, killed=killed)
        if said is None and code == 0 and not self._needs_result:
            return TrainingResult("published", elapsed_s=elapsed_s)
        if code < 0:
            how = f"was killed by {_signal_name(-code)}"
            if code == -signal.SIGKILL:
                how += ", as the kernel does where memory runs out"
        elif code:
            how = f"ended with exit code {code}"
        else:
            how = "ended without a result"
        if said is not None:
            how += f", its result was {json.dumps(said)[:500]}"
        reason = f"the trainer {how}: {self._last_words()}"
        return self._told_of_memory(TrainingResult("failed", reason, elapsed_s=elapsed_s))

    def _told_of_memory(self, result: TrainingResult) -> TrainingResult:
        """A failure for want of memory names the limit, if there is one."""
        limit_mb = self._limits.memory_mb
        if result.outcome != "failed" or not limit_mb or not _OUT_OF_MEMORY.search(result.reason):
            return result
        return replace(
            result, reason=f"{result.reason} (memory is limited to {limit_mb} MiB: memory_mb)"
        )

    def _last_words(self) -> str:
        """The last line of standard error, or one before it that tells of memory."""
        for line in reversed(self._tail):
            if _OUT_OF_MEMORY.search(line):
                return line
        return self._tail[-1] if self._tail else "it said nothing"

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines that the child wrote for people."""
        return tuple(self._tail)


class _Lines:
    """Bytes of a pipe become lines; one that is too long is cut."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._rest = b""

    def read(self, descriptor: int) -> bool:
        """Takes what is there; False at the end of the pipe."""
        data = os.read(descriptor, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", "replace"))
        if len(self._rest) > _MAX_LINE:
            self.end()
        return bool(data)

    def end(self) -> None:
        """Takes what is left without a line's end."""
        if self._rest:
            self._take(self._rest.decode("utf-8", "replace"))
            self._rest = b""


def _parse(said: Mapping[str, Any], elapsed_s: float) -> TrainingResult:
    outcome = said["outcome"]
    if outcome not in _EXIT_CODES:
        raise ValueError(f"unknown outcome {outcome!r}")
    version = said.get("version")
    metrics = said.get("metrics") or {}  # null: not defined on these rows
    return TrainingResult(
        outcome=outcome,
        reason=str(said.get("reason") or ""),
        version=None if version is None else int(version),
        gates=tuple(dict(gate) for gate in said.get("gates") or ()),
        metrics={str(k): float(v) for k, v in metrics.items() if v is not None},
        rows=int(said.get("rows") or 0),
        elapsed_s=elapsed_s,
        quality=tuple(dict(found) for found in said.get("quality") or ()),
    )


def _lower_session(pid: int, nice: int) -> None:
    """Where the kernel groups processes by session (autogroup, sched(7)), niceness only counts among
    those of one session: a trainer at nice 10 would get as much of a processor as the server. The
    session's own niceness is what counts against others."""
    for _ in range(_AUTOGROUP_TRIES if nice else 0):
        try:
            # "/autogroup-7 nice 0"; absent or empty where the kernel does not group.
            own = int(Path("/proc/self/autogroup").read_text().split()[-1])
            Path(f"/proc/{pid}/autogroup").write_text(str(min(own + nice, 19)))
        except BlockingIOError:  # somebody else's was set just before: one in 0.1 s, for all users
            time.sleep(_AUTOGROUP_WAIT_S)
        except (OSError, ValueError, IndexError):
            return
        else:
            return


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
