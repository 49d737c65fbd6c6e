"""What becomes of labels in the log that no model could have: left out and counted, or refused."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.trainer.conftest import FrameMaker, FrameWriter, RecipeMaker
from trimtab.trainer.data_quality import DataQualityError, check
from trimtab.trainer.dataset import TARGET, Dataset
from trimtab.trainer.errors import DataError

ROWS = 600


@pytest.fixture
def logged(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker, write_frames: FrameWriter
) -> Any:
    """A dataset of served rows whose labels are those of the frame, with some told otherwise."""

    def read(task: str, told: dict[int, Any], *, history: bool = False) -> Dataset:
        frame = make_frame(ROWS, task=task)
        keys = {
            "id": [f"call-{at}" for at in range(ROWS)],
            "row": pl.Series([0] * ROWS, dtype=pl.UInt32),
        }
        features = {f"in.{name}": frame[name] for name in ("size", "age", "colour")}
        traffic = pl.DataFrame({**keys, "event_time": frame["when"], **features})
        values = [told.get(at, value) for at, value in enumerate(frame["value"].to_list())]
        numbers = [None if isinstance(value, str) else float(value) for value in values]
        texts = [value if isinstance(value, str) else None for value in values]
        labels = pl.DataFrame(
            {
                **keys,
                "number": pl.Series(numbers, dtype=pl.Float64),
                "text": pl.Series(texts, dtype=pl.String),
                "event_time": frame["when"],
            }
        )
        write_frames(tmp_path / "traffic" / "active.frames", [traffic])
        write_frames(tmp_path / "labels" / "active.frames", [labels])
        files = {}
        if history:
            earlier = make_frame(ROWS, task=task, seed=2)
            earlier.write_parquet(tmp_path / "history.parquet")
            files = {"files": [str(tmp_path / "history.parquet")]}
        return Dataset.read(make_recipe(task, **files), tmp_path)

    return read


@pytest.mark.parametrize("poison", [1e300, -1e39, float("nan"), float("inf")])
def test_a_number_that_float32_has_not_is_no_target(logged: Any, poison: float) -> None:
    dataset = logged("regression", {5: poison, 6: poison})
    assert len(dataset) == ROWS - 2 and dataset.dropped == {"rows without a target": 2}
    assert abs(dataset.target()).max() < 100


@pytest.mark.parametrize("poison", [1e30, -1e12])
def test_a_number_that_is_not_of_this_world_is_left_out_and_counted(
    logged: Any, poison: float
) -> None:
    dataset = logged("regression", {5: poison, 6: poison})
    assert len(dataset) == ROWS - 2
    assert sum(dataset.dropped.values()) == 2
    assert any("1,000 usual spreads" in why for why in dataset.dropped)
    assert abs(dataset.target()).max() < 100


def test_labels_of_the_other_type_are_left_out_and_counted(logged: Any) -> None:
    for task, poison in (("regression", "12.5"), ("multiclass", 3.0)):
        dataset = logged(task, {5: poison, 6: poison})
        assert len(dataset) == ROWS - 2 and dataset.dropped == {"labels of the other type": 2}


def test_a_third_class_of_a_binary_model_is_told_and_trained_on_by_nobody(logged: Any) -> None:
    with pytest.raises(DataError, match=r"has 3 different values: .*, 7 \(1 row\), and a binary"):
        logged("binary", {5: 7.0})


def test_a_class_that_was_never_seen_is_one_more_of_a_multiclass_model(logged: Any) -> None:
    dataset = logged("multiclass", dict.fromkeys(range(20), "very high"))
    assert dataset.classes() == ("high", "low", "middle", "very high")


def test_labels_of_one_class_alone_are_refused_with_or_without_a_history(logged: Any) -> None:
    """Frauds get reported, all-clears never are."""
    ones = dict.fromkeys(range(ROWS), 1)
    with pytest.raises(DataError, match=r"has 1 different values: 1 .*, and a binary task"):
        logged("binary", ones)
    dataset = logged("binary", ones, history=True)
    assert set(dataset.frame[TARGET].unique()) == {0, 1}
    with pytest.raises(DataQualityError, match="labels of the other classes seem never to come"):
        check(dataset, None)
