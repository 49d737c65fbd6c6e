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
from pathlib import Path

from . import durable
from .errors import InvalidStateError
from .history import HISTORY_NAME, Draft, History, HistoryEntry, HistoryFile, check_chain
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
        problem = ""
        latest: tuple[HistoryEntry, ...] = ()
        try:
            latest = (self.read() or StoredState()).entries
        except InvalidStateError as error:
            problem = str(error)
        entries, unreadable = self._history_file.read()
        entries += _later(latest, entries[-1] if entries else None)
        problem = problem or unreadable or check_chain(entries)
        if not problem and not {entry.hash for entry in latest} <= {e.hash for e in entries}:
            problem = f"entry {latest[0].sequence} is another one in {STATE_NAME}"
        return History(tuple(entries), valid=not problem, error=problem)

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
            entries, _ = self._history_file.read()
            stored = replay(entries)
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

    def commit(self, state: State, published: int, drafts: list[Draft]) -> None:
        """Changes the state, and adds the entries that tell of it."""
        self.copy_entries()
        entries: list[HistoryEntry] = []
        for draft in drafts:
            previous = entries[-1] if entries else self._last
            entries.append(HistoryEntry.after(previous, draft, now_ms=self._clock_ms()))
        stored = StoredState(state, published, tuple(entries))
        durable.replace_file(self._state_path, stored.to_json())
        self._stored = stored
        # The change is made. If the copy fails now, the next writer makes it.
        with contextlib.suppress(OSError):
            self.copy_entries()

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
