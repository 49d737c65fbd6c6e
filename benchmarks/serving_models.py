"""The models that are served, the request that each is asked, and what the answer must be.

A model is published as the trainer does it, with golden rows and a reference profile, so that a
server watches it for drift. The rows that are sent come from the same distribution. One request is
sent over and over, since that is what the load generator can do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from threadpoolctl import threadpool_limits

from trimtab._native import bytes_tensor
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.directory import ModelDirectory
from trimtab.trainer.dataset import Dataset, tensors
from trimtab.trainer.export import OnnxModel, export, signature_of
from trimtab.trainer.fit import classes_of, fit, predict
from trimtab.trainer.golden import golden_rows, save_golden
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.reference_profile import outputs_of, reference_profile

ROWS = 20_000
FEATURES = 30
_NUMERIC = tuple(f"f{index}" for index in range(FEATURES))
_CATEGORICAL = ("carrier", "origin", "dest", "maker", "weekday")
_CATEGORIES = 25
_DTYPES = {"FP32": np.float32, "INT64": np.int64}
# Runs of different batches may round differently; a wrong row would be off by far more.
_TOLERANCE = 1e-5


class WrongAnswerError(Exception):
    """A server answered something else than it should have."""


@dataclass(frozen=True)
class Model:
    """A published model, and what asks it."""

    name: str
    models_dir: Path  # holds this model and no other
    recipe: Recipe
    rows: pl.DataFrame  # that requests are made of

    @property
    def file(self) -> Path:
        return self.models_dir / self.name / "1" / "model.onnx"


@dataclass(frozen=True)
class Question:
    """A request and the answer that onnxruntime gives when it is called directly."""

    model: Model
    message: pb.ModelInferRequest
    request: bytes  # the message, serialized
    outputs: dict[str, NDArray[Any]]

    def check_prediction(self, reply: bytes) -> None:
        """WrongAnswerError unless every output is there and is the one expected."""
        found = decoded(pb.ModelInferResponse.FromString(reply))
        if set(found) != set(self.outputs):
            raise WrongAnswerError(f"outputs are {sorted(found)}, not {sorted(self.outputs)}")
        for name, expected in self.outputs.items():
            values = found[name]
            if values.size != expected.size or not np.allclose(
                values.ravel(), expected.ravel(), rtol=_TOLERANCE, atol=_TOLERANCE
            ):
                raise WrongAnswerError(
                    f"output {name!r} is {values.ravel()[:4]}…, not {expected.ravel()[:4]}…"
                )

    def check_same_tensors(self, reply: bytes) -> None:
        """For an echo that takes the message apart and puts it together again."""
        message = pb.ModelInferResponse.FromString(reply)
        if message.raw_output_contents != self.message.raw_input_contents:
            raise WrongAnswerError("the tensors that came back are not those that were sent")

    def check_same_bytes(self, reply: bytes) -> None:
        """For an echo that does not look at the message."""
        if reply != self.request:
            raise WrongAnswerError("the bytes that came back are not those that were sent")


def logistic(folder: Path) -> Model:
    """A logistic regression of 30 numbers: about the least that a model can cost."""
    random = np.random.default_rng(0)
    frame = _numbers(random)
    weights = random.normal(size=FEATURES)
    chance = 1 / (1 + np.exp(-(frame.to_numpy() @ weights) / 4))
    frame = frame.with_columns(y=pl.Series((random.random(ROWS) < chance).astype(np.int64)))
    recipe = Recipe(task="binary", target="y", numeric=_NUMERIC, metric="roc_auc")
    return _publish(folder, "logistic", recipe, frame, Pipeline([("model", LogisticRegression())]))


def trees(folder: Path) -> Model:
    """What a recipe makes by default: 100 trees of 31 leaves."""
    random = np.random.default_rng(1)
    frame = _numbers(random)
    x = frame.to_numpy()
    target = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]) + x[:, 3:] @ random.normal(size=FEATURES - 3)
    recipe = Recipe(task="regression", target="y", numeric=_NUMERIC)
    return _publish(folder, "trees", recipe, frame.with_columns(y=pl.Series(target)), None)


def strings(folder: Path) -> Model:
    """Five columns of strings, one column for each category, a logistic regression."""
    random = np.random.default_rng(2)
    codes = random.integers(_CATEGORIES, size=(ROWS, len(_CATEGORICAL)))
    effects = random.normal(size=(len(_CATEGORICAL), _CATEGORIES))
    score = effects[np.arange(len(_CATEGORICAL)), codes].sum(axis=1)
    columns = {
        name: [f"{name}-{code:03d}" for code in codes[:, index]]
        for index, name in enumerate(_CATEGORICAL)
    }
    frame = pl.DataFrame({**columns, "y": (score > random.normal(size=ROWS)).astype(np.int64)})
    recipe = Recipe(task="binary", target="y", categorical=_CATEGORICAL, metric="roc_auc")
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    pipeline = Pipeline([("encode", encoder), ("model", LogisticRegression())])
    return _publish(folder, "strings", recipe, frame, pipeline)


MAKERS: dict[str, Callable[[Path], Model]] = {
    "logistic": logistic,
    "trees": trees,
    "strings": strings,
}


def ask(model: Model, rows: int) -> Question:
    """A request of the model's first rows."""
    inputs = tensors(model.recipe, model.rows.head(rows))
    message = pb.ModelInferRequest(model_name=model.name)
    for name, values in inputs.items():
        text = values.dtype == object
        message.inputs.add(name=name, datatype="BYTES" if text else "FP32", shape=values.shape)
        raw = bytes_tensor.encode(values.ravel()) if text else values.tobytes()
        message.raw_input_contents.append(bytes(raw))
    outputs = OnnxModel(model.file.read_bytes()).run(inputs)
    return Question(model, message, message.SerializeToString(), outputs)


