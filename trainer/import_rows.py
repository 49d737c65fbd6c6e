"""Rows for a model that was made elsewhere: its golden rows and its reference profile.

`trimtab import` starts this as a process of its own, since only the trainer's side may import
Polars. The rows are a Parquet file's. A column of an input is found by the name that the signature
gives it; where that has none, it is called as everywhere else: `x` if the input has one column, else
`x[0]`, `x[1]`, …. Or a whole input is one column of lists, called as the input is.

Values become what the input takes: null becomes NaN, or the empty string, and what an input cannot
hold (a missing integer, a fraction, text for a number) is a DataError that names file and column.
The outputs of the profile are the model's own answers to the same rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
from numpy.typing import NDArray

from trimtab._native.reference import (
    Feature,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.documents import Document
from trimtab.registry.manifest import Signature, TensorSpec, signature_from

from .errors import DataError, ExportError
from .export import OnnxModel
from .golden import ROWS, golden_rows, save_golden
from .recipe import nearest
from .reference_profile import PROBABILITY_BANDS

MAX_REFERENCE_ROWS = 1_000_000  # of a larger file so many, evenly spaced
MAX_FEATURES = 4096  # of one tensor; a wider one is no table, and is not watched

_GOLDEN_CHOICE = 4 * ROWS  # rows to choose golden ones from: not every text can be one
_BATCH_ROWS = 4096
_STRINGS = (pl.String, pl.Categorical, pl.Enum, pl.Binary)
_DTYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ImportRowsRequest:
    """What to make of which rows; a file that is not named is not made."""

    model: Path
    signature: Signature  # how the model is called, with the names of columns where they are known
    golden_rows: Path | None
    golden_file: Path
    reference_rows: Path | None
    reference_file: Path

    @classmethod
    def from_json(cls, text: str) -> "ImportRowsRequest":
        """ValueError naming what is missing or not of its type."""
        document = Document.parse(text)
        values = json.loads(text)

        def path(key: str) -> Path | None:
            return None if values.get(key) is None else Path(document.text(key))

        return cls(
            model=Path(document.text("model")),
            signature=signature_from(document.nested("signature")),
            golden_rows=path("golden_rows"),
            golden_file=Path(document.text("golden_file")),
            reference_rows=path("reference_rows"),
            reference_file=Path(document.text("reference_file")),
        )


@dataclass(frozen=True)
class RowCounts:
    """How many rows went into the files; 0: there is none."""

    golden: int = 0
    reference: int = 0


def make_files(request: ImportRowsRequest) -> RowCounts:
    """Writes the files that are asked for. DataError, ExportError, OSError."""
    model = _ModelFile(request.model, request.signature)
    golden = reference = 0
    if request.golden_rows is not None:
        step = _rows_of_a_run(request.signature)
        rows = _Rows(request.golden_rows, request.signature, step or _GOLDEN_CHOICE)
        if rows.count < step:
            raise DataError(
                f"{rows.path} has {rows.count} rows, and a run of the model takes {step}"
            )
        found = golden_rows(model, rows.inputs, step or ROWS)
        golden = len(found[f"input/{model.inputs[0]}"])
        if not golden:
            raise DataError(f"{rows.path}: its texts are too long, or end in NUL, for golden rows")
        save_golden(request.golden_file, found)
    if request.reference_rows is not None:
        rows = _Rows(request.reference_rows, request.signature, MAX_REFERENCE_ROWS)
        profile = _profile(model, request.signature, rows)
        profile.save(request.reference_file)
        reference = profile.rows
    return RowCounts(golden, reference)


class _ModelFile(OnnxModel):
    """A model in its own directory, where its external data lie; only what is served is computed."""

    def __init__(self, file: Path, signature: Signature) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise ExportError(f"onnxruntime refuses {file.name}: {_line(error)}") from error
        self.inputs = tuple(spec.name for spec in signature.inputs)
        self.outputs = tuple(spec.name for spec in signature.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        try:
            values = self._session.run(list(self.outputs), inputs)
        except Exception as error:  # as above
            raise DataError(f"the model fails on these rows: {_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def _rows_of_a_run(signature: Signature) -> int:
    """How many rows one run takes; 0: any number. DataError where inputs have no rows."""
    sizes = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    if len(sizes) != 1 or None in sizes:
        raise DataError(
            "the inputs do not begin with one common number of rows, so no rows can be given to it"
        )
    (size,) = sizes
    assert size is not None
    return max(0, size)


class _Rows:
    """At most `limit` rows of a file, evenly spaced, as the model's inputs."""

    def __init__(self, path: Path, signature: Signature, limit: int) -> None:
        self.path = path
        frame = self._scan()
        schema = dict(frame.collect_schema())
        plan = [(spec, *self._columns(spec, schema)) for spec in signature.inputs]
        names = list(dict.fromkeys(name for _, found, _ in plan for name in found))
        try:
            self.total = int(frame.select(pl.len()).collect().item())
            if not self.total:
                raise DataError(f"{path} has no rows")
            self.count = min(limit, self.total)
            chosen = frame.select(names)
            if self.count < self.total:
                index = np.linspace(0, self.total - 1, self.count).astype(np.int64)
                wanted = pl.Series("trimtab.row", index)
                chosen = (
                    chosen.with_row_index("trimtab.row")
                    .filter(pl.col("trimtab.row").cast(pl.Int64).is_in(wanted.implode()))
                    .sort("trimtab.row")  # the streaming engine promises no order
                )
            table = chosen.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} cannot be read: {_line(error)}") from error
        self.inputs: Arrays = {}
        for spec, found, is_list in plan:
            values = [self._values(spec, table[name], is_list) for name in found]
            array = values[0] if is_list else np.stack(values, axis=1)
            shape = (self.count, *spec.shape[1:]) if not is_list else array.shape
            if len(spec.shape) == 1:
                shape = (self.count,)
            self.inputs[spec.name] = np.ascontiguousarray(array.reshape(shape))

    def _scan(self) -> pl.LazyFrame:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        if self.path.suffix.lower() not in (".parquet", ".pq"):
            raise DataError(f"{self.path} is no .parquet file")
        try:
            frame = pl.scan_parquet(self.path, hive_partitioning=False, glob=False)
            frame.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{self.path} cannot be read: {_line(error)}") from error
        return frame

    def _columns(self, spec: TensorSpec, schema: Mapping[str, Any]) -> tuple[list[str], bool]:
        """The file's columns that make up an input, and whether it is one column of lists."""
        kind = schema.get(spec.name)
        if kind is not None and isinstance(kind, pl.List | pl.Array) and len(spec.shape) > 1:
            return [spec.name], True
        width = width_of(spec)
        if width is None:
            raise DataError(
                f"{self.path} has no column {spec.name!r} of lists, which the input of shape "
                f"{list(spec.shape)} would take"
            )
        names = names_of(spec, width)
        for name in names:
            if name not in schema:
                said = "" if spec.columns else "; --columns says what its columns are called"
                raise DataError(
                    f"{self.path} has no column {name!r} of the input {spec.name!r}"
                    f"{nearest(name, list(schema))}{said}"
                )
        return list(names), False

    def _values(self, spec: TensorSpec, column: pl.Series, is_list: bool) -> NDArray[Any]:
        where = f"{self.path}: column {column.name!r}"
        shape = [len(column)]
        if is_list:
            for dimension in spec.shape[1:]:
                column, size = self._exploded(column, dimension, where)
                shape.append(size)
        if isinstance(column.dtype, pl.List | pl.Array):
            raise DataError(f"{where} holds {column.dtype}, not single values")
        if spec.datatype == "BYTES":
            return _texts(column, where).reshape(shape)
        return _numbers(column, spec.datatype, where).reshape(shape)

    def _exploded(self, column: pl.Series, size: int, where: str) -> tuple[pl.Series, int]:
        if isinstance(column.dtype, pl.Array):
            column = column.arr.to_list()
        if not isinstance(column.dtype, pl.List):
            raise DataError(f"{where} holds fewer dimensions than its input has")
        lengths = column.list.len()
        found = lengths.unique().to_list()
        if len(found) != 1 or found[0] is None or size not in (-1, found[0]):
            told = f"{size} entries" if size >= 0 else "lists of one length"
            raise DataError(
                f"{where} must hold {told}, and holds lists of {sorted(set(map(str, found)))[:5]}"
            )
        return column.explode(), int(found[0])


