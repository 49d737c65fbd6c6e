"""Reads anybody's labelled history for a backtest: columns' roles, the task, the periods, the order.

What the user did not tell is inferred, and every inference is a sentence in `Dataset.notes`, so
that nothing is guessed in silence. What cannot be used is a `DataError` of one clear sentence.
The outcome is one frame sorted by time that holds the time (milliseconds), the target and the
features and nothing else; everything downstream works on row numbers of that frame.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .backtest_columns import guess_roles, listing, number, parse_times, read_table, time_format
from .errors import DataError

Order = Literal["as-is", "shuffle-within-period", "shuffle"]

MAX_CLASSES = 100  # more different values are no classes
_FEW_VALUES = 20  # numbers with at most so many different whole values are taken for classes
_MIN_MONTHS = 3
_SLICES = 10
_EVERY = re.compile(r"([1-9]\d*)(s|m|h|d|w|mo|q|y)")
_PERIOD = "trimtab.period"  # the name of each row's period, while the data is prepared
# Whole numbers below the limit are such: (limit, unit, divisor and factor that give milliseconds).
_EPOCHS: tuple[tuple[int, str, int, int], ...] = (
    (10**11, "seconds", 1, 1000),
    (10**14, "milliseconds", 1, 1),
    (10**17, "microseconds", 1000, 1),
    (2**64, "nanoseconds", 10**6, 1),
)


@dataclass(frozen=True)
class DataRequest:
    """What the user told about the data; None and empty: to be inferred."""

    path: Path
    target: str
    time: str
    period: str | None = None
    every: str | None = None
    task: str | None = None  # regression, classification, binary or multiclass
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    last_period: int | None = None  # how many periods are taken, the first one included
    order: Order = "as-is"
    seed: int = 0


@dataclass(frozen=True)
class Period:
    """Rows start (inclusive) to stop (exclusive) of the dataset's frame."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Dataset:
    frame: pl.DataFrame  # time (Int64, ms), target, numeric (Float32), categorical (String)
    time: str
    target: str
    task: str  # regression, binary or multiclass
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    periods: tuple[Period, ...]
    notes: tuple[str, ...]  # what was inferred, left out or dropped, in sentences

    @property
    def times_ms(self) -> NDArray[np.int64]:
        return self.frame[self.time].to_numpy()

    @property
    def classes(self) -> tuple[str | int | float, ...]:
        """The sorted classes of a classification; empty for a regression."""
        if self.task == "regression":
            return ()
        return tuple(self.frame[self.target].unique().sort().to_list())


def load(request: DataRequest) -> Dataset:
    """Reads and prepares the data; DataError."""
    return prepare(read_table(request.path), request)


def prepare(table: pl.DataFrame, request: DataRequest) -> Dataset:
    """Checks the table and brings it into the order in which it is replayed; DataError."""
    named = [request.target, request.time, *request.numeric, *request.categorical, *request.exclude]
    if request.period:
        named.append(request.period)
    for name in named:
        if name not in table.columns:
            raise DataError(
                f"{request.path}: no column {name!r}; there are {listing(table.columns)}"
            )
    if request.target == request.time:
        raise DataError(f"the target and the time cannot be one column, {request.time!r}")
    if request.period and request.every:
        raise DataError("--period and --every cannot both be given")
    notes: list[str] = []
    if request.period:  # which may be the time's column, so before that becomes milliseconds
        named_period = pl.col(request.period).cast(pl.String).fill_null("(none)")
        table = table.with_columns(named_period.alias(_PERIOD))
    table = table.with_columns(_milliseconds(table, request, notes).alias(request.time))
    table = _labelled(table, request, notes)
    # Stable, so that rows of one time keep the file's order; a Parquet file is read in order.
    table = table.sort(request.time, maintain_order=True)
    task, table = _resolve_task(table, request, notes)
    periods = _split(table, request, notes)
    if request.last_period is not None:
        periods = periods[: request.last_period]
        table = table.head(periods[-1].stop)
    if request.order != "as-is":
        whole = (Period("all", 0, table.height),)
        table = _shuffled(table, request, periods if request.order != "shuffle" else whole)
    numeric, categorical = _roles(table, request, periods[0], notes)
    overlap = sorted(set(numeric) & set(categorical))
    if overlap:
        raise DataError(f"column {overlap[0]!r} cannot be both numeric and categorical")
    for what, name in (("target", request.target), ("time", request.time)):
        if name in numeric or name in categorical:
            raise DataError(f"column {name!r} cannot be a feature: it is the {what}")
    if not numeric and not categorical:
        raise DataError(f"{request.path}: no column is left that could be a feature")
    features = [number(table, name) for name in numeric] + [
        pl.col(name).cast(pl.String) for name in categorical
    ]
    frame = table.select(request.time, request.target, *features)
    if task != "regression":
        first = frame[request.target].slice(0, periods[0].stop)
        if first.n_unique() < 2:
            raise DataError(
                f"the first period, {periods[0].name}, has one class of {request.target!r} only "
                f"({first[0]!r}): a classifier cannot be trained on it"
            )
    return Dataset(
        frame=frame.rechunk(),
        time=request.time,
        target=request.target,
        task=task,
        numeric=tuple(numeric),
        categorical=tuple(categorical),
        periods=periods,
        notes=tuple(notes),
    )


