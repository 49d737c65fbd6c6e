"""What follows from an endpoint's reply: done, again after a while, give the message up, or stop. Pure.

    2xx                   delivered
    410                   the receiver is gone for good: nothing is sent to it until the next start
    400, 413, 415, 422    it will not have this message: after a few attempts the next one has its turn
    429, 503              again, not before what Retry-After says
    anything else         again: another status, a redirect, no reply in time, no connection

Waits double from one second to ten minutes, each shortened by up to half at random, so that receivers
that come back are not met by everybody at once.
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

_FIRST_S, _LONGEST_S = 1.0, 600.0
_LONGEST_ASKED_S = 3600.0  # that Retry-After may ask for
_REFUSALS = (400, 413, 415, 422)
_REFUSED_AFTER = 5  # attempts


@dataclass(frozen=True, slots=True)
class Reply:
    """What an attempt brought."""

    status: int = 0  # 0: no reply
    retry_after: str = ""  # the header
    error: str = ""  # why there is no reply
    text: str = ""  # how the reply's body begins

    def __str__(self) -> str:
        return f"HTTP {self.status}" if self.status else self.error


@dataclass(frozen=True, slots=True)
class Decision:
    """`wait_s` until the next attempt."""

    action: Literal["delivered", "again", "give up", "stop"]
    wait_s: float = 0.0


def after(reply: Reply, attempts: int, now_s: float, draw: float) -> Decision:
    """`attempts` of this message so far, `now_s` by the wall clock, `draw` from [0, 1)."""
    if 200 <= reply.status < 300:
        return Decision("delivered")
    if reply.status == 410:
        return Decision("stop")
    if reply.status in _REFUSALS and attempts >= _REFUSED_AFTER:
        return Decision("give up")
    longest_s = min(_LONGEST_S, _FIRST_S * 2.0 ** min(attempts - 1, 30))
    wait_s = longest_s * (1 - draw / 2)
    if reply.status in (429, 503):
        wait_s = max(wait_s, min(_asked_s(reply.retry_after, now_s), _LONGEST_ASKED_S))
    return Decision("again", wait_s)


def _asked_s(retry_after: str, now_s: float) -> float:
    """Seconds, or a date of HTTP; 0 for what is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return 0.0
