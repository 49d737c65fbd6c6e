"""`trimtab verify`: every kind of damage is found, and said where it is."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import models
from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.signing import SigningKey
from trimtab.server.commands import cli

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def directory(tmp_path: Path) -> ModelDirectory:
    """Two versions of a model, the second of which is the champion."""
    for factor in (1.0, 2.0):
        models.publish(tmp_path, "airtime", models.scaled(factor))
    model = ModelDirectory(tmp_path / "airtime")
    model.promote(2, actor="ann", reason="better")
    return model


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_is_whole_is_told_and_ends_with_zero(directory: ModelDirectory) -> None:
    result = run("verify", directory.path.parent)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "ok: airtime: 2 versions, champion 2\n"
    models.write(directory.path.parent / "plain" / "1", models.scaled(1.0))
    result = run("verify", directory.path.parent, "--json")
    assert json.loads(result.stdout) == {
        "whole": [
            {"model": "airtime", "version": None, "text": "2 versions, champion 2"},
            {"model": "plain", "version": None, "text": "1 version, unmanaged"},
        ],
        "wrong": [],
        "notes": [],
        "unreadable": [],
    }


def _resealed(model: ModelDirectory) -> None:
    """By somebody who knows that a file's hash is in the manifest."""
    path = model.version_path(1)
    before = model.manifest(1).files["model.onnx"].sha256
    data = bytearray((path / "model.onnx").read_bytes())
    data[-1] ^= 1
    (path / "model.onnx").write_bytes(data)
    edited(path / "manifest.json", before, hashlib.sha256(data).hexdigest())


def _line_removed(model: ModelDirectory) -> None:
    path = model.path / "history.jsonl"
    first, _, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *rest]))


DAMAGE: list[tuple[Callable[[ModelDirectory], Any], str, int | None]] = [
    (
        lambda m: (m.version_path(1) / "model.onnx").write_bytes(b"onny"),
        "1/model.onnx: has 4 bytes, the manifest says",
        1,
    ),
    (lambda m: (m.version_path(1) / "model.onnx").unlink(), "1/model.onnx: missing", 1),
    (lambda m: (m.version_path(1) / "extra").touch(), "1/extra: not in the manifest", 1),
    (lambda m: (m.version_path(2) / "manifest.json").unlink(), "2/manifest.json: missing", 2),
    (_resealed, "1/manifest.json: is not the one that was published", 1),
    (
        lambda m: edited(m.version_path(1) / "manifest.json", '"mae": 1.5', '"mae": 0.5'),
        "1/manifest.json: is not the one that was published",
        1,
    ),
    (
        lambda m: edited(m.path / "history.jsonl", '"better"', '"best"'),
        "entry 4 was altered",
        None,
    ),
    (_line_removed, "entry 2 is missing", None),
    (
        lambda m: edited(m.path / "state.json", '"champion": 2', '"champion": 1'),
        "state.json: says champion 1, previous 1, but the history leads to champion 2, previous 1",
        None,
    ),
    (lambda m: (m.path / "state.json").write_text("{}"), "state.json: format is missing", None),
    (
        lambda m: shutil.rmtree(m.version_path(2)),
        "state.json: the champion, version 2, is not there",
        2,
    ),
    (lambda m: m.recipe_path.write_text("[drift]\npsi = -1\n"), "must be at least 0", None),
    (
        lambda m: (m.path / "config.pbtxt").write_text('name: "other"'),
        "config.pbtxt is named 'other' but its directory 'airtime'",
        None,
    ),
    (
        lambda m: (m.path / "config.pbtxt").write_text('input { name: "z" }'),
        "config.pbtxt: input 'z' is none of model.onnx",
        1,
    ),
]


@pytest.mark.parametrize(("damage", "problem", "version"), DAMAGE)
def test_damage_is_found_and_ends_with_three(
    directory: ModelDirectory,
    damage: Callable[[ModelDirectory], Any],
    problem: str,
    version: int | None,
) -> None:
    damage(directory)
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    result = run("verify", directory.path.parent)
    assert result.exit_code == 3
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert any(problem in line for line in errors), errors
    wrong = json.loads(run("verify", directory.path.parent, "--json").stdout)["wrong"]
    assert any(problem in each["text"] and each["version"] == version for each in wrong)
    after = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    assert after == before


