"""What operators decide, through the service and into state.json and the history."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.admin_world import Admin
from tests.loop_fakes import publish_version
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.errors import RevisionConflictError
from trimtab.server.errors import (
    AbortedError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from trimtab.server.lifecycle.champion_changes import ChampionChange


def versions(admin: Admin) -> pb.ModelVersions:
    (model,) = admin.ask(pb.ListVersionsRequest(), pb.ListVersionsResponse).models
    return model


def promote(admin: Admin, *numbers: int) -> None:
    for version in numbers:
        request = pb.PromoteRequest(model_name="m", version=version, actor="ann", reason="tried")
        admin.ask(request, pb.ChangeResponse)


def test_what_is_decided_is_shown_and_recorded_with_who_and_why(admin: Admin) -> None:
    publish_version(admin.registry)
    for request in (
        pb.FreezeRequest(model_name="m", actor="ann", reason="audit"),
        pb.PinRequest(model_name="m", version=1, actor="ann", reason="reported"),
        pb.BlockRequest(model_name="m", version=2, actor="ann", reason="bad labels"),
    ):
        done = admin.ask(request, pb.ChangeResponse)
        assert (done.revision, done.champion, done.unchanged) == (1, 1, False)
        assert admin.ask(request, pb.ChangeResponse).unchanged
    model = versions(admin)
    assert (model.frozen, model.frozen_reason) == (True, "audit")
    first, second = model.versions
    assert first.pinned and not first.blocked
    assert (second.blocked, second.blocked_reason, second.pinned) == (True, "bad labels", False)
    for reverse in (
        pb.UnfreezeRequest(model_name="m", actor="bob"),
        pb.UnpinRequest(model_name="m", version=1, actor="bob"),
        pb.UnblockRequest(model_name="m", version=2, actor="bob"),
    ):
        assert not admin.ask(reverse, pb.ChangeResponse).unchanged
    model = versions(admin)
    assert not model.frozen and not any(each.pinned or each.blocked for each in model.versions)
    told = admin.ask(pb.GetHistoryRequest(model_name="m", limit=6), pb.GetHistoryResponse).entries
    assert [(each.kind, each.version, each.actor, each.reason) for each in told] == [
        ("frozen", 0, "ann", "audit"),
        ("pinned", 1, "ann", "reported"),
        ("blocked", 2, "ann", "bad labels"),
        ("unfrozen", 0, "bob", "no reason given"),
        ("unpinned", 1, "bob", "no reason given"),
        ("unblocked", 2, "bob", "no reason given"),
    ]
    assert admin.lifecycle.looked_at, "nobody should wait for the watcher"


def test_a_rollback_may_go_further_back_within_the_window(admin: Admin) -> None:
    for _ in range(3):
        publish_version(admin.registry)
    promote(admin, 2, 3)
    assert (versions(admin).previous, list(versions(admin).earlier)) == (2, [1])
    roles = {each.version: each.role for each in versions(admin).versions}
    assert roles == {1: "earlier", 2: "previous", 3: "champion", 4: ""}
    with pytest.raises(PreconditionError, match=r"version 4 is not among .* \(2, 1\)"):
        admin.ask(pb.RollbackRequest(model_name="m", version=4), pb.ChangeResponse)
    done = admin.ask(pb.RollbackRequest(model_name="m", version=1), pb.ChangeResponse)
    assert (done.champion, done.previous) == (1, 3)
    done = admin.ask(pb.RollbackRequest(model_name="m"), pb.ChangeResponse)
    assert (done.champion, done.previous) == (3, 1)


def test_the_actor_of_a_credential_goes_before_what_the_request_says(admin: Admin) -> None:
    request = pb.PinRequest(model_name="m", version=1, actor="the chief", reason="mine")
    admin.ask(request, pb.ChangeResponse, actor="grace")
    promoted = publish_version(admin.registry)
    admin.ask(
        pb.PromoteRequest(model_name="m", version=promoted, actor="the chief"),
        pb.ChangeResponse,
        actor="grace",
    )
    training = admin.ask(
        pb.TrainRequest(model_name="m", actor="the chief"), pb.TrainResponse, actor="grace"
    )
    assert training.training_id
    entries = admin.registry.model("m").history().entries
    by_kind = {each.kind: each.actor for each in entries if each.kind != "published"}
    assert by_kind["pinned"] == by_kind["promoted"] == "grace"
    assert admin.trainer.trainings[0].options["actor"] == "grace"
    assert "the chief" not in {each.actor for each in entries}


def test_a_lost_compare_and_swap_tells_the_revision_and_a_lost_race_to_try_again(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for request in (
        pb.PinRequest(model_name="m", version=1, expected_revision=9),
        pb.FreezeRequest(model_name="m", expected_revision=9),
        pb.RollbackRequest(model_name="m", expected_revision=9),
    ):
        with pytest.raises(PreconditionError, match="at revision 1, not at the expected 9"):
            admin.ask(request, pb.ChangeResponse)

    def outrun(*arguments: object, **why: object) -> ChampionChange:
        lost = RevisionConflictError("m", expected=1, actual=2)
        raise PreconditionError(str(lost)) from lost

    monkeypatch.setattr(admin.lifecycle, "promote", outrun)
    with pytest.raises(AbortedError, match=r"others kept changing .* at revision 2.* try again"):
        admin.ask(pb.PromoteRequest(model_name="m", version=1), pb.ChangeResponse)
    expecting = pb.PromoteRequest(model_name="m", version=1, expected_revision=1)
    with pytest.raises(PreconditionError):
        admin.ask(expecting, pb.ChangeResponse)


def test_what_is_not_there_or_cannot_be_is_refused_and_nothing_is_recorded(admin: Admin) -> None:
    before = admin.registry.model("m").history().entries
    for request in (
        pb.PinRequest(model_name="m", version=7),
        pb.BlockRequest(model_name="m", version=7),
        pb.RemoveVersionRequest(model_name="m", version=7),
        pb.FreezeRequest(model_name="x"),
        pb.PinRequest(model_name="../m", version=1),
    ):
        with pytest.raises(NotFoundError):
            admin.ask(request, pb.ChangeResponse)
    for wrong in (
        pb.PinRequest(model_name="m"),
        pb.RemoveVersionRequest(model_name="m", version=-1),
        pb.RollbackRequest(model_name="m", version=-1),
        pb.FreezeRequest(model_name="m", reason="\0"),
    ):
        with pytest.raises(InvalidRequestError):
            admin.ask(wrong, pb.ChangeResponse)
    (admin.registry.path / "plain" / "1").mkdir(parents=True)
    (admin.registry.path / "plain" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(PreconditionError, match="'plain' is not managed"):
        admin.ask(pb.FreezeRequest(model_name="plain"), pb.ChangeResponse)
    assert admin.registry.model("m").history().entries == before


def test_a_version_that_is_needed_is_not_removed_and_one_that_is_not_is(admin: Admin) -> None:
    for _ in range(5):
        publish_version(admin.registry)
    promote(admin, 2)
    pin = pb.PinRequest(model_name="m", version=3)
    admin.ask(pin, pb.ChangeResponse)
    recipe = admin.registry.model("m").recipe_path
    recipe.write_text("[recipe]\n[serving]\nversions = [4]\n")
    for version, why in (
        (1, "the previous champion"),
        (2, "the champion"),
        (3, "pinned"),
        (4, r"kept loaded by \[serving\] versions"),
    ):
        request = pb.RemoveVersionRequest(model_name="m", version=version)
        with pytest.raises(PreconditionError, match=f"version {version} of model 'm' is {why}"):
            admin.ask(request, pb.ChangeResponse)
    asked = pb.RetainRequest(model_name="m", keep=1, dry_run=True, actor="ann", reason="disk")
    planned = admin.ask(asked, pb.RetainResponse)
    assert list(planned.removed) == [5]
    assert {each.version: each.reason for each in planned.kept} == {
        1: "the previous champion",
        2: "the champion",
        3: "pinned",
        4: "kept loaded by [serving] versions in its trimtab.toml",
    }
    assert admin.registry.model("m").versions() == [1, 2, 3, 4, 5, 6]
    asked.dry_run = False
    assert admin.ask(asked, pb.RetainResponse) == planned
    admin.ask(pb.RemoveVersionRequest(model_name="m", version=6), pb.ChangeResponse)
    assert admin.registry.model("m").versions() == [1, 2, 3, 4]
    asked.keep = 0
    with pytest.raises(InvalidRequestError, match="keep 0"):
        admin.ask(asked, pb.RetainResponse)
    asked.keep = 1
    recipe.write_text("[serving]\nversions = 4\n")
    with pytest.raises(PreconditionError, match="must be a list"):
        admin.ask(asked, pb.RetainResponse)
    with pytest.raises(NotFoundError, match=r"no version 5: ann removed it \(disk\)"):
        admin.ask(pb.DescribeVersionRequest(model_name="m", version=5), pb.VersionDescription)


def test_a_version_is_described_in_full(admin: Admin) -> None:
    directory = admin.registry.model("m")
    with directory.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"not a model")
        report = {"gates": [{"name": "parity", "verdict": "pass", "reason": "equal"}], "rows": 5}
        (staged.path / "report.json").write_text(json.dumps(report))
        staged.publish(
            signature=directory.manifest(1).signature,
            task="regression",
            lineage={"seed": 3},
            metrics={"mae": 0.5},
            actor="ann",
            reason="new columns",
        )
    admin.ask(pb.PinRequest(model_name="m", version=2, actor="bob"), pb.ChangeResponse)
    found = admin.ask(pb.DescribeVersionRequest(model_name="m", version=2), pb.VersionDescription)
    assert (found.info.version, found.info.state, found.info.pinned) == (2, "READY", True)
    assert (found.info.rows, found.info.metrics["mae"]) == (50, 0.5)
    assert (found.task, found.managed, found.signed) == ("regression", True, False)
    numeric, categorical = found.inputs
    assert (numeric.name, numeric.datatype, list(numeric.shape)) == ("numeric", "FP32", [-1, 2])
    assert list(numeric.columns) == ["temp", "wind"]
    assert (categorical.name, found.outputs[0].name) == ("categorical", "variable")
    assert (found.files[0].name, found.files[0].size) == ("model.onnx", 11)
    assert all(len(each.sha256) == 64 for each in found.files)
    assert (found.gates[0].name, found.gates[0].verdict) == ("parity", "pass")
    assert json.loads(found.report_json) == report
    assert json.loads(found.lineage_json) == {"seed": 3}
    assert [(each.kind, each.actor) for each in found.history] == [
        ("published", "ann"),
        ("pinned", "bob"),
    ]
    champion = admin.ask(pb.DescribeVersionRequest(model_name="m"), pb.VersionDescription)
    assert (champion.info.version, champion.info.role) == (1, "champion")


def test_the_history_is_cut_to_what_was_asked_and_says_who_was_champion(admin: Admin) -> None:
    publish_version(admin.registry)
    promote(admin, 2)
    entries = admin.registry.model("m").history().entries
    second = next(each for each in entries if (each.kind, each.version) == ("promoted", 2))
    of_second = admin.ask(pb.GetHistoryRequest(model_name="m", version=2), pb.GetHistoryResponse)
    assert {each.version for each in of_second.entries} == {2}
    since = pb.GetHistoryRequest(model_name="m", since_ms=second.time_ms)
    found = [each.sequence for each in admin.ask(since, pb.GetHistoryResponse).entries]
    assert second.sequence in found
    assert all(each.time_ms < second.time_ms for each in entries if each.sequence < found[0])
    assert admin.ask(
        pb.GetHistoryRequest(model_name="m", since_ms=second.time_ms + 10**9), pb.GetHistoryResponse
    ) == pb.GetHistoryResponse(chain_valid=True)
    at = pb.GetHistoryRequest(model_name="m", champion_at_ms=second.time_ms, limit=1)
    answer = admin.ask(at, pb.GetHistoryResponse)
    assert (answer.champion_at.version, answer.champion_at.actor) == (2, "ann")
    at.champion_at_ms = entries[0].time_ms - 1
    assert not admin.ask(at, pb.GetHistoryResponse).HasField("champion_at")


def test_a_broken_chain_is_told_with_its_line(admin: Admin) -> None:
    path = admin.registry.model("m").path / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b"for a test", b"for a jest"))
    answer = admin.ask(pb.GetHistoryRequest(model_name="m"), pb.GetHistoryResponse)
    assert not answer.chain_valid
    assert "line 1: entry 1 was altered" in answer.chain_error


def test_a_damaged_state_is_named_and_nothing_is_changed(admin: Admin) -> None:
    (admin.registry.model("m").path / "state.json").write_text("{")
    with pytest.raises(PreconditionError, match=r"state\.json"):
        admin.ask(pb.FreezeRequest(model_name="m"), pb.ChangeResponse)


def test_a_directory_that_is_away_is_unavailable_for_changes_too(admin: Admin) -> None:
    path = admin.registry.path
    away = path.with_name("away")
    path.rename(away)
    try:
        with pytest.raises(UnavailableError, match="cannot be used"):
            admin.ask(pb.FreezeRequest(model_name="m"), pb.ChangeResponse)
    finally:
        away.rename(path)


def test_verify_tells_of_each_model_and_what_is_wrong_with_it(admin: Admin) -> None:
    publish_version(admin.registry, "other")

    def verify(model: str = "") -> list[pb.VerifyFinding]:
        async def main() -> list[pb.VerifyFinding]:
            replies = admin.stream("Verify", pb.VerifyRequest(model_name=model))
            return [pb.VerifyFinding.FromString(reply) async for reply in replies]

        return asyncio.run(main())

    assert [(each.model_name, each.verdict) for each in verify()] == [("m", "ok"), ("other", "ok")]
    file: Path = admin.registry.model("m").version_path(1) / "model.onnx"
    file.write_bytes(b"another one")
    (wrong,) = verify("m")
    assert (wrong.model_name, wrong.version, wrong.verdict) == ("m", 1, "wrong")
    assert str(file) in wrong.text
    with pytest.raises(NotFoundError):
        verify("x")


def test_a_model_without_a_roll_out_says_so(admin: Admin) -> None:
    status = admin.ask(pb.RolloutStatusRequest(model_name="m"), pb.RolloutStatusResponse)
    assert (status.model_name, status.phase, status.version) == ("m", "none", 0)
    assert not status.HasField("latency_ratio"), "nothing is known of it"
    with pytest.raises(NotFoundError):
        admin.ask(pb.RolloutStatusRequest(model_name="x"), pb.RolloutStatusResponse)
