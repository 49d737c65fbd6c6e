import json

import pytest

from trimtab.trainer.progress import JsonProgress, RichProgress, remaining_s, share_of

STAGES = [
    "start",
    "read",
    "fit",
    "compare",
    "refit",
    "export",
    "parity",
    "reference",
    "card",
    "publish",
]


def test_a_stage_ends_where_the_next_one_begins() -> None:
    shares = [share_of(stage) for stage in STAGES]
    assert [ends for _, ends in shares] == [begins for begins, _ in shares[1:]] + [1.0]
    assert all(begins < ends for begins, ends in shares)
    assert share_of("another") == (0.0, 1.0)


def test_the_time_left_follows_from_the_share_and_is_not_told_before_rows_are_read() -> None:
    assert remaining_s("start", 2.0) is None and remaining_s("read", 2.0) is None
    assert remaining_s("fit", 4.0) == pytest.approx(6.0)
    assert remaining_s("publish", 98.0) == pytest.approx(2.0)


def test_a_program_is_told_stage_and_shares(capsys: pytest.CaptureFixture[str]) -> None:
    JsonProgress().stage("fit", "fitting")
    assert json.loads(capsys.readouterr().out) == {
        "progress": {"stage": "fit", "fraction": 0.4, "until": 0.55, "message": "fitting"}
    }


def test_a_person_without_a_terminal_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    told = RichProgress()
    told.stage("start", "loading libraries")
    told.stage("fit", "fitting to 100 rows")
    told.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "start       0%  loading libraries"
    assert second.startswith("fit        40%  fitting to 100 rows; about ")
