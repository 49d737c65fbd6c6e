"""Writes a first trimtab.toml for data that nobody prepared: what `trimtab init` is for.

Every column gets a role, and what was decided is told beside it: numbers and text are features;
what has no value or only one, names each row, is a time, or says the target almost perfectly is left
out, with the reason, so that a person may put it back. The window and the thresholds follow how
many rows there are and how much time they span. The file that comes out is read again by the
recipe's own check before it is written.
"""

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .backtest_data import MAX_CLASSES, infer_task
from .columns import NO_VALUE, target_column, time_column
from .data_quality import SUSPICIOUS, categorical_association, numeric_association
from .errors import DataError, TrainingError
from .recipe import METRICS, TASKS, Recipe, nearest

_SAMPLE = 50_000  # rows that roles are read off
_HARDLY_REPEATS = 0.9  # distinct share of a text from which it names rows
_MANY_CATEGORIES = 1_000
_ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid|key|index|rownum|row_?id)$", re.IGNORECASE)
_TIME_NAME = re.compile(r"(time|date|stamp|when|day|hour)", re.IGNORECASE)
_PERIODS = 12  # that the data's span is cut into, where it holds no months
_ENOUGH_ROWS = 20_000  # that a window has at least, if there are so many
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class InitRequest:
    """What the user told. `time` empty: the rows are in order; None: to be found."""

    data: Path
    target: str
    out: Path  # the model's directory
    time: str | None = None
    task: str | None = None  # None: by the target's values
    copy: bool = False
    force: bool = False

    @classmethod
    def from_json(cls, text: str) -> "InitRequest":
        """As `trimtab init` writes it, which has checked what the user typed."""
        told = json.loads(text)
        return cls(**{**told, "data": Path(told["data"]), "out": Path(told["out"])})


@dataclass(frozen=True)
class Role:
    """What a column is used for: numeric, categorical, or out, with the reason."""

    column: str
    role: str
    reason: str


@dataclass(frozen=True)
class InitResult:
    """What was written, and why."""

    recipe: Path
    rows: int
    target: str
    task: str
    time: str
    roles: tuple[Role, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": str(self.recipe),
            "rows": self.rows,
            "target": self.target,
            "task": self.task,
            "time": self.time,
            "columns": [vars(role) for role in self.roles],
            "notes": list(self.notes),
        }


def write_recipe(
    request: InitRequest, tell: Callable[[float, str], None] = lambda share, what: None
) -> InitResult:
    """Looks at the data and writes OUT/trimtab.toml; DataError, RecipeError, OSError."""
    goal = request.out / "trimtab.toml"
    if goal.exists() and not request.force:
        raise TrainingError(f"{goal} exists already: --force writes it anew")
    tell(0.1, f"reading {request.data}")
    table = _read(request.data)
    for name in filter(None, (request.target, request.time)):
        if name not in table.columns:
            raise DataError(f"{request.data} has no column {name!r}{nearest(name, table.columns)}")
    if request.target == request.time:
        raise DataError(f"the target and the time cannot be one column, {request.time!r}")
    notes: list[str] = []
    table = _with_target(table, request, notes)
    task = _task(table[request.target], request, notes)
    time = request.time if request.time is not None else _found_time(table, request, notes)
    tell(0.5, "looking at the columns")
    roles = [
        _role(table, name, request.target, task)
        for name in table.columns
        if name not in (request.target, time)
    ]
    if not any(role.role != "out" for role in roles):
        raise DataError(f"{request.data}: no column is left that could be a feature")
    data = request.data.resolve()
    if request.copy:
        data = request.out.resolve() / "data" / data.name
    text = _text(request, table, task, time, roles, data)
    recipe = Recipe.parse(_recipe_table(text), str(goal))
    tell(0.9, f"writing {goal}")
    request.out.mkdir(parents=True, exist_ok=True)
    if request.copy:
        data.parent.mkdir(exist_ok=True)
        data.write_bytes(request.data.read_bytes())
    partial = goal.with_name(".tmp-trimtab.toml")
    partial.write_text(text, encoding="utf-8")
    partial.replace(goal)
    return InitResult(
        goal, table.height, request.target, recipe.task, time, tuple(roles), tuple(notes)
    )


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, hive_partitioning=False)
        if path.suffix in (".csv", ".tsv"):
            return pl.read_csv(
                path,
                separator="\t" if path.suffix == ".tsv" else ",",
                infer_schema_length=None,
                null_values=list(NO_VALUE),
                try_parse_dates=True,
            )
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read: {why}") from error
    raise DataError(f"{path} is neither .parquet nor .csv nor .tsv")


