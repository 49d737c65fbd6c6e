"""The index, and load and unload over the wire."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tests import models
from tests.live import LiveServer, infer_request, live_server
from trimtab.proto import open_inference_pb2 as pb

Status = grpc.StatusCode
Body = Callable[[LiveServer], Coroutine[Any, Any, None]]


def serve(models_dir: Path, body: Body, **options: Any) -> None:
    async def main() -> None:
        async with live_server(models_dir, **options) as server:
            await body(server)

    asyncio.run(main())


async def refusal(
    server: LiveServer, method: str, request: pb.RepositoryModelLoadRequest | Any
) -> tuple[Status, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.client.call(method, request)
    return caught.value.code(), caught.value.details() or ""


def test_the_index_lists_every_version_with_its_state_and_reason(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    models.write(tmp_path / "m/2", b"garbage")
    models.write(tmp_path / "plain/3", models.scaled(1.0))
    models.publish(tmp_path, "spare", models.scaled(1.0), champion_if_first=False)
    (tmp_path / "empty").mkdir()

    async def body(server: LiveServer) -> None:
        async def index(ready: bool) -> list[tuple[str, str, str, str]]:
            message = pb.RepositoryIndexRequest(ready=ready)
            reply = pb.RepositoryIndexResponse.FromString(
                await server.client.call("RepositoryIndex", message)
            )
            return [(m.name, m.version, m.state, m.reason) for m in reply.models]

        everything = await index(ready=False)
        assert [entry[:3] for entry in everything] == [
            ("empty", "", "UNAVAILABLE"),
            ("m", "1", "READY"),
            ("m", "2", "UNAVAILABLE"),
            ("plain", "3", "READY"),
            ("spare", "1", "UNAVAILABLE"),
        ]
        assert everything[0][3] == "no versions"
        assert "manifest.json: missing" in everything[2][3]
        assert everything[4][3] == "unloaded"
        assert [entry[:2] for entry in await index(ready=True)] == [("m", "1"), ("plain", "3")]

    serve(tmp_path, body)


def test_a_model_is_unloaded_and_loaded_again(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))
    models.publish(tmp_path, "other", models.scaled(3.0))
    request = infer_request("m", {"x": np.ones((1, 2), np.float32)})

    async def body(server: LiveServer) -> None:
        client = server.client
        await client.infer(request)
        unload = pb.RepositoryModelUnloadRequest(model_name="m")
        unload.parameters["unload_dependents"].bool_param = False
        assert await client.call("RepositoryModelUnload", unload) == b""
        assert await client.refusal(request) == (
            Status.NOT_FOUND,
            "Request for unknown model: 'm' has no available versions",
        )
        index = pb.RepositoryIndexResponse.FromString(
            await client.call("RepositoryIndex", pb.RepositoryIndexRequest())
        )
        assert [(each.name, each.state, each.reason) for each in index.models] == [
            ("m", "UNAVAILABLE", "unloaded"),
            ("other", "READY", ""),
        ]
        ready = await client.call("ServerReady", pb.ServerReadyRequest())
        assert pb.ServerReadyResponse.FromString(ready).ready
        load = pb.RepositoryModelLoadRequest(model_name="m")
        assert await client.call("RepositoryModelLoad", load) == b""
        await client.infer(request)

    serve(tmp_path, body, model_control=True)


def test_unloading_under_load_fails_no_request_that_was_taken(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))
    request = infer_request("m", {"x": np.ones((1, 2), np.float32)})

    async def body(server: LiveServer) -> None:
        seen: dict[str, int] = {}
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                try:
                    await server.client.infer(request)
                    text = "answered"
                except grpc.aio.AioRpcError as error:
                    text = f"{error.code().name}: {error.details()}"
                seen[text] = seen.get(text, 0) + 1

        clients = [asyncio.ensure_future(ask()) for _ in range(8)]
        for _ in range(5):
            for method, kind in (
                ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest),
                ("RepositoryModelLoad", pb.RepositoryModelLoadRequest),
            ):
                await server.client.call(method, kind(model_name="m"))
                await server.client.call("ServerLive", pb.ServerLiveRequest())
        stop.set()
        await asyncio.gather(*clients)
        assert seen.pop("answered") > 0
        unknown = "Request for unknown model: 'm'"
        assert set(seen) <= {
            f"NOT_FOUND: {unknown} has no available versions",
            f"UNAVAILABLE: {unknown} version 1 is not at ready state",  # while it loads again
        }

    serve(tmp_path, body, model_control=True)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_both_are_refused_unless_the_operator_allowed_them(tmp_path: Path, method: str) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def body(server: LiveServer) -> None:
        request = pb.RepositoryModelLoadRequest(model_name="m")
        assert await refusal(server, method, request) == (
            Status.UNAVAILABLE,
            "explicit model load / unload is not allowed if polling is enabled",
        )
        await server.client.infer(infer_request("m", {"x": np.ones((1, 2), np.float32)}))

    serve(tmp_path, body)


def test_what_cannot_be_loaded_is_told_with_the_reason(tmp_path: Path) -> None:
    models.write(tmp_path / "broken/1", b"garbage")

    async def body(server: LiveServer) -> None:
        failed = "failed to load '{}', failed to poll from model repository"
        for name in ("nope", "..", "../broken", "broken/1", "a b", "a" * 256):
            request = pb.RepositoryModelLoadRequest(model_name=name)
            code, text = await refusal(server, "RepositoryModelLoad", request)
            assert (code, text) == (Status.INTERNAL, failed.format(name))
            code, text = await refusal(server, "RepositoryModelUnload", request)
            assert code is Status.NOT_FOUND and "is not found" in text
        request = pb.RepositoryModelLoadRequest(model_name="broken")
        code, text = await refusal(server, "RepositoryModelLoad", request)
        assert code is Status.INTERNAL
        assert text.startswith(f"{failed.format('broken')}: version 1: onnxruntime refuses")

    serve(tmp_path, body, model_control=True)


def test_a_load_may_bring_a_configuration(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        load = pb.RepositoryModelLoadRequest(model_name="m")
        load.parameters["config"].string_param = '{"max_batch_size": "16"}'
        assert await server.client.call("RepositoryModelLoad", load) == b""
        answer = await server.client.call("ModelConfig", pb.ModelConfigRequest(name="m"))
        assert pb.ModelConfigResponse.FromString(answer).config.max_batch_size == 16

        load.parameters["config"].string_param = '{"max_batch_size": -16}'
        assert await refusal(server, "RepositoryModelLoad", load) == (
            Status.INTERNAL,
            (
                "failed to load 'm', failed to poll from model repository: config: max_batch_size "
                "-16 is less than 0"
            ),
        )

    serve(tmp_path, body, model_control=True)


def test_parameters_that_would_change_the_model_are_refused_and_not_ignored(
    tmp_path: Path,
) -> None:
    models.write(tmp_path / "m/1", models.scaled(1.0))

    async def body(server: LiveServer) -> None:
        for name, code in (
            ("config", Status.INVALID_ARGUMENT),
            ("file:1/model.onnx", Status.INTERNAL),
            ("file:" + "a" * 256, Status.INTERNAL),
            ("else", Status.INVALID_ARGUMENT),
        ):
            load = pb.RepositoryModelLoadRequest(model_name="m")
            load.parameters[name].bytes_param = b"{}"
            found, text = await refusal(server, "RepositoryModelLoad", load)
            assert found is code and f"'{name}'" in text
            if code is Status.INTERNAL:
                assert text.startswith("failed to load 'm', failed to poll from model repository: ")
        for name in ("unload_dependents", "else"):
            unload = pb.RepositoryModelUnloadRequest(model_name="m")
            unload.parameters[name].int64_param = 1
            found, text = await refusal(server, "RepositoryModelUnload", unload)
            assert found is Status.INVALID_ARGUMENT and f"'{name}'" in text
        for method in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
            elsewhere = pb.RepositoryModelLoadRequest(repository_name="elsewhere")
            assert await refusal(server, method, elsewhere) == (
                Status.UNIMPLEMENTED,
                "'repository_name' specification is not supported",
            )

    serve(tmp_path, body, model_control=True)
