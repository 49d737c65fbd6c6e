"""One child process that reads a file of labels, and the labels as it hands them over.

The child (`python -m trimtab.trainer labels FILE`) has Polars and a limit of memory, so the server needs
neither the one nor any trust in the file. It is run and ended as a training is (training_run.py). It
checks the whole file first and tells what it counted, then writes its labels to standard output, a
thousand a line. `take` is called for each line on the run's thread and may block: the pipe fills up
then, and the child waits. An error that `take` raises ends the child, and is kept as `error`.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TrainingConfig
from ..logs.label_log import Label
from .training_run import TrainingResult, TrainingRun

MEMORY_MB = 2048  # of address space, of which Polars takes half before it reads anything
_TIMEOUT_S = 3600.0

LabelParts = Sequence[tuple[Sequence[Label], int | None]]
"""Labels in their order, and when each of them became known; None: now."""


@dataclass(frozen=True)
class LabelCounts:
    """What a file holds. `labels` of its rows can be taken."""

    rows: int = 0
    labels: int = 0
    unlabelled: int = 0  # rows without a label: nobody knows it yet
    unreadable: int = 0
    repeated: int = 0  # labels of a row that another label of the file names as well
    problems: tuple[str, ...] = ()  # of the first unreadable rows

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "LabelCounts":
        """KeyError, TypeError or ValueError where the child said something else."""
        numbers = ("rows", "labels", "unlabelled", "unreadable", "repeated")
        return cls(
            **{name: int(said[name]) for name in numbers},
            problems=tuple(str(problem) for problem in said["problems"]),
        )


class LabelRun(TrainingRun):
    """See the module. `taken`, `counts` and `error` are final as `on_finished` is called."""

    def __init__(
        self,
        file: Path,
        wanted: str,
        max_request_rows: int,
        take: Callable[[LabelParts], None],
        on_finished: Callable[[TrainingResult], None],
        *,
        nice: int = 10,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        """`wanted`: number, text or any."""
        super().__init__(
            [
                "labels",
                f"--wanted={wanted}",
                f"--max-request-rows={max_request_rows}",
                "--exit-with-parent",
                "--",
                str(file),
            ],
            TrainingConfig(timeout_s=_TIMEOUT_S, memory_mb=memory_mb, nice=nice, threads=1),
            lambda result: on_finished(self._judged(result)),
        )
        self._memory_mb = memory_mb
        self._take = take
        self.counts = LabelCounts()
        self.taken = 0
        self.error: Exception | None = None

    def _on_line(self, line: str) -> None:
        try:
            message = json.loads(line)
            if "counts" in message:
                self.counts = LabelCounts.of(message["counts"])
                return
            parts = _parts(message["labels"]) if "labels" in message else None
        except (ValueError, KeyError, TypeError):
            parts = None
        if parts is None:
            super()._on_line(line)
        elif self.error is None:
            try:
                self._take(parts)
                self.taken += sum(len(labels) for labels, _ in parts)
            except Exception as error:  # noqa: BLE001  whoever runs it asks for it
                self.error = error
                self.kill(f"was ended: {error}")

    def _judged(self, result: TrainingResult) -> TrainingResult:
        if self.error is not None:
            return dataclasses.replace(result, outcome="failed", reason=str(self.error))
        if result.outcome != "published":
            reason = result.reason.removeprefix("the trainer ")
            said = " ".join((reason, *self.tail))
            if "memory allocation of" in said or "ran out of memory" in said:
                reason = f"to read it takes more than {self._memory_mb:,} MiB of memory"
            elif "SIGALRM" in reason:
                reason = "no row of it could be read for a minute"
            return dataclasses.replace(result, outcome="failed", reason=reason)
        if self.taken != self.counts.labels:
            reason = f"{self.taken:,} of its {self.counts.labels:,} labels were handed over"
            return dataclasses.replace(result, outcome="failed", reason=reason)
        return result


def _parts(columns: Mapping[str, Any]) -> LabelParts:
    """One line's labels; neighbours that became known at one time go together."""
    values = columns["label"]
    is_text = any(isinstance(value, str) for value in values)
    labels = [
        Label(str(id_), int(row), text=value)
        if is_text
        else Label(str(id_), int(row), float(value))
        for id_, row, value in zip(columns["id"], columns["row"], values, strict=True)
    ]
    if "time" not in columns:
        return [(labels, None)]
    told = zip(labels, columns["time"], strict=True)
    return [
        ([label for label, _ in together], int(time_ms))
        for time_ms, together in itertools.groupby(told, key=lambda each: each[1])
    ]
