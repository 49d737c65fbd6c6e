"""What a scrape shows of given snapshots, read back with the parsers that Prometheus' client has."""

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from trimtab.server.drift.drift_report import FeatureDrift
from trimtab.server.inference.statistics import (
    BATCH_BOUNDS,
    LATENCY_BOUNDS_US,
    Total,
    VersionStatistics,
)
from trimtab.server.lifecycle.version_plan import ModelStatus, VersionState, VersionStatus
from trimtab.server.logs.traffic_log import TrafficStats
from trimtab.server.loop.label_stats import OUTCOMES, LabelStats, VersionLabels
from trimtab.server.loop.loop_stats import DriftStats, LoopStats, TrainingStats
from trimtab.server.loop.quality import Quality
from trimtab.server.rollout.status import RolloutStatus
from trimtab.server.services.metric_families import (
    MAX_FEATURES,
    LoadedVersion,
    failures_of,
    of_build,
    of_loops,
    of_models,
    of_versions,
)
from trimtab.server.services.metrics_server import exposition
from trimtab.server.services.webhook_families import of_webhooks
from trimtab.server.webhook.delivery import WebhookStats

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"

LATENCIES = tuple(range(1, len(LATENCY_BOUNDS_US) + 2))
BATCHES = tuple(range(2, len(BATCH_BOUNDS) + 3))
STATISTICS = VersionStatistics(
    last_inference_ms=1_700_000_000_500,
    rows=480,
    runs=104,
    success=Total(120, 5_000_000_000),
    fail=Total(9, 1_000_000),
    queue=Total(120, 2_000_999),
    compute_input=Total(120, 30_000),
    compute_infer=Total(120, 4_000_000),
    compute_output=Total(120, 50_000),
    rejected=3,
    cancelled=4,
    expired=5,
    failed=2,
    waiting_requests=6,
    waiting_rows=60,
    tap_failures=1,
    latency_us=LATENCIES,
    batch_rows=BATCHES,
)
STATUS = ModelStatus(
    model="m",
    managed=True,
    revision=7,
    champion=3,
    previous=2,
    serving=2,
    versions=(
        VersionStatus(1, VersionState.UNLOADED, "", "", None),
        VersionStatus(2, VersionState.READY, "", "previous", None),
        VersionStatus(3, VersionState.FAILED, "broken", "champion", None),
    ),
    reason="",
)
LOOP = LoopStats(
    model="m",
    observed_rows=500,
    labels=70,
    drift=DriftStats(
        version=2,
        state="warning",
        window_rows=1000,
        features=(
            FeatureDrift("temp", "numeric", "input", psi=0.15, strength=0.75),
            FeatureDrift("y", "numeric", "output", psi=0.01, strength=0.05),
        ),
        broken=1,
    ),
    traffic=TrafficStats(
        rows_logged=490,
        rows_dropped=10,
        rows_written=400,
        rows_queued=90,
        bytes_written=12_345,
        write_errors=2,
        failing="No space left on device",
    ),
    trainings=TrainingStats(
        started=4, published=1, refused=1, failed=1, skipped=2, running=True, fraction=0.25
    ),
    quality=LabelStats(
        outcomes={name: 10 * place for place, name in enumerate(OUTCOMES, 1)},
        waiting=7,
        young=8,
        remembered=900,
        forgotten=90,
        one_sided=True,
        lag_ms=(1_000.0, 60_000.0, 90_000.0),
        versions=(
            VersionLabels(
                Quality(
                    version=2,
                    metric="log_loss",
                    state="degraded",
                    rows=5_000,
                    mean=0.5,
                    low=0.4,
                    high=0.6,
                    reference_mean=0.3,
                    log_evidence=12.5,
                ),
                answered=800,
                labelled=200,
            ),
        ),
        champion=2,
    ),
    rollout=RolloutStatus(
        "m",
        phase="canary",
        version=3,
        against=2,
        share=0.1,
        rows_compared=600,
        rows_dropped=40,
        latency_ratio=1.25,
        prediction_psi=0.02,
    ),
)
BUILD = {"version": "1.2.3", "frontend": "portable", "grpc": "1.80.0"}


