import pytest

from trimtab.registry.history import Draft, HistoryEntry
from trimtab.registry.state import State, StoredState, replay


def test_a_promotion_remembers_the_champion_before() -> None:
    state = State().promoted(1).promoted(3)
    assert state == State(revision=2, champion=3, previous=1)


def test_two_rollbacks_lead_back_where_they_began_two_revisions_later() -> None:
    state = State().promoted(1).promoted(3)
    assert state.rolled_back() == State(revision=3, champion=1, previous=3)
    assert state.rolled_back().rolled_back() == State(revision=4, champion=3, previous=1)


def entries(*steps: tuple[str, int]) -> tuple[HistoryEntry, ...]:
    made: list[HistoryEntry] = []
    for kind, version in steps:
        draft = Draft(kind, version, "a", "r", {}, None)
        made.append(HistoryEntry.after(made[-1] if made else None, draft, now_ms=1))
    return tuple(made)


def test_a_history_replays_to_its_state() -> None:
    history = entries(
        ("published", 1), ("promoted", 1), ("drift", 1), ("published", 2), ("promoted", 2)
    )
    assert replay(history) == StoredState(State(2, 2, 1), published=2)
    rolled_back = entries(("published", 1), ("promoted", 1), ("promoted", 2), ("rolled_back", 1))
    assert replay(rolled_back) == StoredState(State(3, 1, 2), published=1)


def test_a_stored_state_reads_back_equal() -> None:
    stored = StoredState(State(2, 2, 1), 2, entries(("published", 2), ("promoted", 2)))
    assert StoredState.from_json(stored.to_json()) == stored
    assert StoredState.from_json(StoredState().to_json()) == StoredState()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"format": 1', b'"format": 9', "format is 9, this Trimtab reads 1"),
        (b'"revision": 0', b'"revision": "0"', "revision is not an integer"),
        (b'"champion": null', b'"champion": true', "champion is not an integer"),
        (b'"published": 0,', b"", "published is missing"),
    ],
)
def test_the_key_at_fault_is_named(old: bytes, new: bytes, problem: str) -> None:
    text = StoredState().to_json()
    assert old in text
    with pytest.raises(ValueError, match=problem):
        StoredState.from_json(text.replace(old, new))
