import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import durable
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import InvalidVersionError
from trimtab.registry.manifest import Signature

Publish = Callable[..., int]


@pytest.fixture
def details(signature: Signature) -> dict[str, Any]:
    return {
        "signature": signature,
        "task": "regression",
        "lineage": {},
        "metrics": {},
        "actor": "trainer",
        "reason": "r",
    }


def test_nothing_is_visible_before_it_is_published(
    model: ModelDirectory, details: dict[str, Any]
) -> None:
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        assert staged.path.is_relative_to(model.path)
        assert model.version_directories() == []
        assert staged.publish(**details) == 1
        assert model.versions() == [1]
        assert not staged.path.exists()
    assert model.versions() == [1]
    assert {path.name for path in model.path.iterdir()} == {
        *("1", "state.json", "history.jsonl", ".lock")
    }


def test_leaving_without_publishing_removes_what_was_staged(model: ModelDirectory) -> None:
    with pytest.raises(RuntimeError, match="training failed"), model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        raise RuntimeError("training failed")
    assert not model.path.exists()


def test_a_model_that_was_there_before_stays_when_nothing_was_published(
    model: ModelDirectory, publish: Publish
) -> None:
    model.path.mkdir()
    with model.stage():
        pass
    assert [path.name for path in model.path.iterdir()] == [".lock"]


def test_a_model_that_others_work_in_stays_when_nothing_was_published(
    model: ModelDirectory, details: dict[str, Any]
) -> None:
    with contextlib.ExitStack() as other:
        with model.stage():
            staged = other.enter_context(model.stage())
        assert staged.path.is_dir()
        (staged.path / "model.onnx").write_bytes(b"onnx")
        assert staged.publish(**details) == 1
    assert model.versions() == [1]


def test_a_model_that_goes_while_somebody_waits_to_publish_into_it_is_made_again(
    model: ModelDirectory, details: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = durable.locked
    gone: list[Path] = []

    @contextlib.contextmanager
    def late(path: Path) -> Iterator[None]:
        with locked(path):
            if not gone:
                gone.append(path)
                path.unlink()
                model.path.rmdir()
            yield

    monkeypatch.setattr(durable, "locked", late)
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        assert staged.publish(**details) == 1


def test_the_manifest_tells_all_that_was_given(
    model: ModelDirectory, publish: Publish, signature: Signature, clock: Any
) -> None:
    publish(model, files={"model.onnx": b"onnx", "golden.npz": b""}, event_time_ms=5)
    manifest = model.verify(1)
    assert (manifest.format, manifest.model, manifest.task) == (1, "airtime", "regression")
    assert manifest.created_ms == clock.now_ms
    assert manifest.signature == signature
    assert manifest.lineage == {"rows": 60_000}
    assert manifest.metrics == {"mae": 7.9}
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        "model.onnx": 4,
        "golden.npz": 0,
    }
    assert (manifest.publication.actor, manifest.publication.event_time_ms) == ("trainer", 5)


def test_a_version_may_wait_for_a_promotion(model: ModelDirectory, publish: Publish) -> None:
    publish(model, champion_if_first=False)
    assert model.state().champion is None
    publish(model, champion_if_first=True)
    assert model.state().champion == 2
    assert [entry.kind for entry in model.history().entries] == [
        *("published", "published", "promoted")
    ]


def _directory(path: Path) -> None:
    (path / "variables").mkdir()


def _link(path: Path) -> None:
    (path / "weights").symlink_to("model.onnx")


def _pipe(path: Path) -> None:
    os.mkfifo(path / "pipe")


def _hidden(path: Path) -> None:
    (path / ".DS_Store").touch()


def _no_model(path: Path) -> None:
    (path / "model.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_directory, "variables: not a regular file"),
        (_link, "weights: not a regular file"),
        (_pipe, "pipe: not a regular file"),
        (_hidden, "DS_Store': not allowed as the name"),
        (_no_model, r"has no model\.onnx"),
    ],
)
def test_what_could_not_be_verified_is_not_published(
    model: ModelDirectory, details: dict[str, Any], spoil: Callable[[Path], None], problem: str
) -> None:
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        spoil(staged.path)
        with pytest.raises(InvalidVersionError, match=problem):
            staged.publish(**details)
    assert model.version_directories() == []
    assert model.history().entries == ()


@pytest.mark.parametrize(
    ("wrong", "error", "problem"),
    [
        ({"lineage": {"x": object()}}, TypeError, "has no JSON form"),
        ({"metrics": {"mae": "good"}}, ValueError, "metrics.mae is not a number"),
        ({"task": None}, ValueError, "task is not a string"),
    ],
)
def test_a_manifest_that_nobody_could_read_is_not_published(
    model: ModelDirectory,
    details: dict[str, Any],
    wrong: dict[str, Any],
    error: type[Exception],
    problem: str,
) -> None:
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        with pytest.raises(error, match=problem):
            staged.publish(**details | wrong)
        assert staged.publish(**details) == 1


def test_a_number_is_never_given_out_twice(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    assert publish(model) == 2
    model.version_path(2).rename(model.path.parent / "moved away")
    assert publish(model) == 3


def test_numbers_that_are_taken_by_anything_are_passed_over(
    model: ModelDirectory, publish: Publish
) -> None:
    model.path.mkdir()
    model.version_path(1).touch()
    model.version_path(2).symlink_to("nowhere")
    assert publish(model) == 3
    model.version_path(4).mkdir()
    assert publish(model) == 5
    assert model.versions() == [3, 5]


def test_a_directory_that_appears_in_the_same_moment_keeps_its_number(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def race(source: Path, target: Path) -> None:
        if target.name == "1":
            target.mkdir()
            (target / "model.onnx").write_bytes(b"copied by hand")
        rename(source, target)

    monkeypatch.setattr(os, "rename", race)
    assert publish(model) == 2
    assert (model.version_path(1) / "model.onnx").read_bytes() == b"copied by hand"


def test_a_version_that_was_copied_in_is_entered_by_the_next_writer(
    model: ModelDirectory, publish: Publish, tmp_path: Path
) -> None:
    publish(model)
    other = ModelDirectory(tmp_path / "other")
    publish(other)
    other.version_path(1).rename(model.version_path(5))
    assert model.recover() == [
        "version 5: entered into the history, its publisher had not come to it"
    ]
    assert [e.version for e in model.history().entries if e.kind == "published"] == [1, 5]
    assert publish(model) == 6


def test_recover_removes_what_dead_makers_left_and_spares_the_living(
    model: ModelDirectory, publish: Publish, details: dict[str, Any]
) -> None:
    publish(model)
    for name in (".tmp-dead", ".tmp-newborn"):
        (model.path / name / "version").mkdir(parents=True)
    (model.path / ".tmp-dead" / "lock").touch()
    (model.path / ".tmp-file").touch()
    (model.path / ".tmp-link").symlink_to("1")
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        assert model.recover() == [
            f".tmp-{name}: removed, whoever made it is gone"
            for name in ("dead", "file", "link", "newborn")
        ]
        assert staged.publish(**details) == 2
    assert model.verify(1)
    assert model.recover() == []
