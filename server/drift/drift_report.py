"""What a window of live rows looks like beside the reference, feature by feature, in words and numbers.

`evaluate` is a pure function of the reference, the window's counts and the thresholds. It is run
once per closed pane by the control loop and for every report that is asked for.

Drift is about how values are distributed: PSI over about ten groups of bins, and the lower bound of
the two-sample Kolmogorov-Smirnov statistic over all bins of a numeric feature. A threshold never
lies below what chance alone reaches at these numbers of rows (`psi_noise`, `ks_noise`), so a small
window does not cry wolf. A feature that broke (feature_faults.py) has the verdict data_quality and
never that of drift, however large its PSI, and is left out of the window's verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab._native import divergence
from trimtab._native.reference import NumericFeature

from ..config import DriftConfig
from .feature_faults import Key, TensorCounts, faults_of, rates_of
from .yardstick import Counts, FeatureYardstick, Yardstick

OK, WARNING, DRIFT, DATA_QUALITY = "ok", "warning", "drift", "data_quality"

_MAX_SHARES = 12  # groups that a report shows


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
    psi: float = 0.0
    ks_low: float = 0.0
    ks_high: float = 0.0
    missing_rate: float = 0.0
    reference_missing_rate: float = 0.0
    unseen_rate: float = 0.0
    reference_shares: tuple[float, ...] = ()
    window_shares: tuple[float, ...] = ()
    strength: float = 0.0  # the largest of its figures, each divided by its threshold


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
    reference: str = "none"  # training, bootstrap or none
    features: tuple[FeatureDrift, ...] = ()  # the strongest drift first


def evaluate(
    reference: Yardstick,
    snapshot: WindowSnapshot,
    config: DriftConfig,
    faults: Mapping[Key, str] | None = None,
) -> tuple[FeatureDrift, ...]:
    """Every watched feature, the strongest drift first; `faults` are those of the window's panes."""
    tensors = snapshot.tensors
    broken = {
        **(faults or {}),
        **faults_of(reference.profile, tensors, config, config.min_rows),
    }
    found: list[FeatureDrift] = []
    described = zip(reference.profile.tensors, reference.tensors, tensors, strict=True)
    for tensor, features, window in described:
        if window is None:
            continue
        for yardstick, slots in zip(features, window.counts, strict=True):
            fault = broken.get((tensor.role, yardstick.feature.name), "")
            found.append(_judge(yardstick, tensor.role, slots, fault, config))
    return tuple(sorted(found, key=lambda item: -item.strength))


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


def psi_noise(reference_rows: float, window_rows: float, bins: int) -> float:
    """The PSI that two samples of one distribution hardly ever exceed: mean + 4 sd.

    Under no drift PSI / k follows chi-square with bins - 1 degrees of freedom, k = 1/n + 1/m
    (Yurdakul and Naranjo, Journal of Risk Model Validation, 2020).
    """
    k = 1 / max(reference_rows, 1) + 1 / max(window_rows, 1)
    return k * (bins - 1) + 4 * k * math.sqrt(2 * max(bins - 1, 1))


def ks_noise(reference_rows: float, window_rows: float) -> float:
    """The KS statistic that two samples of one distribution exceed once in 10,000 times at most
    (Massart's constant for the Dvoretzky-Kiefer-Wolfowitz inequality)."""
    k = 1 / max(reference_rows, 1) + 1 / max(window_rows, 1)
    return math.sqrt(math.log(2 / 1e-4) / 2 * k)


def _judge(
    yardstick: FeatureYardstick,
    role: str,
    slots: NDArray[np.uint64],
    fault: str,
    config: DriftConfig,
) -> FeatureDrift:
    """One feature's figures, and what they mean."""
    feature = yardstick.feature
    was, now = yardstick.reference, yardstick.group(slots)
    rows, reference_rows = float(now.sum()), float(was.sum())
    rates = rates_of(feature, slots)
    psi = ks_low = ks_high = 0.0
    psi_limit = ks_limit = math.inf
    if rows and reference_rows:
        filled = (was > 0) | (now > 0)
        psi = divergence.psi(was[filled], now[filled])
        psi_limit = max(config.psi, psi_noise(reference_rows, rows, int(filled.sum())))
        ks_limit = max(config.ks, ks_noise(reference_rows, rows))
    numeric = isinstance(feature, NumericFeature)
    if numeric and rates.missing < 1 and rows and rates.reference_missing < 1:
        ks_low, ks_high = divergence.ks_bracket(feature.counts, slots[: len(feature.counts)])
    strength = max(psi / psi_limit, ks_low / ks_limit)
    ks = f", KS ≥ {ks_low:.3f}" if numeric else ""
    if fault:
        verdict, reason = DATA_QUALITY, fault
    elif rows < config.min_rows:
        verdict, reason = OK, f"only {rows:,.0f} rows, {config.min_rows:,} are judged"
        strength = 0.0
    elif strength >= 1:
        over = [f"PSI {psi:.2f} ≥ {psi_limit:.2f}"] if psi >= psi_limit else []
        over += [f"KS {ks_low:.2f} ≥ {ks_limit:.2f}"] if ks_low >= ks_limit else []
        verdict, reason = DRIFT, f"{', '.join(over)}: {_moved(yardstick.labels, was, now)}"
    elif strength > 0 and strength >= config.warning_ratio:
        moved = _moved(yardstick.labels, was, now)
        verdict = WARNING
        reason = f"PSI {psi:.2f}{ks}, {strength:.0%} of the threshold: {moved}"
    else:
        verdict, reason = OK, f"PSI {psi:.3f}{ks}"
    return FeatureDrift(
        name=feature.name,
        kind="numeric" if numeric else "categorical",
        role=role,
        verdict=verdict,
        reason=reason,
        psi=psi,
        ks_low=ks_low,
        ks_high=ks_high,
        missing_rate=rates.missing,
        reference_missing_rate=rates.reference_missing,
        unseen_rate=rates.unseen,
        reference_shares=_shown(was),
        window_shares=_shown(now),
        strength=strength,
    )


def _moved(labels: Sequence[str], was: Counts, now: Counts) -> str:
    """The groups whose shares changed most."""
    before, after = was / was.sum(), now / now.sum()
    most = np.argsort(-np.abs(after - before), kind="stable")[:2]
    named = [f"{labels[i]} ({before[i]:.1%} → {after[i]:.1%})" for i in most]
    return f"shares moved most in {' and '.join(named)}"


def _shown(counts: Counts) -> tuple[float, ...]:
    """Shares for a report; categories beyond the commonest join the last but one group."""
    if len(counts) > _MAX_SHARES:
        tail = counts[_MAX_SHARES - 2 : -1].sum()
        counts = np.append(counts[: _MAX_SHARES - 2], (tail, counts[-1]))
    total = counts.sum()
    return tuple((counts / total).tolist()) if total else (0.0,) * len(counts)
