from itertools import pairwise

import pytest

from trimtab.server.drift.drift_state import DriftState

LETTERS = {"o": "ok", "w": "warning", "d": "drift", "c": "collecting"}


@pytest.mark.parametrize(
    ("panes", "hysteresis", "states"),
    [
        ("oooo", 2, "oooo"),
        ("dd", 2, "od"),  # straight to drift
        ("ddd", 3, "ood"),
        ("d", 1, "d"),
        ("dodod", 2, "ooooo"),  # never two in a row
        ("wd", 2, "ow"),  # what both bear out
        ("wdd", 2, "oww"),
        ("wddd", 2, "owwd"),
        ("ddww", 2, "oddw"),
        ("ddwo", 2, "oddw"),  # down to the highest of them
        ("ddoo", 2, "oddo"),
        ("ddodoo", 2, "oddddo"),
        ("wwoo", 2, "owwo"),
        ("ddoddoo", 2, "odddddo"),
    ],
)
def test_the_state_moves_once_enough_panes_agree(panes: str, hysteresis: int, states: str) -> None:
    state = DriftState()
    assert state.name == "collecting"
    seen = []
    for letter in panes:
        state = state.after_pane(LETTERS[letter], (), hysteresis)
        seen.append(state.name)
    assert seen == [LETTERS[letter] for letter in states]


def test_a_broken_feature_raises_and_clears_its_alarm_with_the_same_patience() -> None:
    state = DriftState()
    seen = []
    for broken in [{"a"}, set(), {"a"}, {"a", "b"}, {"b"}, {"a"}, {"b"}, {"b"}, {"b"}]:
        state = state.after_pane("ok", broken, 2)
        seen.append("".join(sorted(state.broken)))
    assert seen == ["", "", "", "a", "ab", "ab", "ab", "b", "b"]
    assert state.name == "ok", "they do not move the state"
    assert all(len(after) <= len(before) + 1 for before, after in pairwise(seen))


def test_streaks_are_forgotten_once_they_do_not_matter() -> None:
    state = DriftState()
    for index in range(1000):
        state = state.after_pane("ok", {f"feature-{index}"}, 2)
        assert len(state.broken_streaks) <= 1
