from collections.abc import Callable
from typing import Any

import pytest

from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.trainer.gates import (
    Verdict,
    comparison_gate,
    no_comparison,
    parity_gate,
    refusal,
    schema_gate,
)
from trimtab.trainer.parity import Parity
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.scores import PairedDifference

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


def test_the_first_gate_that_does_not_pass_refuses(make_recipe: RecipeMaker) -> None:
    passed = no_comparison("no champion")
    unsure = comparison_gate(make_recipe(), 600, difference(0.4, 0.5))
    failed = comparison_gate(make_recipe(), 600, difference(-1, 0.5))
    assert refusal([passed]) is None
    assert refusal([passed, unsure, failed]) is unsure
    assert unsure.to_dict()["verdict"] == "inconclusive"
