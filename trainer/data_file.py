"""A Parquet or CSV file that is read in batches of rows, never whole.

Columns are told apart by kind: numbers (booleans too) become float32 with NaN for null, text (also
Categorical, Enum and Binary) UTF-8 with an empty string for null, as a model's inputs have them.
Times and nested types are neither. What is wrong with a file is a DataError of one sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import polars as pl

from .errors import DataError

Kind: TypeAlias = Literal["numeric", "categorical", "empty", "other"]

_BATCH_VALUES = 2_000_000  # of all columns together
_MAX_BATCH_ROWS = 65_536
_CSV_NULLS = ["", "NA", "NaN", "nan", "null", "NULL", "None"]


def kind_of(dtype: pl.DataType) -> Kind:
    """How a column of this type is counted; empty: it has no value and no type."""
    if dtype.is_numeric() or dtype == pl.Boolean:
        return "numeric"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
        return "categorical"
    return "empty" if dtype == pl.Null else "other"


class DataFile:
    """One file; `text` names columns that a CSV file's reader must not take for numbers."""

    def __init__(self, path: Path, text: Sequence[str] = ()) -> None:
        self.path = path
        self.typed = _is_parquet(path)  # else what a column holds was read off its values
        if not path.is_file():
            raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        try:
            self._frame = _scan(path, text)
            self.schema: Mapping[str, pl.DataType] = self._frame.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(path, error) from error

    def batches(self, numeric: Sequence[str], categorical: Sequence[str]) -> Iterator[pl.DataFrame]:
        """These columns in the file's order of rows, a bounded number of rows at a time."""
        columns = [
            *(
                pl.col(name).cast(pl.Float64).cast(pl.Float32).fill_null(float("nan"))
                for name in numeric
            ),
            *(self._text(name) for name in categorical),
        ]
        rows = max(1_000, min(_MAX_BATCH_ROWS, _BATCH_VALUES // max(1, len(columns))))
        try:
            yield from self._frame.select(columns).collect_batches(chunk_size=rows)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(self.path, error) from error

    def _text(self, name: str) -> pl.Expr:
        if self.schema[name] == pl.Binary:
            return pl.col(name).fill_null(b"")
        return pl.col(name).cast(pl.String).fill_null("")


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith((".parquet", ".pq"))


def _scan(path: Path, text: Sequence[str]) -> pl.LazyFrame:
    name = path.name.lower()
    if _is_parquet(path):
        return pl.scan_parquet(path, hive_partitioning=False)
    if not name.endswith((".csv", ".tsv")):
        raise DataError(f"{path}: must be a .parquet, .csv or .tsv file")
    separator = "\t" if name.endswith(".tsv") else ","

    def scan(schema: Mapping[str, pl.DataType] | None) -> pl.LazyFrame:
        return pl.scan_csv(
            path,
            separator=separator,
            try_parse_dates=True,
            infer_schema_length=None,  # the whole file: a type is never guessed from its beginning
            null_values=_CSV_NULLS,
            schema=schema,
        )

    there = scan(None).collect_schema()
    # With every type known the file is not looked through once more at each pass.
    return scan({name: pl.String() if name in text else dtype for name, dtype in there.items()})


def _unreadable(path: Path, error: Exception) -> DataError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path}: cannot be read: {why}")
