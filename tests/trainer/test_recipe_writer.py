import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.dataset import Dataset
from trimtab.trainer.errors import DataError, TrainingError
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.recipe_writer import InitRequest, InitResult, write_recipe

FrameMaker = Callable[..., pl.DataFrame]


@pytest.fixture
def sales(make_frame: FrameMaker) -> pl.DataFrame:
    """Rows as somebody has them: a key, a time, texts, a column that was known too late."""
    rows = 2_000
    return make_frame(rows).select(
        pl.int_range(rows).sample(rows, shuffle=True, seed=1).alias("order_id"),
        (pl.int_range(rows) + 7).alias("line"),
        pl.from_epoch(pl.col("when") * 60, time_unit="ms").alias("sold"),
        pl.col("size", "age", "colour"),
        pl.format("customer {}", pl.int_range(rows)).alias("name"),
        pl.lit("shop").alias("place"),
        pl.lit(None, pl.String).alias("empty"),
        (pl.col("value") * 1.19).alias("gross"),
        (pl.lit(1.7e12) + pl.col("size")).alias("offset"),
        pl.from_epoch(pl.col("when") * 60, time_unit="ms").dt.date().alias("due"),
        (pl.col("size") > 10).alias("large"),
        pl.col("value"),
    )


def init(tmp_path: Path, frame: pl.DataFrame, suffix: str = "csv", **told: Any) -> InitResult:
    path = tmp_path / f"sales.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, null_value="NA", separator="\t" if suffix == "tsv" else ",")
    request = {"data": str(path), "target": "value", "out": str(tmp_path / "models" / "m"), **told}
    return write_recipe(InitRequest.from_json(json.dumps(request)))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_every_column_gets_a_role_and_what_is_left_out_is_told_why(
    tmp_path: Path, sales: pl.DataFrame, suffix: str
) -> None:
    found = init(tmp_path, sales, suffix, time="sold")
    roles = {role.column: role.role for role in found.roles}
    assert [name for name, role in roles.items() if role == "numeric"] == ["size", "age", "large"]
    assert [name for name, role in roles.items() if role == "categorical"] == ["colour"]
    why = {role.column: role.reason for role in found.roles if role.role == "out"}
    assert why["order_id"].startswith("names rows")
    assert why["line"] == "counts the rows"
    assert why["name"].startswith("names rows: 2,000 different texts")
    assert why["place"] == "has one value only, 'shop'"
    assert why["empty"] == "has no value in any row"
    assert why["gross"].startswith("tells value almost perfectly")
    assert why["offset"].startswith("does not fit into float32")
    assert why["due"] == "is a time, neither a number nor text"
    text = found.recipe.read_text()
    for column, reason in why.items():
        assert f"#   {column}: {reason}" in text


def test_the_recipe_that_is_written_reads_the_data_as_they_are(
    tmp_path: Path, sales: pl.DataFrame
) -> None:
    found = init(tmp_path, sales, time="sold")
    recipe = Recipe.load(found.recipe)
    assert (recipe.task, recipe.time, recipe.metric) == ("regression", "sold", "mae")
    assert recipe.files == (str(tmp_path / "sales.csv"),)
    data = Dataset.read(recipe, None)
    assert len(data) == 2_000, "so few rows are all in the window"
    assert set(data.frame["colour"]) == set(sales["colour"].fill_null("NA"))


def test_much_history_is_pooled_by_months(tmp_path: Path, make_frame: FrameMaker) -> None:
    frame = make_frame(60_000).with_columns(
        pl.from_epoch((pl.col("when") - pl.col("when").min()) * 526, time_unit="ms")
    )
    recipe = Recipe.load(init(tmp_path, frame, "parquet").recipe)
    assert (recipe.time, recipe.period, recipe.window_periods) == ("when", "31d", 4)


def test_a_copy_is_referred_to_from_the_models_directory(
    tmp_path: Path, make_frame: FrameMaker
) -> None:
    found = init(tmp_path, make_frame(300), copy=True, time="when")
    assert 'files = ["data/sales.csv"]' in found.recipe.read_text()
    (tmp_path / "sales.csv").unlink()
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    recipe = Recipe.load(tmp_path / "elsewhere" / "m" / "trimtab.toml")
    assert len(Dataset.read(recipe, None)) == 300


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ([0, 1], "binary"),
        ([True, False], "binary"),
        (["yes", "no"], "binary"),
        ([1, 2, 3], "multiclass"),
        (["a", "b", "c"], "multiclass"),
        (list(np.linspace(0, 1, 300)), "regression"),
    ],
)
def test_the_task_is_guessed_from_the_target(
    tmp_path: Path, make_frame: FrameMaker, target: list[Any], task: str
) -> None:
    values = pl.Series((target * 300)[:300]).sample(300, shuffle=True, seed=3)
    found = init(tmp_path, make_frame(300).with_columns(value=values), time="when")
    assert found.task == task
    data = Dataset.read(Recipe.load(found.recipe), None)
    assert len(data) == 300
    assert any(note.startswith(f"The task is {task}: value is") for note in found.notes)


def test_names_that_toml_must_quote_survive(tmp_path: Path, make_frame: FrameMaker) -> None:
    frame = make_frame(300).rename({"size": 'the "big" # size', "colour": "größe\\x"})
    recipe = Recipe.load(init(tmp_path, frame, "parquet", time="when").recipe)
    assert recipe.numeric == ('the "big" # size', "age")
    assert recipe.categorical == ("größe\\x",)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"target": "valu"}, "has no column 'valu'; did you mean 'value'?"),
        ({"time": "wen"}, "has no column 'wen'; did you mean 'when'?"),
        ({"time": "value"}, "the target and the time cannot be one column"),
        ({"time": "colour"}, "the time column 'colour' of the data holds"),
        ({"data": "/nowhere.csv"}, "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, make_frame: FrameMaker, told: dict[str, Any], message: str
) -> None:
    frame = make_frame(300).with_columns(pl.col("colour").fill_null("red"))
    with pytest.raises(DataError) as caught:
        init(tmp_path, frame, **told)
    assert message in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_a_recipe_that_is_there_is_not_replaced_unasked(
    tmp_path: Path, make_frame: FrameMaker
) -> None:
    found = init(tmp_path, make_frame(300), time="when")
    found.recipe.write_text("mine")
    with pytest.raises(TrainingError, match="exists already: --force"):
        init(tmp_path, make_frame(300), time="when")
    assert found.recipe.read_text() == "mine"
    init(tmp_path, make_frame(300), time="when", force=True)
    assert Recipe.load(found.recipe).target == "value"


def test_without_a_column_of_times_the_rows_are_in_order(
    tmp_path: Path, make_frame: FrameMaker
) -> None:
    found = init(tmp_path, make_frame(300).drop("when"))
    recipe = Recipe.load(found.recipe)
    assert (recipe.time, recipe.period, recipe.window_rows) == ("", "", 1_000)
    assert len(Dataset.read(recipe, None)) == 300
