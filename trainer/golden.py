"""Golden rows: inputs and the outputs that the model gave for them when it was published.

A server replays them whenever it loads the version: another release of onnxruntime that computes
something else is noticed before it answers anybody. The file is an npz without pickles, keys
`input/<name>` and `output/<name>`; strings are fixed-width unicode, hence rows whose strings are
very long or end in NUL (which numpy would cut off) are not taken.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .export import OnnxModel

ROWS = 256
_LONGEST = 256  # characters


def golden_rows(
    model: OnnxModel, inputs: dict[str, NDArray[Any]], rows: int = ROWS
) -> dict[str, NDArray[Any]]:
    """The arrays of the file: `rows` of the given inputs, evenly spaced, and the model's outputs."""
    total = len(next(iter(inputs.values())))
    fit = np.ones(total, dtype=bool)
    for values in inputs.values():
        if values.dtype == object:
            fit &= [all(_storable(text) for text in row) for row in values]
    usable = np.flatnonzero(fit)
    chosen = usable[np.linspace(0, len(usable) - 1, min(rows, len(usable))).astype(int)]
    some = {name: values[chosen] for name, values in inputs.items()}
    found = {f"input/{name}": _plain(values) for name, values in some.items()}
    found |= {f"output/{name}": _plain(values) for name, values in model.run(some).items()}
    return found


def save_golden(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _storable(text: str) -> bool:
    return len(text) <= _LONGEST and not text.endswith("\0")


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.str_) if values.dtype == object else values
