"""What both frontends take beside an address and handlers: limits, compression, TLS, keepalive."""

import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..config import ListenConfig


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM, found to belong together."""

    cert: bytes
    key: bytes
    client_ca: bytes  # empty: clients need no certificate


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """The meaning of each is that of its namesake in the section [server] of the settings."""

    max_message_bytes: int = 64 * 1024 * 1024
    compression: Literal["none", "gzip", "deflate"] = "none"
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    keepalive_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    max_concurrent_streams: int = 1024
    prefix: str = ""  # of the settings of TLS, as messages name them

    @classmethod
    def of(cls, listen: ListenConfig) -> "TransportOptions":
        return cls(
            max_message_bytes=listen.max_message_bytes,
            compression=listen.compression,
            tls_cert=listen.tls_cert,
            tls_key=listen.tls_key,
            tls_client_ca=listen.tls_client_ca,
            keepalive_s=listen.keepalive_s,
            keepalive_timeout_s=listen.keepalive_timeout_s,
            max_concurrent_streams=listen.max_concurrent_streams,
        )

    @classmethod
    def of_admin(cls, listen: ListenConfig) -> "TransportOptions":
        """Of the admin port, which has certificates of its own."""
        return replace(
            cls.of(listen),
            compression="none",
            max_concurrent_streams=0,
            tls_cert=listen.admin_tls_cert,
            tls_key=listen.admin_tls_key,
            tls_client_ca=listen.admin_tls_client_ca,
            prefix="admin_",
        )

    @classmethod
    def of_size(cls, max_message_bytes: int | None) -> "TransportOptions":
        return cls() if max_message_bytes is None else cls(max_message_bytes=max_message_bytes)

    def certificates(self) -> Certificates | None:
        """Reads the files; None without TLS. Raises OSError, which names the setting and the file."""
        for name, needed in (
            ("tls_cert", "tls_key"),
            ("tls_key", "tls_cert"),
            ("tls_client_ca", "tls_cert"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                raise OSError(
                    f"{self.prefix}{name} = {getattr(self, name)}: needs {self.prefix}{needed} "
                    "beside it"
                )
        if not self.tls_cert:
            return None
        found = Certificates(
            self._read("tls_cert"),
            self._read("tls_key"),
            self._read("tls_client_ca") if self.tls_client_ca else b"",
        )
        # gRPC would only say on standard error that it cannot, and not of which file.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        name = self.prefix
        where = f"{name}tls_cert = {self.tls_cert}, {name}tls_key = {self.tls_key}"
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, _no_password)
            if self.tls_client_ca:
                where = f"{name}tls_client_ca = {self.tls_client_ca}"
                context.load_verify_locations(self.tls_client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise OSError(f"{where}: cannot be used: {error}") from error
        return found

    def _read(self, name: str) -> bytes:
        file = getattr(self, name)
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise OSError(
                f"{self.prefix}{name} = {file}: cannot be read: {error.strerror}"
            ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; a server has nobody to ask for the password")
