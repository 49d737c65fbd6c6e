"""The recipe: how a model is trained, read from the [recipe] table of its trimtab.toml.

A recipe is checked as a whole when it is read, so that a typing error is found before a minute of
work: an unknown key names the nearest known one, a value of the wrong type or out of range says
what is allowed. The other tables of trimtab.toml belong to the server and are not looked at.
Whether the columns exist is for the data to answer (dataset.py).
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from .errors import RecipeError

Task = Literal["regression", "binary", "multiclass"]
Metric = Literal["mae", "rmse", "roc_auc", "log_loss", "accuracy"]

TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")
METRICS: Mapping[Task, tuple[Metric, ...]] = {  # the first one is the default
    "regression": ("mae", "rmse"),
    "binary": ("roc_auc", "log_loss", "accuracy"),
    "multiclass": ("log_loss", "accuracy"),
}


def _key(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True)
class EstimatorSettings:
    """[recipe.estimator]: the columns' encoding and scikit-learn's HistGradientBoosting."""

    encoding: Literal["ordinal", "onehot"] = _key("ordinal", "how strings become numbers")
    loss: str = _key("", "of a regression: squared_error (default), absolute_error, poisson, gamma")
    max_iter: int = _key(100, "trees (per class)", low=1, high=10_000)
    learning_rate: float = _key(0.1, "weight of each tree", low=1e-6, high=1.0)
    max_leaf_nodes: int = _key(31, "leaves of a tree", low=2, high=65_535)
    max_depth: int = _key(0, "levels of a tree; 0: no limit", low=0, high=1_000)
    min_samples_leaf: int = _key(20, "training rows in a leaf at least", low=1)
    l2_regularization: float = _key(0.0, "shrinks the leaves' values", low=0.0)
    max_features: float = _key(1.0, "share of the columns tried at a split", low=0.01, high=1.0)
    max_bins: int = _key(255, "bins of a column while fitting", low=2, high=255)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. Paths in `files` are absolute once loaded."""

    task: Literal["regression", "binary", "multiclass"] = _key(
        "regression", "regression, binary or multiclass"
    )
    target: str = _key("", "column that is to be predicted")
    numeric: tuple[str, ...] = _key((), "columns of numbers, in the order of the input `numeric`")
    categorical: tuple[str, ...] = _key(
        (), "columns of strings, in the order of the input `categorical`"
    )
    time: str = _key("", "column of the files with each row's time; without it they are in order")
    files: tuple[str, ...] = _key((), "Parquet or CSV files with the history before the log began")
    metric: Literal["mae", "rmse", "roc_auc", "log_loss", "accuracy"] = _key(
        "mae", "mae, rmse, roc_auc, log_loss or accuracy"
    )
    window_rows: int = _key(30_000, "newest labelled rows that are trained on", low=10)
    min_rows: int = _key(1_000, "labelled rows without which there is no training", low=10)
    holdout: float = _key(
        0.2, "newest share of them, kept for the comparison with the champion", low=0.01, high=0.9
    )
    min_holdout_rows: int = _key(500, "rows without which the comparison is inconclusive", low=50)
    gate: Literal["better", "not_worse"] = _key(
        "better", "what the comparison with the champion must show"
    )
    tolerance: float = _key(
        0.01, "for not_worse: loss of the metric, relative to the champion's, still taken", low=0.0
    )
    schema_change: Literal["refuse", "allow"] = _key(
        "refuse", "whether inputs and classes may differ from the champion's"
    )
    refit: bool = _key(True, "once judged, fit again on the whole window before publishing")
    seed: int = _key(0, "of all that is random", low=0, high=2**31 - 1)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Reads and checks a trimtab.toml; relative files are relative to its directory."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecipeError(
                f"{path} does not exist, so there is no recipe to train by"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not TOML: {error}") from error
        if "recipe" not in tables:
            raise RecipeError(f"{path} has no [recipe] table")
        return cls.parse(tables["recipe"], str(path), path.parent)

    @classmethod
    def parse(
        cls, table: Mapping[str, Any], origin: str = "recipe", base: Path | None = None
    ) -> "Recipe":
        """Checks the [recipe] table; `origin` begins every message, `base` is where files are."""
        if not isinstance(table, Mapping):
            raise RecipeError(f"{origin}: recipe must be a table, [recipe]")
        given = dict(table)
        estimator = given.pop("estimator", {})
        if not isinstance(estimator, Mapping):
            raise RecipeError(f"{origin}: [recipe.estimator] must be a table")
        values = _checked(cls, given, f"{origin}: [recipe]", skip=("estimator",))
        task = cast(Task, values.get("task", "regression"))
        values.setdefault("metric", METRICS[task][0])
        values["estimator"] = EstimatorSettings(
            **_checked(EstimatorSettings, estimator, f"{origin}: [recipe.estimator]")
        )
        if base is not None:
            values["files"] = tuple(str(base / name) for name in values.get("files", ()))
        recipe = cls(**values)
        recipe._check(origin)
        return recipe

    @property
    def features(self) -> tuple[str, ...]:
        """The input columns: the numeric ones, then the categorical ones."""
        return self.numeric + self.categorical

    @property
    def classification(self) -> bool:
        return self.task != "regression"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a version's lineage."""
        return dataclasses.asdict(self)

    def _check(self, origin: str) -> None:
        where = f"{origin}: [recipe]"
        if not self.target:
            raise RecipeError(f"{where} target is missing: name the column that is to be predicted")
        if not self.features:
            raise RecipeError(f"{where} names no columns: list them in numeric and categorical")
        seen: set[str] = set()
        for name in (*self.features, self.target):
            if not name:
                raise RecipeError(f"{where} has an empty column name")
            if name in seen:
                raise RecipeError(f"{where} names the column {name!r} twice")
            seen.add(name)
        if self.metric not in METRICS[self.task]:
            allowed = ", ".join(METRICS[self.task])
            raise RecipeError(
                f"{where} metric = {self.metric!r} does not fit task = {self.task!r}: "
                f"it must be one of {allowed}"
            )
        if self.min_rows > self.window_rows:
            raise RecipeError(
                f"{where} min_rows = {self.min_rows} exceeds window_rows = {self.window_rows}"
            )
        losses = ("", "squared_error", "absolute_error", "poisson", "gamma")
        loss = self.estimator.loss
        if loss not in losses:
            raise RecipeError(
                f"{origin}: [recipe.estimator] loss = {loss!r}: must be one of "
                f"{', '.join(losses[1:])}"
            )
        if loss and self.classification:
            raise RecipeError(
                f"{origin}: [recipe.estimator] loss is for a regression, "
                f"and task is {self.task!r}, whose loss is always log_loss"
            )


