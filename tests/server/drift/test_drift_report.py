import dataclasses

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab._native.reference import ReferenceProfile, TensorReference
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_evidence import Evidence, of_two_samples
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import (
    DATA_QUALITY,
    DRIFT,
    OK,
    WARNING,
    FeatureDrift,
    evaluate,
    ks_noise,
    summary,
    worst,
)
from trimtab.server.drift.yardstick import Yardstick

REFERENCE = reference()
CONFIG = DriftConfig(window_rows=4000, panes=4, min_rows=500)


def judged(
    numeric: np.ndarray,
    carriers: list[str],
    config: DriftConfig = CONFIG,
    evidence: Evidence | None = None,
    look: float = 0.0,
    profile: ReferenceProfile = REFERENCE,
) -> dict[str, FeatureDrift]:
    monitor = DriftMonitor(SIGNATURE, REFERENCE, config, lambda snapshot: None)
    monitor.observe(batch(numeric, carriers))
    if look:
        evidence = of_two_samples(profile, monitor.snapshot().tensors, look)
    features = evaluate(Yardstick(profile), monitor.snapshot(), config, evidence=evidence)
    if profile is REFERENCE:
        strengths = [feature.strength for feature in features]
        assert strengths == sorted(strengths, reverse=True)
    return {feature.name: feature for feature in features}


def random() -> np.random.Generator:
    return np.random.default_rng(42)


def test_rows_like_the_reference_are_ok() -> None:
    found = judged(*draw(random(), 3999))
    assert worst(list(found.values())) == OK
    assert all(feature.psi < 0.05 for feature in found.values())
    assert found["temp"].ks_low <= found["temp"].ks_high
    assert sum(found["carrier"].window_shares) == pytest.approx(1)


def test_a_shifted_feature_drifts_and_the_reason_says_where_to() -> None:
    found = judged(*draw(random(), 3999, shift=1.0))
    assert found["temp"].verdict == DRIFT and found["wind"].verdict == OK
    assert found["temp"].psi == pytest.approx(0.96, abs=0.15), "of a shift by one sd"
    assert found["temp"].ks_low < 0.383 + 0.02 < found["temp"].ks_high + 0.04, "2Φ(1/2) - 1"
    assert "PSI" in found["temp"].reason and "→" in found["temp"].reason
    assert found["variable"].verdict == DRIFT and found["variable"].role == "output"
    assert worst(list(found.values())) == DRIFT
    assert "temp: PSI" in summary(list(found.values()), DRIFT)


def test_a_smaller_shift_is_a_warning() -> None:
    found = judged(*draw(random(), 3999, shift=0.4))
    assert found["temp"].verdict == WARNING
    assert worst(list(found.values())) == WARNING


def test_values_that_go_missing_are_a_fault_and_not_drift() -> None:
    numeric, carriers = draw(random(), 3999)
    numeric[:1500, 0] = np.nan
    found = judged(numeric, [""] * 2000 + carriers[2000:])
    assert found["temp"].verdict == found["carrier"].verdict == DATA_QUALITY
    assert found["temp"].missing_rate == pytest.approx(1500 / 3999)
    assert "missing in 37.5%" in found["temp"].reason
    assert worst([found["temp"], found["carrier"]]) == OK
    assert found["temp"].psi > 0.2, "the figure is told all the same"


def test_unseen_categories_are_a_fault() -> None:
    numeric, carriers = draw(random(), 3999)
    found = judged(numeric, ["ZZ"] * 1000 + carriers[1000:])
    assert found["carrier"].verdict == DATA_QUALITY
    assert found["carrier"].unseen_rate == pytest.approx(1000 / 3999)


def test_a_column_that_no_longer_varies_is_a_fault() -> None:
    numeric, _ = draw(random(), 3999)
    numeric[:, 1] = 0.25
    found = judged(numeric, ["DL"] * 3999)
    assert found["wind"].verdict == DATA_QUALITY
    assert "all 3,999 values are 0.25" in found["wind"].reason
    assert found["carrier"].verdict == DATA_QUALITY and "'DL'" in found["carrier"].reason


