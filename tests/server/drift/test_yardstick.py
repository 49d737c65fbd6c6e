import numpy as np

from tests.loop_fakes import draw
from trimtab._native.reference import (
    Feature,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.server.drift.yardstick import FeatureYardstick, TensorYardstick, Yardstick


def yardstick_of(*features: Feature) -> tuple[TensorYardstick, FeatureYardstick]:
    tensor = TensorYardstick(TensorReference("x", "input", features))
    return tensor, tensor.features[0]


def test_numeric_groups_have_equal_reference_mass_and_cover_everything() -> None:
    values = draw(np.random.default_rng(0), 10_000)[0][:, 0].copy()
    values[:500] = np.nan
    feature = numeric_feature("x", values)
    finer = numeric_feature("y", values, bins=80)
    tensor, yardstick = yardstick_of(feature, finer)
    assert yardstick.reference.sum() == 10_000 and yardstick.reference[-1] == 500
    assert len(yardstick.labels) == len(yardstick.reference) <= 11
    assert np.ptp(yardstick.reference[:-1]) < 500
    assert yardstick.labels[0].startswith("< ") and yardstick.labels[-2].startswith("≥ ")
    slots = np.zeros((2, len(finer.edges) + 2), np.uint64)  # wider than the first one needs
    slots[0, 0], slots[0, yardstick.bins - 1], slots[0, -1] = 1, 2, 3
    grouped = tensor.table.grouped(slots)[0, : len(yardstick.labels)]
    assert grouped[[0, -2, -1]].tolist() == [1, 2, 3]
    assert grouped.sum() == 6


def test_a_constant_column_is_one_group() -> None:
    _, yardstick = yardstick_of(numeric_feature("x", np.full(100, 3, np.float32)))
    assert yardstick.reference.sum() == 100
    assert len(yardstick.labels) == len(yardstick.reference)


def test_rare_other_and_unseen_categories_are_one_group() -> None:
    values = [f"c{index:02}".encode() for index in range(30) for _ in range(20 + index)]
    values += [b"rare"] * 3 + [b""] * 7
    feature = categorical_feature("x", values)
    tensor, yardstick = yardstick_of(feature)
    assert yardstick.labels[0] == "c29" and yardstick.labels[-2:] == ["other categories", "missing"]
    assert len(yardstick.labels) == 22
    assert yardstick.reference.sum() == len(values) and yardstick.reference[-1] == 7
    slots = np.zeros(len(feature.kept) + 3, np.uint64)
    slots[feature.kept.index(b"c29")] = 5
    slots[feature.kept.index(b"c00")] = 1  # not among the commonest
    slots[len(feature.kept) : len(feature.kept) + 3] = (10, 100, 1000)
    grouped = tensor.table.grouped(slots[None])[0]
    assert (grouped[0], grouped[-2], grouped[-1]) == (5, 111, 1000)


def test_a_yardstick_has_the_profiles_features_in_order() -> None:
    feature = numeric_feature("x", np.arange(100, dtype=np.float32))
    category = categorical_feature("y", [b"a"] * 100)
    profile = ReferenceProfile(
        rows=100,
        tensors=(
            TensorReference("n", "input", (feature,)),
            TensorReference("c", "output", (category,)),
        ),
    )
    yardstick = Yardstick(profile)
    assert [[f.feature.name for f in tensor.features] for tensor in yardstick.tensors] == [
        ["x"],
        ["y"],
    ]
