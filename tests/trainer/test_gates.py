from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.trainer.gates import (
    Verdict,
    baseline_gate,
    comparison_gate,
    confidence_after,
    latency_gate,
    no_comparison,
    parity_gate,
    refusal,
    schema_gate,
    segment_gate,
)
from trimtab.trainer.latency import Latency
from trimtab.trainer.parity import Parity
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.scores import PairedDifference, paired_difference
from trimtab.trainer.segments import Segment

RecipeMaker = Callable[..., Recipe]
NUMERIC = TensorSpec("numeric", "FP32", (-1, 2), ("a", "b"))
OUTPUT = TensorSpec("probabilities", "FP32", (-1, 2), ("probabilities[x]", "probabilities[y]"))
CHAMPION = Signature((NUMERIC,), (OUTPUT,))


def difference(improvement: float, margin: float, first: float = 10.0) -> PairedDifference:
    return PairedDifference(
        first, first - improvement, improvement, improvement - margin, improvement + margin, 600, 50
    )


@pytest.mark.parametrize(
    ("gate", "improvement", "margin", "verdict", "words"),
    [
        ("better", 1.0, 0.5, Verdict.PASS, "better: mae 9 against the champion's 10"),
        ("better", 0.4, 0.5, Verdict.INCONCLUSIVE, "not surely better"),
        ("better", 0.0, 0.0, Verdict.FAIL, "not better"),
        ("better", -0.1, 0.5, Verdict.FAIL, "not better"),
        ("better", -1.0, 0.5, Verdict.FAIL, "not better"),
        ("not_worse", 0.0, 0.05, Verdict.PASS, "not worse"),
        ("not_worse", -0.05, 0.05, Verdict.PASS, "not worse"),
        ("not_worse", -0.05, 0.2, Verdict.INCONCLUSIVE, "may be worse"),
        ("not_worse", -1.0, 0.2, Verdict.FAIL, "worse: mae 11 against the champion's 10"),
    ],
)
def test_the_comparison_says_what_the_interval_says(
    make_recipe: RecipeMaker,
    gate: str,
    improvement: float,
    margin: float,
    verdict: Verdict,
    words: str,
) -> None:
    found = comparison_gate(make_recipe(gate=gate), 600, difference(improvement, margin))
    assert found.verdict is verdict
    assert found.reason.startswith(words)
    assert found.figures["champion"] == 10.0


def test_challenges_share_the_chance_of_one_however_many_they_are() -> None:
    spent = [1 - confidence_after(refusals) for refusals in range(10_000)]
    assert all(later < sooner for sooner, later in pairwise(spent))
    assert 0.0499 < sum(spent) < 0.05


@pytest.mark.parametrize(
    ("refusals", "words"),
    [
        (0, "97.5 % interval +0.5 to +1.5)"),
        (1, "99.17 % interval +0.5 to +1.5, after 1 refusal)"),
        (9, "99.955 % interval +0.5 to +1.5, after 9 refusals)"),
    ],
)
def test_the_comparison_tells_how_sure_it_had_to_be(
    make_recipe: RecipeMaker, refusals: int, words: str
) -> None:
    found = comparison_gate(make_recipe(), 600, difference(1, 0.5), refusals)
    assert found.reason.endswith(words)
    assert found.figures["refusals"] == refusals
    assert found.figures["confidence"] == confidence_after(refusals)


def test_a_champion_that_is_challenged_by_equals_for_long_stays(make_recipe: RecipeMaker) -> None:
    random = np.random.default_rng(0)
    replaced = {True: 0, False: 0}
    for spends in (True, False):
        for _ in range(60):
            for refusals in range(12):
                truth, champion, candidate = random.normal(size=(3, 300))
                confidence = confidence_after(refusals) if spends else 0.95
                found = paired_difference("mae", truth, champion, candidate, confidence=confidence)
                gate = comparison_gate(make_recipe(), 300, found, refusals)
                if gate.verdict is Verdict.PASS:
                    replaced[spends] += 1
                    break
    assert replaced[True] <= 4
    assert replaced[False] >= 10


