"""When a version that failed is tried again."""

import errno

import pytest

from tests import models
from tests.lifecycle_world import World
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.server.errors import PreconditionError
from trimtab.server.inference.onnx_session import LoadError
from trimtab.server.lifecycle.load_failures import Failures, is_transient
from trimtab.server.lifecycle.version_plan import VersionState


def caused(error: Exception, by: BaseException) -> Exception:
    try:
        try:
            raise by
        except BaseException as cause:
            raise error from cause
    except type(error) as caught:
        return caught


def hidden(error: Exception, by: BaseException) -> Exception:
    try:
        try:
            raise by
        except BaseException:  # noqa: BLE001  whatever was given
            raise error from None
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (MemoryError(), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), False),
        (LoadError("garbage"), False),
        (caused(LoadError("x"), OSError(errno.EMFILE, "Too many open files")), True),
        (hidden(RegistryError("x"), OSError(errno.ESTALE, "Stale file handle")), True),
        (caused(LoadError("x"), caused(RegistryError("y"), MemoryError())), True),
        (caused(LoadError("x"), FileNotFoundError(errno.ENOENT, "")), False),
        (caused(LoadError("x"), ValueError("not protobuf")), False),
        (None, False),
    ],
)
def test_what_may_pass_by_itself(error: BaseException | None, transient: bool) -> None:
    assert is_transient(error) is transient


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [Failures(count, 100.0, True) for count in (1, 2, 3, 6, 7, 8, 1000)]
    assert [each.retry_at for each in pauses] == [101, 102, 104, 132, 160, 160, 160]
    assert [each.changed_at for each in pauses] == [100, 101, 102, 116, 132, 160, 160]
    assert Failures(3, 100.0, False).retry_at is None


class Clock:
    def __init__(self, world: World) -> None:
        self.now = 1000.0
        world.now = lambda: self.now


@pytest.fixture
def clock(world: World) -> Clock:
    return Clock(world)


def failing_with(error: BaseException, world: World) -> None:
    def loading(version: int) -> None:
        raise error

    world.loading = loading


def attempts(world: World) -> int:
    return len([event for event in world.events if event[0] == "load_failed"])


def test_a_load_that_failed_for_want_of_something_is_tried_again_after_a_pause(
    world: World, clock: Clock
) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    failing_with(OSError(errno.EMFILE, "Too many open files"), world)
    world.directory.promote(2, actor="other", reason="r")
    tried_at = []
    for tick in range(16):
        clock.now = 1000.0 + tick
        before = attempts(world)
        world.follow()
        if attempts(world) > before:
            tried_at.append(tick)
    assert tried_at == [0, 1, 3, 7, 15]
    assert world.predict() == 1.0 and world.manager.ready()
    assert "Too many open files" in world.reason(2)
    world.loading = lambda version: None
    clock.now += 60
    world.follow()
    assert world.predict() == 2.0


def test_it_is_tried_again_although_nobody_tells_of_a_change(world: World) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    failing_with(MemoryError("no more"), world)
    world.directory.promote(2, actor="other", reason="r")
    world.follow()
    assert attempts(world) == 1
    world.loading = lambda version: None
    world.wait_for("loaded", 2)  # after a second
    world.follow()
    assert world.predict() == 2.0


def test_a_file_that_is_copied_bit_by_bit_is_not_tried_at_every_bit(
    world: World, clock: Clock
) -> None:
    whole = models.scaled(1.0)
    file = models.write(world.models_dir / "m/1", whole[:1]) / "model.onnx"
    world.manager.start()
    for size in range(2, 42):
        clock.now += 0.1
        file.write_bytes(whole[:size])
        world.follow()
    assert attempts(world) == 4, "at once, at the first change, then after 1 s and after 2"
    file.write_bytes(whole)
    world.follow()
    assert not world.manager.ready()
    clock.now += 60
    world.follow()
    assert world.predict() == 1.0 and world.manager.ready()


def test_an_operator_does_not_wait_for_the_pause(world: World, clock: Clock) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    failing_with(OSError(errno.EIO, "Input/output error"), world)
    for _ in range(3):
        with pytest.raises(PreconditionError, match="Input/output error"):
            world.promote(2)
    assert attempts(world) == 3
    world.loading = lambda version: None
    world.promote(2)
    assert world.predict() == 2.0


def test_a_load_that_an_operator_asks_for_does_not_wait_for_the_pause(
    world: World, clock: Clock
) -> None:
    world.publish(1.0)
    failing_with(OSError(errno.EIO, "Input/output error"), world)
    world.manager.start()
    assert not world.manager.ready()
    world.loading = lambda version: None
    world.follow()
    assert not world.manager.ready()
    world.manager.switch("m", loaded=True).result(30)
    assert world.manager.ready()


def test_hashes_that_could_not_be_read_are_read_again(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)

    def unreadable(directory: ModelDirectory, version: int) -> None:
        raise caused(RegistryError("Input/output error"), OSError(errno.EIO, ""))

    with monkeypatch.context() as patched:
        patched.setattr(ModelDirectory, "verify", unreadable)
        world.follow()
    assert world.states()[2] is VersionState.FAILED
    clock.now += 1.0
    world.follow()
    assert world.states()[2] is VersionState.UNLOADED


def test_a_directory_that_could_not_be_looked_at_is_looked_at_again_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(1.0)
    world.manager.start()
    world.publish(2.0)
    world.directory.promote(2, actor="other", reason="r")

    def unreadable(directory: ModelDirectory) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(ModelDirectory, "is_managed", unreadable)
        world.follow()
        status = world.manager.status("m")
        assert status is not None and "Input/output error" in status.reason
        assert world.predict() == 1.0
    world.wait_for("loaded", 2)  # after a second
