from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.dataset import TARGET, TIME, Dataset
from trimtab.trainer.errors import DataError
from trimtab.trainer.history_files import history_files
from trimtab.trainer.log_reader import roll
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
        ("binary", [0, 1, 2], "has 3 different values: .*, and a binary task needs exactly 2"),
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


def test_patterns_directories_and_hive_columns_give_the_rows_of_their_files(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    whole = make_frame(300).with_columns(pl.col("colour").fill_null("grey"))
    for colour, part in whole.partition_by("colour", as_dict=True).items():
        folder = tmp_path / "hive" / f"colour={colour[0]}"
        folder.mkdir(parents=True)
        part.drop("colour").write_parquet(folder / "part.parquet")
    (tmp_path / "hive" / "_being_written.parquet").write_bytes(b"half")
    for number in range(3):
        part = whole.slice(100 * number, 100)
        part.write_csv(tmp_path / f"{number}.csv", null_value="NA")
    expected = Dataset.from_frame(make_recipe(), whole).sha256()
    hive = Dataset.read(make_recipe(data=[str(tmp_path / "hive")]), None)
    assert hive.sha256() == expected
    several = Dataset.read(make_recipe(data=[str(tmp_path / "*.csv")]), None)
    assert several.sha256() == expected
    assert [Path(source.path).name for source in several.sources] == ["0.csv", "1.csv", "2.csv"]
    assert [source.rows for source in several.sources] == [100, 100, 100]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_pattern_that_names_nothing_is_an_error(
    tmp_path: Path, make_recipe: RecipeMaker, prefix: str
) -> None:
    with pytest.raises(DataError, match=r"\*\.parquet"):
        Dataset.read(make_recipe(data=[f"{prefix}{tmp_path}/*.parquet"]), None)


def test_objects_behind_a_url_are_listed_once_and_read_like_files(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    frame = make_frame(300)
    frame.head(100).write_parquet(tmp_path / "b.parquet")
    frame.tail(200).write_parquet(tmp_path / "a.parquet")
    data = Dataset.read(make_recipe(data=[f"file://{tmp_path}/*.parquet"]), None)
    assert data.sha256() == Dataset.from_frame(make_recipe(), frame).sha256()
    assert [source.rows for source in data.sources] == [200, 100]
    one = Dataset.read(make_recipe(data=[f"file://{tmp_path}/a.parquet"]), None)
    assert len(one) == 200


def test_a_file_that_comes_after_the_snapshot_belongs_to_the_next_training(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    make_frame(200).write_parquet(tmp_path / "a.parquet")
    recipe = make_recipe(data=[str(tmp_path / "*.parquet")])
    files = history_files(recipe)
    make_frame(100, seed=5).write_parquet(tmp_path / "b.parquet")
    assert sum(batch.height for file in files for batch in file.batches(["size"])) == 200
    assert len(Dataset.read(recipe, None)) == 300


def test_words_for_a_missing_target_are_no_class_and_categories_keep_theirs(
    tmp_path: Path, make_recipe: RecipeMaker
) -> None:
    lines = ["when,size,age,colour,value"]
    lines += [f"{n},1.5,{n},NA,{['0', '1', 'NA'][n % 3]}" for n in range(300)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = Dataset.read(make_recipe("binary", files=[str(tmp_path / "data.csv")]), None)
    assert data.classes() == (0, 1)
    assert data.dropped == {"rows without a target": 100}
    assert set(data.frame["colour"]) == {"NA"}


def test_of_a_window_that_is_too_large_a_sample_is_taken_and_the_lineage_says_which(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    frame = make_frame(4_000)
    frame.head(3_000).write_parquet(tmp_path / "h.parquet")
    live = frame.tail(1_000)
    write_frames(tmp_path / "traffic/active.frames", [served(live, "a")])
    write_frames(tmp_path / "labels/active.frames", [labels(live, "a")])
    settings: dict[str, Any] = {"files": [str(tmp_path / "h.parquet")], "window_rows": 800}
    recipe = make_recipe(**settings, period="500s", history=0.25, weights="sampling")
    data = Dataset.read(recipe, tmp_path)
    told = data.lineage()["sampling"]
    assert told["window_taken"] == 600
    assert told["rate"] == pytest.approx(600 / told["window_rows"])
    assert told["history"]["taken"] == 200
    assert sum(stratum["rows"] for stratum in told["strata"]) == told["window_rows"]
    weights = data.weights()
    assert weights is not None and len(weights) == len(data) == 800
    assert weights.sum() == pytest.approx(4_000, rel=1e-4)
    assert data.times().tolist() == sorted(data.times().tolist())
    assert data.slice(700).weights() is not None
    # Every row is a real one: the label it was given, the columns it was served with.
    whole = Dataset.from_frame(make_recipe(), frame)
    known = {tuple(row) for row in whole.frame.fill_nan(None).iter_rows()}
    taken = data.frame.drop("trimtab.weight").fill_nan(None).iter_rows()
    assert all(tuple(row) in known for row in taken)
    # The same inputs and seed give the same bytes, another seed another sample.
    assert Dataset.read(recipe, tmp_path).sha256() == data.sha256()
    other = make_recipe(**settings, period="500s", history=0.25, seed=1)
    assert Dataset.read(other, tmp_path).sha256() != data.sha256()
    assert Dataset.read(other, tmp_path).weights() is None


def test_memory_bounds_the_rows_that_are_taken(
    tmp_path: Path, make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    recipe = make_recipe(files=[str(tmp_path / "h.parquet")], window_rows=1_000_000, sample_mb=1)
    rows = recipe.sample_rows
    make_frame(rows + 3_000).write_parquet(tmp_path / "h.parquet")
    data = Dataset.read(recipe, None)
    assert len(data) == rows
    assert data.frame.estimated_size() < 2**20
    assert data.lineage()["sampling"]["rate"] == pytest.approx(rows / (rows + 3_000))


def test_a_rolled_log_gives_the_same_rows_as_its_frames(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(2_000)
    pieces = [live.slice(500 * at, 500) for at in range(4)]
    frames = [served(piece, f"r{at}") for at, piece in enumerate(pieces)]
    write_frames(tmp_path / "traffic/closed-00000001.frames", frames[:2])
    write_frames(tmp_path / "traffic/closed-00000002.frames", frames[2:])
    told = [labels(piece, f"r{at}") for at, piece in enumerate(pieces)]
    write_frames(tmp_path / "labels/closed-00000001.frames", told)
    recipe = make_recipe(window_rows=300, period="400s")
    before = Dataset.read(recipe, tmp_path)
    roll(tmp_path)
    after = Dataset.read(recipe, tmp_path)
    assert len(before) == 300
    assert after.sha256() == before.sha256()


def test_a_row_that_was_logged_twice_counts_once_and_is_told(
    tmp_path: Path,
    make_frame: FrameMaker,
    make_recipe: RecipeMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    live = make_frame(200)
    frames = [served(live, "a"), served(live.head(30), "a")]
    write_frames(tmp_path / "traffic/active.frames", frames)
    write_frames(tmp_path / "labels/active.frames", [labels(live, "a")])
    data = Dataset.read(make_recipe(), tmp_path)
    assert len(data) == 200
    assert data.labels.duplicates == 30
    assert (data.labels.served, data.labels.labels, data.labels.rows) == (230, 200, 200)
