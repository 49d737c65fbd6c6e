"""The gates between a fitted candidate and a published version: figures in, verdict and words out.

Each gate is a pure function. `pass` alone lets a candidate through: `inconclusive` (too little
evidence either way) refuses it as `fail` does, but says that more data may change it. A refusal
tells every gate that did not pass. Gates that need the final graph (parity, latency) are not asked
where one before them has refused: fitting again and converting would cost more than all the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from trimtab.registry.manifest import Signature, TensorSpec

from .latency import BATCH, Latency
from .parity import Parity
from .recipe import Recipe
from .scores import PairedDifference
from .segments import ROWS, Segment

_SLOWER = 2.0  # times the champion's latency, from which on a candidate is too slow …
# … unless it is below this anyway: a call over the network takes longer than the model then.
_FAST_ALONE_US = 100.0
_FAST_BATCHED_US = 20.0


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict, why in one sentence, and the figures it rests on."""

    name: str
    verdict: Verdict
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    # What to say where the same inputs must give the same bytes; "": the reason and the figures.
    repeatable: str = ""

    def repeated(self) -> "GateResult":
        """Without what a second run would measure otherwise."""
        return GateResult(self.name, self.verdict, self.repeatable) if self.repeatable else self

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "figures": dict(self.figures),
        }


def refusal(gates: Iterable[GateResult]) -> str:
    """Every gate that refuses the candidate and why; "" where all of them passed."""
    against = [gate for gate in gates if gate.verdict is not Verdict.PASS]
    return "; ".join(f"{gate.name}: {gate.reason}" for gate in against)


def schema_gate(recipe: Recipe, candidate: Signature, champion: Signature | None) -> GateResult:
    """Whether clients of the champion can go on unchanged: same inputs, outputs and classes."""
    if champion is None:
        return GateResult("schema", Verdict.PASS, "there is no champion to be compatible with")
    change = _change("input", candidate.inputs, champion.inputs)
    change = change or _change("output", candidate.outputs, champion.outputs)
    if change is None:
        return GateResult("schema", Verdict.PASS, "inputs and outputs are the champion's")
    if recipe.schema_change == "allow":
        return GateResult("schema", Verdict.PASS, f"{change}; schema_change allows it")
    reason = f'{change}; schema_change = "allow" in the recipe would take it'
    return GateResult("schema", Verdict.FAIL, reason)


def confidence_after(refusals: int) -> float:
    """How sure the comparison must be if the champion has withstood so many candidates.

    Each further one is a further chance to look better by luck, so they share the 5 % of one:
    1/2 of it, 1/6, 1/12 …, which is all of it in the end. However often a champion is challenged,
    one that is no better takes its place with a probability of 2.5 % at most.
    """
    return 1 - 0.05 / ((refusals + 1) * (refusals + 2))


def comparison_gate(
    recipe: Recipe, rows: int, difference: PairedDifference | None, refusals: int = 0
) -> GateResult:
    """Whether the candidate is better than the champion on labelled rows that neither learned.

    `difference` is None where there were too few rows to compute it; its interval is to be one of
    `confidence_after(refusals)`.
    """
    metric = recipe.metric
    if difference is None or rows < recipe.min_holdout_rows:
        reason = (
            f"{rows:,} labelled rows are newer than those the champion learned, "
            f"and min_holdout_rows asks for {recipe.min_holdout_rows:,} to compare the two on"
        )
        return GateResult("champion", Verdict.INCONCLUSIVE, reason, {"rows": float(rows)})
    figures = {
        "rows": float(rows),
        "champion": difference.first,
        "candidate": difference.second,
        "improvement": difference.improvement,
        "low": difference.low,
        "high": difference.high,
        "refusals": float(refusals),
        "confidence": confidence_after(refusals),
    }
    shown = (
        f"{metric} {difference.second:.4g} against the champion's {difference.first:.4g} "
        f"on {rows:,} newer rows (improvement {difference.improvement:+.3g}, "
        f"{_percent(confidence_after(refusals))} interval {difference.low:+.3g} to "
        f"{difference.high:+.3g}{_after(refusals)})"
    )
    if not difference.low <= difference.high:  # NaN
        reason = f"{metric} is not defined on the {rows:,} newest labelled rows"
        return GateResult("champion", Verdict.INCONCLUSIVE, reason, {"rows": float(rows)})
    if recipe.gate == "not_worse":
        allowed = -recipe.tolerance * abs(difference.first)
        figures["allowed"] = allowed
        if difference.low >= allowed:
            return GateResult("champion", Verdict.PASS, f"not worse: {shown}", figures)
        if difference.high < allowed:
            return GateResult("champion", Verdict.FAIL, f"worse: {shown}", figures)
        return GateResult("champion", Verdict.INCONCLUSIVE, f"may be worse: {shown}", figures)
    if difference.low > 0:
        return GateResult("champion", Verdict.PASS, f"better: {shown}", figures)
    if difference.improvement <= 0:
        return GateResult("champion", Verdict.FAIL, f"not better: {shown}", figures)
    return GateResult("champion", Verdict.INCONCLUSIVE, f"not surely better: {shown}", figures)


