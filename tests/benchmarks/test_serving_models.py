"""The benchmark asks real questions, and takes no wrong answer for a right one."""

from pathlib import Path

import numpy as np
import pytest
from serving_models import MAKERS, Question, WrongAnswerError, ask

from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry.directory import ModelDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    ("name", "datatype", "width"), [("logistic", "FP32", 30), ("strings", "BYTES", 5)]
)
def test_a_request_is_a_message_of_the_protocol(
    tmp_path: Path, name: str, datatype: str, width: int
) -> None:
    question = ask(MAKERS[name](tmp_path), 3)
    message = pb.ModelInferRequest.FromString(question.request)
    (tensor,) = message.inputs
    assert (message.model_name, tensor.datatype) == (name, datatype)
    assert list(tensor.shape) == [3, width]
    assert len(message.raw_input_contents) == 1
    assert {key: len(values) for key, values in question.outputs.items()} == {
        "label": 3,
        "probabilities": 3,
    }


def test_a_model_is_published_as_the_trainer_does_it(tmp_path: Path) -> None:
    model = MAKERS["logistic"](tmp_path)
    files = {file.name for file in model.file.parent.iterdir()}
    assert {"model.onnx", "manifest.json", "golden.npz", "reference.npz"} <= files
    assert ModelDirectory(model.models_dir / model.name).state().champion == 1


def test_right_answers_are_taken_raw_or_typed(folder: Path) -> None:
    question = ask(MAKERS["logistic"](folder), 2)
    raw, typed = pb.ModelInferResponse(), pb.ModelInferResponse()
    for name, values in question.outputs.items():
        kind = "INT64" if values.dtype == np.int64 else "FP32"
        raw.outputs.add(name=name, datatype=kind)
        raw.raw_output_contents.append(values.tobytes())
        output = typed.outputs.add(name=name, datatype=kind)
        contents = output.contents
        field = contents.int64_contents if kind == "INT64" else contents.fp32_contents
        field.extend(values.ravel().tolist())
    question.check_prediction(raw.SerializeToString())
    question.check_prediction(typed.SerializeToString())
    _wrong(question, raw)


def _wrong(question: Question, reply: pb.ModelInferResponse) -> None:
    shorter = pb.ModelInferResponse()
    shorter.CopyFrom(reply)
    del shorter.outputs[1], shorter.raw_output_contents[1]
    with pytest.raises(WrongAnswerError, match="outputs are"):
        question.check_prediction(shorter.SerializeToString())
    other = np.frombuffer(reply.raw_output_contents[1], np.float32) + np.float32(0.01)
    reply.raw_output_contents[1] = other.tobytes()
    with pytest.raises(WrongAnswerError, match="probabilities"):
        question.check_prediction(reply.SerializeToString())
    with pytest.raises(WrongAnswerError):
        question.check_same_bytes(reply.SerializeToString())
    with pytest.raises(WrongAnswerError):
        question.check_same_tensors(reply.SerializeToString())
