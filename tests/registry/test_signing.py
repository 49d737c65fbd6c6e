import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import InvalidVersionError
from trimtab.registry.manifest import Signature
from trimtab.registry.signing import SigningError, SigningKey, TrustedKeys

Sign = Callable[..., int]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "ann.key"
    signing.new_key(path)
    return path


@pytest.fixture
def key(key_file: Path) -> SigningKey:
    return SigningKey.load(key_file)


@pytest.fixture
def trusted(key_file: Path) -> TrustedKeys:
    return TrustedKeys.load([key_file.with_name("ann.key.pub")])


@pytest.fixture
def publish_signed(signature: Signature) -> Sign:
    def publish(model: ModelDirectory, key: SigningKey | None) -> int:
        with model.stage() as staged:
            (staged.path / "model.onnx").write_bytes(b"onnx")
            return staged.publish(
                signature=signature,
                task="regression",
                lineage={},
                metrics={},
                actor="ann",
                reason="r",
                signing_key=key,
            )

    return publish


def test_a_signed_version_is_whole_and_of_its_publisher(
    model: ModelDirectory, publish_signed: Sign, key: SigningKey, trusted: TrustedKeys
) -> None:
    publish_signed(model, key)
    path = model.version_path(1)
    assert sorted(each.name for each in path.iterdir()) == [
        *("manifest.json", "manifest.sig", "model.onnx")
    ]
    assert "manifest.sig" not in model.verify(1).files
    assert signing.is_signed(path)
    assert signing.verify(path, trusted, "airtime") == key.fingerprint
    assert signing.verify(path, None) == key.fingerprint


def test_a_version_without_a_signature_is_told_from_a_signed_one(
    model: ModelDirectory, publish_signed: Sign, trusted: TrustedKeys
) -> None:
    publish_signed(model, None)
    assert not signing.is_signed(model.version_path(1))
    with pytest.raises(InvalidVersionError, match=r"1: is not signed: it has no manifest\.sig"):
        signing.verify(model.version_path(1), trusted)


def test_a_manifest_that_was_altered_has_no_valid_signature(
    model: ModelDirectory, publish_signed: Sign, key: SigningKey, trusted: TrustedKeys
) -> None:
    publish_signed(model, key)
    path = model.version_path(1) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"bob"'))
    for keys in (trusted, None):
        with pytest.raises(InvalidVersionError, match=r"is not valid: manifest\.json is not what"):
            signing.verify(model.version_path(1), keys)


def test_a_valid_signature_of_a_stranger_is_refused(
    model: ModelDirectory, publish_signed: Sign, key: SigningKey, tmp_path: Path
) -> None:
    publish_signed(model, key)
    public, fingerprint = signing.new_key(tmp_path / "bob.key")
    bob = TrustedKeys.load([public])
    assert fingerprint in repr(bob)
    with pytest.raises(InvalidVersionError, match=f"{key.fingerprint}, which is none of the 1 tr"):
        signing.verify(model.version_path(1), bob)


def test_a_stranger_cannot_claim_a_trusted_key(
    model: ModelDirectory,
    publish_signed: Sign,
    key: SigningKey,
    trusted: TrustedKeys,
    tmp_path: Path,
) -> None:
    publish_signed(model, key)
    path = model.version_path(1) / "manifest.sig"
    claimed = json.loads(path.read_bytes())["public_key"]
    signing.new_key(tmp_path / "bob.key")
    bob = SigningKey.load(tmp_path / "bob.key")
    forged = json.loads(bob.sign((model.version_path(1) / "manifest.json").read_bytes()))
    path.write_text(json.dumps(forged | {"public_key": claimed}))
    with pytest.raises(InvalidVersionError, match="is not valid"):
        signing.verify(model.version_path(1), trusted)


