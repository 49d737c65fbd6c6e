from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Refusal: TypeAlias = tuple[int, str]
"""A gRPC status code and its text."""

Run: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(count, ns) of gathering inputs, of the model, of writing replies."""

class Idle:
    """There is one, IDLE."""

IDLE: Idle

class Version:
    """One loaded version's queue, counters and schema. `take` from one thread, the rest from any.

    `inputs` are (name, datatype, shape) with -1 for any size, `outputs` (name, datatype), in the
    order of the model. `linger_s` and `default_timeout_us` of 0: none.
    """

    model: str
    version: int

    def __init__(
        self,
        model: str,
        version: int,
        inputs: Sequence[tuple[str, str, Sequence[int]]],
        outputs: Sequence[tuple[str, str]],
        *,
        batchable: bool,
        max_request_rows: int,
        max_batch_rows: int,
        max_queue_rows: int,
        linger_s: float = 0.0,
        default_timeout_us: int = 0,
        max_string_bytes: int = 0xFFFFFFFF,
        mirror_contents: bool = False,
    ) -> None: ...
    def take(self, together: bool = True, idle_s: float = 0.0) -> Batch | Idle | None:
        """The next calls to compute, their inputs gathered; blocks without the GIL.

        Not `together`: one call at a time. None: closed, and nothing waits. IDLE: nothing came for
        `idle_s` (0: for ever). Calls past their time are told so here and never come out.
        """

    @property
    def kept_rows(self) -> int: ...
    def take_kept(
        self,
    ) -> tuple[
        int,
        list[tuple[tuple[int, ...], NDArray[Any] | bytes]],
        list[tuple[tuple[int, ...], NDArray[Any] | bytes]],
        tuple[bytes, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
        int,
    ]:
        """(rows, inputs, outputs, `observed`, `latest_event_time_ms`) of the batches that were kept;
        none are afterwards."""

    def close(self) -> None:
        """No more calls; what waits can still be taken."""

    def refuse_waiting(self, code: int, text: str) -> None:
        """Tells every call that waits, with a gRPC status."""

    def counts(self) -> dict[str, Any]:
        """All counters of one instant, by the names of `VersionStatistics`."""

class Batch:
    """Calls that are computed together; the executor's thread alone."""

    rows: int
    requests: int
    kept: bool

    def inputs(self) -> list[tuple[tuple[int, ...], NDArray[Any] | bytes]]:
        """(shape, data) of each input: arrays are views of the batch's memory, read-only."""

    def wanted(self) -> tuple[int, ...]:
        """Indexes of the outputs that any of its calls asks for, ascending."""

    def running(self) -> None:
        """The model is run from now on."""

    def reply(
        self,
        outputs: Sequence[tuple[int, tuple[int, ...], NDArray[Any] | bytes]],
        keep: bool = False,
    ) -> str:
        """Answers every call with its rows of (index, shape, C-contiguous data); without the GIL.

        Not empty: why the outputs cannot be divided among the calls; then nothing was sent. With
        `keep` the batch is then added to what its version keeps, which `kept` tells: not if its
        trailing shapes are others. `outputs` are all of the model's then.
        """

    def fail(self, code: int, text: str) -> None:
        """Answers every call with an error."""

    def singles(self) -> list[Batch]:
        """Its calls, one batch each; nothing is left in this one. Calls that have gone are not."""

    @property
    def latest_event_time_ms(self) -> int:
        """Of the calls that were answered; -1: none has an event time."""

    def observed(
        self,
    ) -> tuple[bytes, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of the calls that were answered: ids one after another, where each ends, rows,
        event times (-1: none) and times of receipt in milliseconds."""

class DataPlane:
    """From a request's bytes to the queue of the version that answers it. Any thread."""

    def __init__(self, id_prefix: str) -> None:
        """`id_prefix` begins the ids that are minted for requests without one."""

    @property
    def inference(self) -> Any:
        """A capsule of the C++ interface that a native frontend hands its calls to; it is valid as
        long as this object."""

    @property
    def requests_in_flight(self) -> int: ...
    @property
    def bytes_in_flight(self) -> int: ...
    def set_route(
        self,
        model: str,
        answers: Version | None,
        refusal: Refusal,
        versions: Sequence[Version],
        refusals: Mapping[int, Refusal],
        challenger: Version | None = None,
        share: int = 0,
    ) -> None:
        """What requests for a model meet from now on: the version that answers those that name none
        (or why there is none), those that can be named, and why others cannot.

        With a challenger it answers those that name no version instead, of whose id XXH64, seeded
        with the challenger's number, is below `share` modulo 10,000. An id is the client's, or the
        one that is minted for it.
        """

    def remove_route(self, model: str) -> None: ...
    def set_unknown(self, code: int, suffix: str) -> None:
        """What is said of a model without a route, after "Request for unknown model: 'm'"."""

    def refuse(self, code: int, text: str) -> None:
        """Refuses every new request; code 0: no longer."""

    def limit(self, max_requests: int, max_bytes: int) -> None:
        """Refuses requests beyond so many under way; 0: any number."""

class LoopTicket:
    def cancel(self) -> None:
        """Nobody waits any more: the call does not run if it still waits."""

class LoopInference:
    """Hands in requests for one event loop, which watches `fileno()` and calls `drain()`."""

    def __init__(self, plane: DataPlane) -> None: ...
    def fileno(self) -> int:
        """Readable when calls have finished."""

    def submit(self, request: bytes, deadline_s: float, waiter: object) -> LoopTicket:
        """`deadline_s` in time.monotonic()'s seconds, inf for none. `waiter` comes back from `drain`."""

    def drain(self) -> list[tuple[Any, int, bytes | str]]:
        """(waiter, gRPC code, reply or error text) of each call that finished since."""
