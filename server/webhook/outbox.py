"""What one receiver is still to be sent: a file of lines, appended to and synced.

    {"id": …, "kind": …, "time_ms": …, "body": …}        a message
    {"done": ID}                                          it was delivered, or given up
    {"model": …, "sequence": …, "hash": …}                a history was seen up to that entry

A message is on the disk as `add` returns. `done` is not synced: what a crash takes of it is sent
again, with the id that it had. A line is in the file when its newline is; what a crash left half
written is passed over, and so is a line that is none (it is counted). When the file is mostly of what
is done it is replaced by one of what is not. More than `max_bytes` do not wait: the oldest messages go,
and are counted.

A disk that does not take it leaves the messages in memory; all that is not done is written with the
first write that succeeds. Every method may be called on any thread.
"""

import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.registry import durable

from .message import Message

_log = logging.getLogger(__name__)

_SLACK_BYTES = 256 * 1024  # of what is done, before a small file is replaced


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a model's history was seen."""

    sequence: int
    hash: str


class Outbox:
    """See the module."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # guards every field below, and the file
        self._pending: deque[tuple[Message, int]] = deque()  # with the bytes of its line
        self._ids: set[str] = set()  # of what is in the file, done or not
        self._marks: dict[str, Mark] = {}
        self._bytes = 0  # of the pending lines
        self._size = 0  # of the file
        self._fd: int | None = None
        self._whole = True  # False: the file has not all that it should
        self._overflowed = 0
        self._damaged = 0  # lines that were none

    def __repr__(self) -> str:
        return f"Outbox({self._path.name}, {self.pending} pending, {self._bytes:,} bytes)"

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def overflowed(self) -> int:
        """Messages that there was no room for, since the start."""
        return self._overflowed

    @property
    def damaged(self) -> int:
        """Lines of the file that could not be read as it was opened."""
        return self._damaged

    def open(self) -> Mapping[str, Mark] | None:
        """Reads the file; what it has seen of the histories. None: there was none."""
        with self._lock:
            try:
                content = self._path.read_bytes()
            except FileNotFoundError:
                self._whole = False  # what is added first makes the file
                return None
            except OSError as error:
                _log.error("%s: cannot be read, what waited there is lost: %s", self._path, error)
                content = b""
            for line in content.split(b"\n")[:-1]:
                self._read(line)
            self._rewrite()
            if self._damaged:
                _log.error("%s: %d lines could not be read", self._path, self._damaged)
            return dict(self._marks)

    def add(
        self, messages: Sequence[Message], marks: Mapping[str, Mark], *, sync: bool = False
    ) -> None:
        """Takes messages that it has not had, and how far histories were seen. `sync`: for marks too."""
        with self._lock:
            lines = []
            for message in messages:
                if message.id not in self._ids:
                    line = _line_of(message)
                    self._keep(message, len(line))
                    lines.append(line)
            self._marks.update(marks)
            lines += [_mark_line(model, mark) for model, mark in marks.items()]
            lines += [_done_line(message) for message in self._overflow()]
            self._append(b"".join(lines), sync=sync or bool(messages))

    def first(self) -> Message | None:
        """The oldest one that is not done."""
        with self._lock:
            return self._pending[0][0] if self._pending else None

    def done(self, message: Message) -> None:
        """The oldest one, if it is the oldest still, was delivered or given up."""
        with self._lock:
            if self._pending and self._pending[0][0].id == message.id:
                self._bytes -= self._pending.popleft()[1]
                self._append(_done_line(message), sync=False)

    def close(self) -> None:
        with self._lock:
            if not self._whole:
                self._rewrite()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            self._whole = True  # nothing more is written

    def _read(self, line: bytes) -> None:
        try:
            found: dict[str, Any] = json.loads(line)
            if "done" in found:
                self._take_out(str(found["done"]))
            elif "model" in found:
                self._marks[str(found["model"])] = Mark(int(found["sequence"]), str(found["hash"]))
            else:
                body = str(found["body"]).encode()
                message = Message(str(found["id"]), str(found["kind"]), int(found["time_ms"]), body)
                if message.id not in self._ids:
                    self._keep(message, len(line) + 1)
        except (ValueError, KeyError, TypeError):
            self._damaged += 1

    def _keep(self, message: Message, size: int) -> None:
        self._pending.append((message, size))
        self._ids.add(message.id)
        self._bytes += size

    def _take_out(self, message_id: str) -> None:
        """While reading: a message that is done is the oldest, as good as always."""
        for place, (message, size) in enumerate(self._pending):
            if message.id == message_id:
                del self._pending[place]
                self._bytes -= size
                return

    def _overflow(self) -> list[Message]:
        """Lets go of the oldest messages that there is no room for."""
        gone = []
        while self._bytes > self._max_bytes and self._pending:
            message, size = self._pending.popleft()
            self._bytes -= size
            gone.append(message)
        if gone and not self._overflowed:
            _log.error(
                "%s: more than %d bytes wait, the oldest are dropped; this is only counted from "
                "now on",
                self._path,
                self._max_bytes,
            )
        self._overflowed += len(gone)
        return gone

    def _append(self, lines: bytes, *, sync: bool) -> None:
        if self._fd is None and self._whole:
            return  # it was closed
        if not self._whole or self._size + len(lines) > 2 * self._bytes + _SLACK_BYTES:
            self._rewrite()
            return
        assert self._fd is not None
        try:
            durable.write_all(self._fd, lines)
            self._size += len(lines)
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            _log.error("%s: cannot be written, messages are in memory only: %s", self._path, error)
            self._whole = False

    def _rewrite(self) -> None:
        """Replaces the file by one of what is not done."""
        lines = [_mark_line(model, mark) for model, mark in self._marks.items()]
        lines += [_line_of(message) for message, _ in self._pending]
        content = b"".join(lines)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        was_whole, self._whole = self._whole, False
        try:
            durable.replace_file(self._path, content)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            if was_whole:
                _log.error(
                    "%s: cannot be written, messages are in memory only: %s", self._path, error
                )
            return
        self._whole = True
        self._size = len(content)
        self._ids = {message.id for message, _ in self._pending}


def _line_of(message: Message) -> bytes:
    return _line(
        {
            "id": message.id,
            "kind": message.kind,
            "time_ms": message.time_ms,
            "body": message.body.decode(),
        }
    )


def _done_line(message: Message) -> bytes:
    return _line({"done": message.id})


def _mark_line(model: str, mark: Mark) -> bytes:
    return _line({"model": model, "sequence": mark.sequence, "hash": mark.hash})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
