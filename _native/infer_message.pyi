"""The wire form of inference (infer_message.h) for Python: for tests, tools and fuzzers.

`read_addressee` and `decode` raise RefusedError for what the data plane would refuse. A schema
never changes; any thread may call anything.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

class RefusedError(Exception):
    """A request that cannot be computed; `code` is gRPC's number."""

    code: int
    def __init__(self, code: int, text: str) -> None: ...

class Schema:
    """What a version takes and gives: inputs as (name, datatype, shape), outputs as (name, datatype)."""

    def __init__(
        self,
        model: str,
        version: int,
        inputs: Sequence[tuple[str, str, tuple[int, ...]]],
        outputs: Sequence[tuple[str, str]],
        *,
        batchable: bool,
        max_request_rows: int,
        mirror_contents: bool = False,
    ) -> None: ...

class DecodedRequest(NamedTuple):
    """A request that can be computed."""

    id: str
    inputs: dict[str, tuple[str, tuple[int, ...], bytes]]  # datatype, shape, raw contents
    rows: int
    outputs: tuple[str, ...]  # in the order of the reply; empty: all
    event_time_ms: int | None
    timeout_us: int  # 0: none
    mirror: bool  # typed contents are to be answered by typed contents

def read_addressee(message: bytes) -> tuple[str, str]:
    """The model and the version that a ModelInferRequest names."""

def decode(message: bytes, schema: Schema) -> DecodedRequest:
    """Checks a ModelInferRequest completely, but for the UTF-8 of its strings."""

def encode(
    schema: Schema,
    request_id: str,
    outputs: Mapping[str, tuple[Sequence[int], bytes]],
    *,
    mirror: bool = False,
) -> bytes:
    """A ModelInferResponse with outputs of the schema, as shape and raw contents, in that order."""
