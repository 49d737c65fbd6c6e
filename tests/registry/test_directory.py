import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import (
    InvalidNameError,
    InvalidStateError,
    InvalidVersionError,
    NoPreviousError,
    RevisionConflictError,
    VersionNotFoundError,
)
from trimtab.registry.state import CHANGES, State

Publish = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


def kinds(model: ModelDirectory) -> list[tuple[str, int]]:
    history = model.history()
    assert history.valid, history.error
    return [(entry.kind, entry.version) for entry in history.entries]


# Registry


def test_models_are_the_visible_directories_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", ".trimtab", "has space", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").touch()
    assert Registry(tmp_path).models() == ["a", "b"]


def test_a_model_that_is_elsewhere_may_be_linked(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "models/a").symlink_to("../elsewhere")
    assert Registry(tmp_path / "models").models() == ["a"]


def test_names_that_are_no_paths_of_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        Registry(tmp_path).model("../airtime")
    with pytest.raises(InvalidNameError):
        Registry(tmp_path).data_path(".trimtab")
    assert Registry(tmp_path).data_path("airtime") == tmp_path / ".trimtab/airtime"


# versions


def test_a_model_that_is_not_there_has_nothing(model: ModelDirectory) -> None:
    assert (model.name, model.versions(), model.state()) == ("airtime", [], State())
    assert not model.is_managed()
    assert model.history().entries == ()
    assert model.recover() == []
    with pytest.raises(VersionNotFoundError, match="model 'airtime' has no version 1"):
        model.manifest(1)
    assert not model.path.exists()


def test_only_canonical_positive_integers_are_versions(model: ModelDirectory) -> None:
    for name in ("1", "10", "9", "0", "01", "-1", "+2", "1.0", "٣", "x", "9" * 19):
        (model.path / name).mkdir(parents=True)
    (model.path / "2").touch()
    assert model.version_directories() == [1, 9, 10]


def test_a_plain_triton_layout_is_unmanaged_and_left_alone(model: ModelDirectory) -> None:
    for version in (1, 3):
        model.version_path(version).mkdir(parents=True)
        (model.version_path(version) / "model.onnx").write_bytes(b"onnx")
    model.version_path(4).mkdir()
    assert not model.is_managed()
    assert model.versions() == [1, 3]
    assert model.state() == State(revision=0, champion=None, previous=None)
    assert model.recover() == []
    with pytest.raises(InvalidVersionError, match=r"manifest\.json: missing"):
        model.promote(1, **WHO)
    assert sorted(path.name for path in model.path.iterdir()) == ["1", "3", "4"]


def test_a_policy_file_beside_plain_versions_leaves_them_served(model: ModelDirectory) -> None:
    model.version_path(1).mkdir(parents=True)
    (model.version_path(1) / "model.onnx").write_bytes(b"onnx")
    model.recipe_path.write_text("[drift]\npsi = 0.1\n")
    assert not model.is_managed()
    assert model.versions() == [1]


def test_events_of_an_unmanaged_model_are_recorded_and_leave_it_unmanaged(
    model: ModelDirectory,
) -> None:
    model.version_path(1).mkdir(parents=True)
    (model.version_path(1) / "model.onnx").write_bytes(b"onnx")
    model.record("drift", version=1, **WHO)
    assert model.recover() == []
    assert not model.is_managed()
    assert kinds(model) == [("drift", 1)]


def test_a_recipe_alone_makes_a_model_managed(model: ModelDirectory) -> None:
    model.path.mkdir()
    model.recipe_path.touch()
    assert model.is_managed()
    assert model.versions() == []


def test_once_managed_a_directory_without_manifest_is_no_version(
    model: ModelDirectory, publish: Publish
) -> None:
    model.version_path(1).mkdir(parents=True)
    (model.version_path(1) / "model.onnx").write_bytes(b"onnx")
    assert publish(model) == 2
    assert model.is_managed()
    assert model.versions() == [2]
    assert model.version_directories() == [1, 2]


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "\udc80"])
def test_an_unreadable_manifest_is_named_and_its_directory_no_version(
    model: ModelDirectory, publish: Publish, text: str
) -> None:
    publish(model)
    path = model.version_path(1) / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert model.versions() == []
    with pytest.raises(InvalidVersionError, match=str(path)):
        model.manifest(1)


# verify


def test_a_published_version_verifies(model: ModelDirectory, publish: Publish) -> None:
    publish(model, files={"model.onnx": b"onnx", "report.json": b"{}", "empty": b""})
    assert set(model.verify(1).files) == {"model.onnx", "report.json", "empty"}


def _flip(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"0nnx")


def _shorten(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"on")


def _remove(directory: Path) -> None:
    (directory / "model.onnx").unlink()