_LITERALS: Mapping[str, tuple[str, ...]] = {
    "task": TASKS,
    "metric": ("mae", "rmse", "roc_auc", "log_loss", "accuracy"),
    "gate": ("better", "not_worse"),
    "schema_change": ("refuse", "allow"),
    "encoding": ("ordinal", "onehot"),
}


def _checked(
    kind: type, table: Mapping[str, Any], where: str, skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    known = {item.name: item for item in dataclasses.fields(kind) if item.name not in skip}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise RecipeError(f"{where} has the unknown key {name!r}{nearest(name, known)}")
        item = known[name]
        value = _typed(value, item.default, f"{where} {name}")
        if name in _LITERALS and value not in _LITERALS[name]:
            allowed = ", ".join(_LITERALS[name])
            raise RecipeError(f"{where} {name} = {value!r}: must be one of {allowed}")
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if low is not None and not value >= low:
            raise RecipeError(f"{where} {name} = {value}: must be at least {low}")
        if high is not None and not value <= high:
            raise RecipeError(f"{where} {name} = {value}: must be at most {high}")
        values[name] = value
    return values


def _typed(value: Any, default: Any, where: str) -> Any:
    """The value as the type that the key's default has."""
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where} = {value!r}: must be a list of strings")
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        raise RecipeError(f"{where} = {value!r}: must be {names[type(default)]}")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known are {shown}" if names else ""
