"""The rows that a model is trained on: the recipe's files and the labelled traffic, newest last.

A Dataset is a Polars frame in one fixed form, and everything after it relies on that form:

* the numeric columns as Float32, null as NaN. They are rounded before anything is fitted: the ONNX
  graph computes in float32, and a threshold fitted on more digits would send rows the other way;
* the categorical columns as String, null as "" (ONNX has no null string);
* the target: Float64 in a regression, Int64 or String for classes; never null;
* the time in milliseconds since the epoch, and rows in ascending order of (time, id, row). Polars
  keeps no order of its own, so the sort is explicit, and the same inputs give the same bytes;
* where a sample was taken, the weight: how many rows a row stands for, Float32.

Files and log are read in batches, first for the rows' times alone and then for those that were
chosen (sampling.py), so memory follows the rows that are taken and not those that there are.

What is wrong with the data is a DataError of one sentence that names the file and the column.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .columns import clean_features, compacted, require_column, target_column, time_column
from .errors import DataError
from .history_files import HistoryFile, history_files
from .log_rows import LABEL, LabelledLog, LogFacts
from .recipe import Recipe
from .sampling import Choice, RowChooser, WindowPolicy, row_keys

# Our own columns begin so; a file's columns never meet them, for only the recipe's are taken.
TARGET = "trimtab.target"
TIME = "trimtab.time"
WEIGHT = "trimtab.weight"
_SERVED = "trimtab.served"
_ID = "trimtab.id"
_ROW = "trimtab.row"

_ENOUGH = 100  # rows that tell what is usual of a target
_FAR_SPREADS = 1000  # from its 1 % and 99 % points, in the distance of these


@dataclass(frozen=True)
class Source:
    """Where rows came from, for the lineage."""

    path: str
    rows: int
    sha256: str = ""


@dataclass(frozen=True)
class LabelFacts:
    """What is known of the log's labels; counts of classes are of the rows that were taken."""

    served: int = 0  # logged rows that could have a label
    labels: int = 0
    duplicates: int = 0  # taken rows that were in the log twice
    rows: int = 0  # taken rows that are from the log
    served_classes: Mapping[Any, int] = field(default_factory=dict)
    file_classes: Mapping[Any, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Clean rows in the order of time; see the module's text for the columns' form."""

    recipe: Recipe
    frame: pl.DataFrame
    sources: tuple[Source, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)  # rows left out, by reason
    sampling: Mapping[str, Any] = field(default_factory=dict)  # how much was taken of what
    labels: LabelFacts = field(default_factory=lambda: LabelFacts())

    @classmethod
    def from_frame(cls, recipe: Recipe, frame: pl.DataFrame, origin: str = "the data") -> "Dataset":
        """Takes a frame with the recipe's columns as they are in a file; sorts it by time."""
        dropped: dict[str, int] = {}
        clean = _clean(recipe, frame, origin).with_columns(_places(frame, 0))
        clean = _labelled(clean, dropped)
        return cls(recipe, _in_order(clean), (Source(origin, clean.height),), dropped)

    @classmethod
    def read(
        cls, recipe: Recipe, data: Path | None, mature_until_ms: int | None = None
    ) -> "Dataset":
        """The window's labelled rows of the recipe's files and the model's traffic.

        `data` is the model's directory under MODELS_DIR/.trimtab, which may not exist yet. Rows
        that were served after `mature_until_ms` are left out; files hold history and are not young.
        """
        log = None
        if data is not None and (data / "traffic").is_dir():
            log = LabelledLog(recipe, data, mature_until_ms)
        try:
            return _read(recipe, history_files(recipe), log)
        finally:
            if log is not None:
                log.close()

    def check(self) -> None:
        """Raises DataError where a model could not be fitted to these rows."""
        recipe, frame = self.recipe, self.frame
        if frame.height < recipe.min_rows:
            raise _too_few(recipe, frame.height, self.dropped)
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
                f"the target {recipe.target!r} has {_counted(frame[TARGET])}, "
                "and a binary task needs exactly 2"
            )
        if kinds < 2:
            raise DataError(f"the target {recipe.target!r} has the same value in every row")

    def __len__(self) -> int:
        return self.frame.height

    def slice(self, start: int, stop: int | None = None) -> "Dataset":
        """Rows from `start` to before `stop`, counted in the order of time."""
        length = None if stop is None else stop - start
        return replace(self, frame=self.frame.slice(start, length))

    def take(self, rows: NDArray[np.intp]) -> "Dataset":
        """The rows with these positions, in ascending order of position."""
        return replace(self, frame=self.frame[np.sort(rows)])

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

    def weights(self) -> NDArray[np.float32] | None:
        """How many rows each row counts for in a fit; None: all count the same."""
        if self.recipe.weights == "none" or WEIGHT not in self.frame.columns:
            return None
        return self.frame[WEIGHT].to_numpy()

    def sha256(self) -> str:
        """Of every value, in order: two trainings with the same digest saw the same matrix."""
        digest = hashlib.sha256()
        sampled = [WEIGHT] if WEIGHT in self.frame.columns else []
        for name in (*self.recipe.features, TARGET, TIME, *sampled):
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
            "sampling": dict(self.sampling),
        }


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


