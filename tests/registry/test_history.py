import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.registry.history import Draft, HistoryEntry, HistoryFile, check_chain


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
    assert file.read() == (entries, "")
    assert check_chain(entries) == ""


def test_a_history_that_is_not_there_is_empty(file: HistoryFile) -> None:
    assert file.read() == ([], "")
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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: [*e[:2], replace(e[2], reason="forged"), *e[3:]], "entry 3 was altered"),
        (lambda e: e[1:], "entry 1 is missing"),
        (lambda e: [*e[:2], *e[3:]], "entry 3 is missing: entry 4 is in its place"),
        (lambda e: [*e[:2], *chain(5, reason="other")[2:]], "entry 3 does not follow"),
        (lambda e: [e[1], e[0], *e[2:]], "entry 1 is missing"),
    ],
)
def test_a_change_anywhere_breaks_the_chain(
    change: Callable[[list[HistoryEntry]], list[HistoryEntry]], problem: str
) -> None:
    assert check_chain(change(chain(5))).startswith(problem)


def test_a_line_torn_at_any_byte_is_passed_over_then_cut(file: HistoryFile, path: Path) -> None:
    entries = chain(3)
    file.append(entries[:2])
    whole = path.read_bytes()
    last = entries[2].to_line()
    for length in range(1, len(last)):
        path.write_bytes(whole + last[:length])
        assert file.read() == (entries[:2], "")
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
    assert file.read() == (entries, "line 2: sequence is not an integer")
    path.write_bytes(entries[0].to_line() + b"not json\n" * 20_000)
    before = path.read_bytes()
    assert file.repair() == (entries[0], 0)
    assert path.read_bytes() == before


def test_a_file_without_any_entry_has_no_last_one(file: HistoryFile, path: Path) -> None:
    for text, torn in itertools.product((b"", b"\n\n", b"x\n"), (b"", b"torn")):
        path.write_bytes(text + torn)
        assert file.repair() == (None, len(torn))
        assert path.read_bytes() == text