def test_each_thing_is_one_line(directory: ModelDirectory) -> None:
    for version in (1, 2):
        (directory.version_path(version) / "model.onnx").write_bytes(b"")
    directory.recipe_path.write_text("[nonsense]\n")
    assert len(run("verify", directory.path.parent).stderr.splitlines()) == 3


def test_a_directory_that_never_was_a_version_is_only_noted(directory: ModelDirectory) -> None:
    directory.version_path(7).mkdir()
    result = run("verify", directory.path.parent)
    assert result.exit_code == 0
    assert (
        result.stderr
        == f"note: {directory.version_path(7)}: has no manifest.json and is no version\n"
    )


def test_garbage_in_a_plain_repository_is_found(tmp_path: Path) -> None:
    models.write(tmp_path / "plain" / "1", b"garbage")
    result = run("verify", tmp_path)
    assert result.exit_code == 3
    assert "plain/1/model.onnx: not an ONNX model" in result.stderr


def test_one_model_can_be_looked_at_alone(directory: ModelDirectory) -> None:
    models.write(directory.path.parent / "plain" / "1", b"garbage")
    assert run("verify", directory.path.parent, "airtime").exit_code == 0
    assert run("verify", directory.path.parent, "plain").exit_code == 3
    result = run("verify", directory.path.parent, "airtme")
    assert result.exit_code == 1
    assert "no model 'airtme'" in result.stderr and "there are airtime, plain" in result.stderr


def test_what_cannot_be_read_ends_with_one_unless_something_is_wrong(
    directory: ModelDirectory,
) -> None:
    (directory.path / "history.jsonl").unlink()
    (directory.path / "history.jsonl").mkdir()
    result = run("verify", directory.path.parent)
    assert result.exit_code == 1
    assert result.stderr.startswith("cannot look: ") and "history.jsonl" in result.stderr
    models.write(directory.path.parent / "plain" / "1", b"garbage")
    result = run("verify", directory.path.parent)
    assert result.exit_code == 3
    assert run("verify", directory.path.parent / "nowhere").exit_code == 1


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob"):
        signing.new_key(path / name)
    return path


def sign(model: ModelDirectory, version: int, key: Path) -> None:
    path = model.version_path(version)
    signature = SigningKey.load(key).sign((path / "manifest.json").read_bytes())
    (path / "manifest.sig").write_bytes(signature)


def test_signatures_are_checked_as_far_as_that_can_be(
    directory: ModelDirectory, keys: Path
) -> None:
    everything = directory.path.parent
    trust = ("--trusted-key", keys / "ann.pub")
    sign(directory, 1, keys / "ann")
    result = run("verify", everything)
    assert result.stdout == "ok: airtime: 2 versions, champion 2, 1 signed\n"
    assert run("verify", everything, *trust).exit_code == 0
    result = run("verify", everything, *trust, "--require-signature")
    assert result.exit_code == 3
    assert "2: is not signed: it has no manifest.sig" in result.stderr
    sign(directory, 2, keys / "bob")
    assert run("verify", everything).exit_code == 0
    result = run("verify", everything, *trust)
    assert result.exit_code == 3
    assert "2/manifest.sig: is by the key SHA256:" in result.stderr
    result = run("verify", everything, *trust, "--trusted-key", keys / "bob.pub")
    assert result.exit_code == 0
    shutil.copy(directory.version_path(1) / "manifest.sig", directory.version_path(2))
    result = run("verify", everything)
    assert result.exit_code == 3
    assert "2/manifest.sig: is not valid" in result.stderr


def test_a_signature_is_required_of_somebody(directory: ModelDirectory) -> None:
    assert run("verify", directory.path.parent, "--require-signature").exit_code == 2


def test_a_plain_repository_cannot_be_signed(tmp_path: Path, keys: Path) -> None:
    models.write(tmp_path / "plain" / "1", models.scaled(1.0))
    options = ("--trusted-key", keys / "ann.pub", "--require-signature")
    result = run("verify", tmp_path, *options)
    assert result.exit_code == 3
    assert "plain: its versions have no manifest to be signed" in result.stderr


def test_without_the_package_signatures_are_said_to_be_unchecked(
    directory: ModelDirectory, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(directory, 1, keys / "ann")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    result = run("verify", directory.path.parent)
    assert result.exit_code == 0
    assert "the signatures of 1 versions were not checked" in result.stderr
    result = run("verify", directory.path.parent, "--trusted-key", keys / "ann.pub")
    assert result.exit_code == 1
    assert "pip install 'trimtab[signing]'" in result.stderr
