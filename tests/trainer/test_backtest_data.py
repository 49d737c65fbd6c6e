"""What a backtest makes of data that it was told little about."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab.trainer.backtest_data import DataRequest, infer_task, load, prepare
from trimtab.trainer.errors import DataError

ROWS = 400


def table(**columns: Any) -> pl.DataFrame:
    """400 rows over eight months, in reverse order."""
    start = datetime(2020, 1, 1)
    base: dict[str, Any] = {
        "when": [start + timedelta(hours=14.6 * row) for row in range(ROWS)],
        "y": [row * 0.5 for row in range(ROWS)],
        "x": [float(row % 7) for row in range(ROWS)],
        "kind": ["ab"[row % 2] for row in range(ROWS)],
    }
    return pl.DataFrame({**base, **columns}).reverse()


def request(**changes: Any) -> DataRequest:
    return DataRequest(**{"path": Path("data.parquet"), "target": "y", "time": "when", **changes})


def test_rows_come_out_in_the_order_of_time() -> None:
    dataset = prepare(table(), request())
    assert dataset.frame["y"].to_list() == [row * 0.5 for row in range(ROWS)]
    assert (np.diff(dataset.times_ms) >= 0).all()
    assert dataset.times_ms[0] == 1577836800000


def test_numbers_are_numeric_text_is_categorical_and_the_rest_is_named_and_left_out() -> None:
    data = table(
        flag=[row % 3 == 0 for row in range(ROWS)],
        day=[datetime(2020, 1, 1 + row % 28).date() for row in range(ROWS)],
        always=[3.0] * ROWS,
        number=[1_000 + row for row in range(ROWS)],
        bought=[f"{1 + row % 12:02d}/{1 + row % 28:02d}/2019" for row in range(ROWS)],
        name=[f"row {row}" for row in range(ROWS)],
        late=[None] * 100 + [1.0] * 300,
    )
    dataset = prepare(data, request())
    assert dataset.numeric == ("x", "flag")
    assert dataset.categorical == ("kind",)
    left = next(note for note in dataset.notes if note.startswith("Left out"))
    assert left == (
        "Left out: day (a date: its parts may be columns of their own), always (one value only), "
        "number (another number in every row: an identifier), bought (a date), "
        "name (text that hardly repeats), late (empty in the first period)."
    )
    assert dataset.frame.columns == ["when", "y", "x", "flag", "kind"]
    assert dataset.frame.schema["flag"] == pl.Float32


def test_whole_numbers_of_few_values_are_codes_if_the_first_period_has_them_all() -> None:
    shop = [row % 4 for row in range(ROWS)]
    quarter = [row // 100 for row in range(ROWS)]
    dataset = prepare(table(shop=shop, quarter=quarter), request())
    assert dataset.categorical == ("kind", "shop")
    assert dataset.numeric == ("x", "quarter")
    assert any("Taken for codes" in note and "shop" in note for note in dataset.notes)


def test_rows_dealt_out_over_all_times_keep_the_times_and_the_rows() -> None:
    as_is = prepare(table(), request())
    shuffled = prepare(table(), request(order="shuffle", seed=4))
    assert (shuffled.times_ms == as_is.times_ms).all()
    assert sorted(shuffled.frame["y"]) == as_is.frame["y"].to_list()
    first = shuffled.frame["y"].slice(0, as_is.periods[0].rows)
    assert 60 < float(first.mean()) < 140, "the first period has rows of every month"  # type: ignore[arg-type]  # it is a number


def test_a_csv_that_nobody_prepared_is_read(tmp_path: Path) -> None:
    lines = ["id;Datum;Preis;Größe;Ort;ja;kaputt;y"]
    for row in range(ROWS):
        day = f"{1 + row % 28:02d}.{1 + row * 12 // ROWS:02d}.2021"
        gone = "?" if row % 7 == 0 else str(row % 90)
        lines.append(
            f"{row};{day};1.{row:03d},50;{row % 13},5;Köln{row % 3};"
            f"{'true' if row % 2 else 'false'};{gone};{row % 40}"
        )
    path = tmp_path / "alt.csv"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    dataset = load(DataRequest(path=path, target="y", time="Datum"))
    assert dataset.numeric == ("Preis", "Größe", "ja", "kaputt")
    assert dataset.categorical == ("Ort",)
    assert "Datum is read as %d.%m.%Y." in dataset.notes
    assert len(dataset.periods) == 12
    assert dataset.frame["Preis"].max() == pytest.approx(1399.5)
    assert dataset.frame["kaputt"].null_count() == len(range(0, ROWS, 7))


def test_named_columns_are_taken_and_the_others_are_not() -> None:
    data = table(z=list(range(ROWS)), code=[row % 5 for row in range(ROWS)])
    dataset = prepare(data, request(numeric=("z",), categorical=("code",)))
    assert (dataset.numeric, dataset.categorical) == (("z",), ("code",))
    assert dataset.frame.schema["code"] == pl.String
    assert "Not used: x, kind." in dataset.notes


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0.5, 1.5, 2.5], "regression"),
        ([0.0, 1.0, 2.0], "multiclass"),
        ([0, 1], "binary"),
        (["yes", "no"], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([True, False], "binary"),
        (list(range(21)), "regression"),
        (list(range(20)), "multiclass"),
    ],
)
def test_the_task_follows_from_the_targets_values(values: list[Any], task: str) -> None:
    assert infer_task(pl.Series(values)) == task


def test_classification_is_binary_or_multiclass_by_the_number_of_classes() -> None:
    two = table(y=[row % 2 for row in range(ROWS)])
    three = table(y=["abc"[row % 3] for row in range(ROWS)])
    assert prepare(two, request(task="classification")).task == "binary"
    dataset = prepare(three, request(task="classification"))
    assert (dataset.task, dataset.classes) == ("multiclass", ("a", "b", "c"))


def test_a_boolean_target_becomes_the_classes_0_and_1() -> None:
    dataset = prepare(table(y=[row % 2 == 0 for row in range(ROWS)]), request())
    assert dataset.classes == (0, 1)
    assert dataset.frame.schema["y"] == pl.Int64


def test_calendar_months_are_the_periods_where_there_are_three() -> None:
    dataset = prepare(table(), request())
    names = [period.name for period in dataset.periods]
    assert names == [f"2020-{month:02d}" for month in range(1, 9)]
    assert dataset.periods[0].start == 0
    assert dataset.periods[-1].stop == ROWS
    for before, after in zip(dataset.periods, dataset.periods[1:], strict=False):
        assert before.stop == after.start


def test_ten_equal_slices_are_the_periods_of_a_shorter_history() -> None:
    start = datetime(2020, 1, 1)
    data = table(when=[start + timedelta(minutes=row) for row in range(ROWS)])
    dataset = prepare(data, request())
    assert [period.rows for period in dataset.periods] == [40] * 10
    assert dataset.periods[0].name == "slice 1"


def test_every_cuts_periods_of_that_length() -> None:
    dataset = prepare(table(), request(every="1q"))
    assert [period.name for period in dataset.periods] == ["2020-01", "2020-04", "2020-07"]


def test_only_the_first_periods_are_taken_where_that_was_asked_for() -> None:
    dataset = prepare(table(), request(last_period=2))
    assert [period.name for period in dataset.periods] == ["2020-01", "2020-02"]
    assert dataset.frame.height == dataset.periods[-1].stop


def test_a_period_column_names_the_periods() -> None:
    data = table(season=["s1"] * 150 + ["s2"] * 250)
    dataset = prepare(data, request(period="season"))
    assert [(period.name, period.rows) for period in dataset.periods] == [("s1", 150), ("s2", 250)]
    assert "season" not in dataset.categorical


def test_the_times_own_column_can_be_the_period() -> None:
    data = table(when=[datetime(2020, 1 + row // 100, 1) for row in range(ROWS)])
    dataset = prepare(data, request(period="when"))
    assert [period.rows for period in dataset.periods] == [100] * 4


def test_shuffling_keeps_the_times_and_moves_rows_only_inside_their_period() -> None:
    plain = prepare(table(), request())
    shuffled = prepare(table(), request(order="shuffle-within-period", seed=3))
    assert (plain.times_ms == shuffled.times_ms).all()
    assert plain.frame["y"].to_list() != shuffled.frame["y"].to_list()
    for period in plain.periods:
        rows = slice(period.start, period.stop)
        assert sorted(shuffled.frame["y"][rows]) == sorted(plain.frame["y"][rows])
    # A row stays whole: x is a function of y.
    assert (shuffled.frame["x"] == (shuffled.frame["y"] * 2 % 7)).all()
    again = prepare(table(), request(order="shuffle-within-period", seed=3))
    other = prepare(table(), request(order="shuffle-within-period", seed=4))
    assert again.frame.equals(shuffled.frame)
    assert not other.frame.equals(shuffled.frame)


def test_rows_without_a_target_are_dropped_and_counted() -> None:
    data = table(y=[None, float("nan"), float("inf")] + [row * 0.5 for row in range(ROWS - 3)])
    dataset = prepare(data, request())
    assert dataset.frame.height == ROWS - 3
    assert "3 rows without a value of y were dropped." in dataset.notes


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (1, "seconds"),
        (1_000, "milliseconds"),
        (1_000_000, "microseconds"),
        (1_000_000_000, "nanoseconds"),
    ],
)
def test_whole_numbers_are_a_time_in_the_unit_of_their_size(factor: int, unit: str) -> None:
    seconds = [1577836800 + 52_000 * row for row in range(ROWS)]
    dataset = prepare(table(when=[value * factor for value in seconds]), request())
    assert dataset.times_ms.tolist() == [value * 1000 for value in seconds]
    assert f"when is taken for {unit} since 1970." in dataset.notes


def test_text_of_numbers_is_numeric_where_it_was_told_to_be() -> None:
    data = table(size=[str(row) for row in range(ROWS)])
    dataset = prepare(data, request(numeric=("size",)))
    assert dataset.frame["size"].to_list() == [float(row) for row in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({}, {"target": "z"}, "no column 'z'; there are when, y, x, kind"),
        ({}, {"numeric": ("kind",)}, "column 'kind' is text, not numbers"),
        ({}, {"numeric": ("x",), "categorical": ("x",)}, "both numeric and categorical"),
        ({}, {"numeric": ("y",)}, "column 'y' cannot be a feature: it is the target"),
        ({}, {"task": "binary"}, "column 'y' has 400 different values; at most 100 classes"),
        ({}, {"task": "regression", "target": "kind"}, "no number to regress on"),
        ({}, {"every": "3 fortnights"}, "--every 3 fortnights: must be a number and one of"),
        ({}, {"every": "9y"}, "there is one period only"),
        ({}, {"period": "kind"}, "is not one stretch of time"),
        ({}, {"period": "kind", "every": "1d"}, "cannot both be given"),
        ({"when": ["soon"] * ROWS}, {}, "text that cannot be read as a time: 'soon'"),
        ({"when": [0.5] * ROWS}, {}, "must be a time, a date or a whole number"),
        ({"when": [None] * ROWS}, {}, "column 'when' is Null"),
        ({"when": [datetime(1965, 1, 1)] * ROWS}, {}, "has times before 1970"),
        ({"y": [1.0] * ROWS}, {}, "has one value only"),
        ({"y": [None] * ROWS}, {}, "has no value in any row"),
        (
            {"y": ["a"] * 300 + ["b"] * 100},
            {},
            "the first period, 2020-01, has one class of 'y' only ('a')",
        ),
    ],
)
def test_what_cannot_be_used_is_one_clear_sentence(
    columns: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as error:
        prepare(table(**columns), request(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_time_that_is_missing_in_some_rows_is_counted() -> None:
    when = [None, None, *table()["when"].to_list()[2:]]
    with pytest.raises(DataError, match="column 'when' is empty in 2 of 400 rows"):
        prepare(table().with_columns(pl.Series("when", when)), request())


def test_csv_and_parquet_give_the_same_dataset(tmp_path: Path) -> None:
    table().write_parquet(tmp_path / "data.parquet")
    table().write_csv(tmp_path / "data.csv")
    one = load(request(path=tmp_path / "data.parquet"))
    two = load(request(path=tmp_path / "data.csv"))
    assert one.frame.equals(two.frame)
    assert one.periods == two.periods


@pytest.mark.parametrize("name", ["data.parquet", "data.csv", "data.xlsx"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="no such file"):
        load(request(path=path))
    path.write_bytes(b"\x00\x01 not a table")
    with pytest.raises(DataError, match=name):
        load(request(path=path))
