"""Files of labels in a model's directory: taken once, whole or not at all, told of with exact counts."""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.loop_fakes import batch, draw, wait_until
from tests.server.loop.test_control_loop import World
from trimtab.server.config import ConfigError, LabelsConfig
from trimtab.server.events import Event
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.label_drop import STILL_S, DropTurns, LabelDrop
from trimtab.server.loop.label_run import LabelCounts, LabelRun
from trimtab.server.loop.training_run import TrainingResult


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class FakeRun:
    """A reader that hands over what the test says, on a thread as the real one."""

    def __init__(
        self,
        file: Path,
        wanted: str,
        max_request_rows: int,
        take: Callable[[Any], None],
        on_finished: Callable[[TrainingResult], None],
    ) -> None:
        self.file, self.wanted = file, wanted
        self.counts = LabelCounts()
        self.taken = 0
        self.error: Exception | None = None
        self.killed = ""
        self._take, self._on_finished = take, on_finished
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        pass

    def kill(self, reason: str) -> None:
        self.killed = reason

    def join(self, timeout_s: float | None = None) -> bool:
        if self._thread is not None:
            self._thread.join(timeout_s)
        return True

    def hand_over(
        self,
        parts: Sequence[tuple[list[Label], int | None]],
        outcome: Any = "published",
        counts: LabelCounts | None = None,
    ) -> None:
        """All of it, and the end."""

        def run() -> None:
            result = TrainingResult(outcome, "" if outcome == "published" else "is garbage")
            try:
                for part in parts:
                    self._take([part])
                    self.taken += len(part[0])
            except OSError as error:
                self.error = error
                result = TrainingResult("failed", str(error))
            self._on_finished(result)

        rows = sum(len(part[0]) for part in parts)
        self.counts = counts or LabelCounts(rows, rows)
        self._thread = threading.Thread(target=run)
        self._thread.start()


