"""The reference profile of a version: how inputs and outputs were distributed in its training.

Inputs are counted over all rows of the training window. Outputs are counted over the held-out rows
and from the model that had not learned them: on its own training rows a model is surer of itself
than it will ever be on live ones, and that alone would look like drift from the first day.

Probabilities are counted in fixed bands. A model that is sure of itself crowds them close to 0 and
1, where quantiles are hair-thin; the version that is published was fitted again on more rows, its
crowd lies a hair beside the judged one's, and quantile bins would take that for a change of the
world. The bands are even in log-odds, so that rare events have bands of their own.

Input columns carry their importances, so that a report can tell drift that matters from drift that
does not.

How wrong the model was on the same held-out rows is kept as a distribution too, row by row: what
labels of live rows are held against.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native.losses import ABSOLUTE_ERROR, LOG_LOSS, absolute_error, log_loss
from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.manifest import Signature, TensorSpec

from .dataset import Dataset

_LOG_ODDS = np.arange(-5.0, 5.5, 0.5)
PROBABILITY_BANDS = (1 / (1 + np.exp(-_LOG_ODDS))).astype(np.float32)  # 0.0067 … 0.5 … 0.9933


def reference_profile(
    signature: Signature,
    window: Dataset,
    outputs: dict[str, NDArray[Any]],
    importances: Mapping[str, float] | None = None,
    losses: TensorReference | None = None,
) -> ReferenceProfile:
    """The profile of a version with this signature; `outputs` as the ONNX model has them.

    `importances` of input columns by name; a column that is not there, or NaN, has none. `losses`
    as `losses_of` gives them; None: nothing is known of how wrong it is.
    """
    inputs = window.inputs()
    tensors = [
        _weighed(_tensor(spec, "input", inputs[spec.name]), importances or {})
        for spec in signature.inputs
    ]
    tensors += [_tensor(spec, "output", outputs[spec.name]) for spec in signature.outputs]
    known = (losses,) if losses is not None else ()
    return ReferenceProfile(rows=len(window), tensors=tuple(tensors), losses=known)


def _weighed(tensor: TensorReference, importances: Mapping[str, float]) -> TensorReference:
    features: list[Any] = []
    for feature in tensor.features:
        known = importances.get(feature.name)
        unknown = known is None or not math.isfinite(known)
        features.append(replace(feature, importance=None if unknown else known))
    return replace(tensor, features=tuple(features))


def outputs_of(
    signature: Signature, prediction: NDArray[Any], classes: tuple[Any, ...]
) -> dict[str, NDArray[Any]]:
    """A prediction (fit.predict) in the form of the ONNX model's outputs."""
    if not classes:
        return {"variable": prediction.astype(np.float32)[:, None]}
    kind = object if isinstance(classes[0], str) else np.int64
    labels = np.array(classes, dtype=kind)[np.argmax(prediction, axis=1)]
    return {"label": labels, "probabilities": prediction.astype(np.float32)}


def losses_of(
    truth: NDArray[Any], prediction: NDArray[Any], classes: Sequence[Any]
) -> TensorReference:
    """How wrong a prediction (fit.predict) was, row by row; `classes` as Dataset.classes().

    The prediction is taken as the ONNX model gives it, in float32.
    """
    given = prediction.astype(np.float32)
    if not classes:
        feature = numeric_feature(ABSOLUTE_ERROR, absolute_error(given, truth))
    else:
        places = {value: place for place, value in enumerate(classes)}
        column = np.array([places[value] for value in truth.tolist()], np.intp)
        feature = numeric_feature(LOG_LOSS, log_loss(given[np.arange(len(truth)), column]))
    return TensorReference(tensor="loss", role="loss", features=(feature,))


def _tensor(spec: TensorSpec, role: Any, values: NDArray[Any]) -> TensorReference:
    columns = values.reshape(len(values), -1)
    if spec.datatype == "BYTES":
        features: tuple[Any, ...] = tuple(
            categorical_feature(name, columns[:, index]) for index, name in enumerate(spec.columns)
        )
    else:
        edges = PROBABILITY_BANDS if role == "output" and spec.name == "probabilities" else None
        features = tuple(
            numeric_feature(
                name, np.ascontiguousarray(columns[:, index], dtype=np.float32), edges=edges
            )
            for index, name in enumerate(spec.columns)
        )
    return TensorReference(tensor=spec.name, role=role, features=features)
