"""Stand-ins for what tests want to steer: time, the model.

Each is held to the real thing by a test in tests/server/inference/test_fakes.py.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.inference.servable import Servable


class FakeClock:
    """A clock that stands still until it is moved; call it as `time.monotonic`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeSession:
    """Computes `y = compute(x)`, remembers every run, and can be held up inside one.

    `hold()` makes runs wait until `release()`; `entered` is set while one waits.
    """

    def __init__(self, compute: Callable[[NDArray[Any]], NDArray[Any]] = lambda x: x * 2) -> None:
        self._compute = compute
        self._open = threading.Event()
        self._open.set()
        self.entered = threading.Event()
        self.batches: list[NDArray[Any]] = []

    def hold(self) -> None:
        self.entered.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def run(
        self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        self.entered.set()
        assert self._open.wait(30), "nobody released the session"
        x = input_feed["x"]
        self.batches.append(x.copy())
        return [self._compute(x) for _ in output_names]


def fake_servable(
    session: FakeSession,
    *,
    model: str = "m",
    version: int = 1,
    batchable: bool = True,
    width: int = 2,
) -> Servable:
    """A servable of one FP32 input x [-1, width] and one output y of the same shape."""
    return Servable(
        model=model,
        version=version,
        session=session,
        signature=Signature(
            inputs=(TensorSpec("x", "FP32", (-1, width), ()),),
            outputs=(TensorSpec("y", "FP32", (-1, width), ()),),
        ),
        batchable=batchable,
    )
