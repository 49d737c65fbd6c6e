from itertools import pairwise

import pytest

from trimtab.server.loop.training_progress import TrainingPace, span
from trimtab.server.loop.training_run import TrainingProgress

READ = TrainingProgress("read", 0.2, "reading", 0.4)
FIT = TrainingProgress("fit", 0.4, "fitting", 0.8)
USUAL = {"start": 2.0, "read": 10.0, "fit": 80.0, "publish": 8.0}


def test_nothing_is_promised_before_the_first_stage_is_over() -> None:
    pace = TrainingPace(100.0, {})
    assert pace.reading(103.0).eta_s is None and str(pace.reading(103.0)) == "starting, 0%"
    pace.stage(TrainingProgress("start", 0.0, "loading libraries", 0.2), 100.0)
    found = pace.reading(104.0)
    assert (found.stage, found.fraction, found.elapsed_s, found.eta_s) == ("start", 0.0, 4.0, None)


def test_of_a_first_training_the_time_so_far_tells_the_whole() -> None:
    pace = TrainingPace(0.0, {})
    pace.stage(READ, 10.0)
    found = pace.reading(10.0)
    assert found.fraction == pytest.approx(0.2) and found.eta_s == pytest.approx(40)
    assert pace.reading(15.0).fraction == pytest.approx(0.3)
    assert str(pace.reading(15.0)) == "read, 30%, about 35 s left"


def test_a_stage_that_outlasts_its_share_stays_at_its_end_and_the_whole_grows() -> None:
    pace = TrainingPace(0.0, {})
    pace.stage(READ, 10.0)
    for now, eta in ((20.0, 30.0), (40.0, 60.0), (100.0, 150.0)):
        found = pace.reading(now)
        assert found.fraction == pytest.approx(0.4) and found.eta_s == pytest.approx(eta)


def test_a_training_before_tells_how_long_each_stage_takes() -> None:
    pace = TrainingPace(0.0, USUAL)
    pace.stage(READ, 2.0)
    pace.stage(FIT, 12.0)
    found = pace.reading(52.0)
    assert found.eta_s == pytest.approx(40 + 8) and found.fraction == pytest.approx(0.52)


def test_one_that_is_slower_than_usual_is_expected_to_stay_so() -> None:
    pace = TrainingPace(0.0, USUAL)
    pace.stage(FIT, 24.0)  # usually after 12 s
    assert pace.reading(24.0).eta_s == pytest.approx(2 * 88)


def test_the_fraction_never_goes_back_nor_is_whole_before_the_end() -> None:
    pace = TrainingPace(0.0, USUAL)
    pace.stage(FIT, 12.0)
    seen = [pace.reading(float(now)).fraction for now in range(12, 3000)]
    pace.stage(READ, 3000.0)
    seen.append(pace.reading(3000.0).fraction)
    assert seen == sorted(seen) and seen[-1] == 0.99
    assert pace.reading(9999.0).eta_s is not None


def test_stages_five_percent_and_five_seconds_are_worth_an_event() -> None:
    pace = TrainingPace(0.0, USUAL)
    assert pace.news(1.0) is None
    pace.stage(READ, 2.0)
    assert pace.news(2.0) is not None
    assert pace.news(2.1) is None and pace.news(6.9) is None
    assert pace.news(7.0) is not None, "5 s or 5 %"
    pace.stage(FIT, 7.5)
    assert pace.news(7.5) is not None, "another stage"
    told = [now for now in range(8, 50) if pace.news(float(now))]
    assert 8 <= len(told) <= 10 and min(b - a for a, b in pairwise(told)) >= 3


def test_the_stages_durations_are_told_for_the_next_training() -> None:
    pace = TrainingPace(0.0, {})
    assert pace.durations(1.0) == {}
    pace.stage(READ, 2.0)
    pace.stage(FIT, 12.5)
    assert pace.durations(20.0) == {"read": 10.5, "fit": 7.5}


def test_times_are_told_as_exactly_as_they_are_known() -> None:
    assert [span(s) for s in (4.4, 300.0, 3 * 3600.0)] == ["4 s", "5 min", "3.0 h"]
