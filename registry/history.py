"""history.jsonl: what happened to a model, when, by whom and why. Nothing is ever taken out.

Every line carries the hash of the line before, so that a line that was changed, removed or put in
later is noticed; only a cut at the end is not visible in this file (state.json knows better).
The order is that of `sequence`: the times are what the clock said, and clocks go back.

A line is in the file when its newline is. What follows the last newline is the trace of a writer
that died; it was never acknowledged to anybody, readers pass over it and the next writer cuts it.
Callers hold the model's lock while they write; readers need none.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import durable
from .documents import Document, encode

HISTORY_NAME = "history.jsonl"
CHAMPION_CHANGES = ("promoted", "rolled_back")

_BEFORE_FIRST = "0" * 64
_TAIL_BYTES = 1 << 16

# Of each history, what `_mark` said of it as this process last saw all of it on the disk. To sync
# a file that nothing was written to since would wait for the disk all the same.
_synced: dict[Path, tuple[int, ...]] = {}


@dataclass(frozen=True)
class Draft:
    """What an entry is to say, before it has its place in the chain."""

    kind: str
    version: int  # 0: none
    actor: str
    reason: str
    evidence: Mapping[str, Any]
    event_time_ms: int | None  # None: the time of writing


@dataclass(frozen=True)
class HistoryEntry:
    """A line of the history."""

    sequence: int  # 1, 2, 3, ...
    time_ms: int  # wall clock
    event_time_ms: int  # the clock of the data, where there is one, else time_ms
    kind: str  # published, promoted, rolled_back, refused, ...
    version: int  # 0: none
    actor: str
    reason: str
    evidence: Mapping[str, Any]
    previous_hash: str  # of the entry before; 64 zeros in the first
    hash: str  # SHA-256 of the line without its last key, this one

    @classmethod
    def after(cls, previous: "HistoryEntry | None", draft: Draft, *, now_ms: int) -> "HistoryEntry":
        """The entry that follows. TypeError if the evidence has no JSON form."""
        entry = cls(
            sequence=previous.sequence + 1 if previous else 1,
            time_ms=now_ms,
            event_time_ms=now_ms if draft.event_time_ms is None else draft.event_time_ms,
            kind=draft.kind,
            version=draft.version,
            actor=draft.actor,
            reason=draft.reason,
            evidence=json.loads(encode(draft.evidence)),
            previous_hash=previous.hash if previous else _BEFORE_FIRST,
            hash="",
        )
        return replace(entry, hash=entry.computed_hash())

    @classmethod
    def from_document(cls, document: Document) -> "HistoryEntry":
        """ValueError if a key is missing; whether the hash is right is another question."""
        return cls(
            sequence=document.integer("sequence"),
            time_ms=document.integer("time_ms"),
            event_time_ms=document.integer("event_time_ms"),
            kind=document.text("kind"),
            version=document.integer("version"),
            actor=document.text("actor"),
            reason=document.text("reason"),
            evidence=document.mapping("evidence"),
            previous_hash=document.text("previous_hash"),
            hash=document.text("hash"),
        )

    def computed_hash(self) -> str:
        """What `hash` is in an entry that nobody altered."""
        return hashlib.sha256(self._body()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def to_line(self) -> bytes:
        return self._body().removesuffix(b"}") + b',"hash":' + encode(self.hash) + b"}\n"

    def _body(self) -> bytes:
        fields = self.to_dict()
        del fields["hash"]
        return encode(fields)


@dataclass(frozen=True)
class ChainBreak:
    """A place where the history is not what was written."""

    line: int  # of the history, from 1; 0: not of one line
    problem: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}" if self.line else self.problem


@dataclass(frozen=True)
class History:
    """All of a model's history, oldest first."""

    entries: tuple[HistoryEntry, ...]
    breaks: tuple[ChainBreak, ...] = ()  # each damage once, in the order of the lines

    @property
    def valid(self) -> bool:
        """Whether the chain of hashes holds."""
        return not self.breaks

    @property
    def error(self) -> str:
        """The first thing that is wrong; empty if nothing is."""
        return str(self.breaks[0]) if self.breaks else ""

    def champion_at(self, time_ms: int) -> HistoryEntry | None:
        """What made the version champion that was champion at a time of the wall clock.

        Its `version` is that champion. None: there was none yet. Where the clock went back, a time
        came twice; the later one is meant.
        """
        return next(
            (
                entry
                for entry in reversed(self.entries)
                if entry.kind in CHAMPION_CHANGES and entry.time_ms <= time_ms
            ),
            None,
        )


