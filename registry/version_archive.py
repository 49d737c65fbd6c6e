"""A version on its way from one registry into another: a directory or a .tar.gz.

    airtime/                as a directory: the one that was asked for
      export.json           where it comes from: model, version, its part of the history
      3/                    the version as it is, byte for byte, with manifest and signature

So an exported directory is itself a model that a server could serve. Every byte is compared with the
manifest on its way out and on its way in, nothing is held in memory but the small documents, and an
archive may hold nothing but what its manifest lists: no links, no other paths, no more bytes.
Equal versions with equal histories give equal archives.
"""

import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from . import durable
from .documents import Document, encode_readable
from .errors import InvalidVersionError, RegistryError
from .history import HistoryEntry
from .manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, Manifest
from .names import is_plain
from .staging import MODEL_FILE_NAME

EXPORT_NAME = "export.json"
EXPORT_FORMAT = 1
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")

_CHUNK_BYTES = 1 << 20
_MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


class ArchiveError(RegistryError):
    """An export cannot be written where it was asked for, or is none that could be read."""


@dataclass(frozen=True)
class Origin:
    """Where an exported version comes from."""

    model: str
    version: int  # 0: not known
    manifest_sha256: str
    history: tuple[HistoryEntry, ...] = ()  # the entries about it, as they were in its registry

    def to_json(self) -> bytes:
        return encode_readable(
            {
                "format": EXPORT_FORMAT,
                "model": self.model,
                "version": self.version,
                "manifest_sha256": self.manifest_sha256,
                "history": [entry.to_dict() for entry in self.history],
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> "Origin":
        """ValueError naming what is missing or not of its type."""
        document = Document.parse(text)
        if (format_ := document.integer("format")) != EXPORT_FORMAT:
            raise ValueError(f"format is {format_}, this Trimtab reads {EXPORT_FORMAT}")
        return cls(
            model=document.text("model"),
            version=document.integer("version"),
            manifest_sha256=document.text("manifest_sha256"),
            history=tuple(map(HistoryEntry.from_document, document.sequence("history"))),
        )

    def lineage(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """A version's lineage with this origin; an earlier export of it stays inside."""
        told: dict[str, Any] = {
            "model": self.model,
            "version": self.version,
            "manifest_sha256": self.manifest_sha256,
        }
        if "exported_from" in before:
            told["exported_from"] = before["exported_from"]
        return {**before, "exported_from": told}


@dataclass(frozen=True)
class ExportedVersion:
    """What `read` found; its files are where it put them."""

    origin: Origin
    manifest: Manifest
    sealed: bytes = field(repr=False)  # manifest.json as it was
    signature: bytes | None = field(repr=False)  # manifest.sig


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def is_export(path: Path) -> bool:
    """Whether a directory is an export, or a version with a manifest."""
    return (path / EXPORT_NAME).is_file() or (path / MANIFEST_NAME).is_file()


def write(directory: Path, origin: Origin, manifest: Manifest, target: Path) -> None:
    """Exports the version in `directory`; the target appears whole or not at all.

    InvalidVersionError if its files are not those of the manifest; ArchiveError if something is in
    the way; OSError.
    """
    with new_target(target) as staged, _sink(staged, target, origin.model) as sink:
        sink.add(EXPORT_NAME, io.BytesIO(text := origin.to_json()), len(text))
        sealed = _read_small(directory / MANIFEST_NAME)
        if hashlib.sha256(sealed).hexdigest() != origin.manifest_sha256:
            raise InvalidVersionError(f"{directory / MANIFEST_NAME}: was changed just now")
        folder = str(origin.version)
        sink.add(f"{folder}/{MANIFEST_NAME}", io.BytesIO(sealed), len(sealed))
        if os.path.lexists(directory / SIGNATURE_NAME):
            signature = _read_small(directory / SIGNATURE_NAME)
            sink.add(f"{folder}/{SIGNATURE_NAME}", io.BytesIO(signature), len(signature))
        for name, entry in sorted(manifest.files.items()):
            with open_regular(directory / name) as file:
                reader = _Reader(file, entry.size)
                sink.add(f"{folder}/{name}", reader, entry.size)
                reader.check(entry, str(directory / name))


def write_files(files: Mapping[str, Path | bytes], target: Path, top: str) -> None:
    """Writes files, by their path in it, to a directory or archive; as `write` otherwise."""
    with new_target(target) as staged, _sink(staged, target, top) as sink:
        for name, source in files.items():
            if isinstance(source, bytes):
                sink.add(name, io.BytesIO(source), len(source))
                continue
            with open_regular(source) as file:
                size = os.fstat(file.fileno()).st_size
                sink.add(name, _Reader(file, size), size)


def read(source: Path, into: Path) -> ExportedVersion:
    """Copies the files of an exported version into a directory, all but manifest and signature.

    `source` is an archive, a directory that `write` made, or the directory of a version.
    InvalidVersionError or ArchiveError says what is wrong with it; OSError.
    """
    if is_archive(source):
        return _read_archive(source, into)
    origin = None
    directory = source
    if (source / EXPORT_NAME).is_file():
        origin = _origin(_read_small(source / EXPORT_NAME), source / EXPORT_NAME)
        directory = source / str(origin.version)
    sealed = _read_small(directory / MANIFEST_NAME)
    manifest = _manifest(sealed, directory / MANIFEST_NAME)
    signature = None
    listed = {MANIFEST_NAME, *manifest.files}
    for path in sorted(directory.iterdir()):
        if path.name == SIGNATURE_NAME:
            signature = _read_small(path)
        elif path.name not in listed:
            raise InvalidVersionError(f"{path}: not in the manifest")
    for name, entry in manifest.files.items():
        with open_regular(directory / name) as file:
            _take(file, entry, into / name, str(directory / name))
    number = directory.resolve().name
    version = int(number) if _NUMBER.fullmatch(number) else 0
    return _exported(origin, manifest, sealed, signature, version, str(source))


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file to read it; InvalidVersionError if it is a link or no file; OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InvalidVersionError(f"{path}: missing") from None
    except OSError:
        if path.is_symlink():
            raise InvalidVersionError(
                f"{path}: a symbolic link (to {path.readlink()}); give the file itself"
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidVersionError(f"{path}: not a regular file")
    return os.fdopen(fd, "rb")


def copy_file(source: Path, target: Path) -> FileEntry:
    """Copies a regular file and hashes what it copied; as `open_regular`."""
    with open_regular(source) as file, target.open("xb") as copy:
        reader = _Reader(file, None)
        shutil.copyfileobj(reader, copy, _CHUNK_BYTES)
        return FileEntry(reader.digest(), reader.bytes)


@contextlib.contextmanager
def new_target(target: Path) -> Iterator[Path]:
    """A path beside the target to write to, which becomes the target if all goes well."""
    if os.path.lexists(target) and (
        is_archive(target) or not target.is_dir() or target.is_symlink() or any(target.iterdir())
    ):
        raise ArchiveError(f"{target}: exists already, and an export overwrites nothing")
    target = target.absolute()
    parent = target.parent
    if not parent.is_dir():
        raise ArchiveError(f"{parent}: no such directory")
    staged = durable.temporary_path(parent)
    try:
        yield staged
        staged.rename(target)
        durable.sync_directory(parent)
    finally:
        if staged.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
        else:
            staged.unlink(missing_ok=True)


class _Reader(io.RawIOBase):
    """Hashes what goes through it, and stops at the size that is expected (None: any)."""

    def __init__(self, file: IO[bytes], size: int | None) -> None:
        self._file = file
        self._left = size
        self._digest = hashlib.sha256()
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = _CHUNK_BYTES if size < 0 else size
        data = self._file.read(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(data)
        self._digest.update(data)
        self.bytes += len(data)
        return data

    def digest(self) -> str:
        return self._digest.hexdigest()

    def check(self, entry: FileEntry, where: str) -> None:
        """InvalidVersionError unless the whole file went through, and nothing is left of it."""
        if self.bytes != entry.size or self._file.read(1):
            how = "more" if self.bytes == entry.size else f"{self.bytes}"
            raise InvalidVersionError(f"{where}: has {how} bytes, the manifest says {entry.size}")
        if self.digest() != entry.sha256:
            raise InvalidVersionError(f"{where}: its SHA-256 is not the one in the manifest")


class _DirectorySink:
    """Files of an export that is a directory."""

    def __init__(self, staged: Path) -> None:
        self._staged = staged
        staged.mkdir()

    def add(self, name: str, data: Any, size: int) -> None:
        path = self._staged / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            shutil.copyfileobj(data, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())


class _ArchiveSink:
    """Files of an export that is an archive; owners and times are left out."""

    def __init__(self, archive: tarfile.TarFile, top: str) -> None:
        self._archive = archive
        self._top = top

    def add(self, name: str, data: Any, size: int) -> None:
        info = tarfile.TarInfo(f"{self._top}/{name}")
        info.size = size
        info.mode = 0o644
        try:
            self._archive.addfile(info, data)
        except OSError as error:
            if error.errno is not None:
                raise
            raise InvalidVersionError(f"{name}: became shorter while it was read") from None


@contextlib.contextmanager
def _sink(staged: Path, target: Path, top: str) -> Iterator[_DirectorySink | _ArchiveSink]:
    if not is_archive(target):
        yield _DirectorySink(staged)
        return
    with staged.open("xb") as file:
        # No name and no time in the gzip header either.
        with (
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            yield _ArchiveSink(archive, top)
        file.flush()
        os.fsync(file.fileno())


def _read_archive(source: Path, into: Path) -> ExportedVersion:
    with open_regular(source) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|gz") as archive:
                return _read_members(archive, source, into)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ArchiveError(f"{source}: not a whole archive: {error}") from None


def _read_members(archive: tarfile.TarFile, source: Path, into: Path) -> ExportedVersion:
    """The order is that of `write`: export.json, the manifest, the signature, the files."""
    origin: Origin | None = None
    manifest: Manifest | None = None
    sealed, signature = b"", None
    missing: dict[str, FileEntry] = {}
    for member in archive:
        where = f"{source}: {member.name}"
        if member.isdir():
            continue
        if not member.isreg():
            raise ArchiveError(f"{where}: is not a regular file")
        *folders, name = member.name.removeprefix("./").split("/")
        if not all(map(is_plain, (*folders, name))) or len(folders) > 2:
            raise ArchiveError(f"{where}: is not a path that an export has")
        data = archive.extractfile(member)
        assert data is not None
        if name == EXPORT_NAME and origin is None and manifest is None:
            origin = _origin(_read_limited(data, where), where)
        elif name == MANIFEST_NAME and manifest is None:
            sealed = _read_limited(data, where)
            manifest = _manifest(sealed, where)
            missing = dict(manifest.files)
        elif manifest is None:
            raise ArchiveError(f"{where}: comes before a manifest: not an export of Trimtab")
        elif name == SIGNATURE_NAME and signature is None:
            signature = _read_limited(data, where)
        elif name in missing:
            _take(data, missing.pop(name), into / name, where)
        else:
            raise ArchiveError(f"{where}: not in the manifest, or there twice")
    if manifest is None:
        raise ArchiveError(f"{source}: holds no {MANIFEST_NAME}: not an export of Trimtab")
    if missing:
        raise InvalidVersionError(f"{source}: {', '.join(sorted(missing))}: missing")
    return _exported(origin, manifest, sealed, signature, 0, str(source))


def _exported(
    origin: Origin | None,
    manifest: Manifest,
    sealed: bytes,
    signature: bytes | None,
    version: int,
    where: str,
) -> ExportedVersion:
    if MODEL_FILE_NAME not in manifest.files:
        raise InvalidVersionError(f"{where}: its manifest lists no {MODEL_FILE_NAME}")
    digest = hashlib.sha256(sealed).hexdigest()
    if origin is None:
        origin = Origin(manifest.model, version, digest)
    elif origin.manifest_sha256 != digest:
        raise InvalidVersionError(
            f"{where}: {MANIFEST_NAME} is not the one that was exported: its SHA-256 is not that in "
            f"{EXPORT_NAME}"
        )
    return ExportedVersion(origin, manifest, sealed, signature)


def _take(file: IO[bytes], entry: FileEntry, target: Path, where: str) -> None:
    with target.open("xb") as copy:
        reader = _Reader(file, entry.size)
        shutil.copyfileobj(reader, copy, _CHUNK_BYTES)
    reader.check(entry, where)


def _read_small(path: Path) -> bytes:
    with open_regular(path) as file:
        return _read_limited(file, str(path))


def _read_limited(file: IO[bytes], where: str) -> bytes:
    data = file.read(_MAX_DOCUMENT_BYTES + 1)
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise InvalidVersionError(f"{where}: has more than {_MAX_DOCUMENT_BYTES} bytes")
    return data


def _origin(text: bytes, where: Path | str) -> Origin:
    try:
        return Origin.from_json(text)
    except ValueError as error:
        raise ArchiveError(f"{where}: {error}") from None


def _manifest(text: bytes, where: Path | str) -> Manifest:
    try:
        return Manifest.from_json(text)
    except ValueError as error:
        raise InvalidVersionError(f"{where}: {error}") from None
