"""Calls something about a model after a while; a later alarm for the same model replaces the first."""

import threading
from collections.abc import Callable


class AlarmClock:
    """Any thread. `ring` is called on a thread of the alarm's own, and must not block for long."""

    def __init__(self, ring: Callable[[str], object]) -> None:
        self._ring = ring
        self._lock = threading.Lock()  # protects the fields below
        self._alarms: dict[str, threading.Timer] = {}
        self._stopped = False

    def __repr__(self) -> str:
        return f"<AlarmClock {sorted(self._alarms)}>"

    def set(self, name: str, delay_s: float) -> None:
        with self._lock:
            if self._stopped:
                return
            if (before := self._alarms.pop(name, None)) is not None:
                before.cancel()
            alarm = threading.Timer(delay_s, self._go_off, [name])
            alarm.name = f"alarm {name}"
            alarm.daemon = True
            self._alarms[name] = alarm
            alarm.start()

    def stop(self) -> None:
        """Nothing goes off any more that has not begun to."""
        with self._lock:
            self._stopped = True
            alarms = list(self._alarms.values())
            self._alarms.clear()
        for alarm in alarms:
            alarm.cancel()

    def _go_off(self, name: str) -> None:
        with self._lock:
            if self._alarms.get(name) is threading.current_thread():
                del self._alarms[name]
        self._ring(name)
