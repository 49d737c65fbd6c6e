"""The signature of a message, as Standard Webhooks has it, so that its libraries can check ours.

    webhook-id         the same with each attempt: a receiver that knows it already has had it
    webhook-timestamp  of the attempt, seconds since the Unix epoch
    webhook-signature  v1,BASE64 of HMAC-SHA256 over "ID.TIMESTAMP.BODY", one for each secret

A secret is 24 to 64 bytes, written `whsec_` and base64. A file may have several, a line each, so that
a receiver can be given a new one before the old one goes; `#` begins a comment. It is read anew for
each attempt, and neither its contents nor a part of them is ever in a message of ours.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


class SecretError(Exception):
    """A secret file that cannot be used; the message names it, and the line."""


def headers(
    keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """What goes with a message; without keys it is not signed."""
    found = {"webhook-id": message_id, "webhook-timestamp": str(timestamp_s)}
    if keys:
        signed = f"{message_id}.{timestamp_s}.".encode() + body
        found["webhook-signature"] = " ".join(f"v1,{_mac(key, signed)}" for key in keys)
    return found


def read_keys(path: Path) -> list[bytes]:
    """The keys of a secret file, one at least. Raises SecretError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1 << 16)
    except OSError as error:
        raise SecretError(f"{path}: cannot be read: {error.strerror}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise SecretError(
            f"{path}: has mode {stat.S_IMODE(mode):03o}, which lets others read or change it; "
            f"`chmod 600 {path}`"
        )
    keys = []
    for number, line in enumerate(content.decode("ascii", errors="replace").splitlines(), 1):
        if text := line.partition("#")[0].strip():
            keys.append(_key(text, f"{path}: line {number}"))
    if not keys:
        raise SecretError(f"{path}: has no secret; `trimtab webhook secret {path}` makes one")
    return keys


def new_secret(path: Path) -> str:
    """Makes a secret and adds it to a file, its owner's alone if it is new. SecretError, OSError."""
    if path.exists() and path.stat().st_size:
        read_keys(path)
    secret = _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        ends = not size or os.pread(fd, 1, size - 1) == b"\n"
        os.write(fd, (b"" if ends else b"\n") + secret.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    return secret


def _mac(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _key(text: str, where: str) -> bytes:
    """Raises SecretError, which does not repeat what may be a secret."""
    if not text.startswith(_PREFIX):
        raise SecretError(f"{where}: must begin with {_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SecretError(f"{where}: is not base64 after {_PREFIX}") from error
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise SecretError(
            f"{where}: has {len(key)} bytes, a secret has {_MIN_BYTES} to {_MAX_BYTES}"
        )
    return key
