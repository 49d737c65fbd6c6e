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
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from trimtab.proto import admin_pb2

_SERVICE = "/trimtab.v1.Admin/"
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_Reply = TypeVar("_Reply", bound=Message)


class AdminError(Exception):
    """The server refused or could not be asked; the text says which and why."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class NotRunningError(AdminError):
    """No server runs on that directory."""


def find_server(models_dir: Path) -> str:
    """The admin address of the server that runs on `models_dir`; NotRunningError."""
    file = models_dir / ".trimtab" / "server.json"
    absent = NotRunningError(
        f"no server runs on {models_dir}; start one with `trimtab serve {models_dir}`, "
        "or name another with --admin HOST:PORT"
    )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pid, address = int(content["pid"]), str(content["admin"])
    except FileNotFoundError:
        raise absent from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdminError(f"{file}: cannot be read: {error!r}") from error
    if not _is_alive(pid):
        raise absent  # it was killed before it could remove its file
    return address


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


class AdminClient:
    """One connection to an admin port; a context manager."""

    def __init__(self, address: str, *, timeout_s: float = 30.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),  # an admin port is near; a proxy would not find it
            ],
        )

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
        self, model: str, *, actor: str, reason: str, expected_revision: int = 0
    ) -> admin_pb2.ChangeResponse:
        request = admin_pb2.RollbackRequest(
            model_name=model, expected_revision=expected_revision, actor=actor, reason=reason
        )
        return self._call("Rollback", request, admin_pb2.ChangeResponse)

    def drift(self, model: str) -> admin_pb2.DriftReport:
        request = admin_pb2.GetDriftRequest(model_name=model)
        return self._call("GetDrift", request, admin_pb2.DriftReport)

    def train(self, model: str, *, actor: str, reason: str) -> admin_pb2.TrainResponse:
        request = admin_pb2.TrainRequest(model_name=model, actor=actor, reason=reason)
        return self._call("Train", request, admin_pb2.TrainResponse)

    def history(self, model: str, limit: int = 0) -> admin_pb2.GetHistoryResponse:
        request = admin_pb2.GetHistoryRequest(model_name=model, limit=limit)
        return self._call("GetHistory", request, admin_pb2.GetHistoryResponse)

    def watch_events(self, model: str = "") -> Iterator[admin_pb2.Event]:
        """Every event from now on, until the server stops or the client is closed."""
        method = self._channel.unary_stream(
            _SERVICE + "WatchEvents",
            request_serializer=admin_pb2.WatchEventsRequest.SerializeToString,
            response_deserializer=admin_pb2.Event.FromString,
        )
        with self._errors():
            yield from method(admin_pb2.WatchEventsRequest(model_name=model))

    def _call(self, name: str, request: Message, reply: type[_Reply]) -> _Reply:
        method = self._channel.unary_unary(
            _SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        with self._errors():
            answer: _Reply = method(request, timeout=self._timeout_s)
            return answer

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in details:
                raise NotRunningError(f"no server answers at {self._address}: {details}") from error
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                details = f"the server at {self._address} did not answer: {details}"
            raise AdminError(details or f"{code.name} from {self._address}", code) from error


def as_dict(message: Message) -> dict[str, Any]:
    """Every field by its name in the protocol; numbers stay numbers, absent fields are defaults."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            fields[field.name] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            fields[field.name] = dict(sorted(value.items()))
        elif field.is_repeated:
            fields[field.name] = [as_dict(item) for item in value]
        else:
            fields[field.name] = as_dict(value)
    return fields
