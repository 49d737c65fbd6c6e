"""What is known to go wrong on the way to ONNX, found before a minute is spent on fitting.

Each rule stands for a conversion that was measured to be wrong, refused or far too slow with
skl2onnx 1.20 and onnxruntime 1.32 on 20,000 rows; the figure is with the rule. A finding names the
step or the column, what would happen, and what to write instead. Pipelines of ours break no rule
about steps; one of the user's is besides tried out: fitted to a few hundred rows, converted and
compared, for what no rule knows.

That is no substitute for the parity gate, which judges the very graph that is published.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from skl2onnx._supported_operators import sklearn_operator_name_map
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    KNeighborsTransformer,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from .dataset import Dataset
from .errors import ExportError
from .estimators import boosting_of, own, walk
from .export import OnnxModel, export
from .parity import check_parity, parity_rows
from .recipe import Recipe

_HIST = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
_TREES = (
    *_HIST,
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
_OF_TREES_UNLESS_TOLD = (AdaBoostClassifier, AdaBoostRegressor, BaggingClassifier, BaggingRegressor)
_SCALERS = (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
_NEIGHBOURS = (
    KNNImputer,
    KNeighborsClassifier,
    KNeighborsRegressor,
    KNeighborsTransformer,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
)
_CONTAINERS = (ColumnTransformer, FeatureUnion, Pipeline)
_TRIAL_ROWS = 600
_EPOCH_S = tuple(datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2000, 2100))
_EPOCH_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


@dataclass(frozen=True)
class Finding:
    """One thing that would go wrong: which rule, where, and in words what and what to do."""

    rule: str
    where: str
    message: str


def lint(recipe: Recipe, pipeline: Pipeline, features: pl.DataFrame) -> tuple[Finding, ...]:
    """Every rule that the pipeline, not fitted yet, or the columns break."""
    steps = tuple(finding for rule in _STEP_RULES for finding in rule(pipeline))
    return (*steps, *_ends_right(recipe, pipeline), *_columns(recipe, features))


def try_out(recipe: Recipe, pipeline: Pipeline, data: Dataset) -> tuple[Finding, ...]:
    """Fits a copy to a few hundred rows, converts and compares it; what goes wrong there."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(_TRIAL_ROWS, len(data))).astype(int))
    some = data.take(rows)
    try:
        fitted = clone(pipeline).fit(some.features(), some.target())
    except ValueError:
        return ()  # of too few rows, maybe: the fit to all of them will tell
    try:
        model = OnnxModel(export(recipe, fitted))
        parity = check_parity(recipe, fitted, model, parity_rows(recipe, some, len(some)))
    except ExportError as error:
        return (Finding("trial", "pipeline", f"{error}; use a step that skl2onnx supports"),)
    except ValueError as error:
        why = str(error).splitlines()[0]
        text = (
            f"the pipeline does not take a row with missing or unseen values ({why}), and live "
            'rows have them: put SimpleImputer before the model, or handle_unknown="ignore" '
            "into the encoder"
        )
        return (Finding("missing values", "pipeline", text),)
    except Exception as error:  # noqa: BLE001  onnxruntime's have no common base but this
        why = str(error).strip().splitlines()[0]
        text = f"onnxruntime fails on the converted pipeline ({why}): use another step"
        return (Finding("trial", "pipeline", text),)
    if not parity.worst_rows:
        return ()
    text = (
        f"fitted to {len(some):,} rows, the converted pipeline differs from scikit-learn's by up "
        f"to {parity.worst:.2g} and in {parity.wrong_labels:,} labels (at {parity.worst_rows[0]}): "
        "take steps out until it does not"
    )
    return (Finding("trial", "pipeline", text),)


def require_exportable(recipe: Recipe, pipeline: Pipeline, data: Dataset) -> None:
    """ExportError with every finding, if there is any; a pipeline of the user's is tried out."""
    findings = lint(recipe, pipeline, data.features())
    if not findings and own(recipe):
        findings = try_out(recipe, pipeline, data)
    if findings:
        told = "; ".join(f"{item.where}: {item.message}" for item in findings)
        raise ExportError(f"the pipeline would not be the same model as ONNX: {told}")


