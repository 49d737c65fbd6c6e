"""Small ONNX models and registries of them, for tests of every folder.

A model is bytes, ready for a file. `publish` puts one into a registry as the trainer would.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.inference.onnx_session import open_session
from trimtab.server.inference.tensor import DTYPES

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
Shape = Sequence[int | str | None]
Value = tuple[str, str, Shape]  # name, datatype, shape


def build(
    nodes: Sequence[Any],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, ELEMENT_TYPES[t], s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, ELEMENT_TYPES[t], s) for n, t, s in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def identity(values: Sequence[tuple[str, Shape]]) -> bytes:
    """Input `in<i>` comes out as `out<i>`; `values` are (datatype, shape)."""
    return build(
        [helper.make_node("Identity", [f"in{i}"], [f"out{i}"]) for i in range(len(values))],
        [(f"in{i}", datatype, shape) for i, (datatype, shape) in enumerate(values)],
        [(f"out{i}", datatype, shape) for i, (datatype, shape) in enumerate(values)],
    )


def scaled(factor: float, width: int = 2) -> bytes:
    """y = factor · x, FP32 [N, width]: the factor tells versions apart."""
    return build(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", "FP32", ["N", width])],
        [("y", "FP32", ["N", width])],
        {"factor": np.array(factor, dtype=np.float32)},
    )


def logistic(features: int = 30, seed: int = 0) -> bytes:
    """A logistic regression as skl2onnx names it: input -> label INT64 [N], probabilities [N, 2]."""
    weights = np.random.default_rng(seed).normal(size=(features, 1)).astype(np.float32)
    return build(
        [
            helper.make_node("MatMul", ["input", "w"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["p1"]),
            helper.make_node("Sub", ["one", "p1"], ["p0"]),
            helper.make_node("Concat", ["p0", "p1"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        [("input", "FP32", [None, features])],
        [("label", "INT64", [None]), ("probabilities", "FP32", [None, 2])],
        {"w": weights, "one": np.array(1, dtype=np.float32)},
    )


def lookup(size: int = 4) -> bytes:
    """value[i] = 10 · index[i]; an index from `size` on fails in onnxruntime."""
    return build(
        [helper.make_node("Gather", ["table", "index"], ["value"], axis=0)],
        [("index", "INT64", ["N"])],
        [("value", "FP32", ["N"])],
        {"table": np.arange(size, dtype=np.float32) * 10},
    )


def centred() -> bytes:
    """y = x - mean of x over the rows: the rows of a batch influence each other."""
    return build(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [("x", "FP32", ["N", 2])],
        [("y", "FP32", ["N", 2])],
    )


def flights() -> bytes:
    """Two inputs, three outputs: numeric FP32 [N, 2], categorical BYTES [N, 1]."""
    return build(
        [
            helper.make_node("ReduceSum", ["numeric", "axes"], ["variable"], keepdims=1),
            helper.make_node("Identity", ["categorical"], ["label"]),
            helper.make_node("Greater", ["variable", "zero"], ["positive"]),
        ],
        [("numeric", "FP32", ["N", 2]), ("categorical", "BYTES", ["N", 1])],
        [
            ("variable", "FP32", ["N", 1]),
            ("label", "BYTES", ["N", 1]),
            ("positive", "BOOL", ["N", 1]),
        ],
        {"axes": np.array([1]), "zero": np.array(0, dtype=np.float32)},
    )


def write(path: Path, model: bytes) -> Path:
    """A version in Triton's plain layout: `path` is its directory."""
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(model)
    return path


def publish(
    models_dir: Path,
    name: str,
    model: bytes,
    *,
    golden: Mapping[str, NDArray[Any]] | None = None,
    columns: Mapping[str, tuple[str, ...]] | None = None,
    signature: Signature | None = None,
    champion_if_first: bool = True,
) -> int:
    """Publishes a version; `golden` are the arrays of golden.npz."""
    with ModelDirectory(models_dir / name).stage() as staged:
        file = staged.path / "model.onnx"
        file.write_bytes(model)
        if golden is not None:
            np.savez(staged.path / "golden.npz", **golden)  # type: ignore[arg-type]  # numpy's stub: allow_pickle might be among the names
        if signature is None:
            signature = open_session(file).signature
        signature = Signature(
            inputs=tuple(_with_columns(spec, columns) for spec in signature.inputs),
            outputs=tuple(_with_columns(spec, columns) for spec in signature.outputs),
        )
        return int(
            staged.publish(
                signature=signature,
                task="regression",
                lineage={},
                metrics={"mae": 1.5},
                actor="test",
                reason="test",
                champion_if_first=champion_if_first,
            )
        )


def golden_of(model: bytes, path: Path, rows: int = 8) -> dict[str, NDArray[Any]]:
    """Golden arrays of a model with numeric inputs, as it computes them; `path` is scratch."""
    file = path / "golden-source.onnx"
    file.write_bytes(model)
    opened = open_session(file)
    random = np.random.default_rng(1)
    feed = {
        spec.name: random.normal(size=(rows, *spec.shape[1:])).astype(DTYPES[spec.datatype])
        for spec in opened.signature.inputs
    }
    names = [spec.name for spec in opened.signature.outputs]
    values = opened.session.run(names, feed)
    return {
        **{f"input/{name}": value for name, value in feed.items()},
        **{f"output/{name}": value for name, value in zip(names, values, strict=True)},
    }


def _with_columns(spec: TensorSpec, columns: Mapping[str, tuple[str, ...]] | None) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, spec.shape, (columns or {}).get(spec.name, ()))
