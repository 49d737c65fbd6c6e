import dataclasses
from typing import Any

import pytest

from trimtab.server.config import TriggerConfig
from trimtab.server.loop.trigger import DAY_MS, TriggerSnapshot, backoff_ms, decide

HOUR = 3_600_000
NOW = 1_370_000_000_000
CONFIG = TriggerConfig(min_labels=2000, cooldown_s=86_400, max_per_day=2, max_failures=3)
DRIFTED = TriggerSnapshot(
    now_ms=NOW,
    drift="drift",
    drift_features="temp (PSI 0.31)",
    labels=2500,
    last_training_ms=NOW - 2 * DAY_MS,
)


def changed(**fields: Any) -> TriggerSnapshot:
    return dataclasses.replace(DRIFTED, **fields)


@pytest.mark.parametrize(
    ("snapshot", "train", "lacking"),
    [
        (DRIFTED, True, ()),
        (changed(drift="ok"), False, None),
        (changed(drift="warning"), False, None),
        (changed(drift="collecting"), False, None),
        (changed(running=True), False, ("running",)),
        (changed(labels=1999), False, ("labels",)),
        (changed(labels=2000), True, ()),
        (changed(labels=2000, refusals=1), True, ()),
        (changed(labels=3999, refusals=2), False, ("labels",)),
        (changed(labels=4000, refusals=2), True, ()),
        (changed(labels=31_999, refusals=50), False, ("labels",)),
        (changed(labels=32_000, refusals=50), True, ()),
        (changed(labels=2000, refusals=3, quality="degraded"), True, ()),  # it does harm
        (changed(labels=2000, refusals=3, drift="ok", quality="degraded"), True, ()),
        (changed(labels=0, refusals=3, requested="please"), True, ()),
        (changed(last_training_ms=NOW - DAY_MS + 1), False, ("cooldown",)),
        (changed(last_training_ms=NOW - DAY_MS), True, ()),
        (changed(last_training_ms=None), True, ()),
        (changed(last_training_ms=NOW + DAY_MS), True, ()),  # told by another clock
        (changed(labels=0, last_training_ms=NOW), False, ("labels", "cooldown")),
        (changed(starts_ms=[NOW - HOUR, NOW - 2 * HOUR]), False, ("budget",)),
        (changed(starts_ms=[NOW - HOUR, NOW - DAY_MS]), True, ()),
        (changed(starts_ms=[NOW + HOUR, NOW - HOUR]), True, ()),
        (changed(failures=1, last_failure_ms=NOW - 59_999), False, ("backoff",)),
        (changed(failures=1, last_failure_ms=NOW - 60_000), True, ()),
        (changed(failures=2, last_failure_ms=NOW - 60_000), False, ("backoff",)),
        (changed(failures=3, last_failure_ms=NOW - 30 * DAY_MS), False, ("breaker",)),
        (changed(requested="please", failures=9, labels=0, last_training_ms=NOW), True, ()),
        (changed(requested="please", drift="ok"), True, ()),
        (changed(requested="please", running=True), False, ("running",)),
    ],
)
def test_a_training_starts_when_there_is_a_signal_and_nothing_lacks(
    snapshot: TriggerSnapshot, train: bool, lacking: tuple[str, ...] | None
) -> None:
    decision = decide(snapshot, CONFIG)
    assert decision.train is train
    assert decision.waiting is (not train and lacking is not None)
    assert decision.lacking == (lacking or ())


def test_drift_is_no_signal_where_the_operator_says_so() -> None:
    decision = decide(DRIFTED, dataclasses.replace(CONFIG, on_drift=False))
    assert not decision.train and not decision.waiting


LOST = changed(
    drift="ok",
    quality="degraded",
    quality_reason="absolute error 8.4 on 5,000 labelled rows, 7.3 in the reference: +15.1%",
)


