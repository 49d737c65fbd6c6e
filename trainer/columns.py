"""How a column of a file or of the traffic log becomes one that a model is fitted to.

Numbers become Float32 with NaN for null, strings String with "" for null, times milliseconds since
the epoch, targets Float64, Int64 or String. What cannot be turned into that is a DataError of one
sentence: the column, where it is from, and what it holds instead.
"""

import io
from collections.abc import Sequence

import numpy as np
import polars as pl

from .errors import DataError
from .recipe import Recipe, nearest

# Where a CSV file has no value, in a column of numbers, of times or of the target.
NO_VALUE = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
# A column whose values float32 moves by more than this share of their spread is of no use.
_SNAP_LOSS = 1e-3
_LARGEST = float(np.finfo(np.float32).max)


def clean_features(recipe: Recipe, frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    """The input columns of a raw frame in the form that the module's text describes."""
    for name in recipe.features:
        require_column(frame.columns, name, origin)
    return frame.select(
        *(_numeric(frame[name], name, origin) for name in recipe.numeric),
        *(_text(frame[name], name, origin) for name in recipe.categorical),
    )


def compacted(frame: pl.DataFrame) -> pl.DataFrame:
    """The same rows without what they were taken from.

    Polars' strings are views into buffers, and a few rows keep all the text of their batch alive:
    590 MiB instead of 510 where 250,000 of 2 million rows were taken. Arrow's older layout has none.
    """
    if pl.String not in frame.schema.values() or not frame.height:
        return frame
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compat_level=pl.CompatLevel.oldest())
    buffer.seek(0)
    return pl.read_ipc(buffer)


def require_column(columns: Sequence[str], name: str, origin: str) -> None:
    if name not in columns:
        raise DataError(f"{origin} has no column {name!r}{nearest(name, columns)}")


def _numeric(column: pl.Series, name: str, origin: str) -> pl.Series:
    if column.dtype == pl.String:
        column = _parsed(column, f"the numeric column {name!r} of {origin}")
    elif column.dtype == pl.Null:
        column = column.cast(pl.Float64)
    elif not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise DataError(
            f"the numeric column {name!r} of {origin} holds {column.dtype}, not numbers"
        )
    wide = column.cast(pl.Float64)
    known = wide.filter(wide.is_finite()).to_numpy()
    if known.size:
        with np.errstate(over="ignore"):  # beyond float32's range: infinite, hence too much
            loss = np.abs(known - known.astype(np.float32)).max()
        if loss > _SNAP_LOSS * known.std() > 0:
            raise DataError(
                f"the numeric column {name!r} of {origin} does not fit into float32: its values "
                f"are around {np.median(known):.6g} and differ by {known.std():.3g}; "
                "subtract an offset from it first"
            )
    return wide.cast(pl.Float32).fill_null(float("nan")).alias(name)


def _parsed(column: pl.Series, what: str) -> pl.Series:
    """A column of text as numbers, the usual spellings of a missing value as null."""
    stripped = column.str.strip_chars()
    given = stripped.set(stripped.is_in(NO_VALUE), None)
    numbers = given.cast(pl.Float64, strict=False)
    bad = given.filter(numbers.is_null() & given.is_not_null())
    if bad.len():
        raise DataError(f"{what} holds {bad[0]!r}, not a number")
    return numbers


def _text(column: pl.Series, name: str, origin: str) -> pl.Series:
    if column.dtype == pl.Binary:
        column = column.cast(pl.String)
    elif column.dtype.is_nested() or column.dtype.is_float():
        raise DataError(
            f"the categorical column {name!r} of {origin} holds {column.dtype}, not text"
        )
    return column.cast(pl.String).fill_null("").alias(name)


def time_column(column: pl.Series, name: str, origin: str) -> pl.Series:
    """Milliseconds since the epoch; a time without a zone is taken as UTC."""
    if column.dtype == pl.String:
        try:
            column = column.str.to_datetime(time_unit="ms")
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"the time column {name!r} of {origin} holds {column.drop_nulls()[0]!r}, "
                "which is not a date and time in ISO 8601"
            ) from error
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    if column.dtype not in (pl.Datetime, pl.Date):
        raise DataError(
            f"the time column {name!r} of {origin} holds {column.dtype}, "
            "neither times nor whole milliseconds"
        )
    return column.dt.epoch("ms")


def target_column(recipe: Recipe, column: pl.Series, origin: str) -> pl.Series:
    name = recipe.target
    if column.dtype == pl.Boolean:
        column = column.cast(pl.Int64)
    if not recipe.classification:
        if column.dtype == pl.String:
            column = _parsed(column, f"the target {name!r} of {origin}")
        if not column.dtype.is_numeric():
            raise DataError(f"the target {name!r} of {origin} holds {column.dtype}, not numbers")
        wide = column.cast(pl.Float64)
        # As good as none: no graph that computes in float32 could answer it.
        return wide.set(wide.abs() > _LARGEST, None)
    if column.dtype.is_float():
        known = column.drop_nulls().drop_nans()
        if (known != known.round()).any():
            raise DataError(
                f"the target {name!r} of {origin} holds fractions, and task is {recipe.task!r}"
            )
        column = column.fill_nan(None).cast(pl.Int64)
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    text = column.cast(pl.String)
    return text.set(text == "", None)
