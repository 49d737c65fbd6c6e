"""The recipe: how a model is trained, read from the [recipe] table of its trimtab.toml.

A recipe is checked as a whole when it is read, so that a typing error is found before a minute of
work: an unknown key names the nearest known one, a value of the wrong type or out of range says
what is allowed, and a file's line is named. A message about a key begins `ORIGIN: [TABLE] KEY`.
The other tables of trimtab.toml belong to the server and are not looked at.
Whether the columns exist is for the data to answer (dataset.py).
"""

import dataclasses
import difflib
import re
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
KINDS = ("auto", "hist_gradient_boosting", "linear", "random_forest")
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_MESSAGE = re.compile(
    r"\[(?P<table>recipe[.\w]*)\] (?:has the unknown key '(?P<unknown>[^']*)'|(?P<key>\w+))"
)
_HEADER = re.compile(r"\s*\[([^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"\s*([\w.\-\"']+)\s*=")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _key(default: Any, doc: str, *, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True)
class EstimatorSettings:
    """[recipe.estimator]: which pipeline, and the settings of those that are ours."""

    kind: str = _key("auto", "the pipeline: auto, one of ours, or package.module:function")
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
    early_stopping: int = _key(
        0, "trees without a gain on the newest tenth after which it is enough; 0: off", low=0
    )
    calibration: Literal["auto", "none", "sigmoid"] = _key(
        "auto", "of classes: auto calibrates a forest"
    )


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
    data: tuple[str, ...] = _key(
        (), "more of them: patterns, directories (also Hive-partitioned), s3://, gs://, az://"
    )
    metric: Literal["mae", "rmse", "roc_auc", "log_loss", "accuracy"] = _key(
        "mae", "mae, rmse, roc_auc, log_loss or accuracy"
    )
    window_rows: int = _key(30_000, "newest labelled rows that are trained on", low=10)
    period: str = _key("", "span of time, as in 30d or 12h; empty: the window goes by rows alone")
    window_periods: int = _key(
        4, "newest periods that the window pools, if `period` says how long one is", low=1
    )
    history: float = _key(
        0.0, "share of the trained rows that is drawn from before the window", low=0.0, high=0.9
    )
    sample_mb: int = _key(
        512, "MiB that the trained rows may take; of a larger window a sample is trained on", low=1
    )
    weights: Literal["none", "sampling"] = _key(
        "none", "sampling: each row counts for as many as it was drawn from"
    )
    quality: Literal["stop", "report"] = _key(
        "stop", "what happens if the data are broken: no training, or a line in the report"
    )
    min_rows: int = _key(1_000, "labelled rows without which there is no training", low=10)
    holdout: float = _key(
        0.2, "newest share of them, kept for the comparison with the champion", low=0.01, high=0.9
    )
    holdout_parts: int = _key(
        4, "parts of them, each answered by a model that learned all rows before it", low=1, high=20
    )
    min_holdout_rows: int = _key(500, "rows without which the comparison is inconclusive", low=50)
    gate: Literal["better", "not_worse"] = _key(
        "better", "what the comparison with the champion must show"
    )
    tolerance: float = _key(
        0.01, "for not_worse: loss of the metric, relative to the champion's, still taken", low=0.0
    )
    baseline: Literal["better", "report"] = _key(
        "better", "what the comparison with the best constant guess must show"
    )
    segments: tuple[str, ...] = _key(
        (), "columns whose categories or quarters are compared one by one; empty: all of them"
    )
    segment_tolerance: float = _key(
        0.05, "loss of the metric in a segment, relative to the champion's, still taken", low=0.0
    )
    latency_budget_us: float = _key(
        0.0, "microseconds a row may take alone; 0: twice the champion's", low=0.0
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
            text = path.read_text(encoding="utf-8")
            tables = tomllib.loads(text)
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
        try:
            return cls.parse(tables["recipe"], str(path), path.parent)
        except RecipeError as error:
            raise RecipeError(_with_line(str(error), str(path), text)) from error

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
            values["data"] = tuple(
                name if is_url(name) else str(base / name) for name in values.get("data", ())
            )
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

    @property
    def period_ms(self) -> int:
        """How long a period is; 0: the window goes by rows alone."""
        match = _PERIOD.fullmatch(self.period)
        return round(float(match[1]) * _UNITS_MS[match[2]]) if match else 0

    @property
    def sample_rows(self) -> int:
        """Rows that fit into `sample_mb`: floats, their copies while fitting, strings, the rest."""
        row_bytes = 24 + 13 * len(self.numeric) + 96 * len(self.categorical)
        return max(10, self.sample_mb * 1024 * 1024 // row_bytes)

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
        if self.period and not self.period_ms:
            raise RecipeError(
                f"{where} period = {self.period!r}: must be a number and one of s m h d w, as in 30d"
            )
        if self.period and not self.time:
            raise RecipeError(f"{where} period needs the time of each row: name its column in time")
        for name in self.segments:
            if name not in self.features:
                raise RecipeError(
                    f"{where} segments names {name!r}, which is in neither numeric nor categorical"
                )
        self._check_estimator(origin)

    def _check_estimator(self, origin: str) -> None:
        where = f"{origin}: [recipe.estimator]"
        if self.estimator.calibration == "sigmoid" and not self.classification:
            raise RecipeError(f"{where} calibration is for classes, and task is {self.task!r}")
        boosting = self.estimator.kind in ("auto", "hist_gradient_boosting")
        calibrated = self.estimator.calibration == "sigmoid"
        if self.estimator.early_stopping and (calibrated or self.estimator.kind in KINDS[2:]):
            raise RecipeError(
                f"{where} early_stopping is for hist_gradient_boosting without calibration, "
                f"and {'calibration is ' if boosting else 'kind is '}"
                f"{(self.estimator.calibration if boosting else self.estimator.kind)!r}"
            )
        kind = self.estimator.kind
        if kind not in KINDS and not _FUNCTION.fullmatch(kind):
            raise RecipeError(
                f"{origin}: [recipe.estimator] kind = {kind!r}: must be one of "
                f"{', '.join(KINDS)}, or package.module:function"
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
        if loss not in ("", "squared_error") and kind in ("linear", "random_forest"):
            raise RecipeError(
                f"{origin}: [recipe.estimator] loss = {loss!r} is for hist_gradient_boosting, "
                f"and kind is {kind!r}"
            )


_LITERALS: Mapping[str, tuple[str, ...]] = {
    "task": TASKS,
    "metric": ("mae", "rmse", "roc_auc", "log_loss", "accuracy"),
    "gate": ("better", "not_worse"),
    "schema_change": ("refuse", "allow"),
    "weights": ("none", "sampling"),
    "quality": ("stop", "report"),
    "encoding": ("ordinal", "onehot"),
    "calibration": ("auto", "none", "sigmoid"),
    "baseline": ("better", "report"),
}


def is_url(path: str) -> bool:
    """Whether a path of `data` is not on this machine."""
    return "://" in path


def _with_line(message: str, origin: str, text: str) -> str:
    """The message with the number of the line that its table and key are on, where one is found."""
    about = _MESSAGE.match(message.removeprefix(f"{origin}: "))
    if not about:
        return message
    number = _line_of(text, about["table"], about["unknown"] or about["key"])
    return message if not number else f"{origin}:{number}: " + message.removeprefix(f"{origin}: ")


def _line_of(text: str, table: str, key: str) -> int:
    """The line of a key, else that where its table begins; 0: neither is found."""
    inside, header = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _HEADER.match(line):
            inside = found[1].replace(" ", "").replace('"', "").replace("'", "")
            header = number if inside == table else header
        elif found := _ASSIGNMENT.match(line):
            path = ".".join(filter(None, (inside, found[1].replace('"', "").replace("'", ""))))
            if path == f"{table}.{key}":
                return number
            if path == table:  # an inline table
                header = number
    return header


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
