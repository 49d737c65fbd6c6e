"""From a file that nobody prepared to a recipe, by the command and its child process."""

import json
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from trimtab.server.commands import cli
from trimtab.server.commands.init_command import model_name, next_commands
from trimtab.server.config import ModelPolicy, load_model_policy
from trimtab.trainer.recipe import Recipe

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    size = random.normal(size=400)
    frame = pl.DataFrame(
        {
            "day": pl.date_range(pl.date(2024, 1, 1), pl.date(2025, 2, 3), eager=True),
            "the size": size,
            "id": random.permutation(400),
            "price": 3 * size + random.normal(size=400),
        }
    )
    path = tmp_path / "my prices.csv"
    frame.write_csv(path)
    return path


def test_init_writes_a_recipe_that_both_sides_read_and_tells_what_to_type_next(
    data: Path, tmp_path: Path
) -> None:
    goal = tmp_path / "models" / "prices"
    done = runner.invoke(cli.app, ["init", str(data), "--target", "price", "--out", str(goal)])
    assert done.exit_code == 0, done.output
    assert f"wrote {goal}/trimtab.toml for 400 rows" in done.output
    assert "id: names rows" in done.output
    assert f"trimtab train {tmp_path}/models prices" in done.output
    recipe = Recipe.load(goal / "trimtab.toml")
    assert (recipe.target, recipe.time, recipe.numeric) == ("price", "day", ("the size",))
    policy = load_model_policy(goal / "trimtab.toml", ModelPolicy())
    assert policy.trigger.min_labels == 100


def test_as_json_it_has_every_column_and_the_command_of_a_backtest(
    data: Path, tmp_path: Path
) -> None:
    goal = tmp_path / "m"
    done = runner.invoke(
        cli.app, ["init", str(data), "--target", "price", "--out", str(goal), "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {item["column"]: item["role"] for item in told["columns"]} == {
        "the size": "numeric",
        "id": "out",
    }
    backtest = shlex.split(told["next"][-1])
    assert backtest[:3] == ["trimtab", "backtest", str(data)]
    assert backtest[backtest.index("--numeric") + 1] == "the size"
    assert backtest[backtest.index("--time") + 1] == "day"


def test_what_cannot_be_done_is_one_sentence(data: Path, tmp_path: Path) -> None:
    done = runner.invoke(
        cli.app, ["init", str(data), "--target", "prize", "--out", str(tmp_path / "m")]
    )
    assert done.exit_code == 1
    assert done.stderr == f"error: {data} has no column 'prize'; did you mean 'price'?\n"


@pytest.mark.parametrize(
    ("name", "model"),
    [("sales.csv", "sales"), ("my sales.2024.parquet", "my_sales"), ("ä.csv", "model")],
)
def test_a_model_is_called_by_its_file(name: str, model: str) -> None:
    assert model_name(Path("/data") / name) == model


def test_without_a_time_there_is_nothing_to_replay() -> None:
    told = {"time": "", "columns": [], "target": "y", "task": "binary"}
    assert next_commands(Path("d.csv"), Path("models/m"), told) == [
        "trimtab train models m",
        "trimtab serve models",
    ]