class HistoryFile:
    """The file itself. Whoever calls a method that writes holds the model's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> "list[HistoryEntry | str]":
        """Line by line, the entry or why it is none."""
        return [_parse(line) for line in self._lines()]

    def find(self, kind: str, version: int) -> HistoryEntry | None:
        """The first such entry. Parses no other version's lines: some 1 ms a megabyte."""
        mark = b'"version":%d,"hash":"' % version  # how an entry's line ends
        for line in self._lines():
            if mark in line:
                entry = _parse(line)
                if isinstance(entry, HistoryEntry) and (entry.kind, entry.version) == (
                    kind,
                    version,
                ):
                    return entry
        return None

    def _lines(self) -> list[bytes]:
        try:
            return self._path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []

    def since(self, sequence: int) -> list[HistoryEntry]:
        """The entries after that one, without reading much of what is before them. What is no entry
        is left out, and nobody looks whether they follow each other."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        try:
            return _later_than(sequence, fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def repair(self) -> tuple[HistoryEntry | None, int]:
        """Cuts a torn last line; returns the last entry and the bytes that were cut.

        Afterwards all that the file holds is on the disk.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None, 0
        try:
            size = os.fstat(fd).st_size
            last, end = _find_last(fd, size)
            if end < size:
                os.ftruncate(fd, end)
            self._sync(fd)
            return last, size - end
        finally:
            os.close(fd)

    def append(self, entries: Iterable[HistoryEntry]) -> None:
        """Adds entries durably, all of them or, if OSError is raised, none."""
        data = b"".join(entry.to_line() for entry in entries)
        created = not self._path.exists()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o666)
        try:
            size = os.fstat(fd).st_size
            try:
                durable.write_all(fd, data)
                self._sync(fd)
                if created:
                    durable.sync_directory(self._path.parent)
            except OSError:
                _synced.pop(self._path, None)
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def _sync(self, fd: int) -> None:
        """Puts on the disk what is not there, as far as this process knows."""
        mark = _mark(fd)
        if _synced.get(self._path) != mark:
            os.fsync(fd)
            _synced[self._path] = mark


def _mark(fd: int) -> tuple[int, ...]:
    """Is another one after every write to the file, and of every other file."""
    about = os.fstat(fd)
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _find_last(fd: int, size: int) -> tuple[HistoryEntry | None, int]:
    """The last readable entry, and where the last whole line ends.

    Reads backwards, since histories grow long. Whole lines that are no entries are not ours to
    remove: they are passed over here, and make the history invalid for its readers.
    """
    window = _TAIL_BYTES
    while True:
        start = max(0, size - window)
        data = os.pread(fd, size - start, start)
        lines = data.split(b"\n")
        end = size - len(lines.pop())
        for line in reversed(lines if start == 0 else lines[1:]):
            with contextlib.suppress(ValueError):
                return HistoryEntry.from_document(Document.parse(line)), end
        if start == 0:
            return None, end
        window *= 2


def _later_than(sequence: int, fd: int, size: int) -> list[HistoryEntry]:
    """Reads backwards, so many bytes as it takes."""
    window = _TAIL_BYTES
    while True:
        start = max(0, size - window)
        lines = os.pread(fd, size - start, start).split(b"\n")[:-1]
        found: list[HistoryEntry] = []
        for line in reversed(lines if start == 0 else lines[1:]):
            entry = _parse(line)
            if not isinstance(entry, HistoryEntry):
                continue
            if entry.sequence <= sequence:
                return found[::-1]
            found.append(entry)
        if start == 0:
            return found[::-1]
        window *= 2


def _parse(line: bytes) -> HistoryEntry | str:
    try:
        return HistoryEntry.from_document(Document.parse(line))
    except ValueError as problem:
        return str(problem)


def check_chain(lines: Iterable[HistoryEntry | str]) -> list[ChainBreak]:
    """Where the chain breaks: every damage once, what follows it being judged from there on.

    `lines` as `HistoryFile.read` gives them.
    """
    breaks = []
    previous: HistoryEntry | None = None
    known = True  # whether `previous` is the entry before
    for number, line in enumerate(lines, 1):
        if isinstance(line, str):
            breaks.append(ChainBreak(number, f"not an entry: {line}"))
            known = False
            continue
        if problem := _problem(line, previous, known=known):
            breaks.append(ChainBreak(number, problem))
        previous, known = line, True
    return breaks


def _problem(entry: HistoryEntry, previous: HistoryEntry | None, *, known: bool) -> str:
    sequence = previous.sequence + 1 if previous else 1
    if known and entry.sequence != sequence:
        return f"entry {sequence} is missing: entry {entry.sequence} is in its place"
    if entry.hash != entry.computed_hash():
        return f"entry {entry.sequence} was altered: its hash is not that of its contents"
    if known and entry.previous_hash != (previous.hash if previous else _BEFORE_FIRST):
        return f"entry {entry.sequence} does not follow the one before: the hashes differ"
    return ""
