"""The application: every object of a running server, made and joined here and nowhere else.

    client → frontend → inference service → executor (of the version that the lifecycle resolves)
                                               └ tap → traffic log, drift monitor
    feedback service → label log ─┐                           │
    admin service ────────────────┴→ control loop ←───────────┘
                                        └→ trainer process → registry → lifecycle (swap)
    metrics server → collector → what all of these have counted
    webhooks ←─ event bus ←─ control loop, lifecycle
    services of statistics, configuration, repository, settings, health, reflection → the same

Starting: take the directory, listen, load what should be loaded, then say so. The ports are bound
before models load, so that a taken port is known at once and probes are answered meanwhile.
Stopping: refuse new requests, finish what is queued within the grace, end trainings, close the logs.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import onnxruntime

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry

from .config import ServerConfig
from .events import EventBus
from .lifecycle.model_control import ModelControl
from .lifecycle.model_manager import ModelManager
from .loop.control_loop import ControlLoop
from .loop.training_run import TrainingRun
from .loop.training_underway import Spawn
from .server_lock import ServerLock
from .services.admin.gate import Gate
from .services.admin_service import AdminService
from .services.feedback_service import FeedbackService
from .services.frontends import inference_frontend, transport_version
from .services.handlers import Handler, services_of
from .services.health_service import HealthService
from .services.inference_service import InferenceService
from .services.metrics_collector import MetricsCollector
from .services.metrics_server import MetricsServer
from .services.model_configuration import ModelConfigurationService
from .services.model_infer import ModelInfer
from .services.model_repository_service import ModelRepositoryService
from .services.model_statistics import ModelStatisticsService
from .services.portable_frontend import PortableFrontend
from .services.reflection_service import ReflectionService
from .services.server_settings import ServerSettingsService
from .services.shared_memory import SharedMemoryService
from .services.transport_options import TransportOptions
from .webhook.webhooks import Webhooks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    """Where a started server answers."""

    inference_host: str
    inference_port: int
    admin_host: str
    admin_port: int
    frontend: str
    metrics_port: int | None = None  # on the inference host; None: nothing listens
    list_versions: Callable[[], pb.ListVersionsResponse] = pb.ListVersionsResponse

    @property
    def inference(self) -> str:
        """host:port of the inference port, for a client on this machine."""
        return _address(_reachable(self.inference_host), self.inference_port)

    @property
    def admin(self) -> str:
        """host:port of the admin port, for a client on this machine."""
        return _address(_reachable(self.admin_host), self.admin_port)

    @property
    def metrics(self) -> str | None:
        """host:port of the metrics port, for a client on this machine."""
        if self.metrics_port is None:
            return None
        return _address(_reachable(self.inference_host), self.metrics_port)


class Application:
    """One server. `start` and `stop` once each, in one event loop."""

    def __init__(self, config: ServerConfig, spawn: Spawn | None = None) -> None:
        """`spawn` makes the trainer's runs; None: as ever, each a process from the start.

        Raises ConfigError for what only shows when the settings are looked at together.
        """
        self._config = config
        listen = config.server
        gate = Gate.of(listen)
        registry = Registry(config.models_dir)
        self._lock = ServerLock(config.models_dir)
        self._events = EventBus(registry.model)
        self._webhooks = Webhooks(config.webhooks, registry, self._events)
        self._control = ControlLoop(registry, config, self._events, spawn=spawn or TrainingRun)
        self._models = ModelManager(
            registry,
            config,
            tap_factory=self._control.tap_for,
            on_champion_changed=self._control.champion_changed,
            on_event=self._control.lifecycle_event,
        )
        self._inference = InferenceService(
            self._models, server_name=listen.name, server_version=version("trimtab")
        )
        infer = ModelInfer(self._models.plane)
        feedback = FeedbackService(
            self._known,
            self._control.model,
            max_request_rows=config.batching.max_request_rows,
        )
        self._admin = AdminService(registry, self._models, self._control, self._events)
        repository = ModelRepositoryService(
            self._models, ModelControl(registry, self._models), allowed=listen.model_control
        )
        for_clients = {
            **self._inference.handlers(),
            **ModelConfigurationService(self._models, config.batching).handlers(),
            **ModelStatisticsService(self._models).handlers(),
            **repository.handlers(),
            **ServerSettingsService(self._known, logging.getLogger("trimtab")).handlers(),
            **SharedMemoryService().handlers(),
            **feedback.handlers(),
        }
        for_operators = self._admin.handlers()
        self._health = HealthService(
            self._models, self._inference.ready, services_of([*for_clients, *for_operators])
        )
        self._inference_frontend, self._frontend = inference_frontend(
            listen.frontend,
            _address(listen.host, listen.port),
            self._described({**infer.handlers(), **for_clients}),
            TransportOptions.of(listen),
            self._models.plane,
        )
        self._admin_frontend = PortableFrontend(
            _address(listen.admin_host, listen.admin_port),
            self._described(gate.guard(for_operators)),
            options=TransportOptions.of_admin(listen),
        )
        self._metrics: MetricsServer | None = None
        if listen.metrics:
            build = {
                "version": version("trimtab"),
                "frontend": self._frontend,
                "grpc": transport_version(self._frontend),
                "onnxruntime": onnxruntime.__version__,
            }
            self._metrics = MetricsServer(
                listen.host,
                listen.metrics_port,
                MetricsCollector(self._models, self._control, build, self._webhooks.stats),
            )

    def _known(self, model: str) -> bool:
        return self._models.status(model) is not None

    def _described(self, handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
        """A port's handlers with those that every port has: health and reflection."""
        handlers = {**handlers, **self._health.handlers()}
        return {**handlers, **ReflectionService(handlers).handlers()}

    async def start(self) -> Listening:
        """Returns once every model that should answer does, or is known not to.

        Raises AlreadyServedError, or OSError for a port or directory that cannot be had; nothing
        runs then.
        """
        listen = self._config.server
        self._lock.take()
        try:
            inference_port = await self._inference_frontend.start()
            admin_port = await self._admin_frontend.start()
            metrics_port = self._metrics.start() if self._metrics is not None else None
            await asyncio.to_thread(self._webhooks.start)
            self._control.start(self._models)
            await asyncio.to_thread(self._models.start)
            listening = Listening(
                listen.host,
                inference_port,
                listen.admin_host,
                admin_port,
                self._frontend,
                metrics_port,
                self._admin.list_versions,
            )
            self._lock.tell(
                listening.inference,
                listening.admin,
                listening.metrics,
                admin_tls=bool(listen.admin_tls_cert),
            )
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        return listening

    async def stop(self, grace_s: float | None = None) -> None:
        """Ends everything in order; requests under way have `grace_s` seconds (else the setting's)."""
        grace = self._config.server.grace_s if grace_s is None else grace_s
        ends = asyncio.get_running_loop().time() + grace
        self._inference.stop_accepting()
        self._models.stop_accepting()
        self._health.stop()
        self._admin.stop_waiting()
        self._events.close()
        await asyncio.gather(self._inference_frontend.stop(grace), self._admin_frontend.stop(grace))
        left = max(0.0, ends - asyncio.get_running_loop().time())
        await asyncio.to_thread(self._models.stop, left)
        await asyncio.to_thread(self._control.stop)
        await asyncio.to_thread(self._webhooks.stop)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.stop)  # last: how the server drains can be seen
        self._lock.release()


async def run(
    config: ServerConfig, on_ready: Callable[[Listening], None], spawn: Spawn | None = None
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the grace at once.

    Raises what `Application.start` raises.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    stopping: asyncio.Task[None] | None = None

    def on_signal() -> None:
        if asked.is_set() and stopping is not None:
            _log.warning("asked again to stop: not waiting for the requests under way")
            stopping.cancel()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    application = Application(config, spawn)
    starting = asyncio.ensure_future(application.start())
    waiting = asyncio.ensure_future(asked.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    listening = (
        await starting
    )  # asked to stop while loading: loading one model cannot be broken off
    if not asked.is_set():
        on_ready(listening)
        await waiting
    _log.info("stopping: requests under way have %g s", config.server.grace_s)
    stopping = asyncio.ensure_future(application.stop())
    try:
        await stopping
    except asyncio.CancelledError:
        await application.stop(grace_s=0.0)


def _reachable(host: str) -> str:
    """The address that a client on this machine uses for a server listening on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "", "[::]", "::") else host


def _address(host: str, port: int) -> str:
    """An IPv6 address in brackets: its colons are not the one before the port."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
