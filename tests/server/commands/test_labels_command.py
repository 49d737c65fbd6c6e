"""A file of labels submitted by hand to a real server, and one left in its directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tests import models
from tests.admin_port import LISTEN, serving
from tests.live import infer_request
from tests.loop_fakes import wait_until
from trimtab.server.app import Listening
from trimtab.server.commands import cli
from trimtab.server.loop import label_drop

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, ["labels", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Listening]]:
    models_dir = tmp_path_factory.mktemp("models")
    models.publish(models_dir, "m", models.scaled(2.0))
    (models_dir / "m" / "labels_in").mkdir()
    with serving(models_dir, LISTEN) as listening:
        yield models_dir, listening


def answered(listening: Listening, call: str, rows: int) -> None:
    request = infer_request("m", {"x": np.ones((rows, 2), np.float32)}, id=call)
    with grpc.insecure_channel(listening.inference) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
        assert method(request.SerializeToString(), timeout=30)


def test_a_file_is_submitted_and_its_labels_are_in_the_log(
    served: tuple[Path, Listening], tmp_path: Path
) -> None:
    models_dir, listening = served
    answered(listening, "by-hand", 3)
    file = tmp_path / "truth.csv"
    file.write_text("id,row,label\nby-hand,0,2.5\nby-hand,1,\nby-hand,2,4\nby-hand,2,5\n")
    result = run(models_dir, "m", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.strip() == (
        "3 labels of model m were taken; 1 rows had none yet; "
        "1 rows were in it more than once, the last one counts"
    )
    result = run(models_dir, "m", file, "--json")
    assert json.loads(result.stdout) == {
        "model": "m", "rows": 4, "labels": 3, "unlabelled": 1, "repeated": 1,
    }  # fmt: skip
    assert file.exists(), "a file that is submitted by hand stays where it is"
    log = (models_dir / ".trimtab" / "m" / "labels" / "active.frames").read_bytes()
    assert log.count(b"by-hand") == 6, "three labels, twice"


def test_what_is_wrong_with_a_file_or_refused_by_the_server_is_said_and_fails(
    served: tuple[Path, Listening], tmp_path: Path
) -> None:
    models_dir, listening = served
    file = tmp_path / "truth.csv"
    file.write_text("id,row,label\na,0,1\n,1,1\nb,x,1\n")
    result = run(models_dir, "m", file)
    assert result.exit_code == 1
    assert "truth.csv: 2 of its 3 rows cannot be taken: row 2: the column 'id' is empty" in (
        result.stderr
    )
    assert "row 3 (id 'b'): the column 'row' has 'x', not a whole number" in result.stderr
    file.write_text("id,row,label\na,1000000,1\n")
    result = run(models_dir, "m", file, "--server", listening.inference)
    assert result.exit_code == 1 and "row 1,000,000 is none, a request has at most" in result.stderr
    result = run(models_dir, "other", file)
    assert result.exit_code == 1 and "unknown model: 'other' is not found" in result.stderr
    result = run(models_dir, "m", tmp_path / "absent.parquet")
    assert result.exit_code == 1 and "absent.parquet cannot be opened: No such" in result.stderr
    result = run(tmp_path, "m", file)
    assert result.exit_code == 1 and "no server runs on" in result.stderr
    assert run(models_dir, "m", file, "--server", "nowhere").exit_code == 2
    assert run(models_dir, "m", file, "--tls-cert", file).exit_code == 2


def test_a_file_left_in_the_models_directory_is_taken_by_the_server(
    served: tuple[Path, Listening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_drop, "STILL_S", 0.2)
    models_dir, listening = served
    answered(listening, "dropped", 50)
    folder = models_dir / "m" / "labels_in"
    rows = {"id": ["dropped"] * 50, "row": list(range(50)), "label": [2.0] * 50}
    pl.DataFrame(rows).write_parquet(folder / "truth.parquet.tmp")
    (folder / "poison.parquet").write_bytes(b"not Parquet")
    (folder / "truth.parquet.tmp").rename(folder / "truth.parquet")
    done, error = folder / "done" / "truth.parquet", folder / "failed" / "poison.parquet.error.txt"
    wait_until(lambda: done.exists() and error.exists(), "both files are dealt with", 30)
    assert error.read_text().startswith("poison.parquet cannot be read: parquet: ")
    log = (models_dir / ".trimtab" / "m" / "labels" / "active.frames").read_bytes()
    assert log.count(b"dropped") == 50
    answered(listening, "after", 1)
