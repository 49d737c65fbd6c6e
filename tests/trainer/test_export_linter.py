"""Each rule beside the conversion it is for: what is found is really wrong, and what is not, right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)

from trimtab.trainer.dataset import Dataset
from trimtab.trainer.errors import ExportError
from trimtab.trainer.estimators import make_pipeline
from trimtab.trainer.export import OnnxModel, export
from trimtab.trainer.export_linter import lint, require_exportable, try_out
from trimtab.trainer.parity import Parity, check_parity, parity_rows
from trimtab.trainer.recipe import Recipe

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]


def logistic(*steps: Any) -> Pipeline:
    named = [(f"step{place}", step) for place, step in enumerate(steps)]
    return Pipeline([*named, ("model", LogisticRegression())])


def trees(*steps: Any) -> Pipeline:
    named = [(f"step{place}", step) for place, step in enumerate(steps)]
    return Pipeline([*named, ("model", RandomForestClassifier(20, random_state=0))])


@pytest.fixture(scope="module")
def recipe(make_recipe: RecipeMaker) -> Recipe:
    return make_recipe("binary", categorical=[])


@pytest.fixture(scope="module")
def data(recipe: Recipe, make_frame: FrameMaker) -> Dataset:
    return Dataset.from_frame(recipe, make_frame(800, task="binary"))


def converted(recipe: Recipe, pipeline: Pipeline, data: Dataset) -> Parity:
    """Fits, converts and compares, whatever the rules say."""
    pipeline.fit(data.features(), data.target())
    if hasattr(pipeline[-1], "is_categorical_"):
        pipeline[-1].is_categorical_ = None  # by which the export itself would notice
    model = OnnxModel(export(recipe, pipeline))
    return check_parity(recipe, pipeline, model, parity_rows(recipe, data, 3_000))


@pytest.mark.parametrize(
    ("pipeline", "rule", "fix"),
    [
        (
            Pipeline(
                [("m", HistGradientBoostingClassifier(max_iter=10, categorical_features=[1]))]
            ),
            "native categories",
            "categorical_features=None",
        ),
        (trees(SimpleImputer(), StandardScaler()), "scaler before trees", "take it out"),
        (
            Pipeline([("m", CalibratedClassifierCV(logistic(SimpleImputer(), StandardScaler())))]),
            "calibrated pipeline",
            "put it inside",
        ),
        (
            Pipeline(
                [
                    ("i", SimpleImputer()),
                    ("m", CalibratedClassifierCV(LogisticRegression(), method="isotonic")),
                ]
            ),
            "calibration method",
            'method="sigmoid"',
        ),
        (
            logistic(SimpleImputer(add_indicator=True)),
            "unsupported step",
            "leave the indicator out",
        ),
    ],
    ids=["native", "scaler", "calibrated", "isotonic", "indicator"],
)
def test_what_is_found_is_silently_wrong_once_converted(
    recipe: Recipe, data: Dataset, pipeline: Pipeline, rule: str, fix: str
) -> None:
    [finding] = lint(recipe, pipeline, data.features())
    assert finding.rule == rule
    assert fix in finding.message
    found = converted(recipe, pipeline, data)
    assert found.worst > 1e-3
    assert found.worst_rows


@pytest.mark.parametrize(
    ("pipeline", "rule"),
    [
        (logistic(SimpleImputer(), FunctionTransformer(np.log1p)), "unsupported step"),
        (logistic(SimpleImputer(), SplineTransformer()), "unsupported step"),
        (logistic(KNNImputer()), "neighbours"),
        (
            Pipeline(
                [
                    ("i", SimpleImputer()),
                    ("m", CalibratedClassifierCV(LogisticRegression(), method="temperature")),
                ]
            ),
            "calibration method",
        ),
    ],
    ids=["function", "spline", "neighbours", "temperature"],
)
def test_what_is_found_does_not_convert_or_run_at_all(
    recipe: Recipe, data: Dataset, pipeline: Pipeline, rule: str
) -> None:
    assert [finding.rule for finding in lint(recipe, pipeline, data.features())] == [rule]
    with pytest.raises(Exception, match=r"cannot convert|ONNXRuntimeError"):
        converted(recipe, pipeline, data)


@pytest.mark.parametrize(
    ("pipeline", "rule"),
    [
        (
            Pipeline([("i", SimpleImputer()), ("m", KNeighborsClassifier())]),
            "neighbours",
        ),
        (logistic(SimpleImputer(), QuantileTransformer()), "quantile transformer"),
        (
            Pipeline([("m", HistGradientBoostingClassifier(early_stopping=True))]),
            "random early stopping",
        ),
        (
            Pipeline([("m", GradientBoostingClassifier(n_iter_no_change=5))]),
            "random early stopping",
        ),
        (logistic(SimpleImputer().set_output(transform="polars")), "data frames inside"),
        (
            Pipeline([("s", StandardScaler()), ("m", BaggingClassifier())]),
            "scaler before trees",
        ),
        (Pipeline([("i", SimpleImputer()), ("m", RidgeClassifier())]), "no probabilities"),
        (
            Pipeline([("m", HistGradientBoostingRegressor(categorical_features=["age"]))]),
            "native categories",
        ),
        (
            logistic(ColumnTransformer([("a", OneHotEncoder(), [0])])),
            "unknown categories",
        ),
        (
            logistic(ColumnTransformer([("a", OrdinalEncoder(), [0])])),
            "unknown categories",
        ),
    ],
)
def test_what_is_slow_or_blind_is_found(
    recipe: Recipe, data: Dataset, pipeline: Pipeline, rule: str
) -> None:
    assert rule in [finding.rule for finding in lint(recipe, pipeline, data.features())]


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline([("m", HistGradientBoostingClassifier(max_iter=10))]),
        trees(),
        logistic(SimpleImputer(), StandardScaler()),
        Pipeline([("i", SimpleImputer()), ("m", CalibratedClassifierCV(LogisticRegression()))]),
        Pipeline(
            [
                (
                    "m",
                    VotingClassifier(
                        [("a", logistic(SimpleImputer(), StandardScaler())), ("b", trees()[-1])],
                        voting="soft",
                        flatten_transform=False,
                    ),
                )
            ]
        ),
    ],
    ids=["boosting", "forest", "linear", "calibrated", "vote"],
)
def test_a_pipeline_in_which_nothing_is_found_is_exact(
    recipe: Recipe, data: Dataset, pipeline: Pipeline
) -> None:
    assert lint(recipe, pipeline, data.features()) == ()
    assert try_out(recipe, pipeline, data) == ()
    found = converted(recipe, pipeline, data)
    assert (found.wrong_labels, found.worst_rows) == (0, ())


def test_our_own_pipelines_break_no_rule(make_recipe: RecipeMaker, make_frame: FrameMaker) -> None:
    for task in ("regression", "binary"):
        for kind in ("auto", "linear", "random_forest"):
            recipe = make_recipe(task, estimator={"kind": kind, "max_iter": 5})
            data = Dataset.from_frame(recipe, make_frame(300, task=task))
            assert lint(recipe, make_pipeline(recipe), data.features()) == ()


def test_a_model_that_takes_no_missing_values_is_found_by_trying_it(
    recipe: Recipe, make_frame: FrameMaker
) -> None:
    whole = make_frame(800, task="binary").with_columns(pl.col("age").fill_null(3.0))
    data = Dataset.from_frame(recipe, whole)  # nothing is missing here, but live it will be
    [finding] = try_out(recipe, Pipeline([("m", GradientBoostingClassifier(n_estimators=3))]), data)
    assert finding.rule == "missing values"
    assert "put SimpleImputer before the model" in finding.message


def test_a_silent_error_that_no_rule_knows_is_found_by_trying_it(
    recipe: Recipe, data: Dataset
) -> None:
    [finding] = try_out(recipe, trees(SimpleImputer(), StandardScaler()), data)
    assert finding.rule == "trial"
    assert "differs from scikit-learn's by up to" in finding.message


@pytest.mark.parametrize(
    ("scale", "unit"), [(1, "seconds"), (1e3, "milliseconds"), (1e9, "nanoseconds")]
)
def test_a_time_as_a_number_is_found(
    make_recipe: RecipeMaker, make_frame: FrameMaker, scale: float, unit: str
) -> None:
    recipe = make_recipe()
    year = np.random.default_rng(0).uniform(1.68e9, 1.71e9, 300) * scale
    frame = make_frame(300).with_columns(size=pl.Series(year))
    [finding] = lint(recipe, make_pipeline(recipe), Dataset.from_frame(recipe, frame).features())
    assert (finding.rule, finding.where) == ("time as a number", "column 'size'")
    assert f"its values are {unit} since 1970" in finding.message


def test_a_category_type_is_found(make_recipe: RecipeMaker, make_frame: FrameMaker) -> None:
    recipe = make_recipe()
    features = Dataset.from_frame(recipe, make_frame(300)).features()
    typed = features.with_columns(pl.col("colour").cast(pl.Categorical))
    [finding] = lint(recipe, make_pipeline(recipe), typed)
    assert (finding.rule, finding.where) == ("category dtype", "column 'colour'")


def test_every_finding_is_told_at_once(recipe: Recipe, data: Dataset) -> None:
    pipeline = Pipeline(
        [("i", KNNImputer()), ("s", StandardScaler()), ("m", RandomForestClassifier())]
    )
    with pytest.raises(ExportError) as caught:
        require_exportable(recipe, pipeline, data)
    assert "m: StandardScaler before trees" in str(caught.value)
    assert "i: KNNImputer searches" in str(caught.value)
    assert "\n" not in str(caught.value)
