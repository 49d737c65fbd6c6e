import io
import os
import threading
from pathlib import Path

import polars as pl
import pytest

from trimtab.server.logs.frame_log import FrameLog, read_frames
from trimtab.server.logs.label_log import Label, LabelCounts, LabelLog


def opened(folder: Path, fsync_ms: int = 1000) -> LabelLog:
    log = LabelLog(folder, fsync_ms)
    log.start()
    return log


def rows_of(folder: Path) -> pl.DataFrame:
    frames = [
        pl.read_ipc_stream(io.BytesIO(payload))
        for _, payload in read_frames(folder / "active.frames")
    ]
    return pl.concat(frames)


def test_labels_are_in_the_file_when_append_returns(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([Label("a", 0, number=1.5), Label("ü", 3, text="cat"), Label("a", 1, text="")], 77)
    log.append([], 78)
    frame = rows_of(tmp_path)
    assert frame.columns == ["id", "row", "number", "text", "event_time"]
    assert frame.rows() == [
        ("a", 0, 1.5, None, 77),
        ("ü", 3, None, "cat", 77),
        ("a", 1, None, "", 77),
    ]
    assert frame.schema["row"] == pl.UInt32 and frame.schema["number"] == pl.Float64
    log.close()


def test_parts_that_became_known_at_several_times_share_one_frame_and_are_synced_on_demand(
    tmp_path: Path,
) -> None:
    log = opened(tmp_path, fsync_ms=1_000_000)
    parts = [([Label("a", row, number=1.0)], 10 * row) for row in range(3)]
    log.append_parts([*parts, ([], 99)])
    assert len(list(read_frames(tmp_path / "active.frames"))) == 1
    assert rows_of(tmp_path).select("row", "event_time").rows() == [(0, 0), (1, 10), (2, 20)]
    assert log._frames.dirty
    log.sync()
    assert not log._frames.dirty
    assert log.counts(25, 10) == LabelCounts(2, 1)
    log.close()


def test_callers_that_come_together_share_frames_and_lose_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path)
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        for index in range(50):
            log.append([Label(f"{seed}", index, number=float(index))], index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frame = rows_of(tmp_path)
    assert frame.height == log.total_rows == 400
    assert frame.select("id", "row").unique().height == 400
    assert (frame["row"] == frame["event_time"]).all()
    log.close()


def test_the_total_counts_what_was_recovered_and_rolled(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([Label("a", row, number=0) for row in range(10)], 1)
    log.rotate()
    log.append([Label("b", row, number=0) for row in range(5)], 1)
    log.close()
    (closed,) = log.closed_files()
    closed.unlink()  # rolled
    log = opened(tmp_path)
    assert log.total_rows == 15
    log.close()


def test_a_failed_write_is_told_to_its_callers_and_keeps_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            FrameLog, "append", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        with pytest.raises(OSError, match="No space"):
            log.append([Label("a", 0, number=1)], 1)
    log.append([Label("b", 0, number=1)], 1)
    assert rows_of(tmp_path)["id"].to_list() == ["b"]
    log.close()


def test_syncing_follows_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    at_once = opened(tmp_path / "at once", fsync_ms=0)
    at_once.append([Label("a", 0, number=1)], 1)
    assert len(synced) == 1
    at_once.sync_if_due()
    assert len(synced) == 1, "nothing new to sync"
    later = opened(tmp_path / "later", fsync_ms=3_600_000)
    later.append([Label("a", 0, number=1)], 1)
    later.sync_if_due()
    assert len(synced) == 1
    later.close()
    assert len(synced) == 2
    at_once.close()


DAY_MS = 86_400_000


def test_labels_are_young_until_their_maturity(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([Label("a", row, number=1) for row in range(3)], 5 * DAY_MS)
    log.append([Label("b", 0, number=1)], 6 * DAY_MS)
    assert log.counts(6 * DAY_MS, 2 * DAY_MS) == LabelCounts(mature=0, young=4)
    assert log.counts(7 * DAY_MS, 2 * DAY_MS) == LabelCounts(mature=3, young=1)
    assert log.counts(8 * DAY_MS, 2 * DAY_MS) == LabelCounts(mature=4, young=0)
    assert log.counts(0, 0) == LabelCounts(mature=4, young=0), "without a maturity all count"
    log.close()


def test_ages_hold_across_restarts_and_the_rolling_of_finished_files(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for day in range(1, 4):  # each in a file of its own
        log.append([Label("a", day, number=1)] * day, day * DAY_MS)
        log.rotate()
    log.append([Label("b", 0, text="x"), Label("b", 1, number=2)], 4 * DAY_MS)
    log.append([Label("c", 0, number=1)], 5 * DAY_MS)
    maturity = 2 * DAY_MS
    told = [log.counts(day * DAY_MS, maturity) for day in range(9)]
    assert [counts.mature for counts in told] == [0, 0, 0, 1, 3, 6, 8, 9, 9]
    log.close()
    log.closed_files()[0].unlink()  # rolled
    log = opened(tmp_path)
    assert [log.counts(day * DAY_MS, maturity) for day in range(9)] == told
    log.rotate()
    log.close()
    for path in log.closed_files():
        path.unlink()
    log = opened(tmp_path)
    assert [log.counts(day * DAY_MS, maturity) for day in range(9)] == told
    log.close()


def test_ages_are_read_from_the_files_where_theirs_was_not_written(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append([Label("a", 0, number=1)], 1 * DAY_MS)
    log.rotate()
    log.append([Label("a", 1, number=1)], 2 * DAY_MS)
    log.close()
    for torn in (None, "", "{", '{"through": 1}', '{"ages": [[1]], "through": "z"}'):
        (tmp_path / "ages.json").unlink(missing_ok=True)
        if torn is not None:
            (tmp_path / "ages.json").write_text(torn)
        log = opened(tmp_path)
        assert log.counts(3 * DAY_MS, 2 * DAY_MS) == LabelCounts(mature=1, young=1)
        log.close()
    for path in log.closed_files():
        path.unlink()
    log = opened(tmp_path)
    assert log.counts(2 * DAY_MS, 2 * DAY_MS) == LabelCounts(mature=0, young=2), "found, then kept"
    log.close()


def test_a_failed_write_ages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            FrameLog, "append", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        with pytest.raises(OSError, match="No space"):
            log.append([Label("a", 0, number=1)], DAY_MS)
    assert log.counts(DAY_MS, DAY_MS) == LabelCounts(mature=0, young=0)
    log.close()


def test_a_time_that_is_not_believed_ages_from_when_it_came(tmp_path: Path) -> None:
    log = LabelLog(tmp_path, 1000, lambda time_ms: min(time_ms, DAY_MS))
    log.start()
    log.append([Label("a", 0, number=1)], 1_000_000 * DAY_MS)
    assert log.counts(2 * DAY_MS, DAY_MS) == LabelCounts(mature=1, young=0)
    log.close()
    log = LabelLog(tmp_path, 1000, lambda time_ms: min(time_ms, 3 * DAY_MS))
    log.start()
    assert log.counts(3 * DAY_MS, DAY_MS) == LabelCounts(mature=0, young=1)
    assert rows_of(tmp_path)["event_time"].to_list() == [1_000_000 * DAY_MS], "logged as told"
    log.close()
