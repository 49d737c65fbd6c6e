"""The states of a version: every change that a reader could see is one that is written down."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests import models
from tests.lifecycle_world import World
from tests.plane import Requests
from trimtab.server.errors import PreconditionError
from trimtab.server.lifecycle.route_table import RouteTable
from trimtab.server.lifecycle.served_model import Route
from trimtab.server.lifecycle.version_plan import TRANSITIONS, VersionState

S = VersionState


class Seen:
    """The states of every version, in the order in which they were published."""

    def __init__(self) -> None:
        self.states: dict[int, list[VersionState]] = {}

    def add(self, route: Route) -> None:
        for each in route.status.versions:
            states = self.states.setdefault(each.version, [])
            if not states or states[-1] is not each.state:
                states.append(each.state)

    def transitions(self) -> set[tuple[VersionState, VersionState]]:
        return {pair for states in self.states.values() for pair in itertools.pairwise(states)}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen = Seen()
    publish = RouteTable.set

    def watched(table: RouteTable, model: str, route: Route) -> Route | None:
        seen.add(route)
        return publish(table, model, route)

    monkeypatch.setattr(RouteTable, "set", watched)
    yield seen
    for old, new in seen.transitions():
        assert new in TRANSITIONS[old], f"{old.value} -> {new.value}"


def test_a_version_passes_through_every_state_on_its_way(world: World, seen: Seen) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    for version in (2, 3):
        world.promote(version)
        world.follow()
    up = [S.LOADING, S.VERIFYING, S.WARMING, S.READY]
    assert seen.states == {
        1: [S.UNLOADED, *up, S.DRAINING, S.UNLOADED],
        2: [S.UNLOADED, *up],
        3: [S.UNLOADED, *up],
    }


def test_a_version_that_fails_is_failed_until_it_is_mended(world: World, seen: Seen) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    file = world.models_dir / "m/2/model.onnx"
    good = file.read_bytes()
    file.write_bytes(b"garbage")
    world.follow()
    assert seen.states[2] == [S.FAILED], "known without loading it"
    with pytest.raises(PreconditionError):
        world.promote(2)
    assert seen.states[2] == [S.FAILED, S.LOADING, S.FAILED], "asked for it is tried"
    world.directory.promote(2, actor="other", reason="r")
    world.follow()
    file.write_bytes(good)
    world.follow()
    assert seen.states[2][-5:] == [S.UNLOADED, S.LOADING, S.VERIFYING, S.WARMING, S.READY]


@pytest.mark.parametrize(
    ("stage", "damage"), [(S.LOADING, "session"), (S.VERIFYING, "golden"), (S.WARMING, "tap")]
)
def test_a_version_may_fail_at_every_stage(
    world: World, seen: Seen, stage: VersionState, damage: str
) -> None:
    golden = models.golden_of(models.scaled(9.0), world.models_dir.parent)
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0, golden=golden if damage == "golden" else None)
    if damage == "session":

        def loading(version: int) -> None:
            raise MemoryError

        world.loading = loading
    if damage == "tap":
        # What is not a load's own business and fails all the same, after the session was warm.
        (world.models_dir / "m/config.pbtxt").write_text('input { name: "nobody" dims: [1] }')
    world.directory.promote(2, actor="other", reason="r")
    world.follow()
    way = [S.LOADING, S.VERIFYING, S.WARMING]
    assert seen.states[2] == [S.UNLOADED, *way[: way.index(stage) + 1], S.FAILED]
    assert world.predict() == 1.0


def test_what_a_draining_version_has_is_computed_and_nothing_new(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in (1.0, 2.0, 3.0):
        world.publish(factor)
    world.manager.start()
    inside, go_on = threading.Event(), threading.Event()
    servable = world.manager.resolve("m", "1").servable
    run = servable.run

    def slowly(*arguments: object) -> object:
        inside.set()
        assert go_on.wait(30)
        return run(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(servable, "run", slowly)
    requests = Requests(world.manager.plane)
    call = requests.send([1.0], version="1")
    assert inside.wait(30)
    for version in (2, 3):
        world.promote(version)
    job = world.manager.reconcile("m")
    while world.states()[1] is not S.DRAINING:
        assert not job.done()
    assert "version 1 is not at ready state" in requests.send(version="1").refusal()[1]
    assert world.predict() == 3.0
    go_on.set()
    assert call.values() == [1.0]
    job.result(30)
    assert world.states()[1] is S.UNLOADED


def test_a_draining_version_whose_changed_files_were_refused_is_failed_then(
    world: World, seen: Seen
) -> None:
    file = models.write(world.models_dir / "m/1", models.scaled(1.0)) / "model.onnx"
    world.manager.start()
    file.write_bytes(b"garbage")
    world.follow()
    models.write(world.models_dir / "m/2", models.scaled(2.0))
    world.follow()
    assert seen.states[1][-3:] == [S.READY, S.DRAINING, S.FAILED]


def test_an_unloaded_model_drains_and_comes_again(world: World, seen: Seen) -> None:
    world.publish(1.0)
    world.manager.start()
    world.manager.switch("m", loaded=False).result(30)
    world.manager.switch("m", loaded=True).result(30)
    up = [S.LOADING, S.VERIFYING, S.WARMING, S.READY]
    assert seen.states[1] == [S.UNLOADED, *up, S.DRAINING, S.UNLOADED, *up]


def test_a_model_that_is_wanted_again_before_it_is_gone_stays(world: World, seen: Seen) -> None:
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    inside, go_on = threading.Event(), threading.Event()

    def loading(version: int) -> None:
        inside.set()
        assert go_on.wait(30)

    world.loading = loading
    (world.models_dir / "m/trimtab.toml").write_text("[serving]\nversions = [2]\n")
    job = world.manager.reconcile("m")
    assert inside.wait(30)
    world.manager.switch("m", loaded=False)
    world.manager.switch("m", loaded=True)
    go_on.set()
    job.result(30)
    world.follow()
    up = [S.LOADING, S.VERIFYING, S.WARMING, S.READY]
    assert seen.states[1] == [S.UNLOADED, *up, S.DRAINING, S.READY]


def test_a_model_that_is_unloaded_while_a_version_of_it_loads_drops_it(
    world: World, seen: Seen
) -> None:
    world.publish(1.0)
    world.loading = lambda version: None if not seen.states else unload()

    def unload() -> None:
        world.manager.switch("m", loaded=False)

    world.manager.start()
    world.follow()
    assert seen.states[1] == [
        S.UNLOADED, S.LOADING, S.VERIFYING, S.WARMING, S.DRAINING, S.UNLOADED,
    ]  # fmt: skip


def test_every_state_can_be_left_and_be_reached() -> None:
    assert set(TRANSITIONS) == set(VersionState)
    assert all(TRANSITIONS.values())
    assert set().union(*TRANSITIONS.values()) == set(VersionState)