def test_too_few_rows_are_inconclusive_and_told_with_the_limit(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe(min_holdout_rows=500)
    for rows, given in ((0, None), (499, difference(5, 1))):
        found = comparison_gate(recipe, rows, given)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert f"{rows} labelled rows" in found.reason
        assert "asks for 500" in found.reason


def test_a_metric_that_is_not_defined_is_inconclusive(make_recipe: RecipeMaker) -> None:
    found = comparison_gate(make_recipe(), 600, difference(float("nan"), 1))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "not defined" in found.reason


def test_the_champions_schema_passes_and_so_does_none(make_recipe: RecipeMaker) -> None:
    assert schema_gate(make_recipe(), CHAMPION, CHAMPION).verdict is Verdict.PASS
    assert schema_gate(make_recipe(), CHAMPION, None).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([], [OUTPUT], "the champion's input 'numeric' is gone"),
        ([NUMERIC, TensorSpec("extra", "FP32", (-1, 1))], [OUTPUT], "the input 'extra' is new"),
        (
            [TensorSpec("numeric", "FP32", (-1, 2), ("a", "c"))],
            [OUTPUT],
            "the input 'numeric' has the champion's columns without b and with the new c",
        ),
        (
            [TensorSpec("numeric", "FP32", (-1, 2), ("b", "a"))],
            [OUTPUT],
            "the input 'numeric' has the champion's columns in another order",
        ),
        (
            [TensorSpec("numeric", "FP64", (-1, 2), ("a", "b"))],
            [OUTPUT],
            "the input 'numeric' is FP64, the champion's FP32",
        ),
        (
            [NUMERIC],
            [TensorSpec("probabilities", "FP32", (-1, 3), (*OUTPUT.columns, "probabilities[z]"))],
            "the output 'probabilities' has the champion's columns with the new probabilities[z]",
        ),
    ],
)
def test_another_schema_is_refused_unless_the_recipe_allows_it(
    make_recipe: RecipeMaker, inputs: list[Any], outputs: list[Any], words: str
) -> None:
    candidate = Signature(tuple(inputs), tuple(outputs))
    refused = schema_gate(make_recipe(), candidate, CHAMPION)
    assert refused.verdict is Verdict.FAIL
    assert words in refused.reason
    allowed = schema_gate(make_recipe(schema_change="allow"), candidate, CHAMPION)
    assert allowed.verdict is Verdict.PASS
    assert words in allowed.reason


@pytest.mark.parametrize(
    ("parity", "verdict", "words"),
    [
        (Parity(10_000, 1e-6, 1e-4, 0), Verdict.PASS, "agree on 10,000 rows"),
        (Parity(10_000, 1e-3, 1e-4, 0), Verdict.FAIL, "differs from scikit-learn by up to 0.001"),
        (Parity(10_000, float("inf"), 1e-4, 0), Verdict.FAIL, "by up to inf"),
        (Parity(10_000, float("nan"), 1e-4, 0), Verdict.FAIL, "by up to nan"),
        (Parity(10_000, 0.0, 1e-4, 3), Verdict.FAIL, "gives another class than scikit-learn in 3"),
    ],
)
def test_parity_needs_every_row(parity: Parity, verdict: Verdict, words: str) -> None:
    found = parity_gate(parity)
    assert found.verdict is verdict
    assert words in found.reason


def test_a_refused_parity_names_the_worst_rows() -> None:
    found = parity_gate(Parity(10_000, 0.5, 1e-4, 3, ("a=1.0: 0.9 instead of 0.4",)))
    assert found.reason.endswith("; the worst: a=1.0: 0.9 instead of 0.4")


@pytest.mark.parametrize(
    ("improvement", "margin", "verdict", "words"),
    [
        (1.0, 0.5, Verdict.PASS, "better: mae 9 against 10 of the best constant guess"),
        (0.4, 0.5, Verdict.INCONCLUSIVE, "not surely better"),
        (0.0, 0.0, Verdict.FAIL, "not better"),
        (-1.0, 0.5, Verdict.FAIL, "not better"),
        (float("nan"), 0.5, Verdict.INCONCLUSIVE, "mae is not defined on the 600 newest rows"),
    ],
)
def test_a_candidate_must_surely_beat_a_constant_guess_unless_that_is_only_told(
    make_recipe: RecipeMaker, improvement: float, margin: float, verdict: Verdict, words: str
) -> None:
    given = difference(improvement, margin)
    found = baseline_gate(make_recipe(), 600, given, 3.0)
    assert found.verdict is verdict
    assert found.reason.startswith(words)
    told = baseline_gate(make_recipe(baseline="report"), 600, given, None)
    assert told.verdict is Verdict.PASS
    if verdict is Verdict.PASS:
        assert found.figures["last_known"] == 3.0
        assert "last_known" not in told.figures
    else:
        assert 'baseline = "report"' in found.reason
        assert told.reason.endswith("the recipe only wants it told")


