import json

import pytest

from trimtab.registry.history import Draft, HistoryEntry
from trimtab.registry.state import CHANGES, ROLLBACK_WINDOW, State, StoredState, replay


def entries(*steps: tuple[str, int]) -> tuple[HistoryEntry, ...]:
    made: list[HistoryEntry] = []
    for kind, version in steps:
        draft = Draft(kind, version, "a", "r", {}, None)
        made.append(HistoryEntry.after(made[-1] if made else None, draft, now_ms=1))
    return tuple(made)


def state_of(*steps: tuple[str, int]) -> State:
    return replay(entries(*steps)).state


def champions_of(*steps: tuple[str, int]) -> tuple[int | None, tuple[int, ...]]:
    state = state_of(*steps)
    assert state.previous == (state.champions[0] if state.champions else None)
    return state.champion, state.champions


def promoted(*versions: int) -> list[tuple[str, int]]:
    return [("promoted", version) for version in versions]


def test_a_promotion_remembers_the_champion_before() -> None:
    assert state_of(*promoted(1, 3)) == State(revision=2, champion=3, previous=1)


def test_two_rollbacks_lead_back_where_they_began_two_revisions_later() -> None:
    state = state_of(*promoted(1, 3))
    assert state.after("rolled_back", 1) == State(revision=3, champion=1, previous=3)
    again = state.after("rolled_back", 1).after("rolled_back", 3)
    assert again == State(revision=4, champion=3, previous=1)


def test_the_window_has_distinct_earlier_champions_latest_first() -> None:
    assert champions_of(*promoted(1, 2, 3)) == (3, (2, 1))
    assert champions_of(*promoted(1, 2, 3, 1)) == (1, (3, 2))
    assert champions_of(*promoted(1, 2, 3, 4), ("rolled_back", 1)) == (1, (4, 3, 2))
    assert champions_of(*promoted(1, 2, 3), ("rolled_back", 2), ("rolled_back", 3)) == (3, (2, 1))


def test_the_window_is_bounded() -> None:
    champion, window = champions_of(*promoted(*range(1, 20)))
    assert (champion, window) == (19, (18, 17, 16, 15, 14))
    assert len(window) == ROLLBACK_WINDOW


def test_a_blocked_version_leaves_the_window_and_does_not_come_back() -> None:
    steps = promoted(1, 2, 3)
    assert champions_of(*steps, ("blocked", 2)) == (3, (1,))
    assert champions_of(*steps, ("blocked", 2), ("unblocked", 2)) == (3, (1,))
    assert champions_of(*steps, ("blocked", 3), ("rolled_back", 2)) == (2, (1,))
    assert champions_of(*steps, ("rolled_back", 2), ("blocked", 3)) == (2, (1,))


def test_a_revision_is_a_change_of_champion_or_of_what_a_rollback_returns_to() -> None:
    state = state_of(*promoted(1, 2, 3))
    assert state.revision == 3
    assert state.after("blocked", 2).revision == 4, "a rollback goes elsewhere now"
    for kind in CHANGES:
        if kind not in ("promoted", "rolled_back"):
            assert state.after(kind, 1, "r").revision == 3, kind


def test_promoting_a_blocked_version_lifts_the_block() -> None:
    state = state_of(*promoted(1), ("blocked", 2), *promoted(2, 3))
    assert (state.blocked, state.champions) == ({}, (2, 1))


def test_what_operators_decide_is_set_and_taken_back() -> None:
    state = State()
    for kind in ("frozen", "pinned", "blocked", "challenged"):
        state = state.after(kind, 2, f"{kind} because")
    assert state == State(
        challenger=2,
        frozen=True,
        frozen_reason="frozen because",
        pinned=frozenset({2}),
        blocked={2: "blocked because"},
    )
    for kind in ("unfrozen", "unpinned", "unblocked", "unchallenged"):
        state = state.after(kind, 2)
    assert state == State()
    assert state.after("drift", 2, "r") is state


@pytest.mark.parametrize("kind", ["promoted", "blocked", "rolled_back"])
def test_a_challenger_that_leads_or_is_blocked_is_none_any_more(kind: str) -> None:
    state = state_of(*promoted(1, 2), ("challenged", 3))
    assert state.after("promoted", 4).challenger == 3
    assert state.after(kind, 3).challenger is None


def test_a_history_replays_to_its_state() -> None:
    history = entries(
        ("published", 1), ("promoted", 1), ("drift", 1), ("published", 2), ("promoted", 2)
    )
    assert replay(history) == StoredState(State(2, 2, 1), published=2)
    rolled_back = entries(("published", 1), ("promoted", 1), ("promoted", 2), ("rolled_back", 1))
    assert replay(rolled_back) == StoredState(State(3, 1, 2), published=1)
    assert replay(entries(("published", 1), ("removed", 4))).published == 4


def full() -> StoredState:
    state = State(
        revision=9,
        champion=7,
        previous=6,
        earlier=(4, 5),
        challenger=8,
        frozen=True,
        frozen_reason="holidays",
        pinned=frozenset({3, 1}),
        blocked={2: "bake failed", 1: ""},
    )
    latest = entries(("published", 2), ("promoted", 2))
    return StoredState(state, 8, latest, removing=(2,))


def test_a_stored_state_reads_back_equal() -> None:
    assert StoredState.from_json(full().to_json()) == full()
    assert StoredState.from_json(StoredState().to_json()) == StoredState()


def test_a_file_of_the_first_format_is_read() -> None:
    latest = entries(("published", 2), ("promoted", 2))
    text = json.dumps(
        {
            "format": 1,
            "revision": 7,
            "champion": 3,
            "previous": 2,
            "published": 4,
            "entries": [entry.to_dict() for entry in latest],
        }
    ).encode()
    assert StoredState.from_json(text) == StoredState(State(7, 3, 2), 4, latest)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"format": 2', '"format": 9', "format is 9, this Trimtab reads 1 and 2"),
        ('"revision": 9', '"revision": "0"', "revision is not an integer"),
        ('"champion": 7', '"champion": true', "champion is not an integer"),
        ('"published": 8,', "", "published is missing"),
        ('"frozen": true', '"frozen": 1', "frozen is not true or false"),
        ('"2": "bake failed"', '"two": ""', "blocked: 'two' is not the number of a version"),
        ('"2": "bake failed"', '"2": null', "blocked.2 is not a string"),
    ],
)
def test_the_key_at_fault_is_named(old: str, new: str, problem: str) -> None:
    text = full().to_json().decode()
    assert old in text
    with pytest.raises(ValueError, match=problem):
        StoredState.from_json(text.replace(old, new).encode())
