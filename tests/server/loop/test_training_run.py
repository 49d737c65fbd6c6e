import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loop_fakes import wait_until
from trimtab.server.config import TrainingConfig
from trimtab.server.loop import training_run
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult, TrainingRun

RunScript = Callable[..., tuple[TrainingResult, TrainingRun]]


class Waiter:
    """Holds the result of a run until somebody wants it."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self.results: list[TrainingResult] = []

    def __call__(self, result: TrainingResult) -> None:
        self.results.append(result)
        self._done.set()

    def wait(self) -> TrainingResult:
        assert self._done.wait(30), "the run never finished"
        return self.results[0]


def run(
    script: str,
    *,
    timeout_s: float = 30.0,
    memory_mb: int = 0,
    needs_result: bool = True,
    progress: list[TrainingProgress] | None = None,
    during: Callable[[TrainingRun], None] = lambda run: None,
) -> TrainingResult:
    """Runs a small script as if it were the trainer."""
    waiter = Waiter()
    child = TrainingRun(
        ["-c", textwrap.dedent(script)],
        TrainingConfig(timeout_s=timeout_s, memory_mb=memory_mb, nice=3, threads=2),
        waiter,
        (progress if progress is not None else []).append,
        needs_result=needs_result,
        command=[sys.executable, "-S"],
    )
    child.start()
    during(child)
    result = waiter.wait()
    assert child.join(10)
    assert len(waiter.results) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    return result


def test_a_published_version_is_reported_with_its_gates_and_metrics() -> None:
    progress: list[TrainingProgress] = []
    result = run(
        """
        import json, os
        print(json.dumps({"progress": {"stage": "fit", "fraction": 0.5, "message": "half"}}))
        print(json.dumps({"result": {
            "outcome": "published", "version": 3, "reason": "better", "rows": 1000,
            "gates": [{"name": "parity", "verdict": "pass", "reason": "", "figures": {}}],
            "metrics": {"mae": 7.5, "r2": None, "nice": os.nice(0),
                        "threads": float(os.environ["POLARS_MAX_THREADS"])},
        }}))
        """,
        progress=progress,
    )
    assert (result.outcome, result.version, result.reason) == ("published", 3, "better")
    assert result.gates[0]["name"] == "parity"
    assert result.metrics == {"mae": 7.5, "nice": min(os.nice(0) + 3, 19), "threads": 2}
    assert result.rows == 1000 and result.elapsed_s > 0
    assert result.evidence()["metrics"]["mae"] == 7.5
    assert progress == [TrainingProgress("fit", 0.5, "half")]


def test_a_refusal_is_no_failure() -> None:
    result = run(
        """
        print('{"result": {"outcome": "refused", "reason": "MAE 9 > 8", "version": null}}')
        raise SystemExit(3)
        """
    )
    assert (result.outcome, result.reason, result.version) == ("refused", "MAE 9 > 8", None)


def test_a_failure_that_the_trainer_explains_keeps_its_words() -> None:
    result = run(
        """
        import sys
        print('{"result": {"outcome": "failed", "reason": "column x is not there"}}')
        sys.exit(1)
        """
    )
    assert (result.outcome, result.reason) == ("failed", "column x is not there")


def test_what_is_wrong_with_the_data_is_kept_column_by_column() -> None:
    found = {"column": "x", "what": "constant", "number": 1.0, "severity": "stop"}
    said = {"outcome": "failed", "reason": "the data are broken", "quality": [found]}
    result = run(f"""
        import json, sys
        print(json.dumps({{"result": {said!r}}}))
        sys.exit(1)
    """)
    assert result.outcome == "failed" and result.quality == (found,)
    assert result.evidence()["quality"] == [found]


def test_a_crash_is_a_failure_with_the_last_line_it_said() -> None:
    result = run("import sys\nsys.stderr.write('first\\n')\nraise ValueError('lost the plot')")
    assert result.outcome == "failed"
    assert result.reason == "the trainer ended with exit code 1: ValueError: lost the plot"


def test_garbage_is_no_result() -> None:
    result = run(
        """
        import sys
        print("not json"); print("[1, 2]"); print('{"progress": 3}'); print('{"result": 7}')
        sys.stdout.buffer.write(b"\\xff\\xfe" * 100_000)
        """
    )
    assert result.outcome == "failed"
    assert "ended without a result" in result.reason


@pytest.mark.parametrize(
    "said",
    [
        '{"outcome": "published", "version": 1}',  # but it exits with 1
        '{"outcome": "wonderful"}',
        '{"outcome": "published", "version": "one"}',
    ],
)
def test_a_result_that_contradicts_the_exit_code_or_itself_is_a_failure(said: str) -> None:
    result = run(f"print('{{\"result\": {said}}}')\nraise SystemExit(1)")
    assert result.outcome == "failed" and "its result was" in result.reason


def test_an_empty_run_that_ends_well_is_enough_for_a_roll_only() -> None:
    assert run("print('rolled')", needs_result=False).outcome == "published"
    assert run("print('rolled')").outcome == "failed"
    assert run("raise SystemExit(1)", needs_result=False).outcome == "failed"


def test_a_hanging_trainer_is_ended_after_its_time() -> None:
    result = run("import time\ntime.sleep(600)", timeout_s=0.3)
    assert (result.outcome, result.reason) == ("failed", "the trainer took longer than 0.3 s")


def test_one_that_ignores_the_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "_GRACE_S", 0.2)
    result = run(
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            print("still here", flush=True)
            time.sleep(0.01)
        """,
        timeout_s=0.5,
    )
    assert "took longer than 0.5 s" in result.reason


