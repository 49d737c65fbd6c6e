"""What is held out, and that no answer to it comes from a model that has seen it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from trimtab.trainer import holdout as module
from trimtab.trainer.dataset import Dataset
from trimtab.trainer.holdout import Holdout, aligned, hold_out, judged
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.scores import paired_difference

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]


@pytest.fixture
def window(make_frame: FrameMaker, make_recipe: RecipeMaker) -> Dataset:
    return Dataset.from_frame(make_recipe(), make_frame(1_000))


def test_the_newest_share_is_held_out_and_none_of_what_the_champion_learned(
    window: Dataset, make_recipe: RecipeMaker
) -> None:
    times, recipe = window.times(), make_recipe(min_holdout_rows=100)
    assert hold_out(recipe, window, None).cut == 800
    assert hold_out(recipe, window, int(times[700])).cut == 800
    split = hold_out(recipe, window, int(times[849]))
    assert (split.cut, split.unseen) == (850, True)
    assert split.newest.times()[0] > times[849] == split.older.times()[-1]
    late = hold_out(recipe, window, int(times[900]))
    assert (late.cut, late.unseen) == (800, False), "99 new rows are too few"


class Fits:
    """Stands in for fitting: a model is how many rows it has learned, and says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.newest_ms: list[int] = []
        monkeypatch.setattr(module, "fit", self.fit)
        monkeypatch.setattr(module, "predict", self.predict)
        monkeypatch.setattr(module, "classes_of", lambda model: ())

    def fit(self, recipe: Recipe, rows: Dataset) -> int:
        self.newest_ms.append(int(rows.times()[-1]))
        return len(rows)

    def predict(self, recipe: Recipe, model: int, rows: Dataset) -> NDArray[Any]:
        assert rows.times()[0] > self.newest_ms[-1]
        return np.full(len(rows), float(model))


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ({}, [800, 850, 900, 950]),
        ({"holdout_parts": 1}, [800]),
        ({"holdout_parts": 2}, [800, 900]),
        ({"refit": False}, [800]),  # the model that is judged is the one that is published
        ({"min_holdout_rows": 400}, [800, 900]),
        ({"min_holdout_rows": 900}, [800]),
    ],
)
def test_each_part_is_answered_by_a_model_of_all_rows_before_it(
    window: Dataset,
    make_recipe: RecipeMaker,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    learned: Sequence[int],
) -> None:
    Fits(monkeypatch)
    found = judged(make_recipe(**changes), Holdout(window, 800, True), ())
    assert list(dict.fromkeys(found.prediction.tolist())) == learned
    assert len(found.prediction) == 200
    first: Any = found.first
    last: Any = found.last
    assert (first, last) == (learned[0], learned[-1])


def test_rows_of_one_request_are_not_taken_apart(
    window: Dataset, make_recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fits(monkeypatch)
    times = window.times() // 64_000  # a request every 64 rows
    together = dataclasses.replace(
        window, frame=window.frame.with_columns(pl.Series("trimtab.time", times))
    )
    cut = int(np.searchsorted(times, times[800]))
    found = judged(make_recipe(holdout_parts=3), Holdout(together, cut, True), ())
    starts = [int(each) for each in dict.fromkeys(found.prediction.tolist())]
    assert len(starts) == 3
    assert all(times[start] > times[start - 1] for start in starts)
    at_once = dataclasses.replace(
        window, frame=window.frame.with_columns(pl.lit(0, pl.Int64).alias("trimtab.time"))
    )
    monkeypatch.setattr(module, "predict", lambda recipe, model, rows: np.ones(len(rows)))
    found = judged(make_recipe(), Holdout(at_once, 800, True), ())
    assert len(found.prediction) == 200, "without times they are in order"


def test_right_after_a_change_a_candidate_is_judged_by_what_it_can_learn_of_it(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    frame = make_frame(2_000)
    later = pl.when(pl.int_range(pl.len()) >= 1_800).then(1).otherwise(0)
    moved = [pl.col("size") + 40 * later, pl.col("value") + 20 * later]
    window = Dataset.from_frame(make_recipe(), frame.with_columns(moved))
    split = Holdout(window, 1_600, True)
    truth = split.newest.target()
    champion = judged(make_recipe(holdout_parts=1), split, ()).prediction
    blind = judged(make_recipe(holdout_parts=1, seed=1), split, ()).prediction
    seeing = judged(make_recipe(holdout_parts=8), split, ()).prediction
    assert paired_difference("mae", truth, champion, blind).improvement < 0.1
    assert paired_difference("mae", truth, champion, seeing).low > 1


def test_a_class_that_a_model_has_not_met_gets_no_probability(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe("multiclass")
    frame = make_frame(1_000, task="multiclass")
    some = frame.filter((pl.col("value") != "low") | (pl.int_range(pl.len()) >= 900))
    window = Dataset.from_frame(recipe, some)
    split = Holdout(window, len(window) - 100, True)
    classes = window.classes()
    found = judged(recipe, split, classes)
    assert found.prediction.shape == (100, 3)
    assert not found.prediction[:25, classes.index("low")].any()
    assert found.prediction.sum(axis=1) == pytest.approx(1)
    assert aligned(np.ones((2, 3)), found.last, classes).shape == (2, 3)
