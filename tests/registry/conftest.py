"""A model directory with a clock of its own, and a way to publish into it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.manifest import Signature, TensorSpec


class FakeClock:
    def __init__(self) -> None:
        self.now_ms = 1_400_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(autouse=True)
def nothing_has_to_outlive_a_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing is most of what a writer waits for. What is synced when, test_crash looks at."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model(tmp_path: Path, clock: FakeClock) -> ModelDirectory:
    """Not there yet: the first publication makes it."""
    return ModelDirectory(tmp_path / "airtime", clock_ms=clock)


@pytest.fixture(scope="session")
def signature() -> Signature:
    return Signature(
        inputs=(
            TensorSpec("numeric", "FP32", (-1, 2), ("distance", "dep_delay")),
            TensorSpec("categorical", "BYTES", (-1, 1), ("carrier",)),
        ),
        outputs=(TensorSpec("variable", "FP32", (-1, 1)),),
    )


@pytest.fixture(scope="session")
def publish(signature: Signature) -> Callable[..., int]:
    def publish(
        model: ModelDirectory,
        *,
        files: dict[str, bytes] | None = None,
        champion_if_first: bool = True,
        event_time_ms: int | None = None,
    ) -> int:
        with model.stage() as staged:
            for name, data in (files or {"model.onnx": b"onnx"}).items():
                (staged.path / name).write_bytes(data)
            return staged.publish(
                signature=signature,
                task="regression",
                lineage={"rows": 60_000},
                metrics={"mae": 7.9},
                actor="trainer",
                reason="drift of distance",
                champion_if_first=champion_if_first,
                event_time_ms=event_time_ms,
            )

    return publish
