"""Small made-up data, recipes for it, and a writer of log files as the server lays them out."""

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.recipe import Recipe

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]
FrameWriter = Callable[..., None]
START_MS = 1_700_000_000_000


def _make_frame(
    rows: int = 1_500, *, task: str = "regression", seed: int = 1, start_ms: int = START_MS
) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    size = random.normal(10, 3, rows)
    age = random.integers(0, 80, rows).astype(float)
    age[random.random(rows) < 0.1] = np.nan
    colour = random.choice(
        ["red", "green", "blue", "", "violet"], rows, p=[0.4, 0.3, 0.2, 0.05, 0.05]
    )
    bonus = np.where(colour == "red", 4.0, np.where(colour == "blue", -3.0, 0.0))
    value = 2 * size + bonus + 0.05 * np.nan_to_num(age) + random.normal(0, 1, rows)
    target: Any = value
    if task == "binary":
        target = (value > 21).astype(int)
    elif task == "multiclass":
        target = np.array(["low", "middle", "high"])[np.digitize(value, [18, 24])]
    return pl.DataFrame(
        {
            "when": start_ms + np.arange(rows) * 1_000,
            "size": size,
            "age": age,
            "colour": colour,
            "value": target,
        }
    ).with_columns(pl.col("age").fill_nan(None), pl.col("colour").replace("", None))


@pytest.fixture(scope="session")
def make_frame() -> FrameMaker:
    """Rows of (when, size, age, colour, value); value depends on all three columns."""
    return _make_frame


@pytest.fixture(scope="session")
def make_recipe() -> RecipeMaker:
    """A recipe for such rows, with what a test wants otherwise."""

    def make(task: str = "regression", **changes: Any) -> Recipe:
        table: dict[str, Any] = {
            "task": task,
            "target": "value",
            "numeric": ["size", "age"],
            "categorical": ["colour"],
            "time": "when",
            "min_rows": 100,
            "min_holdout_rows": 50,
            "estimator": {"max_iter": 20},
        }
        table |= changes
        return Recipe.parse({key: value for key, value in table.items() if value is not None})

    return make


@pytest.fixture(scope="session")
def write_frames() -> FrameWriter:
    """Writes frames in the log's format, and then bytes that are no frame."""

    def write(path: Path, frames: Iterable[pl.DataFrame], torn: bytes = b"") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for frame in frames:
                buffer = io.BytesIO()
                frame.write_ipc_stream(buffer)
                payload = buffer.getvalue()
                file.write(struct.pack("<III", len(payload), zlib.crc32(payload), frame.height))
                file.write(payload)
            file.write(torn)

    return write


@pytest.fixture(scope="session")
def served() -> Callable[[pl.DataFrame, str], pl.DataFrame]:
    """Rows as the traffic log has them, one request for all of them."""

    def serve(frame: pl.DataFrame, request: str) -> pl.DataFrame:
        return frame.select(
            pl.lit(request).alias("id"),
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            pl.col("when").alias("event_time"),
            (pl.col("when") + 5).alias("received"),
            pl.lit(1, pl.Int64).alias("version"),
            pl.col("size").cast(pl.Float32).alias("in.size"),
            pl.col("age").cast(pl.Float32).fill_null(float("nan")).alias("in.age"),
            pl.col("colour").fill_null("").alias("in.colour"),
            pl.lit(0.0, pl.Float32).alias("out.value"),
        )

    return serve


@pytest.fixture(scope="session")
def labels() -> Callable[[pl.DataFrame, str], pl.DataFrame]:
    """The labels of those rows as the log of labels has them."""

    def label(frame: pl.DataFrame, request: str) -> pl.DataFrame:
        text = frame.schema["value"] == pl.String
        return frame.select(
            pl.lit(request).alias("id"),
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            (pl.lit(None, pl.Float64) if text else pl.col("value").cast(pl.Float64)).alias(
                "number"
            ),
            (pl.col("value") if text else pl.lit(None, pl.String)).alias("text"),
            (pl.col("when") + 60_000).alias("event_time"),
        )

    return label
