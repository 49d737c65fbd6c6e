"""The whole application: where it answers, and how it ends under load."""

import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from tests import models
from tests.live import conversation, infer_request, stream, unary
from trimtab.proto import admin_pb2, health_pb2, reflection_pb2
from trimtab.server.app import Application, Listening
from trimtab.server.config import ListenConfig, ServerConfig
from trimtab.server.inference.executor import SHUTTING_DOWN

GRACE_S = 10.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
METADATA = "/inference.GRPCInferenceService/ServerMetadata"
LIST = "/trimtab.v1.Admin/ListVersions"
SETTLE = "/trimtab.v1.Admin/AwaitSettled"


def application(models_dir: Path, host: str = "127.0.0.1") -> Application:
    listen = ListenConfig(
        host=host, port=0, admin_host=host, admin_port=0, metrics_port=0, grace_s=GRACE_S
    )
    return Application(ServerConfig(models_dir, server=listen))


async def until_refused(
    channel: grpc.aio.Channel, method: str, request: bytes, seen: Counter[str]
) -> None:
    """A client that sends its next request when it has the reply to the last one."""
    call = unary(channel, method)
    while True:
        try:
            await call(request, timeout=30)
            seen["answered"] += 1
        except grpc.aio.AioRpcError as error:
            seen[f"{error.code().name}: {error.details()}"] += 1
            return


def test_a_stop_under_load_answers_or_refuses_every_request_and_cancels_none(
    tmp_path: Path,
) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))
    request = infer_request("m", {"x": np.ones((2, 2), np.float32)}).SerializeToString()

    async def main() -> None:
        served = application(tmp_path)
        listening = await served.start()
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(listening.inference, options) for _ in range(4)]
        channels += [grpc.aio.insecure_channel(listening.admin, options)]
        seen: Counter[str] = Counter()
        clients = [
            asyncio.ensure_future(until_refused(channels[number % 4], INFER, request, seen))
            for number in range(64)
        ]
        clients += [
            asyncio.ensure_future(until_refused(channel, method, b"", seen))
            for channel, method in [
                (channels[0], LIVE),
                (channels[1], METADATA),
                (channels[4], LIST),
            ]
            for _ in range(8)
        ]
        while seen["answered"] < 500:
            await asyncio.sleep(0)
        began = time.monotonic()
        await served.stop()
        assert time.monotonic() - began < GRACE_S / 2
        await asyncio.wait_for(asyncio.gather(*clients), 30)
        assert seen.pop("answered") >= 500
        assert seen == {f"UNAVAILABLE: {SHUTTING_DOWN}": len(clients)}
        for channel in channels:
            await channel.close(None)

    asyncio.run(main())


def test_a_stop_does_not_wait_for_who_waits_for_a_loop_to_settle(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))
    never = admin_pb2.AwaitSettledRequest(model_name="m", observed_rows=2**40)

    async def main() -> None:
        served = application(tmp_path)
        listening = await served.start()
        async with grpc.aio.insecure_channel(listening.admin) as channel:
            settling = unary(channel, SETTLE)(never.SerializeToString())
            while not served._admin.waiting:
                await asyncio.sleep(0)
            began = time.monotonic()
            await served.stop()
            assert time.monotonic() - began < GRACE_S / 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await settling
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == SHUTTING_DOWN

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("0.0.0.0", "127.0.0.1:80"),
        ("::", "127.0.0.1:80"),
        ("10.1.2.3", "10.1.2.3:80"),
        ("box.example", "box.example:80"),
        ("::1", "[::1]:80"),
        ("[::1]", "[::1]:80"),
    ],
)
def test_the_addresses_are_those_for_a_client_on_this_machine(host: str, reachable: str) -> None:
    assert Listening(host, 80, "127.0.0.1", 81, "portable").inference == reachable
    assert Listening("127.0.0.1", 81, host, 80, "portable").admin == reachable
    assert Listening(host, 82, "127.0.0.1", 81, "portable", 80).metrics == reachable


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_a_server_on_an_ipv6_address_answers_where_it_says(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))
    request = infer_request("m", {"x": np.ones((1, 2), np.float32)}).SerializeToString()

    async def main() -> None:
        served = application(tmp_path, "::1")
        listening = await served.start()
        told = json.loads((tmp_path / ".trimtab" / "server.json").read_text())
        assert (told["inference"], told["admin"]) == (listening.inference, listening.admin)
        assert told["metrics"] == listening.metrics
        async with grpc.aio.insecure_channel(listening.inference) as channel:
            assert await unary(channel, INFER)(request, timeout=30)
        await served.stop()

    asyncio.run(main())


