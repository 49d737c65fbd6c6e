import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.registry.retention import held, plan
from trimtab.registry.state import State

STATE = State(
    revision=9,
    champion=6,
    previous=5,
    earlier=(2,),
    challenger=4,
    pinned=frozenset({1}),
    blocked={7: "bake failed"},
)


def test_the_newest_and_all_that_is_held_stay() -> None:
    assert plan(range(1, 12), STATE, keep=2) == [3, 7, 8, 9]
    assert plan(range(1, 12), STATE, keep=4) == [3, 7]
    assert plan([11, 3, 8], STATE, keep=1) == [3, 8]


def test_what_holds_a_version_is_said() -> None:
    assert {version: held(version, STATE) for version in range(1, 8)} == {
        1: "pinned",
        2: "an earlier champion that a rollback may return to",
        3: "",
        4: "the challenger",
        5: "the previous champion",
        6: "the champion",
        7: "",
    }


def test_at_least_the_newest_is_kept() -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        plan([1, 2], State(), keep=0)


@given(
    versions=st.sets(st.integers(1, 30)),
    keep=st.integers(1, 10),
    roles=st.lists(st.integers(1, 30), min_size=4, max_size=8, unique=True),
)
def test_nothing_that_may_be_needed_is_ever_planned(
    versions: set[int], keep: int, roles: list[int]
) -> None:
    champion, previous, challenger, pinned, *earlier = roles
    state = State(1, champion, previous, tuple(earlier), challenger, pinned=frozenset({pinned}))
    going = plan(versions, state, keep)
    assert going == sorted(set(going)) and set(going) <= versions
    assert not set(going) & set(roles)
    left = versions - set(going)
    assert len(left) >= min(keep, len(versions))
    assert left - set(roles) <= set(sorted(versions)[-keep:])
