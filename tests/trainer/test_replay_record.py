"""What is noted during a replay lands in the right period."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from trimtab.proto import admin_pb2
from trimtab.trainer.backtest_baselines import empty_scores
from trimtab.trainer.backtest_data import DataRequest, Dataset, prepare
from trimtab.trainer.replay_record import ReplayRecord

ROWS = 300


def dataset() -> Dataset:
    frame = pl.DataFrame(
        {
            "when": [datetime(2020, 1, 1) + timedelta(hours=10 * row) for row in range(ROWS)],
            "y": [float(row) for row in range(ROWS)],
            "x": [float(row) for row in range(ROWS)],
        }
    )
    return prepare(frame, DataRequest(path=Path("d.parquet"), target="y", time="when"))


def event(kind: str, when: datetime, version: int = 0, **evidence: Any) -> admin_pb2.Event:
    return admin_pb2.Event(
        kind=kind,
        version=version,
        actor="loop",
        reason="why",
        event_time_ms=int(when.timestamp() * 1000),
        evidence_json=json.dumps(evidence),
    )


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text + "+00:00")


def drift(name: str, psi: float, state: str = "ok") -> admin_pb2.DriftReport:
    features = [
        admin_pb2.FeatureDrift(name="other", psi=0.001),
        admin_pb2.FeatureDrift(name=name, psi=psi),
    ]
    return admin_pb2.DriftReport(state=state, version=1, features=features)


def test_events_belong_to_the_period_of_their_time() -> None:
    data = dataset()
    record = ReplayRecord(data)
    record.note_event(event("training_started", utc("2020-02-29 23:59:59")))
    record.note_event(event("promoted", utc("2020-03-01 00:00:00"), version=2))
    record.note_event(event("refused", utc("2031-01-01 00:00:00")))
    record.note_event(event("promoted", utc("1999-01-01 00:00:00"), version=9))
    periods = record.periods("mae", *[empty_scores(data)] * 3)
    kinds = {period.period: [noted["kind"] for noted in period.events] for period in periods}
    assert kinds == {
        "2020-02": ["training_started", "promoted"],
        "2020-03": ["promoted"],
        "2020-04": [],
        "2020-05": ["refused"],
    }
    assert [period.champion_version for period in periods] == [9, 2, 2, 2]
    noted = periods[0].events[0]
    assert noted["time"] == "2020-02-29 23:59:59"
    assert noted["after_rows"] == periods[0].rows
    nothing = empty_scores(data)
    overall = record.overall("mae", nothing, nothing, nothing, 5, ())
    assert (overall.promotions, overall.refused, overall.trainings) == (2, 1, 1)


def test_the_worst_drift_of_a_period_is_kept_also_that_of_an_event() -> None:
    data = dataset()
    record = ReplayRecord(data)
    february, march = (
        int(utc(text).timestamp() * 1000) for text in ("2020-02-10 00:00:00", "2020-03-10 00:00:00")
    )
    record.note_drift(drift("x", 0.1), february)
    record.note_drift(drift("z", 9.0, state="collecting"), february)
    record.note_drift(drift("y", 0.05), february)
    record.note_drift(drift("x", 0.15), march)
    found = {
        "feature": "temp",
        "role": "input",
        "verdict": "drift",
        "psi": 0.33,
        "ks": [0.1, 0.2],
        "missing_rate": 0.0,
        "unseen_rate": 0.0,
    }
    record.note_event(event("drift", utc("2020-03-11 00:00:00"), version=1, features=[found]))
    warning = {**found, "psi": 0.12, "verdict": "warning"}
    when = utc("2020-04-11 00:00:00")
    record.note_event(event("drift_warning", when, version=1, features=[warning]))
    periods = record.periods("mae", *[empty_scores(data)] * 3)
    worst = [(p.drift["feature"], p.drift["psi"]) if p.drift else None for p in periods]
    assert worst == [("x", 0.1), ("temp", 0.33), ("temp", 0.12), None]
    assert [p.drift["state"] for p in periods if p.drift] == ["ok", "drift", "warning"]


def test_alarms_name_the_features_they_are_about_and_no_others() -> None:
    data = dataset()
    record = ReplayRecord(data)
    drifted = {"feature": "x", "verdict": "drift", "role": "input", "psi": 0.4, "ks": [0.1, 0.2]}
    drifted |= {"missing_rate": 0.0, "unseen_rate": 0.0}
    calm = {**drifted, "feature": "z", "verdict": "ok"}
    when = utc("2020-02-10 00:00:00")
    noted = record.note_event(event("drift", when, features=[calm, drifted]))
    assert noted["features"] == ["x"]
    broken = event("data_quality", when, features=[calm, {**calm, "feature": "size"}])
    broken.reason = "size: missing in 30.0% of the rows"
    assert record.note_event(broken)["features"] == ["size"]


def test_an_event_knows_its_row_and_which_labels_were_told() -> None:
    data = dataset()
    record = ReplayRecord(data)
    record.labels_told = 90
    record.note_event(event("training_started", utc("2020-03-01 00:00:00")))
    (noted,) = record.loop_events
    assert noted.row == int((data.times_ms <= noted.time_ms).sum())
    assert noted.labelled == 90


def test_failed_requests_are_counted_in_the_period_of_their_first_row() -> None:
    data = dataset()
    record = ReplayRecord(data)
    record.answers.failed_starts += [data.periods[1].start, data.periods[2].start - 1]
    record.answers.failed_requests = 2
    periods = record.periods("mae", *[empty_scores(data)] * 3)
    assert [period.failed_requests for period in periods] == [2, 0, 0, 0]
