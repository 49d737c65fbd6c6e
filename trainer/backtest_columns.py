"""Reads a table that nobody prepared, and guesses what its columns are to a model.

A CSV file's separator is the commonest of its first line, its text is UTF-8 or else Latin-1, and a
column of text that is numbers but for a few words, or times in one of the usual forms, becomes such.
What a column is to a model follows from its values alone; `guess_roles` says why each column that
is left out is. No guess is made of a column that the user named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from .errors import DataError

_NULLS = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "?"]
_SEPARATORS = ",;\t|"
_TIMES = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%Y%m%d",
)
_WORDS = 0.01  # share of a column of numbers that may be words, taken for missing values
_FEW_CODES = 10  # whole numbers of so many values at most are taken for codes
_SAMPLE = 2_000
_TEXT = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class Roles:
    """The features, and what is told of the guess."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    notes: tuple[str, ...]


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet or CSV file as a frame; DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower()
    try:
        if name.endswith((".parquet", ".pq")):
            return pl.read_parquet(path)
        if name.endswith((".csv", ".tsv", ".csv.gz", ".csv.zst")):
            return _read_csv(path)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(f"{path}: cannot be read: {reason}") from error
    raise DataError(f"{path}: must be a .parquet or a .csv file")


def guess_roles(table: pl.DataFrame, taken: set[str], first_rows: int, of: str) -> Roles:
    """What each column that is not `taken` is to a model.

    `table` is in the order of time; its first `first_rows` rows are the first period, `of` its name.
    """
    numeric: list[str] = []
    categorical: list[str] = []
    left: list[str] = []
    notes: list[str] = []
    codes: list[str] = []
    for name in table.columns:
        if name in taken:
            continue
        column = table[name]
        known = column.slice(0, first_rows).drop_nulls()
        if not len(known):
            left.append(f"{name} (empty in {of})")
        elif column.n_unique() == 1:
            left.append(f"{name} (one value only)")
        elif column.dtype == pl.Boolean:
            numeric.append(name)
        elif column.dtype.is_integer() and _counts_rows(column):
            left.append(f"{name} (another number in every row: an identifier)")
        elif column.dtype.is_integer() and _is_code(column, known):
            codes.append(name)
            categorical.append(name)
        elif column.dtype.is_numeric():
            numeric.append(name)
        elif column.dtype in _TEXT:
            text = known.cast(pl.String)
            if time_format(text.head(_SAMPLE)) is not None:
                left.append(f"{name} (a date)")
            elif len(text) >= 30 and text.n_unique() > 0.9 * len(text):
                left.append(f"{name} (text that hardly repeats)")
            else:
                categorical.append(name)
        elif column.dtype in (pl.Date, pl.Datetime, pl.Time, pl.Duration):
            left.append(f"{name} (a date: its parts may be columns of their own)")
        else:
            left.append(f"{name} ({column.dtype})")
    notes.append(f"Numeric: {listing(numeric) or 'none'}.")
    notes.append(f"Categorical: {listing(categorical) or 'none'}.")
    if codes:
        notes.append(
            f"Taken for codes, as whole numbers of {_FEW_CODES} values at most: {listing(codes)} "
            "(--numeric says otherwise)."
        )
    if left:
        notes.append(f"Left out: {listing(left)}.")
    return Roles(tuple(numeric), tuple(categorical), tuple(notes))


def time_format(text: pl.Series) -> str | None:
    """The form in which every one of these texts is a time; None: there is none.

    Where days and months could be either, the one whose times go back less often.
    """
    known = text.drop_nulls().str.strip_chars()
    if not len(known):
        return None
    fitting: list[tuple[int, str]] = []
    for form in _TIMES:
        parsed = parse_times(known, form)
        if not parsed.null_count():
            backwards = int((np.diff(parsed.to_numpy().astype(np.int64)) < 0).sum())
            fitting.append((backwards, form))
    return min(fitting, key=lambda each: each[0])[1] if fitting else None


def parse_times(text: pl.Series, form: str) -> pl.Series:
    """Milliseconds as a Datetime; null where the text is no such time."""
    return text.str.strip_chars().str.to_datetime(form, time_unit="ms", strict=False)


def number(table: pl.DataFrame, name: str) -> pl.Expr:
    """The column as Float32, missing where it is NaN; DataError."""
    kind = table.schema[name]
    if kind in _TEXT:
        try:
            table[name].cast(pl.String).cast(pl.Float64, strict=True)
        except pl.exceptions.PolarsError:
            raise DataError(f"column {name!r} is text, not numbers: name it categorical") from None
        return pl.col(name).cast(pl.String).cast(pl.Float64).cast(pl.Float32)
    if not (kind.is_numeric() or kind == pl.Boolean):
        raise DataError(f"column {name!r} is {kind}: neither a number nor text")
    return pl.col(name).cast(pl.Float32).fill_nan(None)


def listing(names: Sequence[str], at_most: int = 30) -> str:
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def _read_csv(path: Path) -> pl.DataFrame:
    separator = ","
    if path.suffix.lower() in (".csv", ".tsv"):  # else it is compressed
        with path.open("rb") as file:
            line = file.readline(1 << 20).decode("utf-8", errors="replace")
        separator = max(_SEPARATORS, key=line.count)
    try:
        table = _parsed(path, separator, "utf8")
    except pl.exceptions.ComputeError as error:
        if "utf-8" not in str(error).lower():
            raise
        table = _parsed(path, separator, "iso-8859-1")
    texts = [name for name in table.columns if table.schema[name] == pl.String]
    better = [_numbers(table[name], decimal_comma=separator == ";") for name in texts]
    return table.with_columns(column for column in better if column is not None)


def _parsed(path: Path, separator: str, encoding: str) -> pl.DataFrame:
    return pl.read_csv(
        path,
        separator=separator,
        encoding=encoding,
        infer_schema_length=20_000,
        null_values=_NULLS,
    )


def _numbers(column: pl.Series, *, decimal_comma: bool) -> pl.Series | None:
    """A column of text as numbers where nearly all of it is; None: it is text."""
    known = len(column) - column.null_count()
    bare = column.str.strip_chars().str.strip_chars_start("$€£").str.strip_chars_end("%")
    # Only groups of three digits: 01.02.2021 is a date.
    mark, point = (".", ",") if decimal_comma else (",", ".")
    grouped = bare.str.contains(rf"^[-+]?(\d{{1,3}}(\{mark}\d{{3}})+|\d+)(\{point}\d+)?$")
    others = bare.set(~grouped.fill_null(False), None)
    others = others.str.replace_all(mark, "", literal=True).str.replace(point, ".", literal=True)
    for text in (bare, others):
        found = text.cast(pl.Float64, strict=False)
        if known and found.null_count() - column.null_count() <= _WORDS * known:
            return found.alias(column.name)
    return None


def _counts_rows(column: pl.Series) -> bool:
    """Whether it is a number of the row: all different, and as dense as numbers given out are."""
    if column.null_count() or len(column) < 30 or column.n_unique() < len(column):
        return False
    low, high = int(column.min()), int(column.max())  # type: ignore[arg-type]  # an integer column
    return high - low < 10 * len(column) or column.is_sorted()


def _is_code(column: pl.Series, first: pl.Series) -> bool:
    """Whether few whole numbers stand for kinds, all of which the first period has."""
    kinds = column.drop_nulls().unique()
    return 2 < len(kinds) <= _FEW_CODES and first.n_unique() == len(kinds)
