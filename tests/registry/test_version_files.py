import hashlib
import tracemalloc
from pathlib import Path

import pytest

from trimtab.registry import version_files
from trimtab.registry.errors import InvalidVersionError
from trimtab.registry.manifest import FileEntry


@pytest.fixture
def version(tmp_path: Path) -> Path:
    for name in ("manifest.json", "manifest.sig", "model.onnx"):
        (tmp_path / name).write_bytes(b"onnx")
    return tmp_path


def entry(data: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def test_manifest_and_signature_are_not_listed_and_may_be_there(version: Path) -> None:
    found = version_files.read_entries(version)
    assert found == {"model.onnx": entry(b"onnx")}
    version_files.verify(version, found)
    (version / "manifest.sig").unlink()
    version_files.verify(version, found)


def test_a_file_of_another_size_is_refused_without_being_read(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = version_files.read_entries(version)
    with (version / "model.onnx").open("wb") as file:
        file.truncate(2_000_000_000)

    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(hashlib, "file_digest", read)
    with pytest.raises(InvalidVersionError, match="has 2000000000 bytes, the manifest says 4"):
        version_files.verify(version, found)


def test_a_large_file_is_hashed_piece_by_piece(version: Path) -> None:
    data = bytes(1 << 20) * 32
    (version / "model.onnx").write_bytes(data)
    expected = {"model.onnx": entry(data)}
    del data
    tracemalloc.start()
    try:
        version_files.verify(version, expected)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
