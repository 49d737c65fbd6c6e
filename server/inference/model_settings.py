"""What a model's own config.pbtxt says about running it; the lifecycle reads and checks the file.

A value, made before a version is loaded and kept by its servable: what ModelConfig reports is what
the version was loaded with, whatever the file says by then.
"""

from dataclasses import dataclass, field, replace

from trimtab.proto import model_config_pb2 as pb

from ..config import BatchingConfig


@dataclass(frozen=True)
class ModelSettings:
    """The defaults: there is no file, or it does not say."""

    max_batch_size: int | None = None  # rows of a run; 0: calls run one by one; None: not said
    max_queue_delay_us: int | None = None
    max_queue_size: int | None = None
    default_timeout_us: int = 0  # that a request may wait in the queue; 0: no limit
    written: pb.ModelConfig = field(default_factory=pb.ModelConfig)  # the file; never changed

    def batching(self, server: BatchingConfig) -> BatchingConfig:
        """The server's batching with what this model says of its own."""
        batching = server
        if self.max_batch_size:
            rows = min(server.max_batch_rows, self.max_batch_size)
            batching = replace(batching, max_batch_rows=rows)
        if self.max_queue_delay_us is not None:
            batching = replace(batching, linger_ms=self.max_queue_delay_us / 1000)
        if self.max_queue_size is not None:
            batching = replace(batching, max_queue_rows=self.max_queue_size)
        return batching
