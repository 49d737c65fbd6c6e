"""The admin handlers over a real registry and control loop, with a lifecycle that loads nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from google.protobuf.message import Message

from tests.loop_fakes import (
    SIGNATURE,
    FakePromoter,
    FakeServable,
    FakeTrainer,
    FakeWall,
    batch,
    draw,
    publish_version,
    reference,
)
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.registry.errors import NoPreviousError, RegistryError
from trimtab.server.config import DriftConfig, ModelPolicy, ServerConfig
from trimtab.server.errors import (
    DeadlineExpiredError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from trimtab.server.events import EventBus
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.inference.statistics import Total, VersionStatistics
from trimtab.server.lifecycle.model_manager import ChampionChange
from trimtab.server.lifecycle.version_plan import ModelStatus, VersionState, VersionStatus
from trimtab.server.loop.control_loop import ControlLoop
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.services.admin_service import AdminService
from trimtab.server.services.handlers import CallContext, StreamHandler, UnaryHandler

_Reply = TypeVar("_Reply", bound=Message)


class FakeLifecycle:
    """Statuses from the registry; changes go through FakePromoter."""

    def __init__(self, registry: Registry, promoter: FakePromoter) -> None:
        self.registry = registry
        self.promoter = promoter

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
        except NoPreviousError as error:
            raise PreconditionError(str(error)) from error
        self.promoter.on_change(model, state.champion or 0)
        return ChampionChange(state, 0.5)


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
        self.service = AdminService(
            self.registry, FakeLifecycle(self.registry, promoter), self.loop, self.bus
        )
        self.handlers = self.service.handlers()

    def changed(self, model: str, version: int) -> None:
        servable = FakeServable(model, version, SIGNATURE, self.reference_path)
        self.tap = self.loop.tap_for(servable)
        self.loop.champion_changed(model, servable)

    async def call(self, request: Message, reply: type[_Reply]) -> _Reply:
        name = type(request).DESCRIPTOR.name.removesuffix("Request")
        handler = self.handlers[f"/trimtab.v1.Admin/{name}"]
        assert isinstance(handler, UnaryHandler)
        return reply.FromString(await handler.handle(request.SerializeToString(), CallContext()))

    def ask(self, request: Message, reply: type[_Reply]) -> _Reply:
        return asyncio.run(self.call(request, reply))

    def watch(self, request: bytes) -> Any:
        handler = self.handlers["/trimtab.v1.Admin/WatchEvents"]
        assert isinstance(handler, StreamHandler)
        return handler.handle(request, CallContext())


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    admin = Admin(tmp_path)
    yield admin
    admin.loop.stop()


def test_versions_are_listed_with_role_state_and_metrics(admin: Admin) -> None:
    publish_version(admin.registry)
    reply = admin.ask(pb.ListVersionsRequest(), pb.ListVersionsResponse)
    (model,) = reply.models
    assert (model.model_name, model.managed, model.revision, model.champion) == ("m", True, 1, 1)
    first, second = model.versions
    assert (first.version, first.role, first.state, first.requests) == (1, "champion", "READY", 5)
    assert first.metrics == {"mae": 1.0} and first.created_ms > 0
    assert (second.role, second.rows) == ("", 50)
    one = admin.ask(pb.ListVersionsRequest(model_name="m"), pb.ListVersionsResponse)
    assert one == reply
    with pytest.raises(NotFoundError):
        admin.ask(pb.ListVersionsRequest(model_name="x"), pb.ListVersionsResponse)


def test_what_the_traffic_log_wrote_and_dropped_is_shown(admin: Admin) -> None:
    log = admin.loop.model("m").context.traffic
    assert log is not None
    admin.tap(batch(*draw(np.random.default_rng(0), 100)))
    assert log.flush()
    log.close()
    admin.tap(batch(*draw(np.random.default_rng(1), 7)))

    (model,) = admin.ask(pb.ListVersionsRequest(), pb.ListVersionsResponse).models

    assert (model.log_rows_written, model.log_rows_dropped, model.log_failing) == (100, 7, "")


def test_a_listener_that_leaves_before_its_first_event_is_forgotten(admin: Admin) -> None:
    async def main() -> None:
        events = admin.watch(pb.WatchEventsRequest().SerializeToString())
        assert admin.bus.stats.subscribers == 1
        await events.aclose()
        assert admin.bus.stats.subscribers == 0

    asyncio.run(main())


def test_promote_and_rollback_say_what_they_did_and_are_told_to_listeners(admin: Admin) -> None:
    publish_version(admin.registry)

    async def main() -> None:
        events = admin.watch(pb.WatchEventsRequest(model_name="m").SerializeToString())
        request = pb.PromoteRequest(
            model_name="m", version=2, expected_revision=1, actor="ann", reason="better"
        )
        done = await admin.call(request, pb.ChangeResponse)
        assert (done.revision, done.champion, done.previous) == (2, 2, 1)
        assert done.elapsed_ms >= 1.5
        back = await admin.call(pb.RollbackRequest(model_name="m"), pb.ChangeResponse)
        assert (back.revision, back.champion, back.previous) == (3, 1, 2)
        seen = []
        async for raw in events:
            event = pb.Event.FromString(raw)
            if event.kind != "published":
                seen.append((event.kind, event.version, event.actor, event.reason))
            if len(seen) == 2:
                break
        await events.aclose()
        assert seen == [
            ("promoted", 2, "ann", "better"),
            ("rolled_back", 1, "operator", "no reason given"),
        ]

    asyncio.run(main())
    history = admin.ask(pb.GetHistoryRequest(model_name="m", limit=2), pb.GetHistoryResponse)
    assert [entry.kind for entry in history.entries] == ["promoted", "rolled_back"]
    assert history.chain_valid and history.entries[0].model_name == "m"
    everything = admin.ask(pb.GetHistoryRequest(model_name="m"), pb.GetHistoryResponse)
    assert len(everything.entries) == 5


def test_changes_that_cannot_be_are_refused_with_the_reason(admin: Admin) -> None:
    with pytest.raises(PreconditionError, match="revision 1, not at the expected 7"):
        admin.ask(
            pb.PromoteRequest(model_name="m", version=1, expected_revision=7), pb.ChangeResponse
        )
    with pytest.raises(PreconditionError, match="no previous"):
        admin.ask(pb.RollbackRequest(model_name="m"), pb.ChangeResponse)
    with pytest.raises(InvalidRequestError, match="version 0"):
        admin.ask(pb.PromoteRequest(model_name="m"), pb.ChangeResponse)
    with pytest.raises(InvalidRequestError, match="NUL"):
        admin.ask(pb.RollbackRequest(model_name="m", reason="a\0b"), pb.ChangeResponse)
    with pytest.raises(InvalidRequestError, match="5,000 characters exceeds 4,096"):
        admin.ask(pb.TrainRequest(model_name="m", actor="x" * 5000), pb.TrainResponse)
    for request, reply in (
        (pb.PromoteRequest(model_name="x", version=1), pb.ChangeResponse),
        (pb.GetDriftRequest(model_name="x"), pb.DriftReport),
        (pb.TrainRequest(model_name="x"), pb.TrainResponse),
        (pb.GetHistoryRequest(model_name="../m"), pb.GetHistoryResponse),
        (pb.AwaitSettledRequest(model_name="x"), pb.AwaitSettledResponse),
    ):
        with pytest.raises(NotFoundError):
            admin.ask(request, reply)


def test_drift_is_reported_feature_by_feature(admin: Admin) -> None:
    random = np.random.default_rng(0)
    admin.tap(batch(*draw(random, 1000, shift=2.0)))
    settled = admin.ask(
        pb.AwaitSettledRequest(model_name="m", observed_rows=1000), pb.AwaitSettledResponse
    )
    assert (settled.observed_rows, settled.champion, settled.revision) == (1000, 1, 1)
    report = admin.ask(pb.GetDriftRequest(model_name="m"), pb.DriftReport)
    assert (report.state, report.reference, report.reference_rows) == ("drift", "training", 20_000)
    assert report.window_rows == 1000, "a full pane is the newest until the next row comes"
    strongest = report.features[0]
    assert strongest.verdict == "drift" and strongest.psi > 0.2
    assert 0 < len(strongest.window_shares) == len(strongest.reference_shares) <= 12
    assert "temp" in report.reason or "variable" in report.reason


def test_a_watermark_is_taken_as_it_is_given_the_first_of_1970_included(admin: Admin) -> None:
    clock = admin.loop.model("m").context.clock
    clock.seen(-10)
    for watermark_ms in (None, 0, 7):
        admin.ask(
            pb.AwaitSettledRequest(model_name="m", watermark_ms=watermark_ms),
            pb.AwaitSettledResponse,
        )
        assert clock.reading().ms == (-10 if watermark_ms is None else watermark_ms)


def test_a_training_is_started_and_waited_for(admin: Admin) -> None:
    request = pb.TrainRequest(model_name="m", actor="ann", reason="because")
    assert admin.ask(request, pb.TrainResponse).training_id == "m-1"
    with pytest.raises(PreconditionError, match="is running: m-1"):
        admin.ask(request, pb.TrainResponse)
    settle = pb.AwaitSettledRequest(model_name="m", timeout_s=0.05)
    with pytest.raises(DeadlineExpiredError, match=r"within 0\.05 s: training m-1"):
        admin.ask(settle, pb.AwaitSettledResponse)
    admin.trainer.trainings[0].finish(TrainingResult("refused", "worse"))
    settle.timeout_s = 20
    admin.ask(settle, pb.AwaitSettledResponse)
    with pytest.raises(InvalidRequestError, match="timeout_s"):
        admin.ask(pb.AwaitSettledRequest(model_name="m", timeout_s=-1), pb.AwaitSettledResponse)


def test_who_waits_for_a_loop_is_told_that_the_server_stops(admin: Admin) -> None:
    settle = pb.AwaitSettledRequest(model_name="m", observed_rows=2**40)

    async def main() -> None:
        waiting = asyncio.ensure_future(admin.call(settle, pb.AwaitSettledResponse))
        while not admin.service._settling:
            await asyncio.sleep(0)
        admin.service.stop_waiting()
        for each in (waiting, admin.call(settle, pb.AwaitSettledResponse)):
            with pytest.raises(UnavailableError, match=SHUTTING_DOWN):
                await asyncio.wait_for(each, 30)

    asyncio.run(main())


def test_a_directory_that_is_away_is_unavailable_and_named(admin: Admin) -> None:
    path = admin.registry.path
    away = path.with_name("away")
    path.rename(away)
    try:
        for request, reply in [
            (pb.GetHistoryRequest(model_name="m"), pb.GetHistoryResponse),
            (pb.ListVersionsRequest(), pb.ListVersionsResponse),
            (pb.AwaitSettledRequest(model_name="m"), pb.AwaitSettledResponse),
        ]:
            with pytest.raises(UnavailableError, match=f"{path} cannot be used: .*No such file"):
                admin.ask(request, reply)
    finally:
        away.rename(path)


def test_a_message_that_is_none_is_refused(admin: Admin) -> None:
    async def main() -> None:
        for name, handler in admin.handlers.items():
            with pytest.raises(InvalidRequestError, match="not a "):
                if isinstance(handler, UnaryHandler):
                    await handler.handle(b"\xff\xff", CallContext())
                else:
                    assert isinstance(handler, StreamHandler)
                    await anext(aiter(handler.handle(b"\xff\xff", CallContext())))
            assert name.startswith("/trimtab.v1.Admin/")

    asyncio.run(main())
