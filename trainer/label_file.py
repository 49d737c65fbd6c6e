"""A Parquet or CSV file of labels: checked whole first, then handed over batch by batch, in its order.

Columns: `id` and `label`, `row` (0 without it) and `time`, when the label became known (now without
it). The checks are those that the feedback service makes of labels that come by RPC, and a file is
taken whole or refused whole as a request is. A row without a label is one whose truth is not known
yet: it is left out and counted.

The file is read twice, at most `_BATCH_ROWS` rows at a time. What memory grows with is 16 bytes a
row, by which rows that name the same prediction are counted, and MAX_ROWS bounds that.
"""

import functools
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .errors import DataError

MAX_ROWS = 10_000_000
MAX_ID_BYTES = 1024  # as the feedback service has it
MAX_TEXT_BYTES = 64 * 1024
MAX_NUMBER = float(np.finfo(np.float32).max)

COLUMNS = ("id", "row", "label", "time")

Wanted: TypeAlias = Literal["number", "text", "any"]

STALL_S = 60

_BATCH_ROWS = 20_000
_LINE_ROWS = 1_000  # of what is handed over at once: whoever reads it holds a lock meanwhile
_LINE_BYTES = 256 * 1024
_TOLD = 20  # rows that are named
_STRINGS = (pl.String, pl.Categorical, pl.Enum)