def segment(improvement: float, margin: float, value: str = "ATL") -> Segment:
    return Segment("dest", value, 300, 10 - improvement, difference(improvement, margin))


@pytest.mark.parametrize(
    ("segments", "verdict", "words"),
    [
        ([], Verdict.PASS, "no segment has 200 of the newest rows"),
        ([Segment("dest", "ATL", 300, 9.0)], Verdict.PASS, "there is no champion"),
        ([segment(1, 0.5)], Verdict.PASS, "in none of 1 segments surely worse than the champion"),
        ([segment(-2, 3)], Verdict.PASS, "in none of 1 segments"),  # may be chance
        ([segment(-0.4, 0.1)], Verdict.PASS, "in none of 1 segments"),  # surely, by 4 % of it
        ([segment(-2, 1)], Verdict.FAIL, "surely worse than the champion where dest = 'ATL'"),
        ([segment(1, 0.5), segment(-2, 1, "LAX")], Verdict.FAIL, "surely worse than the champion"),
        ([segment(float("nan"), 1)], Verdict.PASS, "there is no champion"),
    ],
)
def test_no_segment_may_be_surely_worse_by_more_than_the_tolerance(
    make_recipe: RecipeMaker, segments: list[Segment], verdict: Verdict, words: str
) -> None:
    found = segment_gate(make_recipe(segment_tolerance=0.05), segments)
    assert found.verdict is verdict
    assert found.reason.startswith(words)
    if verdict is Verdict.FAIL:
        assert "(mae 12 against 10 on 300 rows)" in found.reason
        assert found.figures["worse"] == 1.0


@pytest.mark.parametrize(
    ("budget", "candidate", "champion", "verdict", "words"),
    [
        (0, Latency(900, 90), None, Verdict.PASS, "there is no budget and no champion"),
        (0, Latency(199, 39), Latency(100, 20), Verdict.PASS, "up to 2 times"),
        (0, Latency(201, 20), Latency(100, 20), Verdict.FAIL, "too slow: 201 µs for a row alone"),
        (0, Latency(100, 41), Latency(100, 20), Verdict.FAIL, "41 in 64"),
        (0, Latency(100, 20), Latency(5, 0.2), Verdict.PASS, "up to 2 times"),  # fast anyway
        (50, Latency(51, 1), Latency(100, 20), Verdict.FAIL, "latency_budget_us is 50"),
        (50, Latency(50, 90), Latency(1, 1), Verdict.PASS, "latency_budget_us is 50"),
        (50, Latency(float("nan"), 1), None, Verdict.FAIL, "latency_budget_us is 50"),
    ],
)
def test_latency_holds_to_the_budget_or_to_about_the_champions(
    make_recipe: RecipeMaker,
    budget: float,
    candidate: Latency,
    champion: Latency | None,
    verdict: Verdict,
    words: str,
) -> None:
    found = latency_gate(make_recipe(latency_budget_us=budget), candidate, champion)
    assert found.verdict is verdict
    assert words in found.reason
    if verdict is Verdict.PASS:
        same = latency_gate(make_recipe(latency_budget_us=budget), Latency(1, 1), champion)
        assert found.repeated() == same.repeated()


def test_a_refusal_tells_every_gate_that_did_not_pass(make_recipe: RecipeMaker) -> None:
    passed = no_comparison("no champion")
    unsure = comparison_gate(make_recipe(), 600, difference(0.4, 0.5))
    failed = segment_gate(make_recipe(), [segment(-2, 1)])
    assert refusal([passed]) == ""
    told = refusal([passed, unsure, failed])
    assert told == f"champion: {unsure.reason}; segments: {failed.reason}"
    assert unsure.to_dict()["verdict"] == "inconclusive"
