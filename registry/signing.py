"""Signatures of manifests: that a version was published by somebody who is trusted to.

Hashes tell that a version is whole; whoever may write the directory can make new ones. A signature
cannot be made without the private key. `manifest.sig` lies beside the manifest and signs its bytes,
and the manifest has the hash of every other file. It is ed25519, in a small JSON document:

    {"format": 1, "algorithm": "ed25519", "public_key": "<base64>", "signature": "<base64>"}

The public key in it says by whom the version claims to be signed. That is worth nothing by itself:
`verify` asks whether it is one of the trusted keys, which lie elsewhere. A copy under another model's
name, or an older version under a newer number, has a valid signature still: `verify` holds the
manifest against the model's name, while the order of versions is the history's to keep.

The keys are PEM files as openssl has them. Only this module needs the package `cryptography`
(the extra `trimtab[signing]`), and only once a key or a signature is used. Values; any thread.
"""

import base64
import binascii
import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import durable
from .documents import Document, encode_readable
from .errors import InvalidVersionError, RegistryError
from .manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_logger = logging.getLogger(__name__)

SIGNATURE_FORMAT = 1
PUBLIC_SUFFIX = ".pub"

_ALGORITHM = "ed25519"
_MAX_BYTES = 4096  # of a key file or a signature
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024


class SigningError(RegistryError):
    """A key cannot be read or made, or the package that signs is not installed."""


class SigningKey:
    """A private key. `load` it before the work whose result it is to sign."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()
        self.fingerprint = fingerprint(self._public)

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """SigningError if the file is no unencrypted ed25519 private key in PEM."""
        ed25519, serialization, exceptions = _library()
        text = _read_key(path)
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except TypeError:
            raise SigningError(
                f"{path}: the key is encrypted, and nobody could type a password"
            ) from None
        except (ValueError, exceptions.UnsupportedAlgorithm) as error:
            raise SigningError(f"{path}: not a private key in PEM ({_line(error)})") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise SigningError(f"{path}: not an ed25519 key; `trimtab keys new` makes one")
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            _logger.warning("%s: others than its owner may read this private key", path)
        return cls(key)

    def sign(self, manifest: bytes) -> bytes:
        """The contents of manifest.sig for a manifest with these bytes."""
        return encode_readable(
            {
                "format": SIGNATURE_FORMAT,
                "algorithm": _ALGORITHM,
                "public_key": base64.b64encode(self._public).decode(),
                "signature": base64.b64encode(self._key.sign(manifest)).decode(),
            }
        )

    def __repr__(self) -> str:
        return f"SigningKey({self.fingerprint})"


class TrustedKeys:
    """The public keys whose signatures count."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self._keys = frozenset(public_keys)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> "TrustedKeys":
        """SigningError if one of the files is no ed25519 public key in PEM."""
        ed25519, serialization, exceptions = _library()
        keys = []
        for path in paths:
            text = _read_key(path)
            if b"PRIVATE KEY" in text:
                raise SigningError(
                    f"{path}: a private key; trust the public one, which `trimtab keys new` put "
                    f"beside it ({path.name}{PUBLIC_SUFFIX})"
                )
            try:
                key = serialization.load_pem_public_key(text)
            except (ValueError, exceptions.UnsupportedAlgorithm) as error:
                raise SigningError(f"{path}: not a public key in PEM ({_line(error)})") from None
            if not isinstance(key, ed25519.Ed25519PublicKey):
                raise SigningError(f"{path}: not an ed25519 key")
            keys.append(key.public_bytes_raw())
        return cls(keys)

    def __contains__(self, public_key: bytes) -> bool:
        return public_key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"TrustedKeys({', '.join(sorted(map(fingerprint, self._keys)))})"


