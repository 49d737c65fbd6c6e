from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.dataset import TARGET, TIME, Dataset
from trimtab.trainer.errors import DataError
from trimtab.trainer.recipe import Recipe

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]
Rows = Callable[[pl.DataFrame, str], pl.DataFrame]


def test_nulls_become_nan_and_empty_and_numbers_are_rounded_to_float32(
    make_recipe: RecipeMaker,
) -> None:
    frame = pl.DataFrame(
        {
            "when": [2, 1],
            "size": [0.1, None],
            "age": [1, 2],
            "colour": [None, "red"],
            "value": [1.0, 2.0],
        }
    )
    data = Dataset.from_frame(make_recipe(), frame)
    inputs = data.inputs()
    assert inputs["numeric"].dtype == np.float32
    assert inputs["numeric"].flags.c_contiguous
    assert np.isnan(inputs["numeric"][0, 0])
    assert inputs["numeric"][1, 0] == np.float32(0.1)
    assert inputs["categorical"].tolist() == [["red"], [""]]
    assert data.target().tolist() == [2.0, 1.0]


def test_a_model_of_one_kind_of_column_has_only_that_input(make_recipe: RecipeMaker) -> None:
    frame = pl.DataFrame({"when": [1], "size": [1.0], "colour": ["red"], "value": [1.0]})
    numeric = Dataset.from_frame(make_recipe(numeric=["size"], categorical=[]), frame)
    assert set(numeric.inputs()) == {"numeric"}
    categorical = Dataset.from_frame(make_recipe(numeric=[]), frame)
    assert set(categorical.inputs()) == {"categorical"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_files_of_each_kind_give_the_same_rows(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker, suffix: str
) -> None:
    frame = make_frame(300).with_columns(pl.from_epoch("when", time_unit="ms"))
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if suffix == "csv" else "\t")
    data = Dataset.read(make_recipe(files=[str(path)]), None)
    assert data.sha256() == Dataset.from_frame(make_recipe(), frame).sha256()


def test_the_usual_spellings_of_a_missing_number_are_taken_from_a_csv(
    tmp_path: Path, make_recipe: RecipeMaker
) -> None:
    path = tmp_path / "data.csv"
    lines = ["when,size,age,colour,value"]
    lines += [f"{n},{['1.5', 'NA', '', 'null'][n % 4]},3,red,{n}" for n in range(200)]
    path.write_text("\n".join(lines))
    data = Dataset.read(make_recipe(files=[str(path)]), None)
    assert int(np.isnan(data.inputs()["numeric"][:, 0]).sum()) == 150


