"""Whether decisions were right, by the rows that came after them."""

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer import backtest_decisions
from trimtab.trainer.backtest_baselines import Scores, oracle_scores
from trimtab.trainer.backtest_data import DataRequest, Dataset, prepare
from trimtab.trainer.backtest_decisions import (
    Judge,
    LoopEvent,
    Reproduced,
    tally,
    verdict,
    words,
)
from trimtab.trainer.dataset import TARGET
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.replay_schedule import PlannedRequest

ROWS, PERIOD = 1_000, 200
ERRORS = {1: 2.0, 2: 1.0, 3: 4.0}  # of each version's predictions


def dataset() -> Dataset:
    """Five periods; y is x, and from the middle on the opposite."""
    source = np.random.default_rng(3)
    x = source.normal(scale=5, size=ROWS)
    frame = pl.DataFrame(
        {
            "when": [datetime(2020, 1, 1) + timedelta(hours=row) for row in range(ROWS)],
            "part": [f"p{row // PERIOD}" for row in range(ROWS)],
            "y": np.where(np.arange(ROWS) < ROWS // 2, x, -x),
            "x": x,
        }
    )
    return prepare(frame, DataRequest(Path("d.parquet"), target="y", time="when", period="part"))


def recipe(data: Dataset, **changes: Any) -> Recipe:
    table: dict[str, Any] = {"task": "regression", "target": "y", "time": "when"}
    table |= {"numeric": ["x"], "min_rows": 20, "window_rows": 150, "min_holdout_rows": 50}
    table["estimator"] = {"max_iter": 30, "min_samples_leaf": 5}
    return Recipe.parse({**table, **changes})


def requests(rows: int = 7) -> list[PlannedRequest]:
    return [PlannedRequest(start, min(start + rows, ROWS)) for start in range(PERIOD, ROWS, rows)]


def event(kind: str, row: int, version: int = 0, labelled: int = PERIOD) -> LoopEvent:
    return LoopEvent(kind, version, f"why {kind}", f"row {row}", row, labelled, row)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    """One to whom version n answers with an error of about ERRORS[n]."""
    data = dataset()

    def answer(path: int, _: object, __: Recipe, data: Dataset, rows: slice) -> Scores:
        truth = data.frame["y"][rows].to_numpy()
        wrong = np.random.default_rng(path).normal(scale=ERRORS[path], size=len(truth))
        return np.asarray(truth + wrong)[:, None]

    monkeypatch.setattr(backtest_decisions, "version_scores", answer)
    model: Any = SimpleNamespace(version_path=lambda n: n, manifest=lambda n: None)
    answered = np.ones(ROWS, dtype=np.int64)
    return Judge(data, recipe(data), model, requests(), answered, period_rows=PERIOD)


def test_a_promotion_is_useful_or_harmful_by_the_period_that_follows(judge: Judge) -> None:
    events = [
        event("training_started", 300),
        event("promoted", 300, 2),
        event("promoted", 500, 3),
        event("rolled_back", 600, 2),
    ]
    good, bad, back = judge.decisions(events)
    assert (good.verdict, good.against, good.version) == ("right", 1, 2)
    assert good.low is not None
    assert good.low > 0
    assert (good.judged_rows, good.served_rows, good.rolled_back) == (PERIOD, 200, False)
    assert good.signal == "why training_started"
    assert (bad.verdict, bad.against, bad.rolled_back) == ("wrong", 2, True)
    assert words(bad) == "HARMFUL, and was taken back"
    assert (back.kind, back.verdict, back.served_rows) == ("rolled_back", "right", ROWS - 600)
    counts = tally([good, bad, back])
    assert counts["promoted"] == {"right": 1, "wrong": 1, "neither": 0, "unjudged": 0}
    assert counts["rolled_back"]["right"] == 1


def test_a_refused_candidate_is_fitted_again_and_may_have_been_better(judge: Judge) -> None:
    """What knows the turned world beats version 1; what knows the old one only does not."""
    late = [event("training_started", 700, labelled=700), event("refused", 700)]
    early = [event("training_started", 550, labelled=500), event("refused", 550)]
    (wrong,) = judge.decisions(late)
    assert (wrong.verdict, wrong.version, wrong.against) == ("wrong", 0, 1)
    assert words(wrong) == "wrongly refused"
    (right,) = judge.decisions(early)
    assert right.verdict == "right"
    assert right.metric_version is not None
    assert right.metric_version > 4


def test_without_enough_rows_after_it_a_decision_is_not_judged(judge: Judge) -> None:
    (decision,) = judge.decisions([event("promoted", ROWS - 30, 2)])
    assert (decision.verdict, decision.judged_rows, decision.improvement) == ("unjudged", 0, None)
    assert "30 rows came after it" in decision.note


def test_equal_models_make_no_difference(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ERRORS, 2, ERRORS[1])
    (decision,) = judge.decisions([event("promoted", 400, 2)])
    assert decision.verdict == "neither"


@pytest.mark.parametrize(
    ("low", "high", "chosen", "expected"),
    [
        (0.1, 0.2, True, "right"),
        (0.1, 0.2, False, "wrong"),
        (-0.2, -0.1, True, "wrong"),
        (-0.2, -0.1, False, "right"),
        (-0.1, 0.1, True, "neither"),
        (0.0, 0.0, False, "neither"),
    ],
)
def test_the_verdict_follows_from_the_interval(
    low: float, high: float, chosen: bool, expected: str
) -> None:
    assert verdict(low, high, chosen=chosen) == expected


def test_a_training_could_read_answered_rows_whose_labels_were_told() -> None:
    data = dataset()
    answered = np.ones(ROWS, dtype=np.int64)
    answered[PERIOD + 7 : PERIOD + 14] = 0
    model: Any = None
    judge = Judge(
        data, recipe(data, window_rows=500), model, requests(), answered, period_rows=PERIOD
    )
    rows = judge.training_rows(labelled=PERIOD + 21, began_ms=0)
    assert len(rows) == PERIOD + 14
    wanted = data.frame["y"].to_list()
    expected = [*wanted[: PERIOD + 7], *wanted[PERIOD + 14 : PERIOD + 21]]
    assert rows.frame[TARGET].to_list() == expected
    times = rows.times()[-7:]
    assert (times == data.times_ms[PERIOD + 20]).all(), "a row has its request's time"


def test_rows_that_are_not_mature_are_left_out() -> None:
    data = dataset()
    answered = np.ones(ROWS, dtype=np.int64)
    model: Any = None
    judge = Judge(
        data,
        recipe(data, window_rows=900),
        model,
        requests(1),
        answered,
        period_rows=PERIOD,
        maturity_ms=10 * 3_600_000,
    )
    now = int(data.times_ms[400])
    assert len(judge.training_rows(labelled=400, began_ms=now)) == 391


def test_published_versions_show_whether_rows_were_found_again() -> None:
    data = dataset()
    known = Judge(data, recipe(data), None, requests(), np.ones(ROWS), period_rows=PERIOD)  # type: ignore[arg-type]  # it is not asked
    digest = known.training_rows(400, 0).sha256()
    lineages = {2: {"data": {"sha256": digest}}, 3: {"data": {"sha256": "other"}}}
    model: Any = SimpleNamespace(manifest=lambda n: SimpleNamespace(lineage=lineages[n]))
    judge = Judge(
        data, recipe(data), model, requests(), np.ones(ROWS, dtype=np.int64), period_rows=PERIOD
    )
    events = [
        event("training_started", 450, labelled=400),
        event("published", 450, 2),
        event("training_started", 600, labelled=550),
        event("published", 600, 3),
    ]
    assert judge.reproduced(events) == Reproduced(matching=1, of=2)


def test_the_oracle_knows_the_period_but_never_the_row_it_is_asked() -> None:
    data = dataset()
    steps: list[tuple[int, int]] = []
    scores = oracle_scores(recipe(data), data, 1, lambda done, of: steps.append((done, of)))
    assert np.isnan(scores[:PERIOD]).all()
    assert not np.isnan(scores[PERIOD:]).any()
    truth = data.frame["y"].to_numpy()
    turned = slice(3 * PERIOD, 4 * PERIOD)
    error = np.abs(scores[turned, 0] - truth[turned]).mean()
    assert 0 < error < 1.5, "it learned the turned world, though not each row by heart"
    assert (scores == oracle_scores(recipe(data), data, 1))[PERIOD:].all()
    assert steps[-1] == (4, 4)