def _percent(confidence: float) -> str:
    """With two digits of what is missing to certainty: 97.5 %, 99.17 %, 99.955 %."""
    digits = -math.floor(math.log10(1 - confidence)) - 1
    return f"{confidence * 100:.{digits}f} %"


def _after(refusals: int) -> str:
    if not refusals:
        return ""
    return f", after {refusals} refusal{'s' if refusals > 1 else ''}"


def no_comparison(reason: str) -> GateResult:
    """The comparison's result where there is nothing to compare with."""
    return GateResult("champion", Verdict.PASS, reason)


def baseline_gate(
    recipe: Recipe, rows: int, difference: PairedDifference, last_known: float | None
) -> GateResult:
    """Whether the candidate is better than the best answer that looks at no column.

    `difference` is that to the constant guess, which comes first; `last_known` the metric of
    answering with the label of the row before, had it been known at once: told, not asked for.
    """
    figures = {
        "rows": float(rows),
        "baseline": difference.first,
        "candidate": difference.second,
        "improvement": difference.improvement,
        "low": difference.low,
        "high": difference.high,
    }
    if last_known is not None:
        figures["last_known"] = last_known
    metric = recipe.metric
    if not difference.low <= difference.high:  # NaN
        text, verdict = f"{metric} is not defined on the {rows:,} newest rows", Verdict.INCONCLUSIVE
        figures = {"rows": float(rows)}
    else:
        shown = (
            f"{metric} {difference.second:.4g} against {difference.first:.4g} of the best constant "
            f"guess (95 % interval of the improvement {difference.low:+.3g} to "
            f"{difference.high:+.3g})"
        )
        if difference.low > 0:
            text, verdict = f"better: {shown}", Verdict.PASS
        elif difference.improvement <= 0:
            text, verdict = f"not better: {shown}", Verdict.FAIL
        else:
            text, verdict = f"not surely better: {shown}", Verdict.INCONCLUSIVE
    if verdict is not Verdict.PASS and recipe.baseline == "report":
        return GateResult(
            "baseline", Verdict.PASS, f"{text}; the recipe only wants it told", figures
        )
    if verdict is not Verdict.PASS:
        text += '; baseline = "report" in the recipe would take it'
    return GateResult("baseline", verdict, text, figures)


def segment_gate(recipe: Recipe, segments: Sequence[Segment]) -> GateResult:
    """Whether the candidate is surely worse than the champion in some segment, and by too much."""
    compared = [
        (segment, segment.difference)
        for segment in segments
        if segment.difference is not None and segment.difference.low <= segment.difference.high
    ]
    if not compared:
        told = "there is no champion's answer to compare with"
        if not segments:
            told = f"no segment has {ROWS} of the newest rows"
        return GateResult("segments", Verdict.PASS, told, {"segments": float(len(segments))})
    metric = recipe.metric
    worst, difference = min(compared, key=lambda item: item[1].improvement / _size(item[1]))
    figures = {
        "segments": float(len(compared)),
        "rows": float(worst.rows),
        "champion": difference.first,
        "candidate": difference.second,
        "improvement": difference.improvement,
        "low": difference.low,
        "high": difference.high,
        "tolerance": recipe.segment_tolerance,
    }
    bad = [
        (segment, found)
        for segment, found in compared
        if found.high < -recipe.segment_tolerance * abs(found.first)
    ]
    if bad:
        figures["worse"] = float(len(bad))
        told = ", ".join(
            f"{segment.name} ({metric} {found.second:.4g} against {found.first:.4g} on "
            f"{segment.rows:,} rows)"
            for segment, found in bad[:3]
        )
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        reason = f"surely worse than the champion where {told}{more}"
        return GateResult("segments", Verdict.FAIL, reason, figures)
    told = "better" if difference.improvement > 0 else "worse, and not surely by too much"
    reason = (
        f"in none of {len(compared)} segments surely worse than the champion; the least good one, "
        f"{worst.name}, is {told} ({metric} {difference.second:.4g} against "
        f"{difference.first:.4g} on {worst.rows:,} rows)"
    )
    return GateResult("segments", Verdict.PASS, reason, figures)