def width_of(spec: TensorSpec) -> int | None:
    """How many columns a tensor has; None: it is no table, or of any width."""
    if len(spec.shape) == 1:
        return 1
    if len(spec.shape) == 2 and spec.shape[1] > 0:
        return spec.shape[1]
    if len(spec.shape) == 2 and spec.columns:
        return len(spec.columns)
    return None


def names_of(spec: TensorSpec, width: int) -> tuple[str, ...]:
    """The names of a tensor's columns, as the server calls them."""
    if len(spec.columns) == width:
        return spec.columns
    return (spec.name,) if width == 1 else tuple(f"{spec.name}[{at}]" for at in range(width))


def _texts(column: pl.Series, where: str) -> NDArray[Any]:
    if column.dtype not in (*_STRINGS, pl.Null):
        raise DataError(f"{where} holds {column.dtype}, and its input takes text")
    try:
        values = column.cast(pl.String).fill_null("").to_list()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{where} is not text: {_line(error)}") from error
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _numbers(column: pl.Series, datatype: str, where: str) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[datatype])
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"{where} holds {column.dtype}, and its input takes {datatype}")
    if dtype.kind == "f":
        values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        with np.errstate(over="ignore"):
            found = values.astype(dtype)
        if np.any(np.isinf(found) & np.isfinite(values)):
            raise DataError(f"{where} holds values beyond the range of {datatype}")
        return found
    if column.null_count():
        raise DataError(f"{where} has missing values, which {datatype} cannot express")
    if column.dtype.is_float():
        fractions = column.filter(~column.is_finite() | (column != column.floor()))
        if len(fractions):
            raise DataError(f"{where} holds {fractions[0]}, and its input takes {datatype}")
    if dtype.kind == "b":
        if (
            len(column)
            and not column.is_in([0, 1] if column.dtype != pl.Boolean else [False, True]).all()
        ):
            raise DataError(f"{where} holds other values than 0 and 1, and its input takes BOOL")
        return column.cast(pl.Boolean).to_numpy().astype(dtype)
    limits = np.iinfo(dtype)
    lowest, highest = (column.min(), column.max()) if len(column) else (0, 0)
    if int(lowest) < limits.min or int(highest) > limits.max:  # type: ignore[arg-type]  # numeric, and not empty
        raise DataError(f"{where} holds values beyond the range of {datatype}")
    return column.to_numpy().astype(dtype)


