"""The model.py of the benchmark's Triton repository: model.onnx through onnxruntime.

Loaded by Triton's Python backend in an environment of its own. Triton hands over the requests that
wait together; they are computed in one run.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # Triton brings it
from numpy.typing import NDArray


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        parts = {name: [_decoded(request, name) for request in requests] for name in self._inputs}
        ends = np.cumsum([len(part) for part in parts[self._inputs[0]]])[:-1]
        feed = {name: np.concatenate(part) for name, part in parts.items()}
        found = self._session.run(self._outputs, feed)
        # Every output has its rows first and, in the configuration, a second dimension.
        split = [np.split(values.reshape(len(values), -1), ends) for values in found]
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor(name, np.ascontiguousarray(rows))
                    for name, rows in zip(self._outputs, of_request, strict=True)
                ]
            )
            for of_request in zip(*split, strict=True)
        ]


def _decoded(request: Any, name: str) -> NDArray[Any]:
    values: NDArray[Any] = triton.get_input_tensor_by_name(request, name).as_numpy()
    if values.dtype == object:
        texts = [text.decode() for text in values.ravel()]
        return np.array(texts, dtype=object).reshape(values.shape)
    return values
