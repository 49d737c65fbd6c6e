import io
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl
import pytest

from tests.fakes import FakeClock
from tests.loop_fakes import SIGNATURE, batch, strings, wait_until
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import TrafficConfig
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs import traffic_log
from trimtab.server.logs.frame_log import FrameLog, read_frames
from trimtab.server.logs.traffic_log import TrafficLog
from trimtab.server.logs.traffic_rows import TrafficLayout
from trimtab.trainer.log_reader import read_log, roll

LAYOUT = TrafficLayout(SIGNATURE)


def frames_of(path: Path) -> list[pl.DataFrame]:
    return [pl.read_ipc_stream(io.BytesIO(payload)) for _, payload in read_frames(path)]


def opened(folder: Path, config: TrafficConfig | None = None) -> TrafficLog:
    log = TrafficLog(folder, config or TrafficConfig())
    log.start()
    return log


def test_rows_come_back_with_their_ids_times_and_values(tmp_path: Path) -> None:
    log = opened(tmp_path)
    numeric = np.array([[1, np.nan], [-0.0, 2], [3, 1e30]], np.float32)
    carriers = ["Zürich", "", "日本 AA"]
    log.append(
        batch(numeric, carriers, calls=[2, 1], event_time_ms=123, received_ms=456, version=7),
        LAYOUT,
    )
    log.append(batch(numeric[:1], ["x"], prefix="later", received_ms=789, version=7), LAYOUT)
    assert log.flush()
    (frame,) = frames_of(tmp_path / "active.frames")
    assert frame.columns == [
        "id",
        "row",
        "event_time",
        "received",
        "version",
        "in.temp",
        "in.wind",
        "in.carrier",
        "out.variable",
    ]
    assert frame["id"].to_list() == ["call-0", "call-0", "call-1", "later-0"]
    assert frame["row"].to_list() == [0, 1, 0, 0]
    assert frame["event_time"].to_list() == [123, 123, 123, 789], "received, where none was given"
    assert frame["received"].to_list() == [456, 456, 456, 789]
    assert frame["version"].to_list() == [7] * 4
    assert np.array_equal(
        frame.select("in.temp", "in.wind").to_numpy(), numeric[[0, 1, 2, 0]], equal_nan=True
    )
    assert frame["in.carrier"].to_list() == [*carriers, "x"]
    assert frame["out.variable"].to_list() == [2, 0, 6, 2]
    assert frame.schema["row"] == pl.UInt32 and frame.schema["in.temp"] == pl.Float32
    log.close()
    assert log.stats.rows_written == 4 and log.stats.rows_queued == 0


def test_tensors_without_names_or_of_other_types_are_logged_too(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(
            TensorSpec("flags", "BOOL", (-1, 2), ()),
            TensorSpec("count", "INT64", (-1,), ()),
            TensorSpec("half", "FP16", (-1, 1), ()),
            TensorSpec("image", "FP32", (-1, 2, 2), ()),
        ),
        outputs=(
            TensorSpec("label", "BYTES", (-1,), ()),
            TensorSpec("score", "FP32", (-1, 3), ()),
        ),
    )
    observed = ObservedBatch(
        model="m",
        version=1,
        calls=ObservedCalls.of([ObservedCall("a", 2, None, 5)]),
        rows=2,
        inputs={
            "flags": Tensor("BOOL", (2, 2), np.array([[True, False], [False, True]])),
            "count": Tensor("INT64", (2,), np.array([2**60, -1])),
            "half": Tensor("FP16", (2, 1), np.array([[0.5], [2]], np.float16)),
            "image": Tensor("FP32", (2, 2, 2), np.zeros((2, 2, 2), np.float32)),
        },
        outputs={"label": Tensor("BYTES", (2,), strings(["cat", "dog"]))},  # score: not asked for
    )
    log = opened(tmp_path)
    log.append(observed, TrafficLayout(signature))
    log.close()
    (frame,) = frames_of(tmp_path / "active.frames")
    assert frame.columns[5:] == [
        "in.flags[0]",
        "in.flags[1]",
        "in.count",
        "in.half",
        "out.label",
        "out.score[0]",
        "out.score[1]",
        "out.score[2]",
    ]
    assert frame["in.flags[1]"].to_list() == [False, True]
    assert frame["in.count"].to_list() == [2**60, -1]
    assert frame["in.half"].to_list() == [0.5, 2]
    assert frame["out.label"].to_list() == ["cat", "dog"]
    assert frame["out.score[2]"].null_count() == 2


