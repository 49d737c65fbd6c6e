"""One model's part of the loop: what is done about each thing that happens to it.

Every `on_…` method is called on the control loop's thread, one at a time, so nothing here needs a
lock; what other threads touch (the logs, `observed`, the clock) guards itself. Windows are judged
by pure functions (drift_report.evaluate, DriftState.after_pane); what follows from the state is
the training desk's. Whatever happens is an event with its evidence.
"""

import logging
import weakref
from collections.abc import Callable, Sequence

from trimtab._native.reference import ReferenceProfile
from trimtab.registry.manifest import Signature

from ..config import DriftConfig
from ..drift.drift_evidence import DriftEvidence, Evidence
from ..drift.drift_monitor import DriftMonitor
from ..drift.drift_report import (
    DATA_QUALITY,
    DRIFT,
    OK,
    WARNING,
    DriftReport,
    FeatureDrift,
    WindowSnapshot,
    evaluate,
    summary,
    worst,
)
from ..drift.drift_state import COLLECTING
from ..drift.feature_faults import MEASURED_PANES, MIN_PANE_ROWS, faults_of
from ..drift.row_sampler import RowSampler
from ..logs.label_log import Label
from ..rollout.rollout_desk import RolloutDesk
from .label_drop import DropTurns, LabelDrop
from .label_stats import LabelTally
from .loop_clock import Reading
from .loop_stats import DriftStats, LoopStats
from .loop_tap import ChampionWatch, LoopTap, evidence_of
from .model_context import ModelContext
from .training_desk import TrainingDesk
from .training_request import TrainRequest

_log = logging.getLogger(__name__)

_KIND = {OK: "drift_cleared", WARNING: "drift_warning", DRIFT: "drift"}


