"""The file of admin tokens: who may call, in which role, and the hash of what they call with.

    # name role sha256
    ann operator 3f1c…
    grafana viewer 9a40…

A token is 32 random bytes, so that its SHA-256 is as hard to turn round as it gets; it is shown once,
when it is made, and kept nowhere. A name may have several tokens, so that a new one can be handed out
before the old line is removed. The file is read again when it changes: a line that is removed takes
effect with the next call. A file that has become unreadable, or has a line that is none, lets nobody
in until it is mended; to go on with what it said before could let in who was meant to be removed.

A call's token is hashed and the hash compared with every line's, all of them, in constant time each;
how long it takes tells nothing but how many lines there are.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UnavailableError

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")

_log = logging.getLogger(__name__)

_PREFIX = "tt_"  # by which one that lies about is known for what it is
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RESTLESS_NS = 2_000_000_000  # a file written so shortly before may change without a new time


class TokensError(Exception):
    """The file cannot be used; the message names it, and the line."""


@dataclass(frozen=True)
class TokenEntry:
    """A line of the file."""

    name: str
    role: Role
    digest: bytes  # SHA-256 of the token


class TokensFile:
    """The file as it is now. Used from one thread."""

    def __init__(self, path: Path) -> None:
        """Raises TokensError."""
        self._path = path
        self._entries: Sequence[TokenEntry] = ()
        self._problem = ""
        self._stamp: tuple[int, ...] | None = None
        self._read()
        if self._problem:
            raise TokensError(self._problem)
        if not self._entries:
            raise TokensError(
                f"{path}: has no token; `trimtab token new NAME --file {path}` adds one"
            )

    def __repr__(self) -> str:
        return f"TokensFile({str(self._path)!r}, {len(self._entries)} tokens)"

    def find(self, token: str) -> TokenEntry | None:
        """Whose it is; None: nobody's. UnavailableError: the file cannot be used at the moment."""
        self._read()
        if self._problem:
            raise UnavailableError(
                "the tokens cannot be read at the moment; the server's log says why"
            )
        digest = _digest(token)
        found = None
        for entry in self._entries:  # all of them, found or not
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found

    def _read(self) -> None:
        """Looks at the file, and reads it if it may have changed."""
        problem = ""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (
                    found.st_dev,
                    found.st_ino,
                    found.st_mtime_ns,
                    found.st_size,
                    found.st_mode,
                )
                if stamp == self._stamp:
                    return
                _check_mode(found.st_mode, self._path)
                self._entries = parse(file.read(), self._path)
            settled = time.time_ns() - found.st_mtime_ns > _RESTLESS_NS
            self._stamp = stamp if settled else None
        except OSError as error:
            problem = f"{self._path}: cannot be read: {error.strerror}"
        except TokensError as error:
            problem = str(error)
        if problem:
            self._entries, self._stamp = (), None
            if problem != self._problem:
                _log.error("nobody is let in at the admin port: %s", problem)
        elif self._problem:
            _log.warning("%s: can be used again", self._path)
        self._problem = problem


def parse(content: bytes, path: Path) -> Sequence[TokenEntry]:
    """The file's lines. Raises TokensError, which does not repeat what may be a token."""
    entries = []
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TokensError(f"{path}: is not text: {error.reason}") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}: line {number}"
        if len(words) != 3:
            raise TokensError(f"{where}: has {len(words)} words, not a name, a role and a SHA-256")
        name, role, digest = words
        check_name(name, where)
        known = next((each for each in ROLES if each == role), None)
        if known is None:
            raise TokensError(f"{where}: role {role!r} must be one of {', '.join(ROLES)}")
        if not _DIGEST.fullmatch(digest):
            raise TokensError(
                f"{where}: the third word must be a SHA-256, 64 lower-case hexadecimal digits"
            )
        entries.append(TokenEntry(name, known, bytes.fromhex(digest)))
    return entries


def _check_mode(mode: int, path: Path) -> None:
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise TokensError(
            f"{path}: has mode {stat.S_IMODE(mode):03o}, which lets others read or change it; "
            f"`chmod 600 {path}`"
        )


def check_name(name: str, where: str) -> None:
    """Raises TokensError for what cannot be the name of a token's owner."""
    if not _NAME.fullmatch(name):
        raise TokensError(
            f"{where}: {name!r} cannot be a name: 1 to 64 letters, digits and . _ @ + -, a letter or "
            "digit first"
        )


def new_token(path: Path, name: str, role: Role) -> str:
    """Makes a token, adds its hash to the file, and returns it. TokensError, OSError.

    A new file is its owner's alone.
    """
    check_name(name, "NAME")
    if path.exists():
        _check_mode(path.stat().st_mode, path)
        parse(path.read_bytes(), path)
    token = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} {_digest(token).hex()}\n".encode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
