"""The hot-swap benchmark reads every answer, so that no failed or wrong one goes unnoticed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checking_load import ERROR, UNEXPECTED, Answers, sending
from hot_swap import FIGURES, Pair, Size, Turn, _ratios, summary, swaps_under_load
from load import Load
from swap_server import Swap

from tests import models
from tests.live import LiveServer, infer_request, served
from trimtab.proto import open_inference_pb2 as pb

LOAD = Load(2, 8)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    (tmp_path / "models").mkdir()
    for factor in (1.0, 2.0):
        models.publish(tmp_path / "models", "m", models.scaled(factor))
    with served(tmp_path / "models", frontend="auto") as running:
        yield running


def request(model: str = "m") -> bytes:
    x = np.ones((1, 2), np.float32)
    return infer_request(model, {"x": x}, id="one").SerializeToString()


def reply(version: int) -> bytes:
    out = pb.ModelInferResponse(model_name="m", model_version=str(version), id="one")
    out.outputs.add(name="y", datatype="FP32", shape=(1, 2))
    out.raw_output_contents.append(np.full((1, 2), version, np.float32).tobytes())
    return out.SerializeToString()


@needs_compiler
def test_every_answer_is_told_apart_by_its_version(server: LiveServer, tmp_path: Path) -> None:
    address = f"127.0.0.1:{server.port}"
    replies = [reply(1), reply(2)]
    with sending(address, request(), replies, LOAD, tmp_path / "first") as first:
        server.manager.promote("m", 2, actor="a", reason="r")
        with sending(address, request(), replies, LOAD, tmp_path / "second") as second:
            after = second.stop()
        answers = first.stop()
    for load, found in ((first, answers), (second, after)):
        assert (load.failed, load.unexpected) == (0, 0)
        assert len(found.reply) >= LOAD.in_flight
        assert (np.diff(found.at_s) >= 0).all() and (found.took_us >= 0).all()
    assert answers.reply[0] == 0 and set(after.reply) == {1}
    counted = sum(executor.statistics().success.count for _, _, executor in server.manager.loaded())
    assert counted == len(answers.reply) + len(after.reply)


@needs_compiler
def test_an_answer_that_is_not_expected_is_noticed(server: LiveServer, tmp_path: Path) -> None:
    address = f"127.0.0.1:{server.port}"
    server.manager.promote("m", 2, actor="a", reason="r")
    with sending(address, request(), [reply(1)], LOAD, tmp_path / "load") as load:
        answers = load.stop()
    assert load.unexpected == (answers.reply == UNEXPECTED).sum() == len(answers.reply)


@needs_compiler
def test_a_request_that_is_refused_is_noticed(server: LiveServer, tmp_path: Path) -> None:
    address = f"127.0.0.1:{server.port}"
    with sending(address, request("x"), [reply(1)], LOAD, tmp_path / "load") as load:
        answers = load.stop()
    assert load.failed == (answers.reply == ERROR).sum() == len(answers.reply)


@needs_compiler
def test_a_server_that_goes_away_fails_what_is_under_way(
    server: LiveServer, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{server.port}"
    with sending(address, request(), [reply(1)], LOAD, tmp_path / "load") as load:
        server.manager.stop_accepting()
        answers = load.stop()
    assert load.failed == (answers.reply == ERROR).sum()
    assert load.unexpected == 0


def test_a_rollback_takes_until_the_last_answer_of_the_version_it_takes_back() -> None:
    from hot_swap import _until_gone

    at = np.array([1.000, 1.004, 1.009, 1.011, 1.200, 1.210])
    answers = Answers(at, np.ones(6, np.int32), np.array([1, 1, 1, 0, 0, 1], np.int32))
    swaps = [Swap(1, 1.001, 1.008), Swap(2, 1.205, 1.209)]
    assert _until_gone(answers, swaps, 0) == pytest.approx(8.0)
    assert _until_gone(answers, swaps, 1) == 0.0, "no answer of version 1 came any more"


def test_a_slow_moment_spoils_pairs_and_not_their_median() -> None:
    """30 pairs of servers of which one takes 2 % longer, on a machine that halves its speed."""
    random = np.random.default_rng(3)
    pairs = []
    for _ in range(30):
        moments = random.normal(1, 0.05, 2) * np.where(random.random(2) < 0.1, 2, 1)
        pairs.append(
            Pair(
                *(
                    Turn(us * each, 1 / each, 1.0)
                    for us, each in zip((102, 100), moments, strict=True)
                )
            )
        )
    found = _ratios(pairs, "p50_us")
    assert found["low"] < 1.02 < found["high"]
    assert abs(found["median"] - 1.02) < 0.03
    assert found["high"] - found["low"] < 0.2
    assert _ratios(pairs, "cpu_us") == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert _ratios(pairs[:1], "per_s")["low"] == pairs[0].ratio("per_s")


@needs_compiler
def test_the_figures_are_those_that_are_promised(tmp_path: Path) -> None:
    """A real server, a few swaps under full load."""
    part = swaps_under_load(tmp_path, Size(swaps=4, rounds=1, stretch_s=0.4))
    assert (part["swaps"], part["failed_requests"], part["wrong_replies"]) == (4, 0, 0)
    assert part["requests"] > 100
    found = summary({"swaps": part})
    for name in FIGURES:
        assert name.partition(".")[0] in found
    assert found["swaps"] == 4 and found["p99_ratio"] > 0 and found["rss_growth_mb"] is None
    assert set(found["rollback_ms"]) >= {"median", "p99"}
