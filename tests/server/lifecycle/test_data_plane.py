"""Routes: which version a request meets, and what it is told where none answers."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.fakes import FakeSession, fake_servable
from tests.live import infer_request as live_request
from tests.live import live_server
from tests.plane import Refused, Requests, infer_request
from trimtab._native.data_plane import DataPlane, Version
from trimtab.server.config import BatchingConfig
from trimtab.server.inference.executor import Executor

NOT_FOUND, UNAVAILABLE, INVALID = 5, 14, 3


def executor(version: int, width: int = 2) -> Executor:
    session = FakeSession(lambda x: x * version)
    it = Executor(fake_servable(session, version=version, width=width), BatchingConfig())
    it.start()
    return it


def refusal(requests: Requests, **options: str) -> tuple[int, str]:
    return requests.send(**options).refusal()  # type: ignore[arg-type]  # texts all


def route(plane: DataPlane, answers: Version | None, *versions: Version) -> None:
    plane.set_route(
        "m", answers, (NOT_FOUND, "nothing answers"), versions, {9: (UNAVAILABLE, "9 is loading")}
    )


def test_a_request_meets_the_version_it_names_or_the_one_that_answers() -> None:
    one, two = executor(1), executor(2)
    plane = DataPlane("p")
    route(plane, two.version, one.version, two.version)
    requests = Requests(plane)
    assert requests.send([1.0]).reply().model_version == "2"
    assert requests.send([1.0], version="1").values() == [1.0]
    assert requests.send([1.0], version="02").values() == [2.0]
    one.close()
    two.close()


def test_refusals_name_what_is_missing() -> None:
    plane = DataPlane("p")
    requests = Requests(plane)
    assert refusal(requests) == (NOT_FOUND, "Request for unknown model: 'm' is not found")
    plane.set_unknown(UNAVAILABLE, ": the server is starting")
    assert refusal(requests)[1] == "Request for unknown model: 'm': the server is starting"
    route(plane, None)
    assert refusal(requests) == (NOT_FOUND, "nothing answers")
    assert refusal(requests, version="9") == (UNAVAILABLE, "9 is loading")
    unknown = "Request for unknown model: 'm' version 8 is not found"
    assert refusal(requests, version="8") == (NOT_FOUND, unknown)
    plane.remove_route("m")
    plane.remove_route("m")
    assert refusal(requests)[0] == UNAVAILABLE
    plane.refuse(UNAVAILABLE, "closing")
    assert refusal(requests) == (UNAVAILABLE, "closing")
    plane.refuse(0, "")
    assert refusal(requests)[1] != "closing"


@pytest.mark.parametrize("version", ["0", "-1", "x", "1.0", "9" * 19, "\u0661"])
def test_a_version_that_is_no_number_is_an_invalid_argument(version: str) -> None:
    plane = DataPlane("p")
    route(plane, None)
    code, text = refusal(Requests(plane), version=version)
    assert code == INVALID
    assert text == (
        f"failed to get model version from specified version string '{version}' "
        "(version should be an integral value > 0)"
    )


def test_a_long_name_is_cut_in_messages() -> None:
    _, text = refusal(Requests(DataPlane("p")), model="ü" * 5000)
    assert text == f"Request for unknown model: '{'ü' * 100}…' is not found"


def test_a_request_whose_version_was_retired_meets_the_one_that_took_over() -> None:
    one, two = executor(1), executor(2)
    plane = DataPlane("p")
    route(plane, one.version, one.version)
    one.close()
    requests = Requests(plane)
    with pytest.raises(Refused, match="is being replaced over and over"):
        requests.send().reply()
    route(plane, two.version, two.version)
    assert requests.send([1.0]).values() == [2.0]
    two.close()


def test_more_requests_or_bytes_than_the_limits_are_refused_and_harm_nobody() -> None:
    version = fake_version()
    plane = DataPlane("p")
    route(plane, version, version)
    requests = Requests(plane)
    size = len(infer_request(np.ones((1, 2), np.float32)).SerializeToString())
    plane.limit(2, 0)
    waiting = [requests.send() for _ in range(2)]
    assert requests.send().refusal() == (
        UNAVAILABLE,
        "more than 2 requests are under way (max_in_flight)",
    )
    plane.limit(0, 2 * size)
    assert requests.send().refusal() == (
        UNAVAILABLE,
        f"requests of more than {2 * size} bytes are under way (max_in_flight_bytes)",
    )
    waiting.pop().cancel()
    waiting.append(requests.send())
    assert not any(each.done() for each in waiting)
    assert (plane.requests_in_flight, plane.bytes_in_flight) == (2, 2 * size)
    version.refuse_waiting(UNAVAILABLE, "over")
    assert (plane.requests_in_flight, plane.bytes_in_flight) == (0, 0)
    plane.limit(0, size - 1)
    assert not requests.send().done(), "a request larger than the limit is let through alone"
    version.refuse_waiting(UNAVAILABLE, "over")


def fake_version() -> Version:
    return Version(
        "m",
        1,
        [("x", "FP32", (-1, 2))],
        [("y", "FP32")],
        batchable=True,
        max_request_rows=100,
        max_batch_rows=100,
        max_queue_rows=100,
    )


def test_minted_ids_are_unique_and_begin_with_the_prefix() -> None:
    it = executor(1)
    plane = DataPlane("p")
    route(plane, it.version, it.version)
    requests = Requests(plane)
    ids = [requests.send().reply().id for _ in range(40)]
    assert ids == [f"p-{number:x}" for number in range(1, 41)]
    assert requests.send(id="mine").reply().id == "mine"
    it.close()


# -- a challenger's share


def xxh64(data: bytes, seed: int) -> int:
    """The published algorithm, word by word."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
    mask = (1 << 64) - 1

    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & mask

    def mix(lane: int, word: int) -> int:
        return rotate((lane + word * p2) & mask, 31) * p1 & mask

    at = 0
    if len(data) >= 32:
        lanes = [each & mask for each in (seed + p1 + p2, seed + p2, seed, seed - p1)]
        while len(data) - at >= 32:
            for lane in range(4):
                lanes[lane] = mix(lanes[lane], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        turns = zip(lanes, (1, 7, 12, 18), strict=True)
        hash = sum(rotate(lane, bits) for lane, bits in turns) & mask
        for lane in lanes:
            hash = ((hash ^ mix(0, lane)) * p1 + p4) & mask
    else:
        hash = seed + p5 & mask
    hash = hash + len(data) & mask
    while len(data) - at >= 8:
        hash ^= mix(0, int.from_bytes(data[at : at + 8], "little"))
        hash = (rotate(hash, 27) * p1 + p4) & mask
        at += 8
    if len(data) - at >= 4:
        hash ^= int.from_bytes(data[at : at + 4], "little") * p1 & mask
        hash = (rotate(hash, 23) * p2 + p3) & mask
        at += 4
    for byte in data[at:]:
        hash = rotate(hash ^ byte * p5 & mask, 11) * p1 & mask
    hash = (hash ^ hash >> 33) * p2 & mask
    hash = (hash ^ hash >> 29) * p3 & mask
    return hash ^ hash >> 32


def challenged(plane: DataPlane, one: Executor, two: Executor, share: int) -> None:
    plane.set_route("m", one.version, (0, ""), [one.version, two.version], {}, two.version, share)


def test_the_hash_is_the_published_one() -> None:
    """Its test vectors; xxhash.xxh64 of Python's package gives the same."""
    assert xxh64(b"", 0) == 0xEF46DB3751D8E999
    assert xxh64(b"a", 0) == 0xD24EC4F1A98C6E5B
    assert xxh64(b"abc", 0) == 0x44BC2CF5AD770999
    assert xxh64(b"Nobody inspects the spammish repetition", 0) == 0xFBCEA83C8A378BF1


def test_the_id_decides_which_version_answers_and_both_versions_numbers_are_their_own() -> None:
    one, two = executor(1), executor(2)
    plane = DataPlane("p")
    share = 2500
    challenged(plane, one, two, share)
    requests = Requests(plane)
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefgh-0123456789é"))
    ids = ["".join(random.choice(letters, length)) for length in random.integers(1, 80, 2000)]
    sent = [(id, requests.send([1.0], id=id)) for id in ids]
    for id, call in sent:
        reply = call.reply()
        expected = 2 if xxh64(id.encode(), 2) % 10_000 < share else 1
        assert (reply.id, reply.model_version) == (id, str(expected))
        assert call.values() == [float(expected)]
    one.close()
    two.close()


@pytest.mark.parametrize("share", [0, 1, 100, 5000, 9999, 10_000])
def test_requests_without_an_id_are_divided_by_the_one_that_is_minted(share: int) -> None:
    one, two = executor(1), executor(2)
    plane = DataPlane("p")
    challenged(plane, one, two, share)
    requests = Requests(plane)
    calls = 3000
    replies = [call.reply() for call in [requests.send() for _ in range(calls)]]
    assert len({reply.id for reply in replies}) == calls
    for reply in replies:
        expected = 2 if xxh64(reply.id.encode(), 2) % 10_000 < share else 1
        assert reply.model_version == str(expected)
    met = sum(reply.model_version == "2" for reply in replies)
    p = share / 10_000
    assert abs(met - calls * p) <= 5 * np.sqrt(calls * p * (1 - p)), (
        "within five standard deviations"
    )
    one.close()
    two.close()


def test_another_challenger_meets_another_sample_of_ids() -> None:
    one, two, three = executor(1), executor(2), executor(3)
    plane = DataPlane("p")
    requests = Requests(plane)
    met = []
    for other in (two, three):
        challenged(plane, one, other, 5000)
        sent = [requests.send(id=f"id{number}") for number in range(1000)]
        met.append([call.reply().model_version != "1" for call in sent])
    both = sum(first and second for first, second in zip(*met, strict=True))
    assert 170 <= both <= 330, "a quarter, not a half"
    for each in (one, two, three):
        each.close()


def test_a_challenger_that_was_retired_leaves_its_share_to_the_next_route() -> None:
    one, two, three = executor(1), executor(2), executor(3)
    plane = DataPlane("p")
    challenged(plane, one, two, 10_000)
    requests = Requests(plane)
    two.close()
    with pytest.raises(Refused, match="is being replaced over and over"):
        requests.send().reply()
    challenged(plane, one, three, 10_000)
    assert requests.send().reply().model_version == "3"
    route(plane, one.version, one.version)
    assert requests.send().reply().model_version == "1"
    for each in (one, three):
        each.close()


def test_ids_of_the_wrong_form_are_refused_whichever_version_they_would_meet() -> None:
    one, two = executor(1), executor(2)
    plane = DataPlane("p")
    challenged(plane, one, two, 5000)
    requests = Requests(plane)
    for length in range(257, 280):
        code, text = refusal(requests, id="x" * length)
        assert (code, text) == (
            INVALID,
            f"the id of {length} characters exceeds the limit of 256",
        )
    one.close()
    two.close()


@pytest.mark.parametrize("frontend", ["native", "portable"])
def test_both_frontends_divide_requests_alike(frontend: str, tmp_path: Path) -> None:
    if frontend == "native":
        pytest.importorskip("trimtab._native.grpc_frontend")
    for factor in (1.0, 2.0):
        models.publish(tmp_path, "m", models.scaled(factor))

    async def ask() -> None:
        async with live_server(tmp_path, frontend=frontend) as server:
            with await asyncio.to_thread(server.manager.hold, "m", 2):
                await asyncio.to_thread(server.manager.split, "m", 2, 0.5)
                x = np.array([[3.0, 3.0]], np.float32)
                for number in range(40):
                    id = f"id{number}"
                    reply = await server.client.infer(live_request("m", {"x": x}, id=id))
                    expected = 2 if xxh64(id.encode(), 2) % 10_000 < 5000 else 1
                    assert reply.model_version == str(expected)
                    (y, *_) = np.frombuffer(reply.raw_output_contents[0], np.float32)
                    assert y == 3.0 * expected

    asyncio.run(ask())