def _native_categories(pipeline: Pipeline) -> Iterator[Finding]:
    """8,313 of 20,000 labels wrong (sklearn-onnx issues 1051 and 1101)."""
    for name, step in walk(pipeline):
        given = step.categorical_features if isinstance(step, _HIST) else None
        if given is not None and not (isinstance(given, str) and given == "from_dtype"):
            yield Finding(
                "native categories",
                name or "model",
                "scikit-learn's own handling of categories is converted wrongly: set "
                "categorical_features=None and put OrdinalEncoder, OneHotEncoder or TargetEncoder "
                "before it",
            )


def _data_frames_inside(pipeline: Pipeline) -> Iterator[Finding]:
    """A data frame between two steps brings back the category dtype, and with it the above."""
    for name, step in walk(pipeline):
        output = getattr(step, "_sklearn_output_config", {}).get("transform")
        if output in ("pandas", "polars"):
            yield Finding(
                "data frames inside",
                name or "pipeline",
                f'set_output(transform="{output}") can turn on the handling of categories that is '
                "converted wrongly: leave it out",
            )


def _scaler_before_trees(pipeline: Pipeline) -> Iterator[Finding]:
    """158 of 20,000 rows off by more than 1e-3, and labels wrong (sklearn-onnx issue 1192)."""
    for _, inner in walk(pipeline):
        if not isinstance(inner, Pipeline):
            continue
        scalers: list[str] = []
        for name, step in inner.steps:
            if not isinstance(step, BaseEstimator):
                continue
            if scalers and any(_is_tree(each) for _, each in walk(step)):
                yield Finding(
                    "scaler before trees",
                    name,
                    f"{', '.join(scalers)} before trees moves rows across thresholds in float32, "
                    "and trees need no scaling: take it out",
                )
            scalers += [type(each).__name__ for _, each in walk(step) if isinstance(each, _SCALERS)]


def _calibration(pipeline: Pipeline) -> Iterator[Finding]:
    """Over a pipeline: 6,970 of 20,000 labels wrong (issue 1246). Isotonic: 200 rows off (200)."""
    for name, step in walk(pipeline):
        if isinstance(step, CalibratedClassifierCV):
            if any(isinstance(each, _CONTAINERS) for path, each in walk(step) if path):
                yield Finding(
                    "calibrated pipeline",
                    name or "model",
                    "CalibratedClassifierCV around a pipeline is converted wrongly: put it inside, "
                    'Pipeline([("columns", …), ("model", CalibratedClassifierCV(classifier))])',
                )
            if step.method != "sigmoid":
                yield Finding(
                    "calibration method",
                    name or "model",
                    f"calibration by method={step.method!r} is not converted faithfully: "
                    'use method="sigmoid"',
                )
        elif isinstance(step, IsotonicRegression):
            yield Finding(
                "calibration method",
                name or "model",
                "isotonic regression loses its steps in float32: use a sigmoid, or trees with "
                "monotonic_cst",
            )


def _quantiles(pipeline: Pipeline) -> Iterator[Finding]:
    """282 of 20,000 rows off by more than 1e-3 in float32."""
    for name, step in walk(pipeline):
        if isinstance(step, QuantileTransformer):
            yield Finding(
                "quantile transformer",
                name,
                "QuantileTransformer is not exact in float32: use PowerTransformer or "
                "KBinsDiscretizer",
            )


def _neighbours(pipeline: Pipeline) -> Iterator[Finding]:
    """63 ms for one row and 1.6 s for 1,024; the imputer is besides wrong in some rows."""
    for name, step in walk(pipeline):
        if isinstance(step, _NEIGHBOURS):
            instead = "SimpleImputer" if isinstance(step, KNNImputer) else "trees or a linear model"
            yield Finding(
                "neighbours",
                name or "model",
                f"{type(step).__name__} searches the training rows for every request, tens of "
                f"milliseconds a row: use {instead}",
            )


def _unknown_categories(pipeline: Pipeline) -> Iterator[Finding]:
    """Live traffic has categories that training had not; so has every parity check."""
    for name, step in walk(pipeline):
        if isinstance(step, OneHotEncoder) and step.handle_unknown != "ignore":
            yield Finding(
                "unknown categories",
                name,
                f"OneHotEncoder(handle_unknown={step.handle_unknown!r}) fails on a category that "
                'training had not: use handle_unknown="ignore"',
            )
        elif isinstance(step, OrdinalEncoder) and step.handle_unknown != "use_encoded_value":
            yield Finding(
                "unknown categories",
                name,
                "OrdinalEncoder fails on a category that training had not: use "
                'handle_unknown="use_encoded_value", unknown_value=-1',
            )


