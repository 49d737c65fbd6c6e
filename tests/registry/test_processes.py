"""Real processes: several at once, and one killed at random moments."""

import fcntl
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import durable
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import LockTimeoutError
from trimtab.registry.state import replay

WRITER = Path(__file__).with_name("writer_process.py")


def start(model: ModelDirectory, seed: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(model.path), str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def parse(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check(model: ModelDirectory, acknowledged: list[dict[str, Any]]) -> None:
    """Everything that was acknowledged is there, and all agrees."""
    history = model.history()
    assert history.valid, history.error
    assert replay(history.entries).state == model.state()
    published = [entry.version for entry in history.entries if entry.kind == "published"]
    assert published == model.versions() == model.version_directories()
    assert model.state().champion in published
    hashes = {entry.hash for entry in history.entries}
    for reply in acknowledged:
        assert reply.get("version", published[0]) in published
        assert reply.get("revision", 0) <= model.state().revision
        assert "hash" not in reply or reply["hash"] in hashes


def test_four_processes_at_once_lose_nothing_and_agree(model: ModelDirectory) -> None:
    processes = [start(model, seed, 40) for seed in range(4)]
    acknowledged: list[dict[str, Any]] = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        acknowledged += parse(output.splitlines(keepends=True))
    assert len(acknowledged) == 4 * 40
    check(model, acknowledged)
    versions = [reply["version"] for reply in acknowledged if "version" in reply]
    assert len(versions) == len(set(versions))
    assert len(model.versions()) == len(versions) + 4
    for version in model.versions():
        model.verify(version)
    # Every revision was won by one promotion at most.
    won = [r["revision"] for r in acknowledged if r.get("expected", 0) < r.get("revision", 0)]
    assert len(won) == len(set(won))
    assert model.recover() == []


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(model: ModelDirectory) -> None:
    dice = random.Random(0)
    acknowledged: list[dict[str, Any]] = []
    mended = 0
    for seed in range(20):
        with start(model, seed, 1_000_000) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(dice.randrange(1, 5))]
            time.sleep(dice.uniform(0, 0.005))  # the moment, not a synchronisation
            process.kill()
            lines += process.stdout.readlines()
        acknowledged += parse(lines)
        assert model.history().valid
        mended += bool(model.recover())
        assert not list(model.path.glob(".tmp-*"))
        assert model.recover() == []
        check(model, acknowledged)
    assert mended > 0
    for version in model.versions():
        model.verify(version)


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
