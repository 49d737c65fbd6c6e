"""A shadow, a canary or a bake under way: the two versions, what compares them, and how far it is.

Made by `begin`, which holds both versions and refuses those that cannot be given the same rows;
`end` lets go of everything. What follows from a look is the roll-out desk's. The control loop's
thread alone, except `mirror` and `comparison`, which guard themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab._native.reference import ReferenceFormatError, ReferenceProfile
from trimtab.registry.manifest import Signature

from ..config import PromotionConfig
from ..inference.tensor import Tensor
from .comparison import Comparison, Figures
from .lifecycle import Held, LoadedVersion
from .mirror import Mirror
from .rollout_past import Begun
from .status import Phase, RolloutStatus
from .verdict import Limits, Verdict

_MIN_CAPACITY = 10_000  # rows that labels are waited for at least


class NotComparableError(Exception):
    """The two versions cannot be given the same rows; the message says why."""


class RolloutPhase:
    """See the module. `begun.against` answers, in a bake `begun.version` does."""

    def __init__(
        self,
        begun: Begun,
        evidence: Mapping[str, Any],
        comparison: Comparison,
        mirror: Mirror,
        held: Sequence[Held],
        now_ms: int,
    ) -> None:
        self.begun = begun
        self.evidence = evidence  # for the promotion
        self.comparison = comparison
        self.mirror = mirror
        self.figures = Figures()  # of the last look
        self.step = 0  # of a canary
        self._held = held
        self._since_ms = self._step_since_ms = now_ms

    def __str__(self) -> str:
        return f"the {self.begun.phase} of version {self.begun.version}"

    @classmethod
    def begin(
        cls,
        begun: Begun,
        evidence: Mapping[str, Any],
        hold: Callable[[int], Held],
        config: PromotionConfig,
        now_ms: int,
        on_empty: Callable[[], None],
    ) -> "RolloutPhase":
        """Raises NotComparableError, or whatever `hold` does; nothing is held then."""
        held: list[Held] = []
        try:
            for number in (begun.version, begun.against):
                held.append(hold(number))
            version, against = (each.servable for each in held)
            if difference := _inputs_differ(version.signature, against.signature):
                raise NotComparableError(difference)
        except BaseException:
            for each in held:
                each.release()
            raise
        comparison = Comparison(
            version.signature,
            against.signature,
            _reference(against) or _reference(version),
            tolerance=config.agreement_tolerance,
            capacity=max(config.shadow_rows, config.bake_rows, _MIN_CAPACITY),
        )
        mirror = Mirror(
            (begun.version, _HeldRunner(held[0])),
            (begun.against, _HeldRunner(held[1])),
            comparison,
            cpu=config.mirror_cpu,
            max_rows=config.mirror_rows,
            max_bytes=config.mirror_mb * 1024 * 1024,
            on_empty=on_empty,
        )
        return cls(begun, evidence, comparison, mirror, held, now_ms)

    def end(self) -> None:
        """Nothing is computed any more, and no version held."""
        self.mirror.stop()
        for each in self._held:
            each.release()

    @property
    def name(self) -> Phase:
        phase: Phase = self.begun.phase  # type: ignore[assignment]  # rollout_past checked it
        return phase

    def seen(self, now_ms: int) -> None:
        """The loop's clock; it was the wall's before event time came."""
        if now_ms < self._since_ms:
            self._since_ms = self._step_since_ms = now_ms

    def next_step(self, now_ms: int) -> None:
        self.step += 1
        self._step_since_ms = now_ms

    def has_more_steps(self, config: PromotionConfig) -> bool:
        return self.name == "canary" and self.step + 1 < len(config.canary_steps)

    def share(self, config: PromotionConfig) -> float:
        """Of the requests that a canary answers now."""
        steps = config.canary_steps
        return steps[min(self.step, len(steps) - 1)] if self.name == "canary" else 0.0

    def deadline_ms(self, config: PromotionConfig) -> int:
        seconds = {"shadow": config.shadow_s, "canary": config.canary_s, "bake": config.bake_s}
        return self._step_since_ms + round(seconds[self.name] * 1000)

    def limits(self, config: PromotionConfig, now_ms: int, *, any_labels: bool) -> Limits:
        """What it still takes. `any_labels`: whether the model has ever got one."""
        rows, answered = config.bake_rows, 0
        if self.name == "shadow":
            rows = config.shadow_rows
        elif self.name == "canary":
            rows = answered = config.canary_rows * (self.step + 1)
        return Limits(
            rows=rows,
            answered=answered,
            out_of_time=now_ms >= self.deadline_ms(config),
            awaits_labels=(
                config.labels == "if_any" and any_labels and not self.has_more_steps(config)
            ),
        )

    def status(
        self, model: str, config: PromotionConfig, limits: Limits, verdict: Verdict | None
    ) -> RolloutStatus:
        """As of the last look."""
        begun, figures = self.begun, self.figures
        labels, worst = figures.labels, figures.worst
        return RolloutStatus(
            model=model,
            phase=self.name,
            version=begun.version,
            against=begun.against,
            since_ms=self._since_ms,
            deadline_ms=self.deadline_ms(config),
            share=self.share(config),
            rows_wanted=limits.rows,
            rows_compared=figures.rows,
            rows_dropped=self.mirror.stats.dropped,
            requests_failed={
                begun.version: figures.failed_version,
                begun.against: figures.failed_against,
            },
            latency_ratio=figures.latency.ratio,
            agreement=figures.agreement,
            prediction_psi=worst.psi,
            psi_output=worst.name,
            metric=labels.metric,
            improvement=labels.improvement,
            low=labels.low,
            high=labels.high,
            labelled_rows=labels.rows,
            verdict=verdict.outcome if verdict is not None else "",
            reason=verdict.reason if verdict is not None else begun.why,
        )

    def announcement(self, config: PromotionConfig, limits: Limits) -> str:
        """What happens from now on, in a sentence."""
        version, against = self.begun.version, self.begun.against
        if self.name == "bake":
            who = "by itself" if self.begun.automatic else "by a person"
            return (
                f"version {version}, which was promoted {who}, is compared with version {against} "
                f"on {limits.rows:,} rows, for {_span(config.bake_s)} at most"
            )
        if self.name == "shadow":
            return (
                f"version {version} shadows version {against} on {limits.rows:,} rows, "
                f"for {_span(config.shadow_s)} at most"
            )
        steps = ", ".join(map(percent, config.canary_steps))
        return (
            f"version {version} answers {percent(self.share(config))} of the requests in place of "
            f"version {against} (steps {steps}; {config.canary_rows:,} rows and "
            f"{_span(config.canary_s)} each at most)"
        )


class _HeldRunner:
    """A held version, which may be loaded anew meanwhile: each run is the loaded one's."""

    def __init__(self, held: Held) -> None:
        self._held = held

    @property
    def batchable(self) -> bool:
        return self._held.servable.batchable

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._held.servable.output_names

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        return self._held.servable.run(inputs, outputs)


def percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _reference(version: LoadedVersion) -> ReferenceProfile | None:
    """None: it has none, or none that can be read, which was told as it was loaded."""
    path = version.reference_path
    if path is None:
        return None
    try:
        return ReferenceProfile.load(path)
    except (ReferenceFormatError, OSError):
        return None


def _inputs_differ(one: Signature, other: Signature) -> str:
    """Why they cannot be given the same tensors; empty: they can."""
    inputs = [
        sorted((spec.name, spec.datatype, spec.shape[1:], spec.columns) for spec in each.inputs)
        for each in (one, other)
    ]
    return "" if inputs[0] == inputs[1] else "they take other inputs"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:g} s"