class DropWorld(World):
    """Model m with a drop directory, read by `runs`, or by real children."""

    def __init__(self, path: Path, *, real: bool = False) -> None:
        super().__init__(path)
        self.clock = Clock()
        self.runs: list[FakeRun] = []
        self.folder = path / "m" / "labels_in"
        self.folder.mkdir()
        self.model.context.quality._clock = self.clock
        self.turns = DropTurns()
        self.drop = self.make(LabelRun if real else self.spawn)
        self.model.drop = self.drop

    def make(self, spawn: Any) -> LabelDrop:
        model = self.model
        return LabelDrop(
            model.context, model.submit_parts, self.turns, spawn=spawn, monotonic=self.clock
        )

    def spawn(self, *arguments: Any) -> FakeRun:
        self.runs.append(FakeRun(*arguments))
        return self.runs[-1]

    def put(self, name: str, content: dict[str, Any] | bytes = b"labels") -> Path:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pl.DataFrame(content).write_parquet(path)
        return path

    def still(self) -> None:
        """So long that what lies there is taken up."""
        self.tick()
        self.clock.s += STILL_S
        self.tick()

    def taken(self) -> Event:
        """The event of the file that was handed over, once its labels have their outcomes."""
        return self._end("label_file_taken")

    def failed(self) -> Event:
        return self._end("label_file_failed")

    def _end(self, kind: str) -> Event:
        count = self.kinds.count(kind)

        def over() -> bool:
            self.clock.s += 1  # what found no answer is looked for again for two seconds
            self.tick()
            return self.kinds.count(kind) > count

        wait_until(over, kind)
        return self.last(kind)

    def here(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))

    def answer(self, rows: int) -> None:
        self.taps[1](batch(*draw(self.random, rows), prefix="call"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DropWorld]:
    world = DropWorld(tmp_path)
    yield world
    world.loop.stop()


def labels(*rows: int, value: float = 1.0, call: str = "call-0") -> list[Label]:
    return [Label(call, row, number=value) for row in rows]


def test_a_file_is_taken_once_and_its_counts_are_exact(world: DropWorld) -> None:
    world.answer(10)
    world.model.submit_labels(labels(0, 1, 2), world.wall.ms)
    world.put("x.parquet")
    world.still()
    (run,) = world.runs
    assert run.file == world.folder / "x.parquet" and run.wanted == "number"
    run.hand_over(
        [
            (labels(0, 3, 4), None),
            (labels(1, value=2.0), 5_000),
            (labels(4, 0, call="nobody"), None),
        ]
    )
    event = world.taken()
    assert event.reason == (
        "labels_in/x.parquet: 6 labels taken, 2 of rows that had none, 1 told before, "
        "1 corrections, 2 of rows that are not remembered"
    )
    assert event.evidence["labels"] == 6
    assert event.evidence["outcomes"] == {
        "joined": 2, "duplicate": 1, "corrected": 1, "unknown": 2,
    }  # fmt: skip
    assert world.here() == ["done/x.parquet"]
    assert world.model.context.labels.total_rows == 9
    assert not world.model.context.labels._frames.dirty, "on the disk before it was put away"
    assert world.model.stats().quality.outcomes["joined"] == 5, "those by RPC are not its own"
    for _ in range(3):
        world.still()
    assert len(world.runs) == 1


def test_labels_of_other_origins_that_come_meanwhile_are_not_counted_as_the_files(
    world: DropWorld,
) -> None:
    world.answer(10)
    world.put("x.csv")
    world.still()
    world.runs[0].hand_over([(labels(0), None), (labels(7, call="nobody"), None)])
    world.model.submit_labels(labels(1, 2, 3), world.wall.ms)
    world.model.submit_labels(labels(1, call="nobody either"), world.wall.ms)
    assert world.taken().evidence["outcomes"] == {"joined": 1, "unknown": 1}


def test_a_file_that_is_still_written_or_has_an_unfinished_name_is_left_alone(
    world: DropWorld,
) -> None:
    for name in (".hidden.parquet", "x.parquet.tmp", "y.csv.PART"):
        world.put(name)
    path = world.put("x.parquet")
    for _ in range(5):
        world.tick()
        world.clock.s += STILL_S - 1
        with path.open("ab") as file:
            file.write(b"more")
    world.tick()
    assert not world.runs
    world.clock.s += STILL_S
    world.tick()
    assert [run.file.name for run in world.runs] == ["x.parquet"]
    (world.folder / "x.parquet.tmp").rename(world.folder / "z.parquet")
    world.runs[0].hand_over([(labels(0), None)])
    world.taken()
    world.still()
    assert [run.file.name for run in world.runs] == ["x.parquet", "z.parquet"]


def test_a_file_that_is_refused_is_put_aside_with_the_reason_and_others_go_on(
    world: DropWorld,
) -> None:
    for age, name in enumerate(("b.parquet", "a.parquet")):
        os.utime(world.put(name), (age, age))
    world.still()
    run = world.runs[0]
    counts = LabelCounts(3, 1, 0, 2, 0, ("row 2: no id", "row 3: no id"))
    run.hand_over([], "failed", counts)
    event = world.failed()
    assert event.reason == "labels_in/b.parquet: is garbage"
    assert (event.evidence["labels"], event.evidence["unreadable"]) == (0, 2)
    assert "label_file_failed" in world.history
    assert (world.folder / "failed" / "b.parquet.error.txt").read_text() == (
        "is garbage\n\nrow 2: no id\nrow 3: no id\n"
    )
    world.still()
    assert world.runs[1].file.name == "a.parquet"
    world.runs[1].hand_over([(labels(0), None)])
    world.taken()
    assert world.here() == ["done/a.parquet", "failed/b.parquet", "failed/b.parquet.error.txt"]


def test_links_and_directories_are_told_of_once_and_not_followed(
    world: DropWorld, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.parquet"
    secret.write_bytes(b"secret")
    (world.folder / "link.parquet").symlink_to(secret)
    (world.folder / "folder.parquet").mkdir()
    for _ in range(4):
        world.still()
    told = {e.evidence["file"]: e.reason for e in world.bus.events if e.kind == "label_file_failed"}
    assert world.kinds.count("label_file_failed") == 2 and not world.runs
    assert "is a symbolic link, which is not followed" in told["labels_in/link.parquet"]
    assert "is a directory" in told["labels_in/folder.parquet"]
    assert (world.folder / "failed" / "link.parquet").is_symlink() and secret.exists()


def test_a_directory_for_done_files_that_leads_elsewhere_is_not_written_to(
    world: DropWorld, tmp_path: Path
) -> None:
    (world.folder / "done").symlink_to(tmp_path)
    world.put("x.parquet")
    for _ in range(3):
        world.still()
    assert world.kinds.count("label_file_failed") == 1 and not world.runs
    assert "cannot be put away afterwards: done/ is a symbolic link" in world.bus.events[-1].reason


def test_a_name_that_was_there_before_takes_nothing_from_the_earlier_file(
    world: DropWorld,
) -> None:
    for content in (b"one", b"two", b"three"):
        world.put("x.1.csv", content)
        world.still()
        world.runs[-1].hand_over([(labels(0), None)])
        world.taken()
    found = {p.name: p.read_bytes() for p in (world.folder / "done").iterdir()}
    assert found == {"x.1.csv": b"one", "x.1.2.csv": b"two", "x.1.3.csv": b"three"}


def test_where_the_log_cannot_be_written_the_file_stays_and_is_tried_again(
    world: DropWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world.model.context.labels
    write = log._frames.append

    def full(payload: bytes, rows: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._frames, "append", full)
    world.put("x.csv")
    world.still()
    world.runs[0].hand_over([(labels(0), None)])
    event = world.failed()
    assert "stays where it is, and is tried again" in event.reason and "No space" in event.reason
    monkeypatch.setattr(log._frames, "append", write)
    world.still()
    assert len(world.runs) == 1, "not at once"
    world.clock.s += 60
    world.tick()
    world.runs[1].hand_over([(labels(0), None)])
    assert world.taken().evidence["labels"] == 1
    assert world.here() == ["done/x.csv"]


def test_a_server_that_stops_amid_a_file_leaves_it_for_the_next_one(world: DropWorld) -> None:
    world.put("x.csv")
    world.still()
    world.drop.close()
    assert world.runs[0].killed and world.here() == ["x.csv"] and world.drop.idle
    assert "label_file_failed" not in world.kinds


def test_a_crash_before_the_file_was_put_away_makes_duplicates_of_its_labels(
    world: DropWorld,
) -> None:
    world.answer(5)
    for outcome in ("joined", "duplicate"):
        world.put("x.csv")
        world.still()
        world.runs[-1].hand_over([(labels(0, 1, 2), None)])
        assert world.taken().evidence["outcomes"] == {outcome: 3}


def test_no_training_starts_from_half_a_file(world: DropWorld) -> None:
    world.serve(1000)
    world.serve(1000, shift=2.0)
    world.settle()
    world.put("x.csv")
    world.still()
    world.label(60)
    world.drain()
    assert "0 of 50 labels" in world.last("waiting").reason and not world.trainer.trainings
    world.runs[0].hand_over([(labels(*range(100, 110)), None)])
    world.taken()
    (training,) = world.trainer.trainings
    assert '"labels": 70' in training.options["trigger"]


def test_answers_are_remembered_as_soon_as_there_is_a_directory_for_labels(
    world: DropWorld,
) -> None:
    observed = world.model.observed
    observed.expects_labels = False
    world.folder.rmdir()
    world.tick()
    assert not observed.expects_labels
    world.folder.mkdir()
    world.tick()
    assert observed.expects_labels


def test_models_take_turns_in_the_order_in_which_they_came(world: DropWorld) -> None:
    turns = DropTurns()
    one, other = (world.make(world.spawn) for _ in range(2))
    assert turns.has(one) and not turns.has(other) and turns.has(one)
    turns.leave(one)
    assert turns.has(other) and not turns.has(one)


def test_a_policy_without_a_directory_reads_none(world: DropWorld) -> None:
    world.put("x.csv")
    (world.directory.path / "trimtab.toml").write_text('[labels]\ndrop_dir = "truth"\n')
    world.still()
    assert not world.runs
    (world.directory.path / "truth").mkdir()
    (world.directory.path / "truth" / "y.csv").write_text("id,label\n")
    world.still()
    assert [run.file.name for run in world.runs] == ["y.csv"]
    with pytest.raises(ConfigError, match="must be a path inside of the model's directory"):
        LabelsConfig(drop_dir="../other/labels")
    for bad in ("/etc", "a//b", "7", ".hidden", "labels/"):
        with pytest.raises(ConfigError, match="drop_dir"):
            LabelsConfig(drop_dir=bad)
    assert LabelsConfig(drop_dir="").drop_dir == ""


def test_real_children_read_a_good_file_a_torn_one_and_one_that_is_too_large(
    tmp_path: Path,
) -> None:
    world = DropWorld(tmp_path, real=True)
    try:
        world.answer(2_000)
        good = {"id": ["call-0"] * 1_500, "row": list(range(1_500)), "label": [2.0] * 1_500}
        os.utime(world.put("1.parquet", good), (1, 1))
        os.utime(world.put("2.parquet", (world.folder / "1.parquet").read_bytes()[:-9]), (2, 2))
        os.utime(world.put("3.csv", b"id,label\na,1e300\nb,two\n"), (3, 3))
        ids = ["x" * 200_000_000] * 3  # a few kilobytes on the disk
        world.drop._spawn = lambda *rest: LabelRun(*rest, memory_mb=1_300)
        os.utime(world.put("4.parquet", {"id": ids, "label": [1.0] * 3}), (4, 4))
        assert stat.S_ISREG((world.folder / "4.parquet").stat().st_mode)
        world.still()
        event = world.taken()
        assert event.evidence["outcomes"] == {"joined": 1_500}
        assert event.reason.startswith("labels_in/1.parquet: 1,500 labels taken")
        assert "2.parquet cannot be read: parquet" in world.failed().reason
        wrong = world.failed()
        assert "2 of its 2 rows cannot be taken: row 1 (id 'a'): the column 'label' has 1e+300" in (
            wrong.reason
        )
        assert wrong.evidence["unreadable"] == 2 and "'two', not a number" in str(wrong.evidence)
        assert "takes more than 1,300 MiB of memory" in world.failed().reason
        assert world.model.context.labels.total_rows == 1_500
        assert sorted(path.name for path in world.folder.iterdir()) == ["done", "failed"]
    finally:
        world.loop.stop()
