"""The models that are swapped, published as the trainer does: golden rows, reference profile and all.

`linear` has versions whose answer to one request is known exactly: it is a row of zeros, so that
their prediction is the intercept whatever is added up in which order. `forest` is one of 6 MB, the
same in every version.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline

from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.directory import ModelDirectory
from trimtab.trainer.dataset import Dataset, tensors
from trimtab.trainer.export import OnnxModel, export, signature_of
from trimtab.trainer.fit import classes_of
from trimtab.trainer.golden import golden_rows, save_golden
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.reference_profile import reference_profile

ROWS = 10_000
FEATURES = 30
ID = "hot-swap"  # of the one request: every reply to it by one version is the same to the byte
_NUMERIC = tuple(f"f{index}" for index in range(FEATURES))
_RECIPE = Recipe(task="regression", target="y", numeric=_NUMERIC)
_TREES, _LEAVES = 66, 1200


def linear(models_dir: Path, versions: int) -> str:
    """Publishes so many versions, the first of which is champion; the model's name. Version n
    answers n to `request`."""
    x = _rows()
    for version in range(1, versions + 1):
        fitted = LinearRegression().fit(x, np.zeros(ROWS))
        fitted.coef_ = np.linspace(-1, 1, FEATURES)
        fitted.intercept_ = float(version)
        _publish(models_dir / "linear", x, fitted)
    return "linear"


def forest(models_dir: Path, versions: int) -> str:
    """Publishes so many versions, which are all the same; the model's name."""
    x = _rows()
    fitted = RandomForestRegressor(
        n_estimators=_TREES, max_leaf_nodes=_LEAVES, max_features=0.1, random_state=0, n_jobs=1
    ).fit(x, x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2]))
    for _ in range(versions):
        _publish(models_dir / "forest", x, fitted)
    return "forest"


def request(model: str, version: int | None = None) -> bytes:
    """A row of zeros, for a version or for whichever answers."""
    message = pb.ModelInferRequest(model_name=model, id=ID)
    if version is not None:
        message.model_version = str(version)
    message.inputs.add(name="numeric", datatype="FP32", shape=(1, FEATURES))
    message.raw_input_contents.append(np.zeros((1, FEATURES), np.float32).tobytes())
    return message.SerializeToString()


def prediction(reply: bytes) -> tuple[str, float]:
    """(the version that the reply names, its number)."""
    message = pb.ModelInferResponse.FromString(reply)
    (value,) = np.frombuffer(message.raw_output_contents[0], np.float32)
    return message.model_version, float(value)


def _rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype(np.float32)


def _publish(directory: Path, x: NDArray[np.float32], fitted: BaseEstimator) -> None:
    pipeline = Pipeline([("model", fitted)])
    frame = pl.DataFrame(x, schema=_NUMERIC).with_columns(y=pl.lit(0.0))
    signature = signature_of(_RECIPE, classes_of(pipeline))
    graph = export(_RECIPE, pipeline)
    model = OnnxModel(graph)
    inputs = tensors(_RECIPE, frame)
    with ModelDirectory(directory).stage() as staged:
        (staged.path / "model.onnx").write_bytes(graph)
        profile = reference_profile(
            signature, Dataset.from_frame(_RECIPE, frame), model.run(inputs)
        )
        profile.save(staged.path / "reference.npz")
        save_golden(staged.path / "golden.npz", golden_rows(model, inputs))
        staged.publish(
            signature=signature,
            task=_RECIPE.task,
            lineage={},
            metrics={},
            actor="benchmark",
            reason="to be swapped",
        )
