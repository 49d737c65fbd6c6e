from trimtab.proto import admin_pb2
from trimtab.server.drift.drift_report import DRIFT, DriftReport, FeatureDrift
from trimtab.server.services.admin.drift_messages import drift_message

FEATURE = FeatureDrift(
    name="temp",
    kind="numeric",
    role="input",
    verdict=DRIFT,
    reason="moved",
    rows=1,
    effective_rows=0.5,
    psi=2.0,
    psi_critical=3.0,
    psi_low=4.0,
    ks_low=5.0,
    ks_high=6.0,
    ks_p_value=7.0,
    log_evidence=8.0,
    missing_rate=9.0,
    missing_interval=(10.0, 11.0),
    reference_missing_rate=12.0,
    unseen_rate=13.0,
    unseen_interval=(14.0, 15.0),
    outside_rate=16.0,
    outside_interval=(17.0, 18.0),
    jensen_shannon=19.0,
    hellinger=20.0,
    wasserstein=21.0,
    importance=22.0,
    reference_shares=(23.0,),
    window_shares=(24.0,),
    strength=25.0,
)


def test_every_figure_of_a_feature_is_in_the_message() -> None:
    report = DriftReport("m", 1, DRIFT, "temp moved", features=(FEATURE,))
    (told,) = drift_message(report).features
    fields = {field.name for field, _ in told.ListFields()}
    assert fields == {field.name for field in admin_pb2.FeatureDrift.DESCRIPTOR.fields}
    numbers = [value for _, value in told.ListFields() if isinstance(value, float)]
    assert len(set(numbers)) == len(numbers), "none is told twice"


def test_what_is_not_known_is_left_out() -> None:
    report = DriftReport(
        "m", 1, DRIFT, "", features=(FeatureDrift("temp", "categorical", "input"),)
    )
    message = drift_message(report)
    assert not message.HasField("log_evidence")
    (told,) = message.features
    assert not any(told.HasField(name) for name in ("log_evidence", "wasserstein", "importance"))
