"""What disks, clocks and hands do to a registry."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import durable
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import InvalidVersionError

Publish = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


@pytest.fixture
def ready(model: ModelDirectory, publish: Publish) -> ModelDirectory:
    """Versions 1 to 3; 2 is champion, 1 was before."""
    for _ in range(3):
        publish(model)
    model.promote(2, **WHO)
    return model


def tree(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# a directory that may not be written to


@pytest.fixture
def read_only(ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> ModelDirectory:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    opened = os.open

    def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "link"):
        monkeypatch.setattr(os, name, refuse)
    return ready


def test_a_read_only_registry_can_be_read(read_only: ModelDirectory) -> None:
    assert Registry(read_only.path.parent).models() == ["airtime"]
    assert read_only.versions() == [1, 2, 3]
    assert read_only.state().champion == 2
    assert read_only.history().valid
    assert set(read_only.verify(3).files) == {"model.onnx"}


def test_every_change_of_a_read_only_registry_is_refused_and_leaves_it_as_it_is(
    read_only: ModelDirectory, publish: Publish
) -> None:
    before = tree(read_only.path)
    changes: list[Callable[[], object]] = [
        lambda: publish(read_only),
        lambda: read_only.promote(3, **WHO),
        lambda: read_only.rollback(**WHO),
        lambda: read_only.freeze(**WHO),
        lambda: read_only.pin(1, **WHO),
        lambda: read_only.block(3, **WHO),
        lambda: read_only.remove(3, **WHO),
        lambda: read_only.record("drift", **WHO),
        read_only.recover,
    ]
    for change in changes:
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert tree(read_only.path) == before


# a clock that goes back


def test_decisions_and_removals_keep_their_order_when_the_clock_goes_back(
    ready: ModelDirectory, clock: Any
) -> None:
    clock.now_ms -= 86_400_000
    ready.freeze(**WHO)
    ready.remove(3, **WHO)
    clock.now_ms -= 1
    ready.rollback(**WHO)
    history = ready.history()
    assert history.valid
    assert [entry.kind for entry in history.entries[-3:]] == ["frozen", "removed", "rolled_back"]
    champion = history.champion_at(clock.now_ms)
    assert champion is not None and champion.version == 1


def test_what_was_staged_is_not_old_because_of_the_clock(
    ready: ModelDirectory, publish: Publish, clock: Any
) -> None:
    with ready.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        clock.now_ms += 365 * 86_400_000
        assert ready.recover() == []
        assert (staged.path / "model.onnx").exists()


# a manifest that was edited by hand


def test_an_edited_manifest_is_noticed_though_every_file_fits_it(ready: ModelDirectory) -> None:
    path = ready.version_path(3) / "manifest.json"
    document = json.loads(path.read_text())
    document["metrics"]["mae"] = 0.1
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidVersionError, match=r"3/manifest\.json: .* SHA-256 .* in entry 4 of"):
        ready.verify(3)
    assert ready.verify(2)


def test_an_exchanged_version_is_noticed_though_it_is_whole(
    ready: ModelDirectory, publish: Publish
) -> None:
    publish(ready, files={"model.onnx": b"another"})
    ready.version_path(3).rename(ready.path / ".old")
    ready.version_path(4).rename(ready.version_path(3))
    with pytest.raises(InvalidVersionError, match="is not the one that was published"):
        ready.verify(3)


@pytest.mark.parametrize("damage", ["no history", "no state", "broken state"])
def test_a_version_is_not_refused_because_its_history_is_gone(
    ready: ModelDirectory, damage: str
) -> None:
    if damage == "broken state":
        (ready.path / "state.json").write_text("{")
    else:
        name = "history.jsonl" if damage == "no history" else "state.json"
        (ready.path / name).unlink()
    assert ready.verify(1)


def test_a_version_that_is_not_recorded_yet_verifies(
    ready: ModelDirectory, publish: Publish
) -> None:
    """As between the two steps of a publication."""
    other = ModelDirectory(ready.path.parent / "other")
    publish(other)
    other.version_path(1).rename(ready.version_path(4))
    assert ready.verify(4)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "..", "a/b", ".hidden"])
def test_a_manifest_that_names_files_elsewhere_is_unreadable(
    ready: ModelDirectory, name: str
) -> None:
    path = ready.version_path(3) / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = document["files"]["model.onnx"]
    path.write_text(json.dumps(document))
    assert ready.versions() == [1, 2]
    with pytest.raises(InvalidVersionError, match="is not allowed as the name of a file"):
        ready.promote(3, **WHO)


# hands on the lock


def test_a_lock_file_that_was_removed_while_it_was_waited_for_locks_nobody_out_or_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    wait = durable._wait_for
    removals = [True]

    def outrun(fd: int, lock: Path, limit_s: float) -> None:
        wait(fd, lock, limit_s)
        if removals:
            removals.pop()
            lock.unlink()

    monkeypatch.setattr(durable, "_wait_for", outrun)
    monkeypatch.setattr(durable, "LOCK_LIMIT_S", 0.0)
    with durable.locked(path):
        assert durable.is_locked(path), "what is held is the file that others find"
    assert not durable.is_locked(path)
