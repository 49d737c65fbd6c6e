"""What is read at a scrape, and that a part which fails takes nothing along."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trimtab.server.inference.statistics import Total, VersionStatistics
from trimtab.server.lifecycle.version_plan import ModelStatus
from trimtab.server.loop.loop_stats import LoopStats
from trimtab.server.services.metrics_collector import MetricsCollector
from trimtab.server.services.metrics_server import exposition

SUCCESS = "nv_inference_request_success"


@dataclass
class FakeExecutor:
    answered: int = 0
    error: Exception | None = None

    def statistics(self) -> VersionStatistics:
        if self.error is not None:
            raise self.error
        return VersionStatistics(success=Total(self.answered))


@dataclass
class FakeLifecycle:
    executors: dict[tuple[str, int], FakeExecutor] = field(default_factory=dict)
    error: Exception | None = None

    def loaded(self) -> Sequence[tuple[str, int, FakeExecutor]]:
        return tuple((*key, executor) for key, executor in self.executors.items())

    def statuses(self) -> Sequence[ModelStatus]:
        if self.error is not None:
            raise self.error
        return (ModelStatus("m", False, 0, 1, None, 1, (), ""),)


@dataclass
class FakeLoop:
    name: str
    error: Exception | None = None

    def stats(self) -> LoopStats:
        if self.error is not None:
            raise self.error
        return LoopStats(self.name)


@dataclass
class FakeLoops:
    loops: list[FakeLoop] = field(default_factory=list)
    failures: int = 0

    def models(self) -> Sequence[FakeLoop]:
        return self.loops


def scrape(collector: MetricsCollector) -> dict[tuple[str, ...], float]:
    """Value by name and label values."""
    body, _ = exposition(collector, "")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def collector(lifecycle: FakeLifecycle, loops: FakeLoops | None = None) -> MetricsCollector:
    return MetricsCollector(lifecycle, loops or FakeLoops(), {"version": "1"})


def test_every_scrape_shows_what_there_is_now() -> None:
    lifecycle = FakeLifecycle({("m", 1): FakeExecutor(5), ("n", 2): FakeExecutor(6)})
    loops = FakeLoops([FakeLoop("m")], failures=2)
    metrics = collector(lifecycle, loops)
    shown = scrape(metrics)
    assert shown[f"{SUCCESS}_total", "m", "1"] == 5  # the parser's own suffix
    assert shown[f"{SUCCESS}_total", "n", "2"] == 6
    assert shown["trimtab_model_ready", "m"] == 1
    assert shown["trimtab_observed_rows_total", "m"] == 0
    assert shown["trimtab_control_loop_failures_total",] == 2
    assert shown["trimtab_build_info", "1"] == 1
    assert shown["process_resident_memory_bytes",] > 0

    lifecycle.executors = {("m", 3): FakeExecutor(1)}
    loops.loops = []
    shown = scrape(metrics)
    assert {key[1:]: value for key, value in shown.items() if key[0] == f"{SUCCESS}_total"} == {
        ("m", "3"): 1
    }
    assert ("trimtab_observed_rows_total", "m") not in shown
    assert set(metrics.errors.values()) == {0}


def test_a_version_or_a_model_that_cannot_be_read_is_counted_and_the_others_are_shown() -> None:
    lifecycle = FakeLifecycle(
        {("m", 1): FakeExecutor(error=RuntimeError("gone")), ("m", 2): FakeExecutor(7)}
    )
    loops = FakeLoops([FakeLoop("m", error=OSError("gone")), FakeLoop("n")])
    shown = scrape(collector(lifecycle, loops))
    assert shown[f"{SUCCESS}_total", "m", "2"] == 7
    assert (f"{SUCCESS}_total", "m", "1") not in shown
    assert ("trimtab_observed_rows_total", "n") in shown
    assert ("trimtab_observed_rows_total", "m") not in shown
    assert shown["trimtab_scrape_errors_total", "versions"] == 1
    assert shown["trimtab_scrape_errors_total", "loops"] == 1
    assert shown["trimtab_scrape_errors_total", "models"] == 0


def test_a_part_that_fails_is_counted_each_time_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = collector(FakeLifecycle({("m", 1): FakeExecutor(5)}, error=ValueError("broken")))
    with caplog.at_level(logging.ERROR):
        for count in (1, 2, 3):
            shown = scrape(metrics)
            assert shown["trimtab_scrape_errors_total", "models"] == count
            assert shown[f"{SUCCESS}_total", "m", "1"] == 5
            assert ("trimtab_model_ready", "m") not in shown
    (record,) = caplog.records
    assert record.exc_info is not None and "models failed" in record.getMessage()