def _link(directory: Path) -> None:
    (directory / "model.onnx").rename(directory.parent / "real")
    (directory / "model.onnx").symlink_to("../real")


def _link_manifest(directory: Path) -> None:
    (directory / "manifest.json").rename(directory.parent / "real")
    (directory / "manifest.json").symlink_to("../real")


def _link_directory(directory: Path) -> None:
    directory.rename(directory.parent / "real")
    directory.symlink_to("real")


def _add(directory: Path) -> None:
    (directory / "model.onnx.data").write_bytes(b"weights")


def _add_link(directory: Path) -> None:
    (directory / "weights").symlink_to("/etc/passwd")


def _pipe(directory: Path) -> None:
    (directory / "model.onnx").unlink()
    os.mkfifo(directory / "model.onnx")


def _nest(directory: Path) -> None:
    (directory / "model.onnx").unlink()
    (directory / "model.onnx").mkdir()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_flip, r"1/model\.onnx: its SHA-256 is not the one in the manifest"),
        (_shorten, r"1/model\.onnx: has 2 bytes, the manifest says 4"),
        (_remove, r"1/model\.onnx: missing"),
        (_link, r"1/model\.onnx: not a regular file"),
        (_link_manifest, r"1/manifest\.json: not a regular file"),
        (_link_directory, r"1: a symbolic link"),
        (_add, r"1/model\.onnx\.data: not in the manifest"),
        (_add_link, r"1/weights: not in the manifest"),
        (_pipe, r"1/model\.onnx: not a regular file"),
        (_nest, r"1/model\.onnx: not a regular file"),
    ],
)
def test_any_damage_to_a_version_is_named(
    model: ModelDirectory, publish: Publish, damage: Callable[[Path], None], problem: str
) -> None:
    publish(model)
    damage(model.version_path(1))
    with pytest.raises(InvalidVersionError, match=problem):
        model.verify(1)


def test_a_file_that_cannot_be_read_is_damage(
    model: ModelDirectory, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model)

    def broken(file: object, digest: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "model.onnx")

    monkeypatch.setattr("hashlib.file_digest", broken)
    with pytest.raises(InvalidVersionError, match="Input/output error"):
        model.verify(1)


# promote and rollback


def test_the_first_version_becomes_champion_later_ones_wait(
    model: ModelDirectory, publish: Publish
) -> None:
    assert [publish(model), publish(model)] == [1, 2]
    assert model.state() == State(revision=1, champion=1)
    assert kinds(model) == [("published", 1), ("promoted", 1), ("published", 2)]


