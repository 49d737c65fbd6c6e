"""Files of labels, right and poisoned: what is read, what is counted, what is said."""

import datetime
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trimtab.server.services import feedback_service
from trimtab.trainer import label_file
from trimtab.trainer.errors import DataError
from trimtab.trainer.label_file import LabelFile, LabelFileReport, Wanted, send


def read(path: Path, wanted: Wanted = "any") -> tuple[LabelFileReport, list[dict[str, Any]]]:
    with LabelFile(path, wanted, 100) as file:
        report = file.check()
        return report, [] if report.unreadable else list(file.lines())


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A Parquet file of these columns, or a CSV file of this text."""

    def write(content: dict[str, Any] | str, name: str = "") -> Path:
        if isinstance(content, str):
            path = tmp_path / (name or "x.csv")
            path.write_text(content)
        else:
            path = tmp_path / (name or "x.parquet")
            pl.DataFrame(content, strict=False).write_parquet(path)
        return path

    return write


def test_labels_come_in_the_order_of_the_file_and_rows_without_one_are_counted(
    written: Callable[..., Path],
) -> None:
    path = written(
        {"label": [1.5, None, 2.0, 3.0], "id": ["b", "c", "a", "b"], "row": [1, 0, 0, 1]}
    )
    report, lines = read(path)
    assert report == LabelFileReport(rows=4, labels=3, unlabelled=1, repeated=1)
    assert lines == [{"id": ["b", "a", "b"], "row": [1, 0, 1], "label": [1.5, 2.0, 3.0]}]


def test_times_of_every_form_are_milliseconds(written: Callable[..., Path]) -> None:
    day = datetime.datetime(2024, 1, 1)
    _, lines = read(written({"id": ["a"], "label": [True], "time": [day]}))
    assert lines == [{"id": ["a"], "row": [0], "label": [1.0], "time": [1_704_067_200_000]}]
    text = "id,label,time\na,0,1704067200000\nb,1,2024-01-01T01:00:00+01:00\n"
    text += "c,1,2024-01-01\nd,1,2024-01-01 00:00:00.000Z\ne,1,2024-01-01T00:00:00\n"
    _, lines = read(written(text))
    assert lines[0]["time"] == [1_704_067_200_000] * 5
    report, _ = read(written("id,label,time\na,0,yesterday\n"))
    assert "the column 'time' has 'yesterday', neither a time" in report.problems[0]


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [("any", [1.0, 2.5]), ("number", [1.0, 2.5]), ("text", ["1", "2.5"])],
)
def test_a_csv_file_has_labels_of_the_models_type(
    written: Callable[..., Path], wanted: Wanted, labels: list[Any]
) -> None:
    report, lines = read(written("id,label\n007,1\nb,\nc,2.5\n"), wanted)
    assert (report.labels, report.unlabelled) == (2, 1)
    assert lines == [{"id": ["007", "c"], "row": [0, 0], "label": labels}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": None}, "row 2: the column 'id' is empty"),
        ({"id": ""}, "row 2: the column 'id' is empty"),
        ({"id": "x" * 1025}, "row 2: its id is longer than 1,024 bytes"),
        ({"row": None}, "row 2 (id 'b'): the column 'row' has None, not a whole number"),
        ({"row": 0.5}, "row 2 (id 'b'): the column 'row' has 0.5, not a whole number"),
        ({"row": 100}, "the column 'row' has 100, which is none: a request has at most 100"),
        ({"row": -1}, "the column 'row' has -1, which is none"),
        ({"label": float("nan")}, "row 2 (id 'b'): the column 'label' has nan, not a number"),
        ({"label": float("inf")}, "the column 'label' has inf, not a number"),
        ({"label": -1e300}, "the column 'label' has -1e+300, which is beyond float32"),
        ({"time": None}, "the column 'time' has None, neither a time from 1970 on"),
        ({"time": -5}, "the column 'time' has -5, neither a time from 1970 on"),
    ],
)
def test_one_row_that_cannot_be_read_is_named_and_counted(
    written: Callable[..., Path], row: dict[str, Any], message: str
) -> None:
    wrong = {"id": "b", "row": 1, "label": 2.0, "time": 7, **row}
    rows = [{"id": "a", "row": 0, "label": 1.0, "time": 7}, wrong, {**wrong, **row}]
    path = written({name: [each[name] for each in rows] for name in wrong})
    report, lines = read(path)
    assert (report.rows, report.labels, report.unreadable) == (3, 1, 2)
    assert message in report.problems[0] and not lines
    told: list[dict[str, Any]] = []
    reason = send(path, "any", 100, told.append)
    assert reason.startswith("2 of its 3 rows cannot be taken: row 2")
    assert [[*each] for each in told] == [["counts"]], "no label of a file that is refused"


def test_of_many_wrong_rows_the_first_are_named_and_all_are_counted(
    written: Callable[..., Path],
) -> None:
    report, _ = read(written("id,label\n" + "a,one\n" * 50_000), "number")
    assert report.unreadable == 50_000 and len(report.problems) == 20
    assert report.problems[19] == "row 20 (id 'a'): the column 'label' has 'one', not a number"


@pytest.mark.parametrize(
    ("content", "wanted", "message"),
    [
        ({"id": ["a"], "label": ["x"]}, "number", "'label' holds String, not numbers"),
        ({"id": ["a"], "label": [1]}, "text", "'label' holds Int64, not text"),
        ({"id": ["a"], "label": [[1]]}, "any", "'label' holds List(Int64), not numbers or text"),
        ({"id": [0.5], "label": [1]}, "any", "'id' holds Float64, not text or whole numbers"),
        ({"id": ["a"], "label": [1], "row": ["0"], "time": [0.5]}, "any", "'time' holds Float64"),
        ({"id": ["a"], "truth": [1]}, "any", "has no column 'label': it has 'id', 'truth'"),
        ({"id": ["a"], "label": [1], "score": [1]}, "any", "has a column 'score': known are id,"),
        ({"id": [], "label": []}, "any", "'id' holds Null, not text or whole numbers"),
        ("", "any", "is empty"),
        ("id,label\n", "any", "has no rows"),
        ("id,label\na,1,2\n", "any", "cannot be read: found more fields"),
    ],
)
def test_a_file_that_is_no_file_of_labels_is_refused_in_a_sentence(
    written: Callable[..., Path], content: dict[str, Any] | str, wanted: Wanted, message: str
) -> None:
    told: list[dict[str, Any]] = []
    path = written(content)
    with pytest.raises(DataError) as error:
        send(path, wanted, 100, told.append)
    assert message in str(error.value) and not told


def test_what_only_looks_like_a_file_is_refused(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    whole = written({"id": ["a"] * 1000, "label": [1] * 1000})
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "directory.parquet").mkdir()
    (tmp_path / "link.parquet").symlink_to(whole)
    os.mkfifo(tmp_path / "pipe.parquet")
    for name, message in (
        ("half.parquet", "cannot be read: parquet: "),
        ("directory.parquet", "is no file"),
        ("link.parquet", "is a symbolic link"),
        ("pipe.parquet", "is no file"),
        ("absent.parquet", "cannot be opened: No such file"),
        ("x.xlsx", "is neither .parquet nor .csv nor .tsv"),
    ):
        if name == "x.xlsx":
            whole.rename(tmp_path / name)
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def test_more_rows_than_are_taken_at_once_are_refused_before_they_are_read(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_file, "MAX_ROWS", 3)
    for content in ({"id": ["a"] * 4, "label": [1] * 4}, "id,label\n" + "a,1\n" * 4):
        with pytest.raises(DataError, match="has more than 3 rows"):
            read(written(content))


def test_a_file_that_changes_while_it_is_read_is_refused(written: Callable[..., Path]) -> None:
    path = written("id,label\na,1\n")
    with LabelFile(path, "any", 100) as file:
        with path.open("a") as more:
            more.write("b,2\n")
        with pytest.raises(DataError, match="was changed while it was read"):
            file.check()


def test_lines_are_bounded_in_rows_and_bytes_and_lose_nothing(
    written: Callable[..., Path],
) -> None:
    rows = 2_500
    labels = ["x" * (60_000 if at % 100 == 0 else 3) for at in range(rows)]
    path = written({"id": [f"call-{at}" for at in range(rows)], "label": labels})
    report, lines = read(path)
    assert report.labels == rows
    assert [label for line in lines for label in line["label"]] == labels
    for line in lines:
        assert len(line["id"]) <= 1_000
        assert sum(map(len, line["label"])) < 260_000


def test_a_reader_that_stands_still_is_ended_by_the_alarm(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set while rows are read, and not while the other side of a pipe makes us wait."""
    path = written("id,label\na,1\n")
    told: list[int] = []
    send(path, "any", 100, lambda message: told.append(signal.alarm(0)))
    assert told == [0, 0]
    left: list[int] = []
    scan = LabelFile.check

    def check(self: LabelFile) -> LabelFileReport:
        left.append(signal.alarm(60))
        return scan(self)

    monkeypatch.setattr(LabelFile, "check", check)
    send(path, "any", 100, lambda message: None)
    assert 0 < left[0] <= label_file.STALL_S and signal.alarm(0) == 0


def test_limits_are_those_of_labels_that_come_by_rpc() -> None:
    assert label_file.MAX_ID_BYTES == feedback_service.MAX_ID_BYTES
    assert label_file.MAX_TEXT_BYTES == feedback_service.MAX_TEXT_BYTES
    assert label_file.MAX_NUMBER == feedback_service.MAX_NUMBER