class ModelLoop:
    """See the module."""

    def __init__(
        self, context: ModelContext, desk: TrainingDesk, rollout: RolloutDesk, turns: DropTurns
    ) -> None:
        self.context = context
        self.desk = desk
        self.rollout = rollout
        self.name = context.name
        self.observed = context.observed
        self.drop = LabelDrop(context, self.submit_parts, turns)
        # The executors own the taps; a version that is unloaded takes its tap along.
        self._taps: weakref.WeakValueDictionary[int, LoopTap] = weakref.WeakValueDictionary()
        self._changes = 0  # of champion
        self._drifting: ChampionWatch | None = None  # its drift was told and has not cleared

    def __repr__(self) -> str:
        return f"ModelLoop({self.name}, {self.observed.champion!r}, {self.desk!r})"

    def open(self) -> None:
        """Before the model is served, on whatever thread finds it first."""
        self.context.open()
        self.desk.open()
        self.rollout.open()

    def close(self) -> None:
        """On the control loop's thread, or after it has ended."""
        self.drop.close()
        self.desk.close()
        self.rollout.close()
        self.context.close()

    def removed(self) -> bool:
        """Whether nothing is left to do: no directory, no version that answers, nothing that runs."""
        return (
            self.observed.champion is None
            and self.desk.idle
            and self.drop.idle
            and self.rollout.idle
            and not self.context.directory.path.is_dir()
        )

    # From the lifecycle, the services and the executors, on their threads.

    def tap(
        self, version: int, signature: Signature, reference: ReferenceProfile | None
    ) -> LoopTap:
        """The tap of a version that was just loaded."""
        answers = self.context.quality.watch(version, signature, reference)
        tap = LoopTap(self.observed, signature, reference, answers)
        self._taps[version] = tap
        return tap

    def champion_changed(self, version: int | None) -> None:
        """Another version answers from now on; its monitor begins with an empty window."""
        self._changes += 1
        change = self._changes
        tap = self._taps.get(version) if version is not None else None
        if version is None or tap is None:
            self.observed.champion = None
        else:
            watch = ChampionWatch(version)
            if self.context.policy.drift.enabled:
                limit = self.context.policy.drift.max_rows_per_s
                watch.sampler = RowSampler(limit) if limit else None
                # The monitor does not refer to its watch: of a champion that was replaced everything
                # goes at once, and not at some garbage collection after hundreds of others.
                watch.monitor = DriftMonitor(
                    tap.signature,
                    tap.reference,
                    self.context.policy.drift,
                    on_pane=lambda snapshot: self._post_of(
                        change, self.on_pane, snapshot, self.context.clock.reading()
                    ),
                    on_bootstrap=lambda: self._post_of(change, self.on_bootstrap),
                )
            self.observed.champion = watch
        self.context.post(self.on_champion)

    def _post_of(self, change: int, do: Callable[..., None], *arguments: object) -> None:
        """What the monitor of that change of champion found, to the control loop; nothing of one
        that was replaced."""
        watch = self.observed.champion
        if watch is not None and change == self._changes:
            self.context.post(do, watch, *arguments)

    @property
    def takes_text(self) -> bool | None:
        """Whether labels are texts; None: either will do, or nobody knows."""
        return self.context.quality.takes_text

    def submit_labels(self, labels: Sequence[Label], event_time_ms: int) -> None:
        """Returns once the labels are in the log; OSError: none of them is."""
        self.submit_parts([(labels, event_time_ms)])

    def submit_parts(
        self, parts: Sequence[tuple[Sequence[Label], int]], tally: LabelTally | None = None
    ) -> None:
        """The same of labels that became known at several times; `tally`: where they are counted."""
        self.context.labels.append_parts(parts)
        self.observed.expects_labels = True
        for labels, event_time_ms in parts:
            self.rollout.labels(labels)
            believed_ms = self.context.clock.believed(event_time_ms)
            self.context.quality.offer(labels, believed_ms, tally)
            self.context.clock.label_seen(event_time_ms)
        self.context.post(self.on_labels, self.context.clock.reading())

    def report(self) -> DriftReport:
        """The window as it is now, without the rows that time has taken out of it; decides nothing."""
        watch = self.observed.champion
        if watch is None:
            return DriftReport(self.name, 0, COLLECTING, "no version answers")
        monitor = watch.monitor
        if monitor is None:
            return DriftReport(self.name, watch.version, COLLECTING, "drift is not watched")
        yardstick, config = monitor.yardstick, monitor.config
        if yardstick is None:
            kept = min(monitor.bootstrap_rows, config.bootstrap_rows)
            reason = f"{kept:,} of the {config.bootstrap_rows:,} rows that become the reference"
            return DriftReport(
                self.name,
                watch.version,
                COLLECTING,
                reason,
                observed_rows=monitor.observed_rows,
            )
        self._advance(self.context.clock.reading())
        snapshot = monitor.snapshot()
        evidence = watch.evidence.latest if watch.evidence is not None else Evidence()
        features = evaluate(
            yardstick, snapshot, config, watch.faults_in(snapshot, config.panes), evidence
        )
        return DriftReport(
            model=self.name,
            version=watch.version,
            state=watch.state.name,
            reason=_reason(watch.state.name, features, snapshot, config),
            window_rows=snapshot.rows,
            reference_rows=yardstick.profile.rows,
            observed_rows=snapshot.observed_rows,
            passed_over_rows=monitor.passed_over_rows,
            reference=monitor.reference_kind,
            evidence=evidence,
            features=features,
        )

    def stats(self) -> LoopStats:
        """What was counted and what was judged last; computes nothing."""
        watch, traffic = self.observed.champion, self.context.traffic
        drift = None
        if watch is not None and watch.monitor is not None:
            state = watch.state
            drift = DriftStats(
                watch.version,
                state.name,
                watch.window_rows,
                watch.features,
                len(state.broken),
                watch.monitor.passed_over_rows,
            )
        rollout = self.rollout.status()
        return LoopStats(
            model=self.name,
            observed_rows=self.observed.rows,
            labels=self.context.labels.total_rows,
            drift=drift,
            traffic=traffic.stats if traffic is not None else None,
            trainings=self.desk.stats,
            quality=self.context.quality.stats() if self.context.policy.labels.watch else None,
            rollout=rollout if rollout.version else None,
        )

    # On the control loop's thread.

    def on_pane(self, watch: ChampionWatch, snapshot: WindowSnapshot, now: Reading) -> None:
        """A pane with rows ended: judge the window, move the state, decide."""
        if watch is not self.observed.champion or watch.monitor is None:
            return  # the pane of a version that is champion no more
        self.context.now = now
        yardstick, config = watch.monitor.yardstick, watch.monitor.config
        if yardstick is None:
            return
        self._look_for_faults(watch, yardstick.profile, snapshot, config)
        if watch.evidence is None:
            watch.evidence = DriftEvidence(
                yardstick.profile,
                min(watch.monitor.pane_rows, config.min_rows),  # time may end panes before that
                config.false_alarm_rows,
                deflate=config.deflate,
            )
        if snapshot.recent is not None:
            watch.evidence.add(snapshot.recent)
        if snapshot.rows < config.min_rows:
            return
        features = evaluate(
            yardstick,
            snapshot,
            config,
            watch.faults_in(snapshot, config.panes),
            watch.evidence.latest,
        )
        broken = [feature.name for feature in features if feature.verdict == DATA_QUALITY]
        before = watch.state
        after = before.after_pane(worst(features), broken, config.hysteresis_panes)
        watch.state, watch.features, watch.window_rows = after, features, snapshot.rows
        is_over = after.name == OK != before.name and bool(watch.evidence.latest.found)
        if is_over or before.broken - after.broken:
            watch.evidence.reset()  # it is told of what is past
        publish = self.context.publish
        evidence = {
            "window_rows": snapshot.rows,
            "reference": watch.monitor.reference_kind,
            "features": evidence_of(features),
        }
        if after.name == DRIFT:
            self._drifting = watch
        if after.name != before.name and (before.name, after.name) != (COLLECTING, OK):
            only_warned = after.name == OK and self._drifting is not watch
            publish(
                "drift_warning_cleared" if only_warned else _KIND[after.name],
                watch.version,
                reason=_reason(after.name, features, snapshot, config),
                evidence=evidence,
                record=after.name != WARNING and not only_warned,
            )
        if after.name == OK:
            self._drifting = None
        if came := after.broken - before.broken:
            faults = "; ".join(f"{f.name}: {f.reason}" for f in features if f.name in came)
            publish("data_quality", watch.version, reason=faults, evidence=evidence, record=True)
        if went := before.broken - after.broken:
            reason = f"{', '.join(sorted(went))}: as in the reference again"
            publish("data_quality_cleared", watch.version, reason=reason, evidence=evidence)
        self._decide()

    def _look_for_faults(
        self,
        watch: ChampionWatch,
        reference: ReferenceProfile,
        snapshot: WindowSnapshot,
        config: DriftConfig,
    ) -> None:
        """Enters the newest pane's faults; those of panes that have left the window go."""
        rows, newest = snapshot.recent, snapshot.newest_pane
        effective = None
        if watch.evidence is not None and newest > MEASURED_PANES:
            effective = watch.evidence.latest.effective
        found = {}
        if rows is not None:
            found = faults_of(reference, rows, config, MIN_PANE_ROWS, effective)
        kept = [item for item in watch.pane_faults if item[0] > newest - config.panes]
        watch.pane_faults = (*kept, (newest, found))

    def on_bootstrap(self, watch: ChampionWatch) -> None:
        """Enough rows were kept to make the reference of a version that has none."""
        if watch is self.observed.champion and watch.monitor is not None:
            watch.monitor.bootstrap()

    def _look_at_labels(self) -> None:
        """What labels say of the champion's answers, as far as that is worth an event."""
        for event in self.context.quality.look(self.context.now.ms):
            self.context.publish(
                event.kind,
                event.version,
                reason=event.reason,
                evidence=event.evidence,
                record=True,
            )

    def on_labels(self, now: Reading) -> None:
        self.context.now = now
        self._look_at_labels()
        self._decide()

    def on_champion(self) -> None:
        champion = self.observed.champion
        self.context.quality.champion_changed(champion.version if champion is not None else None)
        self.desk.champion_changed()
        self.context.read_policy()
        self.context.tell_changes()
        self.rollout.champion_changed()

    def on_tick(self) -> None:
        """Once a second: what no message brings. A clock of event time does not tick."""
        reading = self.context.clock.reading()
        if not reading.is_event_time:
            self.context.now = reading
            self._advance(reading)
        self._hand_out()
        try:
            self.context.labels.sync_if_due()
        except OSError as error:
            _log.error("label log of model '%s': cannot be synced: %s", self.name, error)
        self.context.read_policy()
        self.context.tell_changes()
        self.rollout.tick(reading)
        self._look_at_labels()
        self.drop.tick()
        self.desk.tell_progress()
        self._decide()
        self.desk.roll_if_due()

    def _decide(self) -> None:
        """A file of labels is taken whole: a training that starts amid it would learn from half."""
        if self.drop.idle:
            self.desk.decide()

    def on_watermark(self, event_time_ms: int) -> None:
        """No request of an earlier time will come: the panes before it have ended."""
        self.context.clock.watermark(event_time_ms)
        self._advance(self.context.clock.reading())

    def _advance(self, now: Reading) -> None:
        """Time has gone on; on any thread. A pane that this ends comes to `on_pane` as all do."""
        watch = self.observed.champion
        if watch is not None and watch.monitor is not None:
            watch.monitor.advance(now.ms, is_event_time=now.is_event_time)

    def on_settled_rows(self) -> None:
        """Somebody waits for this model to settle: every pane that has ended is judged now, and what
        waits to be compared is compared."""
        self._hand_out()
        self.rollout.hurry()

    def _hand_out(self) -> None:
        watch = self.observed.champion
        if watch is not None and watch.monitor is not None:
            watch.monitor.hand_out()

    def on_settling(self, now: Reading) -> str:
        """Somebody waits for this model to settle: decide, then say what is under way."""
        self.context.now = now
        self._look_at_labels()
        if step := self.rollout.settling(now):
            return step
        self._decide()
        return self.busy()

    def busy(self) -> str:
        """What is under way, in words; empty: nothing."""
        return self.desk.busy() or self.rollout.busy() or self.drop.busy()

    def on_request(self, request: TrainRequest) -> None:
        """An operator wants a training."""
        self.desk.request(request)


def _reason(
    state: str, features: Sequence[FeatureDrift], snapshot: WindowSnapshot, config: DriftConfig
) -> str:
    """A state in words, from the window it is told with; features that broke come first."""
    broken = summary(features, DATA_QUALITY)
    rest = _distribution(state, features, snapshot, config)
    return f"{broken}; otherwise {rest}" if broken else rest


def _distribution(
    state: str, features: Sequence[FeatureDrift], snapshot: WindowSnapshot, config: DriftConfig
) -> str:
    if snapshot.rows < config.min_rows:
        stays = "" if state == COLLECTING else "; until then the state stays"
        return f"{snapshot.rows:,} rows in the window, it is judged from {config.min_rows:,}{stays}"
    verdict = worst(features)
    if verdict != OK:
        return summary(features, verdict)
    if state in (DRIFT, WARNING):
        return "the newest window is as the reference, but not for long enough"
    return "distributed as the reference"
