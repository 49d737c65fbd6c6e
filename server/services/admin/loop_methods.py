"""What an operator asks of a model's control loop: its drift, its roll-out, its trainings, to wait for it."""

import asyncio
import math
from collections.abc import Mapping

from google.protobuf.message import Message

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.state import State

from ...errors import DeadlineExpiredError, InvalidRequestError, UnavailableError
from ...inference.executor import SHUTTING_DOWN
from ...loop.control_loop import ControlLoop
from ...loop.training_progress import TrainingStatus
from ...rollout.status import RolloutStatus
from ..handlers import CallContext, Handler
from .calls import Models, author, on_thread, unary
from .drift_messages import drift_message

_SETTLE_S = 600.0  # that AwaitSettled waits where the request does not say


class LoopMethods:
    """GetDrift, RolloutStatus, Train, CancelTraining, TrainingStatus, AwaitSettled. What takes long by
    nature (a training that starts or ends, a loop that settles) is a future that is awaited."""

    def __init__(self, models: Models, loop: ControlLoop) -> None:
        self._models = models
        self._loop = loop
        self._settling: set[asyncio.Timeout] = set()
        self._stopping = False

    @property
    def waiting(self) -> int:
        """Callers that wait for a loop to settle."""
        return len(self._settling)

    def stop_waiting(self) -> None:
        """From now on nobody waits for a loop to settle: they are told that the server stops."""
        self._stopping = True
        for limit in self._settling:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    def handlers(self) -> Mapping[str, Handler]:
        """By the method's own name."""
        path = self._models.path
        return {
            "GetDrift": on_thread(pb.GetDriftRequest, self._drift, path),
            "RolloutStatus": on_thread(pb.RolloutStatusRequest, self._rollout, path),
            "Train": unary(pb.TrainRequest, self._train, path),
            "CancelTraining": unary(pb.CancelTrainingRequest, self._cancel, path),
            "TrainingStatus": on_thread(pb.TrainingStatusRequest, self._training, path),
            "AwaitSettled": unary(pb.AwaitSettledRequest, self._await_settled, path),
        }

    def _drift(self, request: pb.GetDriftRequest) -> pb.DriftReport:
        self._models.status(request.model_name)
        return drift_message(self._loop.model(request.model_name).report())

    def _rollout(self, request: pb.RolloutStatusRequest) -> pb.RolloutStatusResponse:
        self._models.directory(request.model_name)
        return rollout_message(self._loop.model(request.model_name).rollout.status())

    async def _train(self, request: pb.TrainRequest, context: CallContext) -> Message:
        actor, reason = author(request, context)
        # A model that has a recipe and no version yet is not in the lifecycle's hands.
        answer = await asyncio.to_thread(self._loop.train, request.model_name, actor, reason)
        training_id = await asyncio.wrap_future(answer)
        return pb.TrainResponse(training_id=training_id)

    async def _cancel(self, request: pb.CancelTrainingRequest, context: CallContext) -> Message:
        actor, reason = author(request, context)
        answer = await asyncio.to_thread(
            self._loop.cancel_training, request.model_name, request.training_id, actor, reason
        )
        cancelled = await asyncio.wrap_future(answer)
        return pb.CancelTrainingResponse(training_id=cancelled.training_id, text=cancelled.text)

    def _training(self, request: pb.TrainingStatusRequest) -> pb.TrainingStatusResponse:
        self._models.directory(request.model_name)
        return training_message(self._loop.model(request.model_name).desk.status())

    async def _await_settled(self, request: pb.AwaitSettledRequest, _: CallContext) -> Message:
        timeout_s = request.timeout_s or _SETTLE_S
        if not timeout_s > 0:
            raise InvalidRequestError(f"timeout_s {request.timeout_s} must be above 0")
        model = request.model_name
        watermark_ms = request.watermark_ms if request.HasField("watermark_ms") else None
        settling = await asyncio.to_thread(
            self._loop.settle, model, request.observed_rows, watermark_ms
        )
        limit = asyncio.timeout(0.0 if self._stopping else timeout_s)
        try:
            async with limit:
                self._settling.add(limit)
                await asyncio.wrap_future(settling.future)
        except TimeoutError as error:
            if self._stopping:
                raise UnavailableError(SHUTTING_DOWN) from None
            raise DeadlineExpiredError(
                f"model '{model}' has not settled within {timeout_s:g} s: {settling}"
            ) from error
        finally:
            self._settling.discard(limit)
        state = await asyncio.to_thread(self._state, model)
        return pb.AwaitSettledResponse(
            observed_rows=settling.loop.observed.rows,
            champion=state.champion or 0,
            revision=state.revision,
        )

    def _state(self, model: str) -> State:
        """The registry's, or for a model that nobody published the version that answers."""
        directory = self._models.directory(model)
        if directory.is_managed():
            return directory.state()
        return State(champion=self._models.status(model).champion)


def training_message(status: TrainingStatus) -> pb.TrainingStatusResponse:
    """A training's status as the protocol has it."""
    progress = status.progress
    return pb.TrainingStatusResponse(
        model_name=status.model,
        training_id=status.training_id,
        actor=status.actor,
        signal=status.signal,
        reason=status.reason,
        started_ms=status.started_ms,
        stage=progress.stage,
        message=progress.message,
        fraction=progress.fraction,
        elapsed_s=progress.elapsed_s,
        eta_s=progress.eta_s,
        waits=status.waits,
        dry_run=status.dry_run,
    )


def rollout_message(status: RolloutStatus) -> pb.RolloutStatusResponse:
    """A roll-out's status as the protocol has it; what is not known is absent."""
    return pb.RolloutStatusResponse(
        model_name=status.model,
        phase=status.phase,
        version=status.version,
        against=status.against,
        since_ms=status.since_ms,
        deadline_ms=status.deadline_ms,
        share=status.share,
        rows_wanted=status.rows_wanted,
        rows_compared=status.rows_compared,
        rows_dropped=status.rows_dropped,
        requests_failed=status.requests_failed,
        latency_ratio=_known(status.latency_ratio),
        agreement=_known(status.agreement),
        prediction_psi=_known(status.prediction_psi),
        psi_output=status.psi_output,
        metric=status.metric,
        improvement=_known(status.improvement),
        low=_known(status.low),
        high=_known(status.high),
        labelled_rows=status.labelled_rows,
        verdict=status.verdict,
        reason=status.reason,
        awaiting_approval=status.awaiting_approval,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
