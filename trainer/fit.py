"""Fits the recipe's model: a column transformer and scikit-learn's HistGradientBoosting.

Numbers pass through as they are (trees neither need nor survive scaling: a scaler in float32 moves
rows across thresholds), null is NaN, which the trees handle by themselves. Strings become an
ordinal code or one column per category; a category that training has not seen becomes −1 or all
zeros. scikit-learn's own handling of categories stays off: its ONNX conversion is wrong.

The same rows, seed and library versions give the same model, bit for bit, on one thread or many.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from .dataset import Dataset
from .errors import DataError
from .recipe import Recipe


def fit(recipe: Recipe, data: Dataset | pl.DataFrame) -> Pipeline:
    """A fitted pipeline. A plain frame has the recipe's columns and target as a file has them."""
    rows = data if isinstance(data, Dataset) else Dataset.from_frame(recipe, data)
    numbers = len(recipe.numeric)
    columns: list[tuple[str, Any, list[int]]] = []
    if recipe.numeric:
        columns.append(("numeric", "passthrough", list(range(numbers))))
    if recipe.categorical:
        strings = list(range(numbers, numbers + len(recipe.categorical)))
        columns.append(("categorical", _encoder(recipe), strings))
    pipeline = Pipeline([("columns", ColumnTransformer(columns)), ("model", _model(recipe))])
    try:
        return pipeline.fit(rows.features(), rows.target())
    except ValueError as error:
        raise DataError(f"the model cannot be fitted: {str(error).splitlines()[0]}") from error


def predict(recipe: Recipe, pipeline: Pipeline, data: Dataset | pl.DataFrame) -> NDArray[Any]:
    """Values in a regression, else the classes' probabilities with a column for each class."""
    rows = data if isinstance(data, Dataset) else Dataset.from_frame(recipe, data)
    features = rows.features()
    if recipe.classification:
        return np.asarray(pipeline.predict_proba(features), dtype=np.float64)
    return np.asarray(pipeline.predict(features), dtype=np.float64)


def classes_of(pipeline: Pipeline) -> tuple[Any, ...]:
    """The classes in the order of the probabilities; empty in a regression."""
    model = pipeline[-1]
    return tuple(model.classes_.tolist()) if hasattr(model, "classes_") else ()


def _encoder(recipe: Recipe) -> OrdinalEncoder | OneHotEncoder:
    if recipe.estimator.encoding == "onehot":
        return OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


def _model(recipe: Recipe) -> HistGradientBoostingRegressor | HistGradientBoostingClassifier:
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
