"""Publishing and removing where directories cannot be renamed, or not in one step."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import InvalidVersionError

Publish = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}
FILES = {"model.onnx": b"onnx" * 1000, "golden.npz": b"golden", "empty": b""}


class DeathError(BaseException):
    """The process ends here: no handler of ours can know it."""


def refuse_directories(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.is_dir() and not source.is_symlink():
            raise OSError(code, os.strerror(code), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize(
    "code", ["EXDEV", "ENOTSUP", "ENOSYS", "EPERM", "EINVAL", "ENOTEMPTY", "EEXIST"]
)
def test_a_refused_rename_is_done_by_hand_with_the_manifest_last(
    model: ModelDirectory,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    links: bool,
) -> None:
    refuse_directories(monkeypatch, getattr(errno, code))
    if not links:
        refuse_links(monkeypatch)
    assert [publish(model, files=FILES), publish(model, files=FILES)] == [1, 2]
    for version in model.versions():
        assert set(model.verify(version).files) == set(FILES)
    assert model.versions() == [1, 2]
    assert model.state().champion == 1
    model.promote(2, **WHO)
    model.rollback(**WHO)
    assert publish(model) == 3
    model.remove(3, **WHO)
    assert model.version_directories() == [1, 2]
    assert not list(model.path.glob(".tmp-*"))
    assert model.recover() == []


def test_files_get_their_names_in_the_order_that_shows_no_half_version(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_directories(monkeypatch, errno.EXDEV)
    seen: list[set[str]] = []
    fsync = os.fsync

    def look(fd: int) -> object:
        names = {path.name for path in model.path.glob("1/*")}
        seen.append({name for name in names if not name.startswith(".")})
        return fsync(fd)

    monkeypatch.setattr(os, "fsync", look)
    publish(model, files=FILES)
    steps = [names for names, before in zip(seen, [set(), *seen], strict=False) if names != before]
    assert steps == [set(FILES), {*FILES, "manifest.json"}]


def test_a_number_that_is_taken_is_passed_over(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)
    (model.path / "2").touch()
    refuse_directories(monkeypatch, errno.EXDEV)
    assert publish(model) == 3
    assert model.versions() == [1, 3]


def test_another_error_is_not_worked_around(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)
    with monkeypatch.context() as patch:
        refuse_directories(patch, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            publish(model)
        with pytest.raises(OSError, match="Input/output error"):
            model.promote(publish(model), **WHO)
    assert model.version_directories() == [1]
    assert publish(model) == 2


def test_a_version_that_cannot_be_recorded_is_taken_back(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)
    with monkeypatch.context() as patch:
        refuse_directories(patch, errno.EXDEV)

        def full(directory: ModelDirectory, writer: object) -> list[int]:
            if directory.version_path(2).exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return []

        patch.setattr(ModelDirectory, "_record_publications", full)
        with pytest.raises(OSError, match="No space left"):
            publish(model)
    assert model.version_directories() == [1]
    assert publish(model) == 2


@pytest.mark.parametrize("begun", [(), (".tmp-1",), (".tmp-1", "model.onnx", "golden.npz")])
def test_what_a_dead_copier_left_is_no_version_and_goes(
    model: ModelDirectory, publish: Publish, begun: tuple[str, ...]
) -> None:
    publish(model)
    torso = model.version_path(2)
    torso.mkdir()
    for name in begun:
        (torso / name).touch()
    assert model.versions() == [1]
    assert model.recover() == ["version 2: removed, it never came to be whole"]
    assert publish(model) == 2


def test_what_somebody_copies_by_hand_stays(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    model.version_path(2).mkdir()
    (model.version_path(2) / "model.onnx").touch()
    assert model.recover() == []
    assert model.version_directories() == [1, 2]


def test_a_rename_that_died_between_two_files_publishes_nothing(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of a bucket, which copies file by file, and in any order."""
    publish(model)

    def piecewise(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(source / "manifest.json", target)
        raise DeathError

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", piecewise)
        with pytest.raises(DeathError):
            publish(model, files=FILES)
    model.recover()
    model.record("drift", **WHO)
    assert [entry.version for entry in model.history().entries if entry.kind == "published"] == [1]
    with pytest.raises(InvalidVersionError, match="missing"):
        model.verify(2)
    assert publish(model) == 3


def test_a_file_system_that_cannot_sync_directories_is_taken_at_its_word(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").resolve().is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", sync)
    publish(model)
    assert model.verify(1)
    assert model.state().champion == 1
