"""The state of drift over time: one step per closed pane, with hysteresis.

    collecting → ok ↔ warning ↔ drift        (and any longer jump at once, if the panes agree)

A window is judged in the verdict of its worst feature. The state moves only once
`hysteresis_panes` panes in a row were all above it, or all below; it then moves to the verdict that
all of them bear out: up to their lowest, down to their highest. Features that broke are followed
one by one in the same way and do not move the state. Pure values; the control loop keeps one
`DriftState` per champion.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .drift_report import DRIFT, OK, WARNING

COLLECTING = "collecting"
_LEVEL = {COLLECTING: 0, OK: 0, WARNING: 1, DRIFT: 2}
_NAME = {0: OK, 1: WARNING, 2: DRIFT}


@dataclass(frozen=True, slots=True)
class DriftState:
    """Where a champion stands, and how long the panes have disagreed with that."""

    name: str = COLLECTING
    streak: int = 0  # panes in a row on one side of the state: above (> 0) or below (< 0)
    agreed: int = 0  # the level that all panes of the streak bear out
    broken: frozenset[str] = frozenset()  # features with an open data-quality alarm
    broken_streaks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def after_pane(
        self, verdict: str, broken: Collection[str], hysteresis_panes: int
    ) -> "DriftState":
        """The state after a judged window with that verdict and those broken features."""
        level, seen = _LEVEL[self.name], _LEVEL[verdict]
        name, streak, agreed = (OK if self.name == COLLECTING else self.name), 0, level
        if seen > level:
            streak = max(self.streak, 0) + 1
            agreed = seen if streak == 1 else min(self.agreed, seen)
        elif seen < level:
            streak = min(self.streak, 0) - 1
            agreed = seen if streak == -1 else max(self.agreed, seen)
        if abs(streak) >= hysteresis_panes:
            name, streak = _NAME[agreed], 0
        streaks: dict[str, int] = {}
        alarms = set(self.broken)
        for feature in {*broken, *self.broken, *self.broken_streaks}:
            against = (feature in broken) != (feature in self.broken)
            count = self.broken_streaks.get(feature, 0) + 1 if against else 0
            if count >= hysteresis_panes:
                alarms ^= {feature}
            elif count:
                streaks[feature] = count
        return DriftState(name, streak, agreed, frozenset(alarms), MappingProxyType(streaks))