def new_key(path: Path) -> tuple[Path, str]:
    """Makes a key pair: the private key at `path`, for its owner alone, the public one beside it.

    Returns the public key's path and fingerprint. Nothing is overwritten: SigningError if either
    file exists; OSError.
    """
    ed25519, serialization, _ = _library()
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    for each in (path, public_path):
        if os.path.lexists(each):
            raise SigningError(f"{each}: exists already, and no key is ever overwritten")
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _create(path, private, 0o600)
    try:
        _create(public_path, public, 0o644)
        durable.sync_directory(path.parent)
    except BaseException:
        path.unlink()
        raise
    return public_path, fingerprint(key.public_key().public_bytes_raw())


def fingerprint(public_key: bytes) -> str:
    """What a raw public key is called."""
    return "SHA256:" + hashlib.sha256(public_key).hexdigest()


def is_signed(directory: Path) -> bool:
    """Whether there is a signature, valid or not."""
    return os.path.lexists(directory / SIGNATURE_NAME)


def verify(directory: Path, trusted: TrustedKeys | None, model: str | None = None) -> str:
    """The fingerprint of the trusted key that signed the version in `directory`.

    InvalidVersionError if it has no signature, or none that is valid and of a trusted key, or if its
    manifest is that of another model than `model`. None: any key will do, and then the fingerprint
    only tells who it claims to be from. Only the manifest is looked at: its files are
    `ModelDirectory.verify`'s. SigningError without the package.
    """
    manifest = _read(directory / MANIFEST_NAME, _MAX_MANIFEST_BYTES)
    if not is_signed(directory):
        raise InvalidVersionError(f"{directory}: is not signed: it has no {SIGNATURE_NAME}")
    where = directory / SIGNATURE_NAME
    signer = check(manifest, _read(where, _MAX_BYTES), trusted, str(where))
    if model is not None:
        try:
            name = Manifest.from_json(manifest).model
        except ValueError as error:
            raise InvalidVersionError(f"{directory / MANIFEST_NAME}: {error}") from None
        if name != model:
            raise InvalidVersionError(
                f"{directory}: was signed as a version of model '{name}', not of '{model}'"
            )
    return signer


def check(manifest: bytes, signature: bytes, trusted: TrustedKeys | None, where: str) -> str:
    """As `verify`, of bytes that were read already; `where` is what the messages call them."""
    ed25519, _, exceptions = _library()
    try:
        document = Document.parse(signature)
        format_, algorithm = document.integer("format"), document.text("algorithm")
        if (format_, algorithm) != (SIGNATURE_FORMAT, _ALGORITHM):
            raise ValueError(
                f"is of format {format_} and algorithm {algorithm!r}, this Trimtab reads "
                f"{SIGNATURE_FORMAT} and {_ALGORITHM!r}"
            )
        public = base64.b64decode(document.text("public_key"), validate=True)
        signed = base64.b64decode(document.text("signature"), validate=True)
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
    except (ValueError, binascii.Error) as error:
        raise InvalidVersionError(f"{where}: {error}") from None
    signer = fingerprint(public)
    if trusted is not None and public not in trusted:
        number = f"{len(trusted)} trusted key{'' if len(trusted) == 1 else 's'}"
        raise InvalidVersionError(f"{where}: is by the key {signer}, which is none of the {number}")
    try:
        key.verify(signed, manifest)
    except exceptions.InvalidSignature:
        raise InvalidVersionError(
            f"{where}: is not valid: {MANIFEST_NAME} is not what the key {signer} signed"
        ) from None
    return signer


def _library() -> tuple[Any, Any, Any]:
    """The modules (ed25519, serialization, exceptions). SigningError if they are not installed."""
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise SigningError(
            "signatures need the package cryptography, which is not installed: "
            "pip install 'trimtab[signing]'"
        ) from None
    return ed25519, serialization, exceptions


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SigningError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise SigningError(f"{path}: has more than {_MAX_BYTES} bytes, which no key has")
    return text


def _read(path: Path, limit: int) -> bytes:
    """A regular file of a version."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidVersionError(f"{path}: not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise InvalidVersionError(f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise InvalidVersionError(f"{path}: has more than {limit} bytes")
    return data


def _create(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        durable.write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
