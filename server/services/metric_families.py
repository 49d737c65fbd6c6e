"""Which metrics there are: snapshots of the server's parts in, Prometheus families out.

Pure. What a name means to whoever watches it is in docs/metrics.md, which lists every one.

`nv_…` are Triton's names, to the letter, so that its dashboards find them: counters without the
`_total` that Prometheus' own conventions ask for. OpenMetrics has no such counters; there they are
`unknown`, and the text format calls them counters again (metrics_server.py). So a series is called
the same whatever was negotiated. All other names follow the conventions.

Labels are bounded: models and loaded versions, features up to `MAX_FEATURES` of a model, and
enumerations. Only what is there is in the output, so that the series of an unloaded version end.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)

from ..drift.drift_report import DRIFT, OK, WARNING, FeatureDrift
from ..drift.drift_state import COLLECTING
from ..inference.statistics import BATCH_BOUNDS, LATENCY_BOUNDS_US, VersionStatistics
from ..lifecycle.version_plan import ModelStatus, VersionState
from ..logs.traffic_log import TrafficStats
from ..loop.label_stats import OUTCOMES, LabelStats
from ..loop.loop_stats import LoopStats
from ..loop.quality import DEGRADED, Quality
from ..rollout.status import Phase, RolloutStatus

MAX_FEATURES = 20  # of one model, those that drifted most
_MAX_LABEL = 128  # characters of a feature's name
_DRIFT_STATES = (COLLECTING, OK, WARNING, DRIFT)
_QUALITY_STATES = (COLLECTING, OK, DEGRADED)
_PHASES: tuple[Phase, ...] = ("approval", "shadow", "canary", "bake")
_VERSION = ("model", "version")
_MODEL = ("model",)


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A loaded version and what it has done."""

    model: str
    version: int
    statistics: VersionStatistics

    @property
    def labels(self) -> tuple[str, str]:
        return self.model, str(self.version)


_VersionValue = Callable[[VersionStatistics], float]
_TRITON_COUNTERS: tuple[tuple[str, str, _VersionValue], ...] = (
    (
        "nv_inference_request_success",
        "Requests answered with a prediction",
        lambda s: s.success.count,
    ),
    ("nv_inference_count", "Rows in answered requests", lambda s: s.rows),
    ("nv_inference_exec_count", "Runs of the model that gave answers", lambda s: s.runs),
    (
        "nv_inference_request_duration_us",
        "Time of answered requests from receipt to reply, in all, in microseconds",
        lambda s: s.success.ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Time of answered requests from receipt until their run began, in all, in microseconds",
        lambda s: s.queue.ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time of answered requests while their run's inputs were gathered, in all, in microseconds",
        lambda s: s.compute_input.ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time of answered requests in onnxruntime, in all, in microseconds",
        lambda s: s.compute_infer.ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time of answered requests while replies were written, in all, in microseconds",
        lambda s: s.compute_output.ns // 1000,
    ),
)
_VERSION_COUNTERS: tuple[tuple[str, str, _VersionValue], ...] = (
    (
        "trimtab_requests_rejected",
        "Requests refused because the queue was full",
        lambda s: s.rejected,
    ),
    (
        "trimtab_requests_expired",
        "Requests past their deadline or timeout before they ran",
        lambda s: s.expired,
    ),
    (
        "trimtab_tap_failures",
        "Runs that the drift monitor or the traffic log failed on",
        lambda s: s.tap_failures,
    ),
)
_VERSION_GAUGES: tuple[tuple[str, str, _VersionValue], ...] = (
    (
        "nv_inference_pending_request_count",
        "Requests that wait to be run",
        lambda s: s.waiting_requests,
    ),
    ("trimtab_queue_rows", "Rows that wait to be run", lambda s: s.waiting_rows),
)
_TRAFFIC_COUNTERS: tuple[tuple[str, str, Callable[[TrafficStats], float]], ...] = (
    ("trimtab_traffic_log_rows_written", "Rows in the log's files", lambda s: s.rows_written),
    (
        "trimtab_traffic_log_rows_dropped",
        "Rows that the log has lost: its queue was full, or they could not be written",
        lambda s: s.rows_dropped,
    ),
    ("trimtab_traffic_log_bytes_written", "Bytes of the log's frames", lambda s: s.bytes_written),
    ("trimtab_traffic_log_write_errors", "Failed writes, retries included", lambda s: s.write_errors),
)  # fmt: skip
_TRAFFIC_GAUGES: tuple[tuple[str, str, Callable[[TrafficStats], float]], ...] = (
    ("trimtab_traffic_log_rows_queued", "Rows that wait to be written", lambda s: s.rows_queued),
    (
        "trimtab_traffic_log_failing",
        "1 while the log cannot be written",
        lambda s: bool(s.failing),
    ),
)


