"""The reference profile of a version: how inputs and outputs were distributed in its training.

Inputs are counted over all rows of the training window. Outputs are counted over the held-out rows
and from the model that had not learned them: on its own training rows a model is surer of itself
than it will ever be on live ones, and that alone would look like drift from the first day.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.manifest import Signature, TensorSpec

from .dataset import Dataset


def reference_profile(
    signature: Signature, window: Dataset, outputs: dict[str, NDArray[Any]]
) -> ReferenceProfile:
    """The profile of a version with this signature; `outputs` as the ONNX model has them."""
    inputs = window.inputs()
    tensors = [_tensor(spec, "input", inputs[spec.name]) for spec in signature.inputs]
    tensors += [_tensor(spec, "output", outputs[spec.name]) for spec in signature.outputs]
    return ReferenceProfile(rows=len(window), tensors=tuple(tensors))


def outputs_of(
    signature: Signature, prediction: NDArray[Any], classes: tuple[Any, ...]
) -> dict[str, NDArray[Any]]:
    """A prediction (fit.predict) in the form of the ONNX model's outputs."""
    if not classes:
        return {"variable": prediction.astype(np.float32)[:, None]}
    kind = object if isinstance(classes[0], str) else np.int64
    labels = np.array(classes, dtype=kind)[np.argmax(prediction, axis=1)]
    return {"label": labels, "probabilities": prediction.astype(np.float32)}


def _tensor(spec: TensorSpec, role: Any, values: NDArray[Any]) -> TensorReference:
    columns = values.reshape(len(values), -1)
    if spec.datatype == "BYTES":
        features: tuple[Any, ...] = tuple(
            categorical_feature(name, columns[:, index]) for index, name in enumerate(spec.columns)
        )
    else:
        features = tuple(
            numeric_feature(name, np.ascontiguousarray(columns[:, index], dtype=np.float32))
            for index, name in enumerate(spec.columns)
        )
    return TensorReference(tensor=spec.name, role=role, features=features)
