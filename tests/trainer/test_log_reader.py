import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trimtab.server.logs import arrow_frame
from trimtab.server.logs.frame_log import FrameLog
from trimtab.trainer.errors import DataError
from trimtab.trainer.log_reader import read_frames, read_log, roll, snapshot

FrameWriter = Callable[..., None]
DAY_MS = 86_400_000


def rows(start: int, stop: int, day: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"r{number}" for number in range(start, stop)],
            "row": pl.Series([0] * (stop - start), dtype=pl.UInt32),
            "event_time": [day * DAY_MS + number for number in range(start, stop)],
            "in.x": [float(number) for number in range(start, stop)],
        }
    )


def label_rows(start: int, stop: int, value: float) -> pl.DataFrame:
    return rows(start, stop).select(
        "id",
        "row",
        pl.lit(value).alias("number"),
        pl.lit(None, pl.String).alias("text"),
        "event_time",
    )


def ids(directory: Path) -> list[str]:
    return [id_ for _, frame in read_log(directory, ["id"]) for id_ in frame["id"]]


@pytest.mark.parametrize("cut", [1, 11, 12, 40])
def test_a_torn_tail_costs_only_the_last_frame(
    tmp_path: Path, write_frames: FrameWriter, cut: int
) -> None:
    path = tmp_path / "active.frames"
    write_frames(path, [rows(0, 3)])
    whole = path.stat().st_size
    write_frames(path, [rows(0, 3), rows(3, 6)])
    path.write_bytes(path.read_bytes()[: whole + cut])
    found = read_frames(path)
    assert found.rows == 3
    assert found.torn_bytes == cut


def test_a_frame_with_a_wrong_checksum_ends_the_file(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    path = tmp_path / "active.frames"
    write_frames(path, [rows(0, 3)])
    whole = path.stat().st_size
    write_frames(path, [rows(0, 3), rows(3, 6), rows(6, 9)])
    data = bytearray(path.read_bytes())
    data[whole + 100] ^= 1
    path.write_bytes(data)
    assert read_frames(path).rows == 3


def test_a_whole_frame_that_is_not_arrow_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "active.frames"
    path.write_bytes(struct.pack("<III", 5, zlib.crc32(b"hello"), 1) + b"hello")
    with pytest.raises(DataError, match="has a frame that is not Arrow"):
        read_frames(path)


def test_only_the_wanted_columns_are_read_and_absent_ones_are_skipped(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    path = tmp_path / "active.frames"
    write_frames(path, [rows(0, 3)])
    assert read_frames(path, ["in.x", "in.y"]).frames[0].columns == ["in.x"]


def test_files_are_read_in_the_order_of_their_numbers_the_active_one_last(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    write_frames(tmp_path / "active.frames", [rows(8, 10)])
    write_frames(tmp_path / "closed-00000010.frames", [rows(6, 8)])
    write_frames(tmp_path / "closed-00000009.frames", [rows(4, 6)])
    (tmp_path / "day=1970-01-01").mkdir()
    rows(0, 4).write_parquet(tmp_path / "day=1970-01-01" / "seg-00000002.parquet")
    assert ids(tmp_path) == [f"r{number}" for number in range(10)]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "traffic", ["id"]) == []


def test_rolling_keeps_every_row_splits_by_day_and_removes_the_frames(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    traffic = tmp_path / "traffic"
    write_frames(traffic / "closed-00000001.frames", [rows(0, 3), rows(3, 6, day=1)])
    write_frames(traffic / "active.frames", [rows(6, 8, day=1)])
    report = roll(tmp_path)
    assert (report.files, report.rows, report.torn_bytes) == (1, 6, 0)
    assert sorted(str(path.relative_to(traffic)) for path in traffic.rglob("*.*")) == [
        "active.frames",
        "day=1970-01-01/seg-00000001.parquet",
        "day=1970-01-02/seg-00000001.parquet",
    ]
    assert ids(traffic) == [f"r{number}" for number in range(8)]


def test_rolling_again_after_being_killed_before_the_removal_loses_and_doubles_nothing(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    traffic = tmp_path / "traffic"
    frames = [rows(0, 3), rows(3, 6, day=1)]
    write_frames(traffic / "closed-00000001.frames", frames)
    roll(tmp_path)
    before = {path: path.read_bytes() for path in traffic.rglob("*.parquet")}
    write_frames(traffic / "closed-00000001.frames", frames)  # as if it had never been removed
    assert ids(traffic) == [f"r{number}" for number in range(6)]
    roll(tmp_path)
    assert {path: path.read_bytes() for path in traffic.rglob("*.parquet")} == before


def test_a_closed_file_with_a_torn_tail_is_kept_aside(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    traffic = tmp_path / "traffic"
    write_frames(traffic / "closed-00000001.frames", [rows(0, 3)], torn=b"half a frame")
    report = roll(tmp_path)
    assert (report.rows, report.torn_bytes) == (3, 12)
    assert (traffic / "damaged-closed-00000001.frames").exists()
    assert [path.name for path in snapshot(traffic)] == ["seg-00000001.parquet"]


def test_days_past_the_limit_are_removed_counted_from_the_newest_day(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    traffic = tmp_path / "traffic"
    write_frames(traffic / "closed-00000001.frames", [rows(n, n + 1, day=n) for n in range(5)])
    report = roll(tmp_path, keep_days=2)
    assert report.removed_days == ("day=1970-01-01", "day=1970-01-02", "day=1970-01-03")
    assert ids(traffic) == ["r3", "r4"]


def test_many_label_files_become_one_in_which_the_latest_label_wins(
    tmp_path: Path, write_frames: FrameWriter
) -> None:
    labels = tmp_path / "labels"
    for number in range(1, 19):
        write_frames(labels / f"closed-{number:08d}.frames", [label_rows(0, 2, float(number))])
    roll(tmp_path)
    assert [path.name for path in labels.iterdir()] == ["labels-00000018.parquet"]
    [(_, frame)] = read_log(labels, ["id", "number"])
    expected = pl.DataFrame({"id": ["r0", "r1"], "number": [18.0, 18.0]})
    assert_frame_equal(frame, expected)


def test_frames_as_the_server_writes_them_are_read(tmp_path: Path) -> None:
    columns = [
        arrow_frame.strings("id", [b"a", "é".encode()]),
        arrow_frame.numbers("row", np.array([0, 1], np.uint32)),
        arrow_frame.numbers("in.x", np.array([1.5, np.nan], np.float32)),
        arrow_frame.strings("text", [b"", b"x"], np.array([False, True])),
    ]
    log = FrameLog(tmp_path)
    log.open()
    log.append(arrow_frame.encode(columns, 2), 2)
    log.close()
    [(_, frame)] = read_log(tmp_path, ["id", "row", "in.x", "text"])
    assert frame["id"].to_list() == ["a", "é"]
    assert frame["row"].to_list() == [0, 1]
    assert frame["in.x"].is_nan().to_list() == [False, True]
    assert frame["text"].to_list() == [None, "x"]
