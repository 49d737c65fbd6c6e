"""Whether a training starts now, and if not, what it waits for.

    train = signal (drift, loss of quality, schedule, or an operator) AND not running
            AND, unless an operator asked: breaker closed AND back-off over
            AND enough mature labels AND cooldown over AND budget left

Drift means the state after hysteresis (drift_state.py), so a single odd window is no signal, and a
feature that broke is none either. Labels that show a loss of quality are a signal of their own. While a
feature is broken every signal waits but an operator's: the fault may explain it, and a training would
learn it. Where candidates are refused one after another and labels show no loss of quality, drift does
no harm, and each further training waits for twice the labels. Everything here is a value: the clock is the loop's (event time
where requests carry it), and the reason says in words and numbers what was decided. Decisions are
re-made at every pane, label and tick, so nothing needs to be remembered between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import TriggerConfig
from ..drift.drift_report import DRIFT
from ..drift.drift_state import COLLECTING
from .quality import DEGRADED

DAY_MS = 24 * 3600 * 1000
FIRST_BACKOFF_MS = 60_000  # after one failure; doubles with each further one
MAX_BACKOFF_MS = 6 * 3600 * 1000
MAX_LABEL_FACTOR = 16  # of min_labels, after many refusals in a row


@dataclass(frozen=True, slots=True)
class TriggerSnapshot:
    """What is known about a model as a decision is made."""

    now_ms: int  # the loop's clock
    drift: str = COLLECTING
    drift_features: str = ""
    quality: str = COLLECTING  # state of the champion, as labels tell
    quality_reason: str = ""  # its figures
    broken: str = ""  # names of the features with an open data-quality alarm
    requested: str = ""  # why an operator asked; empty: nobody did
    running: bool = False  # a training, or another trainer process of the model
    labels: int = 0  # that became mature since the last training began
    young_labels: int = 0
    last_training_ms: int | None = None  # start of the last one that did not fail
    starts_ms: Sequence[int] = ()  # starts of the recent ones, failed ones included
    refusals: int = 0  # candidates in a row that were refused beside this champion
    failures: int = 0  # in a row
    last_failure_ms: int | None = None
    watching_since_ms: int | None = None  # what a schedule counts from before the first training


@dataclass(frozen=True, slots=True)
class TriggerDecision:
    """Train now, wait (there is a signal), or nothing to do (there is none)."""

    train: bool
    waiting: bool = False
    reason: str = ""
    signal: str = ""  # drift, quality, schedule or admin
    lacking: tuple[str, ...] = ()  # what is waited for; a change of it is worth an event


def decide(snapshot: TriggerSnapshot, config: TriggerConfig) -> TriggerDecision:
    """The decision at this moment; pure."""
    signal, why = _signal(snapshot, config)
    if not signal:
        return TriggerDecision(
            train=False, reason="no drift, no loss of quality, no schedule, no request"
        )
    if signal == "admin":
        hurdles = [("running", "a training is running")] if snapshot.running else []
    else:
        hurdles = _hurdles(snapshot, config, labels_needed(snapshot, config, signal))
        if snapshot.broken:
            hurdles.append(
                ("broken", f"a training would learn what is wrong with {snapshot.broken}")
            )
    reason = "; ".join([why, *(text for _, text in hurdles)])
    return TriggerDecision(
        train=not hurdles,
        waiting=bool(hurdles),
        reason=reason,
        signal=signal,
        lacking=tuple(name for name, _ in hurdles),
    )


def backoff_ms(failures: int) -> int:
    """How long after the last of so many failures in a row the next attempt may begin."""
    if failures <= 0:
        return 0
    return int(min(FIRST_BACKOFF_MS * 2.0 ** min(failures - 1, 30), MAX_BACKOFF_MS))


def labels_needed(snapshot: TriggerSnapshot, config: TriggerConfig, signal: str) -> int:
    """`min_labels`; where nothing but drift calls, twice as many for each refusal after the first
    in a row: that one may have come before enough was known of a change."""
    if signal != "drift" or snapshot.quality == DEGRADED:
        return config.min_labels
    factor = 1
    for _ in range(snapshot.refusals - 1):
        factor = min(2 * factor, MAX_LABEL_FACTOR)
    return config.min_labels * factor


def _signal(snapshot: TriggerSnapshot, config: TriggerConfig) -> tuple[str, str]:
    if snapshot.requested:
        return "admin", snapshot.requested
    quality = ""
    if config.on_quality and snapshot.quality == DEGRADED:
        figures = f": {snapshot.quality_reason}" if snapshot.quality_reason else ""
        quality = f"loss of quality{figures}"
    if config.on_drift and snapshot.drift == DRIFT:
        on = f" on {snapshot.drift_features}" if snapshot.drift_features else ""
        return "drift", f"drift{on}; {quality}" if quality else f"drift{on}"
    if quality:
        return "quality", quality
    since = _since(snapshot.now_ms, snapshot.last_training_ms)
    if since is None:
        since = _since(snapshot.now_ms, snapshot.watching_since_ms)
    if config.every_s and since is not None and since >= config.every_s * 1000:
        every = _span(config.every_s * 1000)
        return "schedule", f"schedule: {_span(since)} since the last training, every {every}"
    return "", ""


def _hurdles(
    snapshot: TriggerSnapshot, config: TriggerConfig, needed: int
) -> list[tuple[str, str]]:
    found = []
    if snapshot.running:
        found.append(("running", "a training is running"))
    if snapshot.failures >= config.max_failures:
        found.append(
            (
                "breaker",
                f"stopped after {snapshot.failures} failed trainings, until one is asked for",
            )
        )
    elif snapshot.failures:
        since = _since(snapshot.now_ms, snapshot.last_failure_ms)
        wait = backoff_ms(snapshot.failures)
        if since is not None and since < wait:
            found.append(
                (
                    "backoff",
                    f"{_span(since)} of {_span(wait)} back-off after failure {snapshot.failures}",
                )
            )
    if snapshot.labels < needed:
        found.append(("labels", _labels(snapshot, config, needed)))
    since = _since(snapshot.now_ms, snapshot.last_training_ms)
    if since is not None and since < config.cooldown_s * 1000:
        found.append(("cooldown", f"{_span(since)} of {_span(config.cooldown_s * 1000)} cooldown"))
    today = sum(0 <= snapshot.now_ms - start < DAY_MS for start in snapshot.starts_ms)
    if today >= config.max_per_day:
        found.append(("budget", f"{today} trainings in the last 24 h (limit {config.max_per_day})"))
    return found


def _labels(snapshot: TriggerSnapshot, config: TriggerConfig, needed: int) -> str:
    counted = f"{snapshot.labels:,} of {needed:,}"
    after = ""
    if needed > config.min_labels:
        after = f", after {snapshot.refusals} refused candidates and no loss of quality"
    if not config.label_maturity_s:
        return f"{counted} labels{after}"
    maturity = _span(config.label_maturity_s * 1000)
    young = f"{snapshot.young_labels:,} are younger than {maturity}"
    return f"{counted} mature labels ({young}){after}"


def _since(now_ms: int, then_ms: int | None) -> float | None:
    """Time passed; None where `then` lies ahead: it was told by another clock, a replay's or the
    wall's, and says nothing."""
    if then_ms is None or then_ms > now_ms:
        return None
    return now_ms - then_ms


def _span(ms: float) -> str:
    seconds = ms / 1000
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
