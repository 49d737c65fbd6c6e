"""What a window of live rows looks like beside the reference, feature by feature, in words and numbers.

`evaluate` is a pure function of the reference, the window's counts, the evidence and the thresholds.
It is run once per closed pane by the control loop and for every report that is asked for.

A feature has drifted where three things hold: its rows are many enough to be judged (`min_rows`),
the difference is large enough to matter, and chance is ruled out. Large enough is the PSI of the
distributions themselves, of which the window's index gives a lower bound, or the lower bound of the
two-sample Kolmogorov-Smirnov statistic of a numeric feature. Chance is ruled out by evidence that
holds however often one looks (drift_evidence.py); where none is given, by the size alone. A feature
that broke (feature_faults.py) has the verdict data_quality and never that of drift, however large
its PSI, and is left out of the window's verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trimtab._native.divergence import Comparison, rate_interval
from trimtab._native.reference import NumericFeature

from ..config import DriftConfig
from .drift_evidence import Evidence
from .feature_faults import Key, TensorCounts, faults_of, rates_of, reference_missing
from .yardstick import Counts, FeatureYardstick, Yardstick, shown

OK, WARNING, DRIFT, DATA_QUALITY = "ok", "warning", "drift", "data_quality"


@dataclass(frozen=True, slots=True)
class WindowSnapshot:
    """The sliding window at one moment; tensors are in the reference's order, None: not watched."""

    rows: int
    observed_rows: int  # since the monitor began
    newest_pane: int  # its number, from 1 on; panes that ended without a row have one too
    tensors: tuple[TensorCounts | None, ...]
    recent: tuple[TensorCounts | None, ...] | None = None  # the rows since it was last handed out


@dataclass(frozen=True)
class FeatureDrift:
    """How one feature of the window compares with the reference."""

    name: str
    kind: str  # numeric or categorical
    role: str  # input or output
    verdict: str = OK
    reason: str = ""
    rows: int = 0  # in the window
    effective_rows: float = 0.0  # that many independent rows would say as much
    psi: float = 0.0
    psi_critical: float = 0.0  # what chance alone exceeds once in 20 windows
    psi_low: float = 0.0  # the distributions' own PSI is at least that, wrong once in 20 windows
    ks_low: float = 0.0
    ks_high: float = 0.0
    ks_p_value: float = 1.0  # of the lower bound
    log_evidence: float = -math.inf  # against chance, in natural logarithms; -inf: none yet
    missing_rate: float = 0.0
    missing_interval: tuple[float, float] = (0.0, 1.0)  # of 95 %
    reference_missing_rate: float = 0.0
    unseen_rate: float = 0.0
    unseen_interval: tuple[float, float] = (0.0, 1.0)
    outside_rate: float = 0.0  # below the reference's lowest value or above its highest
    outside_interval: tuple[float, float] = (0.0, 1.0)
    jensen_shannon: float = 0.0
    hellinger: float = 0.0
    wasserstein: float | None = None  # in standard deviations of the reference; None: it has none
    importance: float | None = None  # what the model's metric loses without it; None: unknown
    reference_shares: tuple[float, ...] = ()
    window_shares: tuple[float, ...] = ()
    strength: float = 0.0  # how large it is: the larger of its sizes, each divided by its threshold


@dataclass(frozen=True)
class DriftReport:
    """What the drift monitor of one version sees."""

    model: str
    version: int
    state: str  # collecting, ok, warning or drift
    reason: str
    window_rows: int = 0
    reference_rows: int = 0
    observed_rows: int = 0
    passed_over_rows: int = 0  # of these, not counted
    reference: str = "none"  # training, bootstrap or none
    evidence: Evidence = field(default_factory=Evidence)
    features: tuple[FeatureDrift, ...] = ()  # the strongest drift first


