"""The report of a backtest: JSON, table, sentences and plot, from a fixed result."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trimtab.trainer.backtest_decisions import Decision, tally
from trimtab.trainer.backtest_html import to_html, write_html
from trimtab.trainer.backtest_plot import decisions_png, plot
from trimtab.trainer.backtest_report import (
    BacktestReport,
    Overall,
    PeriodReport,
    conclusion,
    report_table,
    shortened,
    verdict_sentences,
    without_signal,
)
from trimtab.trainer.backtest_seeds import summary_of, summary_table


def event(kind: str, version: int = 0, after_rows: int = 400) -> dict[str, Any]:
    return {
        "kind": kind,
        "version": version,
        "actor": "loop",
        "reason": f"why {kind}",
        "time": "2013-03-04 05:06:07",
        "after_rows": after_rows,
    }


def decision(kind: str, row: int, verdict: str, **changes: Any) -> Decision:
    known: dict[str, Any] = {
        "kind": kind,
        "time": "2013-03-04 05:06:07",
        "row": row,
        "version": 0 if kind == "refused" else 2,
        "against": 1,
        "signal": "drift on temp",
        "reason": f"why <{kind}>",
        "judged_rows": 1_000,
        "metric_version": 8.0,
        "metric_against": 9.0,
        "improvement": 1.0,
        "low": 0.25,
        "high": 1.75,
        "verdict": verdict,
        "served_rows": 500,
        "rolled_back": False,
    }
    return Decision(**{**known, **changes})


_UNKNOWN = dict.fromkeys(("metric_version", "metric_against", "improvement", "low", "high"))
DECISIONS = (
    decision("promoted", 400, "right"),
    decision("refused", 900, "wrong"),
    decision("promoted", 1_400, "wrong", rolled_back=True),
    decision("rolled_back", 1_500, "unjudged", judged_rows=0, note="too few", **_UNKNOWN),
)


def make_report(
    periods: int = 4, name: str = "2013-{:02d}", feature: str = "temp", **overall: Any
) -> BacktestReport:
    events: dict[int, tuple[dict[str, Any], ...]] = {
        1: (event("drift"), event("training_started"), event("promoted", 2)),
        2: (event("training_started"), event("refused")),
        3: (event("training_started"), event("promoted", 3), event("rolled_back", 2)),
    }
    return BacktestReport(
        periods=tuple(
            PeriodReport(
                period=name.format(number + 2),
                rows=1_000,
                metric_frozen=10.0 + number,
                metric_managed=8.5,
                metric_retrain_every_period=8.0 if number else None,
                metric_oracle=7.0,
                champion_version=2 if number else 1,
                drift={"feature": feature, "psi": 0.1 + 0.1 * number} if number else None,
                events=events.get(number, ()),
                failed_requests=0,
            )
            for number in range(periods)
        ),
        overall=Overall(
            **{
                "metric": "mae",
                "metric_frozen": 11.5,
                "metric_managed": 8.5,
                "metric_retrain_every_period": 8.0,
                "metric_oracle": 7.0,
                "rows": 4_000,
                "requests": 63,
                "failed_requests": 0,
                "wrong_shapes": 0,
                "promotions": 2,
                "refused": 1,
                "rolled_back": 1,
                "trainings": 3,
                "drift_alarms": 1,
                "data_quality_alarms": 0,
                "verdicts": tally(DECISIONS),
                "rollback_ms": 3.21,
                "promote_ms": 2.5,
                **overall,
            }
        ),
        decisions=DECISIONS,
        environment={
            "python": "3.11",
            "failures": [],
            "training_rows_reproduced": {"matching": 2, "of": 2},
        },
        settings={"data": "x/f.parquet", "target": "y", "policy": {"drift": {"psi": 0.2}}},
    )


def render(report: BacktestReport, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(report_table(report))
    return captured.get()


def test_the_json_has_the_documented_keys_and_reads_back() -> None:
    report = make_report()
    content = json.loads(report.to_json())
    assert list(content) == ["periods", "overall", "decisions", "environment", "settings"]
    assert list(content["periods"][0]) == [
        "period",
        "rows",
        "metric_frozen",
        "metric_managed",
        "metric_retrain_every_period",
        "metric_oracle",
        "champion_version",
        "drift",
        "events",
        "failed_requests",
    ]
    assert list(content["overall"]) == [
        "metric",
        "metric_frozen",
        "metric_managed",
        "metric_retrain_every_period",
        "metric_oracle",
        "rows",
        "requests",
        "failed_requests",
        "wrong_shapes",
        "promotions",
        "refused",
        "rolled_back",
        "trainings",
        "drift_alarms",
        "data_quality_alarms",
        "verdicts",
        "rollback_ms",
        "promote_ms",
    ]
    assert BacktestReport.from_json(report.to_json()) == report


def test_a_figure_that_is_none_is_null_in_json() -> None:
    report = make_report(metric_managed=float("nan"))
    assert json.loads(report.to_json())["overall"]["metric_managed"] is None


def test_the_table_tells_every_period_and_every_decision_with_its_reason() -> None:
    text = render(make_report())
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(("2013", "all"))}
    assert "10.00" in rows["2013-02"]
    assert "1→2" in rows["2013-03"]
    assert "0.20 temp" in rows["2013-03"]
    assert "drift, training, promoted" in rows["2013-03"]
    assert "2→3→2" in rows["2013-05"]
    assert "11.50" in rows["all"]
    decisions = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "2013-03-04 05:06:07 promoted version 2 why promoted",
        "2013-03-04 05:06:07 refused why refused",
        "2013-03-04 05:06:07 rolled back version 2 why rolled_back",
    ):
        assert line in decisions


def test_the_table_has_a_verdict_for_every_decision() -> None:
    text = [" ".join(line.split()) for line in render(make_report(), 180).splitlines()]
    when = "2013-03-04 05:06:07"
    better = "9.000 8.000 +1 (+0.25 to +1.75) 1,000"
    assert f"{when} promoted 1→2 {better} useful" in text
    assert f"{when} refused {better} wrongly refused" in text
    assert f"{when} promoted 1→2 {better} HARMFUL, and was taken back" in text
    assert f"{when} rolled back 1→2 – – too few not judged" in text


def test_verdicts_are_counted_in_words() -> None:
    assert verdict_sentences(tally(DECISIONS)) == [
        (
            "By the rows that followed, of 2 promotions 1 was useful, 1 harmful, 0 made no sure "
            "difference."
        ),
        "By the rows that followed, of 1 refusal 0 were right, 1 wrong, 0 made no sure difference.",
        (
            "By the rows that followed, of 1 rollback 0 were right, 0 wrong, 0 made no sure "
            "difference, 1 could not be judged."
        ),
    ]
    assert verdict_sentences(tally(())) == []


def test_the_page_needs_nothing_from_elsewhere_and_shows_all(tmp_path: Path) -> None:
    report = make_report(name="<b>{}</b>")
    write_html(report, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    for other in ("http:", "https:", "<script", "<link", "url("):
        assert other not in page
    assert page.count("data:image/png;base64,") == 2
    assert "&lt;b&gt;2&lt;/b&gt;" in page
    assert "<b>2</b>" not in page
    for text in ("wrongly refused", "HARMFUL, and was taken back", "why &lt;refused&gt;"):
        assert text in page
    assert "for 2." in page, "how many training sets were found again"
    assert "&quot;python&quot;: &quot;3.11&quot;" in page


def test_a_page_without_decisions_says_so() -> None:
    report = dataclasses.replace(make_report(1), decisions=())
    page = to_html(report)
    assert "Nothing was decided." in page
    assert "There were none." in page
    assert decisions_png(report) is None


def test_seeds_are_summed_up_with_their_spread() -> None:
    reports = [(1, make_report(metric_managed=8.0)), (2, make_report(metric_managed=9.0))]
    summary = summary_of(reports)
    managed = summary.spread["metric_managed"]
    assert (managed.mean, managed.low, managed.high) == (8.5, 8.0, 9.0)
    assert managed.sd == pytest.approx(0.7071, abs=1e-4)
    assert summary.spread["harmful"].mean == 1
    content = json.loads(summary.to_json())
    assert [run["seed"] for run in content["runs"]] == [1, 2]
    console = Console(width=140, file=io.StringIO())
    with console.capture() as captured:
        console.print(summary_table(summary))
    lines = [line.split() for line in captured.get().splitlines()]
    assert lines[-2][:3] == ["mean", "11.50", "8.500"]
    assert lines[-1][:3] == ["sd", "0.000", "0.707"]


def test_one_seed_has_no_spread_and_none_no_summary() -> None:
    assert summary_of([(1, make_report())]).spread["metric_managed"].sd is None
    with pytest.raises(ValueError, match="no reports"):
        summary_of([])


def test_a_signal_is_told_once() -> None:
    assert (
        without_signal("drift of temp; version 2: better", "drift of temp") == "version 2: better"
    )
    assert without_signal("drift of temp", "drift of temp") == "drift of temp"
    assert without_signal("not better", "drift of temp") == "not better"
    assert without_signal("; odd", "") == "; odd"


def test_a_long_reason_is_cut_at_a_blank() -> None:
    assert shortened("short", 5) == "short"
    assert shortened("some longer, reason", 14) == "some longer …"


def test_the_conclusion_says_what_was_shown() -> None:
    text = " ".join(conclusion(make_report()))
    assert "mean absolute error of 11.50; the managed service had 8.500, 26% better" in text
    assert "3 trainings by itself: 2 promoted, 1 refused, 1 rolled back." in text
    assert "Every one of 63 requests was answered" in text
    assert "rollback by hand took 3.2 ms and the promotion back 2.5 ms" in text


def test_the_conclusion_does_not_hide_what_went_wrong() -> None:
    report = make_report(
        failed_requests=2, wrong_shapes=1, trainings=0, rollback_ms=None, metric_managed=12.0
    )
    text = " ".join(conclusion(report))
    assert "Of 63 requests, 2 failed and 1 had a reply of the wrong shape." in text
    assert "4% worse" in text
    assert "started no training" in text
    assert "no earlier champion" in text


def test_higher_is_better_for_an_auc() -> None:
    report = make_report(metric="roc_auc", metric_frozen=0.7, metric_managed=0.75)
    assert "0.05 better" in conclusion(report)[0]
    assert "(higher is better)" in render(report)


@pytest.mark.parametrize("width", [80, 200])
def test_long_names_do_not_break_the_table(width: int) -> None:
    report = make_report(
        name="a period with [a] very long name, number {}", feature="feature_[x]_" * 9
    )
    assert max(map(len, render(report, width).splitlines())) <= width


@pytest.mark.parametrize(
    ("periods", "name"), [(1, "p{}"), (4, "2013-{:02d}"), (90, "a very long period name, $x_{}$")]
)
def test_the_plot_stays_in_its_frame(tmp_path: Path, periods: int, name: str) -> None:
    path = tmp_path / "new" / "plot.png"
    plot(make_report(periods, name, feature="feature_$x$_" * 9), path)
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    assert 900 < width <= 2_100
    assert 700 < height <= 900
