"""The profile of a version's outputs."""

from typing import Any

import numpy as np
import pytest

from trimtab._native.divergence import psi
from trimtab._native.reference import NumericFeature
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.trainer.dataset import Dataset
from trimtab.trainer.reference_profile import PROBABILITY_BANDS, losses_of, reference_profile

SIGNATURE = Signature(
    inputs=(),
    outputs=(
        TensorSpec("probabilities", "FP32", (-1, 2), ("probabilities[0]", "probabilities[1]")),
    ),
)


class NoInputs(Dataset):
    """A window without columns; only outputs are looked at here."""

    def __init__(self) -> None: ...

    def __len__(self) -> int:
        return 1000

    def inputs(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        return {}


class OneInput(NoInputs):
    def inputs(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        return {"numeric": np.zeros((5, 3), np.float32)}


def test_input_columns_carry_their_importances_and_outputs_none() -> None:
    signature = Signature(
        inputs=(TensorSpec("numeric", "FP32", (-1, 3), ("a", "b", "c")),), outputs=SIGNATURE.outputs
    )
    outputs = {"probabilities": np.zeros((5, 2), np.float32)}
    weights = {"a": 0.5, "b": float("nan"), "probabilities[0]": 1.0}
    numeric, probabilities = reference_profile(signature, OneInput(), outputs, weights).tensors
    assert [feature.importance for feature in numeric.features] == [0.5, None, None]
    assert [feature.importance for feature in probabilities.features] == [None, None]


def profile_of(probability: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> NumericFeature:
    outputs = {"probabilities": np.stack([1 - probability, probability], axis=1)}
    (tensor,) = reference_profile(SIGNATURE, NoInputs(), outputs).tensors
    feature = tensor.features[1]
    assert isinstance(feature, NumericFeature)
    return feature


def test_a_model_sure_of_itself_and_its_twin_a_hair_beside_have_no_drift() -> None:
    """Two fits of one world: probabilities crowd at 0.0012 and at 0.0009, and at their like near 1."""
    random = np.random.default_rng(0)
    sure = random.random(1000) < 0.5
    one = np.where(sure, 0.9988, 0.0012) + random.normal(scale=1e-5, size=1000)
    two = np.where(sure, 0.9991, 0.0009) + random.normal(scale=1e-5, size=1000)

    judged, served = (profile_of(values.astype(np.float32)) for values in (one, two))

    assert judged.edges.tolist() == PROBABILITY_BANDS.tolist()
    assert psi(judged.counts, served.counts) < 0.01


def test_a_rare_event_has_bands_of_its_own() -> None:
    judged = profile_of(np.full(1000, 0.01, np.float32))
    served = profile_of(np.full(1000, 0.03, np.float32))

    assert psi(judged.counts, served.counts) > 1


def test_a_profile_knows_how_wrong_the_judged_model_was_row_by_row() -> None:
    random = np.random.default_rng(0)
    truth, prediction = random.normal(size=2_000), random.normal(size=2_000)
    profile = reference_profile(
        Signature((), ()), NoInputs(), {}, losses=losses_of(truth, prediction, ())
    )
    assert profile.tensors == ()
    (feature,) = profile.losses[0].features
    assert isinstance(feature, NumericFeature) and feature.name == "absolute_error"
    expected = np.abs(prediction - truth)
    assert feature.mean == pytest.approx(expected.mean(), rel=1e-6)
    assert feature.std == pytest.approx(expected.std(), rel=1e-6)
    assert feature.moment_rows() == 2_000


@pytest.mark.parametrize("classes", [(0, 1, 2), ("a", "b", "c")])
def test_losses_of_classes_are_by_the_probability_of_the_true_one(classes: tuple[Any, ...]) -> None:
    truth = np.array([classes[0], classes[2], classes[1]], object)
    prediction = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [0.1, 0.8, 0.1]])
    (feature,) = losses_of(truth, prediction, classes).features
    assert isinstance(feature, NumericFeature) and feature.name == "log_loss"
    expected = -np.log(np.array([0.7, 1e-4, 0.8]))
    assert feature.mean == pytest.approx(expected.mean(), rel=1e-6)


def test_without_losses_a_profile_has_none() -> None:
    assert reference_profile(Signature((), ()), NoInputs(), {}).losses == ()
