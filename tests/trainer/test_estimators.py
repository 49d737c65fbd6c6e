"""Which pipeline a recipe gets, and that each of them is the same model as ONNX."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier

from trimtab.trainer.dataset import Dataset
from trimtab.trainer.errors import DataError, RecipeError
from trimtab.trainer.estimators import make_pipeline
from trimtab.trainer.export import OnnxModel, export
from trimtab.trainer.fit import fit, predict, trees_of
from trimtab.trainer.parity import check_parity, parity_rows
from trimtab.trainer.recipe import Recipe

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
@pytest.mark.parametrize("kind", ["linear", "random_forest"])
def test_each_kind_is_the_same_model_as_onnx_also_where_values_are_missing(
    make_frame: FrameMaker, make_recipe: RecipeMaker, task: str, kind: str
) -> None:
    recipe = make_recipe(task, estimator={"kind": kind, "max_iter": 10})
    data = Dataset.from_frame(recipe, make_frame(800, task=task))
    pipeline = fit(recipe, data)
    found = check_parity(
        recipe, pipeline, OnnxModel(export(recipe, pipeline)), parity_rows(recipe, data)
    )
    assert found.rows >= 10_000
    assert (found.wrong_labels, found.worst_rows) == (0, ())
    assert export(recipe, fit(recipe, data)) == export(recipe, pipeline)


def test_a_forest_of_classes_is_calibrated_and_boosting_is_as_it_was(
    make_recipe: RecipeMaker,
) -> None:
    forest = make_pipeline(make_recipe("binary", estimator={"kind": "random_forest"}))[-1]
    assert isinstance(forest, CalibratedClassifierCV)
    assert isinstance(forest.estimator, RandomForestClassifier)
    bare = make_recipe("binary", estimator={"kind": "random_forest", "calibration": "none"})
    assert isinstance(make_pipeline(bare)[-1], RandomForestClassifier)
    for kind in ("auto", "hist_gradient_boosting"):
        model = make_pipeline(make_recipe(estimator={"kind": kind}))[-1]
        assert isinstance(model, HistGradientBoostingRegressor)
        assert (model.categorical_features, model.early_stopping) == (None, False)


def test_a_calibrated_forest_is_surer_of_what_is_sure(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    loss = {}
    frame, other = make_frame(task="binary"), make_frame(task="binary", seed=2)
    for calibration in ("none", "sigmoid"):
        settings = {"kind": "random_forest", "max_iter": 10, "min_samples_leaf": 40}
        recipe = make_recipe("binary", estimator={**settings, "calibration": calibration})
        given = predict(recipe, fit(recipe, frame), other)[:, 1]
        truth = other["value"].to_numpy()
        loss[calibration] = -np.mean(np.log(np.where(truth == 1, given, 1 - given)))
    assert loss["sigmoid"] < loss["none"]


def test_early_stopping_looks_at_the_newest_rows(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    settings = {"max_iter": 200, "learning_rate": 0.3, "early_stopping": 5}
    recipe = make_recipe(estimator=settings)
    frame = make_frame()
    trees = trees_of(fit(recipe, frame))
    assert trees is not None
    assert 2 < trees < 100
    noise = np.random.default_rng(0).normal(20, 5, 150)
    newest = pl.concat([frame["value"].head(1_350), pl.Series("value", noise)])
    stopped = trees_of(fit(recipe, frame.with_columns(newest)))
    assert stopped is not None
    assert stopped < trees
    assert trees_of(fit(recipe, frame, trees=3)) == 3
    with pytest.raises(RecipeError, match="early_stopping is for hist_gradient_boosting"):
        make_recipe(estimator={"kind": "linear", "early_stopping": 5})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "the module cannot be imported: No module named"),
        ("def other(recipe): pass", "the module has no function 'make'"),
        ("def make(recipe): raise KeyError('x')", "raised KeyError: 'x'"),
        ("def make(recipe): return 3", "returned int, not a scikit-learn pipeline"),
        (
            """
            from sklearn.compose import ColumnTransformer
            from sklearn.pipeline import Pipeline
            def make(recipe):
                columns = ColumnTransformer([("a", "passthrough", ["sise"])])
                return Pipeline([("columns", columns)])
            """,
            "uses the column 'sise'",
        ),
    ],
)
def test_a_function_that_gives_no_pipeline_is_one_sentence(
    make_recipe: RecipeMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str | None,
    message: str,
    request: pytest.FixtureRequest,
) -> None:
    name = f"own_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(tmp_path)
    if body is not None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(body))
    recipe = make_recipe(estimator={"kind": f"{name}:make"})
    with pytest.raises(RecipeError, match=message.replace("'", ".")) as caught:
        make_pipeline(recipe)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_users_pipeline_is_left_to_chance(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_chance.py").write_text(
        textwrap.dedent(
            """
            from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
            def forest(recipe):
                return RandomForestRegressor(n_jobs=-1)
            def boosting(recipe):
                return HistGradientBoostingRegressor(random_state=3)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    forest = make_pipeline(make_recipe(seed=7, estimator={"kind": "own_chance:forest"}))[-1]
    assert (forest.random_state, forest.n_jobs) == (7, None)
    boosting = make_pipeline(make_recipe(seed=7, estimator={"kind": "own_chance:boosting"}))[-1]
    assert boosting.random_state == 3
    assert boosting.early_stopping is False
    assert boosting.categorical_features is None


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ({"kind": "xgboost"}, "must be one of auto, hist_gradient_boosting, linear, random_forest"),
        ({"kind": "a.b:"}, "or package.module:function"),
        ({"kind": "linear", "loss": "poisson"}, "loss = 'poisson' is for hist_gradient_boosting"),
        ({"calibration": "sigmoid"}, "calibration is for classes"),
        ({"calibration": "isotonic"}, "must be one of auto, none, sigmoid"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    make_recipe: RecipeMaker, estimator: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(estimator=estimator)


def test_segments_must_be_columns_of_the_recipe(make_recipe: RecipeMaker) -> None:
    assert make_recipe(segments=["colour", "size"]).segments == ("colour", "size")
    with pytest.raises(RecipeError, match="segments names 'sise'"):
        make_recipe(segments=["sise"])


def test_a_class_with_two_rows_cannot_be_calibrated_and_says_so(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    frame = make_frame(300, task="binary")
    rare = frame.with_columns(value=pl.int_range(pl.len()) < 2)
    recipe = make_recipe("binary", estimator={"kind": "random_forest", "max_iter": 2})
    with pytest.raises(DataError, match="the model cannot be fitted"):
        fit(recipe, rare)
