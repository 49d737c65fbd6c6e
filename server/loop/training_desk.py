"""Decides about one model's trainings and sees each one through: start, result, rolling of the log.

One process of the trainer's side runs per model at a time, a training or a rolling of the log, and
a training that is wanted meanwhile waits. Decisions are pure functions (trigger.decide,
after_training); here is what gives them their snapshot and carries out their answer.
Everything runs on the control loop's thread, except what says otherwise.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..config import TrainingConfig
from ..drift.drift_report import DRIFT, names
from ..drift.drift_state import COLLECTING
from ..errors import PreconditionError
from ..logs.label_log import LabelCounts
from ..rollout.after_training import RolloutDecision, after_training
from .loop_stats import TrainingStats
from .loop_tap import evidence_of
from .model_context import ACTOR, ModelContext
from .training_past import TrainingPast
from .training_run import TrainingProgress, TrainingResult, TrainingRun
from .trigger import TriggerDecision, TriggerSnapshot, decide

_log = logging.getLogger(__name__)

_ROLL_AT = 4  # finished files of a log that are worth a process
_END_S = 10.0  # that a child is given to end as the server stops
_FIRST_ROLL_RETRY_S, _MAX_ROLL_RETRY_S = 60.0, 3600.0


class Rollout(Protocol):
    """What becomes of versions that passed their gates, as RolloutDesk does it."""

    @property
    def failed_bakes(self) -> tuple[int, int | None]:
        """How many promotions in a row were taken back, and when the last one was."""

    def begin(
        self, version: int, reason: str, evidence: Mapping[str, Any], expected_revision: int
    ) -> None: ...


class Child(Protocol):
    """A process of the trainer's side, as TrainingRun is one."""

    def start(self) -> None: ...
    def kill(self, reason: str) -> None: ...
    def join(self, timeout_s: float | None = None) -> bool: ...


Spawn = Callable[..., Child]
"""Makes one, with TrainingRun's parameters."""


class TrainRequest:
    """An operator's wish for a training; `answer` is called once: its id, or why it cannot be."""

    def __init__(self, actor: str, reason: str, answer: Callable[[str | Exception], None]) -> None:
        self.actor = actor
        self.reason = reason
        self.answer = answer


class _Training:
    """The training that runs."""

    def __init__(self, training_id: str, reason: str, state: State) -> None:
        self.id = training_id
        self.reason = reason
        self.state = state  # of the registry, as it began
        self.run: Child
        self.where = ""

    def __str__(self) -> str:
        return f"{self.id}{self.where}"

    def progressed(self, progress: TrainingProgress) -> None:
        """On the run's thread."""
        self.where = f" ({progress.stage}, {progress.fraction:.0%})"