def test_columns_of_two_tensors_with_one_name_stay_apart(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(
            TensorSpec("now", "FP32", (-1, 1), ("temp",)),
            TensorSpec("before", "FP32", (-1, 1), ("temp",)),
        ),
        outputs=(),
    )
    one = Tensor("FP32", (1, 1), np.array([[1]], np.float32))
    two = Tensor("FP32", (1, 1), np.array([[2]], np.float32))
    observed = ObservedBatch(
        "m",
        1,
        ObservedCalls.of([ObservedCall("a", 1, None, 5)]),
        1,
        {"now": one, "before": two},
        {},
    )
    log = opened(tmp_path)
    log.append(observed, TrafficLayout(signature))
    log.close()
    (frame,) = frames_of(tmp_path / "active.frames")
    assert frame["in.temp"].to_list() == [1]
    assert frame["in.before.temp"].to_list() == [2]


def test_rows_that_do_not_fit_are_dropped_and_counted_exactly(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path, TrafficConfig(queue_rows=100))  # its writer does not run yet
    numeric = np.zeros((30, 2), np.float32)
    for _ in range(5):
        log.append(batch(numeric), LAYOUT)
    log.append(batch(numeric[:10]), LAYOUT)
    stats = log.stats
    assert (stats.rows_logged, stats.rows_dropped, stats.rows_queued) == (100, 60, 100)
    log.start()
    assert log.flush()
    stats = log.stats
    assert (stats.rows_written, stats.rows_dropped, stats.rows_queued) == (100, 60, 0)
    log.close()
    log.append(batch(numeric), LAYOUT)
    assert log.stats.rows_dropped == 90, "a closed log takes nothing"


def test_every_row_of_many_threads_is_written_or_counted_as_dropped(tmp_path: Path) -> None:
    log = opened(tmp_path, TrafficConfig(queue_rows=500, flush_rows=64, segment_rows=2000))
    sizes = [1, 7, 64, 200]

    def work(seed: int) -> None:
        for index in range(100):
            rows = sizes[(index + seed) % 4]
            log.append(batch(np.full((rows, 2), seed), prefix=f"{seed}-{index}"), LAYOUT)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    stats = log.stats
    assert stats.rows_written + stats.rows_dropped == 4 * 25 * sum(sizes)
    assert stats.rows_written == stats.rows_logged
    files = [*log.closed_files(), tmp_path / "active.frames"]
    assert sum(frame.height for file in files for frame in frames_of(file)) == stats.rows_written


def test_a_file_is_finished_at_its_size_and_when_a_type_changes(tmp_path: Path) -> None:
    log = opened(tmp_path, TrafficConfig(segment_rows=10))
    for _ in range(2):
        log.append(batch(np.zeros((10, 2))), LAYOUT)
        assert log.flush()
    assert len(log.closed_files()) == 2
    log.append(batch(np.zeros((4, 2))), LAYOUT)
    other = Signature(inputs=(TensorSpec("categorical", "BYTES", (-1, 1), ("temp",)),), outputs=())
    log.append(batch(np.zeros((4, 2)), version=2), TrafficLayout(other))
    assert log.rotate()
    types = [frames_of(path)[0].schema["in.temp"] for path in log.closed_files()[2:]]
    assert types == [pl.Float32, pl.String]
    assert log.rotate(), "nothing to finish"
    assert len(log.closed_files()) == 4
    log.close()