def test_a_signed_version_of_another_model_is_refused(
    model: ModelDirectory,
    publish_signed: Sign,
    key: SigningKey,
    trusted: TrustedKeys,
    tmp_path: Path,
) -> None:
    publish_signed(model, key)
    model.version_path(1).rename(tmp_path / "1")
    with pytest.raises(InvalidVersionError, match="as a version of model 'airtime', not of 'fraud"):
        signing.verify(tmp_path / "1", trusted, "fraud")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not JSON"),
        (b"{}", "format is missing"),
        (b'{"format": 2, "algorithm": "ed25519"}', "is of format 2 and algorithm 'ed25519'"),
        (b'{"format": 1, "algorithm": "none"}', "and algorithm 'none', this Trimtab reads 1"),
        (
            b'{"format": 1, "algorithm": "ed25519", "public_key": "?", "signature": ""}',
            "manifest.sig",
        ),
        (
            b'{"format": 1, "algorithm": "ed25519", "public_key": "AAAA", "signature": ""}',
            "32 bytes",
        ),
        (b" " * 5000, "has more than 4096 bytes"),
    ],
)
def test_a_damaged_signature_is_named(
    model: ModelDirectory,
    publish_signed: Sign,
    key: SigningKey,
    trusted: TrustedKeys,
    text: bytes,
    problem: str,
) -> None:
    publish_signed(model, key)
    (model.version_path(1) / "manifest.sig").write_bytes(text)
    with pytest.raises(InvalidVersionError, match=problem):
        signing.verify(model.version_path(1), trusted)


def test_a_signature_that_is_a_link_is_refused(
    model: ModelDirectory, publish_signed: Sign, key: SigningKey, trusted: TrustedKeys
) -> None:
    publish_signed(model, key)
    path = model.version_path(1) / "manifest.sig"
    path.rename(model.path / "elsewhere")
    path.symlink_to(model.path / "elsewhere")
    with pytest.raises(InvalidVersionError, match=r"manifest\.sig"):
        signing.verify(model.version_path(1), trusted)
    with pytest.raises(InvalidVersionError, match=r"manifest\.sig: not a regular file"):
        model.verify(1)


def test_a_private_key_is_for_its_owner_alone_and_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in key_file.with_name("ann.key.pub").read_bytes()
    with pytest.raises(SigningError, match=r"ann\.key: exists already"):
        signing.new_key(key_file)
    key_file.unlink()
    with pytest.raises(SigningError, match=r"ann\.key\.pub: exists already"):
        signing.new_key(key_file)
    assert not key_file.exists()
    assert before


def test_a_private_key_that_others_may_read_is_told_of(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        SigningKey.load(key_file)
        assert not caplog.messages
        key_file.chmod(0o644)
        SigningKey.load(key_file)
    assert caplog.messages == [f"{key_file}: others than its owner may read this private key"]


def test_files_that_are_no_keys_are_named(key_file: Path, tmp_path: Path) -> None:
    public = key_file.with_name("ann.key.pub")
    with pytest.raises(SigningError, match=r"a private key; trust the public one.*ann\.key\.pub"):
        TrustedKeys.load([key_file])
    with pytest.raises(SigningError, match="not a private key in PEM"):
        SigningKey.load(public)
    for load in (SigningKey.load, lambda path: TrustedKeys.load([path])):
        with pytest.raises(SigningError, match="nowhere: cannot be read: No such file"):
            load(tmp_path / "nowhere")
        (tmp_path / "big").write_bytes(bytes(5000))
        with pytest.raises(SigningError, match="big: has more than 4096 bytes"):
            load(tmp_path / "big")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (tmp_path / "ec").write_bytes(other.private_bytes(*kinds, serialization.NoEncryption()))
    with pytest.raises(SigningError, match="not an ed25519 key"):
        SigningKey.load(tmp_path / "ec")
    locked = serialization.BestAvailableEncryption(b"x")
    (tmp_path / "locked").write_bytes(other.private_bytes(*kinds, locked))
    with pytest.raises(SigningError, match="the key is encrypted"):
        SigningKey.load(tmp_path / "locked")


def test_a_version_that_is_published_without_a_key_keeps_no_older_signature(
    model: ModelDirectory, signature: Signature
) -> None:
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"onnx")
        (staged.path / "manifest.sig").write_bytes(b"of something else")
        staged.publish(
            signature=signature, task="", lineage={}, metrics={}, actor="ann", reason="r"
        )
    assert not signing.is_signed(model.version_path(1))
    model.verify(1)


def test_without_the_package_only_signatures_fail_and_say_what_to_install(
    model: ModelDirectory, publish_signed: Sign, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_signed(model, key)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    model.verify(1)
    for call in (
        lambda: signing.verify(model.version_path(1), None),
        lambda: SigningKey.load(model.path),
        lambda: TrustedKeys.load([]),
        lambda: signing.new_key(model.path / "k"),
    ):
        with pytest.raises(SigningError, match=r"pip install 'trimtab\[signing\]'"):
            call()


def test_the_package_is_not_imported_before_it_is_used() -> None:
    script = (
        "import sys, trimtab.registry.signing, trimtab.registry.directory\n"
        "assert 'cryptography' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
