"""Reads the traffic log and the labels that the server writes, and rolls closed files to Parquet.

    traffic/  active.frames  closed-<seq>.frames  day=YYYY-MM-DD/seg-<seq>.parquet
    labels/   active.frames  closed-<seq>.frames  labels-<seq>.parquet

A frame is `[u32 length][u32 crc32][u32 rows]` (little endian) and an Arrow IPC stream that holds one
record batch. The server appends to the active files while they are read here, so a file may end in
half a frame: the walk stops at the first frame that is short or does not have its checksum, and what
came before it counts. Only the server truncates.

Rolling writes a Parquet file beside its goal, syncs it, renames it into place and only then removes
the frames. Killed anywhere, it leaves the frames, and the next rolling writes the same files again;
a reader takes the frames of a sequence number where both are there. Rolling and training of one
model exclude each other by the lock in trainer_lock.py, so a snapshot is never removed under a
reader, except that the server may close an active file: a `LogSnapshot` holds it open.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import polars as pl

from .errors import DataError

_HEADER = struct.Struct("<III")
_BATCH_ROWS = 65_536  # of a Parquet file that are decoded at once
_COMPACT_LABEL_FILES = 16  # label files beyond which a rolling makes one of them


@dataclass(frozen=True)
class FrameFile:
    """What one frame file holds: the whole frames, and how many bytes after them were not one."""

    frames: tuple[pl.DataFrame, ...]
    rows: int
    torn_bytes: int


@dataclass(frozen=True)
class RollReport:
    """What one rolling did."""

    files: int  # frame files that became Parquet
    rows: int
    torn_bytes: int  # after the last whole frame of a closed file
    removed_days: tuple[str, ...]  # directories past keep_days


def walk_frames(data: bytes | memoryview) -> Iterator[memoryview]:
    """The payload of each whole frame, until the data end or a frame is torn."""
    view = memoryview(data)
    at = 0
    while at + _HEADER.size <= len(view):
        length, checksum, _ = _HEADER.unpack_from(view, at)
        start = at + _HEADER.size
        payload = view[start : start + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
        at = start + length


def read_frames(path: Path, columns: Sequence[str] | None = None) -> FrameFile:
    """Every whole frame of a file; with `columns`, only those of them that a frame has."""
    data = path.read_bytes()
    frames: list[pl.DataFrame] = []
    whole = 0
    for payload in walk_frames(data):
        frames.append(_frame(payload, path, columns))
        whole += _HEADER.size + len(payload)
    return FrameFile(tuple(frames), sum(f.height for f in frames), len(data) - whole)


def snapshot(directory: Path) -> list[Path]:
    """Lists a log's files, oldest first: by sequence number, the active file last."""
    found: dict[tuple[int, str], Path] = {}
    frames = {_sequence(path) for path in directory.glob("closed-*.frames")}
    for path in (*directory.glob("day=*/seg-*.parquet"), *directory.glob("labels-*.parquet")):
        if _sequence(path) not in frames:
            found[_sequence(path), path.parent.name] = path
    for path in directory.glob("closed-*.frames"):
        found[_sequence(path), ""] = path
    active = directory / "active.frames"
    last = [active] if active.exists() else []
    return [*(found[key] for key in sorted(found)), *last]


class LogSnapshot:
    """The files of one log as they are now, to be read more than once: the same rows each time.

    The active file is held open and ends where it ends now, so the server may append to it, close
    it and begin another one. Closed files go only by rolling, which the caller's lock keeps out.
    """

    def __init__(self, directory: Path) -> None:
        # Opened before the others are listed: closed in between, it is there twice, never absent.
        self._active = self._size = None
        active = directory / "active.frames"
        try:
            self._active = active.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            listed = snapshot(directory)
        else:
            status = os.fstat(self._active.fileno())
            self._size = status.st_size
            listed = [path for path in snapshot(directory) if not _is_file(path, status)]
        self.paths = [path for path in listed if path != active]
        self._active_path = active

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._active is not None:
            self._active.close()

    def frames(
        self, columns: Sequence[str], needed: Sequence[str] = ()
    ) -> Iterator[tuple[Path, pl.DataFrame]]:
        """The rows in the order of the files, a bounded number at a time, as frames of those
        `columns` that each has. One without all that are `needed` has none, but its rows."""
        for path in self.paths:
            if path.suffix == ".frames":
                with path.open("rb") as file:
                    for frame in _stream(file, path, columns, needed):
                        yield path, frame
            else:
                for frame in _stream_parquet(path, columns, needed):
                    yield path, frame
        if self._active is not None:
            self._active.seek(0)
            for frame in _stream(self._active, self._active_path, columns, needed, self._size):
                yield self._active_path, frame


def read_log(directory: Path, columns: Sequence[str]) -> list[tuple[Path, pl.DataFrame]]:
    """The log's rows in the order of its files, as frames of those `columns` that each has."""
    with LogSnapshot(directory) as log:
        return list(log.frames(columns))


