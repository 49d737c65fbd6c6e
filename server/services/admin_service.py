"""`trimtab.v1.Admin`: what an operator sees and does. Its own port, loopback unless told otherwise.

The methods are in `admin/`, by what they are about; here they become one service. Who may call what is
the gate's to say, before any of them.
"""

from collections.abc import Mapping
from typing import Protocol

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry

from ..events import EventBus
from ..loop.control_loop import ControlLoop
from .admin.calls import Lifecycle as _Lifecycle
from .admin.calls import Models
from .admin.change_methods import ChangeMethods, Changes
from .admin.event_stream import EventMethods
from .admin.loop_methods import LoopMethods
from .admin.verify_methods import VerifyMethods
from .admin.version_methods import VersionMethods
from .handlers import Handler

SERVICE = "trimtab.v1.Admin"


class Lifecycle(_Lifecycle, Changes, Protocol):
    """What the service needs of the ModelManager."""


class AdminService:
    """The handlers of the service."""

    def __init__(
        self, registry: Registry, lifecycle: Lifecycle, loop: ControlLoop, bus: EventBus
    ) -> None:
        models = Models(registry, lifecycle)
        self._versions = VersionMethods(models, loop.traffic_stats)
        self._loop = LoopMethods(models, loop)
        self._methods: Mapping[str, Handler] = {
            **self._versions.handlers(),
            **ChangeMethods(models, lifecycle, loop).handlers(),
            **self._loop.handlers(),
            **EventMethods(registry, bus).handlers(),
            **VerifyMethods(models).handlers(),
        }

    @property
    def waiting(self) -> int:
        """Callers that wait for a loop to settle."""
        return self._loop.waiting

    def stop_waiting(self) -> None:
        """From now on nobody waits for a loop to settle: they are told that the server stops."""
        self._loop.stop_waiting()

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {f"/{SERVICE}/{name}": handler for name, handler in self._methods.items()}

    def list_versions(self) -> pb.ListVersionsResponse:
        """Every model's, for the server's own banner. Reads the directory: not on an event loop."""
        return self._versions.list_versions(pb.ListVersionsRequest())
