"""A folder of frame files: one that grows, `active.frames`, and finished ones, `closed-<seq>.frames`.

A frame is `[u32 length][u32 crc32][u32 rows]`, little endian, and `length` bytes of payload (an
Arrow IPC stream holding one record batch; this module does not look into it). A frame is whole or
it is not there: recovery walks the file, stops at the first frame that is short or whose checksum
is wrong, and cuts the file there. A write that fails midway is cut off at once in the same way, so
what follows the last whole frame is never anything but a torn tail.

Why not one Arrow stream for the whole file: readers of a torn stream return nothing at all, and
concatenated streams are read as their first alone.

`counter.json` says how many rows the closed files up to a sequence number held. Rolling turns
closed files into Parquet and removes them; the total survives that, and a crash at any step, since
files that the counter does not yet include are still here to be counted.

Somebody may remove the folder while it is written to. What is appended after that goes to a new
file of the same name, never to one that nobody can find; the total goes on.

One thread at a time may append, sync and rotate; the owner sees to that.
"""

import contextlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<III")
_ACTIVE = "active.frames"
_COUNTER = "counter.json"
_CLOSED = re.compile(r"closed-(\d{8,})\.frames")
_NUMBERED = re.compile(r"(?:damaged-)?(?:closed|seg|labels)-(\d{8,})\.(?:frames|parquet)")


@dataclass(frozen=True)
class Recovery:
    """What opening a folder found in the file that was being written."""

    frames: int = 0
    rows: int = 0
    lost_bytes: int = 0  # of the torn tail that was cut off

    def __str__(self) -> str:
        text = f"{self.rows:,} rows in {self.frames:,} frames kept"
        if not self.lost_bytes:
            return text
        return f"{text}, a torn tail of {self.lost_bytes:,} bytes cut off"


def read_frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """(rows, payload) of every whole frame, in order; ends silently at a torn one."""
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum, rows = _HEADER.unpack(header)
            payload = file.read(length)
            if len(payload) != length or zlib.crc32(payload) != checksum:
                return
            yield rows, payload


class FrameLog:
    """Appends frames to one folder; `open()` first, which recovers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._active = folder / _ACTIVE
        self._file = -1
        self._size = 0  # of whole frames: a failed write is cut back to it
        self._rows = 0
        self._closed_rows = 0
        self._sequence = 0
        self._dirty = False

    def __repr__(self) -> str:
        return f"FrameLog({self.folder}, rows={self._rows}, bytes={self._size})"

    @property
    def rows(self) -> int:
        """Rows in the active file."""
        return self._rows

    @property
    def total_rows(self) -> int:
        """Rows ever appended to this folder, rolled and removed ones included."""
        return self._closed_rows + self._rows

    @property
    def active(self) -> Path:
        """The file that grows."""
        return self._active

    @property
    def dirty(self) -> bool:
        """Whether something was appended that is not yet synced."""
        return self._dirty

    def open(self) -> Recovery:
        """Opens the active file, cutting off a torn tail; raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recount()
        path = self._active
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        frames = rows = size = 0
        for frame_rows, payload in read_frames(path):
            frames += 1
            rows += frame_rows
            size += _HEADER.size + len(payload)
        lost = os.fstat(self._file).st_size - size
        if lost:
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        self._size, self._rows = size, rows
        return Recovery(frames, rows, lost)

    def append(self, payload: bytes, rows: int) -> int:
        """Writes one frame and returns its size in bytes; on OSError nothing of it remains."""
        self._reopen_if_removed()
        if self._file < 0:
            self._create()  # a rotation went only half its way
        frame = b"".join((_HEADER.pack(len(payload), zlib.crc32(payload), rows), payload))
        view = memoryview(frame)
        try:
            written = 0
            while written < len(frame):
                written += os.pwrite(self._file, view[written:], self._size + written)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(frame)
        self._rows += rows
        self._dirty = True
        return len(frame)

    def sync(self) -> None:
        """Returns once everything appended is on the disk; raises OSError."""
        if self._dirty:
            os.fdatasync(self._file)
            self._dirty = False

    def rotate(self) -> Path | None:
        """Finishes the active file and begins a new one; None where there was nothing to finish."""
        self._reopen_if_removed()
        if not self._size:
            return None
        self.sync()
        self._sequence += 1
        closed = self.folder / f"closed-{self._sequence:08d}.frames"
        self._active.rename(closed)
        os.close(self._file)
        self._file = -1
        self._closed_rows += self._rows
        self._size = self._rows = 0
        self._create()
        # Without it the file just closed would be counted at the next start, if it still is there.
        with contextlib.suppress(OSError):
            self._write_counter()
        return closed

    def closed_files(self) -> list[Path]:
        """The finished files that were not rolled yet, oldest first."""
        try:
            return sorted(path for path in self.folder.iterdir() if _CLOSED.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """Syncs and lets go of the file."""
        if self._file >= 0:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = -1

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self._active, flags, 0o644)

    def _reopen_if_removed(self) -> None:
        """Begins anew where the active file is no longer the one in the folder; raises OSError."""
        if self._file >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._active.stat(), os.fstat(self._file)):
                    return
            os.close(self._file)
            self._file = -1
            self._closed_rows += self._rows
            self._size = self._rows = 0
            self._dirty = False
            total, sequence = self._closed_rows, self._sequence
            try:
                self.open()
            finally:
                self._sequence = max(self._sequence, sequence)
                self._closed_rows = max(self._closed_rows, total - self._rows)
            with contextlib.suppress(OSError):
                self._write_counter()

    def _recount(self) -> None:
        counted = self._closed_rows = 0
        try:
            counter = json.loads((self.folder / _COUNTER).read_text(encoding="utf-8"))
            counted, self._closed_rows = int(counter["sequence"]), int(counter["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or torn: what is still here is counted
        self._sequence = counted
        for _, _, names in os.walk(self.folder):
            for name in names:
                if match := _NUMBERED.fullmatch(name):
                    self._sequence = max(self._sequence, int(match[1]))
        uncounted = False
        for path in self.closed_files():
            match = _CLOSED.fullmatch(path.name)
            if match and int(match[1]) > counted:
                self._closed_rows += sum(rows for rows, _ in read_frames(path))
                uncounted = True
        if uncounted:
            self._write_counter()

    def _write_counter(self) -> None:
        """Replaces counter.json and makes the folder's names durable."""
        path = self.folder / _COUNTER
        temporary = path.with_suffix(".json.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"sequence": self._sequence, "rows": self._closed_rows}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
