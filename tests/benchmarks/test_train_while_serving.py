"""What a training costs is told from every request, from the moment that it was due."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paced_load
import pytest
from load import LoadError
from paced_load import Arrivals, Pace, PacedLoad, pacing
from train_while_serving import (
    FIGURES,
    Size,
    Stretch,
    compared,
    steady,
    stretch_of,
    summary,
)
from trained_server import History, serving

from tests import models
from tests.live import LiveServer, infer_request, served
from trimtab.proto import open_inference_pb2 as pb

PACE = Pace(2, 500.0)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    (tmp_path / "models").mkdir()
    models.publish(tmp_path / "models", "m", models.scaled(1.0))
    with served(tmp_path / "models", frontend="auto") as running:
        yield running


def asked(model: str = "m") -> bytes:
    x = np.ones((1, 2), np.float32)
    return infer_request(model, {"x": x}, id="one").SerializeToString()


def reply(value: float = 1.0) -> bytes:
    out = pb.ModelInferResponse(model_name="m", model_version="1", id="one")
    out.outputs.add(name="y", datatype="FP32", shape=(1, 2))
    out.raw_output_contents.append(np.full((1, 2), value, np.float32).tobytes())
    return out.SerializeToString()


def wait_for_answers(load: PacedLoad, log: Path, answers: int) -> None:
    """The client writes in blocks of 4 KiB."""
    tick = threading.Event()
    for _ in range(2000):
        if log.stat().st_size >= 24 * answers:
            return
        tick.wait(0.01)
    raise AssertionError(f"{log.stat().st_size / 24:.0f} of {answers} answers in 20 s")


@needs_compiler
def test_requests_come_at_a_fixed_rate_and_each_is_answered_once(
    server: LiveServer, tmp_path: Path
) -> None:
    folder = tmp_path / "load"
    with pacing(f"127.0.0.1:{server.port}", asked(), [reply()], PACE, folder) as load:
        wait_for_answers(load, folder / "answers", 300)
        arrivals = load.stop()
    assert (load.failed, load.unexpected) == (0, 0)
    assert len(arrivals.due_s) >= 300
    assert np.diff(arrivals.due_s) == pytest.approx(1 / PACE.per_s, abs=1e-6)
    assert (arrivals.late_us >= 0).all() and (arrivals.took_us >= arrivals.late_us).all()
    counted = sum(executor.statistics().success.count for _, _, executor in server.manager.loaded())
    assert counted == len(arrivals.due_s)


@needs_compiler
def test_a_refused_request_and_a_wrong_reply_are_noticed(
    server: LiveServer, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{server.port}"
    with pacing(address, asked("x"), [reply()], PACE, tmp_path / "refused") as refused:
        arrivals = refused.stop()
    assert refused.failed == len(arrivals.due_s) > 0 and refused.complaint
    with pacing(address, asked(), [reply(2.0)], PACE, tmp_path / "wrong") as wrong:
        arrivals = wrong.stop()
    assert (wrong.failed, wrong.unexpected) == (0, len(arrivals.due_s))


@needs_compiler
def test_a_server_that_goes_away_fails_what_is_due_from_then_on(
    server: LiveServer, tmp_path: Path
) -> None:
    folder = tmp_path / "load"
    with pacing(f"127.0.0.1:{server.port}", asked(), [reply()], PACE, folder) as load:
        server.manager.stop_accepting()
        wait_for_answers(load, folder / "answers", 300)
        load.stop()
    assert load.failed > 0 and load.unexpected == 0


def test_a_stretch_has_the_requests_that_were_due_in_it_however_late_they_came() -> None:
    due = np.array([0.9, 1.0, 1.5, 2.0])
    found = Arrivals(due, np.array([1, 5_000_000, 3, 4], np.int32), np.zeros(4, np.int32))
    assert list(found.between(1.0, 2.0).took_us) == [5_000_000, 3]


def test_the_figures_of_a_stretch_are_those_of_its_requests() -> None:
    found = stretch_of(10.0, 12.0, np.arange(1, 102, dtype=np.int32), 300, trainer_share=0.5)
    assert found == Stretch(2.0, 51.0, 100.0, 150.0, trainer_share=0.5)
    with pytest.raises(LoadError, match=r"no request in a stretch of 2\.0 s"):
        stretch_of(10.0, 12.0, np.array([], np.int32), 0)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    quiet = [Stretch(5, 100, 1000, 500), Stretch(5, 200, 1000, 500), Stretch(5, 100, 2000, 400)]
    busy = [
        Stretch(8, 110, 1100, 450, trainer_share=0.1),
        Stretch(8, 240, 9000, 500, trainer_share=0.2),
        Stretch(8, 130, 2400, 400, trainer_share=0.9),
    ]
    found = compared(busy, quiet)
    assert found["p99_ratios"] == pytest.approx([1.1, 9.0, 1.2])
    assert found["p99_ratio"] == pytest.approx(1.2), "one bad round is not the figure"
    assert found["p50_ratio"] == pytest.approx(1.2)
    assert found["throughput_ratio"] == pytest.approx(1.0)
    assert found["trainer_share"] == pytest.approx(0.2)
    assert found["p99_us"] == {"training": 2400.0, "without": 1000.0}
    assert [each["training"]["p99_us"] for each in found["rounds"]] == [1100, 9000, 2400]


def test_the_summary_has_every_figure_that_is_promised() -> None:
    one = compared([Stretch(1, 2, 3, 4)], [Stretch(1, 1, 1, 8)])
    found = summary({"steady": {**one, "training_s": 9.0}, "saturated": one})
    assert set(FIGURES) <= set(found)
    assert (found["p99_ratio"], found["p50_ratio"], found["training_s"]) == (3.0, 2.0, 9.0)
    assert (found["saturated_p99_ratio"], found["throughput_ratio"]) == (3.0, 0.5)


@pytest.mark.e2e
@needs_compiler
def test_a_training_under_a_steady_load_is_compared_with_a_stretch_without(tmp_path: Path) -> None:
    """A real server and a training of its own, which publishes a version."""
    paced_load.compiled()
    size = Size(History(10_000, 4_000, trees=5), rounds=1, quiet_s=0.5, settle_s=0.1)
    with serving(tmp_path, size.history) as server:
        part = steady(server, server.reply(), tmp_path / "load", size, 200.0)
        server.check_trainings()
        assert server.children() == []
    assert part["trainings"] == 1 and part["training_s"] > 0.5
    assert part["requests"] >= 200 * (part["training_s"] + size.quiet_s)
    assert part["p99_ratio"] > 0 and 0 < part["trainer_share"] <= 1.1
    assert part["p99_us"]["training"] >= part["p50_us"]["training"] > 0
