"""ModelConfig: what config.pbtxt and the loaded version say, and that metadata says the same."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests import models
from tests.live import LiveServer, live_server
from trimtab.proto import model_config_pb2
from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.config import BatchingConfig

BATCHING = BatchingConfig(max_request_rows=500, linger_ms=1.5)
FP32, INT64 = model_config_pb2.TYPE_FP32, model_config_pb2.TYPE_INT64
Ask = Callable[[str], Awaitable[tuple[model_config_pb2.ModelConfig, pb.ModelMetadataResponse]]]


def ask(models_dir: Path, body: Callable[[Ask, LiveServer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with live_server(models_dir, batching=BATCHING) as server:

            async def both(
                name: str,
            ) -> tuple[model_config_pb2.ModelConfig, pb.ModelMetadataResponse]:
                config = await server.client.call("ModelConfig", pb.ModelConfigRequest(name=name))
                about = await server.client.call(
                    "ModelMetadata", pb.ModelMetadataRequest(name=name)
                )
                return (
                    pb.ModelConfigResponse.FromString(config).config,
                    pb.ModelMetadataResponse.FromString(about),
                )

            await body(both, server)

    asyncio.run(main())


def shapes_agree(config: model_config_pb2.ModelConfig, metadata: pb.ModelMetadataResponse) -> bool:
    batch = [-1] if config.max_batch_size else []
    described = [[t.name, *batch, *t.dims] for t in config.input]
    described += [[t.name, *batch, *t.dims] for t in config.output]
    return described == [[t.name, *t.shape] for t in [*metadata.inputs, *metadata.outputs]]


def test_a_model_without_a_file_is_described_by_its_session(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.logistic())

    async def body(both: Ask, server: LiveServer) -> None:
        config, metadata = await both("m")
        assert (config.name, config.platform, config.backend) == (
            "m",
            "onnxruntime_onnx",
            "onnxruntime",
        )
        assert config.default_model_filename == "model.onnx"
        assert config.max_batch_size == 500
        assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
            ("input", FP32, [30])
        ]
        assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
            ("label", INT64, []),
            ("probabilities", FP32, [2]),
        ]
        assert config.HasField("dynamic_batching")
        assert config.dynamic_batching.max_queue_delay_microseconds == 1500
        assert config.version_policy.latest.num_versions == 1
        assert shapes_agree(config, metadata)

    ask(tmp_path, body)


@pytest.mark.parametrize("model", [models.identity([("FP32", [2, 3])]), models.centred()])
def test_a_model_that_cannot_be_batched_has_no_batch_dimension(
    tmp_path: Path, model: bytes
) -> None:
    models.write(tmp_path / "m/1", model)

    async def body(both: Ask, server: LiveServer) -> None:
        config, metadata = await both("m")
        assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
        assert shapes_agree(config, metadata)

    ask(tmp_path, body)


def test_what_the_file_says_is_repeated_and_completed(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.flights())
    (tmp_path / "m/config.pbtxt").write_text("""
        max_batch_size: 16
        input { name: "categorical" data_type: TYPE_STRING dims: [1] format: FORMAT_NONE }
        output { name: "label" dims: [1] label_filename: "labels.txt" }
        dynamic_batching { max_queue_delay_microseconds: 40  preferred_batch_size: 8 }
        parameters { key: "team" value { string_value: "us" } }
        version_policy { all {} }
    """)

    async def body(both: Ask, server: LiveServer) -> None:
        config, metadata = await both("m")
        assert config.max_batch_size == 16
        assert [(t.name, list(t.dims)) for t in config.input] == [
            ("numeric", [2]),
            ("categorical", [1]),
        ]
        assert {t.name: t.label_filename for t in config.output}["label"] == "labels.txt"
        assert config.dynamic_batching.max_queue_delay_microseconds == 40
        assert config.parameters["team"].string_value == "us"
        assert config.version_policy.HasField("all")
        assert shapes_agree(config, metadata)

    ask(tmp_path, body)


def test_a_file_that_turns_batching_off_is_followed(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.scaled(1.0))
    (tmp_path / "m/config.pbtxt").write_text("max_batch_size: 0 dynamic_batching {}")

    async def body(both: Ask, server: LiveServer) -> None:
        config, metadata = await both("m")
        assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
        assert list(config.input[0].dims) == [-1, 2]
        assert shapes_agree(config, metadata)

    ask(tmp_path, body)


def test_of_a_managed_model_the_loaded_versions_are_the_policy(tmp_path: Path) -> None:
    for factor in (1.0, 2.0):
        models.publish(tmp_path, "m", models.scaled(factor))
    (tmp_path / "m/config.pbtxt").write_text("version_policy { all {} }")

    async def body(both: Ask, server: LiveServer) -> None:
        config, _ = await both("m")
        assert list(config.version_policy.specific.versions) == [1]

    ask(tmp_path, body)


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async def body(both: Ask, server: LiveServer) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await both("m")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Request for unknown model: 'm' is not found"

    ask(tmp_path, body)
