"""Freezing, pinning, blocking, challenging, and what automatic changes may do then."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import (
    BlockedVersionError,
    FrozenModelError,
    NoPreviousError,
    RevisionConflictError,
    UnmanagedModelError,
    VersionInUseError,
    VersionNotFoundError,
)
from trimtab.registry.history import HistoryEntry
from trimtab.registry.state import State

Publish = Callable[..., int]
Change = Callable[[ModelDirectory], object]
WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


@pytest.fixture
def ready(model: ModelDirectory, publish: Publish) -> ModelDirectory:
    """Versions 1 to 4; 3 is champion, before it were 2 and 1."""
    for _ in range(4):
        publish(model)
    model.promote(2, **WHO)
    model.promote(3, **WHO)
    return model


def last(model: ModelDirectory) -> HistoryEntry:
    history = model.history()
    assert history.valid, history.error
    return history.entries[-1]


CHANGES: list[tuple[str, int, Change]] = [
    ("frozen", 0, lambda model: model.freeze(**WHO)),
    ("unfrozen", 0, lambda model: model.unfreeze(**WHO)),
    ("pinned", 1, lambda model: model.pin(1, **WHO)),
    ("unpinned", 1, lambda model: model.unpin(1, **WHO)),
    ("blocked", 4, lambda model: model.block(4, **WHO)),
    ("unblocked", 4, lambda model: model.unblock(4, **WHO)),
    ("challenged", 4, lambda model: model.challenge(4, **WHO)),
    ("unchallenged", 0, lambda model: model.unchallenge(**WHO)),
]


def test_every_decision_is_one_entry_and_no_revision(ready: ModelDirectory) -> None:
    revision = ready.state().revision
    length = len(ready.history().entries)
    for count, (kind, version, change) in enumerate(CHANGES, 1):
        state = change(ready)
        assert state == ready.state()
        entry = last(ready)
        assert (entry.kind, entry.version) == (kind, version)
        assert (entry.actor, entry.reason) == ("ada", "because")
        assert len(ready.history().entries) == length + count
        change(ready)
        assert len(ready.history().entries) == length + count, "nothing changed, nothing to tell"
    assert ready.state() == State(revision, 3, 2, (1,))


def test_a_decision_is_recorded_with_its_evidence_and_event_time(ready: ModelDirectory) -> None:
    ready.block(4, evidence={"psi": 0.4}, event_time_ms=77, actor="server", reason="bake failed")
    assert (last(ready).evidence, last(ready).event_time_ms) == ({"psi": 0.4}, 77)
    assert ready.state().blocked == {4: "bake failed"}


def test_another_reason_is_another_decision(ready: ModelDirectory) -> None:
    ready.freeze(actor="ada", reason="holidays")
    assert ready.freeze(actor="eve", reason="audit").frozen_reason == "audit"
    assert (last(ready).actor, last(ready).reason) == ("eve", "audit")


@pytest.mark.parametrize(("kind", "version", "change"), CHANGES)
def test_a_plain_layout_is_left_alone(
    model: ModelDirectory, kind: str, version: int, change: Change
) -> None:
    model.version_path(1).mkdir(parents=True)
    (model.version_path(1) / "model.onnx").write_bytes(b"onnx")
    expected = UnmanagedModelError if version != 4 else (UnmanagedModelError, VersionNotFoundError)
    if kind == "pinned":
        with pytest.raises(Exception, match=r"manifest\.json: missing"):
            change(model)
    else:
        with pytest.raises(expected):
            change(model)
    assert [path.name for path in model.path.iterdir()] == ["1"]


def test_only_what_is_there_can_be_set_aside(ready: ModelDirectory) -> None:
    for change in (ready.pin, ready.block, ready.challenge):
        with pytest.raises(VersionNotFoundError, match="no version 9"):
            change(9, **WHO)


def test_a_decision_may_expect_a_revision(ready: ModelDirectory) -> None:
    with pytest.raises(RevisionConflictError):
        ready.pin(1, expected_revision=2, **WHO)
    assert ready.pin(1, expected_revision=3, **WHO).pinned == {1}


def test_a_promotion_does_not_lose_to_a_decision_about_something_else(
    ready: ModelDirectory,
) -> None:
    revision = ready.state().revision
    ready.pin(1, **WHO)
    ready.freeze(**WHO)
    ready.challenge(4, **WHO)
    assert ready.promote(4, expected_revision=revision, **WHO).revision == revision + 1


def test_a_rollback_loses_to_a_block_of_where_it_was_to_go(ready: ModelDirectory) -> None:
    revision = ready.state().revision
    ready.block(2, **WHO)
    with pytest.raises(RevisionConflictError):
        ready.rollback(expected_revision=revision, **WHO)
    assert ready.rollback(**WHO) == State(revision + 2, 1, 3, blocked={2: "because"})


# automatic changes


def test_a_frozen_model_takes_no_automatic_change(ready: ModelDirectory) -> None:
    ready.freeze(actor="ada", reason="holidays")
    before = ready.history()
    for change in (lambda **who: ready.promote(4, **who), ready.rollback):
        with pytest.raises(FrozenModelError, match=r"'airtime' is frozen and .*: holidays"):
            change(automatic=True, **WHO)
    assert ready.history() == before
    assert ready.promote(4, **WHO).champion == 4, "a person may"
    assert ready.rollback(**WHO).champion == 3
    ready.unfreeze(**WHO)
    assert ready.promote(4, automatic=True, **WHO).champion == 4


def test_a_blocked_version_is_promoted_by_a_person_only_and_is_unblocked_by_that(
    ready: ModelDirectory, publish: Publish
) -> None:
    ready.block(4, actor="server", reason="bake failed: 3 % errors")
    with pytest.raises(BlockedVersionError, match=r"version 4 .* is blocked: bake failed: 3 %"):
        ready.promote(4, automatic=True, **WHO)
    assert ready.promote(4, **WHO).blocked == {}
    publish(ready)
    assert ready.promote(5, automatic=True, **WHO).previous == 4


def test_an_automatic_change_is_marked_in_the_history(ready: ModelDirectory) -> None:
    ready.promote(4, automatic=True, evidence={"gates": 3}, **WHO)
    assert last(ready).evidence == {"gates": 3, "automatic": True}
    ready.rollback(automatic=True, **WHO)
    assert last(ready).evidence == {"automatic": True}
    ready.promote(4, **WHO)
    assert last(ready).evidence == {}


def test_a_failed_bake_is_left_for_good(ready: ModelDirectory) -> None:
    """Blocked first, then left: whenever the process dies, no rollback leads to it again."""
    ready.promote(4, automatic=True, **WHO)
    assert ready.block(4, actor="server", reason="bake failed").champion == 4
    state = ready.rollback(automatic=True, actor="server", reason="bake failed")
    assert (state.champion, state.champions) == (3, (2, 1))
    with pytest.raises(NoPreviousError, match=r"version 4 is not among .* return to \(2, 1\)"):
        ready.rollback(to=4, **WHO)


def test_a_frozen_model_gets_no_first_champion_by_itself(
    model: ModelDirectory, publish: Publish
) -> None:
    model.path.mkdir()
    model.recipe_path.touch()
    model.freeze(**WHO)
    publish(model)
    assert (model.versions(), model.state().champion) == ([1], None)
    assert model.promote(1, **WHO).champion == 1


# rolling back further, and challengers


def test_a_rollback_may_go_further_back(ready: ModelDirectory) -> None:
    assert ready.rollback(to=1, **WHO) == State(4, 1, 3, (2,))
    assert (last(ready).kind, last(ready).version) == ("rolled_back", 1)
    assert ready.rollback(**WHO) == State(5, 3, 1, (2,)), "a second one undoes the first"
    for version in (3, 4, 9):
        with pytest.raises(NoPreviousError, match=rf"version {version} is not among .* \(1, 2\)"):
            ready.rollback(to=version, **WHO)


def test_a_challenger_is_neither_the_champion_nor_blocked(ready: ModelDirectory) -> None:
    with pytest.raises(VersionInUseError, match="version 3 of model 'airtime' is the champion"):
        ready.challenge(3, **WHO)
    ready.block(4, **WHO)
    with pytest.raises(BlockedVersionError):
        ready.challenge(4, **WHO)
    assert ready.challenge(1, **WHO).challenger == 1
    assert ready.challenge(2, **WHO).challenger == 2
    assert ready.promote(2, **WHO).challenger is None


# the file


def test_the_first_format_is_read_and_the_next_change_writes_the_second(
    ready: ModelDirectory,
) -> None:
    path = ready.path / "state.json"
    document = json.loads(path.read_text())
    old = ("revision", "champion", "previous", "published", "entries")
    path.write_text(json.dumps({"format": 1} | {key: document[key] for key in old}))
    assert ready.state() == State(3, 3, 2)
    assert ready.promote(4, **WHO) == State(4, 4, 3, (2,))
    assert json.loads(path.read_text())["format"] == 2
    assert last(ready).kind == "promoted"


def test_state_json_says_what_was_decided(ready: ModelDirectory) -> None:
    ready.freeze(**WHO)
    ready.pin(1, **WHO)
    ready.block(4, **WHO)
    document = json.loads((ready.path / "state.json").read_text())
    assert document["frozen"] is True
    assert document["pinned"] == [1]
    assert document["blocked"] == {"4": "because"}
    assert document["earlier"] == [1]
