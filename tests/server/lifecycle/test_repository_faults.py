"""What goes wrong with the files of a repository, and what clients notice of it: nothing."""

import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests import models
from tests.lifecycle_world import World
from tests.plane import Requests
from trimtab.registry import watch
from trimtab.registry.signing import TrustedKeys
from trimtab.server.errors import ModelLoadError, NotFoundError, PreconditionError
from trimtab.server.lifecycle.model_control import ModelControl
from trimtab.server.lifecycle.version_plan import VersionState

READY, UNLOADED, FAILED = VersionState.READY, VersionState.UNLOADED, VersionState.FAILED
GIB = 1 << 30


def refused(world: World, version: int, *texts: str) -> None:
    """It cannot be promoted, its reason is there to be read, and the champion answers."""
    with pytest.raises(PreconditionError) as caught:
        world.promote(version)
    for text in texts:
        assert text in str(caught.value)
    world.follow()
    assert world.states()[version] is FAILED
    assert all(text in world.reason(version) for text in texts), world.reason(version)
    assert world.predict() == 1.0


@pytest.fixture
def serving(world: World) -> World:
    """Version 1 answers, version 2 is there."""
    world.publish(1.0)
    world.publish(2.0)
    world.manager.start()
    return world


# -- manifests


def test_a_manifest_that_was_edited_by_hand_is_refused_though_every_file_fits(
    serving: World,
) -> None:
    manifest = serving.models_dir / "m/2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"mae": 1.5', '"mae": 0.1'))
    refused(serving, 2, "manifest.json", "is not the one that was published")


def test_a_manifest_that_is_edited_while_its_version_serves_stops_nothing(serving: World) -> None:
    manifest = serving.models_dir / "m/1/manifest.json"
    manifest.write_text("{")
    serving.follow()
    assert serving.predict() == 1.0 and serving.manager.ready()


