"""The state and the history of one model, kept in step although they are two files.

A change of state and the entries that tell of it must both be there or neither, whenever the
process dies. So the entries travel inside state.json: replacing that one file is the change, and it
is atomic. Only then are the entries copied to the end of history.jsonl. A writer that dies between
the two leaves a history that lacks lines which state.json still has:

* readers add them to what they read, and so never see the gap;
* the next writer copies them before it does anything else, and so never overwrites them.

The other order, history first, would let a line tell of a change that never came to be. Entries
that change no state are simply appended.

A disk that is full when the entries are copied is therefore no failure of the change; a disk that
is full earlier leaves everything as it was. If state.json is gone, the next writer that needs it
replays the history.

Writers hold the lock file for some milliseconds; readers take no lock. Any number of threads and
processes may use a ledger of the same directory.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from . import durable
from .errors import InvalidStateError
from .history import (
    HISTORY_NAME,
    ChainBreak,
    Draft,
    History,
    HistoryEntry,
    HistoryFile,
    check_chain,
)
from .state import STATE_NAME, State, StoredState, replay

LOCK_NAME = ".lock"


class Ledger:
    """What is common to readers and writers. `clock_ms` is the wall clock."""

    def __init__(self, directory: Path, clock_ms: Callable[[], int]) -> None:
        self.lock_path = directory / LOCK_NAME
        self._state_path = directory / STATE_NAME
        self._history_file = HistoryFile(directory / HISTORY_NAME)
        self._clock_ms = clock_ms

    def read(self) -> StoredState | None:
        """None: there is no state.json. InvalidStateError: it cannot be read."""
        try:
            return StoredState.from_json(self._state_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InvalidStateError(
                f"{self._state_path}: {error} (if you remove the file, it is made anew from"
                f" {HISTORY_NAME})"
            ) from None

    def history(self) -> History:
        # The state first: entries that go to the file in between are then seen twice, not never.
        breaks: list[ChainBreak] = []
        latest: tuple[HistoryEntry, ...] = ()
        try:
            latest = (self.read() or StoredState()).entries
        except InvalidStateError as error:
            breaks.append(ChainBreak(0, str(error)))
        lines = self._history_file.read()
        last = next((line for line in reversed(lines) if isinstance(line, HistoryEntry)), None)
        lines += _later(latest, last)
        entries = tuple(line for line in lines if isinstance(line, HistoryEntry))
        breaks += check_chain(lines)
        if not breaks and not {entry.hash for entry in latest} <= {e.hash for e in entries}:
            sequence = latest[0].sequence
            breaks.append(ChainBreak(0, f"entry {sequence} is another one in {STATE_NAME}"))
        return History(entries, tuple(breaks))

    def since(self, sequence: int) -> list[HistoryEntry]:
        """The entries after that one. OSError."""
        latest: tuple[HistoryEntry, ...] = ()
        with contextlib.suppress(InvalidStateError):  # then the history alone tells
            latest = (self.read() or StoredState()).entries
        entries = self._history_file.since(sequence)
        last = entries[-1].sequence if entries else sequence
        return entries + [entry for entry in latest if entry.sequence > last]

    def find(self, kind: str, version: int) -> HistoryEntry | None:
        """The first such entry, without reading all the others; None also if nothing can be read."""
        with contextlib.suppress(InvalidStateError, OSError):
            for entry in (self.read() or StoredState()).entries:
                if (entry.kind, entry.version) == (kind, version):
                    return entry
        with contextlib.suppress(OSError):
            return self._history_file.find(kind, version)
        return None

    @contextlib.contextmanager
    def writing(self) -> Iterator["LedgerWriter"]:
        """Holds the lock; what a dead writer left undone is done before the block begins.

        LockTimeoutError if somebody else does not let go of it.
        """
        with durable.locked(self.lock_path):
            last, cut_bytes = self._history_file.repair()
            writer = LedgerWriter(
                self._state_path, self._history_file, self._clock_ms, self.read(), last
            )
            if cut_bytes:
                writer.repairs.append(f"{HISTORY_NAME}: cut a torn last line of {cut_bytes} bytes")
            writer.repairs += [
                f"{HISTORY_NAME}: added entry {entry.sequence} ({entry.kind}, version"
                f" {entry.version}), which {STATE_NAME} had"
                for entry in writer.copy_entries()
            ]
            yield writer


class LedgerWriter:
    """A ledger while its lock is held. `repairs` says in sentences what had to be mended."""

    def __init__(
        self,
        state_path: Path,
        history_file: HistoryFile,
        clock_ms: Callable[[], int],
        stored: StoredState | None,
        last: HistoryEntry | None,
    ) -> None:
        self._state_path = state_path
        self._history_file = history_file
        self._clock_ms = clock_ms
        self._stored = stored
        self._last = last  # in history.jsonl
        self.repairs: list[str] = []

    @property
    def stored(self) -> StoredState:
        """What state.json holds; replayed from the history if it is gone."""
        if self._stored is None:
            lines = self._history_file.read()
            stored = replay(line for line in lines if isinstance(line, HistoryEntry))
            if stored != StoredState():
                durable.replace_file(self._state_path, stored.to_json())
                self.repairs.append(f"{STATE_NAME}: made anew from {HISTORY_NAME}")
            self._stored = stored
        return self._stored

    def record(self, draft: Draft) -> HistoryEntry:
        """Adds an entry that changes no state."""
        self.copy_entries()
        entry = HistoryEntry.after(self._last, draft, now_ms=self._clock_ms())
        self._append([entry])
        return entry

    def commit(
        self,
        drafts: list[Draft],
        *,
        published: int | None = None,
        removing: int | None = None,
        made: Callable[[State], object] | None = None,
    ) -> State:
        """Changes the state as the drafts tell, and adds them as entries; returns the new state.

        `published` is how far the numbering has come with it, if any further; `removing` a version
        whose directory is to go. `made` is called as soon as readers see the new state, before
        all of it is synced: it is durable when this returns.
        """
        self.copy_entries()
        stored = self.stored
        state = stored.state
        entries: list[HistoryEntry] = []
        for draft in drafts:
            previous = entries[-1] if entries else self._last
            entries.append(HistoryEntry.after(previous, draft, now_ms=self._clock_ms()))
            state = state.after(draft.kind, draft.version, draft.reason)
        to_remove = (removing,) if removing is not None else ()
        self._replace(
            StoredState(
                state,
                max(stored.published, published or 0),
                tuple(entries),
                (*stored.removing, *to_remove),
            ),
            made,
        )
        # The change is made. If the copy fails now, the next writer makes it.
        with contextlib.suppress(OSError):
            self.copy_entries()
        return state

    def removed(self, version: int) -> None:
        """The directory of a removed version is gone."""
        stored = self.stored
        left = tuple(number for number in stored.removing if number != version)
        self._replace(replace(stored, removing=left))

    def _replace(self, stored: StoredState, made: Callable[[State], object] | None = None) -> None:
        durable.replace_file(
            self._state_path,
            stored.to_json(),
            lambda: made(stored.state) if made is not None else None,
        )
        self._stored = stored

    def copy_entries(self) -> list[HistoryEntry]:
        """Copies to the history what only state.json has; returns it."""
        entries = _later(self._stored.entries, self._last) if self._stored else []
        if entries:
            self._append(entries)
        return entries

    def _append(self, entries: list[HistoryEntry]) -> None:
        self._history_file.append(entries)
        self._last = entries[-1]


def _later(entries: tuple[HistoryEntry, ...], last: HistoryEntry | None) -> list[HistoryEntry]:
    return [entry for entry in entries if last is None or entry.sequence > last.sequence]
