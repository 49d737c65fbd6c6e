"""`grpc.health.v1.Health`: what load balancers, Kubernetes and grpc_health_probe ask.

The empty name is the server, as is the name of a service that it has: both are SERVING when the
server is ready. Any other name is a model's, SERVING when the model answers requests that name no
version. A Watch looks regularly, since readiness follows from much that tells nobody; it lasts until
its client leaves or the server stops, and says NOT_SERVING before it ends.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Protocol

from trimtab.proto import health_pb2 as pb

from ..errors import NotFoundError, UnavailableError
from ..inference.executor import SHUTTING_DOWN
from ..lifecycle.version_plan import ModelStatus
from .handlers import CallContext, Handler, StreamHandler, UnaryHandler
from .protocol import parse

SERVICE = "grpc.health.v1.Health"
_LOOK_S = 0.5

_Status = pb.HealthCheckResponse.ServingStatus


class Models(Protocol):
    """What the service needs of the ModelManager."""

    def resolve(self, model: str, version: str) -> object: ...

    def status(self, model: str) -> ModelStatus | None: ...


class HealthService:
    """The handlers of the service; all run on one event loop, and `stop` is called there."""

    def __init__(
        self,
        models: Models,
        ready: Callable[[], bool],
        services: Collection[str],
        *,
        look_s: float = _LOOK_S,
    ) -> None:
        """`ready`: whether the server is; `services`: full names; `look_s` between two looks."""
        self._models = models
        self._ready = ready
        self._services = frozenset(["", SERVICE, *services])
        self._look_s = look_s
        self._stopping = asyncio.Event()

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {
            f"/{SERVICE}/Check": UnaryHandler(self._check),
            f"/{SERVICE}/Watch": StreamHandler(self._watch),
        }

    def stop(self) -> None:
        """Nothing is healthy any more; whoever watches is told so and let go."""
        self._stopping.set()

    async def _check(self, request: bytes, _: CallContext) -> bytes:
        name = parse(pb.HealthCheckRequest, request).service
        status = self._status(name)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError(f"there is neither a service nor a model '{name}'")
        return pb.HealthCheckResponse(status=status).SerializeToString()

    async def _watch(self, request: bytes, _: CallContext) -> AsyncIterator[bytes]:
        name = parse(pb.HealthCheckRequest, request).service
        told: pb.HealthCheckResponse.ServingStatus | None = None
        while True:
            stopping = self._stopping.is_set()
            status = self._status(name)
            if status != told:
                told = status
                yield pb.HealthCheckResponse(status=status).SerializeToString()
            if stopping:
                raise UnavailableError(SHUTTING_DOWN)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._look_s)

    def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        if name in self._services:
            serving = self._ready()
        else:
            try:
                self._models.resolve(name, "")
                serving = True
            except NotFoundError:
                if self._models.status(name) is None:
                    return _Status.SERVICE_UNKNOWN
                serving = False
            except UnavailableError:
                serving = False
        serving = serving and not self._stopping.is_set()
        return _Status.SERVING if serving else _Status.NOT_SERVING
