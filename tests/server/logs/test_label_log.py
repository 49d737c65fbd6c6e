import io
import os
import threading
from pathlib import Path

import polars as pl
import pytest

from trimtab.server.logs.frame_log import FrameLog, read_frames
from trimtab.server.logs.label_log import Label, LabelLog


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
