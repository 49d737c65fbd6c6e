"""Stand-ins for the control loop's tests: batches, a model in a registry, a trainer that obeys."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.directory import Registry
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import TrainingConfig
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.loop.training_run import TrainingProgress, TrainingResult

SIGNATURE = Signature(
    inputs=(
        TensorSpec("numeric", "FP32", (-1, 2), ("temp", "wind")),
        TensorSpec("categorical", "BYTES", (-1, 1), ("carrier",)),
    ),
    outputs=(TensorSpec("variable", "FP32", (-1, 1), ()),),
)


def strings(values: Sequence[str]) -> bytes:
    """A BYTES tensor's wire form."""
    return bytes_tensor.encode(np.array(values, dtype=object))


def batch(
    numeric: NDArray[Any],
    carriers: Sequence[str] | None = None,
    *,
    model: str = "m",
    version: int = 1,
    calls: Sequence[int] | None = None,
    event_time_ms: int | None = None,
    received_ms: int = 1_000,
    prefix: str = "call",
) -> ObservedBatch:
    """A batch of SIGNATURE; `calls` are the row counts of its requests (default: one request)."""
    rows = len(numeric)
    numeric = np.ascontiguousarray(numeric, np.float32)
    return ObservedBatch(
        model=model,
        version=version,
        calls=ObservedCalls.of(
            ObservedCall(f"{prefix}-{index}", count, event_time_ms, received_ms)
            for index, count in enumerate(calls or [rows])
        ),
        rows=rows,
        inputs={
            "numeric": Tensor("FP32", (rows, 2), numeric),
            "categorical": Tensor("BYTES", (rows, 1), strings(carriers or ["AA"] * rows)),
        },
        outputs={"variable": Tensor("FP32", (rows, 1), np.ascontiguousarray(numeric[:, :1] * 2))},
    )


def draw(
    random: np.random.Generator, rows: int, shift: float = 0.0
) -> tuple[NDArray[np.float32], list[str]]:
    """Rows as the reference has them, or with a shifted `temp`."""
    numeric = random.normal(size=(rows, 2)).astype(np.float32)
    numeric[:, 0] += np.float32(shift)
    return numeric, [["AA", "DL", "UA"][i] for i in random.integers(0, 3, size=rows)]


def reference(rows: int = 20_000, seed: int = 0) -> ReferenceProfile:
    numeric, carriers = draw(np.random.default_rng(seed), rows)
    return ReferenceProfile(
        rows=rows,
        tensors=(
            TensorReference(
                "numeric",
                "input",
                tuple(
                    numeric_feature(name, np.ascontiguousarray(numeric[:, index]))
                    for index, name in enumerate(("temp", "wind"))
                ),
            ),
            TensorReference(
                "categorical",
                "input",
                (categorical_feature("carrier", [carrier.encode() for carrier in carriers]),),
            ),
            TensorReference(
                "variable",
                "output",
                (numeric_feature("variable", np.ascontiguousarray(numeric[:, 0] * 2)),),
            ),
        ),
    )


class FakeWall:
    """A wall clock in milliseconds that stands still until it is moved."""

    def __init__(self, ms: int = 1_700_000_000_000) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@dataclass
class FakeChild:
    """A trainer's process that runs until the test says how it ends."""

    arguments: Sequence[str]
    limits: TrainingConfig
    on_finished: Callable[[TrainingResult], None]
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None
    needs_result: bool = True
    started: bool = False
    killed: str = ""

    @property
    def options(self) -> dict[str, str]:
        pairs = [argument.removeprefix("--").partition("=") for argument in self.arguments[1:]]
        return {name: value for name, _, value in pairs}

    def start(self) -> None:
        self.started = True

    def kill(self, reason: str) -> None:
        self.killed = reason

    def join(self, timeout_s: float | None = None) -> bool:
        return True

    def finish(self, result: TrainingResult) -> None:
        self.on_finished(result)


@dataclass
class FakeTrainer:
    """What ModelLoop spawns children with; remembers them."""

    children: list[FakeChild] = field(default_factory=list)

    def __call__(self, *arguments: Any, **options: Any) -> FakeChild:
        self.children.append(FakeChild(*arguments, **options))
        return self.children[-1]

    @property
    def trainings(self) -> list[FakeChild]:
        return [child for child in self.children if child.arguments[0] == "train"]


@dataclass
class FakeRunner:
    """A loaded version that answers twice `temp`, or what `answer` makes of it."""

    answer: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda temp: temp * 2
    signature: Signature = SIGNATURE
    reference_path: Path | None = None
    batchable: bool = True
    on_run: Callable[[int], None] = lambda rows: None  # before each, with its rows

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.signature.outputs)

    def __hash__(self) -> int:
        return id(self)

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        numeric = inputs["numeric"].array()
        self.on_run(len(numeric))
        value = np.ascontiguousarray(self.answer(numeric[:, :1]), np.float32)
        return {"variable": Tensor("FP32", value.shape, value)}


@dataclass
class FakeHeld:
    """A version that is held, until somebody lets go of it."""

    servable: FakeRunner
    on_release: Callable[[], None]

    def release(self) -> None:
        self.on_release()
        self.on_release = lambda: None


@dataclass
class FakePromoter:
    """A lifecycle that changes the registry and tells `on_change`; what is held answers as `runners` say."""

    registry: Registry
    on_change: Callable[[str, int], None] = lambda model, version: None
    error: Exception | None = None  # that promoting raises
    runners: dict[int, FakeRunner] = field(default_factory=dict)  # others: a FakeRunner
    held: list[int] = field(default_factory=list)
    splits: list[tuple[int | None, float]] = field(default_factory=list)
    hold_error: Exception | None = None
    reference_path: Path | None = None

    def promote(
        self,
        model: str,
        version: int,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        automatic: bool = False,
    ) -> object:
        if self.error is not None:
            raise self.error
        state = self.registry.model(model).promote(
            version,
            actor=actor,
            reason=reason,
            evidence=evidence,
            expected_revision=expected_revision,
            event_time_ms=event_time_ms,
            automatic=automatic,
        )
        self.on_change(model, version)
        return state

    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
        event_time_ms: int | None = None,
        automatic: bool = False,
    ) -> object:
        state = self.registry.model(model).rollback(
            actor=actor,
            reason=reason,
            evidence=evidence,
            expected_revision=expected_revision,
            event_time_ms=event_time_ms,
            automatic=automatic,
        )
        assert state.champion is not None
        self.on_change(model, state.champion)
        return state

    def hold(self, model: str, version: int) -> FakeHeld:
        if self.hold_error is not None:
            raise self.hold_error
        self.held.append(version)
        runner = self.runners.setdefault(version, FakeRunner(reference_path=self.reference_path))
        return FakeHeld(runner, lambda: self.held.remove(version))

    def split(self, model: str, version: int | None, share: float = 0.0) -> None:
        self.splits.append((version, share))


def publish_version(
    registry: Registry,
    model: str = "m",
    actor: str = "test",
    lineage: Mapping[str, Any] | None = None,
) -> int:
    """Publishes a version whose files are no model; the first one becomes champion."""
    with registry.model(model).stage() as staged:
        (staged.path / "model.onnx").write_bytes(b"not a model")
        return staged.publish(
            signature=SIGNATURE,
            task="regression",
            lineage=lineage or {},
            metrics={"mae": 1.0},
            actor=actor,
            reason="for a test",
        )


@dataclass
class FakeServable:
    """What the loop needs of a loaded version."""

    model: str
    version: int
    signature: Signature = SIGNATURE
    reference_path: Path | None = None


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """For what other threads do and tell nobody; fails loudly."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.002)
