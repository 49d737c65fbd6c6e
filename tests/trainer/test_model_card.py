"""What the card says, and that its picture is small and always the same."""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trimtab.trainer.card_plots import PlotFacts, card_png
from trimtab.trainer.gates import GateResult, Verdict
from trimtab.trainer.model_card import CardFacts, card_markdown
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.scores import PairedDifference
from trimtab.trainer.segments import Segment
from trimtab.trainer.window_drift import ColumnDrift

RecipeMaker = Callable[..., Recipe]
FIGURES = {"rows": 600.0, "champion": 10.0, "candidate": 9.0, "low": 0.5, "high": 1.5}


@pytest.fixture
def facts(make_recipe: RecipeMaker) -> CardFacts:
    return CardFacts(
        model="airtime",
        recipe=make_recipe(),
        gates=[
            GateResult("schema", Verdict.PASS, "inputs and outputs are the champion's"),
            GateResult("champion", Verdict.PASS, "better: a|b", {**FIGURES, "improvement": 1.0}),
            GateResult(
                "latency", Verdict.PASS, "took 12.3 µs", {"alone_us": 12.3}, repeatable="as fast"
            ),
        ],
        metrics={"mae": 9.0, "rmse": 12.0, "champion_mae": 10.0},
        constant_metric=40.0,
        lineage={
            "champion": 3,
            "trigger": {
                "kind": "drift",
                "feature": "temp",
                "reason": "drift on temp",
                "drift": [{"psi": 0.31}],
            },
            "data": {
                "rows": 3_000,
                "time_from_ms": 1_357_000_000_000,
                "time_to_ms": 1_360_000_000_000,
                "sha256": "ab" * 32,
                "sampling": {
                    "window_rows": 9_000,
                    "window_taken": 2_700,
                    "history": {"rows": 50_000, "taken": 300},
                },
                "sources": [{"path": "january.parquet", "rows": 3_000, "sha256": "cd" * 32}],
                "dropped": {"rows without a target": 7},
            },
            "holdout": {"rows": 600, "refitted": True},
            "libraries": {"numpy": "2.4.6", "absent": ""},
            "python": "3.11.7",
        },
        reason="drift on temp",
        segments=[
            Segment("dest", "LAX", 300, 8.0),
            Segment("dest", "ATL", 250, 20.0, PairedDifference(21, 20, 1, 0, 2, 250, 25)),
        ],
        importances={"size": 5.0, "age": -0.1},
        drift=[ColumnDrift("age", 0.9, 0.01), ColumnDrift("size", 0.01, 0.02)],
    )


@pytest.mark.parametrize(
    "told",
    [
        "It was judged against version 3, the champion then, and it passed all 3 gates",
        "The mean absolute error (lower is better) went from 10 to 9",
        "with 95 % confidence the true improvement is between +0.5 and +1.5",
        "because of: drift on temp — kind: drift, feature: temp.",
        "| champion | pass | better: a\\|b |",
        "3,000 labelled rows from 2013-01-01 00:26 to 2013-02-04 17:46",
        "The newest 600 of them were kept for judging; then the published model was fitted again",
        "Of the window's 9,000 rows 2,700 were taken, and 300 of 50,000 older ones; each counts for",
        "from `january.parquet`: 3,000 rows, SHA-256 `cdcdcdcdcdcd…`",
        "left out: 7 rows without a target",
        "| mae | 9 | 10 | 40 |",
        "| rmse | 12 | – | – |",
        "| dest = ATL | 250 | 20 | 21 |\n| dest = LAX | 300 | 8 | – |",
        "`age` changed within the training rows already (PSI 0.9 ",
        "| size | 5 | 0.01 |",
        "Python 3.11.7, numpy 2.4.6.",
    ],
)
def test_the_card_tells(facts: CardFacts, told: str) -> None:
    assert told in card_markdown(facts)


def test_the_card_tells_nothing_that_a_clock_measured(facts: CardFacts) -> None:
    card = card_markdown(facts)
    assert "12.3" not in card
    assert "| latency | pass | as fast |" in card


def test_a_first_version_without_categories_has_a_card_too(
    facts: CardFacts, make_recipe: RecipeMaker
) -> None:
    first = dataclasses.replace(
        facts,
        recipe=make_recipe("binary", categorical=[]),
        gates=[GateResult("champion", Verdict.PASS, "there is no champion to compare with")],
        metrics={"roc_auc": 0.8, "log_loss": float("nan")},
        lineage={"champion": 0, "data": {"rows": 500, "time_from_ms": 0, "time_to_ms": 0}},
        reason="",
        segments=(),
        drift=(),
    )
    card = card_markdown(first)
    assert "no champion: it is a first" in card
    assert "in the order of their files" in card
    assert "No category has enough held-out rows" in card
    assert "| log_loss | – | – | – |" in card
    assert "It is the first version" in card
    assert "The training was started because" not in card


def plot_facts(task: str) -> PlotFacts:
    random = np.random.default_rng(0)
    rows = 1_000
    drift = [ColumnDrift(f"a column with a long $name$ {place}", 0.1, 0.05) for place in range(12)]
    columns: dict[str, Any] = {"drift": drift, "importances": {"a": 1.0, "b": -0.2, "c": np.nan}}
    if task == "regression":
        truth = random.normal(size=rows)
        noise = random.normal(size=(2, rows))
        return PlotFacts(
            truth, truth + 0.1 * noise[0], np.zeros(rows), truth + 0.3 * noise[1], (), **columns
        )
    classes = ("a", "b") if task == "binary" else ("a", "b", "c")
    truth = random.choice(classes, rows).astype(object)
    given = random.dirichlet(np.ones(len(classes)), rows)
    constant = np.full((rows, len(classes)), 1 / len(classes))
    return PlotFacts(truth, given, constant, None, classes, **columns)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_the_picture_is_small_and_the_same_every_time_and_has_no_metadata(
    make_recipe: RecipeMaker, task: str
) -> None:
    once, again = (card_png(make_recipe(task), plot_facts(task)) for _ in range(2))
    assert once == again
    assert once.startswith(b"\x89PNG")
    assert len(once) < 100_000
    kinds, place = [], 8
    while place < len(once):
        (size,) = struct.unpack(">I", once[place : place + 4])
        kinds.append(once[place + 4 : place + 8])
        place += 12 + size
    assert set(kinds) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_a_handful_of_rows_and_nothing_to_show_is_a_picture_as_well(
    make_recipe: RecipeMaker,
) -> None:
    few = PlotFacts(np.arange(3.0), np.arange(3.0), np.zeros(3))
    assert card_png(make_recipe(), few).startswith(b"\x89PNG")
