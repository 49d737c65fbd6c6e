"""The one thread that decides: panes, labels, ticks, operators and trainers' results, one at a time.

Other threads put messages into its queue and never wait for it; decisions are made in the order of
the messages, each from what it brought along, so that the same messages give the same decisions.
The thread may block for as long as a promotion loads a model; panes and labels wait meanwhile.

A model is taken up when the lifecycle first loads a version of it, or when somebody first asks for
it. Its logs are opened then, and stay open until the server stops, or until the model's directory
is gone, no version of it answers and nothing of it runs.

`settle` is exact. Rows are counted as observed after the pane that they filled is in the queue; so
once the rows are there, a message put into the queue comes after all their panes. It passes the
queue twice, for what those panes put there themselves, and then looks whether anything is under way.
With a watermark the time moves only then, and all that this ends and causes is settled as well.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from trimtab._native.reference import ReferenceFormatError, ReferenceProfile
from trimtab.registry.directory import Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import Signature

from ..config import ServerConfig
from ..errors import NotFoundError
from ..events import EventBus, wall_ms
from ..logs.traffic_log import TrafficStats
from ..rollout.approval_desk import Answer, Answered
from ..rollout.lifecycle import Held, Lifecycle
from ..rollout.rollout_desk import RolloutDesk
from .label_drop import DropTurns
from .loop_tap import LoopTap
from .model_context import ModelContext
from .model_loop import ModelLoop
from .training_desk import TrainingDesk
from .training_request import Cancelled, CancelRequest, TrainRequest
from .training_run import TrainingRun
from .training_underway import Spawn

_log = logging.getLogger(__name__)


class LoadedVersion(Protocol):
    """What the loop needs of a Servable."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def reference_path(self) -> Path | None: ...


