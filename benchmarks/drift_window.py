"""A window of a hundred features beside its reference: what judging it takes, and what it weighs."""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trimtab._native.histogram import NumericHistogram
from trimtab._native.reference import ReferenceProfile, TensorReference, numeric_feature
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_evidence import DriftEvidence
from trimtab.server.drift.drift_report import WindowSnapshot, evaluate
from trimtab.server.drift.feature_faults import TensorCounts
from trimtab.server.drift.yardstick import Yardstick

FEATURES = 100
BINS = 64
PANES = 10

_REFERENCE_ROWS = 20_000
_PANE_ROWS = 1_000
_SHIFTED = 10  # features, by half a standard deviation
_CHECKS = 100  # before anything is timed: dependence is measured over that many
_MEMORY_FEATURES = 30


class WrongJudgementError(Exception):
    """Other features were found than those that moved; the text says which."""


class Window:
    """A reference of normal values, and a full window of which some features have moved."""

    def __init__(self, features: int = FEATURES) -> None:
        self._random = random = np.random.default_rng(0)
        numeric = tuple(
            numeric_feature(f"f{j}", random.normal(size=_REFERENCE_ROWS), BINS)
            for j in range(features)
        )
        tensor = TensorReference("numeric", "input", numeric)
        self.profile = ReferenceProfile(_REFERENCE_ROWS, (tensor,))
        self.moved = sorted(feature.name for feature in numeric[:_SHIFTED])
        histogram = NumericHistogram(
            [feature.edges for feature in numeric], PANES, follow=[True] * features
        )
        for pane in range(PANES):
            if pane:
                histogram.advance()
            values = random.normal(size=(_PANE_ROWS, features))
            values[:, :_SHIFTED] += 0.5
            histogram.update(values.astype(np.float32))
        counts = TensorCounts(histogram.window(), *histogram.extremes(PANES))
        rows = PANES * _PANE_ROWS
        self.snapshot = WindowSnapshot(rows, rows, PANES, (counts,))
        known = [[*feature.counts, feature.missing] for feature in numeric]
        self._shares = np.array(known) / _REFERENCE_ROWS
        self._shares[:_SHIFTED] = counts.counts[:_SHIFTED] / rows

    def pane(self) -> TensorCounts:
        """Another one, of which the same features have moved: the same rows again and again would
        be a drift themselves."""
        return TensorCounts(self._random.multinomial(_PANE_ROWS, self._shares).astype(np.uint64))


class Judgement:
    """All that is computed as a pane ends: evidence with its correction for dependent rows, then
    every statistic, rate, bound, verdict and sentence of the report."""

    def __init__(self, window: Window, checks: int = _CHECKS) -> None:
        self._window, self._config = window, DriftConfig()
        self._yardstick = Yardstick(window.profile)
        self._evidence = DriftEvidence(
            window.profile, _PANE_ROWS, self._config.false_alarm_rows, deflate=self._config.deflate
        )
        for _ in range(checks):
            self.end_pane()
            self.weigh()

    def end_pane(self) -> None:
        self._pane = (self._window.pane(),)

    def weigh(self) -> list[str]:
        """The names of the features that have evidence."""
        self._evidence.add(self._pane)
        return [name for _, name in self._evidence.latest.found]

    def report(self) -> list[str]:
        """The names of the features that have drifted."""
        found = evaluate(
            self._yardstick, self._window.snapshot, self._config, evidence=self._evidence.latest
        )
        return [feature.name for feature in found if feature.verdict == "drift"]


def judging_ms(rounds: int, features: int = FEATURES, checks: int = _CHECKS) -> dict[str, float]:
    """Medians of the processor's milliseconds: evidence, report and all. WrongJudgementError."""
    window = Window(features)
    judgement = Judgement(window, checks)
    parts: dict[str, Callable[[], list[str]]] = {
        "evidence": judgement.weigh,
        "report": judgement.report,
    }
    took: dict[str, list[float]] = {name: [] for name in (*parts, "all")}
    for _ in range(rounds):
        judgement.end_pane()
        for name, part in parts.items():
            began = time.thread_time()
            found = part()
            took[name].append((time.thread_time() - began) * 1e3)
            if sorted(found) != window.moved:
                raise WrongJudgementError(
                    f"{name} finds {sorted(found)}, but {window.moved} have moved"
                )
        took["all"].append(sum(took[name][-1] for name in parts))
    return {name: statistics.median(times) for name, times in took.items()}


def window_bytes(windows: int = 200) -> float:
    """What a feature's window takes, with all its panes in use."""
    random = np.random.default_rng(0)
    columns = _MEMORY_FEATURES
    edges = [np.unique(random.normal(size=BINS - 1).astype(np.float32)) for _ in range(columns)]
    batch = random.normal(size=(64, columns)).astype(np.float32)

    def make() -> object:
        histogram = NumericHistogram(edges, PANES, follow=[True] * columns)
        for _ in range(PANES):
            histogram.update(batch)
            histogram.advance()
        return histogram

    return _growth(make, windows) / columns


def _growth(make: Callable[[], object], times: int) -> float:
    """By how much the process grows for each of so many.

    As many are made before that, so that memory which was free already does not count.
    """
    kept, before = [], 0
    for made in range(2 * times):
        if made == times:
            before = _resident()
        kept.append(make())
    return (_resident() - before) / times


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