def test_a_new_mix_of_known_categories_is_drift() -> None:
    numeric, carriers = draw(random(), 3999)
    found = judged(numeric, ["DL"] * 2500 + carriers[2500:])
    assert found["carrier"].verdict == DRIFT
    assert "DL (3" in found["carrier"].reason
    assert found["carrier"].ks_low == found["carrier"].ks_high == 0


def test_a_feature_with_too_few_rows_is_not_judged() -> None:
    found = judged(*draw(random(), 400, shift=3.0))
    assert found["temp"].verdict == OK and "only 400 rows" in found["temp"].reason


def test_small_windows_cry_no_wolf() -> None:
    """Under no drift the evidence holds where every difference is large enough."""
    eager = dataclasses.replace(CONFIG, psi=0.0, ks=0.0, min_rows=50)
    source = random()
    alarms = sum(
        feature.verdict == DRIFT
        for _ in range(100)
        for feature in judged(*draw(source, 100), config=eager, look=0.01).values()
    )
    assert alarms <= 2, "of 400"
    assert ks_noise(10_000, 100) > 0.2 > ks_noise(10_000, 10_000)


def test_a_large_difference_is_a_warning_until_chance_is_ruled_out() -> None:
    numeric, carriers = draw(random(), 3999, shift=1.0)
    temp, variable = ("input", "temp"), ("output", "variable")
    none = Evidence(9.2, {temp: 3.0}, frozenset())
    found = judged(numeric, carriers, evidence=none)
    assert found["temp"].verdict == WARNING and "chance" in found["temp"].reason
    assert found["temp"].log_evidence == 3.0 and found["wind"].log_evidence == -np.inf
    enough = Evidence(9.2, {temp: 30.0}, frozenset({temp}), effective={temp: 0.5})
    found = judged(numeric, carriers, evidence=enough)
    assert found["temp"].verdict == DRIFT and found["variable"].verdict == WARNING
    assert found["temp"].effective_rows == pytest.approx(0.5 * 3999)
    assert found["temp"].psi_low < judged(numeric, carriers)["temp"].psi_low
    broad = Evidence(9.2, found=frozenset({temp, variable, ("input", "wind")}))
    found = judged(numeric, carriers, evidence=broad)
    assert found["wind"].verdict == OK, "evidence of a difference that is too small to matter"


def test_every_figure_of_a_feature_is_told() -> None:
    numeric, carriers = draw(random(), 3999, shift=1.0)
    numeric[:400, 0] = np.nan
    found = judged(numeric, carriers)
    temp, carrier = found["temp"], found["carrier"]
    assert temp.rows == carrier.rows == 3999
    assert 0 < temp.psi_critical < 0.02 < temp.psi_low < temp.psi
    assert temp.ks_p_value < 1e-10 and found["wind"].ks_p_value > 0.001
    assert temp.wasserstein == pytest.approx(1, abs=0.2), "in standard deviations"
    assert 0.2 < temp.jensen_shannon < 0.6 and 0.2 < temp.hellinger < 0.6
    low, high = temp.missing_interval
    assert low < 400 / 3999 < high and high - low < 0.02
    assert carrier.unseen_interval[0] == 0 and carrier.wasserstein is None


def test_importance_decides_between_features_that_drifted_alike() -> None:
    def rated(name: str) -> float | None:
        return {"temp": 0.1, "wind": 10.0}.get(name)

    profile = ReferenceProfile(
        REFERENCE.rows,
        tuple(
            TensorReference(
                tensor.tensor,
                tensor.role,
                tuple(
                    dataclasses.replace(feature, importance=rated(feature.name))
                    for feature in tensor.features
                ),
            )
            for tensor in REFERENCE.tensors
        ),
    )
    numeric, carriers = draw(random(), 3999, shift=1.0)
    numeric[:, 1] += 0.6
    names = list(judged(numeric, carriers, profile=profile))
    assert names.index("wind") < names.index("temp")
    assert judged(numeric, carriers)["temp"].strength > judged(numeric, carriers)["wind"].strength
