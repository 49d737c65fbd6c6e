"""How wrong a prediction was, in the one way that training and serving have of telling it.

A version's reference holds the losses of rows that it had not learned; live ones are held against
them, so both must be the same figure. Lower is better. Pure; any thread may do anything.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ABSOLUTE_ERROR = "absolute_error"  # of a regression
LOG_LOSS = "log_loss"  # of a classification, by the probability given to the label's class
ERROR = (
    "error"  # of a classification that gives labels only: 1 where it is another than the label's
)

# A probability is taken for this at least: a single row that a model was sure of, and wrong, would
# outweigh a thousand others otherwise.
SMALLEST_PROBABILITY = 1e-4

_Floats = NDArray[np.float64]


def absolute_error(predicted: NDArray[Any], truth: NDArray[Any]) -> _Floats:
    """Per row."""
    return np.abs(predicted.astype(np.float64) - truth.astype(np.float64))


def log_loss(given: NDArray[Any]) -> _Floats:
    """Per row, of the probability that was given to the label's class; 0 for an unknown class."""
    probability = np.clip(given.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
    return np.asarray(-np.log(probability), np.float64)
