"""`trimtab.v1.Feedback`: labels for predictions that were served.

OK means that the labels are in the log. A batch is taken whole or refused whole, with the first
label that is wrong named: a text for a model that gives numbers would be of use to nobody. Whether
a prediction of that id was ever served is not checked: labels may come days later, and the join
with the traffic log is the trainer's.

Labels are written by threads of their own: those that operators' calls share may all wait for the
lock of one model. Idle threads end with the service.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from google.protobuf.message import DecodeError

from trimtab.proto import feedback_pb2 as pb

from ..errors import InvalidRequestError, NotFoundError, UnavailableError
from ..events import wall_ms
from ..logs.label_log import Label
from .handlers import CallContext, Handler, UnaryHandler

SERVICE = "trimtab.v1.Feedback"
MAX_LABELS = 100_000  # per request
MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_NUMBER = float(np.finfo(np.float32).max)  # what models compute in

_WRITERS = 4  # threads


class Sink(Protocol):
    """Takes checked labels; OSError: none of them was kept. Blocks."""

    @property
    def takes_text(self) -> bool | None:
        """Whether labels are texts; None: either will do, or nobody knows."""

    def submit_labels(self, labels: Sequence[Label], event_time_ms: int) -> None: ...


class FeedbackService:
    """The handlers of the service."""

    def __init__(
        self,
        known: Callable[[str], bool],
        sink_of: Callable[[str], Sink],
        *,
        max_request_rows: int,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        """`known`: whether there is a model of that name; `sink_of` a model's labels, blocking."""
        self._known = known
        self._sink_of = sink_of
        self._max_request_rows = max_request_rows
        self._wall = wall
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="labels")

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return {f"/{SERVICE}/SubmitLabels": UnaryHandler(self._submit_labels)}

    async def _submit_labels(self, raw: bytes, _: CallContext) -> bytes:
        request = pb.SubmitLabelsRequest()
        try:
            request.ParseFromString(raw)
        except DecodeError as error:
            raise InvalidRequestError(f"not a SubmitLabelsRequest: {error}") from error
        model = request.model_name
        if not self._known(model):
            raise NotFoundError(f"Request for unknown model: '{model}' is not found")
        if len(request.labels) > MAX_LABELS:
            raise InvalidRequestError(
                f"{len(request.labels):,} labels for model '{model}' exceed {MAX_LABELS:,}"
            )
        if request.event_time_ms < 0:
            raise InvalidRequestError(f"event_time_ms {request.event_time_ms} is before 1970")
        if request.labels:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writers, self._take, request)
        return pb.SubmitLabelsResponse(accepted=len(request.labels)).SerializeToString()

    def _take(self, request: pb.SubmitLabelsRequest) -> None:
        sink = self._sink_of(request.model_name)
        takes_text = sink.takes_text
        labels = []
        for index, label in enumerate(request.labels):
            labels.append(self._label(index, label))
            if takes_text is not None and takes_text != (labels[-1].text is not None):
                raise _wrong_type(request.model_name, index, labels[-1])
        try:
            sink.submit_labels(labels, request.event_time_ms or self._wall())
        except OSError as error:
            raise UnavailableError(
                f"labels of model '{request.model_name}' cannot be written: {error}"
            ) from error

    def _label(self, index: int, label: pb.Label) -> Label:
        where = f"label {index}"
        if not label.id:
            raise InvalidRequestError(f"{where} has no id")
        if len(label.id.encode()) > MAX_ID_BYTES:
            raise InvalidRequestError(f"{where}: its id is longer than {MAX_ID_BYTES:,} bytes")
        if label.row >= self._max_request_rows:
            raise InvalidRequestError(
                f"{where} (id {label.id!r}): row {label.row:,} is none, a request has at most "
                f"{self._max_request_rows:,}"
            )
        kind = label.WhichOneof("value")
        if kind == "number":
            if not math.isfinite(label.number):
                raise InvalidRequestError(
                    f"{where} (id {label.id!r}, row {label.row}): {label.number} is not a number"
                )
            if abs(label.number) > MAX_NUMBER:
                raise InvalidRequestError(
                    f"{where} (id {label.id!r}, row {label.row}): {label.number} is beyond float32, "
                    f"whose largest is {MAX_NUMBER:.6g}"
                )
            return Label(label.id, label.row, number=label.number)
        if kind == "text":
            if len(label.text.encode()) > MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    f"{where} (id {label.id!r}): its text is longer than {MAX_TEXT_BYTES:,} bytes"
                )
            return Label(label.id, label.row, text=label.text)
        raise InvalidRequestError(
            f"{where} (id {label.id!r}, row {label.row}) has neither number nor text"
        )


def _wrong_type(model: str, index: int, label: Label) -> InvalidRequestError:
    where = f"label {index} (id {label.id!r}, row {label.row})"
    if label.text is None:
        return InvalidRequestError(
            f"{where}: {label.number:g} is a number, and the classes of model '{model}' are texts"
        )
    text = label.text if len(label.text) <= 60 else f"{label.text[:59]}…"
    return InvalidRequestError(
        f"{where}: {text!r} is a text, and what model '{model}' answers is a number"
    )
