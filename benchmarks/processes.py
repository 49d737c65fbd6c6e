"""Server processes: started in a session of their own, measured and killed as a whole.

A server may be several processes (a worker, a stub that runs Python). Whatever a server starts
stays in its session, so a session is what is measured and what is killed: nothing is left behind
when a child outlives its parent.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POLL_S = 0.02
_GRACE_S = 5.0
# Wide, so that what a server says of its usage stays on one line.
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "COLUMNS": "300"}


class NotStartedError(Exception):
    """A server ended, or did not come up in time; the text is what it said last."""


class ServerProcess:
    """A command in a session of its own, writing to two files; killed when its block is left."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [str(part) for part in command]
        self._folder = folder
        self._environment = {**os.environ, **_ENVIRONMENT, **(environment or {})}
        self._out, self._err = folder / "stdout", folder / "stderr"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            self._out.open("w") as out,
            self._err.open("w") as err,
            killed_if_interrupted() as started,
        ):
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
            started.append(self._process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        kill_session(self._process, grace_s=_GRACE_S)

    def first_line(self, timeout_s: float = 60.0) -> str:
        """What it printed first, once it did. NotStartedError."""

        def line() -> str:
            text = self._out.read_text()
            return text.partition("\n")[0] if "\n" in text else ""

        self.wait_until(lambda: bool(line()), timeout_s)
        return line()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """NotStartedError if that does not happen, or the process ends first."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise NotStartedError(f"ended with {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise NotStartedError(f"was not ready within {timeout_s:g} s: {self.last_words()}")
            time.sleep(_POLL_S)

    def last_words(self) -> str:
        """The last line that it wrote, of errors rather than of output."""
        for file in (self._err, self._out):
            # Leave out the frame that rich draws around an error of usage.
            lines = [line.strip(" │╭╮╰╯─") for line in file.read_text().splitlines()]
            if lines := [line for line in lines if line]:
                return lines[-1][:300]
        return "it said nothing"

    def cpu_s(self) -> float:
        return session_cpu_s(self._process.pid)

    def resident_bytes(self) -> int:
        return session_resident_bytes(self._process.pid)


@contextlib.contextmanager
def killed_if_interrupted() -> Iterator[list["subprocess.Popen[Any]"]]:
    """Start a process in the block and append it: Ctrl-C then waits for that, and ends it too.

    Without that, an interrupt may come when a process runs that nobody knows of yet. For the
    main thread.
    """
    caught: list[tuple[int, Any]] = []
    handlers = {
        number: signal.signal(number, lambda *call: caught.append(call))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    started: list[subprocess.Popen[Any]] = []
    try:
        yield started
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            for process in started:
                kill_session(process)
            signal.raise_signal(caught[0][0])


def session_cpu_s(session: int) -> float:
    """User and system time of every process of a session, and of children that it waited for.

    A child's time moves to its parent when it ends, so the sum never falls.
    """
    ticks = sum(sum(map(int, fields[11:15])) for _, fields in _members(session))
    return ticks / _TICKS_PER_S


def session_resident_bytes(session: int) -> int:
    """Pages that two of its processes share are counted twice."""
    total = 0
    for pid, _ in _members(session):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def kill_session(process: "subprocess.Popen[Any]", *, grace_s: float = 0.0) -> None:
    """Ends a process that began a session, politely for `grace_s`, and then all of the session."""
    try:
        if process.poll() is None and grace_s:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    finally:
        deadline = time.monotonic() + _GRACE_S
        while (alive := _alive(process.pid)) and time.monotonic() < deadline:
            for pid in alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        process.wait(30)


def _alive(session: int) -> list[int]:
    """Without those that ended and that nobody has waited for yet."""
    return [pid for pid, fields in _members(session) if fields[0] not in "ZX"]


def _members(session: int) -> Iterator[tuple[int, list[str]]]:
    """(pid, the fields of /proc/PID/stat after the name) of every process of a session."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            text = Path(entry.path, "stat").read_text()
        except OSError:  # it has just ended
            continue
        fields = text.rpartition(")")[2].split()
        if int(fields[3]) == session:
            yield int(entry.name), fields
