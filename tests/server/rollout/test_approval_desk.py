"""Versions that wait for approval, with a real registry and a real control loop."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loop_fakes import publish_version
from tests.server.rollout.test_rollout_desk import RolloutWorld, constant, noisy
from trimtab.registry.directory import ModelDirectory
from trimtab.server.errors import PreconditionError, UnavailableError
from trimtab.server.rollout.approval_desk import Answer, Answered

Build = Callable[..., RolloutWorld]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Build]:
    made: list[RolloutWorld] = []

    def build(**promotion: Any) -> RolloutWorld:
        made.append(RolloutWorld(tmp_path, approval=True, approval_s=7200, **promotion))
        return made[-1]

    yield build
    for each in made:
        each.loop.stop()


def answer(
    w: RolloutWorld, version: int, approve: bool = True, reason: str = "looks right"
) -> Answered:
    given = Answer(version, approve, "ann", reason)
    answered = w.loop.answer_approval("m", given).result(20)
    w.settle()
    return answered


def test_a_version_that_passed_its_gates_waits_and_nothing_changes(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    assert (w.champion, w.promoter.held) == (1, [])
    wanted = w.last("approval_wanted")
    assert wanted.version == version
    assert "waits for approval, for 2 h at most" in wanted.reason
    assert "MAE 1 against 2" in wanted.reason
    assert wanted.evidence["training_id"] == "m-1" and "gates" in wanted.evidence
    assert wanted.evidence["metrics"] == {} and wanted.evidence["against"] == 1
    status = w.status
    assert (status.phase, status.version, status.against) == ("approval", version, 1)
    assert (status.awaiting_approval, status.deadline_ms) == (version, w.wall.ms + 7_200_000)
    assert status.reason.startswith("version 2 waits for approval, 2 h left: ")
    w.wall.advance(1)
    assert "1 h left" in w.status.reason


@pytest.mark.parametrize(
    ("policy", "kinds", "text"),
    [
        ("auto", ["approved", "promoted", "rollout_started"], "version 2 is champion"),
        ("shadow", ["approved", "rollout_started"], "version 2 shadows version 1 on 1,000 rows"),
        ("canary", ["approved", "rollout_started"], "version 2 answers 10% of the requests"),
    ],
)
def test_an_approved_version_goes_on_as_the_policy_says(
    world: Build, policy: str, kinds: list[str], text: str
) -> None:
    w = world(policy=policy)
    version = w.train(noisy)
    w.wall.advance(60)
    answered = answer(w, version)
    assert w.since("approved") == kinds and answered.text.startswith(text)
    approved = w.last("approved")
    assert (approved.actor, approved.reason) == ("ann", "looks right")
    assert approved.evidence["waited_s"] == 60
    phase = "bake" if policy == "auto" else policy
    assert (w.status.phase, w.status.awaiting_approval) == (phase, 0)
    if policy == "auto":
        promoted = w.last("promoted")
        assert "approved by ann: looks right" in promoted.reason
        assert promoted.evidence["training_id"] == "m-1" and promoted.actor == "trimtab"
        assert answered.state.champion == version
    with pytest.raises(PreconditionError, match="does not wait for approval: none does"):
        answer(w, version)


def test_an_approved_version_that_turns_out_bad_is_rolled_back_all_the_same(world: Build) -> None:
    w = world()
    answer(w, w.train(constant))
    w.chunk(400)
    assert w.champion == 1 and w.history[-1] == "rolled_back"


def test_a_rejected_version_is_refused_and_blocked_with_who_and_why(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    answered = answer(w, version, approve=False, reason="trained on the strike")
    assert w.since("approval_wanted") == ["approval_wanted", "blocked", "refused"]
    refused = w.last("refused")
    assert (refused.actor, refused.version) == ("ann", version)
    assert refused.reason == "rejected by ann: trained on the strike"
    assert w.directory.state().blocked == {version: refused.reason}
    assert answered.text == "version 2 was refused and is blocked" and w.champion == 1
    assert (w.status.phase, w.status.version, w.status.reason) == ("none", 2, refused.reason)


def test_a_version_that_nobody_approves_in_time_is_refused(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    w.wall.advance(7199)
    w.tick()
    assert w.status.phase == "approval"
    w.wall.advance(1)
    with pytest.raises(PreconditionError, match="none does"):
        answer(w, version)  # it is late, and no tick has noticed yet
    assert w.last("refused").reason == "nobody approved version 2 within 2 h"
    assert not w.directory.state().blocked and w.champion == 1


def test_a_newer_version_overtakes_the_one_that_waits(world: Build) -> None:
    w = world()
    w.train(noisy)
    w.train(noisy)
    ended = w.last("rollout_ended")
    assert ended.version == 2 and "version 3 came, which passed its gates" in ended.reason
    with pytest.raises(PreconditionError, match=r"version 2 .* does not wait .*: version 3 does"):
        answer(w, 2)
    assert answer(w, 3).text == "version 3 is champion"


def test_a_bake_goes_on_while_a_newer_version_waits(world: Build) -> None:
    w = world()
    answer(w, w.train(noisy))
    w.chunk()
    newer = w.train(noisy)
    status = w.status
    assert (status.phase, status.version, status.awaiting_approval) == ("bake", 2, newer)
    assert "version 3 waits for approval, 2 h left" in status.reason
    answer(w, newer)
    assert (w.champion, w.status.phase, w.status.version) == (newer, "bake", newer)
    assert "version 3 was approved" in w.last("rollout_ended").reason


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("other", "the champion was changed meanwhile (revision 1 → 2, now version 3)"),
        ("itself", "version 2 was made champion by hand"),
        ("block", "smells"),
        ("remove", "the version was removed"),
    ],
)
def test_a_wait_whose_ground_is_gone_ends_and_is_not_approved(
    world: Build, deed: str, words: str
) -> None:
    w = world(bake=False)
    version = w.train(noisy)
    if deed == "other":
        w.promoter.promote("m", publish_version(w.registry), actor="bob", reason="this one")
    elif deed == "itself":
        w.promoter.promote("m", version, actor="bob", reason="at once")
    elif deed == "block":
        w.directory.block(version, actor="bob", reason="smells")
    else:
        w.directory.remove(version, actor="bob", reason="too big")
    champion = w.champion
    with pytest.raises(PreconditionError, match="none does"):
        answer(w, version)
    ended = w.last("rollout_ended")
    assert ended.version == version and words in ended.reason and w.champion == champion
    assert w.status.phase == "none"


def test_a_frozen_model_is_approved_after_it_was_unfrozen(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    w.directory.freeze(actor="bob", reason="holidays")
    w.tick()
    with pytest.raises(PreconditionError, match=r"while the model is frozen \(holidays\)"):
        answer(w, version)
    assert w.status.phase == "approval"
    w.directory.unfreeze(actor="bob", reason="back")
    assert answer(w, version).state.champion == version


def test_a_wait_goes_on_with_the_next_server(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    w.loop.stop()
    again = RolloutWorld(w.registry.path, approval=True, approval_s=1)
    try:
        assert (again.status.phase, again.status.version) == ("approval", version)
        assert "2 h left" in again.status.reason, "what was promised holds"
        assert answer(again, version).text == "version 2 is champion"
        assert again.last("promoted").evidence["training_id"] == "m-1"
    finally:
        again.loop.stop()


def test_a_deadline_that_passed_while_no_server_ran_has_passed(world: Build) -> None:
    w = world()
    w.train(noisy)
    w.loop.stop()
    entry = w.directory.history().entries[-1]
    past = {**entry.evidence, "deadline_ms": entry.evidence["since_ms"]}
    w.directory.record("approval_wanted", actor="trimtab", reason="", version=2, evidence=past)
    again = w.restart()
    try:
        assert again.status.phase == "none" and again.history[-1] == "refused"
    finally:
        again.loop.stop()


@pytest.mark.parametrize("frozen", [False, True])
def test_an_approval_that_a_crash_cut_short_is_carried_out(world: Build, frozen: bool) -> None:
    w = world()
    version = w.train(noisy)
    w.loop.stop()
    if frozen:
        w.directory.freeze(actor="bob", reason="holidays")
    w.directory.record("approved", actor="ann", reason="fine", version=version)
    again = w.restart()
    try:
        again.settle()
        assert again.champion == (1 if frozen else version)
        if frozen:
            assert "since then: the model is frozen: holidays" in again.last("rollout_ended").reason
        else:
            assert "approved before the server was started anew" in again.last("promoted").reason
            assert again.status.phase == "bake"
    finally:
        again.loop.stop()


def test_an_approved_version_that_does_not_load_is_held_and_the_answer_says_so(
    world: Build,
) -> None:
    w = world()
    version = w.train(noisy)
    w.promoter.error = PreconditionError("version 2 cannot be loaded: it is a brick")
    answered = answer(w, version)
    assert answered.text.startswith("version 2 was approved and is held: ")
    assert "it is a brick" in answered.text and answered.state.champion == 1
    assert w.last("held").version == version


def test_an_answer_that_cannot_be_recorded_changes_nothing(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world()
    version = w.train(noisy)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ModelDirectory, "record", full)
        with pytest.raises(UnavailableError, match=r"cannot be recorded: .*No space"):
            answer(w, version)
        assert (w.champion, w.status.phase) == (1, "approval")
    assert answer(w, version).state.champion == version


def test_a_policy_that_became_manual_meanwhile_holds_what_was_approved(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    text = '[recipe]\ntask = "regression"\n[promotion]\npolicy = "manual"\napproval = false\n'
    (w.directory.path / "trimtab.toml").write_text(text)
    w.tick()
    assert w.status.phase == "approval", "it was asked for"
    assert "the policy is manual" in answer(w, version).text
    assert w.champion == 1
