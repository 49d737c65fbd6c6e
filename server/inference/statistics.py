"""What one loaded version has done, as ModelStatistics and the metrics report it.

A `VersionStatistics` is one instant: all of its figures belong to the same set of finished runs, so
that differences between two of them agree with each other. Durations are sums over the requests (or
runs) counted beside them, in nanoseconds.
"""

from dataclasses import dataclass, field

# Upper bounds of the buckets, each bucket excluding those before it; one more holds the rest.
LATENCY_BOUNDS_US = (
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000,
)  # fmt: skip
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Total:
    """How often something was done and how long it took in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class RunsOfSize:
    """The runs of the model on exactly `rows` rows."""

    rows: int
    compute_input: Total = Total()
    compute_infer: Total = Total()
    compute_output: Total = Total()


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """Counters of one loaded version since it was loaded."""

    last_inference_ms: int = 0  # wall clock; 0: never
    rows: int = 0  # in answered requests
    runs: int = 0  # of the model, that gave those answers
    success: Total = Total()  # answered requests, from receipt to reply
    fail: Total = Total()  # requests answered with an error after they were queued, all reasons
    queue: Total = Total()  # of answered requests: from receipt until their run began
    compute_input: Total = Total()  # of answered requests: gathering their run's inputs
    compute_infer: Total = Total()  # of answered requests: onnxruntime
    compute_output: Total = Total()  # of answered requests: writing replies
    rejected: int = 0  # refused because the queue was full
    cancelled: int = 0  # given up by the client before they ran
    expired: int = 0  # past their deadline or timeout before they ran
    failed: int = 0  # computed with an error
    waiting_requests: int = 0  # in the queue now
    waiting_rows: int = 0
    tap_failures: int = 0  # runs that the drift monitor or the traffic log failed on
    latency_us: tuple[int, ...] = ()  # answered requests by LATENCY_BOUNDS_US
    batch_rows: tuple[int, ...] = ()  # runs by BATCH_BOUNDS
    runs_by_size: tuple[RunsOfSize, ...] = field(default=())  # by rows, ascending; bounded