def evaluate(
    reference: Yardstick,
    snapshot: WindowSnapshot,
    config: DriftConfig,
    faults: Mapping[Key, str] | None = None,
    evidence: Evidence | None = None,
) -> tuple[FeatureDrift, ...]:
    """Every watched feature; `faults` are those of the window's panes.

    The order is that of what matters most: size times importance, where importances are known.
    """
    tensors = snapshot.tensors
    broken = {
        **(faults or {}),
        **faults_of(reference.profile, tensors, config, config.min_rows),
    }
    found: list[FeatureDrift] = []
    for tensor, window in zip(reference.tensors, tensors, strict=True):
        if window is None or not tensor.features:
            continue
        role = tensor.reference.role
        keys: list[Key] = [(role, each.feature.name) for each in tensor.features]
        shares = [evidence.effective.get(key, 1.0) if evidence else 1.0 for key in keys]
        compared = tensor.table.compare(window.counts, effective=shares)
        grouped = tensor.table.grouped(window.counts)
        rates = rates_of(tensor.reference, window.counts)
        missing = reference_missing(tensor.reference)
        for row, (key, yardstick) in enumerate(zip(keys, tensor.features, strict=True)):
            judged = _Judged(
                yardstick,
                role,
                compared[row],
                grouped[row, : len(yardstick.labels)],
                shares[row],
                missing=(rates.missing[row], missing[row]),
                unseen=rates.unseen[row],
                outside=rates.outside[row],
            )
            found.append(judged.feature(broken.get(key, ""), config, key, evidence))
    known = [f.importance for f in found if f.role == "input" and f.importance is not None]
    top = max(known, default=0.0)
    return tuple(sorted(found, key=lambda each: -_weight(each, top)))


def _weight(feature: FeatureDrift, top: float) -> float:
    """For the ranking: an unknown importance counts as the highest, one below 0 as next to none."""
    if feature.importance is None or top <= 0:
        return feature.strength
    return feature.strength * max(feature.importance / top, 0.01)


def worst(features: Sequence[FeatureDrift]) -> str:
    """The verdict of a window: that of its most drifted feature.

    Broken features do not count, nor do outputs while an input is broken, since that explains them.
    """
    input_broken = any(f.verdict == DATA_QUALITY and f.role == "input" for f in features)
    verdicts = {f.verdict for f in features if f.role == "input" or not input_broken}
    return next((verdict for verdict in (DRIFT, WARNING) if verdict in verdicts), OK)


def summary(features: Sequence[FeatureDrift], verdict: str) -> str:
    """The features of that verdict in one sentence, at most three of them named."""
    chosen = [feature for feature in features if feature.verdict == verdict]
    if not chosen:
        return ""
    named = "; ".join(f"{feature.name}: {feature.reason}" for feature in chosen[:3])
    more = len(chosen) - 3
    return f"{named}; and {more} more" if more > 0 else named


def names(features: Sequence[FeatureDrift], verdict: str) -> str:
    """The features of that verdict with their PSI, at most three of them."""
    chosen = [feature for feature in features if feature.verdict == verdict]
    named = ", ".join(f"{feature.name} (PSI {feature.psi:.2f})" for feature in chosen[:3])
    more = len(chosen) - 3
    return f"{named} and {more} more" if more > 0 else named


def ks_noise(reference_rows: float, window_rows: float) -> float:
    """The KS statistic that two samples of one distribution exceed once in 10,000 times at most
    (Massart's constant for the Dvoretzky-Kiefer-Wolfowitz inequality)."""
    k = 1 / max(reference_rows, 1) + 1 / max(window_rows, 1)
    return math.sqrt(math.log(2 / 1e-4) / 2 * k)


