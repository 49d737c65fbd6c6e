"""Routes: which version a request meets, and what it is told where none answers."""

import numpy as np
import pytest

from tests.fakes import FakeSession, fake_servable
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
