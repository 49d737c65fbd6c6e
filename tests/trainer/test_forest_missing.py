"""Forests that learned on which side a missing value belongs, before and after mending the graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from trimtab.trainer import export as export_module
from trimtab.trainer.dataset import Dataset
from trimtab.trainer.errors import ExportError
from trimtab.trainer.export import OnnxModel, export
from trimtab.trainer.forest_missing import write_missing_directions
from trimtab.trainer.parity import Parity, check_parity, parity_rows
from trimtab.trainer.recipe import Recipe

RecipeMaker = Callable[..., Recipe]


def rows(recipe: Recipe, *, missing: float = 0.1) -> Dataset:
    random = np.random.default_rng(0)
    values = random.normal(size=(1_500, 4))
    target = values[:, 0] + values[:, 1] * values[:, 2] + 0.3 * random.normal(size=1_500)
    values[random.random(values.shape) < missing] = np.nan
    if recipe.classification:
        target = (target > 0).astype(int)
    frame = pl.DataFrame(values, schema=list(recipe.numeric)).with_columns(value=target)
    return Dataset.from_frame(recipe, frame)


@pytest.fixture
def recipe_for(make_recipe: RecipeMaker) -> Callable[[str], Recipe]:
    columns = {"numeric": ["a", "b", "c", "d"], "categorical": [], "time": None}
    return lambda task: make_recipe(task, **columns)


def compared(recipe: Recipe, fitted: Pipeline, data: Dataset) -> Parity:
    graph = OnnxModel(export(recipe, fitted))
    return check_parity(recipe, fitted, graph, parity_rows(recipe, data))


MODELS: list[tuple[str, Any]] = [
    ("binary", RandomForestClassifier(15, random_state=0)),
    ("binary", DecisionTreeClassifier(random_state=0)),
    ("binary", CalibratedClassifierCV(RandomForestClassifier(5, random_state=0), cv=3)),
    (
        "binary",
        BaggingClassifier(DecisionTreeClassifier(max_depth=8), 5, max_features=0.7, random_state=0),
    ),
    ("regression", RandomForestRegressor(8, max_depth=10, random_state=0)),
    ("regression", ExtraTreesRegressor(8, max_depth=10, random_state=0)),
]


@pytest.mark.parametrize(("task", "model"), MODELS, ids=[type(m).__name__ for _, m in MODELS])
def test_no_row_with_missing_values_is_wrong(
    recipe_for: Callable[[str], Recipe], task: str, model: Any
) -> None:
    recipe = recipe_for(task)
    data = rows(recipe)
    fitted = Pipeline([("model", model)]).fit(data.features(), data.target())
    found = compared(recipe, fitted, data)
    assert found.rows >= 10_000
    assert (found.wrong_labels, found.worst_rows) == (0, ())


def test_without_it_many_are_wrong(
    recipe_for: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for("binary")
    data = rows(recipe)
    forest = RandomForestClassifier(15, random_state=0)
    fitted = Pipeline([("model", forest)]).fit(data.features(), data.target())
    monkeypatch.setattr(export_module, "write_missing_directions", lambda *_: 0)
    found = compared(recipe, fitted, data)
    assert found.wrong_labels > 300
    assert found.worst > 0.1


def test_a_forest_that_learned_from_whole_rows_takes_missing_ones_as_scikit_learn_does(
    recipe_for: Callable[[str], Recipe],
) -> None:
    recipe = recipe_for("binary")
    data = rows(recipe, missing=0.0)
    forest = RandomForestClassifier(10, random_state=0)
    fitted = Pipeline([("model", forest)]).fit(data.features(), data.target())
    assert compared(recipe, fitted, data).worst_rows == ()


def test_a_tree_that_the_graph_does_not_have_is_an_error(
    recipe_for: Callable[[str], Recipe],
) -> None:
    import onnx

    recipe = recipe_for("binary")
    data = rows(recipe)
    fitted, other = (
        Pipeline([("m", RandomForestClassifier(3, random_state=seed))]).fit(
            data.features(), data.target()
        )
        for seed in (0, 1)
    )
    graph = onnx.load_from_string(export(recipe, fitted))
    assert write_missing_directions(graph, fitted) == 3
    with pytest.raises(ExportError, match="3 of the forest's 3 trees are not found"):
        write_missing_directions(graph, other)
