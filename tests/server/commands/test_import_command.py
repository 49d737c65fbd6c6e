"""`trimtab import`: what becomes a version, and that nothing does when something is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from typer.testing import CliRunner

from tests import models
from trimtab._native.reference import ReferenceProfile
from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.signing import TrustedKeys
from trimtab.server.commands import cli, version_import
from trimtab.server.inference.servable import Servable
from trimtab.server.loop.training_run import TrainingResult

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.onnx"
    path.write_bytes(models.scaled(2.0))
    return path


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def refused(models_dir: Path, problem: str, *arguments: object) -> None:
    """An import fails with one sentence, and leaves no trace."""
    before = sorted(models_dir.rglob("*"))
    result = run("import", *arguments)
    assert result.exit_code == 1, result.output
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and problem in error
    assert sorted(models_dir.rglob("*")) == before


def with_weights(location: str) -> bytes:
    """y = factor · x, the factor in another file."""
    model = onnx.load_from_string(models.scaled(2.0))
    factor = model.graph.initializer[0]
    factor.ClearField("raw_data")
    factor.data_location = onnx.TensorProto.EXTERNAL
    factor.external_data.add(key="location", value=location)
    return model.SerializeToString()


FACTOR = np.array(2.0, dtype=np.float32).tobytes()


def test_a_model_becomes_a_version_that_a_server_loads(models_dir: Path, source: Path) -> None:
    options = ("--columns", "x=distance,delay", "--reason", "from the lab", "--actor", "ann")
    result = run("import", source, models_dir, "airtime", *options, "--task", "regression")
    assert result.exit_code == 0, result.output
    assert "input x FP32 [-1, 2]: distance, delay" in result.stdout
    assert "run on 2 made-up rows of zeros" in result.stdout
    assert "it is the champion" in result.stdout
    directory = ModelDirectory(models_dir / "airtime")
    manifest = directory.verify(1)
    assert sorted(manifest.files) == ["model.onnx", "report.json"]
    assert manifest.signature.inputs[0].columns == ("distance", "delay")
    assert (manifest.publication.actor, manifest.publication.reason) == ("ann", "from the lab")
    assert manifest.lineage["imported_from"] == {
        "file": "mine.onnx",
        "sha256": manifest.files["model.onnx"].sha256,
    }
    assert set(manifest.lineage["libraries"]) == {"trimtab", "numpy", "onnxruntime"}
    report = json.loads((directory.version_path(1) / "report.json").read_text())
    assert report["imported"]["run_on"] == "2 made-up rows of zeros"
    Servable.load(directory, 1, managed=True).close()


def test_rows_become_golden_rows_and_a_reference(
    models_dir: Path, source: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.parquet"
    pl.DataFrame({"b": np.arange(500.0), "a": np.arange(500.0) / 10}).write_parquet(rows)
    options = ("--columns", "a,b", "--golden-rows", rows, "--reference-rows", rows, "--json")
    result = run("import", source, models_dir, "airtime", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["golden_rows"], told["reference_rows"]) == (256, 500)
    assert told["inputs"][0]["columns"] == ["a", "b"]
    path = models_dir / "airtime" / "1"
    assert ReferenceProfile.load(path / "reference.npz").rows == 500
    servable = Servable.load(ModelDirectory(models_dir / "airtime"), 1, managed=True)
    assert servable.reference_path == path / "reference.npz"
    servable.close()
    with np.load(path / "golden.npz") as golden:
        np.testing.assert_array_equal(golden["output/y"], 2 * golden["input/x"])
    assert json.loads((path / "report.json").read_text())["imported"]["golden_rows"] == 256


def test_rows_that_do_not_fit_publish_nothing(
    models_dir: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_training(arguments: list[str], _: object) -> TrainingResult:
        request = json.loads(Path(arguments[1]).read_text())
        assert request["golden_rows"] == str(Path("rows.parquet").absolute())
        assert (request["reference_rows"], Path(request["model"]).exists()) == (None, True)
        return TrainingResult("failed", "rows.parquet has no column 'b'")

    monkeypatch.setattr(version_import, "run_training", run_training)
    arguments = (source, models_dir, "airtime", "--golden-rows", "rows.parquet")
    refused(models_dir, "rows.parquet has no column 'b'", *arguments)


@pytest.mark.parametrize(
    ("options", "champion", "told"),
    [
        ((), 1, "it waits for: trimtab promote"),
        (("--promote",), 2, "it is the champion"),
        (("--no-promote",), 1, "it waits for: trimtab promote"),
    ],
)
def test_a_later_version_waits_unless_it_is_to_be_promoted(
    models_dir: Path, source: Path, options: tuple[str, ...], champion: int, told: str
) -> None:
    run("import", source, models_dir, "airtime")
    result = run("import", source, models_dir, "airtime", *options)
    assert told in result.stdout
    assert ModelDirectory(models_dir / "airtime").state().champion == champion


def test_the_first_version_waits_if_that_is_wanted(models_dir: Path, source: Path) -> None:
    assert run("import", source, models_dir, "airtime", "--no-promote").exit_code == 0
    assert ModelDirectory(models_dir / "airtime").state().champion is None


def test_the_task_is_taken_from_the_outputs_and_told(models_dir: Path, source: Path) -> None:
    source.write_bytes(models.logistic(3))
    result = run("import", source, models_dir, "airtime")
    assert "note: the task is taken to be binary" in result.stderr
    assert ModelDirectory(models_dir / "airtime").manifest(1).task == "binary"


def test_a_version_of_a_plain_repository_is_taken_with_its_weights(
    models_dir: Path, tmp_path: Path
) -> None:
    path = models.write(tmp_path / "plain" / "1", with_weights("w.bin"))
    (path / "w.bin").write_bytes(FACTOR)
    (path / "labels.txt").touch()
    result = run("import", path, models_dir, "airtime")
    assert result.exit_code == 0, result.output
    manifest = ModelDirectory(models_dir / "airtime").verify(1)
    assert sorted(manifest.files) == ["model.onnx", "report.json", "w.bin"]
    weights = manifest.lineage["imported_from"]["external_data"]
    assert weights == {"w.bin": manifest.files["w.bin"].sha256}


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("../w.bin", "keeps weights in '../w.bin', which leads out of its directory"),
        ("/etc/passwd", "keeps weights in '/etc/passwd', an absolute path"),
        ("sub/w.bin", "keeps weights in 'sub/w.bin', in another directory"),
        ("link.bin", "link.bin: a symbolic link (to w.bin); give the file itself"),
        ("none.bin", "none.bin: missing"),
        ("pipe", "pipe: not a regular file"),
        ("golden.npz", "'golden.npz', which no such file of a version may be called"),
        (".hidden", "'.hidden', which no such file of a version may be called"),
        ("short.bin", "onnxruntime refuses model.onnx"),
    ],
)
def test_weights_anywhere_else_are_refused(
    models_dir: Path, tmp_path: Path, location: str, problem: str
) -> None:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for name in ("../w.bin", "w.bin", "sub/w.bin", "golden.npz", ".hidden"):
        (folder / name).write_bytes(FACTOR)
    (folder / "short.bin").write_bytes(b"\0")
    (folder / "link.bin").symlink_to("w.bin")
    os.mkfifo(folder / "pipe")
    (folder / "model.onnx").write_bytes(with_weights(location))
    refused(models_dir, problem, folder, models_dir, "airtime")


def test_what_is_no_model_is_refused(models_dir: Path, source: Path, tmp_path: Path) -> None:
    refused(models_dir, "no such file or directory", tmp_path / "none", models_dir, "airtime")
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    refused(models_dir, "link.onnx: a symbolic link", link, models_dir, "airtime")
    refused(
        models_dir,
        "give the file that you mean: link.onnx, mine.onnx",
        *(tmp_path, models_dir, "a"),
    )
    models.write(tmp_path / "plain" / "7", models.scaled(2.0))
    refused(models_dir, "give one of its versions: 7", tmp_path / "plain", models_dir, "airtime")
    refused(models_dir, "model name '../a' is not allowed", source, models_dir, "../a")
    data = source.read_bytes()
    source.write_bytes(data[:40])
    refused(models_dir, "mine.onnx: not an ONNX model, or cut off", source, models_dir, "airtime")
    with source.open("wb") as file:
        file.truncate(2_000_000_000)
    refused(models_dir, "mine.onnx: not an ONNX model", source, models_dir, "airtime")
    source.write_bytes(data.replace(b"Mul", b"Mol"))
    refused(models_dir, "mine.onnx: onnxruntime refuses model.onnx", source, models_dir, "airtime")


def test_a_model_that_fails_on_zeros_is_refused(models_dir: Path, source: Path) -> None:
    source.write_bytes(models.lookup(0))
    problem = "cannot be run on zeros and empty strings"
    refused(models_dir, problem, source, models_dir, "airtime")


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (("a,b,c",), "names 3 columns of 'x', whose shape is [-1, 2]"),
        (("a,a",), "a name is empty or there twice"),
        (("y=a,",), "a name is empty or there twice"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    models_dir: Path, source: Path, columns: tuple[str, ...], problem: str
) -> None:
    options = [part for each in columns for part in ("--columns", each)]
    refused(models_dir, problem, source, models_dir, "airtime", *options)


def test_columns_of_several_inputs_name_theirs(models_dir: Path, source: Path) -> None:
    source.write_bytes(models.flights())
    for wrong in ("a,b", "other=a,b"):
        problem = "must begin with the name of a tensor and '='; there are numeric, categorical"
        refused(models_dir, problem, source, models_dir, "airtime", "--columns", wrong)
    options = ("--columns", "numeric=a,b", "--columns", "categorical=c", "--columns", "variable=y")
    assert run("import", source, models_dir, "airtime", *options).exit_code == 0
    signature = ModelDirectory(models_dir / "airtime").manifest(1).signature
    assert [spec.columns for spec in signature.inputs] == [("a", "b"), ("c",)]
    assert signature.outputs[0].columns == ("y",)


def test_a_model_in_triton_s_layout_is_not_put_out_of_service(
    models_dir: Path, source: Path
) -> None:
    plain = models.write(models_dir / "airtime" / "3", models.scaled(5.0))
    problem = "has versions without a manifest (3), which would not be served any more"
    refused(models_dir, problem, source, models_dir, "airtime")
    result = run("import", plain, models_dir, "airtime")
    assert result.exit_code == 0, result.output
    directory = ModelDirectory(models_dir / "airtime")
    assert (directory.versions(), directory.state().champion) == ([4], 4)


def test_an_exported_version_keeps_what_was_known_of_it(models_dir: Path, tmp_path: Path) -> None:
    model = models.scaled(2.0)
    golden = models.golden_of(model, tmp_path)
    models.publish(models_dir, "airtime", model, golden=golden, columns={"x": ("a", "b")})
    archive = tmp_path / "out.tar.gz"
    assert run("export", models_dir, "airtime", "--to", archive).exit_code == 0
    result = run("import", archive, models_dir, "other", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["golden_rows"] == 8
    before = ModelDirectory(models_dir / "airtime").manifest(1)
    after = ModelDirectory(models_dir / "other").verify(1)
    assert (after.files, after.signature, after.metrics) == (
        *(before.files, before.signature, before.metrics),
    )
    published = ModelDirectory(models_dir / "airtime").history().entries[0]
    assert after.lineage["exported_from"] == {
        "model": "airtime",
        "version": 1,
        "manifest_sha256": published.evidence["manifest_sha256"],
    }
    for option in (("--columns", "a,b"), ("--task", "binary"), ("--golden-rows", "x.parquet")):
        problem = f"brings its own: {option[0]} cannot change it"
        refused(models_dir, problem, archive, models_dir, "third", *option)


def test_an_exported_version_whose_golden_rows_differ_is_refused(
    models_dir: Path, tmp_path: Path
) -> None:
    golden = models.golden_of(models.scaled(3.0), tmp_path)
    models.publish(models_dir, "airtime", models.scaled(2.0), golden=golden)
    problem = "the golden rows give other results"
    refused(models_dir, problem, models_dir / "airtime" / "1", models_dir, "other")


def test_a_version_is_signed_and_taken_from_those_alone_who_are_trusted(
    models_dir: Path, source: Path, tmp_path: Path
) -> None:
    for name in ("ann", "bob"):
        result = run("keys", "new", tmp_path / name, "--json")
        assert json.loads(result.stdout)["public"] == str(tmp_path / f"{name}.pub")
    ann, bob = tmp_path / "ann", tmp_path / "bob"
    result = run("import", source, models_dir, "airtime", "--signing-key", ann)
    assert "signed by SHA256:" in result.stdout
    version = models_dir / "airtime" / "1"
    fingerprint = signing.verify(version, TrustedKeys.load([tmp_path / "ann.pub"]), "airtime")
    problem = "is by the key SHA256:"
    refused(models_dir, problem, version, models_dir, "other", "--trusted-key", f"{bob}.pub")
    result = run("import", version, models_dir, "other", "--trusted-key", f"{ann}.pub")
    assert result.exit_code == 0, result.output
    lineage = ModelDirectory(models_dir / "other").manifest(1).lineage
    assert lineage["exported_from"]["signed_by"] == fingerprint
    unsigned = models_dir / "other" / "1"
    problem = "is not signed: it has no manifest.sig"
    refused(models_dir, problem, unsigned, models_dir, "third", "--trusted-key", f"{ann}.pub")
    problem = "is no exported version, so nobody signed it"
    refused(models_dir, problem, source, models_dir, "third", "--trusted-key", f"{ann}.pub")
    problem = "none.key: cannot be read"
    missing = tmp_path / "none.key"
    refused(models_dir, problem, source, models_dir, "third", "--signing-key", missing)


def test_keys_new_tells_where_the_keys_are_and_overwrites_none(tmp_path: Path) -> None:
    result = run("keys", "new", tmp_path / "k")
    assert f"public key:  {tmp_path / 'k.pub'}" in result.stdout
    result = run("keys", "new", tmp_path / "k")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "exists already" in result.stderr


def test_help_shows_an_example() -> None:
    assert "trimtab import model.onnx models airtime" in run("import", "--help").output
    assert "trimtab keys new" in run("keys", "new", "--help").output
