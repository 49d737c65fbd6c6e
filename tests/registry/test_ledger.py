import errno
from collections.abc import Iterable
from pathlib import Path

import pytest

from trimtab.registry.history import Draft, HistoryEntry, HistoryFile
from trimtab.registry.ledger import Ledger
from trimtab.registry.state import State

DRAFT = Draft("promoted", 1, "a", "r", {}, None)
SECOND = Draft("promoted", 2, "a", "r", {}, None)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, lambda: 1)


@pytest.fixture
def full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time that the history is written to, the disk is full."""
    append = HistoryFile.append
    calls: list[None] = []

    def fails_first(file: HistoryFile, entries: Iterable[HistoryEntry]) -> None:
        calls.append(None)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, entries)

    monkeypatch.setattr(HistoryFile, "append", fails_first)


@pytest.mark.usefixtures("full_once")
def test_a_second_change_under_one_lock_takes_the_first_one_s_entries_along(ledger: Ledger) -> None:
    with ledger.writing() as writer:
        assert writer.commit([DRAFT], published=1) == State(1, 1)
        assert writer.commit([SECOND, DRAFT]) == State(3, 1, 2)
    assert ledger.history().valid
    assert len(ledger.history().entries) == 3


@pytest.mark.usefixtures("full_once")
def test_a_record_under_the_same_lock_takes_the_change_s_entries_along(ledger: Ledger) -> None:
    with ledger.writing() as writer:
        writer.commit([DRAFT])
        writer.record(Draft("drift", 1, "a", "r", {}, None))
    assert [entry.kind for entry in ledger.history().entries] == ["promoted", "drift"]
    assert ledger.history().valid


@pytest.mark.usefixtures("full_once")
def test_the_next_writer_says_what_it_mended(ledger: Ledger, tmp_path: Path) -> None:
    with ledger.writing() as writer:
        writer.commit([DRAFT])
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b"torn")
    with ledger.writing() as writer:
        assert writer.repairs == [
            "history.jsonl: cut a torn last line of 4 bytes",
            "history.jsonl: added entry 1 (promoted, version 1), which state.json had",
        ]
    with ledger.writing() as writer:
        assert writer.repairs == []


def test_readers_see_the_entries_of_a_change_before_they_are_copied(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    append = HistoryFile.append

    def look_first(file: HistoryFile, entries: Iterable[HistoryEntry]) -> None:
        seen.append((ledger.read(), ledger.history()))
        append(file, entries)

    monkeypatch.setattr(HistoryFile, "append", look_first)
    with ledger.writing() as writer:
        writer.commit([DRAFT])
    ((stored, history),) = seen
    assert stored is not None
    assert stored.state == State(1, 1)
    assert history == ledger.history()


def test_what_is_still_to_be_removed_outlives_other_changes(ledger: Ledger) -> None:
    with ledger.writing() as writer:
        writer.commit([Draft("removed", 1, "a", "r", {}, None)], published=3, removing=1)
        writer.commit([Draft("removed", 2, "a", "r", {}, None)], removing=2)
        writer.commit([SECOND], published=1)
        assert (writer.stored.removing, writer.stored.published) == ((1, 2), 3)
        writer.removed(1)
    stored = ledger.read()
    assert stored is not None
    assert stored.removing == (2,)
    assert [entry.kind for entry in stored.entries] == ["promoted"], "they guard the history's end"
    assert ledger.history().valid


def test_an_entry_is_found_wherever_it_is(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = {"x": '"version":1,"hash":"', "version": 1, "hash": ""}
    with ledger.writing() as writer:
        writer.record(Draft("drift", 1, "a", "r", nested, None))
        for version in range(1, 12):
            writer.record(Draft("tested", version, "a", "r", {}, None))
    found = ledger.find("tested", 1)
    assert found is not None and found.sequence == 2
    assert ledger.find("tested", 12) is None
    with monkeypatch.context() as patch, ledger.writing() as writer:
        patch.setattr(HistoryFile, "append", lambda file, entries: None)
        writer.commit([SECOND])
    found = ledger.find("promoted", 2)
    assert found is not None and found.sequence == 13
    (tmp_path / "state.json").write_text("{")
    assert ledger.find("tested", 1) is not None
    (tmp_path / "history.jsonl").unlink()
    assert ledger.find("tested", 1) is None
