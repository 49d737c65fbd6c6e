"""Every system call that touches the disk fails once, and is once the last before death."""

import errno
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.history import HistoryFile
from trimtab.registry.state import State, replay

Publish = Callable[..., int]
Action = Callable[[ModelDirectory], object]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


class DeathError(BaseException):
    """The process ends here: no handler of ours can know it."""


class FaultyDisk:
    """Lets `calls` system calls pass; the next one fails, or it and every later one dies.

    A write that fails has written half of its bytes.
    """

    def __init__(self, calls: int, *, deadly: bool) -> None:
        self._left = calls
        self._deadly = deadly
        self.failed: str | None = None  # the call, "sync" if it was a directory's

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left >= 0 or (self.failed and not self._deadly):
                return call(*args, **options)
            if self.failed is None:
                self.failed = "sync" if _syncs_directory(name, args) else name
                if name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
            if self._deadly:
                raise DeathError
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return wrapped

    @contextmanager
    def in_use(self) -> Iterator[None]:
        names = [
            "open",
            "write",
            "fsync",
            "ftruncate",
            "replace",
            "rename",
            "unlink",
            "rmdir",
            "mkdir",
            "link",
        ]
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            yield


def _syncs_directory(name: str, args: tuple[Any, ...]) -> bool:
    if name == "open":
        return bool(args[1] & os.O_DIRECTORY)
    return name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)


def faults(directory: Path, action: Action, *, deadly: bool) -> Iterator[tuple[FaultyDisk, bool]]:
    """Runs the action on a fresh copy of the directory for every call that can fail.

    Yields, after each, the disk and whether the action raised.
    """
    original = directory.parent / "original"
    shutil.copytree(directory, original)
    for calls in range(200):
        shutil.rmtree(directory)
        shutil.copytree(original, directory)
        disk = FaultyDisk(calls, deadly=deadly)
        raised = False
        with disk.in_use():
            try:
                action(ModelDirectory(directory))
            except (OSError, DeathError):
                raised = True
        if disk.failed is None:
            assert not raised
            assert calls > 5
            return
        yield disk, raised
    pytest.fail("the action never came to its end")


def check_sound(model: ModelDirectory) -> None:
    """State, history and versions tell the same; nothing is half there."""
    history = model.history()
    assert history.valid, history.error
    assert HistoryFile(model.path / "history.jsonl").read() == [*history.entries]
    assert replay(history.entries).state == model.state()
    published = [entry.version for entry in history.entries if entry.kind == "published"]
    assert published == sorted(set(published))
    removed = {entry.version for entry in history.entries if entry.kind == "removed"}
    there = [version for version in published if version not in removed]
    assert there == model.versions() == model.version_directories()
    for version in there:
        model.verify(version)
    assert not list(model.path.glob(".tmp-*"))
    assert model.recover() == []


@pytest.fixture
def ready(model: ModelDirectory, publish: Publish) -> ModelDirectory:
    """Versions 1 to 3; 2 is champion, 1 was before."""
    for _ in range(3):
        publish(model)
    model.promote(2, **WHO)
    return model


@pytest.fixture(params=["publish", "promote", "rollback", "block", "record"])
def action(request: pytest.FixtureRequest, publish: Publish) -> Action:
    actions: dict[str, Action] = {
        "block": lambda model: model.block(1, **WHO),
        "publish": publish,
        "promote": lambda model: model.promote(3, **WHO),
        "rollback": lambda model: model.rollback(**WHO),
        "record": lambda model: model.record("drift", **WHO),
    }
    return actions[request.param]


def snapshot(model: ModelDirectory) -> tuple[State, list[int], Counter[str]]:
    kinds = Counter(entry.kind for entry in model.history().entries)
    return model.state(), model.versions(), kinds


@pytest.fixture
def after(ready: ModelDirectory, action: Action) -> tuple[State, list[int], Counter[str]]:
    copy = ready.path.parent / "copy" / ready.name
    shutil.copytree(ready.path, copy)
    action(ModelDirectory(copy))
    return snapshot(ModelDirectory(copy))


def test_an_error_leaves_nothing_visible(
    ready: ModelDirectory,
    action: Action,
    after: tuple[State, list[int], Counter[str]],
    publish: Publish,
) -> None:
    before = snapshot(ready)
    for disk, raised in faults(ready.path, action, deadly=False):
        now = snapshot(ready)
        if not raised:
            assert now == after
        else:
            # A directory's sync is the one failure that may come too late to change nothing.
            assert now == before or (now == after and disk.failed == "sync")
            assert not list(ready.path.glob(".tmp-*"))
        ready.recover()
        assert snapshot(ready) == now
        check_sound(ready)
        assert publish(ready) == now[1][-1] + 1
        check_sound(ready)