def of_versions(versions: Sequence[LoadedVersion]) -> list[Metric]:
    """Requests, batches and queues."""
    families: list[Metric] = []
    for name, meaning, value in _TRITON_COUNTERS:
        triton = UnknownMetricFamily(name, meaning, labels=_VERSION)
        for each in versions:
            triton.add_metric(each.labels, value(each.statistics))
        families.append(triton)
    failures = UnknownMetricFamily(
        "nv_inference_request_failure",
        "Requests that got no prediction, by reason",
        labels=(*_VERSION, "reason"),
    )
    for each in versions:
        for reason, count in failures_of(each.statistics).items():
            failures.add_metric((*each.labels, reason), count)
    families.append(failures)
    for name, meaning, value in _VERSION_COUNTERS:
        counter = CounterMetricFamily(name, meaning, labels=_VERSION)
        for each in versions:
            counter.add_metric(each.labels, value(each.statistics))
        families.append(counter)
    for name, meaning, value in _VERSION_GAUGES:
        gauge = GaugeMetricFamily(name, meaning, labels=_VERSION)
        for each in versions:
            gauge.add_metric(each.labels, value(each.statistics))
        families.append(gauge)
    latency = HistogramMetricFamily(
        "trimtab_request_duration_seconds",
        "Time of an answered request from receipt to reply",
        labels=_VERSION,
    )
    batch = HistogramMetricFamily(
        "trimtab_batch_rows", "Rows that one run of the model took", labels=_VERSION
    )
    last = GaugeMetricFamily(
        "trimtab_last_inference_timestamp_seconds",
        "When a request was last answered, in seconds since 1970",
        labels=_VERSION,
    )
    bounds_s = [bound / 1e6 for bound in LATENCY_BOUNDS_US]
    for each in versions:
        counts = each.statistics
        latency.add_metric(
            each.labels, _buckets(bounds_s, counts.latency_us), counts.success.ns / 1e9
        )
        batch.add_metric(each.labels, _buckets(BATCH_BOUNDS, counts.batch_rows), counts.rows)
        if counts.last_inference_ms:
            last.add_metric(each.labels, counts.last_inference_ms / 1000)
    return [*families, latency, batch, last]


def failures_of(statistics: VersionStatistics) -> Mapping[str, int]:
    """Requests without a prediction by Triton's reasons, each request under one of them.

    `fail` holds those that were told of an error after they were queued, not those that were
    refused or given up by the client.
    """
    known = statistics.expired + statistics.failed
    return {
        "REJECTED": statistics.rejected + statistics.expired,
        "CANCELED": statistics.cancelled,
        "BACKEND": statistics.failed,
        "OTHER": max(0, statistics.fail.count - known),
    }


def of_models(statuses: Sequence[ModelStatus]) -> list[Metric]:
    """What the lifecycle has made of each model directory."""
    ready = GaugeMetricFamily(
        "trimtab_model_ready", "1 where a version answers requests that name none", labels=_MODEL
    )
    champion = GaugeMetricFamily(
        "trimtab_champion_version", "The version that should answer; 0: none", labels=_MODEL
    )
    serving = GaugeMetricFamily(
        "trimtab_serving_version", "The version that answers; 0: none", labels=_MODEL
    )
    revision = GaugeMetricFamily(
        "trimtab_registry_revision", "Changes of champion so far, as the registry counts them",
        labels=_MODEL,
    )  # fmt: skip
    versions = GaugeMetricFamily(
        "trimtab_versions", "Version directories by state", labels=(*_MODEL, "state")
    )
    for status in statuses:
        labels = (status.model,)
        ready.add_metric(labels, status.serving is not None)
        champion.add_metric(labels, status.champion or 0)
        serving.add_metric(labels, status.serving or 0)
        revision.add_metric(labels, status.revision)
        states = [version.state for version in status.versions]
        for state in VersionState:
            versions.add_metric((*labels, state.value), states.count(state))
    return [ready, champion, serving, revision, versions]


