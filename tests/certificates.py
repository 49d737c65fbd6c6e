"""Certificates for tests of TLS, made with openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Files:
    """A certificate authority, and a certificate with its key for the server and for a client."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def make_certificates(folder: Path) -> Files:
    """ca and other_ca; of ca server and client, of other_ca stranger; each .pem with its .key.
    encrypted.key is the server's with a password, garbage.pem is none. Skips without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificates with openssl")

    def call(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other_ca"):
        call("req", "-x509", *key, "-days", "2", "-subj", f"/CN={authority}")
        (folder / "privkey.pem").rename(folder / f"{authority}.key")
    # `req -x509` without -out writes to standard output in some releases and nowhere in others.
    for authority in ("ca", "other_ca"):
        call(
            *("req", "-x509", "-key", f"{authority}.key", "-days", "2"),
            *("-subj", f"/CN={authority}", "-out", f"{authority}.pem"),
        )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other_ca")):
        call("req", *key, "-keyout", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        call(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem"),
            *("-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2"),
            *("-extfile", "names", "-out", f"{name}.pem"),
        )
    call("ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "encrypted.key")
    (folder / "garbage.pem").write_text("not a certificate\n")
    return Files(folder)