def _profile(model: OnnxModel, signature: Signature, rows: _Rows) -> ReferenceProfile:
    step = _rows_of_a_run(signature)
    count = rows.count - rows.count % step if step else rows.count
    if not count:
        raise DataError(f"{rows.path} has {rows.count} rows, and a run of the model takes {step}")
    tensors = []
    for spec in signature.inputs:
        values = rows.inputs[spec.name][:count]
        if features := _features(spec, values, is_output=False):
            tensors.append(TensorReference(spec.name, "input", features))
    answered = _answers(model, rows.inputs, count, step or _BATCH_ROWS)
    for spec in signature.outputs:
        if spec.name in answered and (
            features := _features(spec, answered[spec.name], is_output=True)
        ):
            tensors.append(TensorReference(spec.name, "output", features))
    return ReferenceProfile(rows=count, tensors=tuple(tensors))


def _answers(model: OnnxModel, inputs: Arrays, rows: int, step: int) -> Arrays:
    """What the model gives for all rows: those outputs that have an entry for each, and fit a table."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for size, found in _runs(model, inputs, rows, step):
        for name, value in found.items():
            if 1 <= value.ndim <= 2 and len(value) == size:
                parts.setdefault(name, []).append(value)
    whole = {}
    for name, values in parts.items():
        same = len({part.shape[1:] for part in values}) == 1
        if same and sum(map(len, values)) == rows:
            whole[name] = np.concatenate(values)
    return whole


def _runs(model: OnnxModel, inputs: Arrays, rows: int, step: int) -> Iterator[tuple[int, Arrays]]:
    for start in range(0, rows, step):
        some = {name: value[start : min(start + step, rows)] for name, value in inputs.items()}
        yield min(step, rows - start), model.run(some)


def _features(spec: TensorSpec, values: NDArray[Any], *, is_output: bool) -> tuple[Feature, ...]:
    """The columns of a tensor, counted; () where it is no table."""
    if values.ndim > 2:
        return ()
    columns = values.reshape(len(values), -1)
    if not 0 < columns.shape[1] <= MAX_FEATURES:
        return ()
    names: Sequence[str] = names_of(spec, columns.shape[1])
    if spec.datatype == "BYTES":
        return tuple(
            categorical_feature(name, columns[:, at].tolist()) for at, name in enumerate(names)
        )
    # As for the trainer's own models: quantiles of a model that is sure of itself are hair-thin.
    edges = PROBABILITY_BANDS if is_output and spec.name == "probabilities" else None
    return tuple(
        numeric_feature(name, columns[:, at], edges=edges) for at, name in enumerate(names)
    )


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return " ".join(text.split())[:400] if text else type(error).__name__
