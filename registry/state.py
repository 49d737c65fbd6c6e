"""state.json: which version is the champion, and what was decided about the others.

`State` is a value. `after` is the one way from a state to the next, for a change that is being made
as for one that is replayed from the history, so the two cannot come to differ; it never looks at a
disk. `StoredState` is the file: a state, how far the numbering of versions has come, which removed
versions may still lie about, and the history entries of the latest change, which `ledger` needs to
make the two files one.

There is always a champion once there was one. No blocked version is one that a rollback would
return to. Two states of the same revision have the same champion and the same previous one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .documents import Document, encode_readable
from .history import CHAMPION_CHANGES, HistoryEntry

STATE_NAME = "state.json"
STATE_FORMAT = 2
ROLLBACK_WINDOW = 5  # earlier champions that a rollback may return to

# What the registry's own methods write into the history, and nobody else may.
CHANGES = (
    *("published", "removed", *CHAMPION_CHANGES),
    *("frozen", "unfrozen", "pinned", "unpinned", "blocked", "unblocked"),
    *("challenged", "unchallenged"),
)

_OLD_FORMAT = 1  # knew champion and previous only


@dataclass(frozen=True)
class State:
    """Which version answers, which did before, and what operators decided."""

    revision: int = 0  # counts every change of champion or previous, and nothing else
    champion: int | None = None
    previous: int | None = None  # what a rollback goes back to
    earlier: tuple[int, ...] = ()  # the champions before the previous one, latest first
    challenger: int | None = None  # runs beside the champion and is compared with it
    frozen: bool = False  # no automatic change of champion
    frozen_reason: str = ""
    pinned: frozenset[int] = frozenset()  # never removed
    blocked: Mapping[int, str] = field(default_factory=dict)  # never promoted automatically; why

    @property
    def champions(self) -> tuple[int, ...]:
        """The rollback window: distinct earlier champions, latest first; none of them blocked."""
        return () if self.previous is None else (self.previous, *self.earlier)

    def after(self, kind: str, version: int = 0, reason: str = "") -> "State":
        """The state that a change leads to; this one for what changes no state.

        Promoting a blocked version lifts the block: only a person can have done that.
        """
        match kind:
            case "promoted":
                unblocked = replace(self, blocked=_without(self.blocked, version))
                return unblocked._led_by(version)
            case "rolled_back":
                return self._led_by(version)
            case "blocked":
                blocked = {**self.blocked, version: reason}
                return replace(self, blocked=blocked)._led_by(self.champion)
            case "unblocked" | "removed":
                return replace(self, blocked=_without(self.blocked, version))
            case "frozen":
                return replace(self, frozen=True, frozen_reason=reason)
            case "unfrozen":
                return replace(self, frozen=False, frozen_reason="")
            case "pinned":
                return replace(self, pinned=self.pinned | {version})
            case "unpinned":
                return replace(self, pinned=self.pinned - {version})
            case "challenged":
                return replace(self, challenger=version)
            case "unchallenged":
                return replace(self, challenger=None)
        return self

    def _led_by(self, champion: int | None) -> "State":
        """With this champion, and the one before at the head of the window, unless it is blocked."""
        window = tuple(
            version
            for version in (self.champion, *self.champions)
            if version not in (None, champion) and version not in self.blocked
        )[:ROLLBACK_WINDOW]
        previous = window[0] if window else None
        changed = (champion, previous) != (self.champion, self.previous)
        no_challenger = self.challenger == champion or self.challenger in self.blocked
        return replace(
            self,
            revision=self.revision + changed,
            champion=champion,
            previous=previous,
            earlier=window[1:],
            challenger=None if no_challenger else self.challenger,
        )


def _without(blocked: Mapping[int, str], version: int) -> dict[int, str]:
    return {number: reason for number, reason in blocked.items() if number != version}


@dataclass(frozen=True)
class StoredState:
    """The contents of state.json."""

    state: State = State()
    published: int = 0  # every version up to this number has been entered into the history
    entries: tuple[HistoryEntry, ...] = ()  # those that came with this state
    removing: tuple[int, ...] = ()  # recorded as removed; their directories may still be there

    def to_json(self) -> bytes:
        state = self.state
        return encode_readable(
            {
                "format": STATE_FORMAT,
                "revision": state.revision,
                "champion": state.champion,
                "previous": state.previous,
                "earlier": state.earlier,
                "challenger": state.challenger,
                "frozen": state.frozen,
                "frozen_reason": state.frozen_reason,
                "pinned": sorted(state.pinned),
                "blocked": {version: state.blocked[version] for version in sorted(state.blocked)},
                "published": self.published,
                "removing": self.removing,
                "entries": [entry.to_dict() for entry in self.entries],
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> "StoredState":
        """ValueError naming what is missing or not of its type."""
        document = Document.parse(text)
        format_ = document.integer("format")
        if format_ not in (_OLD_FORMAT, STATE_FORMAT):
            raise ValueError(
                f"format is {format_}, this Trimtab reads {_OLD_FORMAT} and {STATE_FORMAT}"
            )
        state = State(
            revision=document.integer("revision"),
            champion=document.optional_integer("champion"),
            previous=document.optional_integer("previous"),
        )
        removing: tuple[int, ...] = ()
        if format_ == STATE_FORMAT:
            state = replace(
                state,
                earlier=document.integers("earlier"),
                challenger=document.optional_integer("challenger"),
                frozen=document.boolean("frozen"),
                frozen_reason=document.text("frozen_reason"),
                pinned=frozenset(document.integers("pinned")),
                blocked=_blocked(document.nested("blocked")),
            )
            removing = document.integers("removing")
        return cls(
            state=state,
            published=document.integer("published"),
            entries=tuple(map(HistoryEntry.from_document, document.sequence("entries"))),
            removing=removing,
        )


def _blocked(document: Document) -> dict[int, str]:
    for version in document:
        if not (version.isascii() and version.isdigit()):
            raise ValueError(f"blocked: {version!r} is not the number of a version")
    return {int(version): document.text(version) for version in document}


def replay(entries: Iterable[HistoryEntry]) -> StoredState:
    """The state that a history leads to.

    Nothing counts as still to be removed: a directory that is there again may have been restored.
    """
    state = State()
    published = 0
    for entry in entries:
        state = state.after(entry.kind, entry.version, entry.reason)
        if entry.kind in ("published", "removed"):
            published = max(published, entry.version)
    return StoredState(state, published)
