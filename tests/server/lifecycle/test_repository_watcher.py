"""The watcher: it tells of every change, and nothing ends it but `stop`."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.server.lifecycle.repository_watcher import RepositoryWatcher


class Told:
    """Remembers what it was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.sets: list[set[str] | None] = []
        self._changed = threading.Condition()

    def __call__(self, names: set[str] | None) -> None:
        with self._changed:
            self.sets.append(names)
            self._changed.notify_all()

    def wait_for(self, names: set[str] | None, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.sets.count(names) >= times, 30), self.sets


def test_a_new_model_is_told_of(tmp_path: Path) -> None:
    told = Told()
    watcher = RepositoryWatcher(tmp_path, told)
    watcher.start()
    try:
        told.wait_for(None)
        (tmp_path / "airtime").mkdir()
        told.wait_for({"airtime"})
    finally:
        watcher.stop()


def test_a_watch_that_breaks_is_begun_again_and_everything_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = 0

    async def breaking(path: Path, *, stop: asyncio.Event) -> AsyncIterator[set[str]]:
        nonlocal attempts
        attempts += 1
        yield {f"attempt{attempts}"}
        if attempts < 3:
            raise OSError("out of watches")
        await stop.wait()

    told = Told()
    watcher = RepositoryWatcher(tmp_path, told, watch=breaking, pause_s=0.0)
    watcher.start()
    told.wait_for({"attempt3"})
    watcher.stop()
    assert told.sets.count(None) == 3
    assert "broke off" in caplog.text


def test_a_listener_that_fails_does_not_end_the_watch(tmp_path: Path) -> None:
    told = Told()
    failures = iter([RuntimeError("first"), RuntimeError("second")])

    def changed(names: set[str] | None) -> None:
        for error in failures:
            raise error
        told(names)

    async def once(path: Path, *, stop: asyncio.Event) -> AsyncIterator[set[str]]:
        yield {"m"}
        await stop.wait()

    watcher = RepositoryWatcher(tmp_path, changed, watch=once, pause_s=0.0)
    watcher.start()
    told.wait_for({"m"})
    watcher.stop()


def test_a_watcher_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    RepositoryWatcher(tmp_path, never).stop()
