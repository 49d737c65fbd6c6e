import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, reference
from tests.server.rollout.test_comparison import calls, value
from trimtab.server.config import PromotionConfig
from trimtab.server.logs.label_log import Label
from trimtab.server.rollout.comparison import Comparison, Figures, Latency
from trimtab.server.rollout.output_pair import OutputFigures
from trimtab.server.rollout.paired_losses import LabelFigures
from trimtab.server.rollout.verdict import Limits, judge

CONFIG = PromotionConfig()
FINE = Figures(
    rows=5_000,
    requests=500,
    latency=Latency(100, 1.0, 0.9, 0.0, -0.1),
    outputs=(OutputFigures("variable", 5_000, 0.9, 0.05, 0.01, 0.0),),
    labels=LabelFigures("absolute error", 1_000, 1.0, 1.1, 0.1, 0.01),
)
WHOLE = Limits(rows=5_000)


def having(**parts: Any) -> Figures:
    return dataclasses.replace(FINE, **parts)


def labels(improvement: float, error: float = 0.01, rows: int = 1_000) -> LabelFigures:
    return LabelFigures("absolute error", rows, 1.0 - improvement, 1.0, improvement, error)


def psi(low: float) -> tuple[OutputFigures, ...]:
    return (OutputFigures("variable", 5_000, 0.9, 0.05, low + 0.1, low),)


SLOW = Latency(100, 3.0, 2.5, 4.0, 3.0)


@pytest.mark.parametrize(
    ("figures", "config", "outcome", "words"),
    [
        (FINE, {}, "pass", "5,000 rows compared"),
        # errors: by as many as chance cannot explain, and by max_error_rise of the requests
        (having(failed_version=13), {}, "pass", "13 of 500"),
        (having(failed_version=14), {}, "fail", "14 of 500 requests failed on it alone, 0 on the"),
        (having(failed_version=14), {"max_error_rise": 0.05}, "pass", ""),
        (having(failed_version=500, failed_against=500, failed_both=500), {}, "pass", ""),
        (having(failed_version=60, failed_against=40), {}, "pass", ""),
        (having(failed_version=20, failed_against=200), {}, "pass", "200 on the other alone"),
        (having(requests=90_000, failed_version=1_700, failed_against=1_300), {}, "fail", ""),
        (having(requests=90_000, failed_version=1_500, failed_against=1_490), {}, "pass", ""),
        (
            having(failed_against=500, latency=Latency(), outputs=(OutputFigures("variable"),)),
            {},
            "pass",
            "500 on the other alone",
        ),
        # latency: relative and absolute, and surely
        (having(latency=SLOW), {}, "fail", "3.00 times as long"),
        (having(latency=SLOW), {"max_latency_ratio": 2.6}, "pass", ""),
        (having(latency=SLOW), {"max_latency_ms": 3.5}, "pass", ""),
        # predictions: unless labels show that they are no worse
        (having(outputs=psi(4), labels=labels(0.2, rows=10)), {}, "fail", "PSI 4.10"),
        (having(outputs=psi(4), labels=labels(0.2, rows=10)), {"max_psi": 0}, "pass", ""),
        (having(outputs=psi(4), labels=labels(0.2)), {}, "pass", "labels show"),
        (having(outputs=psi(4), labels=labels(0.0, 0.05)), {}, "fail", "limit 3"),
        (having(outputs=psi(4), labels=labels(0.2)), {"labels": "ignored"}, "fail", ""),
        (FINE, {"min_agreement": 0.95}, "fail", "90% of the rows agree in variable (limit 95%)"),
        (FINE, {"min_agreement": 0.905}, "pass", ""),
        # labels: worse by more than the margin, and surely
        (having(labels=labels(-0.2)), {}, "fail", "absolute error 1.2 against 1"),
        (having(labels=labels(-0.2, 0.05)), {}, "pass", ""),
        (having(labels=labels(-0.04, 0.001)), {}, "pass", ""),
        (having(labels=labels(-0.2)), {"max_loss_rise": 0.5}, "pass", ""),
        (having(labels=labels(-0.2)), {"labels": "ignored"}, "pass", ""),
        (having(labels=labels(-0.2, rows=499)), {}, "pass", "499 of 500 labelled rows"),
        (having(labels=labels(math.nan, math.nan, rows=600)), {}, "pass", ""),
    ],
)
def test_what_passes_and_what_fails(
    figures: Figures, config: dict[str, Any], outcome: str, words: str
) -> None:
    verdict = judge(figures, dataclasses.replace(CONFIG, **config), WHOLE)
    assert (verdict.outcome, words in verdict.reason) == (outcome, True), verdict
    assert verdict.evidence()["checks"].keys() == {"errors", "latency", "predictions", "labels"}


