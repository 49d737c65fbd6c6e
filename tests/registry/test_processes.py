"""Real processes: several at once, and one killed at random moments, as the benchmark has them."""

import fcntl
import sys
import time
from pathlib import Path

import pytest

from trimtab.registry import durable
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import LockTimeoutError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import registry_crash


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(model: ModelDirectory) -> None:
    found, figures = registry_crash.kill_again_and_again(model, 12, 3, lambda text: None)
    assert found.to_dict()["problems"] == []
    assert figures["kills"] == 12
    assert figures["acknowledged_changes"] > 12
    assert figures["had_to_be_mended"] > 0


def test_four_processes_at_once_lose_nothing_and_agree(model: ModelDirectory) -> None:
    found, figures = registry_crash.all_at_once(model, 4, 4 * 40, 0)
    assert found.to_dict()["problems"] == []
    assert figures["operations"] == 160
    assert figures["chain_valid"]
    assert figures["lost_compare_and_swaps"] > 0, "they did meet"


def test_the_benchmark_notices_what_it_looks_for(model: ModelDirectory) -> None:
    writer = registry_crash.Writer(model.path, "seed", aloud=False)
    for _ in range(3):
        writer._publish({"actor": "writer", "reason": "token"})
    found = registry_crash.Findings()
    registry_crash.inspect_recovered(model, {"token"}, found)
    assert found.wrong == 0
    registry_crash.inspect_recovered(model, {"another"}, found)
    assert (len(found.lost), found.wrong) == (1, 1)
    (model.version_path(3) / "golden.npz").unlink()
    registry_crash.inspect_recovered(model, set(), found)
    assert "golden.npz: missing" in found.half[0]
    (model.path / "state.json").unlink()
    registry_crash.inspect(model, set(), found)
    assert "is not where the history leads" in found.corrupt[0]


def test_a_lock_that_is_not_let_go_of_is_waited_for_with_a_limit(
    model: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "LOCK_LIMIT_S", 0.2)
    model.path.mkdir()
    with (model.path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(LockTimeoutError, match=r"airtime/\.lock for more than 0\.2 s"):
            model.record("drift", actor="test", reason="r")
        assert 0.2 <= time.monotonic() - began < 5
    model.record("drift", actor="test", reason="r")
