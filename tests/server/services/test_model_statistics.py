"""ModelStatistics: one entry per loaded version, with the figures of one moment."""

import asyncio
from collections.abc import Sequence

import pytest

from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.errors import InvalidRequestError, NotFoundError
from trimtab.server.inference.statistics import RunsOfSize, Total, VersionStatistics
from trimtab.server.services.handlers import CallContext, UnaryHandler
from trimtab.server.services.model_statistics import ModelStatisticsService


class FakeExecutor:
    def __init__(self, statistics: VersionStatistics) -> None:
        self._statistics = statistics

    def statistics(self) -> VersionStatistics:
        return self._statistics


BUSY = VersionStatistics(
    last_inference_ms=1_700_000_000_123,
    rows=30,
    runs=7,
    success=Total(10, 1000),
    fail=Total(2, 50),
    queue=Total(10, 400),
    compute_input=Total(10, 30),
    compute_infer=Total(10, 500),
    compute_output=Total(10, 70),
    rejected=1,
    cancelled=1,
    runs_by_size=(
        RunsOfSize(2, Total(6, 20), Total(6, 300), Total(6, 40)),
        RunsOfSize(18, Total(1, 10), Total(1, 200), Total(1, 30)),
    ),
)


class FakeModels:
    """The model a with versions 1 and 2 loaded, b with 7, c with none."""

    def __init__(self) -> None:
        self._executors = {
            ("a", 1): FakeExecutor(VersionStatistics()),
            ("a", 2): FakeExecutor(BUSY),
            ("b", 7): FakeExecutor(VersionStatistics(rows=1)),
        }

    def loaded(self) -> Sequence[tuple[str, int, FakeExecutor]]:
        return [(name, version, each) for (name, version), each in self._executors.items()]

    def resolve(self, model: str, version: str) -> FakeExecutor:
        if not version.isdigit() and version:
            raise InvalidRequestError("not a number")
        found = self._executors.get((model, int(version or 2)))
        if found is None:
            raise NotFoundError(f"no {model}/{version}")
        return found


def ask(name: str = "", version: str = "") -> list[pb.ModelStatistics]:
    service = ModelStatisticsService(FakeModels())
    handler = service.handlers()["/inference.GRPCInferenceService/ModelStatistics"]
    assert isinstance(handler, UnaryHandler)
    request = pb.ModelStatisticsRequest(name=name, version=version).SerializeToString()

    async def call() -> bytes:
        assert isinstance(handler, UnaryHandler)
        return await handler.handle(request, CallContext())

    return list(pb.ModelStatisticsResponse.FromString(asyncio.run(call())).model_stats)


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("", "", [("a", "1"), ("a", "2"), ("b", "7")]),
        ("a", "", [("a", "1"), ("a", "2")]),
        ("a", "2", [("a", "2")]),
        ("a", "02", [("a", "2")]),
        ("b", "", [("b", "7")]),
    ],
)
def test_all_versions_those_of_a_model_or_one(
    name: str, version: str, found: list[tuple[str, str]]
) -> None:
    assert [(each.name, each.version) for each in ask(name, version)] == found


@pytest.mark.parametrize(
    ("name", "version", "error"),
    [
        ("nope", "", NotFoundError),
        ("c", "", NotFoundError),
        ("a", "9", NotFoundError),
        ("a", "x", InvalidRequestError),
    ],
)
def test_what_is_not_loaded_is_refused_as_a_prediction_would_be(
    name: str, version: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(name, version)


def test_the_figures_are_the_executors() -> None:
    (entry,) = ask("a", "2")
    assert entry == pb.ModelStatistics(
        name="a",
        version="2",
        last_inference=1_700_000_000_123,
        inference_count=30,
        execution_count=7,
        inference_stats=pb.InferStatistics(
            success=pb.StatisticDuration(count=10, ns=1000),
            fail=pb.StatisticDuration(count=2, ns=50),
            queue=pb.StatisticDuration(count=10, ns=400),
            compute_input=pb.StatisticDuration(count=10, ns=30),
            compute_infer=pb.StatisticDuration(count=10, ns=500),
            compute_output=pb.StatisticDuration(count=10, ns=70),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=2,
                compute_input=pb.StatisticDuration(count=6, ns=20),
                compute_infer=pb.StatisticDuration(count=6, ns=300),
                compute_output=pb.StatisticDuration(count=6, ns=40),
            ),
            pb.InferBatchStatistics(
                batch_size=18,
                compute_input=pb.StatisticDuration(count=1, ns=10),
                compute_infer=pb.StatisticDuration(count=1, ns=200),
                compute_output=pb.StatisticDuration(count=1, ns=30),
            ),
        ],
    )
