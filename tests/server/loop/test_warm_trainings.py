"""Runs of a trainer that was started beforehand, and those that it must not have."""

import queue
import sys

from trimtab.server.config import TrainingConfig
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult
from trimtab.server.loop.warm_trainings import WarmTrainings

ECHO = """
import json, sys
print(json.dumps({"progress": {"stage": "fit", "fraction": 0.5}}))
print(json.dumps({"result": {"outcome": "published", "reason": " ".join(sys.argv[1:])}}))
"""


def run(threads: int, limits: TrainingConfig) -> tuple[TrainingResult, list[TrainingProgress]]:
    """What becomes of a run by a warm trainer of so many threads."""
    results: queue.SimpleQueue[TrainingResult] = queue.SimpleQueue()
    steps: list[TrainingProgress] = []
    spawn = WarmTrainings([sys.executable, "-c", ECHO], threads)
    started = spawn(["train", "--model=m"], limits, results.put, steps.append)
    started.start()
    assert started.join(20)
    return results.get(timeout=20), steps


def test_the_command_is_told_the_limits_and_then_the_arguments() -> None:
    result, steps = run(2, TrainingConfig(threads=2, nice=5, memory_mb=4000))
    assert result.outcome == "published"
    assert result.reason == '{"nice": 5, "memory_mb": 4000} train --model=m'
    assert [step.stage for step in steps] == ["fit"]


def test_a_run_that_may_use_another_number_of_threads_is_a_process_of_its_own() -> None:
    spawn = WarmTrainings([sys.executable, "-c", ECHO], 2)
    results: queue.SimpleQueue[TrainingResult] = queue.SimpleQueue()
    started = spawn(["no-such-command"], TrainingConfig(threads=1), results.put)
    assert repr(started).startswith(f"TrainingRun({sys.executable} -m trimtab.trainer no-such-")
    started.start()
    assert started.join(20)
    assert "ended with exit code 2" in results.get(timeout=20).reason  # wrong usage, it says