def _read(recipe: Recipe, files: Sequence[HistoryFile], log: LabelledLog | None) -> Dataset:
    """First every row's time, then all of those rows that were chosen by it."""
    limit = min(recipe.window_rows, recipe.sample_rows)
    chooser = RowChooser(
        WindowPolicy(
            rows=recipe.window_rows,
            limit=limit,
            period_ms=recipe.period_ms,
            periods=recipe.window_periods,
            history=recipe.history,
            seed=recipe.seed,
        )
    )
    dropped: dict[str, int] = {}
    starts: list[int] = []  # place of each file's first row
    rows: list[int] = []  # of each file, without those that have no target or no time
    place = 0
    text: bool | None = None
    for file in files:
        starts.append(place)
        found = 0
        for batch in file.batches(_told_columns(recipe)):
            told = _told(recipe, batch, file.path).with_columns(_places(batch, place))
            place += batch.height
            text = text or told.schema[TARGET] == pl.String
            kept = _labelled(told, dropped)
            found += kept.height
            places = kept[_ROW].to_numpy()
            keys = row_keys(recipe.seed, places.astype(np.uint64))
            chooser.add(kept[TIME].to_numpy(), keys, places)
        rows.append(found)
    if log is not None and not log.read_labels(text if files and recipe.classification else None):
        log = None
    if log is not None:
        for times, keys, places in log.candidates():
            chooser.add(times, keys, places + place)
        dropped |= log.dropped
    choice = chooser.choose()
    parts = [
        _chosen(recipe, file, start, choice, dropped)
        for file, start in zip(files, starts, strict=True)
    ]
    served = None if log is None else _served(recipe, log, place, choice, dropped)
    if served is not None:
        parts.append(served)
    if not parts and dropped:
        raise _too_few(recipe, 0, dropped)
    if not parts:
        raise DataError(
            "there are no labelled rows: the recipe names no files, "
            "and no row of the traffic log has a label yet"
        )
    if len({part.schema[TARGET] for part in parts}) > 1:
        raise DataError(
            f"the target {recipe.target!r} is text in one of the sources and numbers in another"
        )
    sources = [
        Source(file.path, count, file.sha256()) for file, count in zip(files, rows, strict=True)
    ]
    if log is not None:
        sources += [Source(path, count) for path, count in log.facts.rows.items()]
    everything = _in_order(pl.concat(parts))
    del parts
    if not choice.sampled:
        everything = everything.drop(WEIGHT)
    told_labels = _label_facts(everything, log)
    frame = _in_reason(recipe, everything.drop(_SERVED), dropped)
    dataset = Dataset(recipe, frame, tuple(sources), dropped, choice.to_dict(), told_labels)
    dataset.check()
    return dataset


def _too_few(recipe: Recipe, rows: int, dropped: Mapping[str, int]) -> DataError:
    shown = ", ".join(f"{count:,} {why}" for why, count in dropped.items() if count)
    left = f" (left out: {shown})" if shown else ""
    return DataError(
        f"there are {rows:,} labelled rows, and min_rows asks for {recipe.min_rows:,}{left}"
    )


def _told_columns(recipe: Recipe) -> list[str]:
    return [recipe.target, *([recipe.time] if recipe.time else [])]


