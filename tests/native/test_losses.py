"""Losses, and their place in a reference beside the tensors that windows are held against."""

import math
from pathlib import Path

import numpy as np
import pytest

from trimtab._native.losses import SMALLEST_PROBABILITY, absolute_error, log_loss
from trimtab._native.reference import (
    NumericFeature,
    ReferenceProfile,
    TensorReference,
    numeric_feature,
)

INPUT = TensorReference("numeric", "input", (numeric_feature("x", np.arange(100.0)),))


def losses(start: float = 0.0) -> TensorReference:
    values = np.arange(start, start + 50.0)
    feature = numeric_feature("absolute_error", values, edges=np.array([10, 60], np.float32))
    return TensorReference("loss", "loss", (feature,))


def test_an_absolute_error_is_that_of_the_float32_answer() -> None:
    answers = np.array([0.1, 5.0], np.float32)
    assert absolute_error(answers, np.array([0.1, 2.0])).tolist() == [
        float(np.float32(0.1)) - 0.1,
        3.0,
    ]


def test_a_log_loss_is_bounded_for_a_model_that_was_sure_and_wrong() -> None:
    found = log_loss(np.array([1.0, 0.5, 0.0, 1e-9]))
    assert found.tolist() == pytest.approx([0, math.log(2)] + [-math.log(SMALLEST_PROBABILITY)] * 2)


def test_losses_are_written_read_and_added_and_no_tensor_of_the_model(tmp_path: Path) -> None:
    profile = ReferenceProfile(100, (INPUT,), losses=(losses(),))
    profile.save(tmp_path / "reference.npz")
    read = ReferenceProfile.load(tmp_path / "reference.npz")
    assert [tensor.role for tensor in read.tensors] == ["input"]
    (tensor,) = read.losses
    (feature,) = tensor.features
    assert isinstance(feature, NumericFeature)
    assert (tensor.role, feature.name) == ("loss", "absolute_error")
    assert feature.mean == 24.5 and feature.std == pytest.approx(np.arange(50).std())
    assert feature.counts.tolist() == [10, 40, 0]

    both = read + ReferenceProfile(100, (INPUT,), losses=(losses(20.0),))
    (added,) = both.losses[0].features
    assert isinstance(added, NumericFeature)
    assert added.counts.tolist() == [10, 80, 10] and added.mean == 34.5
    with pytest.raises(ValueError, match="profiles of 1 and 0 losses cannot be added"):
        _ = read + ReferenceProfile(100, (INPUT,))


def test_a_loss_among_the_tensors_and_a_tensor_among_the_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="loss tensor 'loss' is not in its place"):
        ReferenceProfile(1, (losses(),))
    with pytest.raises(ValueError, match="input tensor 'numeric' is not in its place"):
        ReferenceProfile(1, (), losses=(INPUT,))
    with pytest.raises(ValueError, match="not input, output or loss"):
        TensorReference("x", "lost", ())  # type: ignore[arg-type]  # what is tested
