"""A version that gives one answer to everything, in a server's own objects from request to registry.

Real models, executors, lifecycle and control loop; only the trainer is one that obeys.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.loop_fakes import FakeTrainer, wait_until
from tests.plane import Refused, Requests, infer_request
from trimtab._native.reference import ReferenceProfile, TensorReference, numeric_feature
from trimtab.registry.directory import Registry
from trimtab.server.config import (
    DriftConfig,
    ListenConfig,
    ModelPolicy,
    PromotionConfig,
    ServerConfig,
)
from trimtab.server.events import EventBus
from trimtab.server.inference.onnx_session import open_session
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.control_loop import ControlLoop
from trimtab.server.loop.training_run import TrainingResult


class Server:
    """All of it but the ports."""

    def __init__(self, path: Path, **promotion: Any) -> None:
        self.random = np.random.default_rng(3)
        self.path = path
        self.registry = Registry(path)
        self.directory = self.registry.model("m")
        (path / "m").mkdir(parents=True)
        (path / "m" / "trimtab.toml").write_text('[recipe]\ntask = "regression"\n')
        self.publish(2.0)
        config = ServerConfig(
            path,
            server=ListenConfig(watch=False),
            policy=ModelPolicy(
                drift=DriftConfig(enabled=False),
                promotion=PromotionConfig(
                    **{"bake_rows": 1_000, "shadow_rows": 1_000, "label_rows": 200, **promotion}
                ),
            ),
        )
        self.trainer = FakeTrainer()
        self.loop = ControlLoop(
            self.registry, config, EventBus(self.registry.model), spawn=self.trainer
        )
        self.manager = ModelManager(
            self.registry,
            config,
            tap_factory=self.loop.tap_for,
            on_champion_changed=self.loop.champion_changed,
            on_event=self.loop.lifecycle_event,
        )
        self.loop.start(self.manager)
        self.manager.start()
        self.requests = Requests(self.manager.plane)
        self.answered = self.sent = 0

    def stop(self) -> None:
        self.manager.stop()
        self.loop.stop()

    def publish(self, factor: float) -> int:
        """y = factor · x, with a reference of both as training would leave it."""
        with self.directory.stage() as staged:
            (staged.path / "model.onnx").write_bytes(models.scaled(factor, 1))
            x = np.random.default_rng(0).normal(size=5_000)
            ReferenceProfile(
                5_000,
                (
                    TensorReference("x", "input", (numeric_feature("x", x),)),
                    TensorReference("y", "output", (numeric_feature("y", factor * x),)),
                ),
            ).save(staged.path / "reference.npz")
            signature = open_session(staged.path / "model.onnx").signature
            return staged.publish(
                signature=signature,
                task="regression",
                lineage={},
                metrics={},
                actor="trimtab",
                reason="for a test",
            )

    def train(self, factor: float) -> int:
        """A training whose gates let everything pass."""
        self.loop.train("m", "ann", "wanted").result(20)
        version = self.publish(factor)
        self.trainer.trainings[-1].finish(TrainingResult("published", "gates passed", version))
        self.settle()
        return version

    def ask(self, rows: int = 500, *, labels: bool = False) -> set[str]:
        """Requests of one to twenty rows; the versions that answered."""
        versions = set()
        known: list[Label] = []
        while rows > 0:
            count = int(self.random.integers(1, 20))
            x = self.random.normal(size=(count, 1)).astype(np.float32)
            name = f"request-{self.sent}"
            self.sent += 1
            request = infer_request(x, id=name)
            versions.add(
                self.requests.send_bytes(request.SerializeToString()).reply().model_version
            )
            known += [Label(name, row, number=2 * float(x[row, 0])) for row in range(count)]
            self.answered += count
            rows -= count
        self.settle()
        if labels:
            self.loop.model("m").submit_labels(known, 1)
            self.settle()
        return versions

    def settle(self) -> None:
        self.loop.settle("m", self.answered).future.result(30)
        assert self.loop.failures == 0

    @property
    def history(self) -> list[tuple[str, int]]:
        history = self.directory.history()
        assert history.valid
        return [(entry.kind, entry.version) for entry in history.entries]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**promotion: Any) -> Server:
        servers.append(Server(tmp_path / "models", **promotion))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("labels", [False, True])
def test_a_constant_version_is_rolled_back_by_the_bake(
    serve: Callable[..., Server], labels: bool
) -> None:
    server = serve()
    version = server.train(0.0)
    assert server.ask(labels=labels) == {"2"}
    if server.directory.state().champion == version:
        server.ask(labels=labels)
    state = server.directory.state()
    assert state.champion == 1 and server.ask(20) == {"1"}
    assert [kind for kind, _ in server.history[-3:]] == [
        "rollout_verdict",
        "blocked",
        "rolled_back",
    ]
    reason = server.directory.history().entries[-1].reason
    assert "the bake of version 2: fail: " in reason and "PSI" in reason
    assert state.blocked[version] == reason
    assert {each for _, each, _ in server.manager.loaded()} == {1}, "nothing holds it any more"


def test_a_constant_version_does_not_get_through_the_shadow(serve: Callable[..., Server]) -> None:
    server = serve(policy="shadow")
    version = server.train(0.0)
    assert server.ask(labels=True) == {"1"}, "callers never see it"
    server.ask(labels=True)
    assert server.directory.state().champion == 1
    assert [kind for kind, _ in server.history[-3:]] == ["rollout_verdict", "blocked", "refused"]
    assert version in server.directory.state().blocked
    status = server.loop.model("m").rollout.status()
    assert (status.phase, status.verdict) == ("none", "fail")


def test_a_good_version_passes_canary_and_bake(serve: Callable[..., Server]) -> None:
    server = serve(policy="canary", canary_steps=(0.3, 0.6), canary_rows=200)
    version = server.train(2.01)
    seen = server.ask(1_000)
    assert seen == {"1", "2"}, "a share of the requests"
    for _ in range(10):
        if server.directory.state().champion == version:
            break
        server.ask(500)
    assert server.ask(1_100) == {"2"}
    kinds = [kind for kind, _ in server.history]
    assert kinds[kinds.index("training_started") :] == [
        "training_started",
        "published",
        "rollout_started",
        "rollout_step",
        "rollout_verdict",
        "promoted",
        "rollout_started",
        "rollout_verdict",
    ]
    assert server.directory.history().entries[-1].evidence["verdict"] == "pass"


def test_requests_that_the_new_version_alone_fails_on_take_it_back(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    server.train(2.0)
    servable = server.manager.resolve("m", "2").servable

    def fail(*_: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(servable._session, "run", fail, raising=False)
    for _ in range(30):
        with pytest.raises(Refused):
            server.requests.send_bytes(
                infer_request(np.ones((2, 1), np.float32)).SerializeToString()
            ).reply()
    rollout = server.loop.model("m").rollout
    wait_until(lambda: rollout.status().rows_compared == 60, "the other version computed them")
    server.settle()
    assert server.directory.state().champion == 1
    assert "30 of 30 requests failed on it alone" in server.directory.history().entries[-1].reason


@pytest.mark.parametrize("policy", ["auto", "shadow", "canary"])
def test_a_server_that_stops_during_a_phase_lets_go_of_it(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    server = serve(policy=policy)
    server.train(2.01)
    server.ask(100)
    assert server.loop.model("m").rollout.status().phase != "none"
    server.stop()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert not [t for t in threading.enumerate() if t.name.startswith("mirror")]
    assert server.history[-1][0] == "rollout_started", "for the next one to begin anew"