def test_death_at_any_call_leaves_all_or_nothing(
    ready: ModelDirectory,
    action: Action,
    after: tuple[State, list[int], Counter[str]],
    publish: Publish,
) -> None:
    before = snapshot(ready)
    for _, raised in faults(ready.path, action, deadly=True):
        assert raised
        state, versions, _ = snapshot(ready)
        assert ready.history().valid
        assert state in (before[0], after[0])
        assert versions in (before[1], after[1])
        ready.recover()
        assert snapshot(ready) in (before, after)
        check_sound(ready)
        assert publish(ready) == versions[-1] + 1
        check_sound(ready)


@pytest.mark.parametrize("deadly", [False, True])
def test_the_first_version_is_champion_or_not_there(
    model: ModelDirectory, publish: Publish, deadly: bool
) -> None:
    model.path.mkdir()
    for _, _ in faults(model.path, publish, deadly=deadly):
        model.recover()
        assert (model.versions(), model.state()) in [([], State()), ([1], State(1, 1))]
        check_sound(model)
        publish(model)
        assert model.state().champion == 1
        check_sound(model)


def test_death_during_recovery_only_delays_it(ready: ModelDirectory, publish: Publish) -> None:
    for _ in faults(ready.path, publish, deadly=True):
        if list(ready.path.glob(".tmp-*")) and ready.version_directories() == [1, 2, 3, 4]:
            break  # renamed into place, and not recorded
    with (ready.path / "history.jsonl").open("ab") as history:
        history.write(b'{"torn":')
    (ready.path / "state.json").unlink()
    shutil.rmtree(ready.path.parent / "original")
    for _ in faults(ready.path, ModelDirectory.recover, deadly=True):
        ready.recover()
        check_sound(ready)
        assert (ready.state(), ready.versions()) == (State(2, 2, 1), [1, 2, 3, 4])


def test_a_removal_that_fails_is_undone_or_finished_by_the_next_writer(
    ready: ModelDirectory, publish: Publish
) -> None:
    before = snapshot(ready)
    undone = finished = 0
    for disk, raised in faults(ready.path, lambda model: model.remove(3, **WHO), deadly=False):
        recorded = snapshot(ready)[2]["removed"] == 1
        assert recorded or disk.failed == "sync" or snapshot(ready) == before
        assert raised or recorded
        assert publish(ready) == 4, "its number is not used again"
        assert ready.versions() == ([1, 2, 4] if recorded else [1, 2, 3, 4])
        ready.recover()
        check_sound(ready)
        undone, finished = undone + (not recorded), finished + recorded
    assert undone > 3 and finished > 3


def test_death_while_removing_leaves_a_whole_version_or_none(
    ready: ModelDirectory, publish: Publish
) -> None:
    for _ in faults(ready.path, lambda model: model.remove(3, **WHO), deadly=True):
        recorded = snapshot(ready)[2]["removed"] == 1
        for version in ready.versions():
            ready.verify(version)
        assert recorded or ready.versions() == [1, 2, 3]
        ready.recover()
        assert ready.versions() == ([1, 2] if recorded else [1, 2, 3])
        check_sound(ready)
        assert publish(ready) == 4


@pytest.fixture
def no_directory_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.is_dir():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)