def _with_target(table: pl.DataFrame, request: InitRequest, notes: list[str]) -> pl.DataFrame:
    kept = table.filter(pl.col(request.target).is_not_null())
    if kept.height < table.height:
        left = table.height - kept.height
        notes.append(f"{left:,} rows have no {request.target}: they are not trained on.")
    if not kept.height:
        raise DataError(f"{request.data}: the target {request.target!r} has no value in any row")
    return kept


def _task(target: pl.Series, request: InitRequest, notes: list[str]) -> str:
    name = request.target
    kinds = target.n_unique()
    if kinds < 2:
        raise DataError(f"the target {name!r} has the same value in every row")
    if request.task is not None:
        if request.task not in TASKS:
            raise DataError(f"task {request.task!r}: must be one of {', '.join(TASKS)}")
        return request.task
    task = infer_task(target)
    if task == "multiclass" and kinds > MAX_CLASSES:
        raise DataError(
            f"the target {name!r} is text with {kinds:,} different values, "
            f"and at most {MAX_CLASSES} classes can be told apart"
        )
    notes.append(f"The task is {task}: {name} is {target.dtype} with {kinds:,} different values.")
    return task


def _found_time(table: pl.DataFrame, request: InitRequest, notes: list[str]) -> str:
    """The only column of times, or the only one of them that is called so; else none."""
    times = [
        name
        for name, kind in table.schema.items()
        if name != request.target and (kind == pl.Date or isinstance(kind, pl.Datetime))
    ]
    named = [name for name in times if _TIME_NAME.search(name)] if len(times) > 1 else times
    if len(named) == 1:
        notes.append(f"The time of each row is taken from {named[0]}.")
        return named[0]
    if times:
        notes.append(f"Several columns are times ({', '.join(times)}): --time says which counts.")
    else:
        notes.append("No column is a time: the rows count as being in order (--time names one).")
    return ""


def _role(table: pl.DataFrame, name: str, target: str, task: str) -> Role:
    column = table[name]
    kind = column.dtype
    known = column.drop_nulls()
    if kind.is_float():
        known = known.drop_nans()
    if not len(known):
        return Role(name, "out", "has no value in any row")
    distinct = known.n_unique()
    if distinct == 1 and len(known) == len(column):
        return Role(name, "out", f"has one value only, {known[0]!r}")
    is_text = kind in (pl.String, pl.Categorical, pl.Enum)
    if not (is_text or kind.is_numeric() or kind == pl.Boolean):
        what = "a time" if kind.is_temporal() else f"of type {kind}"
        return Role(name, "out", f"is {what}, neither a number nor text")
    if is_text and len(known) >= 30 and distinct > _HARDLY_REPEATS * len(known):
        return Role(name, "out", f"names rows: {distinct:,} different texts in {len(known):,} rows")
    if kind.is_integer() and distinct == len(known) >= 30:
        if _ID_NAME.search(name):
            return Role(name, "out", "names rows: a number of its own for each")
        if known.is_sorted() and int(known[-1]) - int(known[0]) == len(known) - 1:
            return Role(name, "out", "counts the rows")
    if kind.is_numeric() and _wide(known):
        return Role(name, "out", "does not fit into float32: subtract an offset from it first")
    if reason := _suspect(column, table[target], target, task, is_text):
        return Role(name, "out", reason)
    told = f"{distinct:,} values"
    if missing := len(column) - len(known):
        told += f", {missing / len(column):.1%} missing"
    if is_text and distinct > _MANY_CATEGORIES:
        told += "; so many categories make a model slow to fit"
    return Role(name, "categorical" if is_text else "numeric", told)


def _wide(known: pl.Series) -> bool:
    """Whether float32 would move the values by more than their differences bear."""
    values = known.cast(pl.Float64).to_numpy()
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        loss = float(np.abs(values - values.astype(np.float32)).max()) if len(values) else 0.0
    return loss > 1e-3 * float(values.std()) > 0 if len(values) else False


