"""MLServer's runtime of the benchmark: model.onnx through onnxruntime, opened as Trimtab opens it.

Loaded by MLServer in an environment of its own. MLServer merges the requests that wait together.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel  # type: ignore[import-not-found]  # not of our environment
from mlserver.codecs import (  # type: ignore[import-not-found]  # not of our environment
    NumpyCodec,
    StringCodec,
)
from mlserver.types import (  # type: ignore[import-not-found]  # not of our environment
    InferenceRequest,
    InferenceResponse,
    RequestInput,
)
from mlserver.utils import get_model_uri  # type: ignore[import-not-found]  # not of our environment
from numpy.typing import NDArray


class OnnxModel(MLModel):  # type: ignore[misc]  # MLServer is not of our environment
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = await get_model_uri(self.settings)
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {each.name: _decoded(each) for each in payload.inputs}
        found = self._session.run(self._names, feed)
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output(name, values)
                for name, values in zip(self._names, found, strict=True)
            ],
        )


def _decoded(tensor: RequestInput) -> NDArray[np.generic]:
    if tensor.datatype == "BYTES":
        return np.array(StringCodec.decode_input(tensor), dtype=object).reshape(tensor.shape)
    values: NDArray[np.generic] = NumpyCodec.decode_input(tensor)
    return values
