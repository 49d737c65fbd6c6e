"""The drift benchmark compares like with like: who counts something else is not timed but refused."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import drift_contestants
import drift_update
import drift_window
import numpy as np
import pytest
from drift_cases import CASES, Case, Numbers, Strings
from drift_contestants import NAMES, Contestant, WrongCountsError, enter
from drift_update import Entry, figures, measure
from drift_window import Judgement, Window, WrongJudgementError
from making import AbsentError
from rich.progress import Progress

from trimtab._native.histogram import _kernels  # type: ignore[attr-defined]  # private

ROOT = Path(__file__).parents[2]
VALUES = ("normal", "lognormal", "ties", "half_nan", "panes")
TINY = [*(Case(16, 3, 40, values) for values in VALUES), Case(5, 2, 40, "strings")]


def _question(case: Case) -> Numbers | Strings:
    return (Strings if case.values == "strings" else Numbers).of(case)


@pytest.fixture(autouse=True)
def _peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were installed here take part; other tests do not see them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    drift_contestants.find_peers()


@pytest.mark.parametrize("kernel", _kernels())
def test_every_contestant_of_a_case_has_figures_or_a_reason(kernel: str) -> None:
    found = measure(TINY, kernel, 2, 0.0, Progress(disable=True))
    assert list(found) == [case.name for case in TINY]
    for case, contestants in found.items():
        assert tuple(contestants) == NAMES
        assert contestants["trimtab"]["ns_per_value"] > 0
        for name, of_one in contestants.items():
            if "absent" in of_one:
                assert of_one["absent"]
            else:
                assert len(of_one["rounds"]) == 2
                assert ("times_trimtab" in of_one) == (name != "trimtab")
        assert ("absent" in contestants["numpy"]) == case.endswith("panes")


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
@pytest.mark.parametrize("name", NAMES)
def test_a_contestant_that_counted_something_else_is_refused(name: str, case: Case) -> None:
    question = _question(case)
    try:
        contestant = enter(name, question, "portable")
    except AbsentError as error:
        pytest.skip(str(error))
    contestant.run()
    contestant.check(1)
    runs = 2
    if name in ("numpy", "fast_histogram"):  # which do not add runs up
        runs = 1
        batches: Any = question.columns if isinstance(question, Strings) else question.batches
        batches[0] = batches[1]
        contestant.run()
    with pytest.raises(WrongCountsError, match=f"{name} counted"):
        contestant.check(runs)


def _entry(case: Case, name: str, times: list[float]) -> Entry:
    entry = Entry(case, name, Contestant(lambda: None, 1, lambda _: None), "")
    entry.times = times
    return entry


def test_figures_are_medians_and_ratios_are_medians_of_the_rounds_ratios() -> None:
    normal, ties = Case(64, 30, 64), Case(64, 30, 64, "ties")
    found = figures(
        [
            _entry(normal, "trimtab", [1.0, 2.0, 4.0]),
            _entry(normal, "numpy", [30.0, 40.0, 40.0]),
            _entry(ties, "trimtab", [2.0, 2.0, 4.0]),
            Entry(ties, "numpy", None, "is not here"),
        ]
    )
    normals = found["bins64_features30_rows64"]
    assert normals["trimtab"] == {"ns_per_value": 2.0, "rounds": [1.0, 2.0, 4.0]}
    assert (normals["numpy"]["ns_per_value"], normals["numpy"]["times_trimtab"]) == (40.0, 20.0)
    assert found["bins64_features30_rows64_ties"]["trimtab"]["times_normal"] == 1.0
    assert found["bins64_features30_rows64_ties"]["numpy"] == {"absent": "is not here"}


def test_a_case_is_as_many_values_however_many_rows_a_batch_has() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.size for case in CASES} == {30_720}
    question = Numbers.of(Case(64, 30, 1, "half_nan"))
    assert {batch.shape for batch in question.batches} == {(1, 30)}
    assert question.expected.sum() + question.missing.sum() == 30_720
    assert question.missing.sum() == pytest.approx(15_360, rel=0.05)


def test_an_unknown_case_is_named() -> None:
    assert [case.rows for case in drift_update._chosen("bins64_features30_rows64")] == [64]
    with pytest.raises(ArgumentTypeError, match="no case 'bins9'; there are bins64_"):
        drift_update._chosen("bins9")


def test_a_library_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boost_histogram", None)
    with pytest.raises(AbsentError, match=r"boost-histogram is not here .*--peers"):
        enter("boost_histogram", Numbers.of(Case(16, 1, 8)), "portable")


def test_a_judgement_finds_the_features_that_moved_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = drift_window.judging_ms(rounds=2, features=12, checks=20)
    assert found["all"] > 0
    assert set(found) == {"evidence", "report", "all"}
    monkeypatch.setattr(Judgement, "report", lambda _: ["f3"])
    with pytest.raises(WrongJudgementError, match=r"report finds \['f3'\], but \['f0', 'f1'"):
        drift_window.judging_ms(rounds=1, features=12, checks=20)


def test_panes_after_the_first_are_drawn_anew() -> None:
    window = Window(12)
    first, second = window.pane(), window.pane()
    assert first.counts.sum(axis=1).tolist() == [1000] * 12
    assert not np.array_equal(first.counts, second.counts)


def test_nothing_is_written_of_a_run_that_counted_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object) -> dict[str, Any]:
        raise WrongCountsError("river counted 3")

    monkeypatch.setattr(drift_update, "measure", measure)
    monkeypatch.setattr(drift_window, "window_bytes", lambda: 1.0)
    monkeypatch.setattr(sys, "argv", ["drift_update.py", "--json", str(tmp_path / "x.json")])
    assert drift_update.main() == 1
    assert "river counted 3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_writes_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    command = [sys.executable, "benchmarks/drift_update.py", "--rounds", "1", "--json", str(file)]
    command += ["--cases", "bins64_features30_rows1", "--kernel", "portable"]
    said = subprocess.run(
        command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120
    ).stdout
    found = json.loads(file.read_text())
    assert found["environment"]["kernel"] == "portable"
    assert set(found["environment"]["peers"]) == set(drift_update.PEERS)
    assert found["cases"]["bins64_features30_rows1"]["trimtab"]["ns_per_value"] > 0
    assert found["evaluate_ms"] == pytest.approx(sum(found["evaluate_parts_ms"].values()))
    assert 5_720 < found["bytes_per_feature"] <= 8_000  # eleven times 65 counts, and the edges
    assert "bins64_features30_rows1 " in said
