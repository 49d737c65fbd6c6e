"""The pipelines a recipe can ask for, before they are fitted: `kind` in [recipe.estimator].

    auto, hist_gradient_boosting   numbers as they are, strings as codes, HistGradientBoosting
    linear                         numbers imputed and scaled, strings one-hot, ridge or logistic
    random_forest                  numbers as they are, strings as codes, a forest
    package.module:function        what the function makes of the recipe

Trees get no scaler: they need none, and one in float32 moves rows across thresholds. Boosting and
logistic regression minimise the log loss and come calibrated; a forest's shares of votes are not
probabilities, so classes of a forest are calibrated (a sigmoid, inside the pipeline, on contiguous
parts of the rows). scikit-learn's own handling of categories stays off: its conversion is wrong.

A pipeline takes a Polars frame of the recipe's columns, the numeric ones first, with NaN and "" for
what is missing. Whatever a function forgot to fix is fixed here: seeds, jobs, columns by name.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from .errors import RecipeError
from .recipe import Recipe

_HIST = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_FOLDS = 3
_RARE = 10  # rows below which the linear model pools a category with other rare ones


def make_pipeline(recipe: Recipe) -> Pipeline:
    """The recipe's pipeline, not fitted. RecipeError where a function gives none."""
    kind = recipe.estimator.kind
    if ":" in kind:
        return _settled(recipe, _made_by(kind, recipe))
    columns = _linear_columns(recipe) if kind == "linear" else _tree_columns(recipe)
    makers = {"linear": _linear, "random_forest": _forest}
    model = makers.get(kind, _boosting)(recipe)
    if recipe.classification and _calibrated(recipe):
        model = CalibratedClassifierCV(model, method="sigmoid", cv=_FOLDS, ensemble=False)
    return Pipeline([("columns", columns), ("model", model)])


def own(recipe: Recipe) -> bool:
    """Whether the pipeline is the user's and not one of ours."""
    return ":" in recipe.estimator.kind


def walk(estimator: Any) -> Iterator[tuple[str, Any]]:
    """An estimator and all inside of it that are not fitted yet, with their names as parameters."""
    yield "", estimator
    for name, value in estimator.get_params(deep=True).items():
        if isinstance(value, BaseEstimator):
            yield name, value


def boosting_of(pipeline: Pipeline) -> Any | None:
    """The HistGradientBoosting at the end of a pipeline; None if it ends in something else."""
    return pipeline[-1] if isinstance(pipeline[-1], _HIST) else None


def _calibrated(recipe: Recipe) -> bool:
    wanted = recipe.estimator.calibration
    return wanted == "sigmoid" or (wanted == "auto" and recipe.estimator.kind == "random_forest")


def _tree_columns(recipe: Recipe) -> ColumnTransformer:
    return _columns(recipe, "passthrough", _encoder(recipe))


