"""A model manager over a real registry of one model `m`, which remembers what it was told."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import models
from tests.plane import Requests
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.server.config import BatchingConfig, ListenConfig, ServerConfig
from trimtab.server.inference.observation import ObservedBatch
from trimtab.server.inference.servable import Servable
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.lifecycle.version_plan import VersionState


class World:
    """See the module. `now` is the manager's clock, which tests may set."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.directory = ModelDirectory(models_dir / "m")
        self.events: list[tuple[str, str, int, str]] = []
        self.champions: list[tuple[str, int | None]] = []
        self.observed: list[ObservedBatch] = []
        self.loading: Callable[[int], None] = lambda version: None
        self.on_champion: Callable[[Servable | None], None] = lambda servable: None
        self.told = threading.Condition()
        self.now: Callable[[], float] = time.monotonic
        self.manager = self.make()

    def make(self, *, watch: bool = False) -> ModelManager:
        return ModelManager(
            Registry(self.models_dir),
            ServerConfig(
                self.models_dir,
                server=ListenConfig(watch=watch),
                batching=BatchingConfig(max_batch_rows=8),
            ),
            tap_factory=lambda servable: self.observed.append,
            on_champion_changed=self._champion,
            on_event=self._event,
            load=self._load,
            clock=lambda: self.now(),
        )

    def _load(self, directory: ModelDirectory, version: int, **options: Any) -> Servable:
        self.loading(version)
        return Servable.load(directory, version, **options)

    def _event(
        self, kind: str, model: str, version: int, reason: str, evidence: Mapping[str, Any]
    ) -> None:
        with self.told:
            self.events.append((kind, model, version, reason))
            self.told.notify_all()

    def _champion(self, model: str, servable: Servable | None) -> None:
        self.champions.append((model, servable.version if servable else None))
        self.on_champion(servable)

    def wait_for(self, kind: str, version: int) -> None:
        with self.told:
            assert self.told.wait_for(
                lambda: any(e[0] == kind and e[2] == version for e in self.events), 30
            ), self.events

    def publish(self, factor: float, **options: Any) -> int:
        return models.publish(self.models_dir, "m", models.scaled(factor), **options)

    def follow(self) -> None:
        self.manager.reconcile("m").result(30)

    def predict(self, version: str = "") -> float:
        self.manager.resolve("m", version)
        return Requests(self.manager.plane).send([1.0], version=version).values()[0]

    def states(self, model: str = "m") -> dict[int, VersionState]:
        status = self.manager.status(model)
        assert status is not None
        return {each.version: each.state for each in status.versions}

    def reason(self, version: int) -> str:
        status = self.manager.status("m")
        assert status is not None
        return next(each.reason for each in status.versions if each.version == version)

    def promote(self, version: int, **options: Any) -> Any:
        return self.manager.promote("m", version, actor="ana", reason="better", **options)

    def rollback(self, **options: Any) -> Any:
        return self.manager.rollback("m", actor="ana", reason="worse", **options)