def test_promote_and_rollback_move_the_champion_and_say_who_and_why(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    evidence = {"gates": [{"name": "parity", "verdict": "pass"}]}
    assert model.promote(2, evidence=evidence, event_time_ms=5, **WHO) == State(2, 2, 1)
    assert model.rollback(actor="eve", reason="worse") == State(3, 1, 2)
    promoted, rolled_back = model.history().entries[-2:]
    assert (promoted.kind, promoted.version, promoted.actor) == ("promoted", 2, "ada")
    assert (promoted.evidence, promoted.event_time_ms) == (evidence, 5)
    assert (rolled_back.kind, rolled_back.version) == ("rolled_back", 1)
    assert (rolled_back.actor, rolled_back.reason) == ("eve", "worse")


def test_promoting_the_champion_changes_and_records_nothing(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    model.promote(2, **WHO)
    before = kinds(model)
    assert model.promote(2, **WHO) == State(2, 2, 1)
    assert kinds(model) == before


def test_a_change_expecting_another_revision_is_refused(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    model.promote(2, expected_revision=1, **WHO)
    changes: list[Callable[[], State]] = [
        lambda: model.promote(1, expected_revision=1, **WHO),
        lambda: model.promote(2, expected_revision=1, **WHO),
        lambda: model.rollback(expected_revision=1, **WHO),
    ]
    for change in changes:
        with pytest.raises(RevisionConflictError, match="at revision 2, not at the exp") as raised:
            change()
        assert (raised.value.expected, raised.value.actual) == (1, 2)
    assert model.state() == State(2, 2, 1)


def test_only_what_is_a_version_can_be_promoted(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    model.version_path(7).mkdir()
    with pytest.raises(VersionNotFoundError):
        model.promote(9, **WHO)
    with pytest.raises(InvalidVersionError):
        model.promote(7, **WHO)
    assert model.state() == State(1, 1)


def test_a_rollback_needs_a_previous_champion_that_is_still_there(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    with pytest.raises(NoPreviousError, match="model 'airtime' has no previous champion"):
        model.rollback(**WHO)
    publish(model)
    model.promote(2, **WHO)
    shutil.rmtree(model.version_path(1))
    with pytest.raises(VersionNotFoundError):
        model.rollback(**WHO)
    assert model.state() == State(2, 2, 1)


# history


def test_record_adds_an_entry_and_returns_it(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    entry = model.record("drift", version=1, evidence={"psi": 0.31}, event_time_ms=9, **WHO)
    assert model.history().entries[-1] == entry
    assert (entry.sequence, entry.kind, entry.evidence) == (3, "drift", {"psi": 0.31})
    assert model.state() == State(1, 1)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_cannot_be_recorded_without_being_made(model: ModelDirectory, kind: str) -> None:
    with pytest.raises(ValueError, match="recorded by the change itself"):
        model.record(kind, **WHO)


def test_evidence_without_json_form_records_nothing(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    before = kinds(model)
    with pytest.raises(TypeError):
        model.record("drift", evidence={"x": object()}, **WHO)
    with pytest.raises(TypeError):
        model.promote(2, evidence={"x": object()}, **WHO)
    assert kinds(model) == before
    assert model.state() == State(1, 1)


def test_a_published_entry_pins_the_manifest(model: ModelDirectory, publish: Publish) -> None:
    publish(model, event_time_ms=77)
    published = model.history().entries[0]
    assert list(published.evidence) == ["manifest_sha256"]
    assert (published.actor, published.reason) == ("trainer", "drift of distance")
    assert published.event_time_ms == 77


def test_a_clock_that_goes_back_changes_times_not_the_order(
    model: ModelDirectory, publish: Publish, clock: Any
) -> None:
    publish(model)
    clock.now_ms -= 3_600_000
    publish(model)
    model.promote(2, **WHO)
    clock.now_ms += 1
    model.record("drift", **WHO)
    history = model.history()
    assert history.valid
    assert [entry.sequence for entry in history.entries] == [1, 2, 3, 4, 5]
    assert history.entries[2].time_ms < history.entries[1].time_ms
    assert model.state() == State(2, 2, 1)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"actor":"ada"', '"actor":"eve"', "line 4: entry 4 was altered"),
        ('{"actor":"ada"', "{", "line 4: not an entry: not JSON"),
    ],
)
def test_a_forged_line_is_noticed_and_work_goes_on(
    model: ModelDirectory, publish: Publish, old: str, new: str, problem: str
) -> None:
    publish(model)
    publish(model)
    model.record("drift", **WHO)
    path = model.path / "history.jsonl"
    path.write_text(path.read_text().replace(old, new))
    model.promote(2, **WHO)
    history = model.history()
    assert not history.valid
    assert problem in history.error
    assert history.entries[-1].kind == "promoted"
    assert model.state() == State(2, 2, 1)


def test_a_history_exchanged_as_a_whole_is_noticed(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    publish(model)
    other = ModelDirectory(model.path.parent / "other")
    publish(other)
    publish(other)
    shutil.copy(other.path / "history.jsonl", model.path / "history.jsonl")
    history = model.history()
    assert not history.valid
    assert history.error == "entry 3 is another one in state.json"


def test_a_history_cut_before_the_latest_change_is_noticed(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    path = model.path / "history.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert model.history().error == "line 2: entry 2 is missing: entry 3 is in its place"
    path.unlink()
    assert not model.history().valid
    model.promote(2, **WHO)
    assert not model.history().valid
    assert model.state() == State(2, 2, 1)


# state.json damaged or gone


def test_a_damaged_state_is_refused_with_the_way_out(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    model.promote(2, **WHO)
    path = model.path / "state.json"
    path.write_text("{")
    for read in (model.state, model.recover, lambda: model.promote(1, **WHO)):
        with pytest.raises(InvalidStateError, match=r"state\.json: not JSON.*if you remove"):
            read()
    history = model.history()
    assert len(history.entries) == 4
    assert "state.json: not JSON" in history.error
    path.unlink()
    assert model.recover() == ["state.json: made anew from history.jsonl"]
    assert model.state() == State(2, 2, 1)
    assert kinds(model)[-1] == ("promoted", 2)
    assert publish(model) == 3


def test_a_lost_state_is_replayed_by_the_next_change(
    model: ModelDirectory, publish: Publish
) -> None:
    publish(model)
    publish(model)
    (model.path / "state.json").unlink()
    assert model.promote(2, **WHO) == State(2, 2, 1)


def test_state_json_is_for_people_too(model: ModelDirectory, publish: Publish) -> None:
    publish(model)
    document = json.loads((model.path / "state.json").read_text())
    assert document["champion"] == 1
    assert document["entries"][-1]["kind"] == "promoted"


def test_long_lived_objects_say_what_they_are(model: ModelDirectory) -> None:
    assert repr(model) == f"ModelDirectory('{model.path}')"
    assert repr(Registry(model.path.parent)) == f"Registry('{model.path.parent}')"
