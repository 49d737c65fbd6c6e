"""`trimtab.v1.Admin`: what an operator sees and does. Its own port, loopback unless told otherwise.

Handlers decode, ask the lifecycle or the control loop, and encode. Both may wait for a disk or a
model to load, so they are asked on a thread; what takes long by nature (a training that starts, a
loop that settles) is a future that is awaited. Every change goes through the registry's
compare-and-swap; the caller's actor and reason go into the history with it.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import InvalidNameError, LockTimeoutError, RegistryError
from trimtab.registry.state import State

from ..drift.drift_report import DriftReport, FeatureDrift
from ..errors import (
    DeadlineExpiredError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from ..events import Event, EventBus, Subscription
from ..inference.executor import SHUTTING_DOWN
from ..lifecycle.model_manager import ChampionChange
from ..lifecycle.version_plan import ModelStatus, VersionStatus
from ..loop.control_loop import ControlLoop
from .handlers import CallContext, Handler, StreamHandler, UnaryHandler

_log = logging.getLogger(__name__)

SERVICE = "trimtab.v1.Admin"
_SETTLE_S = 600.0  # that AwaitSettled waits where the request does not say
_MAX_TEXT = 4096  # characters of an actor or a reason

_Request = TypeVar("_Request", bound=Message)


class Lifecycle(Protocol):
    """What the service needs of the ModelManager."""

    def status(self, model: str) -> ModelStatus | None: ...
    def statuses(self) -> tuple[ModelStatus, ...]: ...
    def promote(
        self,
        model: str,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
    ) -> ChampionChange: ...
    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
    ) -> ChampionChange: ...


class AdminService:
    """The handlers of the service."""

    def __init__(
        self, registry: Registry, lifecycle: Lifecycle, loop: ControlLoop, bus: EventBus
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._loop = loop
        self._bus = bus
        self._settling: set[asyncio.Timeout] = set()
        self._stopping = False

    def stop_waiting(self) -> None:
        """From now on nobody waits for a loop to settle: they are told that the server stops."""
        self._stopping = True
        for limit in self._settling:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        unary: dict[str, UnaryHandler] = {
            "ListVersions": self._unary(pb.ListVersionsRequest, self._list_versions),
            "Promote": self._unary(pb.PromoteRequest, self._promote),
            "Rollback": self._unary(pb.RollbackRequest, self._rollback),
            "GetDrift": self._unary(pb.GetDriftRequest, self._get_drift),
            "Train": self._unary(pb.TrainRequest, self._train),
            "GetHistory": self._unary(pb.GetHistoryRequest, self._get_history),
            "AwaitSettled": self._unary(pb.AwaitSettledRequest, self._await_settled),
        }
        handlers: dict[str, Handler] = {f"/{SERVICE}/{name}": h for name, h in unary.items()}
        handlers[f"/{SERVICE}/WatchEvents"] = StreamHandler(self._watch_events)
        return handlers

    async def _list_versions(self, request: pb.ListVersionsRequest, _: CallContext) -> Message:
        def read() -> pb.ListVersionsResponse:
            if request.model_name:
                found = [self._status(request.model_name)]
            else:
                found = list(self._lifecycle.statuses())
            return pb.ListVersionsResponse(models=map(self._versions, found))

        return await asyncio.to_thread(read)

    async def _promote(self, request: pb.PromoteRequest, _: CallContext) -> Message:
        actor, reason = _author(request.actor, request.reason)
        if request.version < 1:
            raise InvalidRequestError(f"version {request.version} must be a number above 0")
        return await self._change(
            request.model_name,
            lambda now_ms: self._lifecycle.promote(
                request.model_name,
                request.version,
                actor=actor,
                reason=reason,
                expected_revision=request.expected_revision or None,
                event_time_ms=now_ms,
            ),
        )

    async def _rollback(self, request: pb.RollbackRequest, _: CallContext) -> Message:
        actor, reason = _author(request.actor, request.reason)
        return await self._change(
            request.model_name,
            lambda now_ms: self._lifecycle.rollback(
                request.model_name,
                actor=actor,
                reason=reason,
                expected_revision=request.expected_revision or None,
                event_time_ms=now_ms,
            ),
        )

    async def _change(self, model: str, change: Callable[[int], ChampionChange]) -> Message:
        began = time.monotonic()

        def run() -> tuple[ChampionChange, float]:
            self._status(model)
            now_ms = self._loop.model(model).context.clock.reading().ms
            queued_ms = (time.monotonic() - began) * 1000
            return change(now_ms), queued_ms

        done, queued_ms = await asyncio.to_thread(run)
        return pb.ChangeResponse(
            revision=done.state.revision,
            champion=done.state.champion or 0,
            previous=done.state.previous or 0,
            elapsed_ms=queued_ms + done.elapsed_ms,
        )

    async def _get_drift(self, request: pb.GetDriftRequest, _: CallContext) -> Message:
        def read() -> pb.DriftReport:
            self._status(request.model_name)
            return drift_message(self._loop.model(request.model_name).report())

        return await asyncio.to_thread(read)

    async def _train(self, request: pb.TrainRequest, _: CallContext) -> Message:
        actor, reason = _author(request.actor, request.reason)
        # A model that has a recipe and no version yet is not in the lifecycle's hands.
        answer = await asyncio.to_thread(self._loop.train, request.model_name, actor, reason)
        training_id = await asyncio.wrap_future(answer)
        return pb.TrainResponse(training_id=training_id)

    async def _get_history(self, request: pb.GetHistoryRequest, _: CallContext) -> Message:
        def read() -> pb.GetHistoryResponse:
            history = self._directory(request.model_name).history()
            entries = history.entries[-request.limit :] if request.limit else history.entries
            messages = [
                event_message(
                    Event(
                        sequence=entry.sequence,
                        time_ms=entry.time_ms,
                        event_time_ms=entry.event_time_ms,
                        model=request.model_name,
                        kind=entry.kind,
                        version=entry.version,
                        actor=entry.actor,
                        reason=entry.reason,
                        evidence=entry.evidence,
                    )
                )
                for entry in entries
            ]
            return pb.GetHistoryResponse(entries=messages, chain_valid=history.valid)

        return await asyncio.to_thread(read)

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

    def _watch_events(self, request: bytes, context: CallContext) -> AsyncIterator[bytes]:
        """Not a generator itself: who calls it is subscribed as it returns, not a moment later."""
        try:
            model = _decode(pb.WatchEventsRequest, request).model_name
            return _Events(self._bus.subscribe(model))
        except InvalidRequestError as error:
            return _refusal(error)

    def _unary(
        self, kind: type[_Request], handle: Callable[[_Request, CallContext], Awaitable[Message]]
    ) -> UnaryHandler:
        async def call(request: bytes, context: CallContext) -> bytes:
            try:
                reply = await handle(_decode(kind, request), context)
            except LockTimeoutError as error:
                raise UnavailableError(str(error)) from error
            except RegistryError as error:
                raise PreconditionError(str(error)) from error
            except OSError as error:
                raise UnavailableError(
                    f"the models directory {self._registry.path} cannot be used: {error}"
                ) from error
            return reply.SerializeToString()

        return UnaryHandler(call)

    def _status(self, model: str) -> ModelStatus:
        status = self._lifecycle.status(model)
        if status is None:
            raise NotFoundError(f"Request for unknown model: '{model}' is not found")
        return status

    def _directory(self, model: str) -> ModelDirectory:
        try:
            if model in self._registry.models():
                return self._registry.model(model)
        except InvalidNameError:
            pass  # unknown, then
        raise NotFoundError(f"Request for unknown model: '{model}' is not found")

    def _state(self, model: str) -> State:
        """The registry's, or for a model that nobody published the version that answers."""
        directory = self._directory(model)
        if directory.is_managed():
            return directory.state()
        return State(champion=self._status(model).champion)

    def _versions(self, status: ModelStatus) -> pb.ModelVersions:
        message = pb.ModelVersions(
            model_name=status.model,
            managed=status.managed,
            revision=status.revision,
            champion=status.champion or 0,
            previous=status.previous or 0,
        )
        log = self._loop.traffic_stats(status.model)
        message.log_rows_written = log.rows_written
        message.log_rows_dropped = log.rows_dropped
        message.log_failing = log.failing
        directory = self._registry.model(status.model)
        for version in status.versions:
            info = message.versions.add(
                version=version.version,
                role=version.role,
                state=version.state.value,
                reason=version.reason,
                requests=version.stats.success.count if version.stats else 0,
                rows=version.stats.rows if version.stats else 0,
            )
            if status.managed:
                self._add_manifest(info, directory, version)
        return message

    def _add_manifest(
        self, info: pb.VersionInfo, directory: ModelDirectory, version: VersionStatus
    ) -> None:
        try:
            manifest = directory.manifest(version.version)
        except RegistryError:
            return  # the lifecycle's reason says it
        info.created_ms = manifest.created_ms
        info.metrics.update(manifest.metrics)


