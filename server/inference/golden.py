"""The golden rows of a version: inputs and the outputs that they gave when it was published.

They are replayed at every load, since an upgrade of onnxruntime can change results without an error
(1.26 and 1.27 invert binary forests). `golden.npz` has one array `input/<tensor>` per input and
`output/<tensor>` per output; strings are unicode arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab.registry.manifest import Signature, TensorSpec

from .onnx_session import LoadError, one_line
from .tensor import BYTES, DTYPES, Tensor

FILE_NAME = "golden.npz"
_TOLERANCE = 1e-4  # of floats, relative and absolute
_LABEL_SHARE = 0.01  # of labels may differ: a probability on the threshold falls either way


@dataclass(frozen=True)
class GoldenRows:
    """Inputs and their expected outputs."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def load(file: Path, signature: Signature) -> GoldenRows:
    """Raises LoadError naming what the file lacks."""
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib, numpy: anything a damaged file may raise
        raise LoadError(f"{file.name} cannot be read: {one_line(error)}") from error
    return GoldenRows(
        inputs={
            spec.name: _tensor(file, f"input/{spec.name}", spec, arrays)
            for spec in signature.inputs
        },
        outputs={
            spec.name: _tensor(file, f"output/{spec.name}", spec, arrays)
            for spec in signature.outputs
            if f"output/{spec.name}" in arrays
        },
    )


def difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str | None:
    """How the outputs differ from the expected ones, in words; None: they do not."""
    for name, wanted in expected.items():
        got = actual[name]
        if got.datatype != wanted.datatype or got.shape != wanted.shape:
            return (
                f"output '{name}' is {got.datatype}{list(got.shape)}, "
                f"expected {wanted.datatype}{list(wanted.shape)}"
            )
        if wanted.datatype.startswith("FP"):
            a, b = wanted.array().astype(np.float64), got.array().astype(np.float64)
            off = ~np.isclose(b, a, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
            if off.any():
                # Infinities of unlike sign have no difference worth naming.
                with np.errstate(invalid="ignore"):
                    worst = float(np.nanmax(np.abs(a - b)[off], initial=0.0))
                return (
                    f"output '{name}' differs in {int(off.sum())} of {off.size} values, "
                    f"by up to {worst:.6g} (tolerance {_TOLERANCE:g})"
                )
        else:
            unlike = int(np.sum(_values(wanted) != _values(got)))
            if unlike > _LABEL_SHARE * wanted.elements:
                return f"output '{name}' differs in {unlike} of {wanted.elements} values"
    return None


def _values(tensor: Tensor) -> NDArray[Any]:
    if isinstance(tensor.data, bytes):
        return bytes_tensor.decode(tensor.data, tensor.elements).reshape(tensor.shape)
    return tensor.data


def _tensor(file: Path, key: str, spec: TensorSpec, arrays: Mapping[str, NDArray[Any]]) -> Tensor:
    if key not in arrays:
        raise LoadError(f"{file.name} has no array '{key}'")
    array = arrays[key]
    if spec.datatype == BYTES:
        if array.dtype.kind not in "US":
            raise LoadError(f"{file.name}: '{key}' is {array.dtype}, expected strings")
        return Tensor(BYTES, array.shape, bytes_tensor.encode(array.ravel().astype(object)))
    if array.dtype != DTYPES[spec.datatype]:
        raise LoadError(f"{file.name}: '{key}' is {array.dtype}, expected {spec.datatype}")
    return Tensor(spec.datatype, array.shape, np.ascontiguousarray(array).reshape(array.shape))
