"""Asks a running server's admin port, for the command line.

Synchronous on purpose: a command asks one thing and prints it. How a server is found: while it
runs it keeps `MODELS_DIR/.trimtab/server.json` with its process id and ports; an address given by
hand goes first. Whatever goes wrong is an `AdminError` whose text can be shown as it is; no server
there at all is the `NotRunningError` among them, because some commands then read the directory.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import grpc
from google.protobuf.message import Message

from trimtab.proto import admin_pb2

from ..services.admin.gate import is_loopback

_SERVICE = "/trimtab.v1.Admin/"
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# What gRPC says where it came to no call, and not that nobody listens: TLS, mostly.
_NOT_CONNECTED = ("failed to connect", "andshak", "DNS resolution", "Socket closed")

_Reply = TypeVar("_Reply", bound=Message)


@dataclass(frozen=True)
class Connection:
    """How a client makes itself known, and knows the server; see the options of the same names."""

    token: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_name: str | None = None


class ServerAddress(NamedTuple):
    """Of a running server's admin port."""

    address: str
    tls: bool


class AdminError(Exception):
    """The server refused or could not be asked; the text says which and why."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class NotRunningError(AdminError):
    """No server runs on that directory."""


def find_server(models_dir: Path) -> ServerAddress:
    """The admin port of the server that runs on `models_dir`; NotRunningError."""
    file = models_dir / ".trimtab" / "server.json"
    absent = NotRunningError(
        f"no server runs on {models_dir}; start one with `trimtab serve {models_dir}`, "
        "or name another with --admin HOST:PORT"
    )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pid, address = int(content["pid"]), str(content["admin"])
        tls = content.get("admin_tls") is True
    except FileNotFoundError:
        raise absent from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdminError(f"{file}: cannot be read: {error!r}") from error
    if not _is_alive(pid):
        raise absent  # it was killed before it could remove its file
    return ServerAddress(address, tls)


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _content(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise AdminError(f"{file}: cannot be read: {error.strerror}") from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


class AdminClient:
    """One connection to an admin port; a context manager."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        connection: Connection | None = None,
        tls: bool = False,
    ) -> None:
        """`tls` without a `tls_ca` trusts the system's authorities. AdminError for a bad file."""
        connection = connection or Connection()
        tls = tls or connection.tls_ca is not None or connection.tls_cert is not None
        self._address = address
        self._timeout_s = timeout_s
        self._metadata: tuple[tuple[str, str], ...] = ()
        if connection.token:
            self._metadata = (("authorization", f"Bearer {connection.token}"),)
        self.shows_token = bool(connection.token) and not tls and not is_loopback(_host(address))
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),  # an admin port is near; a proxy would not find it
        ]
        if not tls:
            self._channel = grpc.insecure_channel(address, options)
            return
        if connection.tls_name:
            options.append(("grpc.ssl_target_name_override", connection.tls_name))
        credentials = grpc.ssl_channel_credentials(
            *map(_content, (connection.tls_ca, connection.tls_key, connection.tls_cert))
        )
        self._channel = grpc.secure_channel(address, credentials, options)

    def __repr__(self) -> str:
        return f"AdminClient({self._address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def list_versions(self, model: str = "") -> admin_pb2.ListVersionsResponse:
        request = admin_pb2.ListVersionsRequest(model_name=model)
        return self._call("ListVersions", request, admin_pb2.ListVersionsResponse)

    def promote(
        self, model: str, version: int, *, actor: str, reason: str, expected_revision: int = 0
    ) -> admin_pb2.ChangeResponse:
        request = admin_pb2.PromoteRequest(
            model_name=model,
            version=version,
            expected_revision=expected_revision,
            actor=actor,
            reason=reason,
        )
        return self._call("Promote", request, admin_pb2.ChangeResponse)

    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        expected_revision: int = 0,
        version: int = 0,
    ) -> admin_pb2.ChangeResponse:
        request = admin_pb2.RollbackRequest(
            model_name=model,
            expected_revision=expected_revision,
            actor=actor,
            reason=reason,
            version=version,
        )
        return self._call("Rollback", request, admin_pb2.ChangeResponse)

    def answer_approval(self, request: Message) -> admin_pb2.ApprovalResponse:
        """Approve or Reject, by what the request is."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        return self._call(name, request, admin_pb2.ApprovalResponse)

    def change(self, request: Message) -> admin_pb2.ChangeResponse:
        """Freeze, Pin, Block, their reverses or RemoveVersion, by what the request is."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        return self._call(name, request, admin_pb2.ChangeResponse)

    def retain(self, request: admin_pb2.RetainRequest) -> admin_pb2.RetainResponse:
        return self._call("Retain", request, admin_pb2.RetainResponse)

    def describe(self, model: str, version: int = 0) -> admin_pb2.VersionDescription:
        request = admin_pb2.DescribeVersionRequest(model_name=model, version=version)
        return self._call("DescribeVersion", request, admin_pb2.VersionDescription)

    def rollout(self, model: str) -> admin_pb2.RolloutStatusResponse:
        request = admin_pb2.RolloutStatusRequest(model_name=model)
        return self._call("RolloutStatus", request, admin_pb2.RolloutStatusResponse)

    def drift(self, model: str) -> admin_pb2.DriftReport:
        request = admin_pb2.GetDriftRequest(model_name=model)
        return self._call("GetDrift", request, admin_pb2.DriftReport)

    def train(self, model: str, *, actor: str, reason: str) -> admin_pb2.TrainResponse:
        request = admin_pb2.TrainRequest(model_name=model, actor=actor, reason=reason)
        return self._call("Train", request, admin_pb2.TrainResponse)

    def cancel_training(
        self, model: str, training_id: str = "", *, actor: str, reason: str
    ) -> admin_pb2.CancelTrainingResponse:
        request = admin_pb2.CancelTrainingRequest(
            model_name=model, training_id=training_id, actor=actor, reason=reason
        )
        return self._call("CancelTraining", request, admin_pb2.CancelTrainingResponse)

    def training(self, model: str) -> admin_pb2.TrainingStatusResponse:
        request = admin_pb2.TrainingStatusRequest(model_name=model)
        return self._call("TrainingStatus", request, admin_pb2.TrainingStatusResponse)

    def history(self, model: str, limit: int = 0) -> admin_pb2.GetHistoryResponse:
        return self.ask_history(admin_pb2.GetHistoryRequest(model_name=model, limit=limit))

    def ask_history(self, request: admin_pb2.GetHistoryRequest) -> admin_pb2.GetHistoryResponse:
        return self._call("GetHistory", request, admin_pb2.GetHistoryResponse)

    def verify(self, model: str = "") -> Iterator[admin_pb2.VerifyFinding]:
        """What is found in one model or all, as it is found; takes as long as the disk does."""
        method = self._channel.unary_stream(
            _SERVICE + "Verify",
            request_serializer=admin_pb2.VerifyRequest.SerializeToString,
            response_deserializer=admin_pb2.VerifyFinding.FromString,
        )
        with self._errors():
            yield from method(admin_pb2.VerifyRequest(model_name=model), metadata=self._metadata)

    def watch_events(self, model: str = "", resume_token: str = "") -> Iterator[admin_pb2.Event]:
        """Every event from now on, or since the one with that token; until the server stops or the
        client is closed."""
        method = self._channel.unary_stream(
            _SERVICE + "WatchEvents",
            request_serializer=admin_pb2.WatchEventsRequest.SerializeToString,
            response_deserializer=admin_pb2.Event.FromString,
        )
        with self._errors():
            request = admin_pb2.WatchEventsRequest(model_name=model, resume_token=resume_token)
            yield from method(request, metadata=self._metadata)

    def _call(self, name: str, request: Message, reply: type[_Reply]) -> _Reply:
        method = self._channel.unary_unary(
            _SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        with self._errors():
            answer: _Reply = method(request, timeout=self._timeout_s, metadata=self._metadata)
            return answer

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                if "onnection refused" in details:
                    raise NotRunningError(
                        f"no server answers at {self._address}: {details}"
                    ) from error
                if any(mark in details for mark in _NOT_CONNECTED):
                    raise AdminError(
                        f"cannot connect to {self._address}: {details}; for TLS there are --tls-ca, "
                        "--tls-name and --tls-cert",
                        code,
                    ) from error
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                details = f"the server at {self._address} did not answer: {details}"
            raise AdminError(details or f"{code.name} from {self._address}", code) from error


def as_dict(message: Message) -> dict[str, Any]:
    """Every field by its name in the protocol; numbers stay numbers.

    A field that can be absent, and is, is None; the others have their defaults.
    """
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            fields[field.name] = None
        elif field.message_type is None:
            fields[field.name] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            fields[field.name] = dict(sorted(value.items()))
        elif field.is_repeated:
            fields[field.name] = [as_dict(item) for item in value]
        else:
            fields[field.name] = as_dict(value)
    return fields
