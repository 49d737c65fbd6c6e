import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import watch as watch_module
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.watch import watch

Publish = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}
NEVER_MS = 3_600_000  # a rescan that no test waits for


@pytest.fixture
def models_dir(tmp_path: Path, publish: Publish) -> Path:
    for name in ("a", "b"):
        publish(Registry(tmp_path).model(name))
    return tmp_path


def run(test: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(limited())


async def names_until(changes: AsyncIterator[set[str]], name: str) -> set[str]:
    """Everything that was named until `name` was: one change may come as several bursts."""
    seen: set[str] = set()
    while name not in seen:
        seen |= await anext(changes)
    return seen


def test_the_first_set_names_every_model(models_dir: Path) -> None:
    async def test() -> None:
        assert await anext(watch(models_dir, rescan_ms=NEVER_MS)) == {"a", "b"}

    run(test())


@pytest.mark.parametrize(
    "change",
    [
        lambda model, publish: publish(model),
        lambda model, publish: (publish(model), model.promote(2, **WHO)),
        lambda model, publish: model.recipe_path.write_text("[recipe]"),
        lambda model, publish: (model.version_path(1) / "model.onnx").write_bytes(b"changed"),
        lambda model, publish: model.freeze(**WHO),
        lambda model, publish: shutil.rmtree(model.path),
    ],
    ids=["publish", "promote", "recipe", "damage", "freeze", "removal"],
)
def test_a_model_that_changed_is_named_and_no_other(
    models_dir: Path, publish: Publish, change: Callable[[ModelDirectory, Publish], object]
) -> None:
    async def test() -> None:
        changes = watch(models_dir, rescan_ms=NEVER_MS)
        await anext(changes)
        change(Registry(models_dir).model("a"), publish)
        assert await anext(changes) == {"a"}

    run(test())


def test_a_new_model_is_named_whether_published_or_copied(
    models_dir: Path, publish: Publish
) -> None:
    async def test() -> None:
        changes = watch(models_dir, rescan_ms=NEVER_MS)
        await anext(changes)
        publish(Registry(models_dir).model("new"))
        assert await names_until(changes, "new") == {"new"}
        (models_dir / "plain/1").mkdir(parents=True)
        (models_dir / "plain/1/model.onnx").write_bytes(b"onnx")
        assert await names_until(changes, "plain") == {"plain"}

    run(test())


def test_what_the_server_writes_itself_is_no_change(models_dir: Path, publish: Publish) -> None:
    async def test() -> None:
        changes = watch(models_dir, rescan_ms=NEVER_MS)
        await anext(changes)
        a = Registry(models_dir).model("a")
        a.record("drift", **WHO)
        (models_dir / ".trimtab/a").mkdir(parents=True)
        (models_dir / ".trimtab/a/active.frames").touch()
        with a.stage() as staged:
            (staged.path / "model.onnx").touch()
            publish(Registry(models_dir).model("b"))
            assert await anext(changes) == {"b"}

    run(test())


def test_it_ends_when_it_is_told_to(models_dir: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_soon(stop.set)
        assert [names async for names in watch(models_dir, stop=stop, rescan_ms=NEVER_MS)] == [
            {"a", "b"}
        ]

    run(test())


def test_cancelling_it_leaves_the_stop_event_alone(models_dir: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()
        changes = watch(models_dir, stop=stop, rescan_ms=NEVER_MS)
        await anext(changes)
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not stop.is_set()

    run(test())


@pytest.mark.parametrize("stopped", [False, True])
def test_without_notifications_it_looks_regularly(
    models_dir: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stopped: bool,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(watch_module, "RustNotify", refuse)

    async def test() -> None:
        stop = asyncio.Event()
        changes = watch(models_dir, stop=stop, rescan_ms=1)
        assert await anext(changes) == {"a", "b"}
        publish(Registry(models_dir).model("b"))
        assert await anext(changes) == {"b"}
        stop.set()
        assert [names async for names in changes] == []

    run(test())
    assert "no notifications" in caplog.text


def test_without_notifications_a_file_changed_in_place_is_found_too(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_notifier", lambda models_dir: None)

    async def test() -> None:
        changes = watch(models_dir, rescan_ms=1)
        await anext(changes)
        (models_dir / "a/1/model.onnx").write_bytes(b"changed")
        assert await anext(changes) == {"a"}

    run(test())


def test_most_looks_are_at_the_models_own_directories(models_dir: Path, publish: Publish) -> None:
    model = Registry(models_dir).model("a")
    known = watch_module._fingerprint(model, None)
    (model.version_path(1) / "model.onnx").write_bytes(b"changed")
    assert watch_module._fingerprint(model, known) is known
    assert watch_module._fingerprint(model, None) != known
    publish(model)
    assert watch_module._fingerprint(model, known) == watch_module._fingerprint(model, None)


def test_a_look_that_fails_is_logged_and_nothing_counts_as_gone(
    models_dir: Path,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        changes = watch(models_dir, rescan_ms=1)
        assert await anext(changes) == {"a", "b"}
        away = models_dir.with_name("away")
        models_dir.rename(away)
        waiting = asyncio.ensure_future(anext(changes))
        while "cannot look at the models" not in caplog.text:
            await asyncio.sleep(0)
        away.rename(models_dir)
        publish(Registry(models_dir).model("b"))
        assert await waiting == {"b"}

    with caplog.at_level(logging.WARNING):
        run(test())


def test_a_directory_that_may_not_be_read_stops_nothing(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir
    (models_dir / "closed").mkdir()

    def forbidden(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)

    async def test() -> None:
        assert await anext(watch(models_dir)) == {"a", "b", "closed"}

    run(test())
