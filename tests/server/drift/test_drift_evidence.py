import math

import numpy as np
import pytest

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab._native.evidence import evidence_groups
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_evidence import DriftEvidence, of_two_samples
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import WindowSnapshot

REFERENCE = reference()
PANE = 500
TARGET = 1_000 * PANE
TEMP, WIND = ("input", "temp"), ("input", "wind")


def evidence_of(deflate: bool = False) -> DriftEvidence:
    return DriftEvidence(REFERENCE, PANE, TARGET, deflate=deflate)


class Feed:
    """A monitor that hands panes of rows to evidence, as the control loop does."""

    def __init__(self, evidence: DriftEvidence) -> None:
        config = DriftConfig(judge_every_s=0, window_rows=10 * PANE, panes=10)
        self.evidence = evidence
        self.monitor = DriftMonitor(SIGNATURE, REFERENCE, config, self._on_pane)

    def _on_pane(self, snapshot: WindowSnapshot) -> None:
        assert snapshot.recent is not None
        self.evidence.add(snapshot.recent)

    def __call__(self, numeric: np.ndarray, carriers: list[str]) -> None:
        self.monitor.observe(batch(numeric, carriers))


def test_rows_like_the_reference_yield_none_and_a_shift_is_attributed_to_its_features() -> None:
    random = np.random.default_rng(1)
    evidence = evidence_of()
    feed = Feed(evidence)
    feed(*draw(random, 100 * PANE))
    assert not evidence.latest.found and not evidence.latest.overall_found
    assert evidence.latest.threshold == pytest.approx(math.log(1_000))
    assert set(evidence.latest.log_e) == {
        TEMP,
        WIND,
        ("input", "carrier"),
        ("output", "variable"),
    }
    feed(*draw(random, 3 * PANE, shift=0.5))
    assert evidence.latest.found == {TEMP, ("output", "variable")}
    assert evidence.latest.overall_found
    assert evidence.latest.log_e[WIND] < evidence.latest.threshold


def test_a_reset_forgets_what_was_found_and_it_is_found_anew() -> None:
    random = np.random.default_rng(2)
    evidence = evidence_of()
    feed = Feed(evidence)
    feed(*draw(random, 3 * PANE, shift=1.0))
    assert TEMP in evidence.latest.found
    evidence.reset()
    assert not evidence.latest.found and not evidence.latest.log_e
    feed(*draw(random, 5 * PANE))
    assert not evidence.latest.found
    feed(*draw(random, 3 * PANE, shift=1.0))
    assert TEMP in evidence.latest.found


def test_a_check_waits_for_a_panes_rows_however_they_come() -> None:
    numeric, carriers = draw(np.random.default_rng(3), 4 * PANE, shift=0.3)
    whole, parts = evidence_of(), evidence_of()
    feed = Feed(whole)
    feed(numeric, carriers)
    small = DriftConfig(judge_every_s=0, window_rows=1000, panes=10)  # panes of a fifth
    monitor = DriftMonitor(
        SIGNATURE, REFERENCE, small, lambda snapshot: parts.add(snapshot.recent or ())
    )
    monitor.observe(batch(numeric, carriers))
    assert parts.latest.log_e == pytest.approx(whole.latest.log_e)
    assert repr(parts) == repr(whole)


def test_rows_that_resemble_their_neighbours_count_for_fewer() -> None:
    random = np.random.default_rng(4)
    plain, deflated = evidence_of(), evidence_of(deflate=True)
    for evidence in (plain, deflated):
        feed = Feed(evidence)
        random = np.random.default_rng(4)
        for _ in range(60):  # every pane has a level of its own: its rows are far from independent
            numeric, carriers = draw(random, PANE)
            numeric[:, 0] += np.float32(random.normal() * 0.3)
            feed(numeric, carriers)
    assert deflated.latest.effective[TEMP] < 0.2
    assert deflated.latest.effective[WIND] > 0.5
    assert plain.latest.effective[TEMP] == 1
    assert deflated.latest.log_e[TEMP] < plain.latest.log_e[TEMP] / 3


def test_two_samples_are_compared_once() -> None:
    random = np.random.default_rng(5)
    seen: list[WindowSnapshot] = []
    config = DriftConfig(judge_every_s=0, window_rows=2_000, panes=1)
    for shift in (0.0, 0.5):
        monitor = DriftMonitor(SIGNATURE, REFERENCE, config, seen.append)
        monitor.observe(batch(*draw(random, 2_000, shift=shift)))
    same, shifted = (of_two_samples(REFERENCE, each.tensors, 0.05) for each in seen)
    assert not same.found and shifted.found == {TEMP, ("output", "variable")}
    assert shifted.effective[TEMP] == 1
    none = of_two_samples(REFERENCE, [None] * len(REFERENCE.tensors), 0.05)
    assert not none.found and none.log_e[TEMP] == 0


def test_groups_are_few_and_heavy() -> None:
    for tensor in REFERENCE.tensors:
        for feature in tensor.features:
            assert evidence_groups(feature).masses.min() >= 50
