"""Stand-ins for what tests want to steer: time, the model, the one who waits for a reply.

Each is held to the real thing by a test in tests/server/test_fakes.py.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.inference.request_queue import Call, Outcome, Sink
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.tensor import Tensor


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


class FakeCall(Call):
    """A call that remembers its outcome; `wait` for it."""

    __slots__ = ("_done", "outcome")

    def __init__(
        self,
        rows: Sequence[float] = (1.0,),
        *,
        id: str = "call",
        group: object = (2,),
        outputs: tuple[str, ...] = ("y",),
        deadline: float | None = None,
        expiry: Exception | None = None,
        sink: Sink | None = None,
    ) -> None:
        """One row [value, value] for each value of `rows`."""
        array = np.repeat(np.asarray(rows, dtype=np.float32)[:, None], 2, axis=1)
        super().__init__(
            id=id,
            inputs={"x": Tensor("FP32", array.shape, array)},
            rows=len(rows),
            group=group,
            outputs=outputs,
            received_ms=0,
            deadline=deadline,
            expiry=expiry,
            sink=sink,
        )
        self._done = threading.Event()
        self.outcome: Outcome | None = None

    def finish(self, outcome: Outcome) -> None:
        assert self.outcome is None, "finished twice"
        self.outcome = outcome
        self._done.set()

    def wait(self) -> Outcome:
        assert self._done.wait(30), "never finished"
        assert self.outcome is not None
        return self.outcome

    def values(self) -> list[float]:
        """The first column of output y."""
        outcome = self.wait()
        assert not isinstance(outcome, Exception), outcome
        return [float(value) for value in outcome["y"].array()[:, 0]]
