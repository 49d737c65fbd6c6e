"""Every task from a recipe to a reply: trained, published, loaded, served, watched."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from numpy.typing import NDArray

from tests.served import served

pytestmark = pytest.mark.e2e

ROWS = 3000
NAMES = np.array(["cold", "warm", "hot"])


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("regression", lambda y: y),
        ("binary", lambda y: (y > 0).astype(np.int64)),
        ("binary", lambda y: NAMES[(y > 0).astype(np.int64)]),
        ("multiclass", lambda y: np.digitize(y, [-1, 1])),
        ("multiclass", lambda y: NAMES[np.digitize(y, [-1, 1])]),
    ],
    ids=["regression", "binary", "binary text", "multiclass", "multiclass text"],
)
def test_a_model_of_each_task_is_trained_served_and_watched(
    tmp_path: Path, task: str, target: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> None:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    x, z = random.normal(size=(2, ROWS))
    kind = random.choice(["a", "b"], ROWS)
    y = target(2 * x + (kind == "a") + 0.1 * z)
    time = np.arange(ROWS) * 60_000
    pl.DataFrame({"x": x, "z": z, "kind": kind, "y": y, "t": time}).write_parquet(
        folder / "history.parquet"
    )
    (folder / "trimtab.toml").write_text(
        f'[recipe]\ntask = "{task}"\ntarget = "y"\nnumeric = ["x", "z"]\ncategorical = ["kind"]\n'
        'time = "t"\nfiles = ["history.parquet"]\n'
    )
    train = [sys.executable, "-m", "trimtab.server", "train", str(tmp_path / "models"), "m"]
    subprocess.run(train, check=True, timeout=120, capture_output=True)
    live = 2000
    numeric = random.normal(size=(live, 2)).astype(np.float32)
    categorical = random.choice(["a", "b"], live)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as the server's: how rows are shared out changes last bits
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", options)
    with served(tmp_path / "models", "--set", "drift.window_rows=2000") as server:
        for start in range(0, live, 100):
            rows = slice(start, start + 100)
            reply = server.infer(
                "m",
                {
                    "numeric": numeric[rows],
                    "categorical": [each.encode() for each in categorical[rows]],
                },
            )
            expected = session.run(
                None,
                {
                    "numeric": numeric[rows],
                    "categorical": categorical[rows].astype(object)[:, None],
                },
            )
            for output, raw, wanted in zip(
                reply.outputs, reply.raw_output_contents, expected, strict=True
            ):
                if output.datatype == "BYTES":
                    assert raw == b"".join(
                        len(each).to_bytes(4, "little") + each.encode() for each in wanted
                    )
                else:
                    assert np.frombuffer(raw, wanted.dtype).tolist() == wanted.ravel().tolist()
        server.settle("m", live)
        report = server.admin.drift("m")
        assert server.stop() == 0

    assert report.observed_rows == live
    assert report.state == "ok", report
    assert {each.role for each in report.features} == {"input", "output"}
