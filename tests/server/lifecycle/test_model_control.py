"""An operator's load and unload: what answers afterwards, and what an unload may not harm."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models
from tests.plane import Requests
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.server.config import ListenConfig, ServerConfig
from trimtab.server.errors import ModelLoadError, NotFoundError, UnavailableError
from trimtab.server.lifecycle.model_control import ModelControl
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.lifecycle.version_plan import VersionState

READY, UNLOADED = VersionState.READY, VersionState.UNLOADED


class World:
    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        registry = Registry(models_dir)
        self.champions: list[int | None] = []
        self.manager = ModelManager(
            registry,
            ServerConfig(models_dir, server=ListenConfig(watch=False)),
            on_champion_changed=lambda model, servable: self.champions.append(
                servable.version if servable else None
            ),
        )
        self.control = ModelControl(registry, self.manager)

    def states(self) -> list[tuple[int, VersionState, str]]:
        status = self.manager.status("m")
        assert status is not None
        return [(each.version, each.state, each.reason) for each in status.versions]

    def predict(self) -> float:
        return Requests(self.manager.plane).send([1.0]).values()[0]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.manager.stop(grace_s=10)


def test_an_unloaded_model_answers_nothing_until_it_is_loaded(world: World) -> None:
    for factor in (2.0, 3.0):
        models.publish(world.models_dir, "m", models.scaled(factor))
    ModelDirectory(world.models_dir / "m").promote(2, actor="a", reason="r")
    world.manager.start()
    executor = world.manager.resolve("m", "")

    world.control.unload("m")
    world.control.unload("m")
    assert world.states() == [(1, UNLOADED, "unloaded"), (2, UNLOADED, "unloaded")]
    with pytest.raises(NotFoundError, match="has no available versions"):
        world.manager.resolve("m", "")
    with pytest.raises(UnavailableError, match="version 1 is not at ready state"):
        world.manager.resolve("m", "1")
    assert executor.version.take() is None
    code, text = Requests(world.manager.plane).send().refusal()
    assert (code, text) == (5, "Request for unknown model: 'm' has no available versions")
    assert world.manager.ready()
    assert world.champions == [2, None]

    world.control.load("m")
    world.control.load("m")
    assert [each[:2] for each in world.states()] == [(1, READY), (2, READY)]
    assert world.predict() == 3.0
    assert world.champions == [2, None, 2]


def test_what_waits_when_a_model_is_unloaded_is_answered(world: World) -> None:
    models.publish(world.models_dir, "m", models.scaled(2.0))
    world.manager.start()
    requests = Requests(world.manager.plane)
    calls = [requests.send([float(number)]) for number in range(50)]
    world.control.unload("m")
    assert [call.values() for call in calls] == [[2.0 * number] for number in range(50)]


def test_an_unload_survives_new_versions_and_promotions(world: World) -> None:
    for factor in (2.0, 3.0):
        models.publish(world.models_dir, "m", models.scaled(factor))
    world.manager.start()
    world.control.unload("m")
    world.manager.promote("m", 2, actor="a", reason="r")
    world.manager.reconcile("m").result(30)
    assert {state for _, state, _ in world.states()} == {UNLOADED}
    with pytest.raises(NotFoundError):
        world.manager.resolve("m", "")
    world.control.load("m")
    assert world.predict() == 3.0


def test_a_load_takes_a_model_that_came_since(world: World) -> None:
    world.manager.start()
    models.write(world.models_dir / "m/1", models.scaled(5.0))
    world.control.load("m")
    assert world.predict() == 5.0


def test_a_load_tries_again_what_failed(world: World) -> None:
    file = models.write(world.models_dir / "m/1", b"garbage") / "model.onnx"
    world.manager.start()
    with pytest.raises(ModelLoadError) as caught:
        world.control.load("m")
    assert str(caught.value).startswith(
        "failed to load 'm', failed to poll from model repository: version 1: onnxruntime refuses"
    )
    file.write_bytes(models.scaled(4.0))
    world.control.load("m")
    assert world.predict() == 4.0


def test_a_configuration_of_a_load_holds_until_the_next_load(world: World) -> None:
    models.write(world.models_dir / "m/1", models.scaled(2.0))
    (world.models_dir / "m/config.pbtxt").write_text("max_batch_size: 4")
    world.manager.start()
    before = world.manager.resolve("m", "")

    world.control.load("m", '{"max_batch_size": "16"}')
    given = world.manager.resolve("m", "")
    assert given is not before and given.servable.settings.max_batch_size == 16
    (world.models_dir / "m/config.pbtxt").write_text("max_batch_size: 5")
    world.manager.reconcile("m").result(30)
    assert world.manager.resolve("m", "") is given, "the file does not count meanwhile"
    models.write(world.models_dir / "m/2", models.scaled(3.0))
    world.manager.reconcile("m").result(30)
    assert world.predict() == 3.0
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 16

    world.control.load("m", '{"max_batch_size": 7}')
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 7
    world.control.load("m")
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 5
    same = world.manager.resolve("m", "")
    world.control.load("m")
    assert world.manager.resolve("m", "") is same, "nothing changed, nothing is loaded anew"


def test_an_unload_ends_what_a_load_gave(world: World) -> None:
    models.publish(world.models_dir, "m", models.scaled(2.0))
    world.manager.start()
    world.control.load("m", '{"max_batch_size": 3}')
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 3
    world.control.unload("m")
    world.control.load("m")
    assert world.manager.resolve("m", "").servable.settings.max_batch_size is None


def test_a_configuration_may_come_with_a_model_that_came_since(world: World) -> None:
    world.manager.start()
    models.write(world.models_dir / "m/1", models.scaled(5.0))
    world.control.load("m", '{"max_batch_size": 3}')
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 3


def test_the_version_policy_of_a_load_says_what_is_loaded(world: World) -> None:
    for version in (1, 2, 3):
        models.write(world.models_dir / f"m/{version}", models.scaled(float(version)))
    world.manager.start()
    world.control.load("m", '{"version_policy": {"specific": {"versions": ["1", "2"]}}}')
    assert world.predict() == 2.0
    assert [state for _, state, _ in world.states()] == [READY, READY, UNLOADED]
    world.control.load("m")
    assert world.predict() == 3.0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{{}}", "config is not a model configuration: "),
        ('{"name": "other"}', "config is named 'other' but its directory 'm'"),
        ('{"input": [{"name": "z"}]}', "version 1: config: input 'z' is none of model.onnx"),
    ],
)
def test_a_configuration_that_is_refused_changes_nothing(
    world: World, config: str, reason: str
) -> None:
    models.write(world.models_dir / "m/1", models.scaled(1.0))
    world.manager.start()
    world.control.load("m", '{"max_batch_size": 3}')
    before = world.manager.resolve("m", "")
    with pytest.raises(ModelLoadError) as caught:
        world.control.load("m", config)
    failed = "failed to load 'm', failed to poll from model repository: "
    assert str(caught.value).startswith(failed + reason)
    assert world.states() == [(1, READY, "")]
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 3
    assert world.predict() == 1.0
    assert world.manager.resolve("m", "") is before or "version 1" in reason

    world.control.unload("m")
    with pytest.raises(ModelLoadError):
        world.control.load("m", config)
    assert world.states() == [(1, UNLOADED, "unloaded")]


def test_a_load_of_changed_files_that_are_refused_fails(world: World) -> None:
    file = models.write(world.models_dir / "m/1", models.scaled(1.0)) / "model.onnx"
    world.manager.start()
    file.write_bytes(b"garbage")
    with pytest.raises(ModelLoadError, match="version 1: onnxruntime refuses"):
        world.control.load("m")
    assert world.predict() == 1.0


def test_a_load_that_fails_leaves_the_lower_version_answering(world: World) -> None:
    models.write(world.models_dir / "m/1", models.scaled(1.0))
    world.manager.start()
    models.write(world.models_dir / "m/2", b"garbage")
    with pytest.raises(ModelLoadError, match="version 2: onnxruntime refuses"):
        world.control.load("m")
    assert world.predict() == 1.0


@pytest.mark.parametrize(
    "name", ["nope", "", "..", "../m", "m/1", "m ", ".trimtab", "a" * 256, "m\n", "m\0"]
)
def test_a_name_that_is_no_models_is_unknown(world: World, name: str) -> None:
    models.write(world.models_dir / "m/1", models.scaled(1.0))
    world.manager.start()
    with pytest.raises(ModelLoadError) as caught:
        world.control.load(name)
    assert str(caught.value) == f"failed to load '{name}', failed to poll from model repository"
    with pytest.raises(NotFoundError) as unknown:
        world.control.unload(name)
    assert str(unknown.value) == f"Request for unknown model: '{name}' is not found"


def test_a_model_of_which_nothing_was_promoted_cannot_be_loaded(world: World) -> None:
    models.publish(world.models_dir, "m", models.scaled(1.0), champion_if_first=False)
    world.manager.start()
    with pytest.raises(ModelLoadError, match="repository: no version of it was promoted"):
        world.control.load("m")


def test_a_directory_that_is_away_is_told(world: World) -> None:
    world.manager.start()
    shutil.rmtree(world.models_dir)
    with pytest.raises(ModelLoadError, match=r"failed to load 'm', .*No such file"):
        world.control.load("m")
    world.models_dir.mkdir()
