"""`trimtab export`: what leaves a registry, for another one and for Triton."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from typer.testing import CliRunner

from tests import models
from trimtab.proto import model_config_pb2 as pb
from trimtab.registry.directory import ModelDirectory
from trimtab.server.commands import cli
from trimtab.server.inference.servable import Servable
from trimtab.server.lifecycle import model_config

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def test_the_champion_is_exported_with_its_part_of_the_history(
    models_dir: Path, tmp_path: Path
) -> None:
    for factor in (1.0, 2.0):
        models.publish(models_dir, "airtime", models.scaled(factor))
    directory = ModelDirectory(models_dir / "airtime")
    directory.promote(2, actor="ann", reason="better")
    result = run("export", models_dir, "airtime", "--to", tmp_path / "out")
    assert result.stdout == f"exported version 2 of airtime to {tmp_path / 'out'}\n"
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (told["model"], told["version"]) == ("airtime", 2)
    assert [entry["kind"] for entry in told["history"]] == ["published", "promoted"]
    ModelDirectory(tmp_path / "out").verify(2)
    result = run(
        *("export", models_dir, "airtime", "--version", 1, "--to", tmp_path / "one.tgz", "--json")
    )
    assert json.loads(result.stdout)["version"] == 1


@pytest.mark.parametrize("triton", [(), ("--triton",)])
def test_a_version_that_was_altered_is_not_exported(
    models_dir: Path, tmp_path: Path, triton: tuple[str, ...]
) -> None:
    models.publish(models_dir, "airtime", models.scaled(1.0))
    (models_dir / "airtime" / "1" / "model.onnx").write_bytes(models.scaled(9.0))
    result = run("export", models_dir, "airtime", "--to", tmp_path / "out", *triton)
    assert result.exit_code == 1
    assert "model.onnx: its SHA-256 is not the one in the manifest" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(models_dir: Path, tmp_path: Path) -> None:
    to = ("--to", tmp_path / "out")
    assert "has no version to export" in run("export", models_dir, "airtime", *to).stderr
    models.publish(models_dir, "airtime", models.scaled(1.0))
    result = run("export", models_dir, "airtime", "--version", 7, *to)
    assert result.stderr == "error: model 'airtime' has no version 7; it has 1\n"
    models.write(models_dir / "plain" / "3", models.scaled(1.0))
    result = run("export", models_dir, "plain", *to)
    assert "3: has no manifest.json; --triton exports it" in result.stderr
    assert run("export", models_dir, "plain", *to, "--triton").exit_code == 0


def tensors_of(config: pb.ModelConfig) -> list[Any]:
    return [*config.input, *config.output]


def config_of(path: Path) -> pb.ModelConfig:
    """The configuration, if Triton would take it: the rules of its model_config_utils.cc."""
    config = pb.ModelConfig()
    text = (path / "config.pbtxt").read_text()
    text_format.Parse(text, config)
    assert config.backend == "onnxruntime"
    assert "max_batch_size" in text
    for tensor in tensors_of(config):
        assert tensor.name and tensor.data_type != pb.TYPE_INVALID
        assert tensor.dims and all(size == -1 or size > 0 for size in tensor.dims)
        if tensor.HasField("reshape"):
            assert config.max_batch_size > 0
            assert (list(tensor.dims), list(tensor.reshape.shape)) == ([1], [])
    return config


def test_triton_s_configuration_says_what_the_version_is(models_dir: Path, tmp_path: Path) -> None:
    columns = {"input": ("a", "b\n", "c")}
    models.publish(models_dir, "airtime", models.logistic(3), columns=columns)
    path = tmp_path / "anything"
    assert run("export", models_dir, "airtime", "--triton", "--to", path).exit_code == 0
    assert sorted(str(each.relative_to(path)) for each in path.rglob("*")) == [
        *("1", "1/model.onnx", "config.pbtxt")
    ]
    config = config_of(path)
    assert (config.name, config.max_batch_size) == ("", 1024)
    assert config.HasField("dynamic_batching")
    (taken,) = config.input
    assert (taken.name, taken.data_type, list(taken.dims)) == ("input", pb.TYPE_FP32, [3])
    label, probabilities = config.output
    assert (label.data_type, label.HasField("reshape")) == (pb.TYPE_INT64, True)
    assert list(probabilities.dims) == [2]
    assert '["input", "a", "b\\n", "c"]' in (path / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("model", "dims"),
    [
        (models.centred(), [[-1, 2], [-1, 2]]),  # its rows influence each other
        (models.identity([("FP32", (4, 2))]), [[4, 2], [4, 2]]),
        (models.identity([("BYTES", (3,))]), [[3], [3]]),
    ],
)
def test_a_model_whose_rows_cannot_share_a_run_is_not_batched(
    models_dir: Path, tmp_path: Path, model: bytes, dims: list[list[int]]
) -> None:
    models.publish(models_dir, "airtime", model)
    assert run("export", models_dir, "airtime", "--triton", "--to", tmp_path / "t").exit_code == 0
    config = config_of(tmp_path / "t")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(each.dims) for each in tensors_of(config)] == dims


def test_a_scalar_cannot_be_said_to_triton(models_dir: Path, tmp_path: Path) -> None:
    models.publish(models_dir, "airtime", models.identity([("FP32", ())]))
    result = run("export", models_dir, "airtime", "--triton", "--to", tmp_path / "t")
    assert "'in0' has the shape [], which Triton's configuration cannot express" in result.stderr
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("model", [models.flights(), models.logistic(), models.centred()])
def test_what_was_exported_to_triton_is_served_here_as_well(
    models_dir: Path, tmp_path: Path, model: bytes
) -> None:
    models.publish(models_dir, "airtime", model)
    run("export", models_dir, "airtime", "--triton", "--to", tmp_path / "t")
    directory = ModelDirectory(tmp_path / "t")
    config = model_config.read(directory.path)
    assert set(config.ignored) <= {"output.reshape"}  # applied by Triton's clients alone
    servable = Servable.load(directory, 1, managed=False)
    assert model_config.mismatch(config, servable.signature) == ""
    servable.close()


def test_weights_beside_the_model_go_to_triton_with_it(models_dir: Path, tmp_path: Path) -> None:
    model = onnx.load_from_string(models.scaled(2.0))
    factor = model.graph.initializer[0]
    factor.ClearField("raw_data")
    factor.data_location = onnx.TensorProto.EXTERNAL
    factor.external_data.add(key="location", value="w.bin")
    path = models.write(models_dir / "plain" / "1", model.SerializeToString())
    (path / "w.bin").write_bytes(np.array(2.0, dtype=np.float32).tobytes())
    (path / "other").touch()
    target = tmp_path / "t.tar.gz"
    assert run("export", models_dir, "plain", "--triton", "--to", target).exit_code == 0
    with tarfile.open(target) as archive:
        assert archive.getnames() == [
            *("plain/config.pbtxt", "plain/1/model.onnx", "plain/1/w.bin")
        ]


def test_help_shows_an_example() -> None:
    assert "trimtab export models airtime" in run("export", "--help").output