@dataclass
class LabelFileReport:
    """Counts of one file's rows. `labels` are those that can be taken."""

    rows: int = 0
    labels: int = 0
    unlabelled: int = 0  # their truth is not known yet
    unreadable: int = 0
    repeated: int = 0  # labels of a row that the file has another label of, the last one left out
    problems: list[str] = field(default_factory=list)  # of the first unreadable rows

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class LabelFile:
    """One file, held open; a context manager. Every error is a DataError of one sentence."""

    def __init__(
        self,
        path: Path,
        wanted: Wanted,
        max_request_rows: int,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        """`wanted`: what the model's labels are; any: as the file has them. `alive` is called after
        every batch that was read."""
        self._path = path
        self._max_request_rows = max_request_rows
        self._alive = alive
        self._file = _opened(path)
        try:
            self._stamp = self._now()
            self._frame = self._scan()
            self._typed = _is_parquet(path)
            self.is_text = self._kind(wanted) == "text"
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def check(self) -> LabelFileReport:
        """Reads every row; says what is wrong with the first that are, and how many there are."""
        report = LabelFileReport()
        keys: list[NDArray[np.uint64]] = []
        for batch in self._batches():
            wrong, unlabelled = self._wrong(batch)
            for at in np.flatnonzero(wrong)[: _TOLD - len(report.problems)].tolist():
                row = batch.slice(at, 1).with_columns(pl.col(pl.String).str.head(2 * MAX_ID_BYTES))
                told = self._problem(report.rows + at + 1, row.row(0, named=True))
                report.problems.append(told)
            kept = batch.filter(pl.Series(~wrong & ~unlabelled))
            keys.append(kept.select(pl.struct("id", "row").hash(seed=0)).to_series().to_numpy())
            report.rows += batch.height
            report.labels += kept.height
            report.unlabelled += int(unlabelled.sum())
            report.unreadable += int(wrong.sum())
            if report.rows > MAX_ROWS:
                raise self._too_long()
        self._stands_still()
        if not report.rows:
            raise DataError(f"{self._path.name} has no rows")
        known = np.concatenate(keys)
        del keys
        known.sort()
        report.repeated = int((known[1:] == known[:-1]).sum())
        return report

    def lines(self) -> Iterator[dict[str, list[Any]]]:
        """The labels as `check` found them, column by column, a thousand at most at a time."""
        names = ["id", "row", "label", *(["time"] if "time" in self._schema else [])]
        for batch in self._batches():
            wrong, unlabelled = self._wrong(batch)
            if wrong.any():
                raise self._changed()
            kept = batch.filter(pl.Series(~unlabelled)).select(names)
            start = 0
            while start < kept.height:
                part = kept.slice(start, _LINE_ROWS)
                sizes = part["id"].str.len_bytes().to_numpy().astype(np.int64) + 32
                if self.is_text:
                    sizes = sizes + part["label"].str.len_bytes().to_numpy()
                fits = int(np.searchsorted(np.cumsum(sizes), _LINE_BYTES, "right"))
                part = part.head(max(1, fits))
                start += part.height
                yield {name: part[name].to_list() for name in names}
        self._stands_still()

    # -- what the file is

    def _scan(self) -> pl.LazyFrame:
        path = f"/proc/self/fd/{self._file}"  # what was looked at, whatever has the name by now
        name = self._path.name.lower()
        try:
            if _is_parquet(self._path):
                frame = pl.scan_parquet(path, hive_partitioning=False, glob=False)
            elif name.endswith((".csv", ".tsv")):
                separator = "\t" if name.endswith(".tsv") else ","
                frame = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
            else:
                raise DataError(f"{self._path.name} is neither .parquet nor .csv nor .tsv")
            self._schema = dict(frame.collect_schema())
            if _is_parquet(self._path):
                rows = int(frame.select(pl.len()).collect().item())  # the footer's
                if rows > MAX_ROWS:
                    raise self._too_long()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from error
        for wanted in ("id", "label"):
            if wanted not in self._schema:
                there = ", ".join(map(repr, self._schema))
                raise DataError(f"{self._path.name} has no column {wanted!r}: it has {there}")
        for other in self._schema:
            if other not in COLUMNS:
                raise DataError(
                    f"{self._path.name} has a column {other!r}: known are {', '.join(COLUMNS)}"
                )
        return frame

    def _kind(self, wanted: Wanted) -> str:
        """Whether labels are numbers or text; DataError where the columns' types do not fit."""
        schema = self._schema
        if not (schema["id"] in _STRINGS or schema["id"].is_integer()):
            raise self._type("id", "text or whole numbers")
        if "row" in schema and not (schema["row"].is_numeric() or schema["row"] == pl.String):
            raise self._type("row", "whole numbers")
        if "time" in schema and not (
            schema["time"].is_integer() or schema["time"] in (pl.Datetime, pl.Date, pl.String)
        ):
            raise self._type("time", "times or whole milliseconds")
        label = schema["label"]
        if not self._typed:
            if wanted != "any":
                return wanted
            return "number" if self._all_numbers() else "text"
        if label in _STRINGS:
            found = "text"
        elif label.is_numeric() or label == pl.Boolean:
            found = "number"
        elif label == pl.Null:
            found = "number" if wanted == "any" else wanted
        else:
            raise self._type("label", "numbers or text")
        if wanted not in ("any", found):
            raise self._type("label", "numbers" if wanted == "number" else "text")
        return found

    def _type(self, name: str, wanted: str) -> DataError:
        return DataError(
            f"{self._path.name}: the column {name!r} holds {self._schema[name]}, not {wanted}"
        )

    def _all_numbers(self) -> bool:
        """Whether every label of a CSV file could be one."""
        label = pl.col("label").str.strip_chars()
        other = label.cast(pl.Float64, strict=False).is_null() & (label != "")
        return not any(batch["label"].any() for batch in self._read([other]))

    # -- its rows

    def _batches(self) -> Iterator[pl.DataFrame]:
        """id, row, label and time in one form, null where that cannot be had; and as they were read."""
        schema = self._schema
        row = _whole(pl.col("row"), schema["row"]) if "row" in schema else pl.lit(0, pl.Int64)
        columns = [pl.col("id").cast(pl.String), row.alias("row"), self._label().alias("label")]
        columns += [
            pl.col(name).alias(f"raw.{name}") for name in ("row", "label") if name in schema
        ]
        if "time" in schema:
            columns += [_time(schema["time"]).alias("time"), pl.col("time").alias("raw.time")]
        yield from self._read(columns)

    def _read(self, columns: Sequence[pl.Expr]) -> Iterator[pl.DataFrame]:
        try:
            for batch in self._frame.select(columns).collect_batches(
                chunk_size=_BATCH_ROWS, maintain_order=True
            ):
                self._alive()
                yield batch
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from error

    def _label(self) -> pl.Expr:
        label = pl.col("label")
        if self.is_text:
            return label.cast(pl.String).replace("", None)
        if not self._typed:
            label = label.str.strip_chars()
        return label.cast(pl.Float64, strict=False)

    def _wrong(self, batch: pl.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows cannot be read, and which of the others have no label."""
        given = pl.col("raw.label").is_not_null()
        if self._schema["label"] in _STRINGS:
            given = given & (pl.col("raw.label").cast(pl.String).str.strip_chars() != "")
        wrong = (
            pl.col("id").is_null()
            | (pl.col("id") == "")
            | (pl.col("id").str.len_bytes() > MAX_ID_BYTES)
            | pl.col("row").is_null()
            | ~pl.col("row").is_between(0, self._max_request_rows - 1)
        )
        if "time" in batch.columns:
            wrong = wrong | pl.col("time").is_null() | (pl.col("time") < 0)
        if self.is_text:
            bad = pl.col("label").str.len_bytes() > MAX_TEXT_BYTES
        else:
            bad = pl.col("label").is_null() | ~(pl.col("label").abs() <= MAX_NUMBER)
        found = batch.select(
            (wrong | (given & bad)).fill_null(True).alias("wrong"), given.alias("given")
        )
        is_wrong = found["wrong"].to_numpy().astype(bool)
        return is_wrong, ~found["given"].to_numpy().astype(bool) & ~is_wrong

    def _problem(self, number: int, row: dict[str, Any]) -> str:
        """What is wrong with a row; they count from 1, without a header."""
        where = f"row {number:,}"
        if not row["id"]:
            return f"{where}: the column 'id' is empty"
        if len(row["id"].encode()) > MAX_ID_BYTES:
            return f"{where}: its id is longer than {MAX_ID_BYTES:,} bytes"
        where += f" (id {_short(row['id'])})"
        if row["row"] is None:
            return f"{where}: the column 'row' has {_short(row['raw.row'])}, not a whole number"
        if not 0 <= row["row"] < self._max_request_rows:
            return (
                f"{where}: the column 'row' has {row['row']:,}, which is none: "
                f"a request has at most {self._max_request_rows:,}"
            )
        if "time" in row and (row["time"] is None or row["time"] < 0):
            return (
                f"{where}: the column 'time' has {_short(row['raw.time'])}, "
                "neither a time from 1970 on nor whole milliseconds"
            )
        if self.is_text:
            return f"{where}: its label is longer than {MAX_TEXT_BYTES:,} bytes"
        if row["label"] is not None and np.isfinite(row["label"]):
            return f"{where}: the column 'label' has {row['label']:g}, which is beyond float32"
        return f"{where}: the column 'label' has {_short(row['raw.label'])}, not a number"

    # -- what can go wrong with all of it

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _stands_still(self) -> None:
        if self._now() != self._stamp:
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(f"{self._path.name} was changed while it was read")

    def _too_long(self) -> DataError:
        return DataError(
            f"{self._path.name} has more than {MAX_ROWS:,} rows; several smaller files are taken"
        )

    def _unreadable(self, error: Exception) -> DataError:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DataError(f"{self._path.name} cannot be read: {why[:400]}")


def _opened(path: Path) -> int:
    """A descriptor of a regular file that is no link."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = "is a symbolic link" if path.is_symlink() else f"cannot be opened: {error.strerror}"
        raise DataError(f"{path.name} {why}") from error
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and found.st_size:
        return file
    os.close(file)
    raise DataError(f"{path.name} {'is empty' if stat.S_ISREG(found.st_mode) else 'is no file'}")


def _is_parquet(path: Path) -> bool:
    return path.name.lower().endswith((".parquet", ".pq"))


def _whole(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        return column.str.strip_chars().cast(pl.Int64, strict=False)
    number = column.cast(pl.Int64, strict=False)
    return number if dtype.is_integer() else pl.when(number == column).then(number)


def _time(dtype: pl.DataType) -> pl.Expr:
    """Milliseconds since the epoch; a time without a zone is UTC."""
    column = pl.col("time")
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if dtype != pl.String:
        return column.dt.epoch("ms")
    text = column.str.strip_chars()
    iso = text.str.replace(" ", "T", literal=True).str
    moment = "%Y-%m-%dT%H:%M:%S%.f"
    return pl.coalesce(
        text.cast(pl.Int64, strict=False),
        iso.to_datetime(f"{moment}%#z", time_unit="ms", time_zone="UTC", strict=False).dt.epoch(
            "ms"
        ),
        iso.to_datetime(moment, time_unit="ms", strict=False).dt.epoch("ms"),
        iso.to_date("%Y-%m-%d", strict=False).dt.epoch("ms"),
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def send(
    path: Path, wanted: Wanted, max_request_rows: int, tell: Callable[[dict[str, Any]], None]
) -> str:
    """Checks the file, tells its counts, then its labels; why it is refused, or nothing.

    `tell` is given `{"counts": …}`, once there are any, and `{"labels": …}` as often as it takes;
    it may block. DataError. A process that reads no row for `STALL_S` is ended by SIGALRM: with no
    memory left, Polars' threads may wait for each other for ever.
    """
    stall = functools.partial(signal.alarm, STALL_S)
    stall()
    try:
        with LabelFile(path, wanted, max_request_rows, stall) as file:
            report = file.check()
            signal.alarm(0)
            tell({"counts": report.to_dict()})
            if report.unreadable:
                return (
                    f"{report.unreadable:,} of its {report.rows:,} rows cannot be taken: "
                    f"{report.problems[0]}"
                )
            stall()
            for line in file.lines():
                signal.alarm(0)
                tell({"labels": line})
                stall()
    finally:
        signal.alarm(0)
    return ""
