"""Where a stream of events ended, as its client keeps it for the next one.

A token says which event of which server's run came last, and how far the history of every model was
told by then. The first half is exact while that server runs and keeps its newest events; the second
holds across restarts, since histories last. A history is known again by the hash of the entry.

To a client it is a text without meaning. It is no secret and no credential: whoever makes one up
sees what they could see anyway.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ...errors import InvalidRequestError
from ...events import HistoryMark

_FORMAT = 1
_HASH_DIGITS = 12  # enough to tell one history from another

_Kind = TypeVar("_Kind")


class Place(NamedTuple):
    """An entry of a history; 0: before the first."""

    sequence: int
    hash: str  # the first digits

    @classmethod
    def of(cls, mark: HistoryMark) -> "Place":
        return cls(mark.sequence, mark.hash[:_HASH_DIGITS])

    def is_at(self, sequence: int, hash: str) -> bool:
        """Whether that is the entry."""
        return (sequence, hash[: len(self.hash)]) == self


@dataclass(frozen=True)
class ResumeToken:
    """See the module."""

    model: str  # whose events the stream has; empty: of every model
    run: str  # of the server
    sequence: int  # of the last event in that run
    places: Mapping[str, Place]  # how far each model's history was told

    def encode(self) -> str:
        parts = [_FORMAT, self.model, self.run, self.sequence, self.places]
        text = json.dumps(parts, separators=(",", ":"), sort_keys=True)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, model: str) -> "ResumeToken":
        """The token of a stream of that model's events. InvalidRequestError."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            format_, *parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            of_model, run, sequence, places = parts
            token = cls(
                model=_of(str, of_model),
                run=_of(str, run),
                sequence=_of(int, sequence),
                places={
                    name: Place(_of(int, place[0]), _of(str, place[1]))
                    for name, place in _of(dict, places).items()
                },
            )
            if format_ != _FORMAT or token.sequence < 0:
                raise ValueError
        except (ValueError, TypeError, LookupError, binascii.Error, RecursionError):
            raise InvalidRequestError(
                "resume_token is none that this service gives: send the one of the last event as "
                "it is, or none"
            ) from None
        if token.model != model:
            of = f"model '{token.model}'" if token.model else "all models"
            wanted = f"model '{model}'" if model else "all models"
            raise InvalidRequestError(f"resume_token is of the events of {of}, not of {wanted}")
        return token


def _of(kind: type[_Kind], value: object) -> _Kind:
    if type(value) is not kind:
        raise TypeError
    return value