def test_rows_are_in_the_order_of_time_whatever_the_files_order(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    frame = make_frame(300)
    digests = set()
    for seed in range(3):
        shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
        path = tmp_path / f"{seed}.parquet"
        shuffled.write_parquet(path)
        digests.add(Dataset.read(make_recipe(files=[str(path)]), None).sha256())
    assert len(digests) == 1


def test_only_the_newest_rows_of_the_window_are_kept(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    make_frame(500).write_parquet(tmp_path / "a.parquet")
    recipe = make_recipe(files=[str(tmp_path / "a.parquet")], window_rows=120)
    data = Dataset.read(recipe, None)
    assert data.times().tolist() == make_frame(500)["when"].tail(120).to_list()


def test_labelled_traffic_joins_the_files_and_a_later_label_replaces_an_earlier_one(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    history = make_frame(200)
    live = make_frame(150, seed=2, start_ms=int(history["when"][-1]) + 1)
    history.write_parquet(tmp_path / "h.parquet")
    write_frames(tmp_path / "traffic/closed-00000001.frames", [served(live.head(100), "a")])
    write_frames(tmp_path / "traffic/active.frames", [served(live.tail(50), "b")])
    wrong = labels(live.head(100), "a").with_columns(number=pl.lit(-1.0))
    write_frames(tmp_path / "labels/closed-00000001.frames", [wrong])
    write_frames(tmp_path / "labels/active.frames", [labels(live.head(100), "a")])
    data = Dataset.read(make_recipe(files=[str(tmp_path / "h.parquet")]), tmp_path)
    assert len(data) == 300  # the last 50 served rows have no label yet
    assert data.target().tolist() == [*history["value"], *live.head(100)["value"]]
    assert np.array_equal(
        data.slice(200).inputs()["numeric"],
        Dataset.from_frame(make_recipe(), live.head(100)).inputs()["numeric"],
        equal_nan=True,
    )
    told = {source["path"]: source["rows"] for source in data.lineage()["sources"]}
    assert told["traffic/closed-00000001.frames"] == 100


def test_traffic_alone_is_enough_and_text_labels_make_text_classes(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(200, task="multiclass")
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [labels(live, "a")])
    data = Dataset.read(make_recipe("multiclass"), tmp_path)
    assert data.classes() == ("high", "low", "middle")


def test_labels_of_the_other_type_are_left_out_and_counted(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(200)
    told = labels(live, "a").with_columns(
        number=pl.when(pl.col("row") < 20).then(None).otherwise(pl.col("number")),
        text=pl.when(pl.col("row") < 20).then(pl.lit("?")),
    )
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [told])
    data = Dataset.read(make_recipe(), tmp_path)
    assert len(data) == 180
    assert data.dropped["labels of the other type"] == 20


def test_a_label_of_the_other_type_does_not_take_the_place_of_a_right_one(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(200)
    right = labels(live, "a")
    wrong = right.head(1).with_columns(number=None, text=pl.lit("x")).cast(right.schema)
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [right, wrong])
    data = Dataset.read(make_recipe(), tmp_path)
    assert len(data) == 200
    assert data.dropped["labels of the other type"] == 1


def test_traffic_that_lacks_a_column_of_the_recipe_is_left_out_and_counted(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    old, new = make_frame(130), make_frame(140, seed=3)
    frames = [served(old, "a").drop("in.age"), served(new, "b")]
    write_frames(tmp_path / "traffic/active.frames", frames)
    write_frames(tmp_path / "labels/active.frames", [labels(old, "a"), labels(new, "b")])
    data = Dataset.read(make_recipe(), tmp_path)
    assert len(data) == 140
    assert data.dropped["served rows without a column of the recipe"] == 130


def test_young_rows_are_left_out_labelled_or_not_and_counted(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    history = make_frame(200)
    live = make_frame(150, seed=2)  # of the same time: files hold no young rows
    history.write_parquet(tmp_path / "h.parquet")
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [labels(live.head(120), "a")])
    recipe = make_recipe(files=[str(tmp_path / "h.parquet")])
    until = int(live["when"][99])
    data = Dataset.read(recipe, tmp_path, until)
    assert len(data) == 300, "200 of the file, 100 of the log"
    assert data.dropped == {"served rows younger than label_maturity_s": 50}
    assert data.lineage()["dropped"] == data.dropped
    later = Dataset.read(recipe, tmp_path, int(live["when"][-1]))
    assert later.dropped == {} and later.sha256() == Dataset.read(recipe, tmp_path).sha256()


def test_where_all_served_rows_are_young_the_files_are_what_is_left(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(150)
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [labels(live, "a")])
    with pytest.raises(DataError, match=r"0 labelled rows.*150 served rows younger than label_mat"):
        Dataset.read(make_recipe(), tmp_path, 0)
    make_frame(200).write_parquet(tmp_path / "h.parquet")
    recipe = make_recipe(files=[str(tmp_path / "h.parquet")])
    assert len(Dataset.read(recipe, tmp_path, 0)) == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename({"size": "sizes"}), "has no column 'size'; did you mean 'sizes'?"),
        (lambda f: f.drop("value"), "has no column 'value'"),
        (lambda f: f.drop("when"), "has no column 'when'"),
        (
            lambda f: f.with_columns(age=pl.lit(None, pl.Float64)),
            "the numeric column 'age' has no value in any of the 300 newest labelled rows",
        ),
        (
            lambda f: f.with_columns(colour=pl.lit(None, pl.String)),
            "the categorical column 'colour' has no value in any of the 300",
        ),
        (
            lambda f: f.with_columns(size=pl.lit("ten")),
            "the numeric column 'size' of {file} holds 'ten', not a number",
        ),
        (
            lambda f: f.with_columns(size=pl.lit("2024-01-01").str.to_date()),
            "holds Date, not numbers",
        ),
        (
            lambda f: f.with_columns(size=pl.col("size") * 1e-3 + 1.7e12),
            "does not fit into float32",
        ),
        (lambda f: f.with_columns(colour=pl.col("size")), "holds Float64, not text"),
        (lambda f: f.with_columns(value=pl.lit("x")), "the target 'value' of {file} holds 'x'"),
        (
            lambda f: f.with_columns(value=pl.lit(None, pl.Float64)),
            "there are 0 labelled rows, and min_rows asks for 100 (left out: 300 rows without",
        ),
        (lambda f: f.with_columns(value=pl.lit(1.0)), "has the same value in every row"),
        (lambda f: f.with_columns(when=pl.lit("now")), "holds 'now', which is not a date and"),
        (lambda f: f.with_columns(when=pl.lit(1.5)), "holds Float64, neither times nor whole"),
        (lambda f: f.head(50), "there are 50 labelled rows, and min_rows asks for 100"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence_that_names_it(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    change: Callable[[pl.DataFrame], pl.DataFrame],
    message: str,
) -> None:
    file = tmp_path / "data.parquet"
    change(make_frame(300)).write_parquet(file)
    with pytest.raises(DataError) as caught:
        Dataset.read(make_recipe(files=[str(file)]), None)
    assert message.format(file=file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", None, "does not exist"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.parquet", b"", "cannot be read"),
        ("a.csv", b"", "cannot be read"),
        ("a.csv", b"when,size,age,colour,value\n1,2\n1,2,3,4,5,6,7,8\n", "cannot be read"),
        ("a.xlsx", b"x", "is neither .parquet nor .csv nor .tsv"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, make_recipe: RecipeMaker, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Dataset.read(make_recipe(files=[str(path)]), None)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_files_and_no_labels_say_what_is_missing(
    tmp_path: Path, make_recipe: RecipeMaker
) -> None:
    with pytest.raises(DataError, match="there are no labelled rows"):
        Dataset.read(make_recipe(), tmp_path)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("binary", [0, 1, 2], "has 3 different values, and a binary task needs exactly 2"),
        ("multiclass", [0.5, 1.0, 2.0], "holds fractions, and task is 'multiclass'"),
    ],
)
def test_a_target_that_does_not_fit_the_task_is_refused(
    make_recipe: RecipeMaker, make_frame: FrameMaker, task: str, values: list[Any], message: str
) -> None:
    frame = make_frame(300).with_columns(value=pl.Series(values * 100))
    with pytest.raises(DataError, match=message):
        Dataset.from_frame(make_recipe(task), frame).check()


@pytest.mark.parametrize("values", [[False, True], [0, 1], [0.0, 1.0]])
def test_booleans_whole_numbers_and_whole_floats_are_the_same_classes(
    make_recipe: RecipeMaker, make_frame: FrameMaker, values: list[Any]
) -> None:
    frame = make_frame(200).with_columns(value=pl.Series(values * 100))
    assert Dataset.from_frame(make_recipe("binary"), frame).classes() == (0, 1)


def test_a_frames_form_is_what_the_module_promises(
    make_recipe: RecipeMaker, make_frame: FrameMaker
) -> None:
    frame = Dataset.from_frame(make_recipe(), make_frame(100)).frame
    assert frame.schema == {
        "size": pl.Float32,
        "age": pl.Float32,
        "colour": pl.String,
        TARGET: pl.Float64,
        TIME: pl.Int64,
    }
    assert sum(frame.null_count().row(0)) == 0