class Shown(Collector):
    """Collects what it is given."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def everything() -> Shown:
    return Shown(
        [
            *of_versions([LoadedVersion("m", 2, STATISTICS)]),
            *of_models([STATUS]),
            *of_loops([LOOP]),
            *of_build(BUILD),
            *of_webhooks([WebhookStats("ops")]),
        ]
    )


def text(families: Iterable[Metric], accept: str = "") -> str:
    return exposition(Shown(families), accept)[0].decode()


def series(families: Iterable[Metric]) -> dict[str, float]:
    """`name{label="value",…}` and value of every line of the text format."""
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text(families).splitlines()
        if not line.startswith("#")
    }


def versions(*loaded: LoadedVersion) -> dict[str, float]:
    return series(of_versions(loaded))


def test_triton_dashboards_find_their_counters_by_name_type_and_labels() -> None:
    shown = versions(LoadedVersion("m", 2, STATISTICS))
    of = '{model="m",version="2"}'
    expected = {
        "nv_inference_request_success": 120,
        "nv_inference_count": 480,
        "nv_inference_exec_count": 104,
        "nv_inference_request_duration_us": 5_000_000,
        "nv_inference_queue_duration_us": 2_000,
        "nv_inference_compute_input_duration_us": 30,
        "nv_inference_compute_infer_duration_us": 4_000,
        "nv_inference_compute_output_duration_us": 50,
        "nv_inference_pending_request_count": 6,
    }
    assert {name: shown[name + of] for name in expected} == expected
    types = dict(re.findall(r"^# TYPE (nv_\w+) (\w+)$", text(everything().collect()), re.MULTILINE))
    assert types.pop("nv_inference_pending_request_count") == "gauge"
    assert set(types) == {*expected, "nv_inference_request_failure"} - {
        "nv_inference_pending_request_count"
    }
    assert set(types.values()) == {"counter"}


def test_every_failure_has_one_reason() -> None:
    assert failures_of(STATISTICS) == {"REJECTED": 8, "CANCELED": 4, "BACKEND": 2, "OTHER": 2}
    assert set(failures_of(VersionStatistics()).values()) == {0}
    shown = versions(LoadedVersion("m", 2, STATISTICS))
    failures = {key: value for key, value in shown.items() if "request_failure" in key}
    assert failures == {
        f'nv_inference_request_failure{{model="m",reason="{reason}",version="2"}}': count
        for reason, count in failures_of(STATISTICS).items()
    }
    assert shown['trimtab_requests_rejected_total{model="m",version="2"}'] == 3
    assert shown['trimtab_requests_expired_total{model="m",version="2"}'] == 5
    assert shown['trimtab_tap_failures_total{model="m",version="2"}'] == 1


@pytest.mark.parametrize(
    ("name", "bounds", "counts", "total"),
    [
        ("trimtab_request_duration_seconds", [b / 1e6 for b in LATENCY_BOUNDS_US], LATENCIES, 5.0),
        ("trimtab_batch_rows", BATCH_BOUNDS, BATCHES, 480.0),
    ],
)
def test_a_histogram_is_cumulative(
    name: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> None:
    found = {
        family.name: family
        for family in text_string_to_metric_families(
            text(of_versions([LoadedVersion("m", 2, STATISTICS)]))
        )
    }[name]
    assert found.type == "histogram"
    buckets = [s for s in found.samples if s.name == f"{name}_bucket"]
    assert [float(s.labels["le"]) for s in buckets] == [*bounds, float("inf")]
    assert [s.value for s in buckets] == list(accumulate(counts))
    assert {s.name: s.value for s in found.samples if "le" not in s.labels} == {
        f"{name}_count": sum(counts),
        f"{name}_sum": total,
    }


def test_a_version_that_has_answered_nothing_shows_zeros() -> None:
    shown = versions(LoadedVersion("m", 1, VersionStatistics()))
    assert set(shown.values()) == {0}
    assert not [key for key in shown if "last_inference" in key], "1970 is no answer"
    assert len([key for key in shown if "_bucket" in key]) == len(LATENCIES) + len(BATCHES)


def test_series_of_versions_that_are_not_loaded_are_not_there() -> None:
    both = versions(LoadedVersion("m", 1, STATISTICS), LoadedVersion("m", 2, STATISTICS))
    one = versions(LoadedVersion("m", 2, STATISTICS))
    assert {key for key in both if 'version="1"' not in key} == set(one)
    assert len(both) == 2 * len(one)
    assert versions() == {}


def test_a_model_shows_who_should_answer_and_who_does() -> None:
    assert series(of_models([STATUS])) == {
        'trimtab_model_ready{model="m"}': 1,
        'trimtab_champion_version{model="m"}': 3,
        'trimtab_serving_version{model="m"}': 2,
        'trimtab_registry_revision{model="m"}': 7,
        'trimtab_versions{model="m",state="UNLOADED"}': 1,
        'trimtab_versions{model="m",state="LOADING"}': 0,
        'trimtab_versions{model="m",state="VERIFYING"}': 0,
        'trimtab_versions{model="m",state="WARMING"}': 0,
        'trimtab_versions{model="m",state="READY"}': 1,
        'trimtab_versions{model="m",state="DRAINING"}': 0,
        'trimtab_versions{model="m",state="FAILED"}': 1,
    }
    empty = ModelStatus("m", False, 0, None, None, None, (), "no versions")
    assert set(series(of_models([empty])).values()) == {0}


def test_the_loop_shows_drift_logs_and_trainings() -> None:
    m = 'model="m"'
    assert series(of_loops([LOOP])) == {
        f"trimtab_observed_rows_total{{{m}}}": 500,
        f"trimtab_labels_total{{{m}}}": 70,
        f"trimtab_trainings_started_total{{{m}}}": 4,
        f'trimtab_trainings_finished_total{{{m},outcome="published"}}': 1,
        f'trimtab_trainings_finished_total{{{m},outcome="refused"}}': 1,
        f'trimtab_trainings_finished_total{{{m},outcome="failed"}}': 1,
        f'trimtab_trainings_finished_total{{{m},outcome="cancelled"}}': 0,
        f'trimtab_trainings_finished_total{{{m},outcome="data_broken"}}': 0,
        f"trimtab_trainings_skipped_total{{{m}}}": 2,
        f"trimtab_training_running{{{m}}}": 1,
        f"trimtab_training_progress{{{m}}}": 0.25,
        f'trimtab_drift_state{{{m},state="collecting"}}': 0,
        f'trimtab_drift_state{{{m},state="ok"}}': 0,
        f'trimtab_drift_state{{{m},state="warning"}}': 1,
        f'trimtab_drift_state{{{m},state="drift"}}': 0,
        f"trimtab_drift_window_rows{{{m}}}": 1000,
        f"trimtab_drift_passed_over_rows_total{{{m}}}": 0,
        f"trimtab_drift_broken_features{{{m}}}": 1,
        f'trimtab_drift_feature_psi{{feature="temp",{m},role="input"}}': 0.15,
        f'trimtab_drift_feature_psi{{feature="y",{m},role="output"}}': 0.01,
        f'trimtab_drift_feature_strength{{feature="temp",{m},role="input"}}': 0.75,
        f'trimtab_drift_feature_strength{{feature="y",{m},role="output"}}': 0.05,
        f"trimtab_traffic_log_rows_written_total{{{m}}}": 400,
        f"trimtab_traffic_log_rows_dropped_total{{{m}}}": 10,
        f"trimtab_traffic_log_bytes_written_total{{{m}}}": 12_345,
        f"trimtab_traffic_log_write_errors_total{{{m}}}": 2,
        f"trimtab_traffic_log_rows_queued{{{m}}}": 90,
        f"trimtab_traffic_log_failing{{{m}}}": 1,
        f'trimtab_label_outcomes_total{{{m},outcome="joined"}}': 10,
        f'trimtab_label_outcomes_total{{{m},outcome="duplicate"}}': 20,
        f'trimtab_label_outcomes_total{{{m},outcome="corrected"}}': 30,
        f'trimtab_label_outcomes_total{{{m},outcome="unknown"}}': 40,
        f'trimtab_label_outcomes_total{{{m},outcome="left_out"}}': 50,
        f'trimtab_label_outcomes_total{{{m},outcome="wrong_type"}}': 60,
        f'trimtab_label_outcomes_total{{{m},outcome="no_answer"}}': 70,
        f'trimtab_label_outcomes_total{{{m},outcome="unread"}}': 80,
        f"trimtab_labels_waiting{{{m}}}": 7,
        f"trimtab_labels_young{{{m}}}": 8,
        f"trimtab_labels_one_sided{{{m}}}": 1,
        f"trimtab_answers_remembered{{{m}}}": 900,
        f"trimtab_answers_forgotten_total{{{m}}}": 90,
        f'trimtab_label_lag_seconds{{{m},quantile="0.5"}}': 1,
        f'trimtab_label_lag_seconds{{{m},quantile="0.9"}}': 60,
        f'trimtab_label_lag_seconds{{{m},quantile="0.99"}}': 90,
        f'trimtab_quality_state{{{m},state="collecting"}}': 0,
        f'trimtab_quality_state{{{m},state="ok"}}': 0,
        f'trimtab_quality_state{{{m},state="degraded"}}': 1,
        f'trimtab_quality_window_rows{{metric="log_loss",{m},version="2"}}': 5_000,
        f'trimtab_quality_loss{{metric="log_loss",{m},version="2"}}': 0.5,
        f'trimtab_quality_loss_low{{metric="log_loss",{m},version="2"}}': 0.4,
        f'trimtab_quality_loss_high{{metric="log_loss",{m},version="2"}}': 0.6,
        f'trimtab_quality_reference_loss{{metric="log_loss",{m},version="2"}}': 0.3,
        f'trimtab_quality_log_evidence{{metric="log_loss",{m},version="2"}}': 12.5,
        f'trimtab_label_coverage{{{m},version="2"}}': 0.25,
        f'trimtab_rollout_phase{{{m},phase="approval"}}': 0,
        f'trimtab_rollout_phase{{{m},phase="shadow"}}': 0,
        f'trimtab_rollout_phase{{{m},phase="canary"}}': 1,
        f'trimtab_rollout_phase{{{m},phase="bake"}}': 0,
        f'trimtab_rollout_share{{{m},version="3"}}': 0.1,
        f'trimtab_rollout_compared_rows{{{m},version="3"}}': 600,
        f'trimtab_rollout_dropped_rows{{{m},version="3"}}': 40,
        f'trimtab_rollout_latency_ratio{{{m},version="3"}}': 1.25,
        f'trimtab_rollout_prediction_psi{{{m},version="3"}}': 0.02,
    }


def test_a_rollout_that_is_over_leaves_its_figures_and_no_phase() -> None:
    over = RolloutStatus("m", version=3, against=2, share=0.5, rows_compared=600)
    shown = series(of_loops([LoopStats("m", rollout=over)]))
    phases = {key: value for key, value in shown.items() if "rollout_phase" in key}
    assert len(phases) == 4 and set(phases.values()) == {0}
    assert shown['trimtab_rollout_compared_rows{model="m",version="3"}'] == 600
    assert shown['trimtab_rollout_share{model="m",version="3"}'] == 0
    assert not [key for key in shown if "latency_ratio" in key or "prediction_psi" in key]


def test_what_is_not_watched_or_not_logged_has_no_series() -> None:
    shown = series(of_loops([LoopStats("m")]))
    absent = ("drift", "traffic", "quality", "trimtab_label_", "trimtab_answers", "rollout")
    assert not [key for key in shown if any(part in key for part in absent)]
    assert 'trimtab_observed_rows_total{model="m"}' in shown


def test_only_the_strongest_features_have_series() -> None:
    features = tuple(
        FeatureDrift(f"f{index}", "numeric", "input", psi=1 / (index + 1)) for index in range(5000)
    )
    loop = LoopStats("m", drift=DriftStats(1, "ok", 1000, features))
    psi = [key for key in series(of_loops([loop])) if "feature_psi" in key]
    assert len(psi) == MAX_FEATURES
    assert f'feature="f{MAX_FEATURES - 1}"' in psi[-1]


def test_names_of_features_cannot_break_a_scrape() -> None:
    """Two tensors may have a column of one name; names come from files."""
    names = ["x", "x", 'a"b\\c\nd', "\ud800", "l" * 5000, "l" * 4000]
    features = tuple(FeatureDrift(name, "numeric", "input", psi=0.5) for name in names)
    loop = LoopStats("m", drift=DriftStats(1, "ok", 1000, features))
    for parse, accept in (
        (text_string_to_metric_families, ""),
        (openmetrics.text_string_to_metric_families, OPENMETRICS),
    ):
        families = {f.name: f for f in parse(text(of_loops([loop]), accept))}
        samples = families["trimtab_drift_feature_psi"].samples
        labels = [sample.labels["feature"] for sample in samples]
        assert labels == ["x", 'a"b\\c\nd', "?", "l" * 128]


def test_a_series_has_the_same_name_in_either_format() -> None:
    def names(body: str) -> set[str]:
        return {line.split("{")[0] for line in body.splitlines() if not line.startswith("#")}

    plain = text(everything().collect())
    body, content_type = exposition(everything(), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert names(plain) == names(body.decode())
    parse = openmetrics.text_string_to_metric_families
    parsed = list(parse(body.decode()))  # type: ignore[no-untyped-call]  # this parser has no types
    assert len(parsed) == len(list(everything().collect()))


def test_the_build_is_told() -> None:
    assert series(of_build(BUILD)) == {
        'trimtab_build_info{frontend="portable",grpc="1.80.0",version="1.2.3"}': 1
    }


def test_the_docs_list_every_metric() -> None:
    listed = set(re.findall(r"^\| `((?:nv|trimtab)_\w+)` \|", DOCS.read_text(), re.MULTILINE))
    shown = set(re.findall(r"^# TYPE (\w+) ", text(everything().collect()), re.MULTILINE))
    beside = {"trimtab_scrape_errors_total", "trimtab_control_loop_failures_total"}
    assert listed == shown | beside
