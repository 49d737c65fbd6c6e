"""Versions that leave a registry and come into another, and what is refused on either way."""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.registry import version_archive
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import InvalidVersionError
from trimtab.registry.version_archive import ArchiveError, Origin

Publish = Callable[..., int]
FILES = {"model.onnx": b"onnx", "golden.npz": b"golden" * 1000}


@pytest.fixture
def origin(model: ModelDirectory, publish: Publish) -> Origin:
    publish(model, files=FILES)
    sealed = (model.version_path(1) / "manifest.json").read_bytes()
    entries = model.history().entries
    return Origin("airtime", 1, hashlib.sha256(sealed).hexdigest(), entries)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "into"
    path.mkdir()
    return path


def export(model: ModelDirectory, origin: Origin, target: Path) -> Path:
    version_archive.write(model.version_path(1), origin, model.manifest(1), target)
    return target


@pytest.mark.parametrize("name", ["out", "out.tar.gz", "out.TGZ"])
def test_an_exported_version_comes_back_as_it_was(
    model: ModelDirectory, origin: Origin, tmp_path: Path, into: Path, name: str
) -> None:
    (model.version_path(1) / "manifest.sig").write_bytes(b"signed")
    target = export(model, origin, tmp_path / name)
    assert version_archive.is_archive(target) != version_archive.is_export(target)
    found = version_archive.read(target, into)
    assert found.origin == origin
    assert found.manifest == model.manifest(1)
    assert found.sealed == (model.version_path(1) / "manifest.json").read_bytes()
    assert found.signature == b"signed"
    assert {path.name: path.read_bytes() for path in into.iterdir()} == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["airtime", "into", name])


def test_an_exported_directory_is_a_model_itself(
    model: ModelDirectory, origin: Origin, tmp_path: Path
) -> None:
    there = ModelDirectory(export(model, origin, tmp_path / "out"))
    assert there.versions() == [1]
    there.verify(1)
    there.recover()
    assert there.state().champion == 1


def test_the_directory_of_a_version_is_an_export_without_a_history(
    model: ModelDirectory, origin: Origin, into: Path
) -> None:
    found = version_archive.read(model.version_path(1), into)
    assert found.origin == Origin("airtime", 1, origin.manifest_sha256)
    assert found.signature is None


def test_equal_versions_give_equal_archives(
    model: ModelDirectory, origin: Origin, tmp_path: Path
) -> None:
    one = export(model, origin, tmp_path / "one.tar.gz").read_bytes()
    assert export(model, origin, tmp_path / "two.tar.gz").read_bytes() == one


def test_an_earlier_export_stays_in_the_lineage(origin: Origin) -> None:
    once = origin.lineage({"rows": 7})
    told = {"model": "airtime", "version": 1, "manifest_sha256": origin.manifest_sha256}
    assert once == {"rows": 7, "exported_from": told}
    assert origin.lineage(once) == {"rows": 7, "exported_from": {**told, "exported_from": told}}


@pytest.mark.parametrize("name", ["out", "out.tar.gz"])
@pytest.mark.parametrize("data", [b"onny", b"onn", b"onnxx"])
def test_what_was_damaged_is_not_exported_and_leaves_nothing(
    model: ModelDirectory, origin: Origin, tmp_path: Path, name: str, data: bytes
) -> None:
    (model.version_path(1) / "model.onnx").write_bytes(data)
    with pytest.raises(InvalidVersionError, match=r"model\.onnx"):
        export(model, origin, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["airtime"]


def test_nothing_is_overwritten(model: ModelDirectory, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file.tar.gz").touch()
    (tmp_path / "dir.tar.gz").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file.tar.gz", "dir.tar.gz", "link"):
        with pytest.raises(ArchiveError, match=f"{name}: exists already"):
            export(model, origin, tmp_path / name)
    with pytest.raises(ArchiveError, match="nowhere: no such directory"):
        export(model, origin, tmp_path / "nowhere" / "out")
    (tmp_path / "empty").mkdir()
    assert version_archive.is_export(export(model, origin, tmp_path / "empty"))


def test_links_are_not_followed_on_the_way_out(
    model: ModelDirectory, origin: Origin, tmp_path: Path
) -> None:
    path = model.version_path(1) / "model.onnx"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidVersionError, match=r"model\.onnx: a symbolic link \(to .*elsewhere"):
        export(model, origin, tmp_path / "out")


def test_a_directory_that_was_altered_is_not_taken(
    model: ModelDirectory, origin: Origin, tmp_path: Path, into: Path
) -> None:
    def altered(name: str, change: Callable[[Path], object], problem: str) -> None:
        target = export(model, origin, tmp_path / name)
        change(target / "1")
        with pytest.raises((InvalidVersionError, ArchiveError), match=problem):
            version_archive.read(target, into)
        for path in into.iterdir():
            path.unlink()

    def link(path: Path) -> None:
        (path / "model.onnx").unlink()
        (path / "model.onnx").symlink_to("/etc/passwd")

    altered("a", lambda p: (p / "model.onnx").write_bytes(b"onny"), "its SHA-256 is not the one")
    altered("b", lambda p: (p / "model.onnx").write_bytes(b"onn"), "has 3 bytes, the manifest sa")
    altered("c", lambda p: (p / "model.onnx").unlink(), r"model\.onnx: missing")
    altered("d", link, "a symbolic link")
    altered("e", lambda p: (p / "extra").touch(), "extra: not in the manifest")
    altered("f", lambda p: (p / "manifest.json").write_text("{}"), "format is missing")
    altered(
        "g",
        lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text() + "\n"),
        "is not the one that was exported",
    )
    altered("h", lambda p: (p.parent / "export.json").write_text("[]"), "not an object")
    altered("i", lambda p: os.truncate(p / "model.onnx", 2_000_000_000), "has more bytes")


