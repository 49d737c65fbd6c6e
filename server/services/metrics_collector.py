"""Reads what the server's parts have counted, at the moment that somebody scrapes.

Nothing is done per request: the data plane, the loop and the logs count for themselves, and each
hands out a snapshot. A part that fails to is missing from that scrape, is counted under
`trimtab_scrape_errors_total`, and is logged the first time; the rest of the scrape stands. Any
thread may collect, several at once.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ..inference.statistics import VersionStatistics
from ..lifecycle.version_plan import ModelStatus
from ..loop.loop_stats import LoopStats
from ..webhook.delivery import WebhookStats
from . import metric_families as families
from .webhook_families import of_webhooks

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Counting(Protocol):
    """What is needed of an Executor."""

    def statistics(self) -> VersionStatistics: ...


class Lifecycle(Protocol):
    """What is needed of the ModelManager."""

    def loaded(self) -> Sequence[tuple[str, int, Counting]]: ...
    def statuses(self) -> Sequence[ModelStatus]: ...


class Loop(Protocol):
    """What is needed of a ModelLoop."""

    def stats(self) -> LoopStats: ...


class Loops(Protocol):
    """What is needed of the ControlLoop."""

    @property
    def failures(self) -> int: ...
    def models(self) -> Sequence[Loop]: ...


class MetricsCollector(Collector):
    """Everything that a scrape shows; `build` are the labels of trimtab_build_info."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        loops: Loops,
        build: Mapping[str, str],
        webhooks: Callable[[], Sequence[WebhookStats]] = tuple,
    ) -> None:
        self._lifecycle = lifecycle
        self._loops = loops
        self._build = build
        process = ProcessCollector(registry=None)
        self._parts: tuple[tuple[str, Callable[[], Sequence[Metric]]], ...] = (
            ("versions", self._of_versions),
            ("models", lambda: families.of_models(lifecycle.statuses())),
            ("loops", self._of_loops),
            ("control_loop", self._of_control_loop),
            ("webhooks", lambda: of_webhooks(webhooks())),
            ("process", lambda: list(process.collect())),
            ("build", lambda: families.of_build(self._build)),
        )
        self._lock = threading.Lock()  # guards _errors
        self._errors: Counter[str] = Counter({name: 0 for name, _ in self._parts})

    def __repr__(self) -> str:
        return f"MetricsCollector(errors={self.errors})"

    @property
    def errors(self) -> Mapping[str, int]:
        """Failures to collect, by part, since the server started."""
        with self._lock:
            return dict(self._errors)

    def collect(self) -> Iterable[Metric]:
        """Never raises."""
        collected: list[Metric] = []
        for name, make in self._parts:
            collected += self._read(name, make) or []
        errors = CounterMetricFamily(
            "trimtab_scrape_errors", "Failures to collect, by part", labels=("part",)
        )
        for name, count in self.errors.items():
            errors.add_metric((name,), count)
        return [*collected, errors]

    def _of_versions(self) -> Sequence[Metric]:
        found = []
        for model, version, executor in self._lifecycle.loaded():
            statistics = self._read("versions", executor.statistics)
            if statistics is not None:
                found.append(families.LoadedVersion(model, version, statistics))
        return families.of_versions(found)

    def _of_loops(self) -> Sequence[Metric]:
        stats = [self._read("loops", loop.stats) for loop in self._loops.models()]
        return families.of_loops([each for each in stats if each is not None])

    def _of_control_loop(self) -> Sequence[Metric]:
        failures = self._loops.failures
        meaning = "Messages that the control loop failed on"
        return [CounterMetricFamily("trimtab_control_loop_failures", meaning, failures)]

    def _read(self, part: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns; None, counted, if it fails."""
        try:
            return read()
        except Exception:  # noqa: BLE001  an edge
            with self._lock:
                self._errors[part] += 1
                first = self._errors[part] == 1
            if first:
                _log.exception("metrics: %s failed; further failures are only counted", part)
            return None
