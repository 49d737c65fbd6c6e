"""The admin handlers over a real registry and control loop, with a lifecycle that loads nothing."""

import asyncio

import numpy as np
import pytest

from tests.admin_world import Admin
from tests.loop_fakes import batch, draw, publish_version
from trimtab.proto import admin_pb2 as pb
from trimtab.server.errors import (
    DeadlineExpiredError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from trimtab.server.inference.executor import SHUTTING_DOWN
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.services.handlers import CallContext, StreamHandler, UnaryHandler


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
            if event.kind in ("promoted", "rolled_back"):
                seen.append((event.kind, event.version, event.actor, event.reason))
            if len(seen) == 2:
                break
        await events.aclose()
        assert seen == [
            ("promoted", 2, "ann", "better"),
            ("rolled_back", 1, "operator", "no reason given"),
        ]

    asyncio.run(main())
    history = admin.ask(pb.GetHistoryRequest(model_name="m"), pb.GetHistoryResponse)
    kinds = [entry.kind for entry in history.entries]
    assert kinds[:4] == ["published", "promoted", "published", "promoted"]
    assert "rolled_back" in kinds[4:]
    assert history.chain_valid and history.entries[0].model_name == "m"
    newest = admin.ask(pb.GetHistoryRequest(model_name="m", limit=2), pb.GetHistoryResponse)
    first, second = newest.entries
    assert second.sequence == first.sequence + 1 >= len(history.entries), "the loop goes on"


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
        while not admin.service.waiting:
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
