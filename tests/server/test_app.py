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
from tests.live import infer_request, unary
from trimtab.proto import admin_pb2
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
    listen = ListenConfig(host=host, port=0, admin_host=host, admin_port=0, grace_s=GRACE_S)
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
            while not served._admin._settling:
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
        async with grpc.aio.insecure_channel(listening.inference) as channel:
            assert await unary(channel, INFER)(request, timeout=30)
        await served.stop()

    asyncio.run(main())