def _milliseconds(table: pl.DataFrame, request: DataRequest, notes: list[str]) -> pl.Series:
    """The time column as milliseconds since the epoch."""
    column = table[request.time]
    if column.dtype == pl.String:
        form = time_format(column)
        if form is None:
            example = column.drop_nulls().first() if column.null_count() < len(column) else None
            raise DataError(
                f"column {request.time!r} is text that cannot be read as a time: {example!r}"
            )
        notes.append(f"{request.time} is read as {form}.")
        column = parse_times(column, form)
    if column.dtype in (pl.Date, pl.Datetime):
        result = column.dt.epoch("ms")
    elif column.dtype.is_integer():
        largest = int(column.abs().max() or 0)  # type: ignore[arg-type]  # it is an integer
        unit, divide, multiply = next(entry[1:] for entry in _EPOCHS if largest < entry[0])
        notes.append(f"{request.time} is taken for {unit} since 1970.")
        result = column.cast(pl.Int64) // divide * multiply
    else:
        raise DataError(
            f"column {request.time!r} is {column.dtype}: must be a time, a date or a whole number"
        )
    missing = result.null_count()
    if missing:
        raise DataError(f"column {request.time!r} is empty in {missing:,} of {len(result):,} rows")
    if not len(result):
        raise DataError(f"{request.path}: has no rows")
    if int(result.min()) < 0:  # type: ignore[arg-type]  # it is an integer
        raise DataError(f"column {request.time!r} has times before 1970, where clocks begin")
    return result.cast(pl.Int64)


def _labelled(table: pl.DataFrame, request: DataRequest, notes: list[str]) -> pl.DataFrame:
    """Without the rows whose target is missing: they can be neither trained on nor scored."""
    target = pl.col(request.target)
    keep = target.is_not_null()
    if table.schema[request.target].is_float():
        keep &= target.is_finite()
    kept = table.filter(keep)
    dropped = table.height - kept.height
    if not kept.height:
        raise DataError(f"column {request.target!r} has no value in any row")
    if dropped:
        notes.append(f"{dropped:,} rows without a value of {request.target} were dropped.")
    return kept


def _resolve_task(
    table: pl.DataFrame, request: DataRequest, notes: list[str]
) -> tuple[str, pl.DataFrame]:
    target = table[request.target]
    kinds = target.n_unique()
    if kinds < 2:
        raise DataError(f"column {request.target!r} has one value only, {target[0]!r}")
    number = target.dtype.is_numeric()
    if not number and target.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
        raise DataError(f"column {request.target!r} is {target.dtype}: no target for a model")
    classes = "binary" if kinds == 2 else "multiclass"
    task = request.task or infer_task(target)
    if task == "classification":
        task = classes
    if request.task is None:
        notes.append(
            f"The task is {task}: {request.target} is {_kind(target)} with {kinds:,} values."
        )
    if task == "regression":
        if not number:
            raise DataError(f"column {request.target!r} is {target.dtype}: no number to regress on")
        return task, table.with_columns(pl.col(request.target).cast(pl.Float64))
    if kinds > MAX_CLASSES:
        raise DataError(
            f"column {request.target!r} has {kinds:,} different values; "
            f"at most {MAX_CLASSES} classes are taken"
        )
    if task != classes:
        raise DataError(f"column {request.target!r} has {kinds} classes: the task is {classes}")
    if number or target.dtype == pl.Boolean:
        whole = target.cast(pl.Int64)
        if target.dtype.is_float() and (whole.cast(pl.Float64) != target).any():
            raise DataError(f"column {request.target!r} has classes that are no whole numbers")
        return task, table.with_columns(whole.alias(request.target))
    return task, table.with_columns(pl.col(request.target).cast(pl.String))


