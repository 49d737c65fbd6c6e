"""state.json: which version is the champion.

`State` is a value with the two moves that exist; it never looks at a disk. `StoredState` is the
file: a state, how far the numbering of versions has come, and the history entries of the latest
change, which `ledger` needs to make the two files one.

There is always a champion once there was one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .documents import Document, encode_readable
from .history import HistoryEntry

STATE_NAME = "state.json"
STATE_FORMAT = 1


@dataclass(frozen=True)
class State:
    """Which version answers, and which one did before it."""

    revision: int = 0  # counts every change of champion
    champion: int | None = None
    previous: int | None = None  # what a rollback goes back to

    def promoted(self, version: int) -> "State":
        return State(self.revision + 1, champion=version, previous=self.champion)

    def rolled_back(self) -> "State":
        return State(self.revision + 1, champion=self.previous, previous=self.champion)


@dataclass(frozen=True)
class StoredState:
    """The contents of state.json."""

    state: State = State()
    published: int = 0  # every version up to this number has been entered into the history
    entries: tuple[HistoryEntry, ...] = ()  # those that came with this state

    def to_json(self) -> bytes:
        return encode_readable(
            {
                "format": STATE_FORMAT,
                "revision": self.state.revision,
                "champion": self.state.champion,
                "previous": self.state.previous,
                "published": self.published,
                "entries": [entry.to_dict() for entry in self.entries],
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> "StoredState":
        """ValueError naming what is missing or not of its type."""
        document = Document.parse(text)
        format_ = document.integer("format")
        if format_ != STATE_FORMAT:
            raise ValueError(f"format is {format_}, this Trimtab reads {STATE_FORMAT}")
        return cls(
            state=State(
                revision=document.integer("revision"),
                champion=document.optional_integer("champion"),
                previous=document.optional_integer("previous"),
            ),
            published=document.integer("published"),
            entries=tuple(map(HistoryEntry.from_document, document.sequence("entries"))),
        )


def replay(entries: Iterable[HistoryEntry]) -> StoredState:
    """The state that a history leads to."""
    state = State()
    published = 0
    for entry in entries:
        if entry.kind == "published":
            published = max(published, entry.version)
        elif entry.kind == "promoted":
            state = state.promoted(entry.version)
        elif entry.kind == "rolled_back":
            state = state.rolled_back()
    return StoredState(state, published)