def _told(recipe: Recipe, frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    """The target and the time of a file's rows."""
    return pl.DataFrame(
        [
            target_column(recipe, frame[recipe.target], origin).alias(TARGET),
            time_column(frame[recipe.time], recipe.time, origin).alias(TIME)
            if recipe.time
            else pl.zeros(frame.height, pl.Int64, eager=True).alias(TIME),
        ]
    )


def _places(frame: pl.DataFrame, first: int) -> pl.Series:
    return pl.int_range(first, first + frame.height, dtype=pl.Int64, eager=True).alias(_ROW)


def _chosen(
    recipe: Recipe, file: HistoryFile, start: int, choice: Choice, dropped: dict[str, int]
) -> pl.DataFrame:
    """The chosen rows of one file, whose first row's place is `start`."""
    raw: list[pl.DataFrame] = []
    weights: list[pl.Series] = []
    places: list[pl.Series] = []
    for batch in file.batches([*recipe.features, *_told_columns(recipe)]):
        first, last = np.searchsorted(choice.places, (start, start + batch.height)).tolist()
        if first < last or not raw:  # at least an empty one, for the columns' types
            taken = choice.places[first:last]
            raw.append(compacted(batch[taken - start]))
            weights.append(pl.Series(WEIGHT, choice.weights[first:last]))
            places.append(pl.Series(_ROW, taken))
        start += batch.height
    if not raw:
        raw = [file.frame.head(0).collect()]
    clean = _clean(recipe, pl.concat(raw), file.path)
    columns = [pl.concat(places), pl.concat(weights)] if places else []
    if not columns:
        columns = [pl.Series(_ROW, [], pl.Int64), pl.Series(WEIGHT, [], pl.Float32)]
    clean = clean.with_columns(*columns, pl.lit(False).alias(_SERVED))
    return _labelled(clean, dropped).select(_form(recipe))


def _served(
    recipe: Recipe, log: LabelledLog, start: int, choice: Choice, dropped: dict[str, int]
) -> pl.DataFrame | None:
    """The chosen rows of the log, whose first row's place is `start`."""
    first = int(np.searchsorted(choice.places, start))
    weights = pl.Series(WEIGHT, choice.weights[first:])
    served = log.rows(choice.places[first:] - start, [weights])
    if served is None:
        return None
    names = {f"in.{name}": name for name in recipe.features}
    features = served.select(list(names)).rename(names)
    kept = clean_features(recipe, features, "the traffic log").with_columns(
        target_column(recipe, served[LABEL], "the labels").alias(TARGET),
        served["event_time"].cast(pl.Int64).alias(TIME),
        served["id"].cast(pl.String).alias(_ID),
        served["row"].cast(pl.Int64).alias(_ROW),
        served[WEIGHT],
        pl.lit(True).alias(_SERVED),
    )
    return _labelled(kept, dropped).select(_form(recipe))


def _form(recipe: Recipe) -> list[str]:
    return [*recipe.features, TARGET, TIME, _ID, _ROW, WEIGHT, _SERVED]


def _clean(recipe: Recipe, frame: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Rows of a file in the form that the module's text describes."""
    for name in _told_columns(recipe):
        require_column(frame.columns, name, origin)
    clean = clean_features(recipe, frame, origin)
    return pl.concat([clean, _told(recipe, frame, origin)], how="horizontal").with_columns(
        pl.lit("").alias(_ID)
    )


def _label_facts(frame: pl.DataFrame, log: LabelledLog | None) -> LabelFacts:
    classes = [
        dict(frame.filter(pl.col(_SERVED) == side)[TARGET].value_counts().iter_rows())
        if frame.schema[TARGET] != pl.Float64
        else {}
        for side in (True, False)
    ]
    facts = log.facts if log is not None else LogFacts()
    return LabelFacts(
        served=facts.served,
        labels=facts.labels,
        duplicates=facts.duplicates,
        rows=int(frame[_SERVED].sum()),
        served_classes=classes[0],
        file_classes=classes[1],
    )


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


def _in_reason(recipe: Recipe, frame: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
    """Without targets that are not of this world: one of 1e30 among tens would be all that a fit, a
    metric and the losses of the reference show."""
    if recipe.classification or frame.height < _ENOUGH:
        return frame
    target = frame[TARGET]
    low, high = target.quantile(0.01, "nearest"), target.quantile(0.99, "nearest")
    if low is None or high is None or not low < high:
        return frame
    far = _FAR_SPREADS * (high - low)
    kept = frame.filter(pl.col(TARGET).is_between(low - far, high + far))
    if kept.height < frame.height:
        why = (
            f"rows whose target is further than {_FAR_SPREADS:,} usual spreads from the usual ones"
        )
        dropped[why] = frame.height - kept.height
    return kept


def _counted(target: pl.Series, most: int = 5) -> str:
    """How many different values there are, the commonest and the rarest by name."""
    counts = target.value_counts(sort=True).rows()
    if len(counts) > most:
        counts, between = [*counts[: most - 1], counts[-1]], ["…"]
    else:
        between = []
    named = [f"{value!r} ({rows:,} {'row' if rows == 1 else 'rows'})" for value, rows in counts]
    shown = ", ".join([*named[:-1], *between, named[-1]])
    return f"{target.n_unique():,} different values: {shown}"


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(TIME, _ID, _ROW).drop(_ID, _ROW)
