"""Holding a version and giving it a share of the requests: what a rollout builds on."""

from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.lifecycle_world import World
from tests.plane import Requests
from trimtab.server.errors import (
    InvalidRequestError,
    ModelExecutionError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.tensor import Tensor
from trimtab.server.lifecycle.version_plan import Split, VersionState

READY, UNLOADED, FAILED = VersionState.READY, VersionState.UNLOADED, VersionState.FAILED


def compute(servable: Servable) -> float:
    x = Tensor("FP32", (1, 2), np.ones((1, 2), np.float32))
    (y,) = servable.run({"x": x}, servable.output_names).values()
    return float(y.array().ravel()[0])


def versions_met(world: World, ids: int = 200) -> set[str]:
    requests = Requests(world.manager.plane)
    sent = [requests.send(id=f"id{number}") for number in range(ids)]
    return {each.reply().model_version for each in sent}


@pytest.fixture
def two(world: World) -> World:
    """Version 1 answers, version 2 is there."""
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    return world


# -- holds


def test_a_held_version_is_loaded_and_answers_who_names_it_until_it_is_released(two: World) -> None:
    with two.manager.hold("m", 2) as held:
        assert (held.model, held.version) == ("m", 2)
        two.follow()
        assert two.states() == {1: READY, 2: READY}
        assert two.predict("2") == 2.0 and two.predict() == 1.0
        assert compute(held.servable) == 2.0
        assert two.manager.executor("m", 2) is held.executor
    two.follow()
    assert two.states() == {1: READY, 2: UNLOADED}
    assert two.manager.executor("m", 2) is None and two.manager.executor("x", 1) is None


def test_a_version_stays_as_long_as_anybody_holds_it(two: World) -> None:
    first, second = two.manager.hold("m", 2), two.manager.hold("m", 2)
    first.release()
    first.release()
    two.follow()
    assert two.states()[2] is READY
    second.release()
    two.follow()
    assert two.states()[2] is UNLOADED


def test_a_version_that_cannot_be_loaded_cannot_be_held(two: World) -> None:
    (two.models_dir / "m/2/model.onnx").write_bytes(b"garbage")
    with pytest.raises(PreconditionError, match="version 2 of model 'm' cannot be loaded: "):
        two.manager.hold("m", 2)
    with pytest.raises(NotFoundError, match="model 'm' has no version 9"):
        two.manager.hold("m", 9)
    with pytest.raises(NotFoundError, match="unknown model: 'x' is not found"):
        two.manager.hold("x", 1)
    two.follow()
    assert two.states() == {1: READY, 2: FAILED}


def test_a_held_version_outlives_its_defeat_and_its_directory(two: World) -> None:
    """A former champion that shadows the one after it stays, whoever becomes champion then."""
    two.publish(3.0)
    held = two.manager.hold("m", 1)
    for version in (2, 3):
        two.promote(version)
        two.follow()
    assert two.states()[1] is READY and compute(held.servable) == 1.0
    held.release()
    two.follow()
    assert two.states() == {1: UNLOADED, 2: READY, 3: READY}


def test_a_holder_meets_the_version_as_it_was_loaded_last(two: World) -> None:
    held = two.manager.hold("m", 2)
    before = held.executor
    (two.models_dir / "m/config.pbtxt").write_text("max_batch_size: 4")
    two.follow()
    assert held.executor is not before
    assert held.servable.settings.max_batch_size == 4
    assert compute(held.servable) == 2.0


def test_who_holds_a_version_of_a_model_that_was_removed_is_told_when_it_computes(
    two: World, tmp_path: Path
) -> None:
    held = two.manager.hold("m", 2)
    (tmp_path / "m").rename(tmp_path / ".m")
    two.follow()
    with pytest.raises(ModelExecutionError, match="model 'm' version 2 was unloaded"):
        compute(held.servable)
    held.release()


def test_after_the_end_nothing_can_be_held(two: World) -> None:
    two.manager.stop()
    with pytest.raises((UnavailableError, NotFoundError)):
        two.manager.hold("m", 2)


# -- splits


def test_a_share_of_the_requests_that_name_no_version_meets_the_challenger(two: World) -> None:
    two.manager.hold("m", 2)
    two.manager.split("m", 2, 0.3)
    requests = Requests(two.manager.plane)
    sent = [requests.send([3.0], id=f"id{number}") for number in range(1000)]
    met = [each.reply().model_version for each in sent]
    assert [each.values()[0] for each in sent] == [3.0 * int(version) for version in met]
    # 0.3 of 1000: 300, and six standard deviations are 87.
    assert 213 <= met.count("2") <= 387
    assert {two.predict("1"), two.predict("2")} == {1.0, 2.0}, "who names a version meets it"
    status = two.manager.status("m")
    assert status is not None and status.split == Split(2, 0.3)
    assert status.serving == 1 and two.manager.resolve("m", "").servable.version == 1


def test_a_larger_share_meets_all_that_the_smaller_one_did(two: World) -> None:
    two.manager.hold("m", 2)
    met: list[set[int]] = []
    for share in (0.05, 0.3, 0.3, 1.0, 0.0):
        two.manager.split("m", 2, share)
        requests = Requests(two.manager.plane)
        sent = [requests.send(id=f"id{number}") for number in range(400)]
        met.append({i for i, each in enumerate(sent) if each.reply().model_version == "2"})
    assert met[0] < met[1] == met[2] < met[3]
    assert (len(met[3]), met[4]) == (400, set())


def test_a_split_ends_when_it_is_told_to(two: World) -> None:
    two.manager.hold("m", 2)
    two.manager.split("m", 2, 1.0)
    assert versions_met(two) == {"2"}
    two.manager.split("m", None)
    assert versions_met(two) == {"1"}
    two.manager.split("m", None)


def test_a_change_of_champion_ends_a_split(two: World) -> None:
    two.publish(3.0)
    two.manager.hold("m", 2)
    two.manager.split("m", 2, 0.5)
    two.promote(3)
    assert versions_met(two) == {"3"}
    status = two.manager.status("m")
    assert status is not None and status.split is None
    two.rollback()
    assert versions_met(two) == {"1"}, "it does not come again with its champion"


def test_promoting_the_challenger_ends_its_split(two: World) -> None:
    with two.manager.hold("m", 2):
        two.manager.split("m", 2, 0.5)
        two.promote(2)
    assert versions_met(two) == {"2"}
    two.rollback()
    assert versions_met(two) == {"1"}


def test_a_split_ends_with_its_version(two: World) -> None:
    held = two.manager.hold("m", 2)
    two.manager.split("m", 2, 1.0)
    held.release()
    two.follow()
    assert versions_met(two) == {"1"}


def test_a_split_lasts_while_versions_come_and_configurations_change(two: World) -> None:
    two.manager.hold("m", 2)
    two.manager.split("m", 2, 1.0)
    two.publish(3.0)
    (two.models_dir / "m/config.pbtxt").write_text("max_batch_size: 4")
    two.follow()
    assert versions_met(two) == {"2"}


def test_what_cannot_answer_a_share_is_refused(two: World) -> None:
    split = two.manager.split
    with pytest.raises(PreconditionError, match="version 2 of model 'm' is not ready"):
        split("m", 2, 0.1)
    with pytest.raises(PreconditionError, match="version 1 of model 'm' is not held"):
        split("m", 1, 0.1)
    two.manager.hold("m", 1)
    with pytest.raises(PreconditionError, match="cannot answer a share beside version 1"):
        split("m", 1, 0.1)
    with pytest.raises(NotFoundError, match="'x' is not found"):
        split("x", 1, 0.1)
    two.manager.hold("m", 2)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidRequestError, match="is not between 0 and 1"):
            split("m", 2, share)
    assert versions_met(two, 50) == {"1"}


def test_a_model_that_an_operator_unloaded_answers_no_share(two: World) -> None:
    two.manager.hold("m", 2)
    two.manager.split("m", 2, 1.0)
    two.manager.switch("m", loaded=False).result(30)
    code, text = Requests(two.manager.plane).send().refusal()
    assert (code, text) == (5, "Request for unknown model: 'm' has no available versions")
    with pytest.raises(PreconditionError, match="is not ready"):
        two.manager.split("m", 2, 1.0)


def test_a_plain_layout_has_nothing_to_hold(world: World) -> None:
    models.write(world.models_dir / "m/1", models.scaled(1.0))
    world.manager.start()
    with pytest.raises(PreconditionError, match="was not published by Trimtab"):
        world.manager.hold("m", 1)
