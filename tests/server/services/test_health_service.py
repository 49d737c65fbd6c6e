"""Health: the server, its services and its models, once or for as long as a client watches."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.live import stream, unary
from trimtab.proto import health_pb2 as pb
from trimtab.server.errors import NotFoundError, UnavailableError
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.lifecycle.version_plan import ModelStatus
from trimtab.server.services.health_service import HealthService
from trimtab.server.services.portable_frontend import PortableFrontend

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN
INFERENCE = "inference.GRPCInferenceService"


class FakeModels:
    """A model answers ("ready"), may later ("loading"), or does not ("empty")."""

    def __init__(self, **models: str) -> None:
        self.models = models

    def resolve(self, model: str, version: str) -> object:
        match self.models.get(model):
            case "ready":
                return self
            case "loading":
                raise UnavailableError("not at ready state")
        raise NotFoundError("is not found")

    def status(self, model: str) -> ModelStatus | None:
        if model not in self.models:
            return None
        return ModelStatus(model, False, 0, None, None, None, (), "")


class World:
    def __init__(self) -> None:
        self.models = FakeModels(a="ready", b="loading", c="empty")
        self.ready = True
        self.service = HealthService(self.models, lambda: self.ready, [INFERENCE], look_s=0.01)
        self.frontend = PortableFrontend(
            "127.0.0.1:0", self.service.handlers(), max_message_bytes=4096
        )

    async def check(self, channel: grpc.aio.Channel, name: str) -> int:
        call = unary(channel, "/grpc.health.v1.Health/Check")
        request = pb.HealthCheckRequest(service=name).SerializeToString()
        return pb.HealthCheckResponse.FromString(await call(request, timeout=30)).status

    async def watch(self, channel: grpc.aio.Channel, name: str) -> AsyncIterator[int]:
        call = stream(channel, "/grpc.health.v1.Health/Watch")
        request = pb.HealthCheckRequest(service=name).SerializeToString()
        async for reply in call(request, timeout=30):
            yield pb.HealthCheckResponse.FromString(reply).status


def run(body: Callable[[World, grpc.aio.Channel], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World()
        port = await world.frontend.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await body(world, channel)
        world.service.stop()
        await world.frontend.stop(5.0)

    asyncio.run(main())


def test_the_server_its_services_and_its_models_are_checked() -> None:
    async def body(world: World, channel: grpc.aio.Channel) -> None:
        seen = {
            name: await world.check(channel, name)
            for name in ("", INFERENCE, "grpc.health.v1.Health", "a", "b", "c")
        }
        assert seen == {
            "": SERVING,
            INFERENCE: SERVING,
            "grpc.health.v1.Health": SERVING,
            "a": SERVING,
            "b": NOT_SERVING,
            "c": NOT_SERVING,
        }
        world.ready = False
        assert await world.check(channel, "") == NOT_SERVING
        assert await world.check(channel, INFERENCE) == NOT_SERVING
        assert await world.check(channel, "a") == SERVING

    run(body)


def test_a_name_that_is_none_is_not_found() -> None:
    async def body(world: World, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.check(channel, "nope")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "there is neither a service nor a model 'nope'"

    run(body)


def test_a_watch_tells_each_change_once() -> None:
    async def body(world: World, channel: grpc.aio.Channel) -> None:
        watch = world.watch(channel, "a")
        assert await anext(watch) == SERVING
        for state, told in (
            ("loading", NOT_SERVING),
            ("ready", SERVING),
            ("empty", NOT_SERVING),
            ("ready", SERVING),
        ):
            world.models.models["a"] = state
            assert await anext(watch) == told

    run(body)


def test_a_watch_of_what_is_not_there_goes_on_until_it_is() -> None:
    async def body(world: World, channel: grpc.aio.Channel) -> None:
        watch = world.watch(channel, "d")
        assert await anext(watch) == SERVICE_UNKNOWN
        world.models.models["d"] = "ready"
        assert await anext(watch) == SERVING
        del world.models.models["d"]
        assert await anext(watch) == SERVICE_UNKNOWN

    run(body)


def test_a_stop_is_told_to_whoever_watches_and_ends_the_watch() -> None:
    async def body(world: World, channel: grpc.aio.Channel) -> None:
        watches = [world.watch(channel, name) for name in ("", "a")]
        for watch in watches:
            assert await anext(watch) == SERVING
        world.service.stop()
        for watch in watches:
            assert await anext(watch) == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(watch)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == SHUTTING_DOWN
        assert await world.check(channel, "a") == NOT_SERVING

    run(body)
