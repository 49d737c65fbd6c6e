"""What counting costs per value, beside other libraries: `python benchmarks/drift_update.py`.

One thread. In every round each contestant of each case counts the same batches in turn, so that a
slow moment of the machine slows all; figures are medians over the rounds, ratios medians of the rounds'
ratios. Time is the thread's processor time: while another process has the core, nothing is
counted. What was counted is compared with numpy's counts before and after; where it differs
nothing is printed, and the exit code is 1.

docs/benchmarks.md says what each figure means and what it cannot tell.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import drift_contestants
import drift_window
from drift_cases import CASES, Case, Numbers, Strings
from drift_contestants import NAMES, Contestant, WrongCountsError
from drift_window import WrongJudgementError
from environment import describe
from making import AbsentError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trimtab._native.histogram import _kernels  # type: ignore[attr-defined]  # private

PEERS = ("boost-histogram", "fast-histogram", "datasketches", "river")
SECONDS = 0.02  # of each timing


class Entry:
    """One contestant of a case, its times in nanoseconds a value, or why it takes no part."""

    def __init__(self, case: Case, name: str, contestant: Contestant | None, absent: str) -> None:
        self.case, self.name, self.absent = case, name, absent
        self.times: list[float] = []
        self._contestant = contestant
        self._runs = self._at_once = 0

    def prepare(self, seconds: float) -> None:
        """Counts once, checks that, and finds how many runs take so long."""
        if self._contestant is not None:
            self._timed(1)
            self._contestant.check(1)
            self._at_once = 1
            while self._timed(self._at_once) < seconds:
                self._at_once *= 2

    def measure(self) -> None:
        if self._contestant is not None:
            took = self._timed(self._at_once)
            self.times.append(took * 1e9 / (self._at_once * self._contestant.values))

    def check(self) -> None:
        if self._contestant is not None:
            self._contestant.check(self._runs)

    def _timed(self, runs: int) -> float:
        assert self._contestant is not None
        run = self._contestant.run
        began = time.thread_time()
        for _ in range(runs):
            run()
        took = time.thread_time() - began
        self._runs += runs
        return took


def entries_of(cases: Sequence[Case], kernel: str) -> Iterator[Entry]:
    for case in cases:
        question = (Strings if case.values == "strings" else Numbers).of(case)
        for name in NAMES:
            try:
                yield Entry(case, name, drift_contestants.enter(name, question, kernel), "")
            except AbsentError as error:
                yield Entry(case, name, None, str(error))


def measure(
    cases: Sequence[Case], kernel: str, rounds: int, seconds: float, progress: Progress
) -> dict[str, Any]:
    """The figures of every case. WrongCountsError."""
    entries = list(entries_of(cases, kernel))
    task = progress.add_task("", total=len(entries) * (rounds + 1))
    for entry in entries:
        progress.update(task, description=f"{entry.case.name}, {entry.name}")
        entry.prepare(seconds)
        progress.advance(task)
    for number in range(rounds):
        progress.update(task, description=f"round {number + 1} of {rounds}")
        for entry in entries:
            entry.measure()
            progress.advance(task)
    for entry in entries:
        entry.check()
    return figures(entries)


def figures(entries: Sequence[Entry]) -> dict[str, Any]:
    """Medians by case and contestant. Ratios: `times_trimtab` is how many times as long as Trimtab
    a rival takes, `times_normal` how many times as long as for normal values the same takes."""
    times = {(entry.case, entry.name): entry.times for entry in entries}
    found: dict[str, Any] = {}
    for entry in entries:
        of_case = found.setdefault(entry.case.name, {})
        if entry.absent:
            of_case[entry.name] = {"absent": entry.absent}
            continue
        case, took = entry.case, entry.times
        of_case[entry.name] = {"ns_per_value": statistics.median(took), "rounds": took}
        normal = times.get((Case(case.bins, case.features, case.rows), entry.name))
        if case.values in ("lognormal", "ties", "half_nan", "panes") and normal:
            of_case[entry.name]["times_normal"] = _ratio(took, normal)
        if entry.name != "trimtab":
            of_case[entry.name]["times_trimtab"] = _ratio(took, times[case, "trimtab"])
    return found


def _ratio(of: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def show(cases: dict[str, Any]) -> None:
    """Nanoseconds a value and, of rivals, how many times Trimtab's that is."""
    titles = [name.replace("datasketches_", "").replace("_histogram", "") for name in NAMES]
    print(f"{'ns a value':38}" + "".join(f"{title:>15}" for title in titles))
    absent: dict[str, dict[str, None]] = {}
    for case, contestants in cases.items():
        line = f"{case:38}"
        for name in NAMES:
            found = contestants[name]
            ratio = found.get("times_normal" if name == "trimtab" else "times_trimtab")
            if "absent" in found:
                absent.setdefault(found["absent"], {})[name] = None
                line += f"{'-':>15}"
            else:
                mark = "n" if name == "trimtab" else "x"
                line += f"{found['ns_per_value']:8.{2 if name == 'trimtab' else 0}f}"
                line += f"{ratio:6.{2 if mark == 'n' else 1}f}{mark}" if ratio else f"{'':7}"
        print(line.rstrip())
    print("x: times Trimtab's; n: times that of normal values")
    for reason, names in absent.items():
        print(f"- {reason}: {', '.join(names)}")


def _chosen(text: str) -> list[Case]:
    by_name = {case.name: case for case in CASES}
    try:
        return [by_name[name] for name in text.split(",")]
    except KeyError as error:
        known = ", ".join(by_name)
        raise argparse.ArgumentTypeError(f"no case {error}; there are {known}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, not {text!r}")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    kernels = _kernels()
    fastest = max(kernels, key=kernels.__getitem__)
    add("--rounds", type=_positive, default=15, help="rounds (15)")
    add("--cases", type=_chosen, default=list(CASES), help="names, with commas (all)")
    add("--kernel", choices=kernels, default=fastest, help=f"of numbers ({fastest})")
    add("--peers", action="store_true", help="install the other libraries, once")
    add("--json", type=Path, help="write the figures there")
    options = parser.parse_args()

    errors = Console(stderr=True)
    missing = ""
    if options.peers:
        errors.print("installing the other libraries, unless they are there ...")
        try:
            drift_contestants.install_peers()
        except AbsentError as error:
            missing = str(error)
    drift_contestants.find_peers()
    environment = describe() | {
        "kernel": options.kernel,
        "peers": drift_contestants.versions(PEERS),
        "command": " ".join(sys.argv),
    }
    print(json.dumps(environment))
    if missing:
        print(f"the other libraries could not be installed: {missing}")
    weight = drift_window.window_bytes()  # first: later there is free memory to take
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            cases = measure(options.cases, options.kernel, options.rounds, SECONDS, progress)
            judging = drift_window.judging_ms(options.rounds)
    except (WrongCountsError, WrongJudgementError) as error:
        print(error, file=sys.stderr)
        return 1
    show(cases)
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in judging.items() if name != "all")
    print(f"evaluate {drift_window.FEATURES} features: {judging['all']:.2f} ms ({parts})")
    print(f"a window of {drift_window.PANES} panes: {weight:,.0f} bytes a feature")
    if options.json:
        result = {
            "environment": environment,
            "cases": cases,
            "evaluate_ms": judging["all"],
            "evaluate_parts_ms": {name: ms for name, ms in judging.items() if name != "all"},
            "bytes_per_feature": weight,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
