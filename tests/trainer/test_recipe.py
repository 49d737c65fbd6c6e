import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trimtab.trainer.errors import RecipeError
from trimtab.trainer.recipe import EstimatorSettings, Recipe

MINIMAL: dict[str, Any] = {"target": "y", "numeric": ["x"]}


def test_defaults_fill_what_is_not_said_and_the_metric_follows_the_task() -> None:
    assert Recipe.parse(MINIMAL).metric == "mae"
    assert Recipe.parse({**MINIMAL, "task": "binary"}).metric == "roc_auc"
    assert Recipe.parse({**MINIMAL, "task": "multiclass"}).metric == "log_loss"
    assert Recipe.parse(MINIMAL).estimator.max_iter == 100


def test_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text('[recipe]\ntarget = "y"\nnumeric = ["x"]\nfiles = ["a.csv", "/b.csv"]\n')
    assert Recipe.load(path).files == (str(tmp_path / "a.csv"), "/b.csv")


def test_tables_of_the_server_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text('[drift]\npsi = 0.3\n[recipe]\ntarget = "y"\nnumeric = ["x"]\n')
    assert Recipe.load(path).target == "y"


def test_a_recipe_survives_the_way_through_a_versions_lineage() -> None:
    recipe = Recipe.parse({**MINIMAL, "estimator": {"max_iter": 7}, "files": ["/a.csv"]})
    assert Recipe.parse(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taget": "y"}, "unknown key 'taget'; did you mean 'target'?"),
        ({"estimator": {"max_itr": 3}}, "unknown key 'max_itr'; did you mean 'max_iter'?"),
        ({"estimator": 3}, "[recipe.estimator] must be a table"),
        ({"target": ""}, "target is missing"),
        ({"target": 3}, "target = 3: must be a string"),
        ({"numeric": []}, "names no columns"),
        ({"numeric": "x"}, "numeric = 'x': must be a list of strings"),
        ({"numeric": ["x", "x"]}, "names the column 'x' twice"),
        ({"categorical": ["y"]}, "names the column 'y' twice"),
        ({"task": "ranking"}, "task = 'ranking': must be one of regression, binary, multiclass"),
        ({"metric": "roc_auc"}, "metric = 'roc_auc' does not fit task = 'regression'"),
        ({"holdout": 1.5}, "holdout = 1.5: must be at most 0.9"),
        ({"window_rows": 20.5}, "window_rows = 20.5: must be a whole number"),
        ({"window_rows": True}, "window_rows = True: must be a whole number"),
        ({"window_rows": 20, "min_rows": 30}, "min_rows = 30 exceeds window_rows = 20"),
        ({"refit": 1}, "refit = 1: must be true or false"),
        ({"estimator": {"learning_rate": float("nan")}}, "learning_rate = nan: must be at least"),
        ({"estimator": {"loss": "huber"}}, "loss = 'huber': must be one of squared_error"),
        ({"task": "binary", "estimator": {"loss": "poisson"}}, "loss is for a regression"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({**MINIMAL, **change}, "trimtab.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("trimtab.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist, so there is no recipe to train by"),
        ("[recipe", "is not TOML"),
        ("[drift]\n", "has no [recipe] table"),
        ("recipe = 3\n", "recipe must be a table"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(
    tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / "trimtab.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        Recipe.load(path)


def test_the_documentation_names_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for kind in (Recipe, EstimatorSettings):
        for item in dataclasses.fields(kind):
            if item.name == "estimator":
                continue
            [line] = [row for row in text.splitlines() if row.startswith(f"| `{item.name}` |")]
            if isinstance(item.default, int | float) and not isinstance(item.default, bool):
                assert f"| {item.default} |" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[recipe]\ntarget = "y"\nnumeric = ["x"]\n\nholdout = 1.5\n', ":5: [recipe] holdout"),
        ('[drift]\nholdout = 1\n[recipe]\ntarget = "y"\nholdut = 0.1\n', ":5: [recipe] has the"),
        ('[recipe]\nnumeric = ["x"]\n', ":1: [recipe] target is missing"),
        (
            '[recipe]\ntarget = "y"\n\n[ recipe . estimator ]\n# a comment\n"max_iter" = "many"\n',
            ":6: [recipe.estimator] max_iter = 'many'",
        ),
        (
            '[recipe]\ntarget = "y"\nnumeric = ["x"]\nestimator.max_iter = 0\n',
            ":4: [recipe.estimator] max_iter = 0",
        ),
        (
            '[recipe]\ntarget = "y"\nnumeric = ["x"]\nestimator = { max_iter = 0 }\n',
            ":4: [recipe.estimator] max_iter = 0",
        ),
        ('recipe = { target = "y", min_rows = 1 }\n', ":1: [recipe] min_rows = 1"),
        ('[recipe]\ntarget = "y"\nnumeric = ["x"]\nperiod = "30d"\n', ":4: [recipe] period needs"),
        (
            '[recipe]\ntarget = "y"\nnumeric = ["x"]\ntime = "t"\nperiod = "a month"\n',
            ":5: [recipe] period = 'a month': must be a number and one of s m h d w",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_data_are_relative_to_the_recipe_unless_they_are_in_a_cloud(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(
        '[recipe]\ntarget = "y"\nnumeric = ["x"]\ndata = ["h/*.parquet", "s3://b/*.parquet"]\n'
    )
    assert Recipe.load(path).data == (str(tmp_path / "h/*.parquet"), "s3://b/*.parquet")


@pytest.mark.parametrize(
    ("period", "ms"),
    [("", 0), ("90s", 90_000), ("1.5h", 5_400_000), ("30d", 2_592_000_000), ("2w", 1_209_600_000)],
)
def test_a_period_is_a_number_and_a_unit(period: str, ms: int) -> None:
    assert Recipe.parse({**MINIMAL, "time": "t", "period": period}).period_ms == ms
