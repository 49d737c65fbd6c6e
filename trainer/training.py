"""One training, from the recipe to a published version or a refusal.

    read → lint → fit on the older part → compare with the champion and with a constant guess on the
         newest → fit on all of it → export → parity, latency → reference profile → card → publish

The candidate that is judged has not learned the rows that it is judged on (holdout.py), and neither
has the champion: rows up to its newest training row are never held out. What is published is fitted
again on the whole window (`refit`), since the newest rows are worth the most: on a year of flights
that was an error of 7.27 minutes instead of 7.47 (docs/training.md).

Nothing is published before every gate has passed, and publishing is one rename at the very end: a
training that is killed anywhere leaves no version. One process trains a model at a time.
"""

import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.manifest import Signature
from trimtab.registry.signing import SigningKey

from .card_plots import PlotFacts, card_png
from .champion import Champion, load_champion
from .data_quality import Finding, check, reference_of
from .dataset import Dataset, tensors
from .errors import TrainingError
from .estimators import make_pipeline
from .export import OnnxModel, export, signature_of
from .export_linter import require_exportable
from .fit import classes_of, fit, trees_of
from .gates import (
    GateResult,
    Verdict,
    baseline_gate,
    comparison_gate,
    confidence_after,
    latency_gate,
    no_comparison,
    parity_gate,
    refusal,
    schema_gate,
    segment_gate,
)
from .golden import golden_rows, save_golden
from .holdout import Holdout, hold_out, judged
from .importance import importances
from .latency import Latency, measure
from .model_card import CARD_NAME, PLOTS_NAME, CardFacts, card_markdown
from .parity import check_parity, parity_rows
from .progress import Progress, plain
from .recipe import METRICS, Recipe
from .reference_profile import losses_of, outputs_of, reference_profile
from .scores import paired_difference, score
from .segments import Segment, segments_of
from .trainer_lock import trainer_lock
from .window_drift import ColumnDrift, window_drift

