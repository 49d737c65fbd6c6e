"""The lifecycle as a specification: what is loaded, who answers, what a change may not break."""

import fcntl
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.lifecycle_world import World
from tests.plane import Refused, Requests
from trimtab.registry import durable
from trimtab.registry.directory import ModelDirectory
from trimtab.server.errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from trimtab.server.inference.servable import Servable
from trimtab.server.lifecycle.version_plan import VersionState

READY, UNLOADED, FAILED = VersionState.READY, VersionState.UNLOADED, VersionState.FAILED


# -- starting


def test_an_empty_repository_is_ready(world: World) -> None:
    assert not world.manager.ready()
    world.manager.start()
    assert world.manager.ready()
    assert world.manager.statuses() == ()


def test_at_the_start_the_champion_and_the_previous_one_are_loaded(world: World) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.directory.promote(3, actor="a", reason="r")
    world.manager.start()
    assert world.states() == {1: READY, 2: UNLOADED, 3: READY}
    assert world.predict() == 3.0 and world.predict("1") == 1.0
    assert world.champions == [("m", 3)]
    assert [event[:3] for event in world.events] == [("loaded", "m", 3), ("loaded", "m", 1)]
    resolve = world.manager.resolve
    assert world.manager.loaded() == (("m", 1, resolve("m", "1")), ("m", 3, resolve("m", "3")))


def test_versions_that_the_operator_wants_are_loaded_too(world: World) -> None:
    for factor in (1.0, 2.0):
        world.publish(factor)
    (world.models_dir / "m/trimtab.toml").write_text("[serving]\nversions = [2]\n")
    world.manager.start()
    assert world.predict("2") == 2.0
    assert world.predict() == 1.0


def test_a_recipe_with_a_mistake_is_told_and_does_not_stop_the_model(world: World) -> None:
    world.publish(1.0)
    (world.models_dir / "m/trimtab.toml").write_text("[serving]\nversion = [2]\n")
    world.manager.start()
    assert world.predict() == 1.0
    status = world.manager.status("m")
    assert status is not None and "did you mean versions?" in status.reason


def test_what_was_recovered_is_told(world: World) -> None:
    world.publish(1.0)
    history = world.models_dir / "m/history.jsonl"
    history.write_bytes(history.read_bytes() + b'{"torn')
    world.manager.start()
    assert ("recovered", "m", 0) in [event[:3] for event in world.events]


