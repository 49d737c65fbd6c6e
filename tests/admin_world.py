"""The admin service over a real registry and control loop, with a lifecycle that loads nothing."""

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from tests.loop_fakes import (
    SIGNATURE,
    FakePromoter,
    FakeServable,
    FakeTrainer,
    FakeWall,
    publish_version,
    reference,
)
from trimtab.registry.directory import Registry
from trimtab.registry.errors import RegistryError
from trimtab.server.config import DriftConfig, ModelPolicy, ServerConfig
from trimtab.server.errors import PreconditionError
from trimtab.server.events import EventBus
from trimtab.server.inference.statistics import Total, VersionStatistics
from trimtab.server.lifecycle.champion_changes import ChampionChange
from trimtab.server.lifecycle.version_plan import ModelStatus, VersionState, VersionStatus
from trimtab.server.loop.control_loop import ControlLoop
from trimtab.server.services.admin_service import AdminService
from trimtab.server.services.handlers import CallContext, StreamHandler, UnaryHandler

_Reply = TypeVar("_Reply", bound=Message)


class FakeLifecycle:
    """Statuses from the registry; changes go through FakePromoter."""

    def __init__(self, registry: Registry, promoter: FakePromoter) -> None:
        self.registry = registry
        self.promoter = promoter
        self.looked_at: list[str] = []

    def status(self, model: str) -> ModelStatus | None:
        if model not in self.registry.models():
            return None
        directory = self.registry.model(model)
        state = directory.state()
        roles = {state.previous: "previous", state.champion: "champion"}
        stats = VersionStatistics(success=Total(5, 1000), rows=50, runs=1)
        return ModelStatus(
            model=model,
            managed=True,
            revision=state.revision,
            champion=state.champion,
            previous=state.previous,
            serving=state.champion,
            versions=tuple(
                VersionStatus(version, VersionState.READY, "", roles.get(version, ""), stats)
                for version in directory.versions()
            ),
            reason="",
        )

    def statuses(self) -> tuple[ModelStatus, ...]:
        found = [self.status(model) for model in self.registry.models()]
        return tuple(status for status in found if status is not None)

    def promote(self, model: str, version: int, **rest: Any) -> ChampionChange:
        try:
            state = self.promoter.promote(model, version, **rest)
        except RegistryError as error:
            raise PreconditionError(str(error)) from error
        return ChampionChange(state, 1.5)  # type: ignore[arg-type]  # it is a State

    def rollback(self, model: str, **rest: Any) -> ChampionChange:
        try:
            state = self.registry.model(model).rollback(**rest)
        except RegistryError as error:
            raise PreconditionError(str(error)) from error
        self.promoter.on_change(model, state.champion or 0)
        return ChampionChange(state, 0.5)

    def reconcile(self, model: str) -> "Future[None]":
        self.looked_at.append(model)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class Admin:
    """A server's admin side; `call` and `watch` as a frontend would."""

    def __init__(self, path: Path) -> None:
        self.registry = Registry(path)
        (path / "m").mkdir()
        (path / "m" / "trimtab.toml").write_text("[recipe]\n")
        publish_version(self.registry)
        self.reference_path = path / ".reference.npz"
        reference().save(self.reference_path)
        policy = ModelPolicy(drift=DriftConfig(window_rows=1000, panes=5, min_rows=200))
        self.trainer = FakeTrainer()
        self.bus = EventBus(self.registry.model, FakeWall())
        self.loop = ControlLoop(
            self.registry,
            ServerConfig(path, policy=policy),
            self.bus,
            wall=FakeWall(),
            spawn=self.trainer,
            tick_s=3600,
        )
        promoter = FakePromoter(self.registry, self.changed)
        self.loop.start(promoter)
        self.changed("m", 1)
        self.lifecycle = FakeLifecycle(self.registry, promoter)
        self.service = AdminService(self.registry, self.lifecycle, self.loop, self.bus)
        self.handlers = self.service.handlers()

    def changed(self, model: str, version: int) -> None:
        servable = FakeServable(model, version, SIGNATURE, self.reference_path)
        self.tap = self.loop.tap_for(servable)
        self.loop.champion_changed(model, servable)

    async def call(self, request: Message, reply: type[_Reply], actor: str = "") -> _Reply:
        name = type(request).DESCRIPTOR.name.removesuffix("Request")
        handler = self.handlers[f"/trimtab.v1.Admin/{name}"]
        assert isinstance(handler, UnaryHandler)
        context = CallContext(actor=actor)
        return reply.FromString(await handler.handle(request.SerializeToString(), context))

    def ask(self, request: Message, reply: type[_Reply], actor: str = "") -> _Reply:
        return asyncio.run(self.call(request, reply, actor))

    def stream(self, name: str, request: Message) -> Any:
        return self._stream(name, request.SerializeToString())

    def watch(self, request: bytes) -> Any:
        return self._stream("WatchEvents", request)

    def _stream(self, name: str, request: bytes) -> Any:
        handler = self.handlers[f"/trimtab.v1.Admin/{name}"]
        assert isinstance(handler, StreamHandler)
        return handler.handle(request, CallContext())