_LIBRARIES = ("trimtab", "numpy", "onnx", "onnxruntime", "polars", "scikit-learn", "skl2onnx")


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, and who wants it why."""

    models_dir: Path
    model: str
    actor: str = "trainer"
    reason: str = ""
    trigger: Mapping[str, Any] = field(default_factory=dict)
    event_time_ms: int | None = None  # now, also in the history; None: by the wall clock
    label_maturity_s: float = 0.0  # age from which a served row is trained on
    record: bool = False  # enter a refusal or a failure into the history
    signing_key: Path | None = None  # of what is published; None: it is not signed


@dataclass(frozen=True)
class TrainingResult:
    """How it ended. A refused candidate has no version."""

    outcome: Literal["published", "refused", "failed"]
    reason: str
    version: int | None = None
    gates: tuple[GateResult, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    quality: tuple[Finding, ...] = ()  # of broken data: what was found

    def to_dict(self) -> dict[str, Any]:
        document = {
            "outcome": self.outcome,
            "version": self.version,
            "reason": self.reason,
            "gates": [gate.to_dict() for gate in self.gates],
            "metrics": dict(self.metrics),
            "rows": self.rows,
            "quality": [finding.to_dict() for finding in self.quality],
        }
        return {name: plain(value) for name, value in document.items()}


def train(request: TrainingRequest, progress: Progress) -> TrainingResult:
    """Trains once. TrainingError (one sentence) and RegistryError leave nothing published."""
    registry = Registry(request.models_dir)
    directory = registry.model(request.model)
    if not directory.path.is_dir():
        raise TrainingError(f"{directory.path} does not exist, so there is nothing to train")
    recipe = Recipe.load(directory.recipe_path)
    # Before the work: a key that cannot be read shall not cost a training.
    key = SigningKey.load(request.signing_key) if request.signing_key else None
    data = registry.data_path(request.model)
    with trainer_lock(data, request.model):
        result = _Training(request, directory, data, recipe, progress, key).run()
        if request.record and result.outcome == "refused":
            directory.record(
                "refused",
                actor=request.actor,
                reason=result.reason,
                evidence=result.to_dict(),
                event_time_ms=request.event_time_ms,
            )
        return result


def record_failure(request: TrainingRequest, reason: str) -> None:
    """Enters a failed training into the history, if the request asks for it and there is one."""
    directory = Registry(request.models_dir).model(request.model)
    if request.record and directory.path.is_dir():
        directory.record(
            "training_failed",
            actor=request.actor,
            reason=reason,
            event_time_ms=request.event_time_ms,
        )


class _Training:
    """The state of one training while it runs."""

    def __init__(
        self,
        request: TrainingRequest,
        directory: ModelDirectory,
        data: Path,
        recipe: Recipe,
        progress: Progress,
        key: SigningKey | None,
    ) -> None:
        self._key = key
        self._request = request
        self._directory = directory
        self._data = data
        self._recipe = recipe
        self._progress = progress
        self._gates: list[GateResult] = []
        self._metrics: dict[str, float] = {}
        self._quality: tuple[Finding, ...] = ()
        self._segments: tuple[Segment, ...] = ()
        self._latency: dict[str, Latency] = {}  # of the candidate and, if it is known, the champion

    def run(self) -> TrainingResult:
        recipe = self._recipe
        self._progress.stage("read", "reading files and the traffic log")
        window = Dataset.read(recipe, self._data, self._mature_until_ms())
        champion, no_champion = load_champion(self._directory)
        self._quality = self._checked(window, champion)
        split = hold_out(recipe, window, champion.learned_until_ms if champion else None)
        classes = window.classes()
        signature = signature_of(recipe, classes)

        require_exportable(recipe, make_pipeline(recipe), window)
        self._progress.stage("fit", f"fitting to {len(split.older):,} of {len(window):,} rows")
        candidate = judged(recipe, split, classes)
        prediction = candidate.prediction
        for metric in METRICS[recipe.task]:
            found = score(metric, split.newest.target(), prediction, classes)
            self._metrics[metric] = found

        self._progress.stage("compare", f"comparing on the {len(split.newest):,} newest rows")
        opponent = self._judge(champion, no_champion, split, signature, prediction, classes)
        if why := refusal(self._gates):
            return self._refused(why, window)

        if recipe.refit:
            self._progress.stage("refit", f"fitting to all {len(window):,} rows")
            final = fit(recipe, window, trees=trees_of(candidate.last))
        else:
            final = candidate.first

        self._progress.stage("export", "converting to ONNX")
        if not recipe.refit and classes_of(final) != classes:
            raise TrainingError(
                "a class occurs only in the newest rows, which refit = false leaves out: "
                "set refit = true"
            )
        graph = export(recipe, final)
        model = OnnxModel(graph)

        self._progress.stage("parity", "comparing ONNX with scikit-learn")
        rows = parity_rows(recipe, window)
        self._gates.append(parity_gate(check_parity(recipe, final, model, rows)))
        inputs = tensors(recipe, rows)
        self._gates.append(self._latency_gate(model, signature, champion, inputs))
        if why := refusal(self._gates):
            return self._refused(why, window)

        self._progress.stage("reference", "counting the reference profile")
        weights = importances(recipe, candidate.first, split.newest, classes)
        outputs = outputs_of(signature, prediction, classes)
        losses = losses_of(split.newest.target(), prediction, classes)
        profile = reference_profile(signature, window, outputs, weights, losses)
        drift = window_drift(recipe, window)
        constant = _constant_guess(recipe, split, classes)
        report = self._report(split, weights, drift, constant, classes)
        lineage = self._lineage(window, split, champion)

        self._progress.stage("card", "writing the model card")
        card = card_markdown(
            CardFacts(
                model=self._request.model,
                recipe=recipe,
                gates=self._gates,
                metrics=self._metrics,
                constant_metric=report["constant_metric"],
                lineage=lineage,
                reason=self._request.reason,
                segments=self._segments,
                importances=weights,
                drift=drift,
            )
        )
        truth = split.newest.target()
        plots = card_png(
            recipe, PlotFacts(truth, prediction, constant, opponent, classes, drift, weights)
        )

        self._progress.stage("publish", "publishing")
        with self._directory.stage() as staged:
            (staged.path / "model.onnx").write_bytes(graph)
            profile.save(staged.path / "reference.npz")
            save_golden(staged.path / "golden.npz", golden_rows(model, inputs))
            (staged.path / "report.json").write_text(json.dumps(plain(report), indent=2) + "\n")
            (staged.path / CARD_NAME).write_text(card, encoding="utf-8")
            (staged.path / PLOTS_NAME).write_bytes(plots)
            version = staged.publish(
                signature=signature,
                task=recipe.task,
                lineage=lineage,
                metrics=self._metrics,
                actor=self._request.actor,
                reason=self._request.reason,
                event_time_ms=self._request.event_time_ms,
                signing_key=self._key,
            )
        told = ", ".join(f"{name} {value:.4g}" for name, value in self._told_metrics().items())
        reason = f"version {version}, trained on {len(window):,} rows: {told}; "
        reason += next(gate.reason for gate in self._gates if gate.name == "champion")
        return TrainingResult(
            "published", reason, version, tuple(self._gates), self._metrics, len(window)
        )

    def _checked(self, window: Dataset, champion: Champion | None) -> tuple[Finding, ...]:
        """What is to be said of the data; DataQualityError where they are broken."""
        if champion is None:
            return check(window, None)
        return check(window, reference_of(self._directory.version_path(champion.version)))

    def _mature_until_ms(self) -> int | None:
        """Time of the youngest prediction whose label counts as final; None: any."""
        request = self._request
        if not request.label_maturity_s:
            return None
        now_ms = request.event_time_ms
        if now_ms is None:
            now_ms = time.time_ns() // 1_000_000
        return now_ms - round(request.label_maturity_s * 1000)

    def _judge(
        self,
        champion: Champion | None,
        no_champion: str,
        split: Holdout,
        signature: Signature,
        prediction: NDArray[Any],
        classes: Sequence[Any],
    ) -> NDArray[Any] | None:
        """Asks every gate that needs no more than predictions; gives the champion's, if any."""
        recipe = self._recipe
        truth = split.newest.target()
        theirs = champion.manifest.signature if champion is not None else None
        schema = schema_gate(recipe, signature, theirs)
        self._gates.append(schema)
        opponent = None
        if champion is None:
            self._gates.append(no_comparison(no_champion))
        elif theirs == signature:
            opponent = self._compare(champion, split, prediction, classes)
        elif schema.verdict is Verdict.PASS:
            self._gates.append(no_comparison("the champion takes or gives something else"))
        constant = _constant_guess(recipe, split, classes)
        difference = paired_difference(recipe.metric, truth, constant, prediction, classes)
        last = _last_known_score(recipe, split)
        self._gates.append(baseline_gate(recipe, len(truth), difference, last))
        self._segments = segments_of(recipe, split.newest, prediction, opponent, classes)
        self._gates.append(segment_gate(recipe, self._segments))
        return opponent

    def _compare(
        self, champion: Champion, split: Holdout, prediction: NDArray[Any], classes: Sequence[Any]
    ) -> NDArray[Any] | None:
        recipe = self._recipe
        truth = split.newest.target()
        if split.unseen:
            opponent = champion.predict(split.newest)
        elif (others := _other_recipe(recipe, champion)) is not None:
            # No rows are new, but the recipe is: then the recipes compete on the same rows.
            opponent = judged(others, split, classes).prediction
        else:
            until = champion.learned_until_ms
            newer = int(np.sum(split.newest.times() > until)) if until is not None else 0
            self._gates.append(comparison_gate(recipe, newer, None))
            return None
        difference = paired_difference(
            recipe.metric,
            truth,
            opponent,
            prediction,
            classes,
            confidence=confidence_after(champion.withstood),
        )
        self._metrics[f"champion_{recipe.metric}"] = difference.first
        self._gates.append(comparison_gate(recipe, len(truth), difference, champion.withstood))
        return opponent

    def _latency_gate(
        self,
        model: OnnxModel,
        signature: Signature,
        champion: Champion | None,
        inputs: dict[str, NDArray[Any]],
    ) -> GateResult:
        models = {"candidate": model}
        if champion is not None and champion.manifest.signature.inputs == signature.inputs:
            models["champion"] = champion.model
        self._latency = dict(zip(models, measure(list(models.values()), inputs), strict=True))
        return latency_gate(self._recipe, self._latency["candidate"], self._latency.get("champion"))

    def _refused(self, why: str, window: Dataset) -> TrainingResult:
        return TrainingResult("refused", why, None, tuple(self._gates), self._metrics, len(window))

    def _told_metrics(self) -> dict[str, float]:
        return {name: self._metrics[name] for name in METRICS[self._recipe.task]}

    def _report(
        self,
        split: Holdout,
        weights: Mapping[str, float],
        drift: Sequence[ColumnDrift],
        constant: NDArray[Any],
        classes: Sequence[Any],
    ) -> dict[str, Any]:
        recipe = self._recipe
        return {
            "gates": [gate.repeated().to_dict() for gate in self._gates],
            "data_quality": [finding.to_dict() for finding in self._quality],
            "metric": recipe.metric,
            "metrics": dict(self._metrics),
            "constant_metric": score(recipe.metric, split.newest.target(), constant, classes),
            "holdout_rows": len(split.newest),
            "importances": dict(weights),
            "segments": [
                {
                    "column": item.column,
                    "value": item.value,
                    "rows": item.rows,
                    recipe.metric: item.metric,
                    f"champion_{recipe.metric}": item.difference and item.difference.first,
                }
                for item in self._segments
            ],
            "window_drift": {item.column: item.psi for item in drift},
        }

    def _lineage(
        self, window: Dataset, split: Holdout, champion: Champion | None
    ) -> dict[str, Any]:
        return {
            "data": window.lineage(),
            "holdout": {
                "rows": len(split.newest),
                "time_from_ms": int(split.newest.times()[0]),
                "refitted": self._recipe.refit,
            },
            "recipe": self._recipe.to_dict(),
            "seed": self._recipe.seed,
            "trigger": dict(self._request.trigger),
            "champion": champion.version if champion is not None else 0,
            "latency_us": {name: asdict(found) for name, found in self._latency.items()},
            "python": platform.python_version(),
            "libraries": {name: _version_of(name) for name in _LIBRARIES},
        }


