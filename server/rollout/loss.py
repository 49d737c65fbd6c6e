"""How wrong one answer was, once its label is there; and which of a model's outputs says so.

    probabilities whose columns name the classes   log loss of the label's class
    else a label (integers or text, one a row)     1 where it is another than the label's
    else a number (one a row)                      absolute error

What a loss needs of an answer is one row of numbers, kept until the label comes. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.losses import log_loss
from trimtab.registry.manifest import Signature, TensorSpec

from ..inference.tensor import BYTES, Tensor
from ..logs.label_log import Label
from . import row_keys

Answers = NDArray[Any]  # (rows, width)


class Loss(Protocol):
    """One version's way from an answer to a loss."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    def answers(self, outputs: Mapping[str, Tensor], rows: int) -> Answers | None:
        """What to keep of each row; None: the output is not as the signature says."""

    def of(self, answers: Answers, labels: Sequence[Label]) -> NDArray[np.float64]:
        """The loss of each row; NaN where a label does not go with the model."""


def loss_of(signature: Signature) -> Loss | None:
    """None: nothing that a label could be held against."""
    outputs = signature.outputs
    for spec in outputs:
        if spec.datatype.startswith("FP") and (classes := _classes(spec)):
            return LogLoss(spec.name, classes)
    for spec in outputs:
        if _is_single(spec) and (spec.datatype == BYTES or "INT" in spec.datatype):
            return WrongLabels(spec.name, is_text=spec.datatype == BYTES)
    for spec in outputs:
        if _is_single(spec) and spec.datatype.startswith("FP"):
            return AbsoluteError(spec.name)
    return None


class AbsoluteError:
    """Of a regression."""

    name = "absolute error"
    width = 1
    dtype = np.float64

    def __init__(self, output: str) -> None:
        self._output = output

    def answers(self, outputs: Mapping[str, Tensor], rows: int) -> Answers | None:
        return _column(outputs.get(self._output), rows)

    def of(self, answers: Answers, labels: Sequence[Label]) -> NDArray[np.float64]:
        truth = np.array([math.nan if each.number is None else each.number for each in labels])
        return np.asarray(np.abs(answers[:, 0] - truth), np.float64)


class LogLoss:
    """Of probabilities; a class that the model does not know has the smallest there is."""

    name = "log loss"
    dtype = np.float32

    def __init__(self, output: str, classes: Sequence[str]) -> None:
        self._output = output
        self._places = {name: place for place, name in enumerate(classes)}
        self.width = len(classes)

    def answers(self, outputs: Mapping[str, Tensor], rows: int) -> Answers | None:
        tensor = outputs.get(self._output)
        return tensor.array() if tensor and tensor.shape == (rows, self.width) else None

    def of(self, answers: Answers, labels: Sequence[Label]) -> NDArray[np.float64]:
        places = np.array([self._places.get(_text(each), -1) for each in labels], np.intp)
        given = answers[np.arange(len(labels)), places].astype(np.float64)
        given = np.where(places < 0, 0.0, given)
        return log_loss(given)


class WrongLabels:
    """Of labels alone: text is compared by its key."""

    name = "wrong labels"
    width = 1
    dtype = np.uint64

    def __init__(self, output: str, *, is_text: bool) -> None:
        self._output = output
        self._is_text = is_text

    def answers(self, outputs: Mapping[str, Tensor], rows: int) -> Answers | None:
        tensor = outputs.get(self._output)
        if not self._is_text:
            column = _column(tensor, rows)
            return None if column is None else column.astype(np.int64).view(np.uint64)
        if tensor is None or tensor.elements != rows or not isinstance(tensor.data, bytes):
            return None
        return row_keys.of_text(bytes_tensor.decode(tensor.data, rows).tolist())[:, None]

    def of(self, answers: Answers, labels: Sequence[Label]) -> NDArray[np.float64]:
        texts = [_text(each) for each in labels]
        if self._is_text:
            return np.asarray(answers[:, 0] != row_keys.of_text(texts), np.float64)
        truth = np.array([_number(text) for text in texts])
        wrong = (answers[:, 0].view(np.int64) != truth).astype(np.float64)
        return np.asarray(np.where(np.isnan(truth), math.nan, wrong), np.float64)


def _classes(spec: TensorSpec) -> tuple[str, ...]:
    """The classes that the columns of probabilities are called after: `name[class]`."""
    start, end = f"{spec.name}[", "]"
    if len(spec.columns) < 2 or len(spec.shape) != 2:
        return ()
    if not all(column.startswith(start) and column.endswith(end) for column in spec.columns):
        return ()
    return tuple(column[len(start) : -1] for column in spec.columns)


def _is_single(spec: TensorSpec) -> bool:
    return len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] == 1)


def _column(tensor: Tensor | None, rows: int) -> Answers | None:
    if tensor is None or tensor.elements != rows or isinstance(tensor.data, bytes):
        return None
    return tensor.data.reshape(rows, 1)


def _text(label: Label) -> str:
    """As a class is called: whole numbers without a point."""
    if label.number is None:
        return label.text or ""
    return str(int(label.number)) if label.number.is_integer() else str(label.number)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
