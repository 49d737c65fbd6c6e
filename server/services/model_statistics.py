"""ModelStatistics of the Open Inference Protocol: what each loaded version has done so far.

Every entry is one snapshot of its version, taken by the executor, so that the counts in it agree
with each other: perf_analyzer gives up when they do not.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from trimtab.proto import open_inference_pb2 as pb

from ..inference.statistics import Total, VersionStatistics
from .handlers import CallContext, Handler
from .protocol import SERVICE, parse, unary


class Counting(Protocol):
    """What the service needs of an Executor."""

    def statistics(self) -> VersionStatistics: ...


class Loaded(Protocol):
    """What the service needs of the ModelManager."""

    def resolve(self, model: str, version: str) -> Counting: ...

    def loaded(self) -> Sequence[tuple[str, int, Counting]]: ...


class ModelStatisticsService:
    """The handler of the method."""

    def __init__(self, models: Loaded) -> None:
        self._models = models

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return unary(SERVICE, {"ModelStatistics": self._model_statistics})

    async def _model_statistics(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.ModelStatisticsRequest, request)
        found = self._models.loaded()
        if asked.name:
            found = [each for each in found if each[0] == asked.name]
            if asked.version:
                executor = self._models.resolve(asked.name, asked.version)
                found = [(asked.name, int(asked.version), executor)]
            elif not found:
                self._models.resolve(asked.name, "")  # says why not
        return pb.ModelStatisticsResponse(
            model_stats=[
                message_of(model, version, executor.statistics())
                for model, version, executor in found
            ]
        ).SerializeToString()


def message_of(model: str, version: int, statistics: VersionStatistics) -> pb.ModelStatistics:
    """One version's entry."""
    return pb.ModelStatistics(
        name=model,
        version=str(version),
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.rows,
        execution_count=statistics.runs,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=runs.rows,
                compute_input=_duration(runs.compute_input),
                compute_infer=_duration(runs.compute_infer),
                compute_output=_duration(runs.compute_output),
            )
            for runs in statistics.runs_by_size
        ],
    )


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
