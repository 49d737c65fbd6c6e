"""Turns a fitted pipeline into one ONNX graph with vector inputs, and runs such a graph.

`numeric` is FP32 [-1, n] and `categorical` BYTES [-1, k]; a model without columns of one kind does
not have that input. Two vectors are twice as fast to run as an input for each column. Outputs keep
skl2onnx's names: `variable`, or `label` and `probabilities`. The same pipeline gives the same bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import skl2onnx
from numpy.typing import NDArray
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.pipeline import Pipeline

from trimtab.registry.manifest import Signature, TensorSpec

from .errors import ExportError
from .forest_missing import write_missing_directions
from .recipe import Recipe

# What onnxruntime 1.23 and everything after it runs.
_OPSETS = {"": 18, "ai.onnx.ml": 3}


def export(recipe: Recipe, pipeline: Pipeline) -> bytes:
    """The serialized graph; ExportError where the conversion is known or found to be unsafe."""
    model = pipeline[-1]
    if getattr(model, "is_categorical_", None) is not None:
        raise ExportError("the model handles categories natively, which ONNX would get wrong")
    inputs: list[tuple[str, Any]] = []
    if recipe.numeric:
        inputs.append(("numeric", FloatTensorType([None, len(recipe.numeric)])))
    if recipe.categorical:
        inputs.append(("categorical", StringTensorType([None, len(recipe.categorical)])))
    options = {id(pipeline): {"zipmap": False}} if recipe.classification else None
    try:
        with _integer_attributes():
            graph = skl2onnx.to_onnx(
                pipeline,
                initial_types=inputs,
                options=options,
                target_opset=_OPSETS,
                name="trimtab",
            )
    except Exception as error:  # skl2onnx raises whatever its converters meet
        raise ExportError(f"skl2onnx cannot convert the model: {_line(error)}") from error
    # skl2onnx lists them in the order of a set, which differs from process to process.
    domains = sorted(graph.opset_import, key=lambda item: item.domain)
    del graph.opset_import[:]
    graph.opset_import.extend(domains)
    write_missing_directions(graph, pipeline)
    found = [output.name for output in graph.graph.output]
    wanted = ["label", "probabilities"] if recipe.classification else ["variable"]
    if found != wanted:
        raise ExportError(
            f"the converted graph gives {', '.join(found)} and not {', '.join(wanted)}: "
            "the pipeline must end in a classifier or a regressor, as the task is"
        )
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the converted graph is not valid ONNX: {_line(error)}") from error
    return bytes(graph.SerializeToString(deterministic=True))


def signature_of(recipe: Recipe, classes: Sequence[Any]) -> Signature:
    """Inputs and outputs with the names of their columns; `classes` as Dataset.classes()."""
    inputs = []
    if recipe.numeric:
        inputs.append(TensorSpec("numeric", "FP32", (-1, len(recipe.numeric)), recipe.numeric))
    if recipe.categorical:
        shape = (-1, len(recipe.categorical))
        inputs.append(TensorSpec("categorical", "BYTES", shape, recipe.categorical))
    if not recipe.classification:
        outputs = [TensorSpec("variable", "FP32", (-1, 1), (recipe.target,))]
    else:
        kind = "BYTES" if isinstance(classes[0], str) else "INT64"
        columns = tuple(f"probabilities[{name}]" for name in classes)
        outputs = [
            TensorSpec("label", kind, (-1,), (recipe.target,)),
            TensorSpec("probabilities", "FP32", (-1, len(classes)), columns),
        ]
    return Signature(tuple(inputs), tuple(outputs))


class OnnxModel:
    """A graph in onnxruntime, set up as the server does it: one thread, which never spins."""

    def __init__(self, model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise ExportError(f"onnxruntime does not load the model: {_line(error)}") from error
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name."""
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))

    def predict(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """As fit.predict: values in a regression, else probabilities."""
        found = self.run(inputs)
        if "probabilities" in found:
            return found["probabilities"].astype(np.float64)
        return found["variable"][:, 0].astype(np.float64)


@contextmanager
def _integer_attributes() -> Iterator[None]:
    """protobuf 7 takes no bool where an int belongs, and skl2onnx 1.20 gives it some."""
    plain = ModelComponentContainer.add_node

    def add_node(self: ModelComponentContainer, *args: Any, **attributes: Any) -> None:
        for name, value in attributes.items():
            if isinstance(value, list) and any(isinstance(x, bool | np.bool_) for x in value):
                attributes[name] = [int(x) for x in value]
        plain(self, *args, **attributes)

    ModelComponentContainer.add_node = add_node
    try:
        yield
    finally:
        ModelComponentContainer.add_node = plain


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
