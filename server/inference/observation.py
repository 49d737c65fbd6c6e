"""What was just predicted, as the drift monitor and the traffic log are told of it.

An executor makes one `ObservedBatch` per run of the model and passes it to its tap on its own
thread, after the replies left. So a tap may take its time up to the next batch, but no longer: it
never blocks and never raises (what it raises is counted and dropped). Everything in a batch is a
value that is never changed; a tap may keep it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .tensor import Tensor


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One answered request of the batch; its rows follow those of the call before it."""

    id: str
    rows: int
    event_time_ms: int | None  # the request's `event_time`
    received_ms: int  # wall clock


@dataclass(frozen=True, slots=True, eq=False)
class ObservedCalls:
    """The answered requests of a batch in columns, so that none of them costs a Python object."""

    ids: bytes  # one after another
    id_ends: NDArray[np.int32]  # where each ends
    rows: NDArray[np.int64]
    event_time_ms: NDArray[np.int64]  # -1: the request has none
    received_ms: NDArray[np.int64]

    @classmethod
    def of(cls, calls: Iterable[ObservedCall]) -> "ObservedCalls":
        calls = list(calls)
        ids = [call.id.encode() for call in calls]
        return cls(
            b"".join(ids),
            np.cumsum([len(each) for each in ids], dtype=np.int32),
            np.array([call.rows for call in calls], np.int64),
            np.array(
                [-1 if call.event_time_ms is None else call.event_time_ms for call in calls],
                np.int64,
            ),
            np.array([call.received_ms for call in calls], np.int64),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def each(self) -> list[ObservedCall]:
        """One object per call, for whoever looks at few."""
        starts = [0, *self.id_ends[:-1].tolist()]
        columns = (self.id_ends, self.rows, self.event_time_ms, self.received_ms)
        return [
            ObservedCall(self.ids[start:end].decode(), rows, None if event < 0 else event, received)
            for start, end, rows, event, received in zip(
                starts, *(column.tolist() for column in columns), strict=True
            )
        ]


class CallSource(Protocol):
    """What the columns of a batch's calls are made from, if anybody asks: a native batch."""

    def observed(
        self,
    ) -> tuple[
        bytes, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
    ]: ...


class ObservedBatch:
    """Rows that one version computed together, whole: the calls' rows in order.

    A tensor whose first dimension is not `rows` (a model without a batch dimension) does not have
    one entry per row. No dataclass, and its calls are made on demand: one is made per run of the
    model, which took 7.5 µs and takes 0.7.
    """

    __slots__ = ("_calls", "inputs", "latest_event_time_ms", "model", "outputs", "rows", "version")

    def __init__(
        self,
        model: str,
        version: int,
        calls: ObservedCalls | CallSource,
        rows: int,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        latest_event_time_ms: int | None = None,
    ) -> None:
        """`latest_event_time_ms`: of the calls; -1: none has one; None: look at them."""
        self.model = model
        self.version = version
        self.rows = rows
        self.inputs = inputs
        self.outputs = outputs
        self._calls = calls
        if latest_event_time_ms is None:
            latest_event_time_ms = int(self.calls.event_time_ms.max(initial=-1))
        self.latest_event_time_ms = latest_event_time_ms

    def __repr__(self) -> str:
        return f"<ObservedBatch of {self.model}/{self.version}, {self.rows} rows>"

    @property
    def calls(self) -> ObservedCalls:
        """The answered requests; two threads may make two: they are equal."""
        calls = self._calls
        if not isinstance(calls, ObservedCalls):
            calls = self._calls = ObservedCalls(*calls.observed())
        return calls


Tap = Callable[[ObservedBatch], None]