@pytest.mark.parametrize(
    ("figures", "config", "limits", "outcome", "words"),
    [
        # before the time is up what is lacking is waited for
        (having(rows=4_999), {}, {}, "", "4,999 of 5,000 rows were compared"),
        (having(latency=Latency(3)), {}, {}, "", "3 of 16 runs were timed"),
        (having(answered=9), {}, {"answered": 10}, "", "it answered 9 of 10 rows"),
        (having(labels=labels(0, rows=7)), {}, {"awaits_labels": True}, "", "7 of 500 labelled"),
        (having(labels=labels(0, rows=7)), {"labels": "required"}, {}, "", "7 of 500 labelled"),
        (Figures(), {}, {}, "", "0 of 5,000 rows"),
        # but not for what shows already that it fails
        (having(rows=100, failed_version=50), {}, {}, "fail", "50 of 500"),
        # when it is up, what there is decides
        (having(rows=600), {}, {"out_of_time": True}, "pass", "600 rows compared"),
        (having(rows=499), {}, {"out_of_time": True}, "inconclusive", "only 499 rows"),
        (having(rows=499), {"min_rows": 100}, {"out_of_time": True}, "pass", ""),
        (having(latency=Latency(3)), {}, {"out_of_time": True}, "inconclusive", "3 of 16"),
        (having(answered=9), {}, {"answered": 10, "out_of_time": True}, "inconclusive", "only 9"),
        (
            having(labels=labels(0, rows=7)),
            {},
            {"awaits_labels": True, "out_of_time": True},
            "pass",
            "",
        ),
        (
            having(labels=labels(0, rows=7)),
            {"labels": "required"},
            {"out_of_time": True},
            "inconclusive",
            "7 of 500",
        ),
        (
            having(labels=LabelFigures()),
            {"labels": "required"},
            {"out_of_time": True},
            "inconclusive",
            "no label can be held",
        ),
        (Figures(), {}, {"out_of_time": True}, "inconclusive", "the time is up and only 0 rows"),
    ],
)
def test_what_is_waited_for_and_what_is_inconclusive(
    figures: Figures, config: dict[str, Any], limits: dict[str, Any], outcome: str, words: str
) -> None:
    verdict = judge(
        figures, dataclasses.replace(CONFIG, **config), dataclasses.replace(WHOLE, **limits)
    )
    assert (verdict.outcome, words in verdict.reason) == (outcome, True), verdict


def test_missing_data_never_passes() -> None:
    for rows in (0, 499):
        for config in (CONFIG, dataclasses.replace(CONFIG, labels="required")):
            for out_of_time in (False, True):
                limits = Limits(rows=5_000, out_of_time=out_of_time)
                verdict = judge(Figures(rows=rows, requests=rows), config, limits)
                assert verdict.outcome == ("inconclusive" if out_of_time else "")


def test_a_version_that_is_no_worse_passes_however_often_one_looks() -> None:
    """Twenty good versions, as noisy as retrained ones are, looked at a hundred times each: 5 % of
    wrong answers differ, labels are noisy, errors hit either side alike, runs are timed badly."""
    random = np.random.default_rng(5)
    profile = reference(5_000)
    for _ in range(20):
        found = Comparison(SIGNATURE, SIGNATURE, profile, tolerance=0.1, capacity=5_000)
        for look in range(50):
            truth = random.normal(0, 2, 100)
            against = truth + random.normal(0, 1, 100)
            version = truth + random.normal(0, 1, 100)
            version[random.random(100) < 0.003] = np.nan
            against[random.random(100) < 0.003] = np.nan
            rows = calls([1] * 100, 100 * look)
            found.add(rows, value(version), value(against), answered=True)
            found.label(
                [Label(f"call-{100 * look + r}", 0, number=float(truth[r])) for r in range(100)]
            )
            found.add_times(*(int(t) for t in random.lognormal(15, 1, 2)))
            verdict = judge(found.figures(), CONFIG, WHOLE)
            assert verdict.outcome in ("", "pass"), verdict
        assert verdict.outcome == "pass"


def test_answers_that_differ_wait_for_labels_where_some_come() -> None:
    figures = having(outputs=psi(4), labels=labels(0.0, rows=10))
    config = PromotionConfig()
    waiting = judge(figures, config, Limits(5_000, awaits_labels=True))
    assert waiting.outcome == "" and "which labels are to judge" in waiting.reason
    late = judge(figures, config, Limits(5_000, awaits_labels=True, out_of_time=True))
    assert late.outcome == "inconclusive"
    assert judge(figures, config, Limits(5_000)).outcome == "fail", "nothing else speaks for it"
    better = having(outputs=psi(4), labels=labels(0.2))
    assert judge(better, config, Limits(5_000, awaits_labels=True)).outcome == "pass"
