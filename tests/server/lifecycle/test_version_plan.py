"""Which versions should be loaded, and which one answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.registry.state import State
from trimtab.server.lifecycle.version_plan import Have, OnDisk, VersionPolicy, plan


def managed(
    champion: int | None, previous: int | None = None, extra: tuple[int, ...] = ()
) -> OnDisk:
    return OnDisk(True, (1, 2, 3, 4), State(1, champion, previous), extra)


def unmanaged(*versions: int) -> OnDisk:
    return OnDisk(False, versions, State())


def have(
    ready: set[int] = frozenset(),  # type: ignore[assignment]  # never changed
    failed: set[int] = frozenset(),  # type: ignore[assignment]
    stale: set[int] = frozenset(),  # type: ignore[assignment]
    serving: int | None = None,
) -> Have:
    return Have(ready, failed, stale, serving)


def test_at_the_start_the_champion_is_loaded_first_and_then_what_it_may_fall_back_to() -> None:
    assert plan(managed(3, 2, extra=(1,)), have()).load == (3, 2, 1)


def test_a_new_champion_is_loaded_while_the_old_one_answers() -> None:
    decided = plan(managed(3, 2), have(ready={2, 1}, serving=2))
    assert (decided.load, decided.serve, decided.retire) == ((3,), 2, (1,))


def test_the_champion_answers_as_soon_as_it_is_ready_and_the_previous_one_stays() -> None:
    decided = plan(managed(3, 2), have(ready={3, 2, 1}, serving=2))
    assert (decided.load, decided.serve, decided.retire) == ((), 3, (1,))


def test_a_champion_that_does_not_load_leaves_the_one_that_answers_alone() -> None:
    decided = plan(managed(3, 1), have(ready={2, 1}, failed={3}, serving=2))
    assert (decided.load, decided.serve, decided.retire) == ((), 2, ())


def test_at_the_start_the_previous_one_answers_for_a_champion_that_does_not_load() -> None:
    assert plan(managed(3, 2), have(ready={2}, failed={3})).serve == 2


def test_a_failed_version_is_not_tried_again_until_its_files_change() -> None:
    assert plan(managed(3, 2), have(failed={3})).load == (2,)


def test_a_rollback_retires_nothing() -> None:
    assert plan(managed(2, 3), have(ready={2, 3}, serving=3)).retire == ()


def test_without_a_champion_nothing_answers() -> None:
    decided = plan(managed(None, extra=(1,)), have(ready={1}))
    assert (decided.load, decided.serve) == ((), None)


def test_a_held_version_stays() -> None:
    assert plan(managed(3, 2), have(ready={3, 2, 4}, serving=3), held=[4]).retire == ()


def test_the_highest_unmanaged_version_answers() -> None:
    decided = plan(unmanaged(1, 2, 10), have())
    assert (decided.champion, decided.load) == (10, (10,))


def test_an_unmanaged_version_that_is_newer_takes_over_when_it_is_ready() -> None:
    assert plan(unmanaged(1, 2), have(ready={1}, serving=1)).serve == 1
    decided = plan(unmanaged(1, 2), have(ready={1, 2}, serving=1))
    assert (decided.serve, decided.retire) == (2, (1,))


def test_the_next_lower_unmanaged_version_answers_for_a_broken_one() -> None:
    assert plan(unmanaged(1, 2, 3), have(failed={3})).load == (2,)
    assert plan(unmanaged(1, 2, 3), have(ready={2}, failed={3})).serve == 2
    assert plan(unmanaged(1, 2, 3), have(failed={3, 2})).load == (1,)


def test_an_unmanaged_version_whose_files_changed_is_loaded_again_while_it_answers() -> None:
    decided = plan(unmanaged(1), have(ready={1}, stale={1}, serving=1))
    assert (decided.load, decided.serve, decided.retire) == ((1,), 1, ())


def test_changed_files_that_were_refused_are_left_alone() -> None:
    assert plan(unmanaged(1), have(ready={1}, failed={1}, stale={1}, serving=1)).load == ()


def test_a_removed_unmanaged_model_is_retired() -> None:
    assert plan(unmanaged(), have(ready={1}, serving=1)).retire == (1,)


versions = st.integers(1, 5)


@given(
    st.one_of(
        st.builds(
            OnDisk,
            st.just(True),
            st.just((1, 2, 3, 4, 5)),
            st.builds(State, st.just(1), versions, st.none() | versions),
            st.lists(versions, max_size=2).map(tuple),
        ),
        st.builds(unmanaged, versions, versions).map(
            lambda disk: OnDisk(False, tuple(sorted(set(disk.versions))), State())
        ),
    ),
    st.sets(versions),
    st.sets(versions),
    st.none() | versions,
)
def test_whoever_answers_is_ready_and_is_never_retired(
    disk: OnDisk, ready: set[int], failed: set[int], serving: int | None
) -> None:
    before = serving if serving in ready else None
    decided = plan(disk, Have(ready, failed, (), before))
    assert decided.serve is None or decided.serve in ready
    assert decided.serve not in decided.retire
    assert not set(decided.load) & (set(ready) | set(failed))
    if before is not None:
        assert decided.serve is not None, "a model that answered goes on answering"


@pytest.mark.parametrize("ready", [{1}, {1, 2}, {1, 2, 3}])
def test_following_the_plan_settles(ready: set[int]) -> None:
    disk = managed(3, 2)
    serving: int | None = 1
    for _ in range(10):
        decided = plan(disk, Have(ready, (), (), serving))
        serving = decided.serve
        ready = ready | {decided.load[0]} if decided.load else ready - set(decided.retire)
    assert (ready, serving) == ({2, 3}, 3)


# -- what a model's config.pbtxt and an operator's unload say


def with_policy(policy: VersionPolicy, *versions: int) -> OnDisk:
    return OnDisk(False, versions, State(), policy=policy)


def test_the_latest_versions_are_loaded_and_the_highest_answers() -> None:
    decided = plan(with_policy(VersionPolicy(latest=2), 1, 2, 3), have(ready={3, 2, 1}))
    assert (decided.champion, decided.serve, decided.retire) == (3, 3, (1,))


def test_a_version_that_does_not_load_is_none_of_the_latest() -> None:
    assert plan(with_policy(VersionPolicy(latest=2), 1, 2, 3), have(failed={3})).load == (2, 1)


def test_all_versions_are_loaded_the_highest_first() -> None:
    assert plan(with_policy(VersionPolicy(latest=0), 1, 2, 3), have()).load == (3, 2, 1)


@pytest.mark.parametrize("policy", [VersionPolicy(0), VersionPolicy(0, frozenset([1, 2, 3]))])
def test_without_a_limit_a_version_that_does_not_load_stands_in_no_others_way(
    policy: VersionPolicy,
) -> None:
    assert plan(with_policy(policy, 1, 2, 3), have(failed={3})).load == (2, 1)
    assert plan(with_policy(policy, 1, 2, 3), have(ready={1, 2}, failed={3})).serve == 2


def test_of_specific_versions_those_that_are_there_are_loaded_and_the_highest_answers() -> None:
    policy = VersionPolicy(latest=0, only=frozenset([1, 2, 9]))
    decided = plan(with_policy(policy, 1, 2, 3), have(ready={3}, serving=3))
    assert (decided.champion, decided.load, decided.serve) == (2, (2, 1), 3)
    assert plan(with_policy(policy, 3), have()).champion is None


@pytest.mark.parametrize("disk", [managed(3, 2, extra=(1,)), unmanaged(2, 3)])
def test_of_an_unloaded_model_nothing_is_loaded_and_nothing_answers(disk: OnDisk) -> None:
    decided = plan(disk, have(ready={3, 2}, serving=3), unloaded=True)
    assert (decided.champion, decided.load, decided.serve) == (3, (), None)
    assert decided.retire == (2, 3)


def test_a_held_version_stays_loaded_and_silent_in_an_unloaded_model() -> None:
    decided = plan(managed(3, 2), have(ready={4}), held=[4], unloaded=True)
    assert (decided.serve, decided.retire) == (None, ())