def test_killing_it_gives_the_reason_and_may_come_at_any_time(tmp_path: Path) -> None:
    marker = tmp_path / "started"

    def kill(child: TrainingRun) -> None:
        wait_until(marker.exists, "the child's start")
        child.kill("was ended: the server stopped")

    script = f"import time\nopen({str(marker)!r}, 'w').close()\ntime.sleep(600)"
    result = run(script, during=kill)
    assert result.reason == "the trainer was ended: the server stopped"
    early = run("import time\ntime.sleep(600)", during=lambda child: child.kill("was ended early"))
    assert early.reason == "the trainer was ended early"


def test_killed_from_outside_is_a_failure_that_names_the_signal() -> None:
    result = run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert result.reason.startswith("the trainer was killed by SIGKILL, as the kernel does where")
    assert not result.killed, "by us"


def test_what_the_child_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    result = run(
        f"""
        import os, time
        child = os.fork()
        if not child:
            time.sleep(600)  # holds the pipes open
        with open({str(pid_file)!r}, "w") as file:
            file.write(str(child))
        print('{{"result": {{"outcome": "published", "version": 1}}}}', flush=True)
        os._exit(0)
        """
    )
    assert result.version == 1

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid_file.read_text()}/stat").read_text()
        except FileNotFoundError:
            return True
        return state.rpartition(")")[2].split()[0] == "Z"  # its reaper may be slow

    wait_until(gone, "the grandchild's end")


ABORTED = """
import os, sys
print("memory allocation of 8 bytes failed", file=sys.stderr, flush=True)
print("stack backtrace:", file=sys.stderr, flush=True)
os.abort()
"""
EXPLAINED = """
print('{"result": {"outcome": "failed", "reason": "out of memory"}}')
raise SystemExit(1)
"""


@pytest.mark.parametrize(
    "script",
    ["x = bytearray(2**30)", "raise SystemExit('what():  std::bad_alloc')", ABORTED, EXPLAINED],
)
def test_memory_is_limited_and_a_failure_for_want_of_it_names_the_limit(script: str) -> None:
    result = run(script, memory_mb=256)
    assert result.outcome == "failed" and not result.killed
    assert result.reason.endswith(" (memory is limited to 256 MiB: memory_mb)"), result.reason


def test_a_failure_for_another_reason_does_not_speak_of_memory() -> None:
    assert "memory" not in run("raise ValueError('lost the plot')", memory_mb=256).reason


@pytest.mark.parametrize("code", [0, 143, -15])
def test_a_version_that_was_published_as_the_child_was_killed_is_no_failure(
    tmp_path: Path, code: int
) -> None:
    marker = tmp_path / "asked"

    def kill(child: TrainingRun) -> None:
        wait_until(marker.exists, "the child's start")
        child.kill("was cancelled by ann: no")

    end = f"os._exit({code})" if code >= 0 else "os.kill(os.getpid(), signal.SIGTERM)"
    reset = "signal.signal(signal.SIGTERM, signal.SIG_DFL)"
    result = run(
        f"""
        import os, signal
        def leave(*_):
            print('{{"result": {{"outcome": "published", "version": 4}}}}', flush=True)
            {reset}
            {end}
        signal.signal(signal.SIGTERM, leave)
        open({str(marker)!r}, "w").close()
        while True:
            signal.pause()
        """,
        during=kill,
    )
    assert (result.outcome, result.version, result.killed) == ("published", 4, False)


def test_a_refusal_of_a_killed_child_does_not_count() -> None:
    result = run(
        """
        import time
        print('{"result": {"outcome": "refused", "reason": "worse"}}', flush=True)
        time.sleep(600)
        """,
        during=lambda child: child.kill("was cancelled by ann: no"),
    )
    assert (result.outcome, result.killed) == ("failed", True)
    assert result.reason == "the trainer was cancelled by ann: no"


def test_the_share_at_which_a_stage_ends_is_passed_on() -> None:
    progress: list[TrainingProgress] = []
    run(
        'print(\'{"progress": {"stage": "fit", "fraction": 0.4, "until": 0.5}}\')',
        progress=progress,
    )
    assert progress == [TrainingProgress("fit", 0.4, "", 0.5)]


def test_a_command_that_cannot_be_started_is_a_failure() -> None:
    waiter = Waiter()
    child = TrainingRun([], TrainingConfig(), waiter, command=["/does/not/exist"])
    child.start()
    assert "could not be run" in waiter.wait().reason
    child.kill("too late, harmless")


def test_the_child_sees_the_end_of_its_input_when_the_server_is_killed(tmp_path: Path) -> None:
    """What --exit-with-parent rests on."""
    report = tmp_path / "report"
    child = (
        "import sys, pathlib; sys.stdin.buffer.read(); "
        f"pathlib.Path({str(report)!r}).write_text('input ended')"
    )
    server = textwrap.dedent(
        f"""
        import os, signal, sys, threading
        from trimtab.server.config import TrainingConfig
        from trimtab.server.loop.training_run import TrainingRun
        run = TrainingRun(["-c", {child!r}], TrainingConfig(), print, command=[sys.executable, "-S"])
        run.start()
        while not run.pid:
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pid = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", server])
    assert pid == -signal.SIGKILL
    wait_until(report.exists, "the orphan's notice")
