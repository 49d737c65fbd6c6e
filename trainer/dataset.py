"""The rows that a model is trained on: the recipe's files and the labelled traffic, newest last.

A Dataset is a Polars frame in one fixed form, and everything after it relies on that form:

* the numeric columns as Float32, null as NaN. They are rounded before anything is fitted: the ONNX
  graph computes in float32, and a threshold fitted on more digits would send rows the other way;
* the categorical columns as String, null as "" (ONNX has no null string);
* the target: Float64 in a regression, Int64 or String for classes; never null;
* the time in milliseconds since the epoch, and rows in ascending order of (time, id, row). Polars
  keeps no order of its own, so the sort is explicit, and the same inputs give the same bytes.

What is wrong with the data is a DataError of one sentence that names the file and the column.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .columns import clean_features, require_column, target_column, time_column
from .errors import DataError
from .log_reader import read_log
from .recipe import Recipe

# Our own columns begin so; a file's columns never meet them, for only the recipe's are taken.
TARGET = "trimtab.target"
TIME = "trimtab.time"
_ID = "trimtab.id"
_ROW = "trimtab.row"


@dataclass(frozen=True)
class Source:
    """Where rows came from, for the lineage."""

    path: str
    rows: int
    sha256: str = ""


@dataclass(frozen=True)
class Dataset:
    """Clean rows in the order of time; see the module's text for the columns' form."""

    recipe: Recipe
    frame: pl.DataFrame
    sources: tuple[Source, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)  # rows left out, by reason

    @classmethod
    def from_frame(cls, recipe: Recipe, frame: pl.DataFrame, origin: str = "the data") -> "Dataset":
        """Takes a frame with the recipe's columns as they are in a file; sorts it by time."""
        dropped: dict[str, int] = {}
        clean = _from_file(recipe, frame, origin, 0, dropped)
        return cls(recipe, _in_order(clean), (Source(origin, clean.height),), dropped)

    @classmethod
    def read(
        cls, recipe: Recipe, data: Path | None, mature_until_ms: int | None = None
    ) -> "Dataset":
        """The newest `window_rows` labelled rows of the recipe's files and the model's traffic.

        `data` is the model's directory under MODELS_DIR/.trimtab, which may not exist yet. Rows
        that were served after `mature_until_ms` are left out; files hold history and are not young.
        """
        dropped: dict[str, int] = {}
        parts: list[pl.DataFrame] = []
        sources: list[Source] = []
        for name in recipe.files:
            rows = sum(part.height for part in parts)
            part = _from_file(recipe, _read_file(Path(name), recipe), name, rows, dropped)
            parts.append(part)
            sources.append(Source(name, part.height, _sha256_of(Path(name))))
        if data is not None and (data / "traffic").is_dir():
            text = parts[0].schema[TARGET] == pl.String if parts and recipe.classification else None
            served, read = _from_traffic(recipe, data, text, dropped, mature_until_ms)
            if served is not None:
                parts.append(served)
                sources.extend(read)
        if not parts:
            raise DataError(
                "there are no labelled rows: the recipe names no files, "
                "and no row of the traffic log has a label yet"
            )
        if len({part.schema[TARGET] for part in parts}) > 1:
            raise DataError(
                f"the target {recipe.target!r} is text in one of the sources and numbers in another"
            )
        window = _in_order(pl.concat(parts)).tail(recipe.window_rows)
        dataset = cls(recipe, window, tuple(sources), dropped)
        dataset.check()
        return dataset

    def check(self) -> None:
        """Raises DataError where a model could not be fitted to these rows."""
        recipe, frame = self.recipe, self.frame
        if frame.height < recipe.min_rows:
            raise DataError(
                f"there are {frame.height:,} labelled rows, "
                f"and min_rows asks for {recipe.min_rows:,}{self._drops()}"
            )
        for name in recipe.numeric:
            if frame[name].is_nan().all():
                raise DataError(
                    f"the numeric column {name!r} has no value in any of the "
                    f"{frame.height:,} newest labelled rows"
                )
        for name in recipe.categorical:
            if (frame[name] == "").all():
                raise DataError(
                    f"the categorical column {name!r} has no value in any of the "
                    f"{frame.height:,} newest labelled rows"
                )
        kinds = frame[TARGET].n_unique()
        if recipe.task == "binary" and kinds != 2:
            raise DataError(
                f"the target {recipe.target!r} has {kinds} different values, "
                "and a binary task needs exactly 2"
            )
        if kinds < 2:
            raise DataError(f"the target {recipe.target!r} has the same value in every row")

    def __len__(self) -> int:
        return self.frame.height

    def slice(self, start: int, stop: int | None = None) -> "Dataset":
        """Rows from `start` to before `stop`, counted in the order of time."""
        length = None if stop is None else stop - start
        return Dataset(self.recipe, self.frame.slice(start, length), self.sources, self.dropped)

    def take(self, rows: NDArray[np.intp]) -> "Dataset":
        """The rows with these positions, in ascending order of position."""
        return Dataset(self.recipe, self.frame[np.sort(rows)], self.sources, self.dropped)

    def features(self) -> pl.DataFrame:
        """The input columns: what a fitted pipeline takes."""
        return self.frame.select(self.recipe.features)

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The ONNX model's inputs: float32 and object arrays, C-contiguous."""
        return tensors(self.recipe, self.frame)

    def target(self) -> NDArray[Any]:
        """float64 in a regression, else int64 or an object array of str."""
        return self.frame[TARGET].to_numpy()

    def classes(self) -> tuple[Any, ...]:
        """The target's values in ascending order, as a fitted model orders them; () if not classes."""
        if not self.recipe.classification:
            return ()
        return tuple(np.unique(self.target()).tolist())

    def times(self) -> NDArray[np.int64]:
        return self.frame[TIME].to_numpy()

    def sha256(self) -> str:
        """Of every value, in order: two trainings with the same digest saw the same matrix."""
        digest = hashlib.sha256()
        for name in (*self.recipe.features, TARGET, TIME):
            column = self.frame[name]
            digest.update(f"\n{name}:{column.dtype}:{column.len()}\n".encode())
            if column.dtype == pl.String:
                digest.update("\0".join(column.to_list()).encode())
            else:
                digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
        return digest.hexdigest()

    def lineage(self) -> dict[str, Any]:
        times = self.times()
        return {
            "rows": len(self),
            "time_from_ms": int(times[0]),
            "time_to_ms": int(times[-1]),
            "sha256": self.sha256(),
            "sources": [
                {"path": source.path, "rows": source.rows, "sha256": source.sha256}
                for source in self.sources
            ],
            "dropped": dict(self.dropped),
        }

    def _drops(self) -> str:
        shown = ", ".join(f"{rows:,} {why}" for why, rows in self.dropped.items() if rows)
        return f" (left out: {shown})" if shown else ""