def test_what_was_flushed_survives_kill_9_and_the_torn_tail_is_cut(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from tests.loop_fakes import SIGNATURE, batch
        from trimtab.server.config import TrafficConfig
        from trimtab.server.logs.traffic_log import TrafficLog
        from trimtab.server.logs.traffic_rows import TrafficLayout
        log = TrafficLog(Path(sys.argv[1]), TrafficConfig())
        log.start()
        log.append(batch(np.zeros((100, 2))), TrafficLayout(SIGNATURE))
        assert log.flush()
        log.append(batch(np.zeros((50, 2))), TrafficLayout(SIGNATURE))
        with open(Path(sys.argv[1]) / "active.frames", "ab") as file:
            file.write(b"half a frame")  # as if killed in the middle of a write
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == -9
    log = TrafficLog(tmp_path, TrafficConfig())
    recovery = log.start()
    assert (recovery.rows, recovery.lost_bytes) == (100, len(b"half a frame"))
    log.append(batch(np.zeros((5, 2))), LAYOUT)
    log.close()
    files = [*log.closed_files(), tmp_path / "active.frames"]
    assert sum(frame.height for file in files for frame in frames_of(file)) == 105


def test_a_full_disk_is_told_of_once_and_loses_nothing_that_fits_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[str] = []
    log = TrafficLog(tmp_path, TrafficConfig(queue_rows=100), problems.append)
    log.start()

    def full(self: FrameLog, payload: bytes, rows: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FrameLog, "append", full)
        log.append(batch(np.zeros((60, 2))), LAYOUT)
        assert not log.flush(), "it says that it could not"
        log.append(batch(np.zeros((60, 2))), LAYOUT)  # over the queue
        log.append(batch(np.zeros((40, 2))), LAYOUT)
        assert not log.flush()
        assert "No space left" in log.stats.failing
    assert log.flush()
    stats = log.stats
    assert (stats.rows_written, stats.rows_dropped, stats.failing) == (100, 60, "")
    assert stats.write_errors >= 2
    wait_until(lambda: len(problems) == 2, "told of the end")
    assert "No space left" in problems[0] and problems[1] == ""
    log.close()


def test_a_batch_that_contradicts_itself_is_dropped_alone(tmp_path: Path) -> None:
    log = opened(tmp_path)
    good = batch(np.zeros((3, 2)))
    bad = ObservedBatch("m", 1, good.calls, 4, good.inputs, good.outputs)
    worse = ObservedBatch(
        "m", 1, good.calls, 3, {"numeric": Tensor("BYTES", (3, 2), b"torn")}, good.outputs
    )
    for observed in (bad, worse, good):
        log.append(observed, LAYOUT)
        log.flush()
    log.close()
    stats = log.stats
    assert (stats.rows_written, stats.rows_dropped) == (3, 7)


def test_a_log_that_closes_on_a_full_disk_says_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    monkeypatch.setattr(
        os, "pwrite", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    log.append(batch(np.zeros((3, 2))), LAYOUT)
    log.close()
    assert (log.stats.rows_written, log.stats.rows_dropped) == (0, 3)


def wide(width: int) -> ObservedBatch:
    """One row of so many columns."""
    values = Tensor("FP32", (1, width), np.full((1, width), width, np.float32))
    calls = ObservedCalls.of([ObservedCall(f"w{width}", 1, None, 5)])
    return ObservedBatch("m", 1, calls, 1, {"x": values}, {})


FREE = Signature(inputs=(TensorSpec("x", "FP32", (-1, -1), ()),), outputs=())


def test_rows_of_any_width_share_a_file(tmp_path: Path) -> None:
    log = opened(tmp_path / "traffic")
    layout = TrafficLayout(FREE)
    for width in (3, 1, 2, 3):
        log.append(wide(width), layout)
        assert log.flush()
    assert not log.closed_files()
    assert log.rotate()
    assert len(log.closed_files()) == 1
    log.close()
    read = read_log(tmp_path / "traffic", ["id", "in.x[1]"])
    assert [frame.columns == ["id", "in.x[1]"] for _, frame in read] == [True, False, True, True]
    assert roll(tmp_path).rows == 4
    [(_, rolled)] = read_log(tmp_path / "traffic", ["id", "in.x", "in.x[1]", "in.x[2]"])
    assert rolled.sort("id", "in.x[2]").rows() == [
        ("w1", 1, None, None),
        ("w2", None, 2, None),
        ("w3", None, 3, 3),
        ("w3", None, 3, 3),
    ]


def test_a_file_of_very_wide_rows_is_finished_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic_log, "_MAX_FILE_CELLS", 30)
    log = opened(tmp_path)
    for _ in range(3):  # 5 columns of its own, 8 of the tensor
        log.append(wide(8), TrafficLayout(FREE))
        assert log.flush()
    assert len(log.closed_files()) == 1
    log.close()


def test_a_tensor_without_columns_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened(tmp_path)
    log.append(wide(0), TrafficLayout(FREE))
    log.close()
    (frame,) = frames_of(tmp_path / "active.frames")
    assert frame.columns == ["id", "row", "event_time", "received", "version"]
    assert log.stats.rows_written == 1 and not caplog.records


def test_rows_beyond_the_rate_are_dropped_and_counted(tmp_path: Path) -> None:
    clock = FakeClock()
    log = TrafficLog(tmp_path, TrafficConfig(max_rows_per_s=100), clock=clock)
    log.start()
    rows = batch(np.zeros((60, 2), np.float32))
    for _ in range(3):
        log.append(rows, LAYOUT)
    assert (log.stats.rows_logged, log.stats.rows_dropped) == (120, 60), "until the bucket is empty"
    clock.advance(0.1)
    log.append(rows, LAYOUT)
    assert log.stats.rows_dropped == 120, "the bucket is still overdrawn"
    clock.advance(3600)
    for _ in range(3):
        log.append(rows, LAYOUT)
    assert (log.stats.rows_logged, log.stats.rows_dropped) == (240, 180), "it holds a second's rows"
    assert log.flush()
    assert log.stats.rows_written == 240
    log.close()


class Untouchable:
    """Calls of a batch that nobody may ask for."""

    def observed(self) -> NoReturn:
        raise AssertionError("looked at")


def test_a_batch_that_is_dropped_is_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batch_like = ObservedBatch("m", 1, Untouchable(), 60, {}, {}, latest_event_time_ms=-1)
    log = TrafficLog(tmp_path, TrafficConfig(queue_rows=50))
    log.append(batch_like, LAYOUT)
    log = TrafficLog(tmp_path, TrafficConfig(max_rows_per_s=100), clock=FakeClock())
    for _ in range(2):
        log.append(batch(np.zeros((60, 2))), LAYOUT)
    log.append(batch_like, LAYOUT)
    assert (log.stats.rows_queued, log.stats.rows_dropped) == (120, 60)
    assert not caplog.records


def test_a_batch_that_does_not_fit_the_queue_leaves_the_rate_to_others(tmp_path: Path) -> None:
    config = TrafficConfig(queue_rows=100, max_rows_per_s=100)
    log = TrafficLog(tmp_path, config, clock=FakeClock())
    log.append(batch(np.zeros((101, 2))), LAYOUT)
    log.append(batch(np.zeros((100, 2))), LAYOUT)
    assert (log.stats.rows_queued, log.stats.rows_dropped) == (100, 101)


def test_rows_that_wait_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = batch(np.zeros((30, 2)))
    size = LAYOUT.shape_of(rows).size_of(rows)
    monkeypatch.setattr(traffic_log, "_MAX_QUEUED_BYTES", 2 * size)
    log = TrafficLog(tmp_path, TrafficConfig(flush_rows=30))
    for _ in range(3):
        log.append(rows, LAYOUT)
    assert (log.stats.rows_queued, log.stats.rows_dropped) == (60, 30)
    log.start()
    assert log.flush()
    for _ in range(2):
        log.append(rows, LAYOUT)
    log.close()
    assert (log.stats.rows_written, log.stats.rows_dropped) == (120, 30), "room was made again"


def test_rows_of_very_many_bytes_are_a_frame_before_they_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic_log, "_MAX_FRAME_BYTES", 500)
    log = opened(tmp_path)
    for _ in range(4):
        log.append(batch(np.zeros((20, 2))), LAYOUT)  # 360 bytes of values
    assert log.flush()
    assert [frame.height for frame in frames_of(tmp_path / "active.frames")] == [40, 40]
    log.close()


