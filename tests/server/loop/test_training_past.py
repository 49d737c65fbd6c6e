from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from trimtab.server.loop.training_past import TrainingPast


@dataclass(frozen=True)
class Line:
    kind: str
    event_time_ms: int
    evidence: Mapping[str, Any] = field(default_factory=dict)


def test_the_past_is_the_same_from_the_history_as_it_was_lived() -> None:
    lived = TrainingPast()
    lived = lived.start(100, 50).finish()
    lived = lived.start(200, 80).fail(210)
    lived = lived.start(300, 90).fail(310)
    lived = lived.start(400, 95).interrupt()
    read = TrainingPast.of(
        [
            Line("published", 10),  # by hand
            Line("training_started", 100, {"labels_total": 50}),
            Line("published", 110),
            Line("drift", 150),
            Line("training_started", 200, {"labels_total": 80}),
            Line("training_failed", 210),
            Line("training_started", 300, {"labels_total": 90}),
            Line("training_failed", 310),
            Line("training_started", 400, {"labels_total": 95}),
            Line("training_failed", 410, {"interrupted": True}),
        ]
    )
    assert read == lived
    assert (read.failures, read.last_failure_ms) == (2, 310)
    assert (read.last_training_ms, read.labels_at_last) == (100, 50)
    assert read.starts_ms == (100, 200, 300, 400) and read.started == 4
    assert read.open_ms is None


def test_a_refusal_ends_a_row_of_failures_and_uses_the_labels_up() -> None:
    past = TrainingPast().start(1, 10).fail(2).start(3, 20).finish()
    assert (past.failures, past.last_failure_ms) == (0, None)
    assert (past.last_training_ms, past.labels_at_last) == (3, 20)


def test_a_training_without_an_end_is_open() -> None:
    assert TrainingPast.of([Line("training_started", 5, {"labels_total": 1})]).open_ms == 5


def test_the_starts_that_are_kept_do_not_grow_without_bound() -> None:
    past = TrainingPast()
    for index in range(3000):
        past = past.start(index, 0).finish()
    assert len(past.starts_ms) <= 1001 and past.started == 3000


@pytest.mark.parametrize("kind", ["published", "refused", "training_failed"])
def test_a_training_by_hand_does_not_end_the_one_that_runs(kind: str) -> None:
    start = Line("training_started", 100, {"labels_total": 50, "training_id": "m-1"})
    by_hand = Line(kind, 110)
    assert TrainingPast.of([start, by_hand]).open_ms == 100
    mine = TrainingPast.of([start, by_hand, Line("refused", 120, {"training_id": "m-1"})])
    assert mine == TrainingPast().start(100, 50, "m-1").refuse()
    cut = TrainingPast.of([start, by_hand, Line("training_failed", 120, {"interrupted": True})])
    assert cut == TrainingPast().start(100, 50, "m-1").interrupt()


@pytest.mark.parametrize("kind", ["published", "promoted", "held"])
def test_a_version_that_names_its_training_ends_it(kind: str) -> None:
    start = Line("training_started", 100, {"labels_total": 50, "training_id": "m-1"})
    past = TrainingPast.of([start, Line(kind, 120, {"training_id": "m-1"})])
    assert past == TrainingPast().start(100, 50, "m-1").finish()


@pytest.mark.parametrize("kind", ["training_cancelled", "data_broken"])
def test_what_was_set_aside_uses_labels_up_and_is_neither_failure_nor_success(kind: str) -> None:
    failed = TrainingPast().start(100, 50, "m-1").fail(110)
    past = failed.start(200, 80, "m-2").set_aside()
    assert (past.failures, past.last_failure_ms) == (1, 110)
    assert (past.last_training_ms, past.labels_at_last, past.open_ms) == (200, 80, None)
    read = TrainingPast.of(
        [
            Line("training_started", 100, {"labels_total": 50, "training_id": "m-1"}),
            Line(kind, 105),  # by hand, or a request that was withdrawn
            Line("training_failed", 110, {"training_id": "m-1"}),
            Line(kind, 120, {"training_id": "m-1"}),  # of one that is over
            Line("training_started", 200, {"labels_total": 80, "training_id": "m-2"}),
            Line(kind, 210, {"training_id": "m-2"}),
        ]
    )
    assert read == past


def test_a_skipped_training_counts_for_cooldown_labels_and_budget_and_has_no_number() -> None:
    past = TrainingPast().skip(100, 50)
    assert (past.last_training_ms, past.labels_at_last, past.starts_ms) == (100, 50, (100,))
    assert (past.started, past.open_ms) == (0, None)
    assert TrainingPast.of([Line("training_skipped", 100, {"labels_total": 50})]) == past


@pytest.mark.parametrize("told", [{"fit": 3.0}, {"publish": "soon"}, [1], None])
def test_stages_of_a_training_that_did_not_publish_say_nothing_of_the_next(told: Any) -> None:
    start = Line("training_started", 1, {"training_id": "m-1"})
    whole = Line("promoted", 2, {"training_id": "m-1", "stages_s": {"fit": 3, "publish": 1}})
    cut = Line("refused", 3, {"training_id": "m-1", "stages_s": told})
    assert TrainingPast.of([start, whole, cut]).stages_s == {"fit": 3.0, "publish": 1.0}


def test_refusals_in_a_row_count_until_another_is_champion() -> None:
    lived = TrainingPast().start(1, 10).refuse().start(2, 20).refuse().start(3, 30).finish()
    lines = [
        Line("training_started", 1, {"labels_total": 10}),
        Line("refused", 1),
        Line("training_started", 2, {"labels_total": 20}),
        Line("refused", 2),
        Line("training_started", 3, {"labels_total": 30}),
        Line("published", 3),
    ]
    assert TrainingPast.of(lines) == lived
    assert (lived.refusals, lived.labels_at_last) == (2, 30)
    assert TrainingPast.of([*lines, Line("promoted", 4)]) == lived.champion_changed()
    assert lived.champion_changed().refusals == 0
