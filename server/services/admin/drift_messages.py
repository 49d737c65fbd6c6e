"""A drift report as the admin protocol has it."""

import math

from trimtab.proto import admin_pb2 as pb

from ...drift.drift_report import DriftReport, FeatureDrift


def drift_message(report: DriftReport) -> pb.DriftReport:
    """A report as the protocol has it."""
    return pb.DriftReport(
        model_name=report.model,
        version=report.version,
        state=report.state,
        reason=report.reason,
        window_rows=report.window_rows,
        reference_rows=report.reference_rows,
        observed_rows=report.observed_rows,
        passed_over_rows=report.passed_over_rows,
        reference=report.reference,
        log_evidence=_known(report.evidence.overall),
        log_evidence_threshold=report.evidence.threshold,
        features=map(_feature_message, report.features),
    )


def _feature_message(feature: FeatureDrift) -> pb.FeatureDrift:
    return pb.FeatureDrift(
        name=feature.name,
        kind=feature.kind,
        role=feature.role,
        verdict=feature.verdict,
        reason=feature.reason,
        psi=feature.psi,
        ks_low=feature.ks_low,
        ks_high=feature.ks_high,
        missing_rate=feature.missing_rate,
        reference_missing_rate=feature.reference_missing_rate,
        unseen_rate=feature.unseen_rate,
        reference_shares=feature.reference_shares,
        window_shares=feature.window_shares,
        rows=feature.rows,
        effective_rows=feature.effective_rows,
        psi_critical=feature.psi_critical,
        psi_low=feature.psi_low,
        ks_p_value=feature.ks_p_value,
        log_evidence=_known(feature.log_evidence),
        missing_rate_low=feature.missing_interval[0],
        missing_rate_high=feature.missing_interval[1],
        unseen_rate_low=feature.unseen_interval[0],
        unseen_rate_high=feature.unseen_interval[1],
        outside_rate=feature.outside_rate,
        outside_rate_low=feature.outside_interval[0],
        outside_rate_high=feature.outside_interval[1],
        jensen_shannon=feature.jensen_shannon,
        hellinger=feature.hellinger,
        wasserstein=feature.wasserstein,
        importance=feature.importance,
        strength=feature.strength,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