def _linear_columns(recipe: Recipe) -> ColumnTransformer:
    # A column without any value in these rows stays one, or the model would lose its place.
    numeric = Pipeline(
        [
            ("missing", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("scale", StandardScaler()),
        ]
    )
    strings = OneHotEncoder(handle_unknown="ignore", min_frequency=_RARE, sparse_output=False)
    return _columns(recipe, numeric, strings)


def _columns(recipe: Recipe, numeric: Any, categorical: Any) -> ColumnTransformer:
    numbers = len(recipe.numeric)
    columns: list[tuple[str, Any, list[int]]] = []
    if recipe.numeric:
        columns.append(("numeric", numeric, list(range(numbers))))
    if recipe.categorical:
        strings = list(range(numbers, numbers + len(recipe.categorical)))
        columns.append(("categorical", categorical, strings))
    return ColumnTransformer(columns)


def _encoder(recipe: Recipe) -> OrdinalEncoder | OneHotEncoder:
    if recipe.estimator.encoding == "onehot":
        return OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


def _boosting(recipe: Recipe) -> Any:
    settings = recipe.estimator
    shared: dict[str, Any] = {
        "max_iter": settings.max_iter,
        "learning_rate": settings.learning_rate,
        "max_leaf_nodes": settings.max_leaf_nodes,
        "max_depth": settings.max_depth or None,
        "min_samples_leaf": settings.min_samples_leaf,
        "l2_regularization": settings.l2_regularization,
        "max_features": settings.max_features,
        "max_bins": settings.max_bins,
        "categorical_features": None,
        "early_stopping": False,
        "random_state": recipe.seed,
    }
    if recipe.classification:
        return HistGradientBoostingClassifier(**shared)
    return HistGradientBoostingRegressor(loss=settings.loss or "squared_error", **shared)


def _forest(recipe: Recipe) -> Any:
    settings = recipe.estimator
    shared: dict[str, Any] = {
        "n_estimators": settings.max_iter,
        "max_depth": settings.max_depth or None,
        "min_samples_leaf": settings.min_samples_leaf,
        "random_state": recipe.seed,
    }
    if not recipe.classification:
        return RandomForestRegressor(max_features=settings.max_features, **shared)
    share = settings.max_features
    return RandomForestClassifier(max_features="sqrt" if share == 1.0 else share, **shared)


def _linear(recipe: Recipe) -> Any:
    shrink = recipe.estimator.l2_regularization or 1.0
    if recipe.classification:
        return LogisticRegression(C=1 / shrink, max_iter=1_000)
    return Ridge(alpha=shrink)


def _made_by(kind: str, recipe: Recipe) -> Any:
    module, _, name = kind.partition(":")
    where = f"[recipe.estimator] kind = {kind!r}"
    try:
        function: Callable[[Recipe], Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise RecipeError(
            f"{where}: the module cannot be imported: {error}; it must be installed beside Trimtab "
            "or lie on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise RecipeError(f"{where}: the module has no function {name!r}") from error
    try:
        made = function(recipe)
    except Exception as error:  # whatever the user's function raises
        raise RecipeError(f"{where} raised {type(error).__name__}: {error}") from error
    if not isinstance(made, BaseEstimator):
        raise RecipeError(f"{where} returned {type(made).__name__}, not a scikit-learn pipeline")
    return made


def _settled(recipe: Recipe, made: Any) -> Pipeline:
    """A copy in which nothing is left to chance or to the machine that it runs on."""
    model = clone(made)
    pipeline = model if isinstance(model, Pipeline) else Pipeline([("model", model)])
    parameters = pipeline.get_params(deep=True)
    changes: dict[str, Any] = {}
    for name, value in parameters.items():
        last = name.rpartition("__")[2]
        if last == "random_state" and value is None:
            changes[name] = recipe.seed
        elif last == "n_jobs" and value is not None:
            changes[name] = None  # other processes would escape the training's limits
    pipeline.set_params(**changes)
    for _, estimator in walk(pipeline):
        if isinstance(estimator, _HIST):
            if isinstance(estimator.categorical_features, str):  # "from_dtype": there are none
                estimator.categorical_features = None
            if estimator.early_stopping == "auto":  # from 10,000 rows on, on a random part
                estimator.early_stopping = False
        elif isinstance(estimator, VotingClassifier):
            estimator.flatten_transform = False  # of no effect but on what skl2onnx takes
        elif isinstance(estimator, ColumnTransformer):
            estimator.transformers = [
                (name, inner, _positions(recipe, columns))
                for name, inner, columns in estimator.transformers
            ]
    return pipeline


def _positions(recipe: Recipe, columns: Any) -> Any:
    """Columns by name as columns by position, which the conversion to vector inputs needs."""
    names = [columns] if isinstance(columns, str) else columns
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return columns
    unknown = [name for name in names if name not in recipe.features]
    if unknown:
        raise RecipeError(
            f"[recipe.estimator] kind = {recipe.estimator.kind!r} uses the column {unknown[0]!r}, "
            "which is neither in numeric nor in categorical"
        )
    return [recipe.features.index(name) for name in names]