def _other_recipe(recipe: Recipe, champion: Champion) -> Recipe | None:
    """This recipe with the champion's model, if that is another one on the same rows, else None."""
    theirs = champion.recipe()
    if theirs is None or theirs.features != recipe.features or theirs.target != recipe.target:
        return None
    same = theirs.estimator == recipe.estimator and theirs.seed == recipe.seed
    if same or theirs.task != recipe.task:
        return None
    return replace(recipe, estimator=theirs.estimator, seed=theirs.seed)


def _constant_guess(recipe: Recipe, split: Holdout, classes: Sequence[Any]) -> NDArray[Any]:
    """The best prediction that looks at no column: what a model must at least beat."""
    older, rows = split.older.target(), len(split.newest)
    if not recipe.classification:
        centre = np.median(older) if recipe.metric == "mae" else np.mean(older)
        return np.full(rows, float(centre))
    shares = np.array([np.mean(older == value) for value in classes])
    return np.tile(shares, (rows, 1))


def _last_known_score(recipe: Recipe, split: Holdout) -> float | None:
    """The metric of repeating the label of the row before; None for classes."""
    if recipe.classification:
        return None
    truth = split.newest.target()
    before = np.concatenate([split.older.target()[-1:], truth[:-1]])
    return score(recipe.metric, truth, before)


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
