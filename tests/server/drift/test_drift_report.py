import dataclasses

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import (
    DATA_QUALITY,
    DRIFT,
    OK,
    WARNING,
    FeatureDrift,
    evaluate,
    ks_noise,
    psi_noise,
    summary,
    worst,
)
from trimtab.server.drift.yardstick import Yardstick

REFERENCE = reference()
CONFIG = DriftConfig(window_rows=4000, panes=4, min_rows=500)


def judged(
    numeric: np.ndarray, carriers: list[str], config: DriftConfig = CONFIG
) -> dict[str, FeatureDrift]:
    monitor = DriftMonitor(SIGNATURE, REFERENCE, config, lambda snapshot: None)
    monitor.observe(batch(numeric, carriers))
    features = evaluate(Yardstick(REFERENCE), monitor.snapshot(), config)
    assert [f.strength for f in features] == sorted((f.strength for f in features), reverse=True)
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
    """Under no drift the noise cut-offs hold where the configured thresholds would not."""
    eager = dataclasses.replace(CONFIG, psi=0.0, ks=0.0, min_rows=50)
    source = random()
    alarms = sum(
        feature.verdict == DRIFT
        for _ in range(100)
        for feature in judged(*draw(source, 100), config=eager).values()
    )
    assert alarms <= 2, "of 400"
    assert psi_noise(10_000, 100, 10) > 0.2 > psi_noise(10_000, 10_000, 10)
    assert ks_noise(10_000, 100) > 0.2 > ks_noise(10_000, 10_000)
