import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.registry.history import (
    ChainBreak,
    Draft,
    History,
    HistoryEntry,
    HistoryFile,
    check_chain,
)


def chain(length: int, *, reason: str = "r") -> list[HistoryEntry]:
    entries: list[HistoryEntry] = []
    for number in range(length):
        draft = Draft("drift", number, "server", reason, {"psi": 0.3, "feature": "Δ"}, None)
        entries.append(
            HistoryEntry.after(entries[-1] if entries else None, draft, now_ms=1000 + number)
        )
    return entries


@pytest.fixture
def file(tmp_path: Path) -> HistoryFile:
    return HistoryFile(tmp_path / "history.jsonl")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def test_what_was_appended_is_read_back_and_the_chain_holds(file: HistoryFile) -> None:
    entries = chain(5)
    file.append(entries[:2])
    file.append(entries[2:])
    assert file.read() == entries
    assert check_chain(file.read()) == []


@pytest.mark.parametrize("length", [0, 1, 40])
def test_what_came_since_is_read_from_the_end(file: HistoryFile, path: Path, length: int) -> None:
    entries = chain(length, reason="r" * 500)
    file.append(entries)
    for sequence in (-1, 0, 1, length // 2, length - 1, length, length + 5):
        assert file.since(sequence) == [each for each in entries if each.sequence > sequence]
    with path.open("ab") as torn:
        torn.write(b'{"actor":"a')
    assert file.since(length // 2) == [each for each in entries if each.sequence > length // 2]


def test_a_history_that_is_not_there_is_empty(file: HistoryFile) -> None:
    assert file.read() == []
    assert file.since(0) == []
    assert file.repair() == (None, 0)


def test_the_event_time_is_the_time_of_writing_unless_it_is_given() -> None:
    draft = Draft("drift", 1, "a", "r", {}, None)
    assert HistoryEntry.after(None, draft, now_ms=7).event_time_ms == 7
    assert HistoryEntry.after(None, replace(draft, event_time_ms=3), now_ms=7).event_time_ms == 3


def test_a_hash_can_be_checked_without_this_program() -> None:
    line = chain(2)[1].to_line().decode()
    match = re.fullmatch(r'(.*),"hash":"([0-9a-f]{64})"}\n', line)
    assert match
    assert hashlib.sha256(f"{match[1]}}}".encode()).hexdigest() == match[2]


OTHER = chain(5, reason="other")


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (
            lambda e: [*e[:2], replace(e[2], reason="forged"), *e[3:]],
            ["line 3: entry 3 was altered: its hash is not that of its contents"],
        ),
        (lambda e: e[1:], ["line 1: entry 1 is missing: entry 2 is in its place"]),
        (lambda e: [*e[:2], *e[3:]], ["line 3: entry 3 is missing: entry 4 is in its place"]),
        (
            lambda e: [*e[:2], *OTHER[2:]],
            ["line 3: entry 3 does not follow the one before: the hashes differ"],
        ),
        (
            lambda e: [*e[:2], OTHER[2], *e[3:]],
            [
                "line 3: entry 3 does not follow the one before: the hashes differ",
                "line 4: entry 4 does not follow the one before: the hashes differ",
            ],
        ),
        (
            lambda e: [e[1], e[0], *e[2:]],
            [
                "line 1: entry 1 is missing: entry 2 is in its place",
                "line 2: entry 3 is missing: entry 1 is in its place",
                "line 3: entry 2 is missing: entry 3 is in its place",
            ],
        ),
        (
            lambda e: [e[0], "actor is missing", e[2], replace(e[3], version=9), e[4]],
            [
                "line 2: not an entry: actor is missing",
                "line 4: entry 4 was altered: its hash is not that of its contents",
            ],
        ),
    ],
)
def test_each_damage_is_said_once_and_where_it_is(
    change: Callable[[list[HistoryEntry]], list[HistoryEntry | str]], problems: list[str]
) -> None:
    assert [str(found) for found in check_chain(change(chain(5)))] == problems


def test_a_history_with_a_break_is_not_valid_and_says_the_first() -> None:
    assert (History(()).valid, History(()).error) == (True, "")
    broken = History((), (ChainBreak(3, "entry 3 was altered"), ChainBreak(0, "gone")))
    assert (broken.valid, broken.error) == (False, "line 3: entry 3 was altered")
    assert str(broken.breaks[1]) == "gone"


def changes(*steps: tuple[int, str, int]) -> History:
    entries: list[HistoryEntry] = []
    for time_ms, kind, version in steps:
        draft = Draft(kind, version, "a", "r", {}, 0)
        entries.append(HistoryEntry.after(entries[-1] if entries else None, draft, now_ms=time_ms))
    return History(tuple(entries))


def champion_at(history: History, time_ms: int) -> int | None:
    entry = history.champion_at(time_ms)
    return entry.version if entry else None


def test_who_was_champion_at_a_time() -> None:
    history = changes(
        (10, "published", 1),
        (20, "promoted", 1),
        (30, "drift", 7),
        (40, "promoted", 2),
        (50, "blocked", 2),
        (60, "rolled_back", 1),
        (70, "removed", 2),
    )
    times = (0, 19, 20, 39, 40, 59, 60, 1000)
    assert [champion_at(history, time) for time in times] == [None, None, 1, 1, 2, 2, 1, 1]
    entry = history.champion_at(59)
    assert entry is not None and (entry.kind, entry.sequence) == ("promoted", 4)


def test_a_time_that_came_twice_is_the_later_one() -> None:
    history = changes((100, "promoted", 1), (200, "promoted", 2), (50, "promoted", 3))
    assert [champion_at(history, time) for time in (49, 50, 150, 300)] == [None, 3, 3, 3]


def test_a_line_torn_at_any_byte_is_passed_over_then_cut(file: HistoryFile, path: Path) -> None:
    entries = chain(3)
    file.append(entries[:2])
    whole = path.read_bytes()
    last = entries[2].to_line()
    for length in range(1, len(last)):
        path.write_bytes(whole + last[:length])
        assert file.read() == entries[:2]
        assert file.repair() == (entries[1], length)
        assert path.read_bytes() == whole


def test_the_last_entry_is_found_behind_any_length_of_lines(file: HistoryFile, path: Path) -> None:
    for size in (10, 65_400, 65_536, 300_000):
        path.unlink(missing_ok=True)
        entries = [*chain(1), *chain(2, reason="x" * size)]
        file.append(entries)
        assert file.repair() == (entries[-1], 0)


def test_a_whole_line_that_is_no_entry_is_kept_and_named(file: HistoryFile, path: Path) -> None:
    entries = chain(2)
    path.write_bytes(entries[0].to_line() + b'{"sequence":"two"}\n' + entries[1].to_line())
    assert file.read() == [entries[0], "sequence is not an integer", entries[1]]
    path.write_bytes(entries[0].to_line() + b"not json\n" * 20_000)
    before = path.read_bytes()
    assert file.repair() == (entries[0], 0)
    assert path.read_bytes() == before


def test_a_file_without_any_entry_has_no_last_one(file: HistoryFile, path: Path) -> None:
    for text, torn in itertools.product((b"", b"\n\n", b"x\n"), (b"", b"torn")):
        path.write_bytes(text + torn)
        assert file.repair() == (None, len(torn))
        assert path.read_bytes() == text