def latency_gate(recipe: Recipe, candidate: Latency, champion: Latency | None) -> GateResult:
    """Whether the graph answers within the recipe's budget, or about as fast as the champion's."""
    figures = {"alone_us": candidate.alone_us, "batched_us": candidate.batched_us}
    shown = f"{candidate.alone_us:.3g} µs for a row alone, {candidate.batched_us:.3g} in {BATCH}"
    budget = recipe.latency_budget_us
    if budget:
        figures["budget_us"] = budget
        told = f"latency_budget_us is {budget:g}"
        slow = not candidate.alone_us <= budget
    elif champion is None:
        told = "there is no budget and no champion to compare with"
        slow = False
    else:
        figures |= {
            "champion_alone_us": champion.alone_us,
            "champion_batched_us": champion.batched_us,
        }
        told = (
            f"the champion takes {champion.alone_us:.3g} and {champion.batched_us:.3g}; up to "
            f"{_SLOWER:g} times that is taken, or {_FAST_ALONE_US:g} and {_FAST_BATCHED_US:g} µs"
        )
        slow = not (
            candidate.alone_us <= max(_FAST_ALONE_US, _SLOWER * champion.alone_us)
            and candidate.batched_us <= max(_FAST_BATCHED_US, _SLOWER * champion.batched_us)
        )
    if slow:
        return GateResult("latency", Verdict.FAIL, f"too slow: {shown}; {told}", figures)
    limit = "within the budget" if budget else f"no more than {_SLOWER:g} times the champion's"
    if champion is None and not budget:
        limit = told
    return GateResult(
        "latency",
        Verdict.PASS,
        f"{shown}; {told}",
        figures,
        repeatable=f"{limit}; what was measured is in manifest.json",
    )


def _size(difference: PairedDifference) -> float:
    return max(abs(difference.first), 1e-30)


def parity_gate(parity: Parity) -> GateResult:
    """Whether ONNX and scikit-learn agree on every row."""
    figures = {
        "rows": float(parity.rows),
        "worst": parity.worst,
        "tolerance": parity.tolerance,
        "wrong_labels": float(parity.wrong_labels),
    }
    if parity.wrong_labels:
        reason = (
            f"the ONNX model gives another class than scikit-learn in {parity.wrong_labels:,} "
            f"of {parity.rows:,} rows"
        )
        return GateResult("parity", Verdict.FAIL, reason + _worst(parity), figures)
    if not parity.worst <= parity.tolerance:
        reason = (
            f"the ONNX model differs from scikit-learn by up to {parity.worst:.3g}, "
            f"over {parity.rows:,} rows; {parity.tolerance:.3g} is allowed"
        )
        return GateResult("parity", Verdict.FAIL, reason + _worst(parity), figures)
    reason = (
        f"ONNX and scikit-learn agree on {parity.rows:,} rows to within {parity.worst:.2g} "
        f"({parity.tolerance:.0e} is allowed)"
    )
    return GateResult("parity", Verdict.PASS, reason, figures)


def _worst(parity: Parity) -> str:
    return "; the worst: " + " | ".join(parity.worst_rows) if parity.worst_rows else ""


def _change(
    kind: str, candidate: tuple[TensorSpec, ...], champion: tuple[TensorSpec, ...]
) -> str | None:
    """The first difference in words, or None."""
    new, old = ({spec.name: spec for spec in specs} for specs in (candidate, champion))
    for name in old:
        if name not in new:
            return f"the champion's {kind} {name!r} is gone"
    for name, spec in new.items():
        if name not in old:
            return f"the {kind} {name!r} is new"
        before = old[name]
        if spec.datatype != before.datatype:
            return f"the {kind} {name!r} is {spec.datatype}, the champion's {before.datatype}"
        if spec.columns != before.columns and (spec.columns or before.columns):
            gone = [column for column in before.columns if column not in spec.columns]
            added = [column for column in spec.columns if column not in before.columns]
            parts = [f"without {', '.join(gone)}"] if gone else []
            parts += [f"with the new {', '.join(added)}"] if added else []
            how = " and ".join(parts) or "in another order"
            return f"the {kind} {name!r} has the champion's columns {how}"
        if spec.shape != before.shape:
            return f"the {kind} {name!r} has shape {spec.shape}, the champion's {before.shape}"
    return None