def roll(data: Path, keep_days: int = 0, report: Callable[[str], None] | None = None) -> RollReport:
    """Turns the closed frame files of `data`/traffic and `data`/labels into Parquet.

    With `keep_days`, days of traffic older than that before the newest one are removed.
    """
    files = rows = torn = 0
    for directory, write in (
        (data / "traffic", _write_traffic),
        (data / "labels", _write_labels),
    ):
        for path in sorted(directory.glob("closed-*.frames"), key=_sequence):
            closed = read_frames(path)
            if report is not None:
                report(f"{path.name}: {closed.rows:,} rows")
            if closed.frames:
                write(directory, _sequence(path), closed.frames)
            if closed.torn_bytes:  # kept for a person to look at; no reader takes it again
                path.replace(path.with_name(f"damaged-{path.name}"))
            else:
                path.unlink()
            _sync(directory)
            files, rows, torn = files + 1, rows + closed.rows, torn + closed.torn_bytes
    _compact_labels(data / "labels")
    return RollReport(files, rows, torn, _remove_days(data / "traffic", keep_days))


def _stream(
    file: BinaryIO,
    path: Path,
    columns: Sequence[str],
    needed: Sequence[str] = (),
    size: int | None = None,
) -> Iterator[pl.DataFrame]:
    """The whole frames of the first `size` bytes of a file, one at a time."""
    left = os.fstat(file.fileno()).st_size if size is None else size
    while left >= _HEADER.size:
        header = file.read(_HEADER.size)
        left -= _HEADER.size
        if len(header) < _HEADER.size:
            return
        length, checksum, _ = _HEADER.unpack(header)
        payload = file.read(length) if length <= left else b""
        left -= length
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield _frame(payload, path, columns, needed)


def _frame(
    payload: bytes | memoryview,
    path: Path,
    columns: Sequence[str] | None,
    needed: Sequence[str] = (),
) -> pl.DataFrame:
    try:
        frame = pl.read_ipc_stream(io.BytesIO(payload))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} has a frame that is not Arrow: {_line(error)}") from error
    if columns is None:
        return frame
    if not set(needed) <= set(frame.columns):
        return pl.DataFrame(height=frame.height)
    return frame.select(name for name in columns if name in frame.columns)


def _stream_parquet(
    path: Path, columns: Sequence[str], needed: Sequence[str] = ()
) -> Iterator[pl.DataFrame]:
    try:
        there = pl.read_parquet_schema(path)
        if not set(needed) <= set(there):
            rows = pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item()
            yield pl.DataFrame(height=rows)
            return
        wanted = [name for name in columns if name in there]
        scanned = pl.scan_parquet(path, hive_partitioning=False).select(wanted)
        yield from scanned.collect_batches(chunk_size=_BATCH_ROWS)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read: {_line(error)}") from error


def _is_file(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:  # the active file, closed since
        return True


def _write_traffic(directory: Path, sequence: int, frames: Sequence[pl.DataFrame]) -> None:
    rows = pl.concat(frames, how="diagonal_relaxed").sort("event_time", "id", "row")
    day = pl.from_epoch("event_time", time_unit="ms").dt.date().alias("day")
    for (date,), part in (
        rows.with_columns(day)
        .partition_by("day", as_dict=True, include_key=False, maintain_order=True)
        .items()
    ):
        target = directory / f"day={date}"
        target.mkdir(exist_ok=True)
        _write(part, target / f"seg-{sequence:08d}.parquet")
    _sync(directory)


def _write_labels(directory: Path, sequence: int, frames: Sequence[pl.DataFrame]) -> None:
    _write(pl.concat(frames, how="diagonal_relaxed"), directory / f"labels-{sequence:08d}.parquet")


def _compact_labels(directory: Path) -> None:
    paths = sorted(directory.glob("labels-*.parquet"), key=_sequence)
    if len(paths) <= _COMPACT_LABEL_FILES:
        return
    rows = pl.concat([frame for path in paths for frame in _read_whole(path)])
    latest = rows.unique(["id", "row"], keep="last", maintain_order=True)
    _write(latest, paths[-1])  # the newest file's number: what is rolled later still wins
    for path in paths[:-1]:
        path.unlink()
    _sync(directory)


def _read_whole(path: Path) -> list[pl.DataFrame]:
    return list(_stream_parquet(path, list(pl.read_parquet_schema(path))))


def _remove_days(directory: Path, keep_days: int) -> tuple[str, ...]:
    days = sorted(directory.glob("day=*"))
    if keep_days <= 0 or not days:
        return ()
    dates = pl.Series([path.name.removeprefix("day=") for path in days]).str.to_date("%Y-%m-%d")
    old = (dates.max() - dates) >= pl.duration(days=keep_days)
    removed = [
        path for path, is_old in zip(days, pl.select(old).to_series(), strict=True) if is_old
    ]
    for path in removed:
        for segment in path.glob("seg-*.parquet"):
            segment.unlink()
        path.rmdir()
    return tuple(path.name for path in removed)


def _write(frame: pl.DataFrame, path: Path) -> None:
    partial = path.with_name(f".tmp-{path.name}")
    frame.write_parquet(partial, compression="zstd", compression_level=3)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    if not directory.is_dir():
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sequence(path: Path) -> int:
    """The number in closed-<n>.frames, seg-<n>.parquet or labels-<n>.parquet."""
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