@dataclass(frozen=True, slots=True)
class _Judged:
    """One feature beside its reference, and what that means."""

    yardstick: FeatureYardstick
    role: str
    figures: Comparison
    now: Counts  # of the groups
    effective: float
    missing: tuple[float, float]  # the live rate and the reference's
    unseen: float
    outside: float

    def feature(
        self,
        fault: str,
        config: DriftConfig,
        key: Key,
        evidence: Evidence | None,
    ) -> FeatureDrift:
        feature, figures, rows = self.yardstick.feature, self.figures, self.figures.rows
        missing, missing_before = self.missing
        numeric = isinstance(feature, NumericFeature)
        # Without a value on either side there is nothing in order: KS would be (0, 1).
        ordered = numeric and missing < 1 and rows > 0 and missing_before < 1
        ks_low, ks_high = (figures.ks_low, figures.ks_high) if ordered else (0.0, 0.0)
        ks_limit = max(config.ks, ks_noise(figures.reference_rows, rows * self.effective))
        strength = max(_share(figures.psi_lower_bound, config.psi), _share(ks_low, ks_limit))
        ruled_out = evidence is None or key in evidence.found
        if fault:
            verdict, reason = DATA_QUALITY, fault
        elif rows < config.min_rows:
            verdict, reason = OK, f"only {rows:,.0f} rows, {config.min_rows:,} are judged"
            strength = 0.0
        else:
            verdict, reason = self._verdict(strength, ks_low, ks_limit, config, ruled_out)
        return FeatureDrift(
            name=feature.name,
            kind="numeric" if numeric else "categorical",
            role=self.role,
            verdict=verdict,
            reason=reason,
            rows=int(rows),
            effective_rows=rows * self.effective,
            psi=figures.psi,
            psi_critical=figures.psi_critical if math.isfinite(figures.psi_critical) else 0.0,
            psi_low=figures.psi_lower_bound,
            ks_low=ks_low,
            ks_high=ks_high,
            ks_p_value=figures.ks_p_value if ordered else 1.0,
            log_evidence=evidence.log_e.get(key, -math.inf) if evidence else -math.inf,
            missing_rate=missing,
            missing_interval=rate_interval(missing * rows, rows),
            reference_missing_rate=missing_before,
            unseen_rate=self.unseen,
            unseen_interval=rate_interval(self.unseen * rows, rows),
            outside_rate=self.outside,
            outside_interval=rate_interval(self.outside * rows, rows),
            jensen_shannon=figures.jensen_shannon,
            hellinger=figures.hellinger,
            wasserstein=figures.wasserstein if math.isfinite(figures.wasserstein) else None,
            importance=feature.importance,
            reference_shares=self.yardstick.shown,
            window_shares=shown(self.now),
            strength=strength,
        )

    def _verdict(
        self, strength: float, ks_low: float, ks_limit: float, config: DriftConfig, ruled_out: bool
    ) -> tuple[str, str]:
        psi, psi_low = self.figures.psi, self.figures.psi_lower_bound
        numeric = isinstance(self.yardstick.feature, NumericFeature)
        ks = f", KS ≥ {ks_low:.3f}" if numeric else ""
        if strength >= 1:
            over = []
            if _share(psi_low, config.psi) >= 1:
                over.append(f"PSI {psi:.2f} (at least {psi_low:.2f}) ≥ {config.psi:.2f}")
            if _share(ks_low, ks_limit) >= 1:
                over.append(f"KS {ks_low:.2f} ≥ {ks_limit:.2f}")
            size = f"{', '.join(over)}: {self._moved()}"
            if ruled_out:
                return DRIFT, size
            return WARNING, f"{size}; it may be chance yet"
        if strength > 0 and strength >= config.warning_ratio:
            reason = f"PSI {psi:.2f}{ks}, {strength:.0%} of the threshold: {self._moved()}"
            return WARNING, reason
        return OK, f"PSI {psi:.3f}{ks}"

    def _moved(self) -> str:
        """The groups whose shares changed most."""
        was = self.yardstick.reference
        before, after = was / was.sum(), self.now / self.now.sum()
        most = np.argsort(-np.abs(after - before), kind="stable")[:2]
        labels = self.yardstick.labels
        named = [f"{labels[i]} ({before[i]:.1%} → {after[i]:.1%})" for i in most]
        return f"shares moved most in {' and '.join(named)}"


def _share(value: float, threshold: float) -> float:
    """How much of a threshold is reached; every difference reaches one of 0."""
    if threshold > 0:
        return value / threshold
    return math.inf if value > 0 else 0.0
