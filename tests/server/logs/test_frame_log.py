import os
import shutil
from pathlib import Path

import pytest

from trimtab.server.logs.frame_log import FrameLog, Recovery, read_frames


def opened(folder: Path) -> FrameLog:
    log = FrameLog(folder)
    log.open()
    return log


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for index in range(5):
        log.append(bytes([index]) * (index + 1), rows=index)
    log.close()
    assert list(read_frames(tmp_path / "active.frames")) == [
        (index, bytes([index]) * (index + 1)) for index in range(5)
    ]


def test_a_file_cut_at_any_byte_recovers_every_whole_frame(tmp_path: Path) -> None:
    log = opened(tmp_path / "whole")
    sizes = [log.append(os.urandom(20), rows=10) for _ in range(3)]
    log.close()
    data = (tmp_path / "whole" / "active.frames").read_bytes()
    for cut in range(len(data) + 1):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "active.frames").write_bytes(data[:cut])
        log = FrameLog(folder)
        recovery = log.open()
        frames = cut // sizes[0]
        assert recovery == Recovery(frames, frames * 10, cut - frames * sizes[0])
        log.append(b"after", rows=1)
        log.close()
        assert len(list(read_frames(folder / "active.frames"))) == frames + 1


def test_recovery_stops_at_a_frame_whose_checksum_is_wrong(tmp_path: Path) -> None:
    log = opened(tmp_path)
    first = log.append(b"first", rows=1)
    log.append(b"second", rows=1)
    log.append(b"third", rows=1)
    log.close()
    path = tmp_path / "active.frames"
    data = bytearray(path.read_bytes())
    data[first + 12] ^= 1
    path.write_bytes(data)
    recovery = FrameLog(tmp_path).open()
    assert (recovery.frames, recovery.rows) == (1, 1)
    assert recovery.lost_bytes == len(data) - first
    assert "torn tail" in str(recovery)
    assert "torn" not in str(Recovery(1, 1, 0))


def test_rotation_numbers_files_and_goes_on_after_the_highest_one_ever_seen(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert log.rotate() is None, "an empty file is not worth one"
    log.append(b"a", rows=1)
    assert log.rotate() == tmp_path / "closed-00000001.frames"
    log.append(b"b", rows=1)
    log.close()
    # Rolled meanwhile: the frames are gone, a Parquet file has their number.
    (tmp_path / "closed-00000001.frames").unlink()
    (tmp_path / "day=2013-01-01").mkdir()
    (tmp_path / "day=2013-01-01" / "seg-00000007.parquet").touch()
    log = opened(tmp_path)
    assert log.rotate() == tmp_path / "closed-00000008.frames"
    assert log.closed_files() == [tmp_path / "closed-00000008.frames"]
    log.close()


def test_total_rows_survive_rotation_rolling_and_restarts(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for rows in (3, 4, 5):
        log.append(b"x", rows)
        log.rotate()
    log.append(b"x", 6)
    assert (log.rows, log.total_rows) == (6, 18)
    log.close()
    for path in log.closed_files():
        path.unlink()
    assert opened(tmp_path).total_rows == 18


def test_total_rows_are_counted_again_where_the_counter_was_not_written(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(b"x", 3)
    log.rotate()
    log.append(b"x", 4)
    log.rotate()
    log.close()
    (tmp_path / "counter.json").write_text("{torn")
    assert opened(tmp_path).total_rows == 7
    (tmp_path / "counter.json").write_text('{"sequence": 1, "rows": 3}')
    assert opened(tmp_path).total_rows == 7


def test_a_write_that_fails_midway_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    log.append(b"whole", rows=1)
    real = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) <= 4:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:4], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        log.append(b"does not fit", rows=1)
    monkeypatch.undo()
    log.append(b"fits again", rows=1)
    log.close()
    assert [payload for _, payload in read_frames(tmp_path / "active.frames")] == [
        b"whole",
        b"fits again",
    ]


def test_a_folder_that_is_removed_while_it_is_written_to_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    log = opened(folder)
    log.append(b"lost", 3)
    shutil.rmtree(folder)
    log.append(b"kept", 4)
    assert list(read_frames(folder / "active.frames")) == [(4, b"kept")]
    assert log.total_rows == 7, "ever appended"
    shutil.rmtree(folder)
    assert log.rotate() is None
    log.append(b"again", 1)
    assert log.rotate() is not None
    log.close()
    assert opened(folder).total_rows == 8


def test_a_folder_that_cannot_be_made_again_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "labels"
    log = opened(folder)
    log.append(b"lost", 3)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    for _ in range(2):
        with pytest.raises(OSError):
            log.append(b"refused", 1)
    folder.unlink()
    log.append(b"kept", 4)
    assert list(read_frames(folder / "active.frames")) == [(4, b"kept")]
    log.close()