def test_a_loss_of_quality_is_a_signal_where_drift_is_none() -> None:
    decision = decide(LOST, CONFIG)
    assert decision.train and decision.signal == "quality"
    assert decision.reason == (
        "loss of quality: absolute error 8.4 on 5,000 labelled rows, 7.3 in the reference: +15.1%"
    )
    for state in ("ok", "collecting"):
        assert decide(dataclasses.replace(LOST, quality=state), CONFIG).signal == ""
    assert decide(LOST, dataclasses.replace(CONFIG, on_quality=False)).signal == ""


def test_a_loss_of_quality_waits_for_what_drift_waits_for() -> None:
    decision = decide(dataclasses.replace(LOST, labels=10, last_training_ms=NOW), CONFIG)
    assert not decision.train and decision.waiting
    assert decision.lacking == ("labels", "cooldown")
    assert decision.reason.startswith("loss of quality: absolute error 8.4")


def test_drift_and_a_loss_of_quality_are_told_together() -> None:
    decision = decide(dataclasses.replace(LOST, drift="drift"), CONFIG)
    assert decision.signal == "drift"
    assert decision.reason.startswith("drift on temp (PSI 0.31); loss of quality: absolute error")


def test_nothing_but_an_operator_starts_a_training_while_a_feature_is_broken() -> None:
    broken = dataclasses.replace(LOST, broken="temp, wind")
    decision = decide(broken, CONFIG)
    assert not decision.train and decision.lacking == ("broken",)
    assert decision.reason.endswith("; a training would learn what is wrong with temp, wind")
    assert decide(dataclasses.replace(broken, requested="now"), CONFIG).train
    assert decide(dataclasses.replace(broken, drift="drift"), CONFIG).lacking == ("broken",)
    assert decide(dataclasses.replace(broken, drift="drift", broken=""), CONFIG).train


@pytest.mark.parametrize(
    ("last", "since", "signal"),
    [
        (NOW - 7 * DAY_MS, None, "schedule"),
        (NOW - 7 * DAY_MS + 1, None, ""),
        (None, NOW - 7 * DAY_MS, "schedule"),
        (None, NOW - DAY_MS, ""),
        (None, None, ""),
    ],
)
def test_a_schedule_counts_from_the_last_training_or_the_start(
    last: int | None, since: int | None, signal: str
) -> None:
    config = dataclasses.replace(CONFIG, every_s=7 * 86_400)
    snapshot = changed(drift="ok", last_training_ms=last, watching_since_ms=since)
    assert decide(snapshot, config).signal == signal


def test_the_reason_says_what_is_waited_for_in_numbers() -> None:
    snapshot = changed(labels=812, last_training_ms=NOW - 3 * HOUR)
    assert decide(snapshot, CONFIG).reason == (
        "drift on temp (PSI 0.31); 812 of 2,000 labels; 3 h of 24 h cooldown"
    )
    failed = changed(failures=2, last_failure_ms=NOW - 30_000)
    assert "30 s of 2 min back-off after failure 2" in decide(failed, CONFIG).reason
    stopped = changed(failures=3)
    assert "stopped after 3 failed trainings" in decide(stopped, CONFIG).reason


def test_where_labels_must_mature_the_reason_says_how_many_have_and_how_many_not() -> None:
    config = dataclasses.replace(CONFIG, label_maturity_s=7 * 86_400)
    decision = decide(changed(labels=812, young_labels=1203), config)
    assert decision.lacking == ("labels",)
    assert "; 812 of 2,000 mature labels (1,203 are younger than 7 d)" in decision.reason


def test_the_back_off_doubles_up_to_six_hours() -> None:
    assert [backoff_ms(failures) // 1000 for failures in (0, 1, 2, 3)] == [0, 60, 120, 240]
    assert backoff_ms(10_000) == 6 * HOUR


def test_drift_that_costs_no_quality_waits_for_more_labels_after_each_refusal() -> None:
    reason = decide(changed(refusals=3), CONFIG).reason
    assert "2,500 of 8,000 labels, after 3 refused candidates and no loss of quality" in reason
