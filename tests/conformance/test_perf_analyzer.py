"""Triton's perf_analyzer measures a server of ours: it is told what it asks for, and all it sends is answered.

How fast is no matter here; benchmarks/ measure that.
"""

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models
from tests.live import LiveServer, served

REQUESTS = 150
CONFIG = """
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, frontend: str, perf_analyzer: Path
) -> Iterator[LiveServer]:
    models_dir = tmp_path_factory.mktemp("models")
    models.write(models_dir / "scaled/1", models.scaled(2.0))
    (models_dir / "scaled/config.pbtxt").write_text(CONFIG)
    models.write(models_dir / "words/3", models.identity([("BYTES", ["N", None])]))
    models.write(models_dir / "alone/1", models.identity([("FP32", [3, 4])]))
    with served(models_dir, frontend=frontend) as running:
        yield running


@pytest.mark.parametrize(
    ("options", "model", "rows"),
    [
        (["--concurrency-range", "1", "--sync"], "scaled", 1),
        (["--concurrency-range", "16", "--sync"], "scaled", 1),
        (["--concurrency-range", "16", "--async"], "scaled", 1),
        (["--concurrency-range", "16", "--async", "--streaming"], "scaled", 1),
        (["--request-rate-range", "100", "--request-distribution", "poisson"], "scaled", 1),
        (["--concurrency-range", "4", "-b", "8"], "scaled", 8),
        (["--concurrency-range", "4", "--grpc-compression-algorithm", "gzip"], "scaled", 1),
        (["--concurrency-range", "4", "--shape", "in0:3", "-x", "3"], "words", 1),
        (["--concurrency-range", "4"], "alone", 3),
    ],
    ids=["alone", "sync", "async", "stream", "rate", "batch", "gzip", "words", "unbatched"],
)
def test_what_it_sends_is_answered_and_counted(
    server: LiveServer,
    perf_analyzer: Path,
    tmp_path: Path,
    options: list[str],
    model: str,
    rows: int,
) -> None:
    table = tmp_path / "measured.csv"
    command = [
        *(str(perf_analyzer), "-m", model, "-i", "grpc", "-u", f"127.0.0.1:{server.port}"),
        *("--request-count", str(REQUESTS), "-f", str(table), *options),
    ]
    before = server.manager.resolve(model, "").statistics()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(re.findall(r"^ *([^:\n]+): (\d+)$", done.stdout, re.MULTILINE))
    assert int(said["Request count"]) == REQUESTS
    after = server.manager.resolve(model, "").statistics()
    assert after.success.count - before.success.count == REQUESTS
    assert after.rows - before.rows == REQUESTS * rows
    assert after.fail.count == 0
    # Of its two looks at ModelStatistics the first may come when some were answered.
    assert 0 < int(said["Successful request count"]) <= REQUESTS
    with table.open() as file:
        (measured,) = csv.DictReader(file)
    assert float(measured["Inferences/Second"]) > 0
    assert float(measured["Server Compute Infer"]) > 0


def test_an_unknown_model_is_told(server: LiveServer, perf_analyzer: Path) -> None:
    done = subprocess.run(
        [str(perf_analyzer), "-m", "nope", "-i", "grpc", "-u", f"127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Request for unknown model: 'nope' is not found" in done.stdout + done.stderr
