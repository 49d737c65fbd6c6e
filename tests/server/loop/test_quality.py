"""A window of losses against brute force, and when a loss of quality is told of."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab._native.reference import NumericFeature, numeric_feature
from trimtab.server.config import LabelsConfig
from trimtab.server.loop.quality import (
    DEGRADED,
    LossGroups,
    LossWindow,
    Quality,
    VersionQuality,
    judge,
)

CONFIG = LabelsConfig(window_rows=2_000, panes=10, min_rows=500, false_alarm_rows=1_000_000)


def draw(random: np.random.Generator, rows: int, scale: float = 1.0) -> NDArray[np.float64]:
    """Absolute errors of normal ones."""
    return np.abs(random.normal(scale=scale, size=rows))


def reference(rows: int = 20_000, seed: int = 100) -> NumericFeature:
    return numeric_feature("absolute_error", draw(np.random.default_rng(seed), rows))


def quality(config: LabelsConfig = CONFIG, known: NumericFeature | None = None) -> VersionQuality:
    return VersionQuality(3, "absolute_error", known or reference(), config)


def told(watched: VersionQuality, losses: NDArray[np.float64], part: int = 97) -> list[Quality]:
    """What came of these losses, in batches."""
    changes: list[Quality] = []
    for start in range(0, len(losses), part):
        changes += watched.add(losses[start : start + part])[1]
    return changes


def test_the_mean_of_the_window_is_that_of_its_rows_corrections_included() -> None:
    """Brute force: every row's loss and pane in lists."""
    random = np.random.default_rng(1)
    watched = quality()
    losses: list[float] = []
    panes: list[int] = []
    for _ in range(120):
        part = draw(random, int(random.integers(1, 150)))
        pane, _ = watched.add(part)
        losses += part.tolist()
        panes += pane.tolist()
        for at in random.integers(0, len(losses), 3).tolist():
            now = float(draw(random, 1)[0])
            watched.correct(panes[at], losses[at], now)
            losses[at] = now
        open_rows = len(losses) % 200
        window = np.array(losses[-(min(len(losses) // 200, 10) * 200 + open_rows) :])
        found = watched.window()
        assert found.rows == len(window)
        assert found.mean == pytest.approx(window.mean(), rel=1e-9)
        assert found.variance == pytest.approx(window.var(), rel=1e-6)
    assert panes == [1 + at // 200 for at in range(len(losses))]


def test_stationary_labels_are_never_told_of_in_two_hundred_thousand_rows() -> None:
    """Ten versions for which a false alarm is due every 50,000 rows by evidence alone."""
    config = LabelsConfig(window_rows=2_000, min_rows=500, false_alarm_rows=50_000)
    alarms = 0
    for seed in range(10):
        watched = quality(config, reference(4_000, seed))
        alarms += len(told(watched, draw(np.random.default_rng(50 + seed), 20_000), 500))
        assert watched.latest.state == "ok"
    assert alarms == 0


def test_a_loss_of_quality_is_told_once_and_its_end_too() -> None:
    random = np.random.default_rng(2)
    watched = quality()
    assert watched.latest.state == "collecting"
    assert told(watched, draw(random, 10_000)) == []
    assert watched.latest.state == "ok"

    (worse,) = told(watched, draw(random, 4_000, scale=1.4))
    assert worse.state == watched.latest.state == DEGRADED
    assert worse.version == 3 and worse.rows == 2_000
    assert "absolute error" in worse.reason and "in the reference: +" in worse.reason
    assert worse.increase_low > 0 and worse.increase >= 0.1
    assert worse.log_evidence >= worse.threshold == math.log(1_000_000 / 200)
    assert worse.evidence()["increase"] == pytest.approx(worse.increase, rel=1e-5)

    (better,) = told(watched, draw(random, 6_000))
    assert better.state == watched.latest.state == "ok"
    (again,) = told(watched, draw(random, 4_000, scale=1.4))
    assert again.state == DEGRADED


def test_a_rise_below_the_limit_and_a_fall_are_no_loss_of_quality() -> None:
    random = np.random.default_rng(3)
    for scale in (1.05, 0.6):
        watched = quality()
        assert told(watched, draw(random, 40_000, scale)) == []
        assert watched.latest.log_evidence > 0 or scale < 1  # seen, and not worth a word
        assert watched.latest.state == "ok"


def test_evidence_of_a_fall_does_not_stand_for_a_later_rise() -> None:
    random = np.random.default_rng(4)
    watched = quality()
    told(watched, draw(random, 20_000, 0.6))
    told(watched, draw(random, 2_600))
    assert watched.latest.log_evidence < watched.latest.threshold


def test_one_bad_window_is_not_enough() -> None:
    config = dataclasses.replace(CONFIG, panes=1, hysteresis_panes=2, deflate=False)
    random = np.random.default_rng(5)
    watched = quality(config)
    told(watched, draw(random, 4_000))
    assert told(watched, draw(random, 2_000, 1.6)) == []
    assert watched.latest.worse
    assert told(watched, draw(random, 2_000)) == []
    assert watched.latest.state == "ok"
    assert len(told(watched, draw(random, 4_000, 1.6))) == 1


def test_rows_that_resemble_their_neighbours_count_for_fewer() -> None:
    """Whole hours of easy and of hard rows: their mean is no surprise, panes differ all the same."""
    random = np.random.default_rng(6)
    mix = np.repeat(random.choice([0.6, 1.4], 600), 100)
    losses = np.abs(random.normal(size=len(mix))) * mix
    known = numeric_feature("absolute_error", losses[:20_000])
    watched = quality(known=known)
    assert told(watched, losses[20_000:]) == []
    assert watched.latest.effective_rows < 0.5 * watched.latest.rows
    blind = quality(dataclasses.replace(CONFIG, deflate=False), known)
    told(blind, losses[20_000:])
    assert blind.latest.log_evidence > blind.latest.threshold > watched.latest.log_evidence


def test_without_a_reference_the_first_labelled_rows_become_it() -> None:
    random = np.random.default_rng(7)
    for known in (None, numeric_feature("log_loss", draw(random, 1_000))):
        watched = VersionQuality(1, "absolute_error", known, CONFIG)
        first = draw(random, 2_000)
        told(watched, first[:1_500])
        assert watched.latest.reason.startswith("1,500 of the 2,000 labelled rows")
        assert watched.window().mean == pytest.approx(first[:1_500].mean())
        panes, _ = watched.add(np.concatenate([first[1_500:], draw(random, 3)]))
        assert panes.tolist() == [0] * 500 + [1] * 3
        assert watched.latest.reference == "bootstrap"
        assert watched.latest.reference_mean == pytest.approx(first.mean(), rel=1e-6)
        assert len(told(watched, draw(random, 5_000, 1.5))) == 1


@pytest.mark.parametrize("wrong", [0, 7, 500])
def test_a_model_that_gives_labels_only_is_told_of_when_more_of_them_are_wrong(wrong: int) -> None:
    """Also where the reference has few wrong answers, or none: then any share is a rise."""
    known = numeric_feature("error", np.repeat([0.0, 1.0], [10_000 - wrong, wrong]))
    random = np.random.default_rng(8)
    watched = VersionQuality(1, "error", known, CONFIG)
    rate = wrong / 10_000
    assert told(watched, (random.random(20_000) < rate).astype(np.float64)) == []
    (worse,) = told(watched, (random.random(4_000) < rate * 2 + 0.03).astype(np.float64))
    assert worse.state == DEGRADED


def test_groups_of_few_wrong_answers_do_not_make_a_rise_likelier_than_it_is() -> None:
    known = numeric_feature("error", np.repeat([0.0, 1.0], [997, 3]))
    groups = LossGroups(known)
    assert groups.masses.tolist() == [997, 4]
    assert groups.count(np.array([0.0, 1.0, 0.0, 1.0, 1.0])).tolist() == [2, 3]
    constant = LossGroups(numeric_feature("absolute_error", np.full(1_000, 2.5)))
    assert constant.masses.tolist() == [1_000, 1]
    assert constant.count(np.array([2.5, 2.4, 2.6])).tolist() == [2, 1]


def test_losses_are_grouped_as_the_reference_counts_them() -> None:
    known = reference()
    losses = draw(np.random.default_rng(9), 5_000)
    groups = LossGroups(known)
    assert len(groups.masses) == 10
    for low, high in itertools.pairwise((0, 1_000, 5_000)):
        same = numeric_feature("absolute_error", losses[low:high], edges=known.edges)
        slots = np.append(same.counts, same.missing).astype(np.float64)
        from_reference = groups._groups.count(slots)
        assert groups.count(losses[low:high]).tolist() == from_reference.tolist()


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({}, True),
        ({"rows": 499}, False),
        ({"mean": 1.09}, False),
        ({"variance": 40.0}, False),  # the interval holds 0
        ({"log_evidence": 9.0}, False),
        ({"effective": 0.02}, False),
    ],
)
def test_size_certainty_rows_and_evidence_are_all_needed(
    change: dict[str, Any], worse: bool
) -> None:
    known = reference()
    given: dict[str, Any] = {
        "rows": 2_000,
        "mean": 1.15,
        "variance": 0.4,
        "log_evidence": 11.0,
        "effective": 1.0,
    }
    given |= change
    window = LossWindow(given["rows"], given["mean"] * known.mean, given["variance"])
    found = judge(
        window,
        known,
        CONFIG,
        log_evidence=given["log_evidence"],
        threshold=10.0,
        effective=given["effective"],
    )
    assert found.worse is worse
