"""What follows from a comparison: pass, fail, inconclusive, or nothing yet; figures in, words out.

Four checks, each of `version` beside `against` on the same rows, so that what ails both (bad
requests, a slow machine, a champion that has lost touch) is held against neither:

    errors       it alone fails on more requests than the other alone, by max_error_rise or more
    latency      a run of it takes max_latency_ratio times as long, and max_latency_ms more
    predictions  they are distributed otherwise (PSI), or agree too seldom
    labels       its loss is higher by more than max_loss_rise of the other's

A check fails where chance explains that once in some 30,000 looks at most, *and* the difference is
as large as its limit: looked at every second, a version that is no worse passes all the same. A PSI
is no fault where labels show that the version is no worse: a cure differs from what is sick.

A failure ends a phase at once, everything else waits until there are enough rows, and labels where
they count. At the deadline what there is decides, and what there is too little of is inconclusive:
missing data never passes. Pure.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..config import PromotionConfig
from .comparison import Figures
from .output_pair import OWN_ROWS, OutputFigures
from .paired_losses import LabelFigures
from .status import Outcome

_Z = 4.0
_ALPHA = 1e-4
_MIN_RUNS = 16  # of which compute times were taken

CheckOutcome = Literal["pass", "fail", "open", "not judged"]


@dataclass(frozen=True, slots=True)
class Check:
    """One of the four; `open`: too little is known."""

    name: str
    outcome: CheckOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """When a phase is over."""

    rows: int  # that it compares
    answered: int = 0  # of which the newer version answers so many
    out_of_time: bool = False
    awaits_labels: bool = False  # where labels count if there are any: some may still come


@dataclass(frozen=True, slots=True)
class Verdict:
    """`outcome` empty: the phase goes on, and `reason` says what it waits for."""

    outcome: Outcome
    reason: str
    checks: tuple[Check, ...]

    @property
    def needs_no_rows(self) -> bool:
        """Whether all that may still be lacking is labels."""
        return all(check.outcome != "open" for check in self.checks if check.name != "labels")

    def evidence(self) -> dict[str, Any]:
        """As the history keeps it."""
        return {
            "verdict": self.outcome,
            "checks": {check.name: f"{check.outcome}: {check.reason}" for check in self.checks},
        }


def judge(figures: Figures, config: PromotionConfig, limits: Limits) -> Verdict:
    """The verdict at this moment."""
    labels = _labels(figures.labels, config)
    checks = (
        _errors(figures, config),
        _latency(figures, config),
        _predictions(
            figures,
            config,
            no_worse=_is_no_worse(figures.labels, config),
            labels_come=labels.outcome == "open"
            and (limits.awaits_labels or config.labels == "required"),
        ),
        labels,
    )
    failed = [check for check in checks if check.outcome == "fail"]
    if failed:
        return Verdict("fail", "; ".join(check.reason for check in failed), checks)
    lacking = []
    if figures.rows < limits.rows:
        lacking.append(f"{figures.rows:,} of {limits.rows:,} rows were compared")
    if figures.answered < limits.answered:
        lacking.append(f"it answered {figures.answered:,} of {limits.answered:,} rows")
    for check in checks:
        waits = check is not labels or config.labels == "required" or limits.awaits_labels
        if check.outcome == "open" and waits:
            lacking.append(check.reason)
    if not lacking:
        return Verdict("pass", _passed(figures, checks), checks)
    if not limits.out_of_time:
        return Verdict("", "; ".join(lacking), checks)
    lacking = []
    if figures.rows < min(config.min_rows, limits.rows):
        lacking.append(f"only {figures.rows:,} rows were compared, {config.min_rows:,} are judged")
    if figures.answered < limits.answered:
        lacking.append(f"it answered only {figures.answered:,} of {limits.answered:,} rows")
    for check in checks:
        if check.outcome == "open" and (check is not labels or config.labels == "required"):
            lacking.append(check.reason)
    if lacking:
        return Verdict("inconclusive", "the time is up and " + "; ".join(lacking), checks)
    return Verdict("pass", _passed(figures, checks), checks)


def _passed(figures: Figures, checks: tuple[Check, ...]) -> str:
    """Without compute times: they are in the evidence, and the words of two replays are equal."""
    said = [check.reason for check in checks if check.name != "latency"]
    return f"{figures.rows:,} rows compared: {'; '.join(said)}"


def _errors(figures: Figures, config: PromotionConfig) -> Check:
    alone = figures.failed_version - figures.failed_both
    other = figures.failed_against - figures.failed_both
    if not figures.requests:
        return Check("errors", "open", "no request was given to both")
    rise = (alone - other) / figures.requests
    reason = (
        f"{alone:,} of {figures.requests:,} requests failed on it alone, "
        f"{other:,} on the other alone"
    )
    if rise > 0 and rise >= config.max_error_rise and _binomial_tail(alone, alone + other) < _ALPHA:
        return Check("errors", "fail", f"{reason} (limit {config.max_error_rise:.2%} more)")
    return Check("errors", "pass", reason)


def _latency(figures: Figures, config: PromotionConfig) -> Check:
    latency = figures.latency
    if latency.runs < _MIN_RUNS:
        if _other_is_sick(figures):
            return Check("latency", "not judged", "the other version fails")
        return Check("latency", "open", f"{latency.runs} of {_MIN_RUNS} runs were timed")
    reason = (
        f"a run takes {latency.ratio:.2f} times as long as the other's, {latency.more_ms:+.3f} ms"
    )
    if (
        latency.ratio_low >= config.max_latency_ratio
        and latency.more_ms_low >= config.max_latency_ms
    ):
        limit = f"limits {config.max_latency_ratio:g} times and {config.max_latency_ms:g} ms"
        return Check("latency", "fail", f"{reason} ({limit})")
    return Check("latency", "pass", reason)


def _predictions(
    figures: Figures, config: PromotionConfig, *, no_worse: bool, labels_come: bool
) -> Check:
    if not config.max_psi and not config.min_agreement:
        return Check("predictions", "not judged", "how far predictions differ is not judged")
    known = [each for each in figures.outputs if each.rows]
    if not known and _other_is_sick(figures):
        return Check("predictions", "not judged", "the other version fails")
    if not known and figures.rows >= OWN_ROWS:
        return Check("predictions", "not judged", "no output of both is a table of numbers or text")
    rows = max((each.rows for each in known), default=0)
    if rows < min(config.min_rows, OWN_ROWS):
        return Check("predictions", "open", f"the answers to {rows:,} rows were compared")
    worst = figures.worst
    reason = (
        f"PSI {worst.psi:.2f} between their answers ('{worst.name}'), {figures.agreement:.0%} agree"
    )
    over = [
        f"{each.agreement:.0%} of the rows agree in {each.name} (limit {config.min_agreement:.0%})"
        for each in known
        if _surely_below(each, config.min_agreement)
    ]
    if config.max_psi and worst.psi_low >= config.max_psi:
        far = (
            f"PSI {worst.psi:.2f} between their answers ('{worst.name}') (limit {config.max_psi:g})"
        )
        if no_worse and not over:
            return Check("predictions", "pass", f"{far}, and labels show that it is no worse")
        if labels_come and not over:
            # Of two versions on either side of a change, the one that is right answers otherwise.
            return Check("predictions", "open", f"{far}, which labels are to judge")
        over.append(far)
    if over:
        return Check("predictions", "fail", ", ".join(over))
    return Check("predictions", "pass", reason)


def _surely_below(output: OutputFigures, limit: float) -> bool:
    share = output.agreement
    return bool(share + _Z * math.sqrt(limit * (1 - limit) / output.rows) < limit)


def _labels(labels: LabelFigures, config: PromotionConfig) -> Check:
    if config.labels == "ignored":
        return Check("labels", "not judged", "labels are not looked at")
    if not labels.metric:
        outcome: CheckOutcome = "open" if config.labels == "required" else "not judged"
        return Check("labels", outcome, "no label can be held against what the versions answer")
    if labels.rows < config.label_rows:
        return Check("labels", "open", f"{labels.rows:,} of {config.label_rows:,} labelled rows")
    limit = config.max_loss_rise * labels.against
    reason = (
        f"{labels.metric} {labels.version:.4g} against {labels.against:.4g} "
        f"on {labels.rows:,} labelled rows"
    )
    worse = -labels.improvement
    if worse > 0 and worse - _Z * labels.error > limit:
        return Check(
            "labels",
            "fail",
            f"{reason}: {worse:.4g} ± {labels.high - labels.improvement:.2g} worse "
            f"(limit {config.max_loss_rise:.0%})",
        )
    return Check("labels", "pass", reason)


def _other_is_sick(figures: Figures) -> bool:
    """It fails on most of what the newer one can do: nothing of it is a measure then."""
    alone = figures.failed_against - figures.failed_both
    return 2 * alone > figures.requests and _binomial_tail(alone, alone) < _ALPHA


def _is_no_worse(labels: LabelFigures, config: PromotionConfig) -> bool:
    """Whether labels show it, not only fail to show the contrary."""
    if config.labels == "ignored" or labels.rows < config.label_rows:
        return False
    return -labels.improvement + _Z * labels.error <= config.max_loss_rise * labels.against


def _binomial_tail(successes: int, trials: int) -> float:
    """The probability of so many heads or more of a fair coin."""
    if successes * 2 <= trials:
        return 1.0
    if trials > 1000:
        z = (successes - 0.5 - trials / 2) / (math.sqrt(trials) / 2)
        return 0.5 * math.erfc(z / math.sqrt(2))
    heads = sum(math.comb(trials, count) for count in range(successes, trials + 1))
    return float(heads / 2**trials)
