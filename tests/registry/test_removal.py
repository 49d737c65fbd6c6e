"""A version goes whole, is told of, and never while it may be needed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import placement
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import (
    RevisionConflictError,
    UnmanagedModelError,
    VersionInUseError,
    VersionNotFoundError,
)

Publish = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


@pytest.fixture
def ready(model: ModelDirectory, publish: Publish) -> ModelDirectory:
    """Versions 1 to 6; 3 is champion, before it were 2 and 1."""
    for _ in range(6):
        publish(model)
    model.promote(2, **WHO)
    model.promote(3, **WHO)
    return model


def test_a_removed_version_is_gone_and_told_of(ready: ModelDirectory, publish: Publish) -> None:
    ready.block(6, **WHO)
    state = ready.remove(6, evidence={"keep": 2}, event_time_ms=5, **WHO)
    assert state == ready.state()
    assert state.blocked == {}
    assert ready.versions() == ready.version_directories() == [1, 2, 3, 4, 5]
    entry = ready.history().entries[-1]
    assert (entry.kind, entry.version, entry.actor) == ("removed", 6, "ada")
    assert (entry.evidence, entry.event_time_ms) == ({"keep": 2}, 5)
    assert not list(ready.path.glob(".tmp-*"))
    with pytest.raises(VersionNotFoundError):
        ready.remove(6, **WHO)
    assert publish(ready) == 7, "numbers are not used again"


def test_what_may_be_needed_is_not_removed(ready: ModelDirectory) -> None:
    ready.pin(4, **WHO)
    ready.challenge(5, **WHO)
    roles = {
        1: "an earlier champion that a rollback may return to",
        2: "the previous champion",
        3: "the champion",
        4: "pinned",
        5: "the challenger",
    }
    before = ready.history()
    for version, role in roles.items():
        with pytest.raises(VersionInUseError, match=f"version {version} of .* is {role}"):
            ready.remove(version, **WHO)
    assert ready.history() == before
    ready.unpin(4, **WHO)
    ready.remove(4, **WHO)
    assert ready.versions() == [1, 2, 3, 5, 6]


def test_a_removal_may_expect_a_revision(ready: ModelDirectory) -> None:
    with pytest.raises(RevisionConflictError):
        ready.remove(6, expected_revision=1, **WHO)
    assert 6 in ready.versions()


def test_the_newest_are_retained_with_all_that_is_held(ready: ModelDirectory) -> None:
    assert ready.retain(2, **WHO) == [4]
    assert ready.versions() == [1, 2, 3, 5, 6]
    assert ready.retain(2, **WHO) == []
    assert ready.retain(1, **WHO) == [5]
    assert [entry.version for entry in ready.history().entries if entry.kind == "removed"] == [4, 5]


def test_a_version_that_gets_a_role_while_others_are_removed_stays(
    ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = ModelDirectory.remove

    def late(directory: ModelDirectory, version: int, **why: Any) -> Any:
        if version == 4:
            directory.promote(5, **WHO)
        return remove(directory, version, **why)

    monkeypatch.setattr(ModelDirectory, "remove", late)
    assert ready.retain(1, **WHO) == [4]
    assert ready.versions() == [1, 2, 3, 5, 6]


def test_a_version_removed_while_its_promotion_waits_is_not_promoted(
    ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = ModelDirectory._writing
    waiting = [True]

    def outrun(directory: ModelDirectory) -> Any:
        if waiting:
            waiting.pop()
            directory.remove(6, **WHO)
        return writing(directory)

    monkeypatch.setattr(ModelDirectory, "_writing", outrun)
    with pytest.raises(VersionNotFoundError):
        ready.promote(6, **WHO)
    assert ready.state().champion == 3


def test_whoever_reads_its_files_goes_on_reading(ready: ModelDirectory) -> None:
    with (ready.version_path(6) / "model.onnx").open("rb") as file:
        ready.remove(6, **WHO)
        assert file.read() == b"onnx"


def test_what_cannot_be_taken_away_is_told_and_tried_again(
    ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(placement, "take_away", denied)
        with pytest.raises(PermissionError):
            ready.remove(6, **WHO)
        assert ready.history().entries[-1].kind == "removed"
        with pytest.raises(VersionNotFoundError, match="'airtime' has no version 6 any more"):
            ready.promote(6, **WHO)
        assert ready.promote(5, **WHO).champion == 5, "it stops nobody"
        (said,) = ready.recover()
        assert said.startswith("version 6: removed, but it cannot be taken away: [Errno 13]")
    assert ready.recover()[0] == "version 6: taken away, it had been removed"
    assert ready.recover() == []
    assert ready.versions() == [1, 2, 3, 4, 5]


def test_a_version_put_back_after_its_removal_stays(ready: ModelDirectory) -> None:
    copy = ready.path.parent / "backup"
    shutil.copytree(ready.version_path(6), copy)
    ready.remove(6, **WHO)
    copy.rename(ready.version_path(6))
    assert ready.recover() == []
    assert ready.verify(6)
    assert ready.promote(6, **WHO).champion == 6


def test_a_broken_version_can_be_removed(ready: ModelDirectory, publish: Publish) -> None:
    (ready.version_path(6) / "manifest.json").write_text("{")
    ready.version_path(9).mkdir()
    ready.remove(6, **WHO)
    ready.remove(9, **WHO)
    assert ready.version_directories() == [1, 2, 3, 4, 5]
    assert publish(ready) == 10


def test_a_link_is_removed_and_not_what_it_leads_to(ready: ModelDirectory) -> None:
    elsewhere = ready.path.parent / "elsewhere"
    ready.version_path(6).rename(elsewhere)
    ready.version_path(6).symlink_to(elsewhere)
    ready.remove(6, **WHO)
    assert not ready.version_path(6).is_symlink()
    assert (elsewhere / "manifest.json").exists()


@pytest.mark.parametrize("version", [0, -1, 9])
def test_only_numbered_directories_are_removed(ready: ModelDirectory, version: int) -> None:
    (ready.path / "-1").mkdir()
    (ready.path / "0").mkdir()
    with pytest.raises(VersionNotFoundError):
        ready.remove(version, **WHO)


def test_nothing_is_removed_from_a_plain_layout(model: ModelDirectory) -> None:
    model.version_path(1).mkdir(parents=True)
    (model.version_path(1) / "model.onnx").write_bytes(b"onnx")
    for remove in (lambda: model.remove(1, **WHO), lambda: model.retain(1, **WHO)):
        with pytest.raises(UnmanagedModelError, match="'airtime' is not managed"):
            remove()
    assert [path.name for path in model.path.iterdir()] == ["1"]
