from typing import Any

import pytest

from trimtab.registry.history import HistoryEntry
from trimtab.server.rollout.rollout_past import Begun, RolloutPast

BAKE = {"phase": "bake", "against": 1, "revision": 2, "automatic": True, "why": "better"}


def history(*events: tuple[str, int, dict[str, Any]]) -> list[HistoryEntry]:
    return [
        HistoryEntry(number, 10 * number, 100 * number, kind, version, "a", "r", evidence, "", "")
        for number, (kind, version, evidence) in enumerate(events, 1)
    ]


Event = tuple[str, int, dict[str, Any]]
FIRST: Event = ("promoted", 1, {})
SECOND: Event = ("promoted", 2, {"automatic": True})
STARTED: Event = ("rollout_started", 2, BAKE)


def verdict(outcome: str, **more: Any) -> tuple[str, int, dict[str, Any]]:
    return ("rollout_verdict", 2, {**BAKE, "verdict": outcome, **more})


@pytest.mark.parametrize(
    ("events", "baked", "begun", "failed"),
    [
        ([], False, False, 0),
        ([FIRST], True, False, 0),
        ([FIRST, SECOND], False, False, 0),
        ([FIRST, SECOND, STARTED], True, True, 0),
        ([FIRST, SECOND, STARTED, verdict("pass")], True, False, 0),
        ([FIRST, SECOND, STARTED, ("rollout_ended", 2, BAKE)], True, False, 0),
        ([FIRST, SECOND, STARTED, ("rollout_step", 2, BAKE)], True, True, 0),
        ([FIRST, SECOND, verdict("fail"), ("rolled_back", 1, {})], True, False, 1),
        ([FIRST, SECOND, verdict("fail"), SECOND, verdict("fail")], False, False, 2),
        ([FIRST, SECOND, verdict("fail"), SECOND, verdict("pass")], False, False, 0),
        ([FIRST, SECOND, verdict("fail", automatic=False)], False, False, 0),
        ([FIRST, SECOND, verdict("fail", phase="shadow")], False, False, 0),
        ([FIRST, ("rollout_started", 2, {"phase": "nonsense"})], True, False, 0),
        ([FIRST, ("rollout_started", 2, {**BAKE, "phase": "soak"})], True, False, 0),
    ],
)
def test_what_a_server_takes_up(
    events: list[tuple[str, int, dict[str, Any]]], baked: bool, begun: bool, failed: int
) -> None:
    past = RolloutPast.of(history(*events))
    assert (past.baked, past.begun is not None, past.failed_bakes) == (baked, begun, failed)
    assert (past.last_failed_ms is not None) == bool(failed)


def test_a_phase_is_read_as_it_was_begun() -> None:
    past = RolloutPast.of(history(FIRST, SECOND, STARTED))
    assert past.begun == Begun("bake", 2, 1, 2, "better", automatic=True)
    assert past.change is not None and past.change.version == 2
