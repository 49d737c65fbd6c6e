"""Whether the ONNX graph computes what the fitted pipeline computes, on ten thousand rows or more.

Conversions go wrong silently, and a graph that is right on ordinary rows may be wrong on the rest.
Hence the rows are real ones, rows with each column drawn from another real row, and edges: each
column missing, all of them missing, each at its smallest and largest value and beyond, each
category never seen. Both sides get the same float32 numbers. Where scikit-learn itself refuses
infinite numbers, as most of it but boosting does, rows with one are left out.
"""

from dataclasses import dataclass
from typing import Any

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
_NAMED = 3  # of the worst rows
_WIDEST = 200  # characters of a named row


@dataclass(frozen=True)
class Parity:
    """The largest difference found between the two sides, and what is allowed."""

    rows: int
    worst: float  # of a probability, or of a value relative to the values' spread
    tolerance: float
    wrong_labels: int  # of rows whose two likeliest classes are not about equally likely
    worst_rows: tuple[str, ...] = ()  # those that are refused, in words, the worst first


def parity_rows(recipe: Recipe, data: Dataset, rows: int = ROWS) -> pl.DataFrame:
    """Rows to compare on, at least `rows` of them: the newest real ones, resampled ones, edges."""
    real = data.features().tail(rows)
    edges = _edges(recipe, real)
    random = np.random.default_rng(recipe.seed)
    # A tenth of the rows is mixed even where there are enough real ones: pairs of values that
    # never came together take other paths through the trees.
    finite = edges.height - int(edges.select(_infinite(recipe)).to_series().sum())
    mixed = max(rows - real.height - finite, rows // 10)
    resampled = pl.DataFrame(
        [real[name].gather(random.integers(0, real.height, mixed)) for name in recipe.features]
    )
    return pl.concat([real, resampled, edges])


def check_parity(
    recipe: Recipe, pipeline: Pipeline, model: OnnxModel, rows: pl.DataFrame
) -> Parity:
    """Runs both sides on `rows`, clean ones as a Dataset has them."""
    predict = pipeline.predict_proba if recipe.classification else pipeline.predict
    try:
        answer = predict(rows)
    except ValueError:
        finite = rows.filter(~_infinite(recipe))
        if finite.height == rows.height:
            raise
        rows = finite
        answer = predict(rows)
    expected = np.asarray(answer, dtype=np.float64)
    found = model.run(tensors(recipe, rows))
    if not recipe.classification:
        expected = expected.reshape(rows.height)
        actual = found["variable"][:, 0].astype(np.float64)
        scale = max(float(np.std(expected)), 1e-30)
        off = np.abs(actual - expected) / scale
        wrong = np.zeros(rows.height, dtype=bool)
    else:
        actual = found["probabilities"].astype(np.float64)
        off = np.max(np.abs(actual - expected), axis=1)
        top = np.sort(expected, axis=1)[:, -2:]
        clear = top[:, 1] - top[:, 0] > _MARGIN
        labels = np.asarray(classes_of(pipeline))[np.argmax(expected, axis=1)]
        wrong = (found["label"] != labels) & clear
    off = np.where(np.isfinite(off), off, np.inf)
    bad = np.flatnonzero(wrong | (off > _TOLERANCE))
    worst = bad[np.lexsort((bad, -off[bad], ~wrong[bad]))][:_NAMED]
    return Parity(
        rows.height,
        float(np.max(off)),
        _TOLERANCE,
        int(np.sum(wrong)),
        tuple(_named(rows, int(row), expected[row], actual[row]) for row in worst),
    )


def _named(rows: pl.DataFrame, row: int, expected: Any, actual: Any) -> str:
    """A row's values and what the two sides make of them."""
    values = ", ".join(f"{name}={value!r}" for name, value in rows.row(row, named=True).items())
    if len(values) > _WIDEST:
        values = values[:_WIDEST] + "…"
    return f"{values}: {_figures(actual)} instead of {_figures(expected)}"


def _figures(values: Any) -> str:
    return " ".join(f"{value:.6g}" for value in np.atleast_1d(values)[:10])


def _infinite(recipe: Recipe) -> pl.Expr:
    """Whether a row holds an infinite number; for a frame's context."""
    if not recipe.numeric:
        return pl.repeat(False, pl.len(), dtype=pl.Boolean)
    return pl.any_horizontal(pl.col(recipe.numeric).is_infinite())


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