def test_versions_that_take_turns_do_not_cut_each_others_frames(tmp_path: Path) -> None:
    log = opened(tmp_path, TrafficConfig(flush_rows=100))
    for index in range(20):
        log.append(batch(np.full((10, 2), index), version=1 + index % 2), LAYOUT)
    log.append(batch(np.zeros((5, 2)), version=2), LAYOUT)
    assert log.flush()
    frames = frames_of(tmp_path / "active.frames")
    assert [frame.height for frame in frames] == [100, 100, 5]
    assert [frame["version"].unique().to_list() for frame in frames] == [[1], [2], [2]]
    log.close()


def test_the_oldest_frame_is_written_where_shapes_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic_log, "_MAX_OPEN", 2)
    log = TrafficLog(tmp_path, TrafficConfig())
    layout = TrafficLayout(FREE)
    for width in (1, 2, 1, 3, 2):
        log.append(wide(width), layout)
    log.start()
    assert log.flush()
    heights = [(frame.width - 5, frame.height) for frame in frames_of(tmp_path / "active.frames")]
    assert heights == [(1, 2), (2, 2), (3, 1)]
    log.close()


def test_a_frame_that_does_not_fill_is_written_when_it_is_old(tmp_path: Path) -> None:
    log = opened(tmp_path, TrafficConfig(flush_ms=1))
    for version in (1, 2):
        log.append(batch(np.zeros((3, 2)), version=version), LAYOUT)
    wait_until(lambda: log.stats.rows_written == 6, "both frames")
    assert log.stats.rows_queued == 0
    log.close()


def test_a_batch_that_cannot_be_copied_is_told_of_once_and_later_ones_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened(tmp_path)
    good = batch(np.zeros((3, 2)))
    torn = Tensor("FP32", (3, 2), np.zeros((3, 4), np.float32)[:, :2])  # not contiguous
    bad = ObservedBatch("m", 1, good.calls, 3, {**good.inputs, "numeric": torn}, good.outputs)
    for observed in (good, bad, bad, good):  # the first one has half of the second behind it
        log.append(observed, LAYOUT)
    log.close()
    stats = log.stats
    assert (stats.rows_written, stats.rows_dropped, stats.rows_queued) == (3, 9, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (frame,) = frames_of(tmp_path / "active.frames")
    assert frame.height == 3