def of_loops(loops: Sequence[LoopStats]) -> list[Metric]:
    """Drift, logs and trainings."""
    observed = CounterMetricFamily(
        "trimtab_observed_rows", "Rows that were logged and counted for drift", labels=_MODEL
    )
    labels_taken = CounterMetricFamily(
        "trimtab_labels", "Labels in the label log, those of earlier processes included",
        labels=_MODEL,
    )  # fmt: skip
    started = CounterMetricFamily("trimtab_trainings_started", "Trainings begun", labels=_MODEL)
    finished = CounterMetricFamily(
        "trimtab_trainings_finished", "Trainings by outcome", labels=(*_MODEL, "outcome")
    )
    skipped = CounterMetricFamily(
        "trimtab_trainings_skipped", "Trainings that [trigger] dry_run kept from beginning",
        labels=_MODEL,
    )  # fmt: skip
    running = GaugeMetricFamily("trimtab_training_running", "1 while one runs", labels=_MODEL)
    progress = GaugeMetricFamily(
        "trimtab_training_progress", "Share of the running training's time that is over; 0: none runs",
        labels=_MODEL,
    )  # fmt: skip
    for loop in loops:
        labels = (loop.model,)
        observed.add_metric(labels, loop.observed_rows)
        labels_taken.add_metric(labels, loop.labels)
        started.add_metric(labels, loop.trainings.started)
        skipped.add_metric(labels, loop.trainings.skipped)
        for outcome in ("published", "refused", "failed", "cancelled", "data_broken"):
            finished.add_metric((*labels, outcome), getattr(loop.trainings, outcome))
        running.add_metric(labels, loop.trainings.running)
        progress.add_metric(labels, loop.trainings.fraction)
    return [
        observed,
        labels_taken,
        started,
        finished,
        skipped,
        running,
        progress,
        *_of_drift(loops),
        *_of_labels(loops),
        *_of_rollouts(loops),
        *_of_traffic(loops),
    ]


def of_build(build: Mapping[str, str]) -> list[Metric]:
    """What runs, as the labels of one constant series."""
    return [InfoMetricFamily("trimtab_build", "What runs", dict(build))]


def strongest(features: Iterable[FeatureDrift]) -> dict[tuple[str, str], FeatureDrift]:
    """The first `MAX_FEATURES` by (name, role) as labels; a second one of the same labels is left
    out, since it would make Prometheus refuse the whole scrape."""
    found: dict[tuple[str, str], FeatureDrift] = {}
    for feature in features:
        if len(found) == MAX_FEATURES:
            break
        found.setdefault((_label(feature.name), feature.role), feature)
    return found


