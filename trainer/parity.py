"""Whether the ONNX graph computes what the fitted pipeline computes, on ten thousand rows or more.

Conversions go wrong silently, and a graph that is right on ordinary rows may be wrong on the rest.
Hence the rows are real ones, rows with each column drawn from another real row, and edges: each
column missing, all of them missing, each at its smallest and largest value and beyond, each
category never seen. Both sides get the same float32 numbers.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from .dataset import Dataset, tensors
from .export import OnnxModel
from .fit import classes_of
from .recipe import Recipe

ROWS = 10_000
_UNSEEN = "\x7ftrimtab never saw this"
_MARGIN = 1e-5  # two classes that are closer than this may change places
_TOLERANCE = 1e-4  # of a probability, or of a value relative to the values' spread


@dataclass(frozen=True)
class Parity:
    """The largest difference found between the two sides, and what is allowed."""

    rows: int
    worst: float  # of a probability, or of a value relative to the values' spread
    tolerance: float
    wrong_labels: int  # of rows whose two likeliest classes are not about equally likely


def parity_rows(recipe: Recipe, data: Dataset, rows: int = ROWS) -> pl.DataFrame:
    """Rows to compare on, at least `rows` of them: the newest real ones, resampled ones, edges."""
    real = data.features().tail(rows)
    edges = _edges(recipe, real)
    random = np.random.default_rng(recipe.seed)
    # A tenth of the rows is mixed even where there are enough real ones: pairs of values that
    # never came together take other paths through the trees.
    mixed = max(rows - real.height - edges.height, rows // 10)
    resampled = pl.DataFrame(
        [real[name].gather(random.integers(0, real.height, mixed)) for name in recipe.features]
    )
    return pl.concat([real, resampled, edges])


def check_parity(
    recipe: Recipe, pipeline: Pipeline, model: OnnxModel, rows: pl.DataFrame
) -> Parity:
    """Runs both sides on `rows`, clean ones as a Dataset has them."""
    found = model.run(tensors(recipe, rows))
    if not recipe.classification:
        expected = np.asarray(pipeline.predict(rows), dtype=np.float64)
        actual = found["variable"][:, 0].astype(np.float64)
        scale = max(float(np.std(expected)), 1e-30)
        return Parity(rows.height, _largest(actual - expected) / scale, _TOLERANCE, 0)
    expected = np.asarray(pipeline.predict_proba(rows), dtype=np.float64)
    worst = _largest(found["probabilities"].astype(np.float64) - expected)
    top = np.sort(expected, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > _MARGIN
    labels = np.asarray(classes_of(pipeline))[np.argmax(expected, axis=1)]
    wrong = int(np.sum((found["label"] != labels) & clear))
    return Parity(rows.height, worst, _TOLERANCE, wrong)


def _largest(difference: np.ndarray) -> float:
    worst = float(np.max(np.abs(difference)))
    return worst if np.isfinite(worst) else float("inf")


def _edges(recipe: Recipe, real: pl.DataFrame) -> pl.DataFrame:
    """A few real rows, each with one column (or all) at an edge."""
    base = real.head(4)
    rows = [base.with_columns(pl.lit(float("nan"), pl.Float32).alias(n) for n in recipe.numeric)]
    rows.append(base.with_columns(pl.lit("").alias(n) for n in recipe.categorical))
    rows.append(base.with_columns(pl.lit(_UNSEEN).alias(n) for n in recipe.categorical))
    rows.append(rows[0].with_columns(rows[1].select(recipe.categorical)))
    for name in recipe.numeric:
        known = real[name].drop_nans().to_numpy()
        values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0]
        if known.size:
            low, high = known.min(), known.max()
            values += [low, high, np.nextafter(low, -np.inf), np.nextafter(high, np.inf)]
        for value in values:
            rows.append(base.with_columns(pl.lit(float(value)).cast(pl.Float32).alias(name)))
    for name in recipe.categorical:
        for text in ("", _UNSEEN, "é", *real[name].unique().sort().head(300)):
            rows.append(base.with_columns(pl.lit(text).alias(name)))
    return pl.concat(rows).select(recipe.features)
