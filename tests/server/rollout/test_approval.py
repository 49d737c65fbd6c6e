"""How a wait for approval ends, from values alone."""

import dataclasses
from typing import Any

import pytest

from tests.server.rollout.test_rollout_past import FIRST, history
from trimtab.registry.state import State
from trimtab.server.rollout.approval import Waiting, hindrance, outlook, span
from trimtab.server.rollout.rollout_past import RolloutPast

WAITING = Waiting(3, 1, 4, "drift; better", 1_000, 61_000, {"gates": [], "training_id": "m-2"})
STATE = State(revision=4, champion=1)


@pytest.mark.parametrize(
    ("state", "now_ms", "is_there", "action", "words"),
    [
        (STATE, 60_999, True, "wait", ""),
        (dataclasses.replace(STATE, frozen=True), 60_999, True, "wait", ""),
        (STATE, 61_000, True, "refuse", "nobody approved version 3 within 1 min"),
        (State(5, champion=2, previous=1), 0, True, "end", "revision 4 → 5, now version 2"),
        (State(6, champion=1, previous=2), 0, True, "end", "revision 4 → 6"),  # there and back
        (State(5, champion=3, previous=1), 0, True, "end", "made champion by hand"),
        (State(4, champion=1, blocked={3: "smells"}), 0, True, "end", "blocked: smells"),
        (STATE, 0, False, "end", "removed"),
        (State(5, champion=2), 99_000, True, "end", "by hand if it is still wanted"),
    ],
)
def test_a_wait_ends_as_its_ground_is_gone_or_its_time_is_up(
    state: State, now_ms: int, is_there: bool, action: str, words: str
) -> None:
    found = outlook(WAITING, state, now_ms, is_there=is_there)
    assert found.action == action and words in found.reason
    assert bool(found.reason) == (action != "wait")


def test_only_the_version_that_waits_is_answered() -> None:
    def why(
        waiting: Waiting | None, version: int, state: State = STATE, approve: bool = True
    ) -> str:
        return hindrance(waiting, version, state, "m", approve=approve)

    assert why(WAITING, 3) == ""
    assert why(WAITING, 2) == "version 2 of model 'm' does not wait for approval: version 3 does"
    assert why(None, 3) == "version 3 of model 'm' does not wait for approval: none does"
    frozen = dataclasses.replace(STATE, frozen=True, frozen_reason="holidays")
    assert "frozen (holidays); unfreeze it before" in why(WAITING, 3, frozen)
    assert why(WAITING, 3, frozen, approve=False) == "", "a rejection changes no champion"


def test_a_wait_is_read_as_it_was_recorded() -> None:
    assert Waiting.read(3, WAITING.recorded()) == WAITING
    assert Waiting.read(3, {**WAITING.recorded(), "deadline_ms": "soon"}) is None


WANTED = ("approval_wanted", 3, WAITING.recorded())
APPROVED = ("approved", 3, WAITING.marks)


@pytest.mark.parametrize(
    ("events", "waiting", "approved"),
    [
        ([FIRST], False, False),
        ([FIRST, WANTED], True, False),
        ([FIRST, WANTED, ("rollout_ended", 1, {"phase": "bake"})], True, False),
        ([FIRST, WANTED, ("refused", 0, {})], True, False),
        ([FIRST, WANTED, ("refused", 3, WAITING.marks)], False, False),
        ([FIRST, WANTED, ("rollout_ended", 3, WAITING.marks)], False, False),
        ([FIRST, WANTED, APPROVED], False, True),
        ([FIRST, WANTED, ("approved", 2, {})], False, False),
        ([FIRST, WANTED, APPROVED, ("promoted", 3, {})], False, False),
        ([FIRST, WANTED, APPROVED, ("rollout_started", 3, {"phase": "shadow"})], False, False),
        ([FIRST, WANTED, APPROVED, ("held", 3, {})], False, False),
        ([FIRST, WANTED, APPROVED, ("drift", 1, {})], False, True),
        ([FIRST, ("approval_wanted", 3, {"revision": 1})], False, False),
    ],
)
def test_what_of_approvals_a_server_takes_up(
    events: list[tuple[str, int, dict[str, Any]]], waiting: bool, approved: bool
) -> None:
    past = RolloutPast.of(history(*events))
    assert (past.waiting is not None, past.approved is not None) == (waiting, approved)
    assert (past.waiting or past.approved or WAITING) == WAITING


def test_a_wait_for_approval_leaves_a_phase_that_is_under_way_open() -> None:
    bake = {"phase": "bake", "against": 1, "revision": 2, "automatic": True, "why": "better"}
    past = RolloutPast.of(
        history(FIRST, ("rollout_started", 2, bake), WANTED, ("rollout_ended", 3, WAITING.marks))
    )
    assert past.begun is not None and past.begun.phase == "bake" and past.waiting is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (604_800, "7 d"),
        (86_399, "23 h"),
        (3_600, "1 h"),
        (3_599, "59 min"),
        (5, "5 s"),
        (-1, "0 s"),
    ],
)
def test_a_span_is_rounded_down(seconds: float, words: str) -> None:
    assert span(seconds) == words