def _of_drift(loops: Sequence[LoopStats]) -> list[Metric]:
    state = GaugeMetricFamily(
        "trimtab_drift_state",
        "1 for the state that the champion is in, 0 for the others",
        labels=(*_MODEL, "state"),
    )
    rows = GaugeMetricFamily(
        "trimtab_drift_window_rows", "Rows in the last window that was judged", labels=_MODEL
    )
    passed_over = CounterMetricFamily(
        "trimtab_drift_passed_over_rows",
        "Rows since this version became champion that were not counted, by the limits of [drift]",
        labels=_MODEL,
    )
    broken = GaugeMetricFamily(
        "trimtab_drift_broken_features", "Features with an open data-quality alarm", labels=_MODEL
    )
    psi = GaugeMetricFamily(
        "trimtab_drift_feature_psi",
        f"PSI in the last window that was judged, of the {MAX_FEATURES} strongest features",
        labels=(*_MODEL, "feature", "role"),
    )
    strength = GaugeMetricFamily(
        "trimtab_drift_feature_strength",
        "How large the same features' drift is, divided by the threshold of it",
        labels=(*_MODEL, "feature", "role"),
    )
    evidence = GaugeMetricFamily(
        "trimtab_drift_feature_log_evidence",
        "Natural logarithm of the evidence that it is not chance, where there is any",
        labels=(*_MODEL, "feature", "role"),
    )
    for loop in loops:
        drift, labels = loop.drift, (loop.model,)
        if drift is None:
            continue
        for name in _DRIFT_STATES:
            state.add_metric((*labels, name), drift.state == name)
        rows.add_metric(labels, drift.window_rows)
        passed_over.add_metric(labels, drift.passed_over_rows)
        broken.add_metric(labels, drift.broken)
        for key, feature in strongest(drift.features).items():
            psi.add_metric((*labels, *key), feature.psi)
            strength.add_metric((*labels, *key), feature.strength)
            if math.isfinite(feature.log_evidence):
                evidence.add_metric((*labels, *key), feature.log_evidence)
    return [state, rows, passed_over, broken, psi, strength, evidence]


_QualityValue = Callable[[Quality], float]
_QUALITY_GAUGES: tuple[tuple[str, str, _QualityValue], ...] = (
    ("trimtab_quality_window_rows", "Labelled rows in the window", lambda q: q.rows),
    ("trimtab_quality_loss", "Mean loss in the window", lambda q: q.mean),
    ("trimtab_quality_loss_low", "Lower end of its 95 % interval", lambda q: q.low),
    ("trimtab_quality_loss_high", "Upper end of its 95 % interval", lambda q: q.high),
    ("trimtab_quality_reference_loss", "Mean loss in the reference", lambda q: q.reference_mean),
    (
        "trimtab_quality_log_evidence",
        "Natural logarithm of the evidence that losses are others than the reference's",
        lambda q: q.log_evidence,
    ),
)
_LAG_QUANTILES = (("0.5", 0), ("0.9", 1), ("0.99", 2))


def _of_labels(loops: Sequence[LoopStats]) -> list[Metric]:
    """What labels tell of each version that has a window."""
    known = [(loop.model, loop.quality) for loop in loops if loop.quality is not None]
    outcomes = CounterMetricFamily(
        "trimtab_label_outcomes", "Labels held against answers, by outcome",
        labels=(*_MODEL, "outcome"),
    )  # fmt: skip
    waiting = GaugeMetricFamily(
        "trimtab_labels_waiting", "Labels without an outcome yet", labels=_MODEL
    )
    young = GaugeMetricFamily(
        "trimtab_labels_young", "Labels that found their row and are not mature", labels=_MODEL
    )
    remembered = GaugeMetricFamily(
        "trimtab_answers_remembered", "Answered rows that a label would find", labels=_MODEL
    )
    forgotten = CounterMetricFamily(
        "trimtab_answers_forgotten", "Answered rows that newer ones have pushed out", labels=_MODEL
    )
    one_sided = GaugeMetricFamily(
        "trimtab_labels_one_sided", "1 while labels are of one class only", labels=_MODEL
    )
    lag = GaugeMetricFamily(
        "trimtab_label_lag_seconds",
        "Time from a prediction until its label was known, by quantile",
        labels=(*_MODEL, "quantile"),
    )
    state = GaugeMetricFamily(
        "trimtab_quality_state",
        "1 for the state that the champion is in, 0 for the others",
        labels=(*_MODEL, "state"),
    )
    for model, stats in known:
        for outcome in OUTCOMES:
            outcomes.add_metric((model, outcome), stats.outcomes[outcome])
        waiting.add_metric((model,), stats.waiting)
        young.add_metric((model,), stats.young)
        remembered.add_metric((model,), stats.remembered)
        forgotten.add_metric((model,), stats.forgotten)
        one_sided.add_metric((model,), stats.one_sided)
        if stats.lag_ms is not None:
            for name, place in _LAG_QUANTILES:
                lag.add_metric((model, name), stats.lag_ms[place] / 1000)
        if stats.quality is not None:
            for name in _QUALITY_STATES:
                state.add_metric((model, name), stats.quality.state == name)
    families = [outcomes, waiting, young, remembered, forgotten, one_sided, lag, state]
    return [*families, *_of_quality(known)]