class TrainingDesk:
    """One model's trainings; see the module."""

    def __init__(self, context: ModelContext, rollout: Rollout, spawn: Spawn = TrainingRun) -> None:
        self._context = context
        self._rollout = rollout
        self._spawn = spawn
        self._past = TrainingPast()
        self._since_ms = context.now.ms
        self._requests: list[TrainRequest] = []
        self._training: _Training | None = None
        self._roll: Child | None = None
        self._roll_failures = 0
        self._roll_after = 0.0  # time.monotonic() before which no roll is tried again
        self._waiting: tuple[str, tuple[str, ...]] | None = None  # what was last told of
        self._blocked = False  # a decision waits for the roll to end
        self._stats = TrainingStats()  # replaced, never changed: read on any thread

    def __repr__(self) -> str:
        return f"TrainingDesk({self._context.name}, training={self._training}, {self._past})"

    @property
    def past(self) -> TrainingPast:
        return self._past

    @property
    def stats(self) -> TrainingStats:
        """On any thread."""
        return self._stats

    def open(self) -> None:
        """Takes up the past; a training that the last server left running is over."""
        self._past = TrainingPast.of(self._context.directory.history().entries)
        if self._past.open_ms is not None:
            known = {"training_id": self._past.open_id} if self._past.open_id else {}
            self._interrupt("the server ended while a training ran", known)

    def close(self) -> None:
        """Ends what runs; on the control loop's thread, or after it has ended."""
        training, roll = self._training, self._roll
        running = [training.run] if training is not None else []
        running += [roll] if roll is not None else []
        for child in running:
            child.kill("was ended: the server stopped")
        for child in running:
            child.join(_END_S)
        self._training = self._roll = None
        if training is not None:
            self._interrupt(
                f"{training.id} was ended: the server stopped", {"training_id": training.id}
            )
        for request in self._requests:
            request.answer(PreconditionError("the server stops"))
        self._requests.clear()

    @property
    def idle(self) -> bool:
        """Whether no child runs and nobody waits for one."""
        return self._training is None and self._roll is None and not self._requests

    def busy(self) -> str:
        """What is under way, in words; empty: nothing."""
        if self._training is not None:
            return f"training {self._training}"
        return "a training that waits for the log to be rolled" if self._blocked else ""

    def champion_changed(self) -> None:
        """What was waited for was about another version."""
        self._waiting = None

    def request(self, request: TrainRequest) -> None:
        """An operator wants a training."""
        name = self._context.name
        if self._training is not None:
            request.answer(
                PreconditionError(f"a training of model '{name}' is running: {self._training}")
            )
        elif not self._context.has_recipe():
            path = self._context.directory.recipe_path
            request.answer(PreconditionError(f"model '{name}' has no [recipe] in {path}"))
        else:
            self._requests.append(request)
            self.decide()

    def decide(self) -> None:
        """Asks the trigger how things stand now, and does what it says."""
        context = self._context
        watch = context.observed.champion
        now_ms = context.now.ms
        self._since_ms = min(self._since_ms, now_ms)  # it was the wall's before event time came
        labels = self._labels()
        failures = self._failures()
        quality = context.quality.quality
        snapshot = TriggerSnapshot(
            now_ms=now_ms,
            drift=watch.state.name if watch else COLLECTING,
            drift_features=names(watch.features, DRIFT) if watch else "",
            quality=quality.state if quality else COLLECTING,
            quality_reason=quality.reason if quality else "",
            broken=", ".join(sorted(watch.state.broken)) if watch else "",
            requested=self._requests[0].reason or "requested" if self._requests else "",
            running=self._training is not None or self._roll is not None,
            # Fewer than at the last training: the maturity was raised, or the clock set back.
            labels=max(0, labels.mature - self._past.labels_at_last),
            young_labels=labels.young,
            last_training_ms=self._past.last_training_ms,
            starts_ms=self._past.starts_ms,
            failures=failures[0],
            last_failure_ms=failures[1],
            watching_since_ms=self._since_ms,
        )
        decision = decide(snapshot, context.policy.trigger)
        state: State | None = None
        if decision.train:
            state, lacking, fault = self._readiness()
            if state is None and self._requests:
                requests, self._requests = self._requests, []
                for request in requests:
                    request.answer(PreconditionError(fault))
                self.decide()  # there may be another signal
                return
            if state is None:
                decision = TriggerDecision(
                    train=False,
                    waiting=True,
                    reason=f"{decision.reason}; {fault}",
                    signal=decision.signal,
                    lacking=(lacking,),
                )
        self._blocked = decision.lacking == ("running",) and self._training is None
        if state is not None:
            self._waiting = None
            self._train(decision, snapshot, state)
        elif not decision.waiting:
            self._waiting = None
        elif "running" not in decision.lacking:
            said = (decision.signal, decision.lacking)
            if self._waiting != said:
                self._waiting = said
                context.publish(
                    "waiting",
                    watch.version if watch else 0,
                    reason=decision.reason,
                    evidence={"signal": decision.signal, "lacking": list(decision.lacking)},
                )

    def roll_if_due(self) -> None:
        """Has the logs' finished files rolled into Parquet, when it is worth it."""
        context = self._context
        if self._training is not None or self._roll is not None:
            return
        if time.monotonic() < self._roll_after:
            return
        traffic = len(context.traffic.closed_files()) if context.traffic is not None else 0
        if max(traffic, len(context.labels.closed_files())) < _ROLL_AT:
            return
        self._roll = self._spawn(
            [
                "roll",
                f"--models-dir={context.directory.path.parent}",
                f"--model={context.name}",
                f"--keep-days={context.config.traffic.keep_days}",
                "--exit-with-parent",
            ],
            TrainingConfig(timeout_s=context.policy.training.timeout_s, nice=19),
            lambda result: context.post(self._rolled, result),
            needs_result=False,
        )
        self._roll.start()

    def _failures(self) -> tuple[int, int | None]:
        """In a row, and when the last one was: trainings, or promotions that were taken back."""
        bakes, last_bake_ms = self._rollout.failed_bakes
        past = self._past
        if bakes > past.failures:
            return bakes, last_bake_ms
        return past.failures, past.last_failure_ms

    def _labels(self) -> LabelCounts:
        """As the loop's clock shows; what is mature by it the trainer finds mature too."""
        context = self._context
        maturity_ms = round(context.policy.trigger.label_maturity_s * 1000)
        return context.labels.counts(context.now.ms, maturity_ms)

    def _readiness(self) -> tuple[State | None, str, str]:
        """The registry's state if a training can begin, else what is lacking, in a word and a sentence."""
        context = self._context
        if not context.has_recipe():
            path = context.directory.recipe_path
            return None, "recipe", f"model '{context.name}' has no [recipe] in {path}"
        try:
            return context.directory.state(), "", ""
        except (RegistryError, OSError) as error:
            return None, "state", f"model '{context.name}' cannot be trained: {error}"

    def _train(self, decision: TriggerDecision, snapshot: TriggerSnapshot, state: State) -> None:
        """Finishes the logs' files, then starts the trainer."""
        context = self._context
        requests, self._requests = self._requests, []
        actor = requests[0].actor if requests else ACTOR
        context.finish_logs()
        watch = context.observed.champion
        labels = self._labels().mature
        training_id = f"{context.name}-{self._past.started + 1}"
        self._past = self._past.start(context.now.ms, labels, training_id)
        training = _Training(training_id, decision.reason, state)
        trigger = {
            "training_id": training.id,
            "signal": decision.signal,
            "reason": decision.reason,
            "labels": snapshot.labels,
            "labels_total": labels,
            "champion": state.champion,
            "revision": state.revision,
            "drift": evidence_of(watch.features) if watch else [],
            "quality": quality.evidence() if (quality := context.quality.quality) else {},
        }
        context.publish(
            "training_started", actor=actor, reason=decision.reason, evidence=trigger, record=True
        )
        self._training = training
        self._stats = replace(self._stats, started=self._stats.started + 1, running=True)
        training.run = self._spawn(
            [
                "train",
                f"--models-dir={context.directory.path.parent}",
                f"--model={context.name}",
                f"--actor={actor}",
                f"--reason={decision.reason}",
                f"--trigger={json.dumps(trigger)}",
                f"--event-time-ms={context.now.ms}",
                f"--label-maturity-s={context.policy.trigger.label_maturity_s}",
                f"--threads={context.policy.training.threads}",
                *([f"--signing-key={key}"] if (key := context.config.registry.signing_key) else []),
                "--progress=json",
                "--exit-with-parent",
            ],
            context.policy.training,
            lambda result: context.post(self._trained, training, result),
            training.progressed,
        )
        training.run.start()
        for request in requests:
            request.answer(training.id)

    def _trained(self, training: _Training, result: TrainingResult) -> None:
        """A training ended, one way or another: roll its result out, or say why not."""
        if training is not self._training:
            return
        self._training = None
        training.run.join(5.0)
        context = self._context
        evidence = {"training_id": training.id, **result.evidence()}
        decision = self._after(training, result)
        self._stats = self._stats.ended(decision.action)
        if decision.action == "fail":
            self._past = self._past.fail(context.now.ms)
            limit = context.policy.trigger.max_failures
            row = f"failure {self._past.failures} in a row, automatic ones stop after {limit}"
            reason = f"{decision.reason} ({row})"
            context.publish("training_failed", reason=reason, evidence=evidence, record=True)
        else:
            self._past = self._past.finish()
            context.tell_changes()
        if decision.action == "refuse":
            context.publish("refused", reason=decision.reason, evidence=evidence, record=True)
        elif decision.action == "hold":
            self._hold(decision.version, decision.reason, evidence)
        elif decision.action == "roll out":
            self._rollout.begin(
                decision.version,
                f"{training.reason}; {decision.reason}",
                evidence,
                decision.expected_revision,
            )
        self._retain()
        self._waiting = None
        self.decide()
        self.roll_if_due()

    def _retain(self) -> None:
        """Removes what `[registry] keep` does not keep; one that cannot be removed waits."""
        context = self._context
        if not (keep := context.config.registry.keep):
            return
        try:
            removed = context.directory.retain(
                keep, actor=ACTOR, reason=f"[registry] keep = {keep}: older than the newest {keep}"
            )
        except (RegistryError, OSError) as error:
            _log.warning("model '%s': old versions stay: %s", context.name, error)
            return
        if removed:
            context.tell_changes()

    def _after(self, training: _Training, result: TrainingResult) -> RolloutDecision:
        """What becomes of a result; one is never lost because the state cannot be read."""
        context = self._context
        now = training.state
        try:
            now = context.directory.state()
        except (RegistryError, OSError) as error:
            if result.outcome == "published" and result.version is not None:
                reason = f"version {result.version} passed its gates and was not promoted: {error}"
                return RolloutDecision("hold", reason, result.version)
        return after_training(result, context.policy.promotion, training.state, now)

    def _hold(self, version: int, reason: str, evidence: Mapping[str, Any]) -> None:
        self._context.publish("held", version, reason=reason, evidence=evidence, record=True)

    def _interrupt(self, reason: str, evidence: Mapping[str, Any]) -> None:
        self._past = self._past.interrupt()
        self._stats = replace(self._stats, running=False)
        self._context.publish(
            "training_failed",
            reason=reason,
            evidence={**evidence, "interrupted": True},
            record=True,
        )

    def _rolled(self, result: TrainingResult) -> None:
        self._roll = None
        if result.outcome == "failed":
            wait_s = min(_FIRST_ROLL_RETRY_S * 2.0**self._roll_failures, _MAX_ROLL_RETRY_S)
            self._roll_failures = min(self._roll_failures + 1, 10)
            self._roll_after = time.monotonic() + wait_s
            _log.error(
                "model '%s': its log could not be rolled, next try in %.0f s: %s",
                self._context.name,
                wait_s,
                result.reason,
            )
        else:
            self._roll_failures = 0
        self.decide()
