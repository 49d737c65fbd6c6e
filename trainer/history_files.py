"""The files of a recipe: which they are, found once, and their rows in batches, never whole.

`files` names single files. `data` may also name patterns (`history/*.parquet`), directories of
Parquet files, Hive-partitioned ones too (`day=2024-01-01` in a path is a column `day`), and objects
in a cloud (`s3://`, `gs://`, `az://`, `https://` …), with the credentials that their standard
environment variables name. What a pattern stands for is looked up once, so that a file that comes
while a training reads belongs to the next one.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from .columns import NO_VALUE, require_column
from .errors import DataError
from .recipe import Recipe, is_url

_BATCH_VALUES = 2_000_000  # of all columns together
_MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class HistoryFile:
    """One file of rows, with its columns looked at."""

    path: str
    frame: pl.LazyFrame = field(repr=False)

    def batches(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """These columns as they are in the file, in its order, a bounded number of rows at a time."""
        rows = max(1_000, min(_MAX_BATCH_ROWS, _BATCH_VALUES // max(1, len(columns))))
        names = list(dict.fromkeys(columns))
        try:
            yield from self.frame.select(names).collect_batches(chunk_size=rows)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(self.path, error) from error

    def sha256(self) -> str:
        """Of its bytes; empty for an object in a cloud."""
        if is_url(self.path):
            return ""
        with Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def history_files(recipe: Recipe) -> list[HistoryFile]:
    """The recipe's files as they are now, each with the recipe's columns; DataError."""
    wanted = [*recipe.features, recipe.target, *([recipe.time] if recipe.time else [])]
    found = [_open(path, recipe, hive=False) for path in recipe.files]
    for pattern in recipe.data:
        found += [_open(path, recipe, hive=True) for path in _expanded(pattern)]
    for file in found:
        for name in wanted:
            require_column(file.frame.collect_schema().names(), name, file.path)
    return found


def _expanded(pattern: str) -> list[str]:
    """The paths that an entry of `data` stands for, in the order of their names."""
    if is_url(pattern):
        if "*" not in pattern and pattern.endswith((".parquet", ".csv", ".tsv")):
            return [pattern]
        return _listed(pattern)
    path = Path(pattern)
    if path.is_dir():
        paths = sorted(str(item) for item in path.rglob("*.parquet") if _shown(item, path))
    elif "*" in pattern or "?" in pattern or "[" in pattern:
        anchor = Path(path.anchor)
        paths = sorted(str(item) for item in anchor.glob(str(path.relative_to(anchor))))
    else:
        return [pattern]
    if not paths:
        raise DataError(f"{pattern}: there is no such file")
    return paths


def _shown(path: Path, below: Path) -> bool:
    """Not a file that somebody is still writing, or has put aside."""
    return not any(part.startswith((".", "_")) for part in path.relative_to(below).parts)


def _listed(pattern: str) -> list[str]:
    """Objects in a cloud: Polars lists them, and reads nothing of theirs but their footers."""
    try:
        scanned = pl.scan_parquet(pattern, include_file_paths="trimtab.path")
        paths = scanned.select(pl.col("trimtab.path").unique()).collect()["trimtab.path"]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(pattern, error) from error
    if not len(paths):
        raise DataError(f"{pattern}: there is no such file")
    return sorted(paths.to_list())


def _open(path: str, recipe: Recipe, *, hive: bool) -> HistoryFile:
    try:
        if path.endswith(".parquet"):
            partitioned = hive and "=" in path
            frame = pl.scan_parquet(path, hive_partitioning=partitioned, glob=False)
            frame.collect_schema()
            return HistoryFile(path, frame)
        if not path.endswith((".csv", ".tsv")):
            raise DataError(f"{path} is neither .parquet nor .csv nor .tsv")
        return HistoryFile(path, _scan_csv(path, recipe))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(path, error) from error


def _scan_csv(path: str, recipe: Recipe) -> pl.LazyFrame:
    separator = "\t" if path.endswith(".tsv") else ","
    header = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
    texts = [name for name in header.collect_schema().names() if name in recipe.categorical]

    def scan(
        nulls: Sequence[str] | None = None, schema: Mapping[str, pl.DataType] | None = None
    ) -> pl.LazyFrame:
        return pl.scan_csv(
            path,
            separator=separator,
            glob=False,
            infer_schema_length=None,  # a type is never guessed from a file's beginning
            null_values=nulls,
            schema_overrides=None if schema else dict.fromkeys(texts, pl.String()),
            schema=schema,
        )

    # With every type known the file is not looked through once more at each pass.
    plain = scan().collect_schema()
    frame = scan(schema=plain)
    others = (*recipe.numeric, recipe.target, recipe.time)
    unclear = [name for name in others if plain.get(name) == pl.String]
    if not unclear:
        return frame
    # They may be numbers with words for a missing value. Of categories these could be names.
    known = scan(nulls=NO_VALUE).collect_schema()
    return frame.with_columns(
        pl.when(pl.col(name).str.strip_chars().is_in(NO_VALUE).not_())
        .then(pl.col(name))
        .cast(known[name])
        for name in unclear
    )


def _unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist")
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path} cannot be read: {why}")