def event_message(event: Event) -> pb.Event:
    """An event as the protocol has it."""
    return pb.Event(
        sequence=event.sequence,
        time_ms=event.time_ms,
        event_time_ms=event.event_time_ms,
        model_name=event.model,
        kind=event.kind,
        version=event.version,
        actor=event.actor,
        reason=event.reason,
        evidence_json=event.evidence_json(),
    )


def drift_message(report: DriftReport) -> pb.DriftReport:
    """A report as the protocol has it."""
    return pb.DriftReport(
        model_name=report.model,
        version=report.version,
        state=report.state,
        reason=report.reason,
        window_rows=report.window_rows,
        reference_rows=report.reference_rows,
        observed_rows=report.observed_rows,
        reference=report.reference,
        log_evidence=_known(report.evidence.overall),
        log_evidence_threshold=report.evidence.threshold,
        features=map(_feature_message, report.features),
    )


def _feature_message(feature: FeatureDrift) -> pb.FeatureDrift:
    return pb.FeatureDrift(
        name=feature.name,
        kind=feature.kind,
        role=feature.role,
        verdict=feature.verdict,
        reason=feature.reason,
        psi=feature.psi,
        ks_low=feature.ks_low,
        ks_high=feature.ks_high,
        missing_rate=feature.missing_rate,
        reference_missing_rate=feature.reference_missing_rate,
        unseen_rate=feature.unseen_rate,
        reference_shares=feature.reference_shares,
        window_shares=feature.window_shares,
        rows=feature.rows,
        effective_rows=feature.effective_rows,
        psi_critical=feature.psi_critical,
        psi_low=feature.psi_low,
        ks_p_value=feature.ks_p_value,
        log_evidence=_known(feature.log_evidence),
        missing_rate_low=feature.missing_interval[0],
        missing_rate_high=feature.missing_interval[1],
        unseen_rate_low=feature.unseen_interval[0],
        unseen_rate_high=feature.unseen_interval[1],
        jensen_shannon=feature.jensen_shannon,
        hellinger=feature.hellinger,
        wasserstein=feature.wasserstein,
        importance=feature.importance,
        strength=feature.strength,
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _decode(kind: type[_Request], request: bytes) -> _Request:
    message = kind()
    try:
        message.ParseFromString(request)
    except DecodeError as error:
        raise InvalidRequestError(f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return message


class _Events(AsyncIterator[bytes]):
    """One listener's stream. No generator: one that never began would not end its subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._events = subscription.events()

    async def __anext__(self) -> bytes:
        return event_message(await anext(self._events)).SerializeToString()

    async def aclose(self) -> None:
        await self._events.aclose()
        self._subscription.close()


async def _refusal(error: Exception) -> AsyncIterator[bytes]:
    raise error
    yield b""  # which makes it a generator


def _author(actor: str, reason: str) -> tuple[str, str]:
    """Who and why, as they go into the history."""
    for what, text in (("actor", actor), ("reason", reason)):
        if len(text) > _MAX_TEXT:
            raise InvalidRequestError(f"{what} of {len(text):,} characters exceeds {_MAX_TEXT:,}")
        if "\0" in text:
            raise InvalidRequestError(f"{what} has a NUL character")
    return actor or "operator", reason or "no reason given"
