"""How often drift detection is wrong without drift, and how late with it.

    python benchmarks/drift_simulation.py [--quick] [--json FILE]

Prints tables in Markdown; docs/drift.md shows them. Seeds are fixed. A run without an alarm at its
last check is censored: its length counts as that, so that a mean with ≥ before it is too low.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from drift_streams import (
    KINDS,
    Column,
    Floats,
    alike,
    autocorrelated,
    continuous,
    count_rows,
    equal_groups,
    normal_shares,
    padded,
    panes_of,
)
from environment import describe
from scipy import stats

from trimtab._native import divergence
from trimtab._native.e_detector import EDetector, log_e_value
from trimtab._native.evidence import (
    design_effect,
    evidence_groups,
    global_log_evidence,
    log_threshold,
)
from trimtab._native.reference import numeric_feature

Row: TypeAlias = tuple[str | float, ...]

CHECK_ROWS = 100
SHIFTS = (0.1, 0.25, 0.5, 1.0)
ALPHA = 0.05


@dataclass(frozen=True)
class Scale:
    """How much is simulated."""

    references: tuple[int, ...] = (1_000, 10_000, 100_000)  # rows
    together: tuple[tuple[int, int], ...] = ((1, 400), (10, 60), (100, 30))  # columns, runs
    target: int = 100  # checks
    runs: int = 500  # of everything else
    pairs: int = 20_000  # of samples whose PSI is taken
    dependent_runs: int = 60


FULL = Scale()
QUICK = Scale((1_000,), ((1, 40), (10, 4)), target=20, runs=30, pairs=1_000, dependent_runs=6)


def run_lengths(scale: Scale) -> Iterator[Row]:
    """Checks until the first alarm of rows that never moved."""
    checks = 4 * scale.target
    for kind, make in KINDS.items():
        for rows in scale.references:
            for together, runs in scale.together:
                random = np.random.default_rng([rows, together])
                at_once = max(100 // together, 1)  # runs in one detector, each of its own columns
                log_e = []
                for start in range(0, runs, at_once):
                    number = min(at_once, runs - start) * together
                    columns = [make(random, rows) for _ in range(number)]
                    live = stationary(random, columns, checks)
                    log_e.append(watched(masses_of(columns), live, together))
                lengths = run_length_figures(np.concatenate(log_e), scale.target)
                yield (kind, f"{rows:,}", together, *lengths)
    for rows in scale.references[:2]:
        log_e = [
            alike_watched(np.random.default_rng([rows, run]), rows, 10, checks)
            for run in range(scale.dependent_runs)
        ]
        lengths = run_length_figures(np.concatenate(log_e), scale.target)
        yield ("correlated by 0.9", f"{rows:,}", 10, *lengths)


def stationary(
    random: np.random.Generator, columns: Sequence[Column], checks: int
) -> Iterator[Floats]:
    shares = padded([column.shares(0) for column in columns])
    for _ in range(checks):
        yield random.multinomial(CHECK_ROWS, shares).astype(float)


def alike_watched(random: np.random.Generator, rows: int, together: int, checks: int) -> Floats:
    reference = alike(random, rows, together)
    features = [numeric_feature("x", reference[:, i]) for i in range(together)]
    groups = [evidence_groups(feature) for feature in features]
    live = (
        count_rows(features, groups, alike(random, CHECK_ROWS, together)) for _ in range(checks)
    )
    return watched([group.masses for group in groups], live, together)


def masses_of(columns: Iterable[Column]) -> list[Floats]:
    return [column.masses for column in columns]


def watched(masses: Sequence[Floats], checks: Iterable[Floats], together: int = 1) -> Floats:
    """The log evidence of runs of `together` columns each, at every check: (runs, checks)."""
    detector = EDetector(masses)
    seen = []
    for counts in checks:
        detector.update(counts)
        each = detector.log_evidence().reshape(-1, together)
        seen.append([global_log_evidence(run) for run in each])
    return np.array(seen).T


def first_at(log_e: Floats, least: float) -> Floats:
    """How many looks of each run (runs, looks) it takes to reach `least`; infinite if it never is."""
    reached = log_e >= least
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def run_length_figures(log_e: Floats, target: int) -> Row:
    runs, checks = log_e.shape
    alarms = first_at(log_e, log_threshold(target))
    mean = float(np.minimum(alarms, checks).mean())
    sign = "≥ " if np.isinf(alarms).any() else ""
    return (
        runs,
        f"{sign}{mean:.0f}",
        f"{sign}{mean * CHECK_ROWS:,.0f}",
        f"{sign}{mean / target:.2f}",
        f"{np.mean(alarms <= target / 5):.3f}",
        f"{np.mean(np.isinf(alarms)):.2f}",
    )


def one_shot_false_alarms(scale: Scale) -> Iterator[Row]:
    rows_per_look = np.array([10] * 100 + [100] * 990)  # 100,000 in all
    for kind, make in KINDS.items():
        for rows in scale.references:
            random = np.random.default_rng(rows)
            log_e = []
            for _ in range(2 * scale.runs):
                column = make(random, rows)
                live = random.multinomial(rows_per_look, column.shares(0)).cumsum(axis=0)
                log_e.append(log_e_value(column.masses, live))
            alarms = first_at(np.array(log_e), -np.log(ALPHA))
            yield (kind, f"{rows:,}", len(log_e), f"{np.mean(np.isfinite(alarms)):.3f}")


def one_shot_delays(scale: Scale) -> Iterator[Row]:
    for groups, concentration in ((5, 75), (10, 100), (10, 150), (10, 200), (16, 240), (32, 480)):
        delays = [
            median(one_shot_alarms(shift, groups, concentration, scale.runs)) for shift in SHIFTS
        ]
        yield (groups, concentration, *delays)


def one_shot_alarms(shift: float, groups: int, concentration: float, runs: int) -> Floats:
    """The rows after which rows that had moved from the first one on are found to have."""
    random = np.random.default_rng(groups)
    step = 20 if shift < 0.2 else 5
    log_e = []
    for _ in range(runs):
        column, _ = equal_groups(random, 10_000, groups)
        live = random.multinomial(step, column.shares(shift), size=int(400 / shift**2 / step))
        log_e.append(log_e_value(column.masses, live.cumsum(axis=0), concentration))
    return first_at(np.array(log_e), -np.log(ALPHA)) * step


def median(delays: Floats) -> str:
    middle = float(np.median(delays)) if len(delays) else np.inf
    return f"{middle:,.0f}" if np.isfinite(middle) else "–"


@dataclass(frozen=True)
class Change:
    """After so many rows the column moves; a detector is set to one false alarm in `target`."""

    target: int = 100_000
    before: int = 20_000
    after: int = 30_000
    reference: int = 10_000


def delays_after_a_change(scale: Scale) -> Iterator[Row]:
    """KS twice: at the level that the target asks for, and at a quarter of it, since the e-detector
    has fewer false alarms than it is allowed."""
    change = Change()
    runs = min(scale.runs, 200)
    detectors: list[tuple[str, Callable[[float], Floats]]] = [
        (
            f"e-detector, a check every {CHECK_ROWS} rows",
            partial(e_detector_alarms, change, runs),
        )
    ]
    for window, part in [(w, part) for part in (1, 4) for w in (500, 1_000, 5_000)]:
        detectors.append(
            (
                f"KS of windows of {window:,} rows" + (f", level / {part}" if part > 1 else ""),
                partial(ks_alarms, change, window, window / change.target / part, runs),
            )
        )
    for name, alarms_of in detectors:
        alarms = [alarms_of(shift) for shift in SHIFTS]
        early = float(np.mean([found <= change.before for found in alarms]))
        delays = [median(found[found > change.before] - change.before) for found in alarms]
        yield (name, f"{early:.3f}", *delays)


def e_detector_alarms(change: Change, runs: int, shift: float) -> Floats:
    random = np.random.default_rng(3)
    columns = [continuous(random, change.reference) for _ in range(runs)]
    still = padded([column.shares(0) for column in columns])
    moved = padded([column.shares(shift) for column in columns])
    live = (
        random.multinomial(CHECK_ROWS, moved if row >= change.before else still).astype(float)
        for row in range(0, change.before + change.after, CHECK_ROWS)
    )
    log_e = watched(masses_of(columns), live)
    return first_at(log_e, log_threshold(change.target / CHECK_ROWS)) * CHECK_ROWS


def ks_alarms(change: Change, window: int, level: float, runs: int, shift: float) -> Floats:
    """Windows side by side, each a test of the values themselves."""
    random = np.random.default_rng(3)
    pooled = round(window * change.reference / (window + change.reference))
    critical = float(stats.kstwo.isf(level, pooled))
    return np.array([ks_alarm(random, change, window, critical, shift) for _ in range(runs)])


def ks_alarm(
    random: np.random.Generator, change: Change, window: int, critical: float, shift: float
) -> float:
    reference = np.sort(random.normal(size=change.reference))
    offset = int(random.integers(window))  # a change does not wait for a window to begin
    for end in range(offset + window, change.before + change.after + 1, window):
        values = random.normal(size=window)
        values[: max(end - change.before, 0)] += shift
        if ks_statistic(reference, np.sort(values)) >= critical:
            return end
    return np.inf


def ks_statistic(reference: Floats, values: Floats) -> float:
    """Of two samples, both in ascending order."""
    shares = np.arange(len(values) + 1) / len(values)
    above = np.searchsorted(reference, values, side="right") / len(reference)
    below = np.searchsorted(reference, values, side="left") / len(reference)
    return float(max((shares[1:] - above).max(), (below - shares[:-1]).max()))


def psi_sizes(scale: Scale) -> Iterator[Row]:
    """How often chance alone exceeds what is said to be its limit; nominally 5 %."""
    for groups, n, m in (
        (10, 200, 10_000),
        (10, 1_000, 1_000),
        (10, 1_000, 10_000),
        (10, 10_000, 100_000),
        (20, 1_000, 10_000),
    ):
        shares = np.full(groups, 1 / groups)
        limit = divergence.psi_critical(m, n, groups, ALPHA)
        over = [psi > limit for psi in psi_of_pairs(shares, shares, m, n, scale.pairs)]
        yield ("psi_critical", groups, f"{n:,}", f"{m:,}", "0", f"{np.mean(over):.3f}")
    deciles = stats.norm.ppf(np.arange(1, 10) / 10)
    for shift, n, m in ((0.1, 10_000, 100_000), (0.25, 1_000, 10_000), (0.5, 1_000, 10_000)):
        shares, moved = np.full(10, 0.1), normal_shares(deciles, shift)
        effect = float(np.sum((moved - shares) * np.log(moved / shares)))
        over = [
            divergence.psi_lower_bound(psi, m, n, 10, ALPHA) > effect
            for psi in psi_of_pairs(shares, moved, m, n, scale.pairs)
        ]
        yield ("psi_lower_bound", 10, f"{n:,}", f"{m:,}", f"{effect:.4f}", f"{np.mean(over):.3f}")


def psi_of_pairs(first: Floats, second: Floats, m: int, n: int, pairs: int) -> Iterator[float]:
    random = np.random.default_rng(n)
    references = random.multinomial(m, first, size=pairs)
    windows = random.multinomial(n, second, size=pairs)
    return (divergence.psi(*pair) for pair in zip(references, windows, strict=True))


def dependent_rows(scale: Scale) -> Iterator[Row]:
    """Panes of autocorrelated rows, each one check; its counts divided by the effect measured."""
    pane, longest = 1_000, 100
    checks = target = 3 * scale.target
    for correlation in (0.0, 0.2, 0.5, 0.8):
        random = np.random.default_rng(1)
        masses, panes = [], []
        for _ in range(scale.dependent_runs):
            column, edges = equal_groups(random, 10_000, 10)
            series = autocorrelated(random, pane * (longest + checks), correlation)
            masses.append(column.masses)
            panes.append(list(panes_of(series, edges, pane)))
        counts = np.array(panes)
        live = counts[:, longest:]
        median_effect, shares = "", []
        for history in (0, 30, longest):
            effects = measured_effects(counts, longest, history)
            median_effect = f"{np.median(effects):.2f}"
            log_e = watched(masses, (live[:, i] / effects[:, i, None] for i in range(checks)))
            shares.append(f"{np.mean(np.isfinite(first_at(log_e, log_threshold(target)))):.2f}")
        yield (correlation, len(live), median_effect, *shares)


def measured_effects(counts: Floats, begin: int, history: int) -> Floats:
    """The design effect of the panes before each from `begin` on, measured anew at every tenth."""
    effects = np.ones((counts.shape[0], counts.shape[1] - begin))
    if history:
        for run, panes in enumerate(counts):
            for check in range(0, effects.shape[1], 10):
                now = begin + check
                effects[run, check : check + 10] = design_effect(panes[now - history : now])
    return effects


TABLES: dict[str, tuple[Callable[[Scale], Iterator[Row]], tuple[str, ...]]] = {
    "Run lengths without drift, e-detector": (
        run_lengths,
        (
            *("column", "reference", "columns", "runs", "mean checks", "mean rows"),
            *("of the target", "alarms in ⅕ of the target", "censored"),
        ),
    ),
    "False alarms of the one-shot form within 100,000 rows, alpha = 0.05": (
        one_shot_false_alarms,
        ("column", "reference", "runs", "false alarms"),
    ),
    "Median rows until the one-shot form sees a shift, alpha = 0.05, reference 10,000": (
        one_shot_delays,
        ("groups", "concentration", *(f"{shift} sd" for shift in SHIFTS)),
    ),
    "Median rows after a change, one false alarm in 100,000 rows, reference 10,000": (
        delays_after_a_change,
        ("detector", "alarms in 20,000 rows before", *(f"{shift} sd" for shift in SHIFTS)),
    ),
    "PSI and its lower bound, wrong with a nominal probability of 0.05": (
        psi_sizes,
        ("figure", "groups", "n", "m", "true PSI", "wrong"),
    ),
    "Autocorrelated rows, panes of 1,000, runs with a false alarm in as many checks as the target": (
        dependent_rows,
        (
            *("correlation", "runs", "median design effect", "rows as they are"),
            *("divided by that of 30 panes", "of 100 panes"),
        ),
    ),
}


def markdown(title: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds; figures are rough")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL

    result: dict[str, Any] = {"environment": describe(), "quick": options.quick, "tables": {}}
    for title, (simulate, columns) in TABLES.items():
        began = time.monotonic()
        rows = []
        for row in simulate(scale):
            rows.append(row)
            print(f"{time.monotonic() - began:6.1f} s  {row}", file=sys.stderr, flush=True)
        print(markdown(title, columns, rows), flush=True)
        result["tables"][title] = {"columns": columns, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
