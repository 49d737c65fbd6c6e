"""What an operator changes: the champion, what may become it by itself, what may go.

Every change is the registry's compare-and-swap. The champion is changed by way of the lifecycle, which
loads a version before and lets it answer after; the rest is the registry's alone, and the lifecycle
and whoever listens are made to look at it.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, Unpack

from google.protobuf.message import Message

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import ModelDirectory, Why
from trimtab.registry.errors import RevisionConflictError
from trimtab.registry.state import State

from ...config import ConfigError
from ...errors import AbortedError, InvalidRequestError, PreconditionError
from ...lifecycle.champion_changes import ChampionChange
from ...loop.control_loop import ControlLoop
from ...rollout.approval_desk import Answer, Answered
from ..handlers import CallContext, Handler
from . import removal
from .calls import Models, author, unary, version_of, why

_Result = TypeVar("_Result")


class Changes(Protocol):
    """Of the ModelManager, what changes a champion."""

    def promote(self, model: str, version: int, **why: Unpack[Why]) -> ChampionChange: ...
    def rollback(
        self, model: str, *, to: int | None = None, **why: Unpack[Why]
    ) -> ChampionChange: ...
    def reconcile(self, model: str) -> "Future[None]": ...


class ChangeMethods:
    """Promote, Rollback, Approve, Reject, Freeze, Pin, Block, their reverses, RemoveVersion, Retain."""

    def __init__(self, models: Models, changes: Changes, loop: ControlLoop) -> None:
        self._models = models
        self._changes = changes
        self._loop = loop

    def handlers(self) -> Mapping[str, Handler]:
        """By the method's own name."""
        path = self._models.path
        marks: Mapping[str, tuple[type[Message], Callable[..., State]]] = {
            "Freeze": (pb.FreezeRequest, ModelDirectory.freeze),
            "Unfreeze": (pb.UnfreezeRequest, ModelDirectory.unfreeze),
            "Pin": (pb.PinRequest, ModelDirectory.pin),
            "Unpin": (pb.UnpinRequest, ModelDirectory.unpin),
            "Block": (pb.BlockRequest, ModelDirectory.block),
            "Unblock": (pb.UnblockRequest, ModelDirectory.unblock),
        }
        return {
            "Promote": unary(pb.PromoteRequest, self._promote, path),
            "Rollback": unary(pb.RollbackRequest, self._rollback, path),
            "Approve": unary(
                pb.ApproveRequest, functools.partial(self._answer, approve=True), path
            ),
            "Reject": unary(pb.RejectRequest, functools.partial(self._answer, approve=False), path),
            "RemoveVersion": unary(pb.RemoveVersionRequest, self._remove, path),
            "Retain": unary(pb.RetainRequest, self._retain, path),
            **{
                name: unary(kind, functools.partial(self._mark, method), path)
                for name, (kind, method) in marks.items()
            },
        }

    async def _promote(self, request: pb.PromoteRequest, context: CallContext) -> Message:
        version = version_of(request)
        return await self._change_champion(
            request,
            context,
            lambda why: self._changes.promote(request.model_name, version, **why),
        )

    async def _rollback(self, request: pb.RollbackRequest, context: CallContext) -> Message:
        to = version_of(request) if request.version else None
        return await self._change_champion(
            request,
            context,
            lambda why: self._changes.rollback(request.model_name, to=to, **why),
        )

    async def _change_champion(
        self, request: Any, context: CallContext, change: Callable[[Why], ChampionChange]
    ) -> Message:
        began = time.monotonic()
        told = why(request, context)

        def run() -> tuple[ChampionChange, float]:
            self._models.status(request.model_name)
            told["event_time_ms"] = self._now_ms(request.model_name)
            queued_ms = (time.monotonic() - began) * 1000
            try:
                return change(told), queued_ms
            except PreconditionError as error:
                lost = isinstance(error.__cause__, RevisionConflictError)
                if lost and "expected_revision" not in told:
                    raise AbortedError(
                        f"others kept changing the champion meanwhile: {error}; try again"
                    ) from error
                raise

        done, queued_ms = await asyncio.to_thread(run)
        return _response(done.state, queued_ms + done.elapsed_ms)

    async def _answer(self, request: Any, context: CallContext, *, approve: bool) -> Message:
        """The control loop decides, so that an answer comes before or after its deadline."""
        began = time.monotonic()
        version = version_of(request)
        actor, reason = author(request, context)
        model = request.model_name
        answer = Answer(version, approve, actor, reason)

        def ask() -> "Future[Answered]":
            self._models.directory(model)
            return self._loop.answer_approval(model, answer)

        done = await asyncio.wrap_future(await asyncio.to_thread(ask))
        return pb.ApprovalResponse(
            revision=done.state.revision,
            champion=done.state.champion or 0,
            phase=self._loop.model(model).rollout.status().phase,
            text=done.text,
            elapsed_ms=(time.monotonic() - began) * 1000,
        )

    async def _mark(
        self, method: Callable[..., State], request: Any, context: CallContext
    ) -> Message:
        versions = (version_of(request),) if "version" in request.DESCRIPTOR.fields_by_name else ()
        return await self._change_directory(
            request, context, lambda directory, why: method(directory, *versions, **why)
        )

    async def _remove(self, request: pb.RemoveVersionRequest, context: CallContext) -> Message:
        version = version_of(request)

        def change(directory: ModelDirectory, why: Why) -> State:
            _removing(lambda: removal.remove(directory, version, why))
            return directory.state()

        return await self._change_directory(request, context, change, unchanged=False)

    async def _change_directory(
        self,
        request: Any,
        context: CallContext,
        change: Callable[[ModelDirectory, Why], State],
        *,
        unchanged: bool | None = None,
    ) -> Message:
        began = time.monotonic()
        told = why(request, context)

        def run() -> pb.ChangeResponse:
            directory = self._models.directory(request.model_name)
            told["event_time_ms"] = self._now_ms(request.model_name)
            before = directory.state()
            state = change(directory, told)
            self._look(request.model_name)
            response = _response(state, (time.monotonic() - began) * 1000)
            response.unchanged = state == before if unchanged is None else unchanged
            return response

        return await asyncio.to_thread(run)

    async def _retain(self, request: pb.RetainRequest, context: CallContext) -> Message:
        if request.keep < 1:
            raise InvalidRequestError(f"keep {request.keep} must be above 0")
        told = why(request, context)

        def run() -> pb.RetainResponse:
            directory = self._models.directory(request.model_name)
            if request.dry_run:
                found = _removing(lambda: removal.plan(directory, request.keep))
            else:
                told["event_time_ms"] = self._now_ms(request.model_name)
                found = _removing(lambda: removal.retain(directory, request.keep, told))
                self._look(request.model_name)
            return removal.message_of(found)

        return await asyncio.to_thread(run)

    def _now_ms(self, model: str) -> int:
        """The time of the model's loop."""
        return self._loop.model(model).context.clock.reading().ms

    def _look(self, model: str) -> None:
        """Nobody waits for the next look at the directory to see what was changed in it."""
        self._changes.reconcile(model)
        context = self._loop.model(model).context
        context.post(context.tell_changes)


def _removing(remove: Callable[[], _Result]) -> _Result:
    try:
        return remove()
    except ConfigError as error:  # which versions are kept loaded is not known
        raise PreconditionError(str(error)) from error


def _response(state: State, elapsed_ms: float) -> pb.ChangeResponse:
    return pb.ChangeResponse(
        revision=state.revision,
        champion=state.champion or 0,
        previous=state.previous or 0,
        elapsed_ms=elapsed_ms,
    )
