"""What is known of a model's labels at a moment, as the metrics and the history have it. Values only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .quality import Quality

JOINED = "joined"  # the first label of its row
DUPLICATE = "duplicate"  # a row's label again
CORRECTED = "corrected"  # another one for a row that had one
UNKNOWN = "unknown"  # of no row that is remembered
SKIPPED = "left_out"  # of a row that is not in the share that is remembered
WRONG_TYPE = "wrong_type"  # text for a number, or the other way round
NO_ANSWER = "no_answer"  # the answer is no finite number, so nothing says how wrong it is
UNREAD = "unread"  # too many waited to be looked at
OUTCOMES = (JOINED, DUPLICATE, CORRECTED, UNKNOWN, SKIPPED, WRONG_TYPE, NO_ANSWER, UNREAD)


class LabelTally:
    """What became of the labels of one origin, a file of them for instance.

    Written by the control loop's thread, but for `unread`, which is whoever's offers the labels.
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)

    def __repr__(self) -> str:
        return f"LabelTally({ {name: count for name, count in self.outcomes.items() if count} })"

    @property
    def total(self) -> int:
        """Labels that have an outcome."""
        return sum(self.outcomes.values())


@dataclass(frozen=True)
class QualityEvent:
    """Something to tell of the champion."""

    kind: str  # quality, quality_cleared, labels_one_sided or labels_two_sided
    version: int
    reason: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class VersionLabels:
    """One version's labels. Coverage is the share of its remembered rows that ever got one."""

    quality: Quality
    answered: int  # rows that were remembered
    labelled: int

    @property
    def coverage(self) -> float:
        return self.labelled / self.answered if self.answered else math.nan


@dataclass(frozen=True)
class LabelStats:
    """Since the server started."""

    outcomes: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType(dict.fromkeys(OUTCOMES, 0))
    )
    waiting: int = 0  # offered and without an outcome yet
    young: int = 0  # joined, but not mature
    remembered: int = 0  # rows that a label would find
    forgotten: int = 0
    one_sided: bool = False
    lag_ms: tuple[float, float, float] | None = None  # p50, p90, p99; None: no label yet
    versions: tuple[VersionLabels, ...] = ()
    champion: int | None = None

    @property
    def quality(self) -> Quality | None:
        """The champion's."""
        for each in self.versions:
            if each.quality.version == self.champion:
                return each.quality
        return None
