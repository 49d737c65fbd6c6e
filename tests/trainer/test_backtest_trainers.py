"""Runs that a warm process carries out end, and can be ended, as if each had been started itself."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from trimtab.trainer import backtest_call

PROGRAM = """
import json, os, resource, signal, sys

runs = 0

def main():
    global runs
    runs += 1
    what, *rest = sys.argv[1:]
    if what == "say":
        print(json.dumps([runs, rest, sys.stdin.read()]))
        print("complained", file=sys.stderr)
        sys.exit(int(rest[0]))
    if what == "limits":
        memory = resource.getrlimit(resource.RLIMIT_AS)[0]
        print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0), memory, os.getsid(0) == os.getpid()]))
    elif what == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print(os.getpid(), flush=True)
        signal.pause()
    elif what == "die":
        os.kill(os.getpid(), int(rest[0]))
    elif what == "leave":
        child = os.fork()
        if not child:
            signal.pause()
        print(child)
    elif what == "fail":
        raise ValueError("the program is ill")
    elif what == "sentence":
        sys.exit("not like this")
"""
HOST = """
import sys
from trimtab.trainer.backtest_trainers import TrainerHost
host = TrainerHost(sys.argv[1], sys.argv[2].split(), sys.argv[3].split(), "program")
print("ready", flush=True)
host.run()
"""


def start_host(
    directory: Path, libraries: str = "", for_children: str = ""
) -> subprocess.Popen[str]:
    (directory / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, "-c", HOST, str(directory / "socket"), libraries, for_children],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(directory)},
    )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with ended(start_host(tmp_path)) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process


def call(directory: Path, *arguments: str, limits: str = "{}") -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", backtest_call.__file__, str(directory / "socket")]
    return subprocess.Popen(
        [*command, limits, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome(
    directory: Path, *arguments: str, limits: str = "{}", said: str = ""
) -> tuple[int, str, str]:
    with ended(call(directory, *arguments, limits=limits)) as process:
        out, complaints = process.communicate(said, timeout=20)
    return process.returncode, out, complaints


def first_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def assert_ends(pid: int) -> None:
    """Within ten seconds; a process that is not there has ended."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 10)[0], f"process {pid} goes on"
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_has_the_callers_streams_arguments_and_exit_code(
    host: subprocess.Popen[str], tmp_path: Path, code: int
) -> None:
    found, out, complaints = outcome(tmp_path, "say", str(code), "two words", said="read this")
    assert found == code
    assert json.loads(out) == [1, [str(code), "two words"], "read this"]
    assert complaints == "complained\n"


def test_nothing_of_a_run_is_left_for_the_next(host: subprocess.Popen[str], tmp_path: Path) -> None:
    counts = [json.loads(outcome(tmp_path, "say", "0")[1])[0] for _ in range(3)]
    assert counts == [1, 1, 1]


def test_two_runs_may_go_on_at_once(host: subprocess.Popen[str], tmp_path: Path) -> None:
    with ended(call(tmp_path, "wait")) as one, ended(call(tmp_path, "wait")) as two:
        assert first_line(one.stdout) != first_line(two.stdout)
        two.terminate()
        assert two.wait(20) == 7
        assert one.poll() is None
        one.terminate()
        assert one.wait(20) == 7


def test_an_error_of_the_program_is_its_traceback_and_exit_code_1(
    host: subprocess.Popen[str], tmp_path: Path
) -> None:
    code, _, complaints = outcome(tmp_path, "fail")
    assert code == 1
    assert "ValueError: the program is ill" in complaints
    assert outcome(tmp_path, "sentence") == (1, "", "not like this\n")
    assert outcome(tmp_path, "say", "0")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_who_calls_for_a_run_that_a_signal_ends_is_ended_by_it(
    host: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    assert outcome(tmp_path, "die", str(int(number)))[0] == -number


def test_a_killed_caller_takes_its_run_along(host: subprocess.Popen[str], tmp_path: Path) -> None:
    with ended(call(tmp_path, "wait")) as process:
        pid = int(first_line(process.stdout))
        process.kill()
    assert_ends(pid)
    assert outcome(tmp_path, "say", "0")[0] == 0


def test_what_a_run_leaves_behind_ends_with_it(host: subprocess.Popen[str], tmp_path: Path) -> None:
    code, out, _ = outcome(tmp_path, "leave")
    assert code == 0
    assert_ends(int(out))


def test_limits_hold_for_the_run(host: subprocess.Popen[str], tmp_path: Path) -> None:
    limits = json.dumps({"nice": 3, "memory_mb": 4096})
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    _, out, _ = outcome(tmp_path, "limits", limits=limits)
    assert json.loads(out) == [min(19, ours + 3), 4096 * 1024 * 1024, True]
    _, out, _ = outcome(tmp_path, "limits")
    assert json.loads(out)[0] == ours


def test_the_end_of_the_host_ends_runs_and_tells_their_callers(
    host: subprocess.Popen[str], tmp_path: Path
) -> None:
    with ended(call(tmp_path, "wait")) as process:
        pid = int(first_line(process.stdout))
        assert host.stdin is not None
        host.stdin.close()
        assert process.wait(20) == 1
        assert "keeps trainers warm has ended" in first_line(process.stderr)
    assert_ends(pid)
    assert host.wait(20) == 0
    code, _, complaints = outcome(tmp_path, "say", "0")
    assert code == 1
    assert complaints.startswith(f"error: no warm trainer at {tmp_path / 'socket'}: ")


@pytest.mark.parametrize("job", [b"no JSON", b"{}", b'{"arguments": 5}'])
def test_a_job_that_is_none_fails_alone(
    host: subprocess.Popen[str], tmp_path: Path, job: bytes
) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
        (tmp_path / "told").open("w+") as told,
    ):
        link.settimeout(20)
        link.connect(str(tmp_path / "socket"))
        socket.send_fds(link, [job], [told.fileno()] * 3)
        assert link.recv(64) == b"exit 1"
        assert "Traceback" in (tmp_path / "told").read_text()
    assert outcome(tmp_path, "say", "0")[0] == 0


def test_a_job_without_streams_is_not_taken(host: subprocess.Popen[str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(20)
        link.connect(str(tmp_path / "socket"))
        link.send(b'{"arguments": ["say", "0"]}')
        assert link.recv(64) == b""
    assert outcome(tmp_path, "say", "0")[0] == 0


def test_libraries_that_begin_threads_cannot_be_kept_warm(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with ended(start_host(tmp_path, libraries="threaded")) as process:
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "began 1 threads, so it cannot be forked" in complaints


def test_a_library_that_cannot_be_loaded_ends_the_host_and_not_a_run(tmp_path: Path) -> None:
    with ended(start_host(tmp_path, for_children="no_such_library")) as process:
        assert process.wait(20) == 1
        assert process.stderr is not None
        complaints = process.stderr.read()
    assert "No module named 'no_such_library'" in complaints
    assert "a trainer ended before it had work" in complaints