def tensors(recipe: Recipe, frame: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """A clean frame's columns as the ONNX model's inputs."""
    found: dict[str, NDArray[Any]] = {}
    if recipe.numeric:
        numeric = frame.select(recipe.numeric).to_numpy()
        found["numeric"] = np.ascontiguousarray(numeric, dtype=np.float32)
    if recipe.categorical:
        strings = np.empty((frame.height, len(recipe.categorical)), dtype=object)
        for index, name in enumerate(recipe.categorical):
            strings[:, index] = frame[name].to_list()
        found["categorical"] = strings
    return found


def _read_file(path: Path, recipe: Recipe) -> pl.DataFrame:
    """The recipe's columns of one file, as they are."""
    wanted = [*recipe.features, recipe.target, *([recipe.time] if recipe.time else [])]
    try:
        if path.suffix == ".parquet":
            there = list(pl.read_parquet_schema(path))
        elif path.suffix in (".csv", ".tsv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            there = pl.read_csv(path, n_rows=0, separator=separator).columns
        else:
            raise DataError(f"{path} is neither .parquet nor .csv nor .tsv")
        for name in wanted:
            require_column(there, name, str(path))
        wanted = list(dict.fromkeys(wanted))
        if path.suffix == ".parquet":
            return pl.read_parquet(path, columns=wanted, hive_partitioning=False)
        text = dict.fromkeys(recipe.categorical, pl.String)
        return pl.read_csv(
            path,
            columns=wanted,
            separator=separator,
            infer_schema_length=None,
            schema_overrides=text,
        ).select(wanted)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read: {why}") from error


def _from_file(
    recipe: Recipe, frame: pl.DataFrame, origin: str, first_row: int, dropped: dict[str, int]
) -> pl.DataFrame:
    for name in (recipe.target, *([recipe.time] if recipe.time else [])):
        require_column(frame.columns, name, origin)
    clean = clean_features(recipe, frame, origin).with_columns(
        target_column(recipe, frame[recipe.target], origin).alias(TARGET),
        time_column(frame[recipe.time], recipe.time, origin).alias(TIME)
        if recipe.time
        else pl.lit(0, pl.Int64).alias(TIME),
        pl.lit("").alias(_ID),
        (pl.int_range(pl.len(), dtype=pl.Int64) + first_row).alias(_ROW),
    )
    return _labelled(clean, dropped)


def _from_traffic(
    recipe: Recipe,
    data: Path,
    text: bool | None,
    dropped: dict[str, int],
    mature_until_ms: int | None,
) -> tuple[pl.DataFrame | None, list[Source]]:
    """The served rows that have a label. `text`: whether classes are strings, None: unknown."""
    keys = ["id", "row"]
    told = read_log(data / "labels", [*keys, "number", "text"])
    labels = _concat((frame for _, frame in told), "the log of labels")
    if labels is None:
        return None, []
    if text is None:
        text = recipe.classification and labels["text"].null_count() < labels.height
    value = "text" if text else "number"
    wrong = labels[value].null_count()
    if wrong:
        dropped["labels of the other type"] = wrong
    labels = labels.select(*keys, pl.col(value).alias(TARGET)).filter(pl.col(TARGET).is_not_null())
    # After that: a label of the other type must not take the place of a right one.
    labels = labels.unique(keys, keep="last", maintain_order=True)

    columns = [f"in.{name}" for name in recipe.features]
    read = read_log(data / "traffic", [*keys, "event_time", *columns])
    whole = [frame for _, frame in read if set(columns) <= set(frame.columns)]
    older = sum(frame.height for _, frame in read) - sum(frame.height for frame in whole)
    if older:
        dropped["served rows without a column of the recipe"] = older
    served = _concat(whole, "the traffic log")
    if served is None:
        return None, []
    served = served.unique(keys, keep="last", maintain_order=True)
    if mature_until_ms is not None:
        # Labelled or not: those whose labels come early are not like the others.
        young = (served["event_time"] > mature_until_ms).fill_null(False)
        if young.any():
            dropped["served rows younger than label_maturity_s"] = int(young.sum())
        served = served.filter(~young)
    served = served.join(
        labels.with_columns(target_column(recipe, labels[TARGET], "the labels").alias(TARGET)),
        on=keys,
        how="inner",
    )
    if served.height > recipe.window_rows:  # no older row can be in the window
        newest = served["event_time"].top_k(recipe.window_rows).min()
        served = served.filter(pl.col("event_time") >= newest)
    names = dict(zip(columns, recipe.features, strict=True))
    features = served.select(columns).rename(names)
    kept = clean_features(recipe, features, "the traffic log").with_columns(
        served[TARGET],
        served["event_time"].cast(pl.Int64).alias(TIME),
        served["id"].cast(pl.String).alias(_ID),
        served["row"].cast(pl.Int64).alias(_ROW),
    )
    kept = _labelled(kept, dropped)
    rows: dict[str, int] = {}
    for path, frame in read:
        name = str(path.relative_to(data))
        rows[name] = rows.get(name, 0) + frame.height
    return kept, [Source(name, count) for name, count in rows.items()]


def _concat(frames: Iterable[pl.DataFrame], origin: str) -> pl.DataFrame | None:
    frames = [frame for frame in frames if frame.height]
    try:
        return pl.concat(frames, how="diagonal_relaxed") if frames else None
    except pl.exceptions.PolarsError as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{origin} has columns that changed their type: {why}") from error


def _labelled(frame: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
    """Without the rows that have no target or no time, which are counted."""
    has_target = pl.col(TARGET).is_not_null()
    if frame.schema[TARGET] == pl.Float64:
        has_target = has_target & pl.col(TARGET).is_finite()
    for why, keep in (
        ("rows without a target", has_target),
        ("rows without a time", pl.col(TIME).is_not_null()),
    ):
        kept = frame.filter(keep)
        if kept.height < frame.height:
            dropped[why] = dropped.get(why, 0) + frame.height - kept.height
        frame = kept
    return frame


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(TIME, _ID, _ROW).drop(_ID, _ROW)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
