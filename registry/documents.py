"""JSON documents: written canonically, read with checks that name the key.

Canonical means that equal values give equal bytes (sorted keys, no white space), so that a
document can be hashed, read and hashed again. JSON has no NaN and no infinity: they are written
as null, since a bad figure in a piece of evidence must never stop a rollback.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeGuard


def encode(value: object) -> bytes:
    """The canonical form. Numpy scalars are numbers; TypeError for what JSON cannot express."""
    text = json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # Half a surrogate pair (from a command line that is not UTF-8) becomes its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def encode_readable(value: object) -> bytes:
    """The same document, indented for people, keys in the given order, with a final newline."""
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _plain(value.item())  # a numpy scalar
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


class Document:
    """A JSON object whose values are read by type.

    Every method raises ValueError, naming the key by its path ("signature.inputs[0].shape"), if
    the key is missing or holds something else.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            # Not a TypeError: the document is at fault, not the caller.
            raise ValueError(f"{path or 'the document'} is not an object")  # noqa: TRY004
        self._value: dict[str, Any] = value
        self._path = path

    @classmethod
    def parse(cls, text: str | bytes) -> "Document":
        try:
            value = json.loads(text)
        except RecursionError:
            raise ValueError("the document is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        return cls(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def text(self, key: str) -> str:
        value = self._get(key)
        return value if isinstance(value, str) else self._refuse(key, "a string")

    def boolean(self, key: str) -> bool:
        value = self._get(key)
        return value if isinstance(value, bool) else self._refuse(key, "true or false")

    def integer(self, key: str) -> int:
        value = self._get(key)
        return value if _is_integer(value) else self._refuse(key, "an integer")

    def optional_integer(self, key: str) -> int | None:
        return None if self._get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A number; null is NaN, since that is how NaN is written."""
        value = self._get(key)
        if value is None:
            return math.nan
        if isinstance(value, float) or _is_integer(value):
            return float(value)
        self._refuse(key, "a number")

    def nested(self, key: str) -> "Document":
        return Document(self._get(key), self._name(key))

    def mapping(self, key: str) -> dict[str, Any]:
        """An object as it is."""
        return self.nested(key)._value

    def sequence(self, key: str) -> list["Document"]:
        return [Document(item, f"{self._name(key)}[{i}]") for i, item in enumerate(self._list(key))]

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            self._refuse(key, "a list of strings")
        return tuple(values)

    def integers(self, key: str) -> tuple[int, ...]:
        values = self._list(key)
        if not all(_is_integer(value) for value in values):
            self._refuse(key, "a list of integers")
        return tuple(values)

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        return value if isinstance(value, list) else self._refuse(key, "a list")

    def _get(self, key: str) -> Any:
        if key not in self._value:
            raise ValueError(f"{self._name(key)} is missing")
        return self._value[key]

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _refuse(self, key: str, kind: str) -> NoReturn:
        raise ValueError(f"{self._name(key)} is not {kind}")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
