"""Arrays and a JSON header in one npz file: written the same for the same content, read without pickle.

What is read is checked field by field before it is used, and every complaint is one sentence that
names the file, in the kind of error that the format at hand has. Values only; any thread.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes one file; OSError if it cannot."""
    text = json.dumps(header, ensure_ascii=False).encode()
    with Path(path).open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]  # numpy's stub takes **arrays for allow_pickle


class NpzFile:
    """One file's content; `error` is raised for any that `write` did not write. OSError."""

    def __init__(self, path: Path, error: type[Exception]) -> None:
        self._path = Path(path)
        self._error = error
        self._arrays: Mapping[str, NDArray[Any]] = {}
        content = self._path.read_bytes()
        try:
            file = np.load(io.BytesIO(content), allow_pickle=False)
            self._arrays = {key: file[key] for key in getattr(file, "files", ())}
        except Exception as failure:  # noqa: BLE001  numpy and zipfile raise a dozen kinds
            self.fail(f"not a readable npz file: {failure}")
        try:
            self.header = json.loads(self.array("header", np.uint8).tobytes())
        except ValueError as failure:
            self.fail(f"its header is not JSON: {failure}")

    def format(self, *known: int) -> int:
        """The format's number, if it is one of those."""
        number: int = self.field(self.header, "format", int)
        if number not in known:
            self.fail(f"its format is {number}, this version reads {' and '.join(map(str, known))}")
        return number

    def array(
        self, key: str, dtype: type[np.generic], shape: tuple[int | None, ...] = (None,)
    ) -> NDArray[Any]:
        """An array of that type and shape; None: of any length."""
        array = self._arrays.get(key)
        if not isinstance(array, np.ndarray):  # numpy hands out what is no array as bytes
            self.fail(f"array {key!r} is missing")
        if array.dtype != dtype:
            self.fail(f"array {key!r} is {array.dtype}, expected {np.dtype(dtype)}")
        fits = len(array.shape) == len(shape) and all(
            expected is None or length == expected
            for length, expected in zip(array.shape, shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if length is None else str(length) for length in shape)
            expected += "," if len(shape) == 1 else ""
            self.fail(f"array {key!r} has shape {array.shape}, expected ({expected})")
        return array

    def lengths(self, key: str, number: int) -> list[int]:
        """That many lengths of pieces, none of them negative."""
        lengths = self.array(key, np.int64, (number,))
        if (lengths < 0).any():
            self.fail(f"array {key!r} has a negative length")
        return [int(length) for length in lengths]

    def field(self, entry: object, key: str, kind: type) -> Any:
        """A value of the header, or of an object in it."""
        if not isinstance(entry, dict) or key not in entry:
            self.fail(f"its header lacks {key!r}")
        if type(entry[key]) is not kind:
            self.fail(f"header key {key!r} is {type(entry[key]).__name__}, not {kind.__name__}")
        return entry[key]

    def strings(self, entry: object, key: str, what: str) -> list[str]:
        """A list of strings in the header."""
        names: list[str] = self.field(entry, key, list)
        if not all(isinstance(name, str) for name in names):
            self.fail(f"{what} is not a string")
        return names

    def fail(self, what: str) -> NoReturn:
        raise self._error(f"{self._path}: {what}") from None