class ControlLoop:
    """One per server. Methods may be called from any thread unless they say otherwise."""

    def __init__(
        self,
        registry: Registry,
        config: ServerConfig,
        bus: EventBus,
        *,
        wall: Callable[[], int] = wall_ms,
        spawn: Spawn = TrainingRun,
        tick_s: float = 1.0,
    ) -> None:
        self._registry = registry
        self._config = config
        self._bus = bus
        self._wall = wall
        self._spawn = spawn
        self._tick_s = tick_s
        self._lifecycle: Lifecycle | None = None
        self._queue: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._queue = queue.SimpleQueue()
        self._models_lock = threading.Lock()  # guards writers of _models; held while one is opened
        self._models: Mapping[str, ModelLoop] = {}  # read without a lock
        self._turns = DropTurns()  # the thread's own
        self._thread = threading.Thread(target=self._run, name="control loop", daemon=True)
        self._settling: list[Settling] = []  # the thread's own
        self._failures = 0

    def __repr__(self) -> str:
        return f"ControlLoop({list(self._models.values())}, failures={self._failures})"

    @property
    def failures(self) -> int:
        """Messages that could not be dealt with; each was logged."""
        return self._failures

    def start(self, lifecycle: Lifecycle) -> None:
        """Begins to decide; `lifecycle` makes versions champions."""
        self._lifecycle = lifecycle
        self._thread.start()

    def stop(self) -> None:
        """Ends trainings, then closes the logs; after the executors have ended."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        for model in self._models.values():
            try:
                model.close()
            except Exception:  # noqa: BLE001  an edge
                _log.exception("model '%s': its loop could not be closed", model.name)

    # -- for the lifecycle

    def tap_for(self, servable: LoadedVersion) -> LoopTap:
        """The tap of a version that is being loaded; reads its reference profile."""
        reference = None
        if servable.reference_path is not None:
            try:
                reference = ReferenceProfile.load(servable.reference_path)
            except (ReferenceFormatError, OSError) as error:
                _log.error(
                    "model '%s' version %d: its first live rows become the reference: %s",
                    servable.model,
                    servable.version,
                    error,
                )
        return self.model(servable.model).tap(servable.version, servable.signature, reference)

    def champion_changed(self, model: str, servable: LoadedVersion | None) -> None:
        """Another version of the model answers now, or none."""
        if servable is not None:
            self.model(model).champion_changed(servable.version)
        elif (found := self._models.get(model)) is not None:  # else it was removed meanwhile
            found.champion_changed(None)

    def lifecycle_event(
        self, kind: str, model: str, version: int, reason: str, evidence: Mapping[str, Any]
    ) -> None:
        """Something that the lifecycle has to tell."""
        self._bus.publish(kind, model, version=version, reason=reason, evidence=evidence)

    # -- for the services

    def model(self, name: str) -> ModelLoop:
        """One model's part; NotFoundError. The first time it opens files."""
        found = self._models.get(name)
        if found is not None:
            return found
        with self._models_lock:
            found = self._models.get(name)
            if found is None:
                found = self._open(name)
                self._models = {**self._models, name: found}
            return found

    def models(self) -> list[ModelLoop]:
        """Those that were taken up, by name."""
        return [model for _, model in sorted(self._models.items())]

    def traffic_stats(self, model: str) -> TrafficStats:
        """Counts of a model's traffic log; zeros where there is none."""
        found = self._models.get(model)
        log = found.context.traffic if found is not None else None
        return log.stats if log is not None else TrafficStats()

    def train(self, model: str, actor: str, reason: str) -> "Future[str]":
        """Asks for a training: its id once it has started, or PreconditionError. NotFoundError."""
        answer: Future[str] = Future()
        answer.set_running_or_notify_cancel()

        def resolve(result: str | Exception) -> None:
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        loop = self.model(model)
        self._queue.put((loop.on_request, (TrainRequest(actor, reason, resolve),)))
        return answer

    def cancel_training(
        self, model: str, training_id: str, actor: str, reason: str
    ) -> "Future[Cancelled]":
        """Ends a training, or one that waits (`training_id` empty: whichever); see
        TrainingDesk.cancel. NotFoundError."""
        answer: Future[Cancelled] = Future()
        answer.set_running_or_notify_cancel()

        def resolve(result: Cancelled | Exception) -> None:
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        request = CancelRequest(actor, reason, training_id, resolve)
        self._queue.put((self.model(model).desk.cancel, (request,)))
        return answer

    def answer_approval(self, model: str, answer: Answer) -> "Future[Answered]":
        """Approves or rejects the version that waits for it; see RolloutDesk.answer. NotFoundError."""
        answered: Future[Answered] = Future()
        answered.set_running_or_notify_cancel()
        self._queue.put((self.model(model).rollout.answer, (answer, answered)))
        return answered

    def settle(self, model: str, observed_rows: int, watermark_ms: int | None = None) -> "Settling":
        """Becomes done once so many rows were observed and nothing is under way. NotFoundError.

        `watermark_ms`: no further request will have an earlier event time.
        """
        settling = Settling(self.model(model), observed_rows, watermark_ms)
        observed = settling.loop.observed

        def reached() -> None:
            self._queue.put((self._pass, (settling,)))

        observed.when(observed_rows, reached)
        settling.future.add_done_callback(lambda _: observed.forget(reached))  # or cancelled
        return settling

    # -- the thread

    def _open(self, name: str) -> ModelLoop:
        try:
            directory = self._registry.model(name)
            if name not in self._registry.models():
                raise NotFoundError(f"Request for unknown model: '{name}' is not found")
            context = ModelContext(
                directory,
                self._registry.data_path(name),
                self._config,
                self._bus,
                lambda method, *arguments: self._queue.put((method, arguments)),
                self._wall,
            )
        except RegistryError as error:  # not even a name
            raise NotFoundError(f"Request for unknown model: '{name}' is not found") from error
        rollout = RolloutDesk(context, _Late(self))
        desk = TrainingDesk(context, rollout, self._spawn)
        loop = ModelLoop(context, desk, rollout, self._turns)
        loop.open()
        return loop

    def _let_go(self) -> None:
        """Closes models that were removed; one that comes again is taken up anew."""
        for model in list(self._models.values()):
            if not model.removed():
                continue
            with self._models_lock:
                self._models = {n: kept for n, kept in self._models.items() if kept is not model}
            model.close()

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        while True:
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + self._tick_s
                self._call(self._let_go, ())
                for model in self._models.values():
                    self._call(model.on_tick, ())
            else:
                try:
                    message = self._queue.get(timeout=next_tick - now)
                except queue.Empty:
                    continue
                if message is None:
                    return
                self._call(*message)
            self._look_at_settling()

    def _call(self, method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            method(*arguments)
        except Exception:  # noqa: BLE001  an edge
            self._failures += 1
            _log.exception("the control loop failed on %s", getattr(method, "__qualname__", method))

    def _pass(self, settling: "Settling") -> None:
        settling.passes += 1
        if settling.passes < 2:
            settling.loop.on_settled_rows()
            self._queue.put((self._pass, (settling,)))
            return
        settling.busy = settling.loop.on_settling(settling.loop.context.clock.reading())
        if settling.busy:
            self._settling.append(settling)
        elif (watermark_ms := settling.take_watermark()) is not None:
            settling.loop.on_watermark(watermark_ms)
            settling.passes = 0
            self._queue.put((self._pass, (settling,)))
        else:
            settling.resolve()

    def _look_at_settling(self) -> None:
        """What was under way when somebody asked may be over: pass through the queue again."""
        if not self._settling:
            return
        waiting, self._settling = self._settling, []
        for settling in waiting:
            if settling.future.cancelled():
                continue
            settling.busy = settling.loop.busy()
            if settling.busy:
                self._settling.append(settling)
            else:
                settling.passes = 0
                self._queue.put((self._pass, (settling,)))


class Settling:
    """Waits for a model to settle; `future` is done when it has, and may be cancelled."""

    def __init__(self, loop: ModelLoop, observed_rows: int, watermark_ms: int | None) -> None:
        self.loop = loop
        self.future: Future[None] = Future()
        self.passes = 0
        self.busy = ""
        self._wanted = observed_rows
        self._watermark_ms = watermark_ms

    def __str__(self) -> str:
        """What it waits for."""
        rows = self.loop.observed.rows
        if rows < self._wanted:
            return f"{rows:,} of {self._wanted:,} rows were observed"
        return self.busy or "the control loop has messages to deal with"

    def take_watermark(self) -> int | None:
        """The watermark, once."""
        watermark_ms, self._watermark_ms = self._watermark_ms, None
        return watermark_ms

    def resolve(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(None)


class _Late:
    """The lifecycle, which is made after the control loop."""

    def __init__(self, loop: ControlLoop) -> None:
        self._loop = loop

    def promote(self, model: str, version: int, **rest: Any) -> object:
        return self._lifecycle.promote(model, version, **rest)

    def rollback(self, model: str, **rest: Any) -> object:
        return self._lifecycle.rollback(model, **rest)

    def hold(self, model: str, version: int) -> Held:
        return self._lifecycle.hold(model, version)

    def split(self, model: str, version: int | None, share: float = 0.0) -> None:
        self._lifecycle.split(model, version, share)

    @property
    def _lifecycle(self) -> Lifecycle:
        lifecycle = self._loop._lifecycle
        assert lifecycle is not None, "the control loop was not started"
        return lifecycle