def packed(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Any:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info, data


def test_an_archive_holds_nothing_but_what_its_manifest_lists(
    model: ModelDirectory, origin: Origin, tmp_path: Path, into: Path
) -> None:
    sealed = (model.version_path(1) / "manifest.json").read_bytes()
    manifest = member("m/1/manifest.json", sealed)
    whole = [member("m/1/model.onnx", b"onnx"), member("m/1/golden.npz", FILES["golden.npz"])]
    cases = [
        ([manifest, *whole], ""),
        ([member("m", kind=tarfile.DIRTYPE), manifest, *whole], ""),
        ([manifest, whole[0]], r"golden\.npz: missing"),
        ([manifest, *whole, member("m/1/extra")], "not in the manifest, or there twice"),
        ([manifest, *whole, whole[0]], "not in the manifest, or there twice"),
        ([manifest, manifest], "not in the manifest, or there twice"),
        ([*whole, manifest], "comes before a manifest"),
        ([], r"holds no manifest\.json"),
        ([manifest, member("m/1/model.onnx", kind=tarfile.SYMTYPE)], "is not a regular file"),
        ([manifest, member("m/1/model.onnx", kind=tarfile.LNKTYPE)], "is not a regular file"),
        ([manifest, member("m/1/model.onnx", kind=tarfile.FIFOTYPE)], "is not a regular file"),
        ([manifest, member("../model.onnx", b"onnx")], "is not a path that an export has"),
        ([manifest, member("/model.onnx", b"onnx")], "is not a path that an export has"),
        ([manifest, member("a/b/c/model.onnx", b"onnx")], "is not a path that an export has"),
        ([manifest, member("m/1/model.onnx", b"onny")], "its SHA-256 is not the one in the mani"),
        ([manifest, member("m/1/model.onnx", b"onnx" * 9)], "has more bytes, the manifest says 4"),
        ([member("m/export.json", b"{}")], "format is missing"),
    ]
    for number, (members, problem) in enumerate(cases):
        path = packed(tmp_path / f"{number}.tar.gz", members)
        target = into / str(number)
        target.mkdir()
        if not problem:
            assert version_archive.read(path, target).manifest == model.manifest(1)
            continue
        with pytest.raises((ArchiveError, InvalidVersionError), match=problem):
            version_archive.read(path, target)


def test_an_archive_that_is_cut_off_or_none_is_told(
    model: ModelDirectory, origin: Origin, tmp_path: Path, into: Path
) -> None:
    data = export(model, origin, tmp_path / "out.tar.gz").read_bytes()
    broken = tmp_path / "broken.tar.gz"
    spoilt = bytearray(data)
    spoilt[len(data) // 2] ^= 0xFF
    contents = [data[: len(data) // 2], data[:5], b"", b"no archive", bytes(spoilt)]
    contents += [gzip.compress(b"no archive"), gzip.compress(bytes(1000))]
    for number, content in enumerate(contents):
        broken.write_bytes(content)
        target = into / str(number)
        target.mkdir()
        with pytest.raises((ArchiveError, InvalidVersionError), match=r"broken\.tar\.gz"):
            version_archive.read(broken, target)


def test_gigabytes_behind_a_small_archive_are_not_unpacked(
    model: ModelDirectory, origin: Origin, tmp_path: Path, into: Path
) -> None:
    sealed = (model.version_path(1) / "manifest.json").read_bytes()
    bomb = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("m/1/model.onnx")
    info.size = 4_000_000_000
    with bomb.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packer:
        header = tarfile.TarInfo("m/1/manifest.json")
        header.size = len(sealed)
        packer.write(header.tobuf() + sealed + bytes(-len(sealed) % 512) + info.tobuf())
        for _ in range(4):
            packer.write(bytes(1 << 20))  # it need not be all of it: nobody gets that far
    with pytest.raises(InvalidVersionError, match="has more bytes, the manifest says 4"):
        version_archive.read(bomb, into)
    assert sum(path.stat().st_size for path in into.iterdir()) == 4