def infer_task(target: pl.Series) -> str:
    """regression, binary or multiclass, from the values alone."""
    kinds = target.n_unique()
    if kinds == 2:
        return "binary"
    if not target.dtype.is_numeric():
        return "multiclass"
    if kinds > _FEW_VALUES:
        return "regression"
    if target.dtype.is_integer():
        return "multiclass"
    return "multiclass" if (target.round() == target).all() else "regression"


def _split(table: pl.DataFrame, request: DataRequest, notes: list[str]) -> tuple[Period, ...]:
    moments = pl.from_epoch(table[request.time], "ms")
    if request.period:
        names = table[_PERIOD]
    elif request.every:
        if not _EVERY.fullmatch(request.every):
            raise DataError(
                f"--every {request.every}: must be a number and one of s m h d w mo q y, as in 30d"
            )
        names = _stamps(moments.dt.truncate(request.every), request.every)
    else:
        names = _stamps(moments.dt.truncate("1mo"), "1mo")
        months = names.n_unique()
        if months >= _MIN_MONTHS:
            notes.append(f"The periods are the {months} calendar months of {request.time}.")
        else:
            if table.height < 2 * _SLICES:
                raise DataError(f"{request.path}: {table.height} rows are too few for periods")
            slices = np.arange(table.height, dtype=np.int64) * _SLICES // table.height
            names = pl.Series([f"slice {number + 1}" for number in slices.tolist()])
            notes.append(f"The periods are {_SLICES} slices of equally many rows.")
    periods = _runs(names)
    seen: set[str] = set()
    for period in periods:
        if period.name in seen:
            raise DataError(
                f"period {period.name!r} of column {request.period!r} is not one stretch of time: "
                f"other periods lie between its rows"
            )
        seen.add(period.name)
    if len(periods) < 2:
        raise DataError(
            f"there is one period only, {periods[0].name}: the first is trained on, "
            "so at least two are needed (--every makes shorter ones)"
        )
    return periods


def _runs(names: pl.Series) -> tuple[Period, ...]:
    starts = [0, *(np.flatnonzero((names[1:] != names[:-1]).to_numpy()) + 1).tolist(), len(names)]
    return tuple(
        Period(str(names[start]), start, stop) for start, stop in itertools.pairwise(starts)
    )


def _stamps(moments: pl.Series, every: str) -> pl.Series:
    unit = every.lstrip("0123456789")
    form = {"y": "%Y", "q": "%Y-%m", "mo": "%Y-%m", "w": "%Y-%m-%d", "d": "%Y-%m-%d"}
    return moments.dt.strftime(form.get(unit, "%Y-%m-%d %H:%M:%S"))


def _shuffled(table: pl.DataFrame, request: DataRequest, periods: Sequence[Period]) -> pl.DataFrame:
    """The rows of each stretch permuted over its times, which stay in their order."""
    source = np.random.default_rng([request.seed, 1])
    order = np.concatenate([period.start + source.permutation(period.rows) for period in periods])
    return table[order].with_columns(table[request.time])


def _roles(
    table: pl.DataFrame, request: DataRequest, first: Period, notes: list[str]
) -> tuple[list[str], list[str]]:
    taken = {request.target, request.time, request.period or "", _PERIOD, *request.exclude}
    if request.numeric or request.categorical:
        told = {*request.numeric, *request.categorical}
        rest = [name for name in table.columns if name not in told and name not in taken]
        if rest:
            notes.append(f"Not used: {listing(rest)}.")
        return list(request.numeric), list(request.categorical)
    roles = guess_roles(table, taken, first.stop, "the first period")
    notes += roles.notes
    return list(roles.numeric), list(roles.categorical)


def _kind(target: pl.Series) -> str:
    if target.dtype.is_float():
        return "a number"
    return "a whole number" if target.dtype.is_integer() else "text"
