from typing import Any

import numpy as np
import pytest

from trimtab._native import bytes_tensor
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs.label_log import Label
from trimtab.server.rollout.loss import Loss, loss_of

NUMBER = TensorSpec("variable", "FP32", (-1, 1))
INTEGER = TensorSpec("label", "INT64", (-1,))
TEXT = TensorSpec("label", "BYTES", (-1,))
NAMED = TensorSpec("p", "FP32", (-1, 2), ("p[no]", "p[yes]"))
NUMBERED = TensorSpec("p", "FP32", (-1, 2), ("p[0]", "p[1]"))
UNNAMED = TensorSpec("p", "FP32", (-1, 2))
IMAGE = TensorSpec("mask", "FP32", (-1, 8, 8))


def loss_for(*outputs: TensorSpec) -> Loss | None:
    return loss_of(Signature(inputs=(), outputs=outputs))


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ((NUMBER,), "absolute error"),
        ((TEXT, NAMED), "log loss"),
        ((INTEGER, NUMBERED), "log loss"),
        ((INTEGER, UNNAMED), "wrong labels"),
        ((TEXT,), "wrong labels"),
        ((UNNAMED,), None),
        ((IMAGE,), None),
    ],
)
def test_what_a_label_is_held_against(outputs: tuple[TensorSpec, ...], name: str | None) -> None:
    loss = loss_for(*outputs)
    assert (loss and loss.name) == name


def tensor(spec: TensorSpec, values: Any) -> Tensor:
    if spec.datatype == "BYTES":
        return Tensor("BYTES", (len(values),), bytes_tensor.encode(np.array(values, object)))
    array = np.array(values, np.float32 if spec.datatype == "FP32" else np.int64)
    return Tensor(spec.datatype, array.shape, array)


@pytest.mark.parametrize(
    ("spec", "values", "labels", "losses"),
    [
        (NUMBER, [[1.0], [2.0]], [Label("a", 0, number=3.0), Label("a", 1, number=2.5)], [2, 0.5]),
        (NUMBER, [[1.0]], [Label("a", 0, text="one")], [np.nan]),
        (
            NAMED,
            [[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]],
            [Label("a", 0, text="yes"), Label("a", 1, text="no"), Label("a", 2, text="maybe")],
            [-np.log(0.25), -np.log(1e-4), -np.log(1e-4)],
        ),
        (NUMBERED, [[0.75, 0.25]], [Label("a", 0, number=1.0)], [-np.log(0.25)]),
        (INTEGER, [1, 2, 3], [Label("a", r, number=2.0) for r in range(3)], [1, 0, 1]),
        (INTEGER, [1, 2], [Label("a", 0, text="1"), Label("a", 1, text="dog")], [0, np.nan]),
        (TEXT, ["dog", "2"], [Label("a", 0, text="cat"), Label("a", 1, number=2.0)], [1, 0]),
    ],
)
def test_losses(spec: TensorSpec, values: Any, labels: list[Label], losses: list[float]) -> None:
    loss = loss_for(spec)
    assert loss is not None
    answers = loss.answers({spec.name: tensor(spec, values)}, len(values))
    assert answers is not None and answers.shape == (len(values), loss.width)
    assert loss.of(answers.astype(loss.dtype), labels) == pytest.approx(losses, nan_ok=True)


def test_an_output_of_another_shape_has_no_answers() -> None:
    for spec in (NUMBER, NAMED, INTEGER, TEXT):
        loss = loss_for(spec)
        assert loss is not None
        assert loss.answers({}, 2) is None
        assert loss.answers({spec.name: tensor(NUMBER, [[1.0]] * 3)}, 2) is None
