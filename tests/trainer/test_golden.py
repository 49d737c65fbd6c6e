from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from trimtab.trainer.dataset import Dataset, tensors
from trimtab.trainer.export import OnnxModel, export
from trimtab.trainer.fit import fit
from trimtab.trainer.golden import golden_rows, save_golden
from trimtab.trainer.parity import parity_rows
from trimtab.trainer.recipe import Recipe


def test_the_file_needs_no_pickle_and_replays_to_the_same_outputs(
    tmp_path: Path, make_frame: Callable[..., pl.DataFrame], make_recipe: Callable[..., Recipe]
) -> None:
    recipe = make_recipe("multiclass")
    data = Dataset.from_frame(recipe, make_frame(task="multiclass"))
    model = OnnxModel(export(recipe, fit(recipe, data)))
    save_golden(
        tmp_path / "golden.npz", golden_rows(model, tensors(recipe, parity_rows(recipe, data)))
    )
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert set(arrays) == {
        "input/numeric",
        "input/categorical",
        "output/label",
        "output/probabilities",
    }
    assert arrays["input/numeric"].dtype == np.float32
    assert arrays["input/categorical"].dtype.kind == "U"
    assert len(arrays["output/label"]) == 256
    found = model.run(
        {
            "numeric": arrays["input/numeric"],
            "categorical": arrays["input/categorical"].astype(object),
        }
    )
    assert np.array_equal(found["probabilities"], arrays["output/probabilities"])
    assert np.array_equal(found["label"].astype(str), arrays["output/label"])


def test_strings_that_numpy_would_cut_are_not_taken() -> None:
    class Echo:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"out": inputs["categorical"]}

    texts = np.array([["a"], ["nul\0"], ["x" * 1000], ["é"]], dtype=object)
    arrays = golden_rows(Echo(), {"categorical": texts})  # type: ignore[arg-type]  # runs likewise
    assert arrays["input/categorical"].tolist() == [["a"], ["é"]]