def decoded(reply: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """Outputs by name; FP32 and INT64, raw contents or typed ones."""
    if reply.raw_output_contents:
        return {
            output.name: np.frombuffer(raw, _DTYPES[output.datatype])
            for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
    return {
        output.name: np.array(
            output.contents.fp32_contents or output.contents.int64_contents,
            dtype=_DTYPES[output.datatype],
        )
        for output in reply.outputs
    }


def _numbers(random: np.random.Generator) -> pl.DataFrame:
    return pl.DataFrame(random.normal(size=(ROWS, FEATURES)).astype(np.float32), schema=_NUMERIC)


def _publish(
    folder: Path, name: str, recipe: Recipe, frame: pl.DataFrame, pipeline: Pipeline | None
) -> Model:
    """Fits (as the trainer does where there is no pipeline) and publishes version 1."""
    window = Dataset.from_frame(recipe, frame)
    with threadpool_limits(1):  # a pool of threads is slow where they share the processors
        fitted = fit(recipe, window) if pipeline is None else _fitted(recipe, pipeline, window)
    classes = classes_of(fitted)
    signature = signature_of(recipe, classes)
    graph = export(recipe, fitted)
    model = OnnxModel(graph)
    inputs = tensors(recipe, frame)
    if pipeline is None:
        outputs = outputs_of(signature, predict(recipe, fitted, window), classes)
    else:
        outputs = model.run(inputs)
    models_dir = folder / name
    models_dir.mkdir(parents=True)
    with ModelDirectory(models_dir / name).stage() as staged:
        (staged.path / "model.onnx").write_bytes(graph)
        profile = reference_profile(signature, window, outputs)
        profile.save(staged.path / "reference.npz")
        save_golden(staged.path / "golden.npz", golden_rows(model, inputs))
        staged.publish(
            signature=signature,
            task=recipe.task,
            lineage={},
            metrics={},
            actor="benchmark",
            reason="to be measured",
        )
    return Model(name, models_dir, recipe, frame)


def _fitted(recipe: Recipe, pipeline: Pipeline, window: Dataset) -> Pipeline:
    (inputs,) = tensors(recipe, window.frame).values()
    return pipeline.fit(inputs, window.target())
