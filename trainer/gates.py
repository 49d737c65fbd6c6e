"""The gates between a fitted candidate and a published version: figures in, verdict and words out.

Each gate is a pure function. `pass` alone lets a candidate through: `inconclusive` (too little
evidence either way) refuses it as `fail` does, but says that more data may change it. The first
gate that does not pass decides; what it would have cost to run the later ones is not spent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from trimtab.registry.manifest import Signature, TensorSpec

from .parity import Parity
from .recipe import Recipe
from .scores import PairedDifference


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

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "figures": dict(self.figures),
        }


def refusal(gates: Iterable[GateResult]) -> GateResult | None:
    """The gate that refuses the candidate, or None where all of them passed."""
    return next((gate for gate in gates if gate.verdict is not Verdict.PASS), None)


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


def comparison_gate(recipe: Recipe, rows: int, difference: PairedDifference | None) -> GateResult:
    """Whether the candidate is better than the champion on labelled rows that neither learned.

    `difference` is None where there were too few rows to compute it.
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
    }
    shown = (
        f"{metric} {difference.second:.4g} against the champion's {difference.first:.4g} "
        f"on {rows:,} newer rows (improvement {difference.improvement:+.3g}, "
        f"95 % interval {difference.low:+.3g} to {difference.high:+.3g})"
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


def no_comparison(reason: str) -> GateResult:
    """The comparison's result where there is nothing to compare with."""
    return GateResult("champion", Verdict.PASS, reason)


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
        return GateResult("parity", Verdict.FAIL, reason, figures)
    if not parity.worst <= parity.tolerance:
        reason = (
            f"the ONNX model differs from scikit-learn by up to {parity.worst:.3g}, "
            f"over {parity.rows:,} rows; {parity.tolerance:.3g} is allowed"
        )
        return GateResult("parity", Verdict.FAIL, reason, figures)
    reason = (
        f"ONNX and scikit-learn agree on {parity.rows:,} rows to within {parity.worst:.2g} "
        f"({parity.tolerance:.0e} is allowed)"
    )
    return GateResult("parity", Verdict.PASS, reason, figures)


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