def test_a_taken_metrics_port_ends_the_start_and_nothing_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = ListenConfig(host="127.0.0.1", port=0, admin_port=0, metrics_port=port)
        served = Application(ServerConfig(tmp_path, server=listen))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} for metrics"):
            asyncio.run(served.start())
    asyncio.run(started_and_stopped(application(tmp_path)))


def test_metrics_can_be_turned_off(tmp_path: Path) -> None:
    listen = ListenConfig(host="127.0.0.1", port=0, admin_port=0, metrics=False)
    served = Application(ServerConfig(tmp_path, server=listen))
    assert asyncio.run(started_and_stopped(served)).metrics is None


async def started_and_stopped(served: Application) -> Listening:
    listening = await served.start()
    await served.stop()
    return listening


async def outcome(channel: grpc.aio.Channel, method: str) -> str:
    """What a call with one empty message comes to; any kind of call can be made as a stream."""
    call = conversation(channel, method, timeout=1.0)
    try:
        await call.write(b"")
        await call.done_writing()
    except (
        grpc.aio.AioRpcError
    ):  # the end came before the message left, and the client says INTERNAL
        call = conversation(channel, method, timeout=1.0)
    code = await call.code()
    return f"{code.name}: {await call.details()}"


def test_every_method_that_reflection_describes_is_served_on_its_port(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def services(channel: grpc.aio.Channel) -> list[str]:
        call = conversation(channel, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        asked = reflection_pb2.ServerReflectionRequest(list_services="*")
        await call.write(asked.SerializeToString())
        reply = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        await call.done_writing()
        return [each.name for each in reply.list_services_response.service]

    async def port(address: str) -> tuple[list[str], list[str]]:
        """The services that a port has, and the methods of those that it does not answer."""
        async with grpc.aio.insecure_channel(address) as channel:
            named = await services(channel)
            methods = [
                f"/{service}/{method.name}"
                for service in named
                for method in reflection_pb2.DESCRIPTOR.pool.FindServiceByName(service).methods
            ]
            *seen, missing = await asyncio.gather(
                *(outcome(channel, method) for method in [*methods, "/not/there"])
            )
            assert missing.startswith("UNIMPLEMENTED")
            unanswered = [
                method
                for method, text in zip(methods, seen, strict=True)
                if text.replace(method, "/not/there") == missing
            ]
            return named, unanswered

    async def main() -> list[tuple[list[str], list[str]]]:
        served = application(tmp_path)
        listening = await served.start()
        try:
            return [await port(listening.inference), await port(listening.admin)]
        finally:
            await served.stop()

    everywhere = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert asyncio.run(main()) == [
        ([*everywhere, "inference.GRPCInferenceService", "trimtab.v1.Feedback"], []),
        ([*everywhere, "trimtab.v1.Admin"], []),
    ]


def test_health_is_told_on_both_ports_and_ends_with_the_server(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(2.0))

    async def main() -> None:
        served = application(tmp_path)
        listening = await served.start()
        channels = [
            grpc.aio.insecure_channel(address) for address in (listening.inference, listening.admin)
        ]
        watches = []
        for channel in channels:
            for name in ("", "m", "inference.GRPCInferenceService", "trimtab.v1.Admin"):
                request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
                raw = await unary(channel, "/grpc.health.v1.Health/Check")(request, timeout=30)
                assert health_pb2.HealthCheckResponse.FromString(raw).status == 1, name
            watches.append(stream(channel, "/grpc.health.v1.Health/Watch")(b""))
            assert await watches[-1].read() == b"\x08\x01"
        began = time.monotonic()
        stopping = asyncio.ensure_future(served.stop())
        for watch in watches:
            assert await watch.read() == b"\x08\x02"
        await stopping
        assert time.monotonic() - began < GRACE_S / 2
        for channel in channels:
            await channel.close(None)

    asyncio.run(main())