def _of_quality(known: Sequence[tuple[str, LabelStats]]) -> list[Metric]:
    families: list[Metric] = []
    of_version = (*_VERSION, "metric")
    for name, meaning, value in _QUALITY_GAUGES:
        gauge = GaugeMetricFamily(name, meaning, labels=of_version)
        for model, stats in known:
            for each in stats.versions:
                if math.isfinite(figure := value(each.quality)):
                    labels = (model, str(each.quality.version), each.quality.metric)
                    gauge.add_metric(labels, figure)
        families.append(gauge)
    coverage = GaugeMetricFamily(
        "trimtab_label_coverage", "Share of a version's remembered rows that ever got a label",
        labels=_VERSION,
    )  # fmt: skip
    for model, stats in known:
        for each in stats.versions:
            if math.isfinite(each.coverage):
                coverage.add_metric((model, str(each.quality.version)), each.coverage)
    return [*families, coverage]


_RolloutValue = Callable[[RolloutStatus], float]
_ROLLOUT_GAUGES: tuple[tuple[str, str, _RolloutValue], ...] = (
    (
        "trimtab_rollout_share",
        "Share of the requests that name no version which the canary answers",
        lambda r: r.share if r.phase == "canary" else 0.0,
    ),
    (
        "trimtab_rollout_compared_rows",
        "Rows that both versions computed, in this phase or the last one",
        lambda r: r.rows_compared,
    ),
    (
        "trimtab_rollout_dropped_rows",
        "Rows that were not compared for want of time, in this phase or the last one",
        lambda r: r.rows_dropped,
    ),
    (
        "trimtab_rollout_latency_ratio",
        "Compute time of the newer version divided by the other's, on the same rows",
        lambda r: r.latency_ratio,
    ),
    (
        "trimtab_rollout_prediction_psi",
        "PSI between the two versions' answers to the same rows, of the worst output",
        lambda r: r.prediction_psi,
    ),
)


def _of_rollouts(loops: Sequence[LoopStats]) -> list[Metric]:
    """The phase under way; figures stay, as those of the last one, when it is over."""
    phase = GaugeMetricFamily(
        "trimtab_rollout_phase",
        "1 for the phase of a roll-out that is under way, 0 for the others",
        labels=(*_MODEL, "phase"),
    )
    known = [(loop.model, loop.rollout) for loop in loops if loop.rollout is not None]
    for model, status in known:
        for each in _PHASES:
            phase.add_metric((model, each), status.phase == each)
    families: list[Metric] = [phase]
    for name, meaning, value in _ROLLOUT_GAUGES:
        gauge = GaugeMetricFamily(name, meaning, labels=_VERSION)
        for model, status in known:
            if math.isfinite(figure := value(status)):
                gauge.add_metric((model, str(status.version)), figure)
        families.append(gauge)
    return families


def _of_traffic(loops: Sequence[LoopStats]) -> list[Metric]:
    logs = [((loop.model,), loop.traffic) for loop in loops if loop.traffic is not None]
    families: list[Metric] = []
    for name, meaning, value in _TRAFFIC_COUNTERS:
        counter = CounterMetricFamily(name, meaning, labels=_MODEL)
        for labels, stats in logs:
            counter.add_metric(labels, value(stats))
        families.append(counter)
    for name, meaning, value in _TRAFFIC_GAUGES:
        gauge = GaugeMetricFamily(name, meaning, labels=_MODEL)
        for labels, stats in logs:
            gauge.add_metric(labels, value(stats))
        families.append(gauge)
    return families


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them; no counts yet are zeros."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts or [0] * len(names)), strict=True))


def _label(text: str) -> str:
    """A label's value, which must be UTF-8: names come from files."""
    return text[:_MAX_LABEL].encode(errors="replace").decode()