def test_a_broken_champion_at_the_start_lets_the_previous_one_answer(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.directory.promote(2, actor="a", reason="r")
    (world.models_dir / "m/2/model.onnx").write_bytes(b"garbage")
    world.manager.start()
    assert world.predict() == 1.0
    assert world.states() == {1: READY, 2: FAILED}
    assert "has 7 bytes" in world.reason(2)
    assert world.manager.ready()


def test_a_champion_that_cannot_serve_and_has_no_stand_in_makes_the_server_not_ready(
    world: World,
) -> None:
    world.publish(1.0)
    (world.models_dir / "m/1/model.onnx").write_bytes(b"garbage")
    world.manager.start()
    assert not world.manager.ready()
    with pytest.raises(NotFoundError, match="'m' has no available versions"):
        world.manager.resolve("m", "")


def test_a_model_that_has_only_a_recipe_does_not_make_the_server_unready(world: World) -> None:
    (world.models_dir / "m").mkdir()
    (world.models_dir / "m/trimtab.toml").write_text("")
    world.manager.start()
    assert world.manager.ready()
    status = world.manager.status("m")
    assert status is not None and status.reason == "no versions"


def test_a_state_that_cannot_be_read_is_told_and_makes_the_server_not_ready(world: World) -> None:
    world.publish(1.0)
    (world.models_dir / "m/state.json").write_text("{")
    world.manager.start()
    assert not world.manager.ready()
    status = world.manager.status("m")
    assert status is not None and "state.json" in status.reason


# -- what resolve says


def test_unknown_models_and_versions_are_refused_in_tritons_words(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    for model, version, kind, text in [
        ("x", "", NotFoundError, "Request for unknown model: 'x' is not found"),
        ("m", "99", NotFoundError, "Request for unknown model: 'm' version 99 is not found"),
        (
            "m",
            "2",
            UnavailableError,
            "Request for unknown model: 'm' version 2 is not at ready state",
        ),
        (
            "m",
            "v1",
            InvalidRequestError,
            (
                "failed to get model version from specified version string 'v1' "
                "(version should be an integral value > 0)"
            ),
        ),
    ]:
        with pytest.raises(kind) as caught:
            world.manager.resolve(model, version)
        assert str(caught.value) == text
    for version in ("0", "-1", "1.0", "9" * 5000, "²"):
        with pytest.raises(InvalidRequestError):
            world.manager.resolve("m", version)


def test_a_version_may_be_written_with_zeros(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    assert world.manager.resolve("m", "001") is world.manager.resolve("m", "1")


def test_before_the_start_models_are_unavailable_and_not_unknown(world: World) -> None:
    world.publish(1.0)
    with pytest.raises(UnavailableError, match="the server is starting"):
        world.manager.resolve("m", "")


def test_a_model_whose_only_version_is_loading_is_unavailable(world: World) -> None:
    world.publish(1.0)
    seen: list[str] = []

    def loading(version: int) -> None:
        assert world.states() == {1: VersionState.LOADING}
        try:
            world.manager.resolve("m", "")
        except UnavailableError as error:
            seen.append(str(error))

    world.loading = loading
    world.manager.start()
    assert seen == ["Request for unknown model: 'm' version 1 is not at ready state"]


# -- following the registry


def test_a_promotion_by_another_process_is_followed(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    ModelDirectory(world.models_dir / "m").promote(2, actor="other", reason="r")
    world.follow()
    assert (world.predict(), world.predict("1")) == (2.0, 1.0)
    assert world.champions == [("m", 1), ("m", 2)]


def test_changes_are_noticed_by_themselves(world: World) -> None:
    world.publish(1.0)
    world.manager.stop()
    world.manager = world.make(watch=True)
    world.manager.start()
    world.publish(2.0)
    world.directory.promote(2, actor="other", reason="r")
    world.wait_for("loaded", 2)
    world.follow()
    assert world.predict() == 2.0


def test_a_model_that_appears_is_served_and_one_that_goes_is_not(world: World) -> None:
    world.manager.start()
    world.publish(1.0)
    world.follow()
    assert world.predict() == 1.0
    shutil.rmtree(world.models_dir / "m")
    world.follow()
    with pytest.raises(NotFoundError, match="'m' is not found"):
        world.predict()
    assert world.champions == [("m", 1), ("m", None)]
    assert world.manager.status("m") is None


def test_while_a_version_loads_the_old_one_answers(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    answers: list[float] = []
    world.loading = lambda version: answers.append(world.predict())
    world.directory.promote(2, actor="other", reason="r")
    world.follow()
    assert answers == [1.0]
    assert world.predict() == 2.0


@pytest.mark.parametrize("damage", ["hash", "not onnx", "no manifest", "manifest key", "golden"])
def test_a_broken_version_is_refused_with_its_reason_and_the_old_one_serves_on(
    world: World, damage: str, tmp_path: Path
) -> None:
    world.publish(1.0)
    world.manager.start()
    path = world.models_dir / "m/2"
    if damage == "golden":
        golden = models.golden_of(models.scaled(9.0), tmp_path)
        world.publish(2.0, golden=golden)
        expected = "golden rows"
    elif damage == "not onnx":
        signature = world.directory.manifest(1).signature
        models.publish(world.models_dir, "m", b"garbage", signature=signature)
        expected = "onnxruntime refuses model.onnx"
    else:
        world.publish(2.0)
        if damage == "hash":
            data = bytearray((path / "model.onnx").read_bytes())
            data[-1] ^= 1
            (path / "model.onnx").write_bytes(data)
            expected = "SHA-256"
        elif damage == "manifest key":
            text = (path / "manifest.json").read_text()
            (path / "manifest.json").write_text(text.replace('"files"', '"fails"'))
            expected = "files"
        else:
            (path / "manifest.json").unlink()
            expected = "manifest.json: missing"
    # What a promotion by another process would have written.
    state = world.models_dir / "m/state.json"
    state.write_text(state.read_text().replace('"champion": 1', '"champion": 2'))
    world.follow()
    assert world.predict() == 1.0
    assert world.states() == {1: READY, 2: FAILED}
    assert expected in world.reason(2)
    assert ("load_failed", "m", 2) in [event[:3] for event in world.events]
    assert world.champions == [("m", 1)]


def test_a_broken_version_that_nobody_promoted_is_refused_too(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    models.write(world.models_dir / "m/2", b"garbage")
    world.follow()
    assert world.states() == {1: READY, 2: FAILED}
    assert "manifest.json: missing" in world.reason(2)


def test_a_failed_version_is_tried_again_when_its_files_change_and_not_before(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    file = world.models_dir / "m/2/model.onnx"
    good = file.read_bytes()
    file.write_bytes(b"garbage")
    world.directory.promote(2, actor="other", reason="r")
    for _ in range(3):
        world.follow()
    assert world.predict() == 1.0
    assert len([event for event in world.events if event[0] == "load_failed"]) == 1
    file.write_bytes(good)
    world.follow()
    assert world.predict() == 2.0
    assert world.reason(2) == ""


def test_a_version_that_is_not_wanted_any_more_is_retired(world: World) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    retired = world.manager.resolve("m", "1")
    for version in (2, 3):
        world.directory.promote(version, actor="other", reason="r")
        world.follow()
    assert world.states() == {1: UNLOADED, 2: READY, 3: READY}
    assert retired.version.take() is None
    with pytest.raises(Refused, match="'m' version 1 is not at ready state"):
        Requests(world.manager.plane).send(version="1").reply()


def test_what_waits_in_a_retired_version_is_answered_by_it(world: World) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    requests = Requests(world.manager.plane)
    calls = [requests.send([1.0], version="1") for _ in range(50)]
    for version in (2, 3):
        world.directory.promote(version, actor="other", reason="r")
        world.follow()
    assert {call.values()[0] for call in calls} == {1.0}


# -- unmanaged models


def unmanaged(world: World, version: int, factor: float) -> None:
    models.write(world.models_dir / f"m/{version}", models.scaled(factor))


def test_the_highest_unmanaged_version_answers_and_new_ones_are_followed(world: World) -> None:
    unmanaged(world, 2, 2.0)
    unmanaged(world, 10, 10.0)
    world.manager.start()
    assert world.predict() == 10.0
    status = world.manager.status("m")
    assert status is not None and not status.managed and status.champion == 10
    unmanaged(world, 11, 11.0)
    world.follow()
    assert world.predict() == 11.0
    assert world.states() == {2: UNLOADED, 10: UNLOADED, 11: READY}


def test_a_broken_unmanaged_version_leaves_the_lower_one_serving(world: World) -> None:
    unmanaged(world, 1, 1.0)
    world.manager.start()
    models.write(world.models_dir / "m/2", b"garbage")
    world.follow()
    assert world.predict() == 1.0
    assert "onnxruntime refuses" in world.reason(2)


def test_an_unmanaged_version_whose_file_is_replaced_is_loaded_again(world: World) -> None:
    unmanaged(world, 1, 1.0)
    world.manager.start()
    file = world.models_dir / "m/1/model.onnx"
    file.write_bytes(b"half a fi")
    world.follow()
    assert world.predict() == 1.0
    assert "its changed files are refused" in world.reason(1)
    file.write_bytes(models.scaled(7.0))
    world.follow()
    assert world.predict() == 7.0
    assert world.champions == [("m", 1), ("m", 1)]


def test_an_unmanaged_model_cannot_be_promoted(world: World) -> None:
    unmanaged(world, 1, 1.0)
    world.manager.start()
    with pytest.raises(PreconditionError, match="was not published by Trimtab"):
        world.promote(1)


# -- promotions and rollbacks


def test_a_promotion_loads_then_changes_the_registry_then_answers(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    states: list[int | None] = []
    world.loading = lambda version: states.append(world.directory.state().champion)
    change = world.promote(2, expected_revision=1)
    assert states == [1]
    assert (change.state.champion, change.state.previous, change.state.revision) == (2, 1, 2)
    assert change.elapsed_ms > 0
    assert (world.predict(), world.predict("1")) == (2.0, 1.0)
    newest = world.directory.history().entries[-1]
    assert (newest.kind, newest.actor, newest.reason) == ("promoted", "ana", "better")


def test_a_rollback_loads_nothing(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    world.promote(2)
    loads: list[int] = []
    world.loading = loads.append
    change = world.rollback()
    assert (change.state.champion, world.predict(), loads) == (1, 1.0, [])
    assert world.champions == [("m", 1), ("m", 2), ("m", 1)]


def test_the_disk_is_waited_for_by_who_asked_and_not_by_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    answered: list[float] = []
    sync = durable.sync_directory

    def slow(path: Path) -> None:
        answered.append(world.predict())
        sync(path)

    monkeypatch.setattr(durable, "sync_directory", slow)
    world.promote(2)
    assert answered == [2.0]
    world.rollback()
    assert answered == [2.0, 1.0]
    assert world.promote(1).state.champion == 1, "it was so already"
    assert len(answered) == 2


def test_a_rollback_does_not_wait_for_another_version_to_load(world: World) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    world.promote(2)
    inside, go_on = threading.Event(), threading.Event()

    def loading(version: int) -> None:
        inside.set()
        assert go_on.wait(30)

    world.loading = loading
    (world.models_dir / "m/trimtab.toml").write_text("[serving]\nversions = [3]\n")
    job = world.manager.reconcile("m")
    assert inside.wait(30)
    assert world.rollback().state.champion == 1
    assert world.predict() == 1.0
    go_on.set()
    job.result(30)


def test_a_version_that_does_not_load_is_not_promoted(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    (world.models_dir / "m/2/model.onnx").write_bytes(b"garbage")
    with pytest.raises(PreconditionError, match="version 2 of model 'm' cannot be loaded: "):
        world.promote(2)
    assert world.directory.state().champion == 1
    assert world.predict() == 1.0


def test_a_lost_compare_and_swap_names_the_current_revision(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    with pytest.raises(PreconditionError, match="is at revision 1, not at the expected 7"):
        world.promote(2, expected_revision=7)
    world.follow()
    assert world.states() == {1: READY, 2: UNLOADED}, "the target is unloaded again"
    assert world.predict() == 1.0


def test_promotions_of_what_is_not_there(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    with pytest.raises(NotFoundError, match="model 'm' has no version 9"):
        world.promote(9)
    with pytest.raises(NotFoundError, match="unknown model: 'x' is not found"):
        world.manager.promote("x", 1, actor="a", reason="r")
    with pytest.raises(PreconditionError, match="no previous champion"):
        world.rollback()


def test_a_promotion_of_what_is_not_there_is_told_to_its_caller_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1.0)
    world.manager.start()
    told = list(world.events)
    look = ModelDirectory.version_directories

    def late(directory: ModelDirectory) -> list[int]:
        if threading.current_thread() is threading.main_thread():
            world.follow()  # the loader comes by while the promotion is under way
        return look(directory)

    monkeypatch.setattr(ModelDirectory, "version_directories", late)
    with pytest.raises(NotFoundError, match="model 'm' has no version 9"):
        world.promote(9)
    world.follow()
    assert world.events == told
    assert world.states() == {1: READY}


def test_rollbacks_that_name_no_revision_never_lose_to_each_other(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    world.promote(2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(world.rollback) for _ in range(40)]
        revisions = [job.result(60).state.revision for job in jobs]
    assert sorted(revisions) == list(range(3, 43))
    assert world.directory.state().champion == 2


def test_a_rollback_that_is_outrun_goes_back_to_what_is_then_the_previous_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    world.promote(2)
    world.follow()
    rolled_back = ModelDirectory.rollback
    outrun = [world.directory.promote]

    def late(directory: ModelDirectory, **rest: Any) -> Any:
        while outrun:
            outrun.pop()(3, actor="trainer", reason="better")
        return rolled_back(directory, **rest)

    monkeypatch.setattr(ModelDirectory, "rollback", late)
    state = world.rollback().state
    assert (state.revision, state.champion, state.previous) == (4, 2, 3)
    outrun.append(world.directory.promote)
    with pytest.raises(PreconditionError, match="at revision 5, not at the expected 4"):
        world.rollback(expected_revision=4)


def test_while_the_directory_is_away_changes_are_unavailable_and_the_champion_answers(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    try:
        unavailable = f"{tmp_path} cannot be used: .*No such"
        with pytest.raises(UnavailableError, match=unavailable):
            world.promote(2)
        with pytest.raises(UnavailableError, match=unavailable):
            world.rollback()
        world.follow()
        assert world.predict() == 1.0
    finally:
        away.rename(tmp_path)
    assert not [record for record in caplog.records if record.exc_info]
    assert world.promote(2).state.champion == 2


def test_a_lock_that_is_not_let_go_of_makes_a_change_unavailable(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    monkeypatch.setattr(durable, "LOCK_LIMIT_S", 0.05)
    (lock,) = tmp_path.glob("*/.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"\.lock"):
            world.promote(2)
    assert world.predict() == 1.0
    assert world.promote(2).state.champion == 2


def test_a_model_that_came_just_now_can_be_promoted(world: World) -> None:
    world.manager.start()
    world.publish(1.0)
    world.publish(2.0)
    assert world.promote(2).state.champion == 2
    assert world.predict() == 2.0


def test_a_load_that_fails_unexpectedly_is_a_refusal_like_any_other(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)

    def loading(version: int) -> None:
        raise MemoryError("no more")

    world.loading = loading
    with pytest.raises(PreconditionError, match="loading failed: no more"):
        world.promote(2)
    assert (world.predict(), world.states()[2]) == (1.0, FAILED)
    # Asked again it is tried again, although no file changed.
    world.loading = lambda version: None
    assert world.promote(2).state.champion == 2


def test_a_callback_that_fails_does_not_stop_a_promotion(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()

    def failing(servable: Servable | None) -> None:
        raise RuntimeError("monitor")

    world.on_champion = failing
    world.promote(2)
    assert world.predict() == 2.0
    assert "following its new champion failed" in caplog.text


def test_a_tap_that_cannot_be_made_leaves_the_model_served(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(servable: Servable) -> None:
        raise OSError("no space")

    world.manager._follower._versions._tap_factory = failing
    world.publish(1.0)
    world.manager.start()
    assert world.predict() == 1.0
    assert "served without being watched" in caplog.text


def test_the_status_carries_roles_and_counters(world: World) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    world.promote(2)
    for _ in range(3):
        world.predict()
    world.manager.resolve("m", "").close()
    status = world.manager.status("m")
    assert status is not None
    assert (status.revision, status.champion, status.previous, status.serving) == (2, 2, 1, 2)
    assert [each.role for each in status.versions] == ["previous", "champion"]
    stats = status.versions[1].stats
    assert stats is not None and (stats.success.count, stats.rows) == (3, 3)
    assert {batch.version for batch in world.observed} == {2}
    assert sum(batch.rows for batch in world.observed) == 3


# -- under load


def test_there_is_no_moment_without_an_answer(world: World) -> None:
    """Readers on other threads while versions change: every call is answered, by one version."""
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    stop = threading.Event()
    answers: list[set[float]] = [set(), set()]
    errors: list[BaseException] = []

    def client(number: int) -> None:
        requests = Requests(world.manager.plane)
        try:
            while not stop.is_set():
                call = requests.send([1.0])
                assert call.values() == [float(call.reply().model_version)]
                answers[number].add(call.values()[0])
        except BaseException as error:  # noqa: BLE001  asserted on below
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        world.promote(2)
        world.rollback()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not errors, errors
    assert answers[0] | answers[1] == {1.0, 2.0}


# -- stopping


def test_stopping_answers_what_waits_and_refuses_the_rest(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    requests = Requests(world.manager.plane)
    calls = [requests.send([1.0]) for _ in range(20)]
    world.manager.stop(grace_s=30)
    assert all(call.values() == [1.0] for call in calls)
    with pytest.raises(Refused, match="GRPC server is shutting down"):
        requests.send().reply()
    with pytest.raises(UnavailableError, match="GRPC server is shutting down"):
        world.manager.resolve("m", "")
    assert not world.manager.ready()
