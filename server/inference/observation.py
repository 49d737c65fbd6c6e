"""What was just predicted, as the drift monitor and the traffic log are told of it.

An executor makes one `ObservedBatch` per run of the model and passes it to its tap on its own
thread, after the replies left. So a tap may take its time up to the next batch, but no longer: it
never blocks and never raises (what it raises is counted and dropped). Everything in a batch is a
value that is never changed; a tap may keep it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .tensor import Tensor


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One answered request of the batch; its rows follow those of the call before it."""

    id: str
    rows: int
    event_time_ms: int | None  # the request's `event_time`
    received_ms: int  # wall clock


@dataclass(frozen=True, slots=True)
class ObservedBatch:
    """Rows that one version computed together, whole: the calls' rows in order.

    A tensor whose first dimension is not `rows` (a model without a batch dimension) does not have
    one entry per row.
    """

    model: str
    version: int
    calls: tuple[ObservedCall, ...]
    rows: int
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


Tap = Callable[[ObservedBatch], None]
