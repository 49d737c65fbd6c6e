"""A trainer's session yields to the server's where the kernel shares processors by session."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.server.config import TrainingConfig
from trimtab.server.loop import training_run
from trimtab.server.loop.training_run import TrainingResult, TrainingRun

OWN = Path("/proc/self/autogroup")
# The file is empty where processes are in a control group instead, as in many containers.
needs_autogroups = pytest.mark.skipif(
    not (OWN.exists() and OWN.read_text().split()), reason="no autogroups here"
)


@pytest.fixture
def session() -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own that waits for its input's end."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def nice_of(group: Path) -> int:
    return int(group.read_text().split()[-1])


@needs_autogroups
def test_a_trainers_session_is_nicer_than_the_servers(session: "subprocess.Popen[bytes]") -> None:
    group = Path(f"/proc/{session.pid}/autogroup")
    training_run._lower_session(session.pid, 3)
    assert nice_of(group) == min(nice_of(OWN) + 3, 19)


@needs_autogroups
def test_a_training_at_the_servers_priority_leaves_its_session_alone(
    session: "subprocess.Popen[bytes]",
) -> None:
    before = Path(f"/proc/{session.pid}/autogroup").read_text()
    training_run._lower_session(session.pid, 0)
    assert Path(f"/proc/{session.pid}/autogroup").read_text() == before


def test_a_trainer_that_has_ended_already_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    training_run._lower_session(process.pid, 10)


@pytest.mark.parametrize("content", ["", "\n", "none here\n"])
def test_a_kernel_that_names_no_autogroup_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    written: list[str] = []
    monkeypatch.setattr(Path, "read_text", lambda path: content)
    monkeypatch.setattr(Path, "write_text", lambda path, text: written.append(text))
    training_run._lower_session(42, 10)
    assert not written


def test_a_kernel_that_wants_to_be_asked_again_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[type[OSError] | None] = [BlockingIOError, BlockingIOError, None]
    written: list[str] = []

    def write_text(path: Path, text: str) -> int:
        if (error := answers.pop(0)) is not None:
            raise error
        written.append(f"{path} {text}")
        return len(text)

    monkeypatch.setattr(Path, "read_text", lambda path: "/autogroup-7 nice 2\n")
    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    training_run._lower_session(42, 10)
    assert written == ["/proc/42/autogroup 12"] and not answers


@needs_autogroups
def test_a_run_lowers_the_session_of_its_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = threading.Event()
    lower = training_run._lower_session

    def then_tell(pid: int, nice: int) -> None:
        lower(pid, nice)
        lowered.set()

    monkeypatch.setattr(training_run, "_lower_session", then_tell)
    results: list[TrainingResult] = []
    run = TrainingRun(
        ["-c", "import sys; sys.stdin.read()"],
        TrainingConfig(timeout_s=30, nice=5),
        results.append,
        command=[sys.executable, "-S"],
    )
    run.start()
    assert lowered.wait(10)
    group = Path(f"/proc/{run.pid}/autogroup")
    assert nice_of(group) == min(nice_of(OWN) + 5, 19)
    run.kill("was seen")
    assert run.join(10) and results[0].outcome == "failed"
