"""What operators ask of a model's trainings; each is answered once, on the control loop's thread."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """A wish for a training; the answer is its id, or why it cannot be."""

    actor: str
    reason: str
    answer: Callable[[str | Exception], None]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of a cancellation; `text` is a sentence."""

    training_id: str  # empty: a request that no training had begun for
    text: str


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A wish that a training ends; the answer says what ended, or why nothing did."""

    actor: str
    reason: str
    training_id: str  # empty: whichever runs or waits
    answer: Callable[[Cancelled | Exception], None]