def _suspect(column: pl.Series, target: pl.Series, named: str, task: str, is_text: bool) -> str:
    step = max(1, len(column) // _SAMPLE)
    recipe = Recipe(target=named, task=task)  # type: ignore[arg-type]  # one of TASKS
    truth = target_column(recipe, target.gather_every(step), "the data").to_numpy()
    values = column.gather_every(step)
    if is_text:
        texts = values.cast(pl.String).fill_null("").to_numpy()
        found = categorical_association(texts, truth, task != "regression")
    else:
        found = numeric_association(
            values.cast(pl.Float64).fill_null(np.nan).to_numpy(), truth, task != "regression"
        )
    if found <= SUSPICIOUS:
        return ""
    return f"tells {named} almost perfectly ({found:.5f} of 1): is it known before?"


def _text(
    request: InitRequest,
    table: pl.DataFrame,
    task: str,
    time: str,
    roles: Sequence[Role],
    data: Path,
) -> str:
    rows = table.height
    files = f"data/{data.name}" if request.copy else str(data)
    least = min(1_000, max(10, rows // 2))
    window = min(100_000, max(1_000, rows))
    lines = [
        f"# Made by `trimtab init` from {request.data.name}: {rows:,} rows with a {request.target}.",
        "# Change what you know better. All keys: docs/recipe.md and docs/configuration.md.",
        "",
        "[recipe]",
        f"task = {_quoted(task)}",
        f"target = {_quoted(request.target)}",
    ]
    lines += ["# In the order of the model's inputs."]
    for role in ("numeric", "categorical"):
        lines += _listed(role, [item for item in roles if item.role == role])
    if left := [item for item in roles if item.role == "out"]:
        lines += ["# Left out; put one back by adding it above:"]
        lines += [f"#   {item.column}: {item.reason}" for item in left]
    lines += [""]
    if time:
        lines += [f"time = {_quoted(time)}"]
    else:
        lines += ["# No time: rows count as being in order, and as older than all that is served."]
    lines += [
        f"files = [{_quoted(files)}]",
        '# data = ["more/*.parquet", "s3://bucket/history/"]',
        "",
        f"metric = {_quoted(METRICS[task][0])}  # {', '.join(METRICS[task])}",  # type: ignore[index]
        *_window(table, time, window),
        f"min_rows = {least}",
        f"min_holdout_rows = {min(500, max(50, window // 10))}",
        'gate = "better"  # or "not_worse": as good as the champion is enough',
        "",
        "[recipe.estimator]",
        "max_iter = 100",
        "",
        "# When the loop trains by itself, once `trimtab serve` runs and labels come.",
        "[trigger]",
        f"min_labels = {min(2_000, max(100, window // 10))}",
        "label_maturity_s = 0.0  # seconds after which a label counts as final",
        "cooldown_s = 86400.0",
        "",
        "[promotion]",
        'policy = "auto"  # "manual": a person promotes',
    ]
    return "\n".join(lines) + "\n"


def _window(table: pl.DataFrame, time: str, rows: int) -> list[str]:
    """The last periods pooled, where there is a time; else the newest rows."""
    if not time:
        return [f"window_rows = {rows}  # the newest, trained on"]
    moments = time_column(table[time], time, "the data").drop_nulls()
    span_ms = int(moments.max()) - int(moments.min()) if len(moments) else 0  # type: ignore[arg-type]
    if span_ms <= 0:
        return [f"window_rows = {rows}  # the newest, trained on"]
    # Small data are trained on whole: a part of them would say less than their age costs.
    enough = int(span_ms * min(1.0, _ENOUGH_ROWS / table.height) / 4)
    period = _period(max(enough, 30 * _DAY_MS if span_ms >= 90 * _DAY_MS else span_ms // _PERIODS))
    return [
        "# The window: the newest periods pooled; of more rows than these a sample is trained on.",
        f"period = {_quoted(period)}",
        "window_periods = 4",
        f"window_rows = {rows}",
        "history = 0.0  # share of rows from before the window, against forgetting",
    ]


def _period(least_ms: int) -> str:
    """At least so long, in a round unit."""
    for unit, size in (("d", _DAY_MS), ("h", 3_600_000), ("m", 60_000)):
        if least_ms >= size:
            return f"{-(-least_ms // size)}{unit}"
    return f"{max(1, -(-least_ms // 1000))}s"


def _listed(key: str, roles: Sequence[Role]) -> list[str]:
    if not roles:
        return [f"{key} = []"]
    width = max(len(_quoted(role.column)) for role in roles) + 1
    body = [f"    {_quoted(role.column) + ',':<{width}}  # {role.reason}" for role in roles]
    return [f"{key} = [", *body, "]"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _recipe_table(text: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(text)["recipe"]
    return table
