"""What one run for each seed leaves behind, with a backtest that takes no time."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trimtab.trainer import backtest_run
from trimtab.trainer.backtest import BacktestError
from trimtab.trainer.backtest_data import DataRequest, Dataset
from trimtab.trainer.backtest_decisions import tally
from trimtab.trainer.backtest_report import BacktestReport, Overall, PeriodReport
from trimtab.trainer.backtest_run import Outputs, run_all
from trimtab.trainer.backtest_settings import BacktestSettings


class FakeBacktest:
    """Has a metric of ten times its seed; of seed 13 it fails."""

    warnings = ("there is little",)

    def __init__(
        self, dataset: Dataset, settings: BacktestSettings, directory: Path, observer: object
    ) -> None:
        assert (directory / "models").is_dir()
        self._seed, self._rows = settings.seed, dataset.frame.height

    async def run(self) -> BacktestReport:
        if self._seed == 13:
            raise BacktestError("the server is ill")
        figures: dict[str, Any] = dict.fromkeys(
            ("metric_frozen", "metric_managed", "metric_retrain_every_period", "metric_oracle"),
            10.0 * self._seed,
        )
        counts: dict[str, Any] = dict.fromkeys(
            (
                "failed_requests",
                "wrong_shapes",
                "promotions",
                "refused",
                "rolled_back",
                "trainings",
                "drift_alarms",
                "data_quality_alarms",
            ),
            0,
        )
        period = PeriodReport(
            period="p",
            rows=self._rows,
            champion_version=1,
            drift=None,
            events=(),
            failed_requests=0,
            **figures,
        )
        overall = Overall(
            metric="mae",
            rows=self._rows,
            requests=1,
            verdicts=tally(()),
            rollback_ms=None,
            promote_ms=None,
            **figures,
            **counts,
        )
        return BacktestReport((period,), overall, environment={"failures": []})


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BacktestSettings:
    monkeypatch.setattr(backtest_run, "Backtest", FakeBacktest)
    path = tmp_path / "data.csv"
    rows = {"t": [1_600_000_000 + 60 * row for row in range(100)], "y": list(range(100))}
    pl.DataFrame({**rows, "x": [row % 7 / 2 for row in range(100)]}).write_csv(path)
    return BacktestSettings(data=DataRequest(path=path, target="y", time="t"), model="m")


def test_one_seed_leaves_its_report_in_the_directory(
    settings: BacktestSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_all(settings, [4], Outputs(json=Path("-"), out=out)) == 0
    left = {path.name for path in out.iterdir()}
    assert left == {"models", "report.html", "report.json", "report.png"}
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((out / "report.json").read_text())
    assert "warning: there is little" in printed.err


def test_each_seed_has_a_directory_and_all_have_a_summary(
    settings: BacktestSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "new" / "summary.json"
    assert run_all(settings, [2, 3], Outputs(json=elsewhere, out=out)) == 0
    assert {path.name for path in out.iterdir()} == {"seed-2", "seed-3", "summary.json"}
    report = json.loads((out / "seed-3" / "report.json").read_text())
    assert report["overall"]["metric_managed"] == 30
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(elsewhere.read_text())
    assert summary["spread"]["metric_managed"]["mean"] == 25
    assert "mae" not in capsys.readouterr().err


def test_a_seed_that_fails_leaves_the_reports_of_those_before(
    settings: BacktestSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_all(settings, [2, 13, 3], Outputs(out=out)) == 1
    assert "error: the server is ill" in capsys.readouterr().err
    assert (out / "seed-2" / "report.html").exists()
    assert not (out / "seed-3").exists()
