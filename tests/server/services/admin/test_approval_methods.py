"""Approve and Reject, through the service."""

from pathlib import Path

import pytest

from tests.admin_world import Admin
from tests.loop_fakes import publish_version
from trimtab.proto import admin_pb2 as pb
from trimtab.server.errors import InvalidRequestError, NotFoundError, PreconditionError
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.services.admin.gate import VIEWERS_METHODS


def candidate(admin: Admin) -> int:
    """A training's version, which passed its gates and waits."""
    path: Path = admin.registry.path / "m" / "trimtab.toml"
    path.write_text("[recipe]\n[promotion]\napproval = true\nbake = false\n")
    model = admin.loop.model("m")
    model.context.post(model.on_tick)  # which reads it
    admin.ask(pb.TrainRequest(model_name="m", actor="ann"), pb.TrainResponse)
    version = publish_version(admin.registry)
    admin.trainer.trainings[-1].finish(TrainingResult("published", "better", version))
    settle(admin)
    return version


def settle(admin: Admin) -> None:
    request = pb.AwaitSettledRequest(model_name="m", timeout_s=20)
    admin.ask(request, pb.AwaitSettledResponse)


def test_the_version_that_waits_is_shown_and_approved(admin: Admin) -> None:
    version = candidate(admin)
    shown = admin.ask(pb.RolloutStatusRequest(model_name="m"), pb.RolloutStatusResponse)
    assert (shown.phase, shown.version, shown.awaiting_approval) == ("approval", version, version)
    assert "waits for approval, 6 d left" in shown.reason or "7 d left" in shown.reason
    with pytest.raises(PreconditionError, match=r"version 1 .* does not wait .*: version 2 does"):
        admin.ask(pb.ApproveRequest(model_name="m", version=1), pb.ApprovalResponse)
    request = pb.ApproveRequest(model_name="m", version=version, actor="mallory", reason="fine")
    done = admin.ask(request, pb.ApprovalResponse, actor="ann")
    assert (done.champion, done.revision, done.phase) == (version, 2, "none")
    assert done.text == "version 2 is champion" and done.elapsed_ms > 0
    history = admin.registry.model("m").history().entries
    assert [(each.kind, each.actor) for each in history[-2:]] == [
        ("approved", "ann"),  # the credential's name, whatever the request says
        ("promoted", "trimtab"),
    ]


def test_the_version_that_waits_is_rejected(admin: Admin) -> None:
    version = candidate(admin)
    request = pb.RejectRequest(model_name="m", version=version, actor="bob", reason="too risky")
    done = admin.ask(request, pb.ApprovalResponse)
    assert (done.champion, done.text) == (1, "version 2 was refused and is blocked")
    assert "too risky" in admin.registry.model("m").state().blocked[version]
    with pytest.raises(PreconditionError, match="none does"):
        admin.ask(request, pb.ApprovalResponse)


def test_what_cannot_be_answered_is_refused_in_words(admin: Admin) -> None:
    with pytest.raises(NotFoundError):
        admin.ask(pb.ApproveRequest(model_name="x", version=1), pb.ApprovalResponse)
    with pytest.raises(InvalidRequestError, match="version 0"):
        admin.ask(pb.RejectRequest(model_name="m"), pb.ApprovalResponse)
    with pytest.raises(InvalidRequestError, match="reason of 5,000"):
        request = pb.ApproveRequest(model_name="m", version=1, reason="x" * 5000)
        admin.ask(request, pb.ApprovalResponse)


def test_an_answer_takes_an_operator() -> None:
    assert not {"Approve", "Reject"} & VIEWERS_METHODS
