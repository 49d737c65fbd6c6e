"""The loop's clock of one model: event time where requests carry it, else the wall's.

From the first request with an `event_time` on, the clock is the latest event time seen, so that a
replay of last year goes through cooldowns and budgets as last year did. It never goes back, and
times more than a day ahead of the wall clock are not believed: one wrong timestamp must not stop
the loop for years. Labels and watermarks move the clock too once requests have set it going; alone
they do not, as labels often tell of long ago.

`seen` is called by executors and handlers, `watermark` and `reading` by the control loop.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_AHEAD_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """What the clock showed at one moment."""

    ms: int
    is_event_time: bool


class LoopClock:
    """Any thread may call any method."""

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._lock = threading.Lock()  # guards _latest
        self._latest: int | None = None

    def seen(self, event_time_ms: int) -> bool:
        """A request took place then; False: that is not believed."""
        latest = self._latest
        if latest is not None and event_time_ms <= latest:
            return True
        if event_time_ms > self._wall() + _MAX_AHEAD_MS:
            return False
        with self._lock:
            if self._latest is None or event_time_ms > self._latest:
                self._latest = event_time_ms
        return True

    def all_seen(self, event_times_ms: NDArray[np.int64]) -> None:
        """Requests took place then, some of which are not believed; negative: it does not say."""
        believed = event_times_ms[event_times_ms <= self._wall() + _MAX_AHEAD_MS]
        latest = int(believed.max(initial=-1))
        if latest >= 0:
            self.seen(latest)

    def label_seen(self, event_time_ms: int) -> None:
        """A label became known then."""
        if self._latest is not None:
            self.seen(event_time_ms)

    def watermark(self, event_time_ms: int) -> None:
        """No request of an earlier time will come any more."""
        if self._latest is not None:
            self.seen(event_time_ms)

    def believed(self, event_time_ms: int) -> int:
        """That time, or the wall's now where it lies more than a day ahead of it."""
        now = self._wall()
        return event_time_ms if event_time_ms <= now + _MAX_AHEAD_MS else now

    def reading(self) -> Reading:
        latest = self._latest
        return Reading(self._wall(), False) if latest is None else Reading(latest, True)