@pytest.mark.parametrize("name", ["../1/model.onnx", "..", "/etc/passwd", "sub/model.onnx"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(serving: World, name: str) -> None:
    manifest = serving.models_dir / "m/2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"model.onnx": {', f'"{name}": {{'))
    refused(serving, 2, f"files: {name!r} is not allowed as the name of a file")


# -- names and links


@pytest.mark.parametrize("name", ["..", "../m", "m/1", "/etc", ".trimtab", "m\0", "m\n"])
def test_a_name_that_leads_elsewhere_is_that_of_no_model(serving: World, name: str) -> None:
    with pytest.raises(NotFoundError, match="Request for unknown model"):
        serving.manager.resolve(name, "")
    with pytest.raises(NotFoundError, match="Request for unknown model"):
        serving.manager.promote(name, 1, actor="a", reason="r")
    with pytest.raises(NotFoundError, match="Request for unknown model"):
        serving.manager.hold(name, 1)
    control = ModelControl(serving.manager._registry, serving.manager)
    with pytest.raises(ModelLoadError, match="failed to load"):
        control.load(name)
    assert Requests(serving.manager.plane).send(model=name).refusal()[0] == 5
    assert serving.predict() == 1.0


def test_a_file_that_became_a_symbolic_link_is_refused(serving: World, tmp_path: Path) -> None:
    file = serving.models_dir / "m/2/model.onnx"
    elsewhere = serving.models_dir.parent / f"{tmp_path.name}-elsewhere.onnx"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    refused(serving, 2, "model.onnx: not a regular file")


def test_a_version_that_became_a_symbolic_link_is_refused(serving: World) -> None:
    path = serving.models_dir / "m/2"
    path.rename(serving.models_dir / ".elsewhere")
    path.symlink_to(serving.models_dir / ".elsewhere")
    refused(serving, 2, "a symbolic link")


# -- weights in other files


def weighted(location: str, **entries: str) -> bytes:
    """y = x + w, and w is in another file."""
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    w.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        w.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def plain(world: World, model: bytes) -> Path:
    """A version in Triton's plain layout, which no manifest speaks for."""
    return models.write(world.models_dir / "m/1", model)


WEIGHTS = np.array([1.0, 1.0], np.float32).tobytes()


@pytest.mark.parametrize("location", ["w.bin", "deeper/w.bin", "deeper/../w.bin"])
def test_weights_beside_the_model_are_loaded(world: World, location: str) -> None:
    path = plain(world, weighted(location))
    (path / "deeper").mkdir()
    for name in ("w.bin", "deeper/w.bin"):
        (path / name).write_bytes(WEIGHTS)
    world.manager.start()
    assert world.predict() == 2.0


@pytest.mark.parametrize("location", ["../../secret", "{root}/secret", "link", "folder/secret"])
def test_weights_outside_of_the_models_directory_are_refused(world: World, location: str) -> None:
    root = world.models_dir
    (root / "secret").write_bytes(WEIGHTS)
    location = location.format(root=root)
    path = plain(world, weighted(location))
    (path / "link").symlink_to(root / "secret")
    (path / "folder").symlink_to(root)
    world.manager.start()
    assert not world.manager.ready()
    assert (
        world.reason(1) == f"model.onnx keeps weights in {location!r}, outside of its own directory"
    )


def test_weights_that_are_not_in_the_manifest_are_refused(serving: World) -> None:
    (serving.models_dir / "m/2/w.bin").write_bytes(WEIGHTS)
    refused(serving, 2, "w.bin: not in the manifest")


@pytest.mark.parametrize(
    ("location", "entries"),
    [("gone.bin", {}), ("", {}), ("w.bin", {"offset": "999999999999"}), ("w.bin", {"offset": "x"})],
)
def test_weights_that_are_not_there_are_refused(
    world: World, location: str, entries: dict[str, str]
) -> None:
    (plain(world, weighted(location, **entries)) / "w.bin").write_bytes(WEIGHTS)
    world.manager.start()
    assert "onnxruntime refuses model.onnx" in world.reason(1)


# -- gigabytes of garbage


def grow(file: Path, head: bytes, size: int) -> None:
    with file.open("wb") as out:
        out.write(head)
        out.truncate(size)  # a hole: takes no room on the disk


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    ("head", "size", "expected"),
    [
        (b"", 2 * GIB, "has 2147483648 bytes, and a model file at most 2147483647"),
        (b"", 2 * GIB - 1, "not an ONNX model"),
        (b"\x08\x08\x3a" + varint(2 * GIB - 100), 2 * GIB - 1, "not an ONNX model"),
        # One string, which onnxruntime reads into memory before it misses the graph.
        (b"\x08\x08\x12" + varint(2 * GIB - 9), 2 * GIB - 1, "it has no graphs"),
        (b"version https://git-lfs.github.com/spec/v1\n", 130, "is a Git LFS pointer"),
    ],
)
def test_garbage_of_any_size_is_refused_without_reading_it(
    world: World, head: bytes, size: int, expected: str
) -> None:
    path = plain(world, models.scaled(1.0))
    world.manager.start()
    before = peak_mb()
    (world.models_dir / "m/2").mkdir()
    grow(world.models_dir / "m/2/model.onnx", head, size)
    world.follow()
    assert world.states() == {1: READY, 2: FAILED}
    assert expected in world.reason(2)
    assert peak_mb() - before < 50
    assert world.predict() == 1.0
    assert path.is_dir()


def test_a_published_file_that_grew_to_gigabytes_is_refused_by_its_size(serving: World) -> None:
    before = peak_mb()
    grow(serving.models_dir / "m/2/model.onnx", b"", 2 * GIB)
    refused(serving, 2, "has 2147483648 bytes, the manifest says")
    assert peak_mb() - before < 50


# -- what goes while it serves


def test_a_version_whose_directory_is_deleted_goes_on_serving_and_it_is_said(
    serving: World, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(serving.models_dir / "m/1")
    for _ in range(3):
        serving.follow()
    assert serving.predict() == 1.0 and serving.manager.ready()
    gone = "its directory is gone: it answers as it was loaded, and cannot be loaded again"
    assert serving.states()[1] is READY and serving.reason(1) == gone
    assert caplog.text.count(gone) == 1
    serving.promote(2)
    assert serving.predict() == 2.0
    serving.follow()
    assert serving.predict("1") == 1.0, "it is still warm"
    with pytest.raises((PreconditionError, NotFoundError), match="version 1"):
        serving.rollback()
    assert serving.predict() == 2.0


def test_a_directory_that_comes_back_is_as_before(serving: World) -> None:
    path = serving.models_dir / "m/1"
    path.rename(serving.models_dir / ".away")
    serving.follow()
    assert serving.reason(1)
    (serving.models_dir / ".away").rename(path)
    serving.follow()
    assert serving.states()[1] is READY and serving.reason(1) == ""


# -- clocks, other servers, no notifications


def test_a_wall_clock_that_jumps_back_changes_nothing(
    serving: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.promote(2)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    serving.publish(3.0)
    serving.promote(3)
    assert serving.predict() == 3.0
    serving.rollback()
    serving.follow()
    assert serving.predict() == 2.0
    history = serving.directory.history()
    assert not history.breaks
    assert [entry.sequence for entry in history.entries] == list(range(1, len(history.entries) + 1))


def test_a_file_that_is_replaced_by_one_from_the_past_is_noticed(world: World) -> None:
    file = plain(world, models.scaled(1.0)) / "model.onnx"
    world.manager.start()
    file.write_bytes(models.scaled(3.0))
    os.utime(file, ns=(0, 0))
    world.follow()
    assert world.predict() == 3.0


def test_two_lifecycles_over_one_directory_come_to_the_same_champion(
    serving: World, tmp_path: Path
) -> None:
    other = World(tmp_path)
    other.manager.start()
    try:
        assert other.predict() == 1.0
        other.promote(2)
        assert serving.predict() == 1.0
        serving.follow()
        assert serving.predict() == 2.0
        serving.rollback()
        other.follow()
        assert other.predict() == 1.0
        assert other.directory.state().revision == 3
    finally:
        other.manager.stop(grace_s=10)


def test_where_there_are_no_notifications_changes_are_followed_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system tells nobody of another host's changes."""
    monkeypatch.setattr(watch, "_notifier", lambda path: None)
    world.publish(1.0)
    world.manager.stop()
    world.manager = world.make(watch=True)
    world.manager.start()
    world.publish(2.0)
    world.directory.promote(2, actor="other", reason="r")
    world.wait_for("loaded", 2)
    world.follow()
    assert world.predict() == 2.0


# -- signatures


def test_without_a_signature_nothing_is_loaded_where_one_is_required(world: World) -> None:
    world.publish(1.0)
    world.manager._follower._versions._trusted_keys = TrustedKeys([b"k" * 32])
    world.manager.start()
    assert not world.manager.ready()
    assert "is not signed: it has no manifest.sig" in world.reason(1)
    with pytest.raises(PreconditionError, match="is not signed"):
        world.promote(1)


def test_what_a_trusted_key_signed_is_loaded(
    world: World, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("cryptography")
    from trimtab.registry import signing

    private, other = tmp_path / ".key.pem", tmp_path / ".other.pem"
    public, _ = signing.new_key(private)
    signing.new_key(other)
    world.publish(1.0)
    path = world.models_dir / "m/1"
    manifest = (path / "manifest.json").read_bytes()
    world.manager._follower._versions._trusted_keys = TrustedKeys.load([public])
    (path / "manifest.sig").write_bytes(signing.SigningKey.load(other).sign(manifest))
    world.manager.start()
    assert not world.manager.ready()
    (path / "manifest.sig").write_bytes(signing.SigningKey.load(private).sign(manifest))
    world.follow()
    assert world.predict() == 1.0