@pytest.mark.usefixtures("no_directory_renames")
@pytest.mark.parametrize(("deadly", "links"), [(False, True), (True, False)])
def test_without_renames_of_directories_a_version_is_whole_or_not_there(
    ready: ModelDirectory,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    deadly: bool,
    links: bool,
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if not links:
        monkeypatch.setattr(os, "link", refuse)

    def publish_two_files(model: ModelDirectory) -> None:
        publish(model, files={"model.onnx": b"onnx", "golden.npz": b"golden"})

    for disk, raised in faults(ready.path, publish_two_files, deadly=deadly):
        there = ready.versions()
        assert there in ([1, 2, 3], [1, 2, 3, 4])
        for version in there:
            ready.verify(version)
        ready.recover()
        check_sound(ready)
        if raised and not deadly and disk.failed != "sync":
            assert ready.versions() == [1, 2, 3]
        assert publish(ready) == len(there) + 1
        check_sound(ready)


@pytest.mark.usefixtures("no_directory_renames")
def test_without_renames_of_directories_a_removed_version_ceases_to_be_one_at_once(
    ready: ModelDirectory,
) -> None:
    for _ in faults(ready.path, lambda model: model.remove(3, **WHO), deadly=True):
        for version in ready.versions():
            ready.verify(version)
        ready.recover()
        check_sound(ready)


def test_any_writer_finishes_what_a_dead_one_began(ready: ModelDirectory, action: Action) -> None:
    """Without recover(): the next write mends the history before it adds to it."""
    for _ in faults(ready.path, action, deadly=True):
        ready.record("drift", **WHO)
        assert ready.history().valid
        ready.promote(1, **WHO)
        assert ready.history().valid
        assert replay(ready.history().entries).state == ready.state()


def test_a_change_whose_entries_cannot_be_copied_is_made_and_the_next_one_waits(
    ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: HistoryFile, entries: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    copied = (ready.path / "history.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(HistoryFile, "append", full)
        assert ready.promote(3, **WHO) == State(3, 3, 2, (1,))
        assert ready.history().entries[-1].kind == "promoted"
        for change in (ready.rollback, lambda **who: ready.record("drift", **who)):
            with pytest.raises(OSError, match="No space left"):
                change(**WHO)
    assert (ready.path / "history.jsonl").read_bytes() == copied
    assert ready.state() == State(3, 3, 2, (1,))
    assert ready.rollback(**WHO) == State(4, 2, 3, (1,))
    check_sound(ready)


@pytest.fixture
def steps(ready: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed from now on, in order."""
    steps: list[str] = []

    def name(path: object) -> str:
        return re.sub(r"\.tmp-\w+", "TMP", str(path).removeprefix(str(ready.path.parent) + "/"))

    def watched(call: Callable[..., None], note: Callable[..., str]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            steps.append(note(*args))
            call(*args)

        return wrapped

    def note_sync(fd: int) -> str:
        return f"sync {name(Path(f'/proc/self/fd/{fd}').readlink())}"

    def note_move(source: Path, target: Path) -> str:
        return f"{name(source)} -> {name(target)}"

    monkeypatch.setattr(os, "fsync", watched(os.fsync, note_sync))
    monkeypatch.setattr(os, "rename", watched(os.rename, note_move))
    monkeypatch.setattr(os, "replace", watched(os.replace, note_move))
    return steps


def test_everything_is_synced_before_what_relies_on_it(
    ready: ModelDirectory, publish: Publish, steps: list[str]
) -> None:
    """What a power cut may take is what was not synced; this is the order that leaves no gap."""
    os.utime(ready.path / "history.jsonl")  # as after another process's write
    publish(ready)
    assert steps == [
        "sync airtime/TMP/version/model.onnx",
        "sync airtime/TMP/version/manifest.json",
        "sync airtime/TMP/version",
        "sync airtime/history.jsonl",  # what others wrote, before state.json forgets it
        "airtime/TMP/version -> airtime/4",
        "sync airtime",
        "sync airtime/TMP",
        "airtime/TMP -> airtime/state.json",
        "sync airtime",
        "sync airtime/history.jsonl",
    ]


def test_a_change_is_told_as_soon_as_readers_see_it_and_returns_when_it_is_durable(
    ready: ModelDirectory, steps: list[str]
) -> None:
    ready.record("drift", **WHO)
    steps.clear()

    def made(state: State) -> None:
        steps.append("told")
        assert ModelDirectory(ready.path).state() == state

    state = ready.rollback(**WHO, made=made)
    assert steps == [
        "sync airtime/TMP",  # the history is as this process synced it
        "airtime/TMP -> airtime/state.json",
        "told",
        "sync airtime",
        "sync airtime/history.jsonl",
    ]
    steps.clear()
    assert state.champion is not None
    assert ready.promote(state.champion, **WHO, made=made) == state  # nothing changes
    assert steps == []


def test_a_change_is_durable_though_whoever_is_told_of_it_fails(
    ready: ModelDirectory, steps: list[str]
) -> None:
    def made(state: State) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ready.rollback(**WHO, made=made)
    assert steps[-2:] == ["airtime/TMP -> airtime/state.json", "sync airtime"]
    ready.record("drift", **WHO)
    assert [entry.kind for entry in ready.history().entries[-2:]] == ["rolled_back", "drift"]
    check_sound(ready)


def test_a_history_that_could_not_be_synced_is_synced_by_the_next_writer(
    ready: ModelDirectory, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.record("drift", **WHO)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", broken)
        ready.record("drift", **WHO)
    steps.clear()
    ready.record("drift", **WHO)
    assert steps == ["sync airtime/history.jsonl"] * 2
