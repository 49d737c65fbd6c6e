"""Fit, export and parity together: what onnxruntime computes is what scikit-learn computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from skl2onnx.common._container import ModelComponentContainer

from trimtab.trainer.dataset import Dataset, tensors
from trimtab.trainer.errors import DataError, ExportError
from trimtab.trainer.export import OnnxModel, export, signature_of
from trimtab.trainer.fit import classes_of, fit, predict
from trimtab.trainer.parity import check_parity, parity_rows
from trimtab.trainer.recipe import Recipe

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]


@pytest.mark.parametrize("encoding", ["ordinal", "onehot"])
@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_onnx_and_scikit_learn_agree_on_ten_thousand_rows_and_the_edges(
    make_frame: FrameMaker, make_recipe: RecipeMaker, task: str, encoding: str
) -> None:
    recipe = make_recipe(task, estimator={"max_iter": 20, "encoding": encoding})
    data = Dataset.from_frame(recipe, make_frame(task=task))
    pipeline = fit(recipe, data)
    model = OnnxModel(export(recipe, pipeline))
    rows = parity_rows(recipe, data)
    found = check_parity(recipe, pipeline, model, rows)
    assert found.rows >= 10_000
    assert found.wrong_labels == 0
    assert found.worst < found.tolerance / 10
    expected = predict(recipe, pipeline, data)
    assert np.allclose(model.predict(data.inputs()), expected, atol=1e-5)


def test_string_classes_come_out_as_strings_in_alphabetical_order(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe("multiclass")
    data = Dataset.from_frame(recipe, make_frame(task="multiclass"))
    pipeline = fit(recipe, data)
    found = OnnxModel(export(recipe, pipeline)).run(data.inputs())
    assert classes_of(pipeline) == data.classes() == ("high", "low", "middle")
    assert list(found) == ["label", "probabilities"]
    assert found["probabilities"].shape == (len(data), 3)
    assert np.mean(found["label"] == data.target()) > 0.8


@pytest.mark.parametrize(
    ("task", "changes", "inputs", "outputs"),
    [
        (
            "regression",
            {},
            [
                ("numeric", "FP32", (-1, 2), ("size", "age")),
                ("categorical", "BYTES", (-1, 1), ("colour",)),
            ],
            [("variable", "FP32", (-1, 1), ("value",))],
        ),
        (
            "binary",
            {"categorical": []},
            [("numeric", "FP32", (-1, 2), ("size", "age"))],
            [
                ("label", "INT64", (-1,), ("value",)),
                ("probabilities", "FP32", (-1, 2), ("probabilities[0]", "probabilities[1]")),
            ],
        ),
        (
            "multiclass",
            {"numeric": []},
            [("categorical", "BYTES", (-1, 1), ("colour",))],
            [
                ("label", "BYTES", (-1,), ("value",)),
                (
                    "probabilities",
                    "FP32",
                    (-1, 3),
                    ("probabilities[high]", "probabilities[low]", "probabilities[middle]"),
                ),
            ],
        ),
    ],
)
def test_the_signature_is_what_the_graph_takes_and_gives(
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    task: str,
    changes: dict[str, Any],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    recipe = make_recipe(task, **changes)
    data = Dataset.from_frame(recipe, make_frame(task=task))
    signature = signature_of(recipe, data.classes())
    told = [
        [(s.name, s.datatype, s.shape, s.columns) for s in side]
        for side in (signature.inputs, signature.outputs)
    ]
    assert told == [inputs, outputs]
    pipeline = fit(recipe, data)
    model = OnnxModel(export(recipe, pipeline))
    assert model.inputs == tuple(name for name, *_ in inputs)
    found = model.run(data.inputs())
    assert list(found) == [name for name, *_ in outputs]
    for name, _, shape, _ in outputs:
        assert found[name].shape == (len(data), *shape[1:])
    assert check_parity(recipe, pipeline, model, parity_rows(recipe, data, 500)).worst < 1e-5


def test_the_same_rows_and_seed_give_the_same_bytes(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe(estimator={"max_iter": 10, "max_features": 0.5})
    once, again = (export(recipe, fit(recipe, make_frame())) for _ in range(2))
    assert once == again
    other = make_recipe(estimator={"max_iter": 10, "max_features": 0.5}, seed=1)
    assert export(other, fit(other, make_frame())) != once


def test_converting_leaves_skl2onnx_as_it_was(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    before = ModelComponentContainer.add_node
    export(make_recipe(), fit(make_recipe(), make_frame(300)))
    assert ModelComponentContainer.add_node is before


def test_native_categories_are_refused_since_their_conversion_is_wrong(
    make_recipe: RecipeMaker,
) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline

    recipe = make_recipe(categorical=[])
    random = np.random.default_rng(0)
    model = HistGradientBoostingRegressor(max_iter=2, categorical_features=[1])
    pipeline = Pipeline([("model", model)])
    pipeline.fit(random.integers(0, 4, (200, 2)), random.normal(size=200))
    with pytest.raises(ExportError, match="handles categories natively"):
        export(recipe, pipeline)


def test_what_onnxruntime_cannot_load_is_one_sentence() -> None:
    with pytest.raises(ExportError, match="onnxruntime does not load the model"):
        OnnxModel(b"not a model")


def test_a_model_that_cannot_be_fitted_is_one_sentence(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe(estimator={"loss": "poisson"})
    frame = make_frame(300).with_columns(value=-pl.col("value").abs())
    with pytest.raises(DataError, match="the model cannot be fitted"):
        fit(recipe, frame)


def test_parity_notices_a_graph_of_another_model(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    for task in ("regression", "multiclass"):
        recipe = make_recipe(task)
        data = Dataset.from_frame(recipe, make_frame(task=task))
        other = Dataset.from_frame(recipe, make_frame(task=task, seed=9))
        model = OnnxModel(export(recipe, fit(recipe, other)))
        found = check_parity(recipe, fit(recipe, data), model, parity_rows(recipe, data, 500))
        assert found.worst > found.tolerance
        assert (found.wrong_labels > 0) == (task == "multiclass")


def test_parity_rows_hold_missing_unseen_and_extreme_values(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe()
    data = Dataset.from_frame(recipe, make_frame())
    rows = parity_rows(recipe, data)
    inputs = tensors(recipe, rows)
    assert np.isnan(inputs["numeric"]).all(axis=1).any()
    assert np.isposinf(inputs["numeric"]).any(axis=0).all()
    known = set(data.frame["colour"])
    assert "" in rows["colour"]
    assert not set(rows["colour"]) <= known
    assert rows["size"].drop_nans().min() < data.frame["size"].min()  # type: ignore[operator]  # floats
    assert rows.equals(parity_rows(recipe, data), null_equal=True)


def test_parity_names_the_worst_rows_with_what_the_two_sides_say(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe("binary")
    data = Dataset.from_frame(recipe, make_frame(task="binary"))
    other = Dataset.from_frame(recipe, make_frame(task="binary", seed=9))
    model = OnnxModel(export(recipe, fit(recipe, other)))
    pipeline = fit(recipe, data)
    found = check_parity(recipe, pipeline, model, parity_rows(recipe, data, 500))
    assert len(found.worst_rows) == 3
    assert found.worst_rows[0].startswith("size=")
    assert " instead of " in found.worst_rows[0]


def test_infinite_numbers_are_compared_unless_scikit_learn_refuses_them(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    for kind, compared in (("auto", True), ("linear", False)):
        recipe = make_recipe(estimator={"kind": kind, "max_iter": 5})
        data = Dataset.from_frame(recipe, make_frame(300))
        rows = parity_rows(recipe, data)
        pipeline = fit(recipe, data)
        model = OnnxModel(export(recipe, pipeline))
        found = check_parity(recipe, pipeline, model, rows)
        assert (found.rows == rows.height) == compared
        assert found.rows >= 10_000