def _unsupported(pipeline: Pipeline) -> Iterator[Finding]:
    """What skl2onnx has no converter for, or one that does not work."""
    for name, step in walk(pipeline):
        where = name or type(step).__name__
        if isinstance(step, FunctionTransformer) and step.func is not None:
            yield Finding(
                "unsupported step",
                where,
                "a function in Python cannot become part of a graph: compute the column before it "
                "is sent and logged, or use PowerTransformer, PolynomialFeatures or KBinsDiscretizer",
            )
        elif isinstance(step, SimpleImputer) and step.add_indicator:
            yield Finding(
                "unsupported step",
                where,
                "SimpleImputer(add_indicator=True) is not converted: leave the indicator out, or "
                "use hist_gradient_boosting, which takes missing values as they are",
            )
        elif type(step) not in sklearn_operator_name_map and not isinstance(step, _CONTAINERS):
            yield Finding(
                "unsupported step",
                where,
                f"skl2onnx has no converter for {type(step).__name__}: use a step that it has one "
                "for, or register yours in the module of the function",
            )


def _random_stopping(pipeline: Pipeline) -> Iterator[Finding]:
    """Not ONNX's fault, but found here: neighbours in time of the held-back rows are learned."""
    for name, step in walk(pipeline):
        if getattr(step, "early_stopping", False) is True or (
            getattr(step, "n_iter_no_change", None) is not None
            and isinstance(step, GradientBoostingClassifier | GradientBoostingRegressor)
        ):
            yield Finding(
                "random early stopping",
                name or "model",
                f"{type(step).__name__} stops early on a random part of the rows, which tells "
                "nothing about newer ones: turn it off there, and for HistGradientBoosting set "
                "early_stopping in [recipe.estimator], which uses the newest rows",
            )


_STEP_RULES: tuple[Callable[[Pipeline], Iterator[Finding]], ...] = (
    _native_categories,
    _data_frames_inside,
    _scaler_before_trees,
    _calibration,
    _quantiles,
    _neighbours,
    _unknown_categories,
    _unsupported,
    _random_stopping,
)


def _ends_right(recipe: Recipe, pipeline: Pipeline) -> Iterator[Finding]:
    model = pipeline[-1]
    if recipe.classification and not hasattr(model, "predict_proba"):
        yield Finding(
            "no probabilities",
            type(model).__name__,
            "it gives no probabilities, which the task needs: wrap it in CalibratedClassifierCV, "
            'or, of a vote, use voting="soft"',
        )
    elif not recipe.classification and hasattr(model, "predict_proba"):
        yield Finding(
            "no probabilities", type(model).__name__, "it is a classifier, and task is 'regression'"
        )
    if recipe.estimator.early_stopping and boosting_of(pipeline) is None:
        yield Finding(
            "early stopping",
            type(model).__name__,
            "early_stopping in [recipe.estimator] is for a pipeline that ends in "
            "HistGradientBoosting: set it to 0",
        )


def _columns(recipe: Recipe, features: pl.DataFrame) -> Iterator[Finding]:
    for name in recipe.categorical:
        if isinstance(features.schema[name], pl.Categorical | pl.Enum):
            yield Finding(
                "category dtype",
                f"column {name!r}",
                "its type turns on the handling of categories that is converted wrongly: "
                "cast it to String",
            )
    for name in recipe.numeric:
        known = features[name].filter(features[name].is_finite())
        if known.len() == 0:
            continue
        low, high = (float(value) for value in np.asarray([known.min(), known.max()], dtype=float))
        for unit, scale in _EPOCH_UNITS.items():
            if _EPOCH_S[0] * scale <= low < high <= _EPOCH_S[1] * scale:
                step = float(np.spacing(np.float32(high))) / scale
                yield Finding(
                    "time as a number",
                    f"column {name!r}",
                    f"its values are {unit} since 1970, which float32 keeps to {step:,.6g} s only, "
                    "and tomorrow's are larger than any that was learned: derive the hour, the "
                    "weekday or an age from it instead",
                )


def _is_tree(step: Any) -> bool:
    if isinstance(step, _OF_TREES_UNLESS_TOLD):
        return step.estimator is None
    return isinstance(step, _TREES)
