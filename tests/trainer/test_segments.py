from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.dataset import Dataset
from trimtab.trainer.latency import BATCH, measure
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.segments import segments_of, worst_first
from trimtab.trainer.window_drift import window_drift

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]


def test_categories_with_enough_rows_are_judged_the_largest_first(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe(segments=["colour"])
    data = Dataset.from_frame(recipe, make_frame())
    truth = data.target()
    red = data.frame["colour"].to_numpy() == "red"
    candidate = truth + np.where(red, 3.0, 1.0)
    champion = truth + 2.0
    found = segments_of(recipe, data, candidate, champion, ())
    assert [item.value for item in found] == ["red", "green", "blue"]
    assert found[0].rows == int(red.sum())
    assert [item.metric for item in found] == pytest.approx([3, 1, 1])
    assert worst_first(recipe, found)[0].value == "red"
    for item in found:
        assert item.difference is not None
        assert item.difference.improvement == pytest.approx(-1 if item.value == "red" else 1)
    assert segments_of(recipe, data, candidate, None, ())[0].difference is None


def test_quarters_of_numbers_are_judged_with_the_categories(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe()
    frame = make_frame(rows=3_000)
    data = Dataset.from_frame(recipe, frame)
    truth, size = data.target(), data.frame["size"].to_numpy()
    large = size > np.quantile(size, 0.75)
    candidate = truth + np.where(large, 5.0, 1.0)
    found = segments_of(recipe, data, candidate, truth + 2.0, ())
    assert [item.column for item in found[:3]] == ["colour"] * 3
    quarters = [item for item in found if item.column == "size"]
    assert sorted(item.rows for item in quarters) == [750] * 4
    (worst,) = [item for item in quarters if item.difference and item.difference.high < 0]
    assert worst.name == f"size from {size[large].min():g} to {size[large].max():g}"
    assert worst.difference and worst.difference.improvement == pytest.approx(-3)
    (missing,) = [item for item in found if item.name == "age missing"]
    assert missing.rows == frame["age"].null_count()


def test_equal_numbers_stay_in_one_segment(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe(numeric=["stops"], categorical=[], time=None)
    stops = np.repeat([0.0, 1.0, 2.0, 9.0], [500, 300, 150, 50])
    data = Dataset.from_frame(recipe, pl.DataFrame({"stops": stops, "value": stops}))
    found = segments_of(recipe, data, stops, None, ())
    assert [(item.name, item.rows) for item in found] == [
        ("stops = 0", 500),
        ("stops = 1", 300),
        ("stops from 2 to 9", 200),
    ]
    either = data.take(np.arange(500, 1_000))
    found = segments_of(recipe, either, stops[500:], None, ())
    assert [(item.name, item.rows) for item in found] == [("stops = 1", 300)]


def test_of_many_quarters_the_worst_are_compared_and_all_of_them_count_as_looks(
    make_recipe: RecipeMaker,
) -> None:
    columns = [f"x{place:02}" for place in range(12)]
    recipe = make_recipe(numeric=columns, categorical=[], time=None)
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 1_200))
    frame = pl.DataFrame(dict(zip(columns, values, strict=True))).with_columns(value=0.0)
    data = Dataset.from_frame(recipe, frame)
    alarms = 0
    for _ in range(20):
        first, second = random.normal(size=(2, 1_200))
        found = segments_of(recipe, data, second, first, ())
        assert len(found) == 20
        improvements = [item.difference.improvement for item in found if item.difference]
        assert max(improvements) < 0.1
        alarms += any(item.difference and item.difference.high < 0 for item in found)
    assert alarms <= 3  # 20 × 48 × 2.5 % would be in 14 of them


def test_twenty_segments_of_equal_models_rarely_have_one_that_looks_worse(
    make_recipe: RecipeMaker,
) -> None:
    recipe = make_recipe(numeric=[], categorical=["colour"], time=None)
    random = np.random.default_rng(0)
    codes = np.array([f"c{place:02}" for place in range(20)])
    frame = pl.DataFrame({"colour": np.repeat(codes, 250), "value": np.zeros(5_000)})
    data = Dataset.from_frame(recipe, frame)
    alarms = 0
    for _ in range(60):
        first, second = random.normal(size=(2, 5_000))
        found = segments_of(recipe, data, second, first, ())
        assert len(found) == 20
        alarms += any(item.difference and item.difference.high < 0 for item in found)
    assert alarms <= 6  # 60 × 20 × 2.5 % would be in 24 of them


def test_a_category_that_nearly_all_rows_have_is_no_segment(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe(numeric=[], time=None)
    colours = ["red"] * 960 + ["blue"] * 40
    data = Dataset.from_frame(recipe, pl.DataFrame({"colour": colours, "value": range(1_000)}))
    assert segments_of(recipe, data, np.zeros(1_000), None, ()) == ()


def test_an_auc_in_a_segment_of_one_class_is_left_out(make_recipe: RecipeMaker) -> None:
    recipe = make_recipe("binary", numeric=[], time=None)
    random = np.random.default_rng(0)
    colours = np.repeat(["red", "blue"], 500)
    truth = np.where(colours == "red", 1, random.integers(0, 2, 1_000))
    data = Dataset.from_frame(recipe, pl.DataFrame({"colour": colours, "value": truth}))
    given = np.column_stack([1 - random.random(1_000), random.random(1_000)])
    assert [item.value for item in segments_of(recipe, data, given, None, (0, 1))] == ["blue"]


def test_columns_that_moved_within_the_window_come_first(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe()
    frame = make_frame()
    moving = pl.when(pl.int_range(pl.len()) >= 1_000).then(pl.col("size") + 6).otherwise("size")
    found = window_drift(recipe, Dataset.from_frame(recipe, frame.with_columns(size=moving)))
    assert found[0].column == "size"
    assert found[0].psi > 1 > found[0].critical
    assert {item.column for item in found} == {"size", "age", "colour", "value"}
    calm = window_drift(recipe, Dataset.from_frame(recipe, frame))
    assert max(item.psi for item in calm) < 0.1
    gone = pl.when(pl.int_range(pl.len()) >= 1_000).then(None).otherwise("age")
    missing = window_drift(recipe, Dataset.from_frame(recipe, frame.with_columns(age=gone)))
    assert missing[0].column == "age"


def test_models_take_turns_and_the_median_counts() -> None:
    now = [0]

    class Timed:
        def __init__(self, alone_ns: int, row_ns: int) -> None:
            self.took, self.row_ns, self.calls = alone_ns, row_ns, 0

        def run(self, inputs: dict[str, np.ndarray]) -> None:
            self.calls += 1
            stall = 1_000_000 if self.calls % 5 == 0 else 0
            now[0] += self.took + self.row_ns * len(inputs["numeric"]) + stall

    inputs = {"numeric": np.zeros((1_000, 2), np.float32)}
    models = [Timed(10_000, 1_000), Timed(30_000, 2_000)]
    fast, slow = measure(models, inputs, clock_ns=lambda: now[0])  # type: ignore[arg-type]  # runs likewise
    assert (fast.alone_us, slow.alone_us) == (11, 32)
    assert fast.batched_us == (10 + BATCH) / BATCH
    assert models[0].calls == models[1].calls
