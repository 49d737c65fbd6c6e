"""Decides about one model's trainings and sees each one through, from its start to its end.

One process of the trainer's side runs per model at a time, a training or a rolling of the log, and
a training that is wanted meanwhile waits. The decision is a pure function (trigger.decide); here is
what gives it its snapshot and carries out its answer. What follows from a result is in
training_endings.py.
Everything runs on the control loop's thread, except what says otherwise.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trimtab.registry.errors import RegistryError
from trimtab.registry.state import State

from ..drift.drift_report import DRIFT, names
from ..drift.drift_state import COLLECTING
from ..errors import NotFoundError, PreconditionError
from ..logs.label_log import LabelCounts
from .loop_stats import TrainingStats
from .loop_tap import evidence_of
from .model_context import ACTOR, ModelContext
from .training_endings import Rollout, TrainingEndings
from .training_past import TrainingPast
from .training_progress import TrainingPace, TrainingStatus
from .training_request import Cancelled, CancelRequest, TrainRequest
from .training_rolls import LogRolls
from .training_run import TrainingProgress, TrainingResult, TrainingRun
from .training_underway import Spawn, Underway
from .trigger import TriggerDecision, TriggerSnapshot, decide

_END_S = 10.0  # that a child is given to end as the server stops


class TrainingDesk:
    """One model's trainings; see the module."""

    def __init__(
        self,
        context: ModelContext,
        rollout: Rollout,
        spawn: Spawn = TrainingRun,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._rollout = rollout
        self._spawn = spawn
        self._monotonic = monotonic
        self._past = TrainingPast()
        self._since_ms = context.now.ms
        self._requests: list[TrainRequest] = []
        self._training: Underway | None = None  # replaced by the loop's thread alone
        self._rolls = LogRolls(context, spawn, self.decide)
        self._endings = TrainingEndings(context, rollout)
        self._waiting: tuple[str, tuple[str, ...]] | None = None  # what was last told of
        self._waits = ""  # why a training that is wanted has not begun; read on any thread
        self._champion = 0  # that refusals are about; 0: not known yet
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
        training = self._training
        if training is None or not self._stats.running:
            return self._stats
        reading = training.pace.reading(self._monotonic())
        return replace(self._stats, fraction=reading.fraction)

    def status(self) -> TrainingStatus:
        """What runs, how far it is, what waits. On any thread."""
        name, training = self._context.name, self._training
        dry_run = self._context.policy.trigger.dry_run
        if training is None:
            return TrainingStatus(name, waits=self._waits, dry_run=dry_run)
        return TrainingStatus(
            model=name,
            training_id=training.id,
            actor=training.actor,
            signal=training.signal,
            reason=training.reason,
            started_ms=training.started_ms,
            progress=training.pace.reading(self._monotonic()),
            dry_run=dry_run,
        )

    def open(self) -> None:
        """Takes up the past; a training that the last server left running is over."""
        self._past = TrainingPast.of(self._context.directory.history().entries)
        if self._past.open_ms is not None:
            known = {"training_id": self._past.open_id} if self._past.open_id else {}
            self._interrupt("the server ended while a training ran", known)

    def close(self) -> None:
        """Ends what runs; on the control loop's thread, or after it has ended."""
        training, roll = self._training, self._rolls.child
        running = [training.run] if training is not None else []
        running += [roll] if roll is not None else []
        for child in running:
            child.kill("was ended: the server stopped")
        for child in running:
            child.join(_END_S)
        self._training = self._rolls.child = None
        if training is not None and training.cancels:
            killed = TrainingResult("failed", "the server stopped", killed=True)
            self._conclude(training, killed, {})
        elif training is not None:
            self._interrupt(
                f"{training.id} was ended: the server stopped", {"training_id": training.id}
            )
        for request in self._requests:
            request.answer(PreconditionError("the server stops"))
        self._requests.clear()

    @property
    def idle(self) -> bool:
        """Whether no child runs and nobody waits for one."""
        return self._training is None and self._rolls.child is None and not self._requests

    def busy(self) -> str:
        """What is under way, in words; empty: nothing."""
        if self._training is not None:
            return f"training {self._training}"
        return "a training that waits for the log to be rolled" if self._blocked else ""

    def champion_changed(self) -> None:
        """What was waited for was about another version."""
        self._waiting = None
        watch = self._context.observed.champion
        if watch is not None and self._champion not in (0, watch.version):
            self._past = self._past.champion_changed()
        if watch is not None:
            self._champion = watch.version

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

    def cancel(self, request: CancelRequest) -> None:
        """An operator wants the training to end that runs, or the one that waits not to begin."""
        name, wanted, training = self._context.name, request.training_id, self._training
        if training is not None and wanted in ("", training.id):
            training.cancel(request)
        elif training is not None:
            request.answer(
                PreconditionError(
                    f"training '{wanted}' of model '{name}' does not run: {training} does"
                )
            )
        elif self._requests and not wanted:
            self._withdraw(request)
        elif wanted:
            request.answer(
                NotFoundError(f"training '{wanted}' of model '{name}' does not run: none does")
            )
        else:
            request.answer(NotFoundError(f"no training of model '{name}' runs or was asked for"))

    def tell_progress(self) -> None:
        """An event of how far the training is, if it is far enough from the last one."""
        training = self._training
        if training is None:
            return
        news = training.pace.news(self._monotonic())
        if news is None:
            return
        self._context.tell_in_passing(
            "training_progress",
            reason=": ".join(filter(None, (training.id, str(news), news.message))),
            evidence={
                "training_id": training.id,
                "stage": news.stage,
                "fraction": round(news.fraction, 4),
                "elapsed_s": round(news.elapsed_s, 1),
                "eta_s": None if news.eta_s is None else round(news.eta_s, 1),
            },
        )

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
            running=self._training is not None,
            # Fewer than at the last training: the maturity was raised, or the clock set back.
            labels=max(0, labels.mature - self._past.labels_at_last),
            young_labels=labels.young,
            last_training_ms=self._past.last_training_ms,
            starts_ms=self._past.starts_ms,
            refusals=self._past.refusals,
            failures=failures[0],
            last_failure_ms=failures[1],
            watching_since_ms=self._since_ms,
        )
        decision = decide(snapshot, context.policy.trigger)
        if decision.train and self._rolls.child is not None:
            # Not a part of the snapshot: how long a roll takes must not show in what is told.
            decision = TriggerDecision(
                train=False,
                waiting=True,
                reason=f"{decision.reason}; the log is being rolled",
                signal=decision.signal,
                lacking=("running",),
            )
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
        self._waits = decision.reason if decision.waiting and self._training is None else ""
        if state is not None and context.policy.trigger.dry_run and decision.signal != "admin":
            self._waiting = None
            self._skip(decision, snapshot, state)
        elif state is not None:
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
        if self._training is None:
            self._rolls.begin_if_due()

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
        labels = self._labels().mature
        training_id = f"{context.name}-{self._past.started + 1}"
        self._past = self._past.start(context.now.ms, labels, training_id)
        training = Underway(
            training_id,
            actor=actor,
            signal=decision.signal,
            reason=decision.reason,
            started_ms=context.wall(),
            state=state,
            pace=TrainingPace(self._monotonic(), self._past.stages_s),
        )
        trigger = {
            "training_id": training.id,
            **self._trigger(decision, snapshot, state),
            "labels_total": labels,
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
            lambda told: context.post(self._progressed, training, told, self._monotonic()),
        )
        training.run.start()
        for request in requests:
            request.answer(training.id)

    def _skip(self, decision: TriggerDecision, snapshot: TriggerSnapshot, state: State) -> None:
        """A dry run: tells what would have been trained, and counts it as a training."""
        context = self._context
        labels = self._labels().mature
        self._past = self._past.skip(context.now.ms, labels)
        self._stats = replace(self._stats, skipped=self._stats.skipped + 1)
        context.publish(
            "training_skipped",
            reason=f"{decision.reason}; nothing is trained: [trigger] dry_run",
            evidence={
                **self._trigger(decision, snapshot, state),
                "labels_total": labels,
                "dry_run": True,
            },
            record=True,
        )

    def _trigger(
        self, decision: TriggerDecision, snapshot: TriggerSnapshot, state: State
    ) -> dict[str, Any]:
        """What set a training off."""
        watch = self._context.observed.champion
        quality = self._context.quality.quality
        return {
            "signal": decision.signal,
            "reason": decision.reason,
            "labels": snapshot.labels,
            "champion": state.champion,
            "revision": state.revision,
            "drift": evidence_of(watch.features) if watch else [],
            "quality": quality.evidence() if quality else {},
        }

    def _progressed(self, training: Underway, told: TrainingProgress, now_s: float) -> None:
        """A training told of a stage."""
        if training is self._training:
            training.progressed(told, now_s)
            self.tell_progress()

    def _trained(self, training: Underway, result: TrainingResult) -> None:
        """A training ended, one way or another."""
        if training is not self._training:
            return
        training.run.join(5.0)
        stages_s = training.pace.durations(self._monotonic())
        try:
            self._conclude(training, result, stages_s)
        finally:
            self._training = None  # who sees that none runs finds in the history how it ended
        self._endings.retain()
        self._waiting = None
        self.decide()
        self.roll_if_due()

    def _conclude(
        self, training: Underway, result: TrainingResult, stages_s: Mapping[str, float]
    ) -> None:
        self._past, action = self._endings.conclude(training, result, stages_s, self._past)
        self._stats = self._stats.ended(action)

    def _withdraw(self, cancel: CancelRequest) -> None:
        """What was asked for and has not begun is not begun."""
        requests, self._requests = self._requests, []
        asked = sorted({request.actor for request in requests})
        who = " and ".join(asked)
        self._context.publish(
            "training_cancelled",
            actor=cancel.actor,
            reason=f"{cancel.reason} (asked for by {who}; it had not begun)",
            evidence={"asked_by": asked, "begun": False},
            record=True,
        )
        for request in requests:
            request.answer(
                PreconditionError(
                    f"{cancel.actor} cancelled it before it had begun: {cancel.reason}"
                )
            )
        cancel.answer(Cancelled("", f"what {who} asked for had not begun and will not"))
        self.decide()

    def _interrupt(self, reason: str, evidence: Mapping[str, Any]) -> None:
        self._past = self._past.interrupt()
        self._stats = replace(self._stats, running=False)
        self._context.publish(
            "training_failed",
            reason=reason,
            evidence={**evidence, "interrupted": True},
            record=True,
        )
