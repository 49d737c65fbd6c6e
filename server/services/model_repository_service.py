"""The repository methods of the Open Inference Protocol: the index, and load and unload by wire.

Loading and unloading change what every client is answered, on a port without authentication: both
are refused unless the operator allowed them. A load names a model of the server's own directory and
may bring a configuration; files that come with the request are not taken.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from trimtab.proto import open_inference_pb2 as pb

from ..errors import InvalidRequestError, ModelLoadError, UnavailableError, UnsupportedError
from ..lifecycle.model_config import PARAMETER
from ..lifecycle.model_control import load_failed
from ..lifecycle.version_plan import ModelStatus, VersionState
from .handlers import CallContext, Handler
from .protocol import SERVICE, parse, unary

_STATES = {
    VersionState.LOADING: "LOADING",
    VersionState.VERIFYING: "LOADING",
    VersionState.WARMING: "LOADING",
    VersionState.READY: "READY",
    VersionState.DRAINING: "UNLOADING",
    VersionState.UNLOADED: "UNAVAILABLE",
    VersionState.FAILED: "UNAVAILABLE",
}


class Models(Protocol):
    """What the service needs of the ModelManager."""

    def statuses(self) -> tuple[ModelStatus, ...]: ...


class Control(Protocol):
    """What the service needs of ModelControl; both block."""

    def load(self, model: str, config: str | None = None) -> None: ...

    def unload(self, model: str) -> None: ...


class ModelRepositoryService:
    """The handlers of the methods."""

    def __init__(self, models: Models, control: Control, *, allowed: bool) -> None:
        """`allowed`: whether clients may load and unload."""
        self._models = models
        self._control = control
        self._allowed = allowed

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return unary(
            SERVICE,
            {
                "RepositoryIndex": self._index,
                "RepositoryModelLoad": self._load,
                "RepositoryModelUnload": self._unload,
            },
        )

    async def _index(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.RepositoryIndexRequest, request)
        _refuse_repository(asked.repository_name)
        reply = pb.RepositoryIndexResponse()
        for status in self._models.statuses():
            for each in status.versions:
                if asked.ready and each.state is not VersionState.READY:
                    continue
                reply.models.add(
                    name=status.model,
                    version=str(each.version),
                    state=_STATES[each.state],
                    reason=each.reason,
                )
            if not status.versions and not asked.ready:
                reply.models.add(name=status.model, state="UNAVAILABLE", reason=status.reason)
        return reply.SerializeToString()

    async def _load(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.RepositoryModelLoadRequest, request)
        self._check(asked.repository_name)
        config: str | None = None
        for name, parameter in sorted(asked.parameters.items()):
            if name.startswith("file:"):
                raise ModelLoadError(
                    f"{load_failed(asked.model_name)}: a load takes the files of the model's own "
                    f"directory: parameter '{name}' is not supported"
                )
            if name != PARAMETER:
                raise InvalidRequestError(f"RepositoryModelLoad has no parameter '{name}'")
            if parameter.WhichOneof("parameter_choice") != "string_param":
                raise InvalidRequestError(
                    f"invalid value type for '{name}' parameter, expected string_param."
                )
            config = parameter.string_param
        await self._run(self._control.load, asked.model_name, config)
        return pb.RepositoryModelLoadResponse().SerializeToString()

    async def _unload(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.RepositoryModelUnloadRequest, request)
        self._check(asked.repository_name)
        for name, parameter in sorted(asked.parameters.items()):
            if name != "unload_dependents":
                raise InvalidRequestError(f"RepositoryModelUnload has no parameter '{name}'")
            if parameter.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequestError(
                    "invalid value type for 'unload_dependents' parameter, expected bool_param."
                )
        await self._run(self._control.unload, asked.model_name)
        return pb.RepositoryModelUnloadResponse().SerializeToString()

    def _check(self, repository: str) -> None:
        if not self._allowed:
            raise UnavailableError(
                "explicit model load / unload is not allowed if polling is enabled"
            )
        _refuse_repository(repository)

    async def _run(self, change: Callable[..., None], *arguments: str | None) -> None:
        # On a thread, and to its end: a client that leaves does not stop a model half-way.
        await asyncio.to_thread(change, *arguments)


def _refuse_repository(name: str) -> None:
    if name:
        raise UnsupportedError("'repository_name' specification is not supported")
