"""What the parts of one model's loop share: its directory, its logs, its clock, its policy, its voice.

`now` is the loop's clock as the message at hand brought it, so that a decision depends on what was
observed and not on when a thread got round to it. Fields are changed on the control loop's thread
only; `post`, the logs, `clock` and `observed` may be used from any.
"""

import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.history import HISTORY_NAME

from ..config import ConfigError, ServerConfig, load_model_policy
from ..events import EventBus
from ..logs.label_log import LabelLog
from ..logs.traffic_log import TrafficLog
from .label_monitor import LabelMonitor
from .loop_clock import LoopClock
from .loop_tap import Observed

_log = logging.getLogger(__name__)

ACTOR = "trimtab"


class ModelContext:
    """One model's. `post(method, *arguments)` has the control loop call the method, in order;
    `wall` is the wall clock in milliseconds."""

    def __init__(
        self,
        directory: ModelDirectory,
        data: Path,
        config: ServerConfig,
        bus: EventBus,
        post: Callable[..., None],
        wall: Callable[[], int],
    ) -> None:
        self.name = directory.name
        self.directory = directory
        self.config = config
        self.policy = config.policy
        self.post = post
        self.wall = wall
        self.clock = LoopClock(wall)
        self.now = self.clock.reading()
        self.labels = LabelLog(data / "labels", config.traffic.fsync_ms, self.clock.believed)
        self.traffic: TrafficLog | None = None
        if config.traffic.enabled:
            self.traffic = TrafficLog(data / "traffic", config.traffic, self._on_log_problem)
        self.observed = Observed(self.clock, self.traffic)
        self.quality = LabelMonitor(self.policy.labels, self.policy.trigger.label_maturity_s)
        self._bus = bus
        self._policy_stamp: tuple[int, int] | None = None
        self._history_stamp: tuple[int, int] | None = None
        self._told = 0  # sequence of the last history entry that was told of

    def open(self) -> None:
        """Opens the logs, saying what they recovered; one that cannot be opened is done without."""
        self.read_policy()
        for what, log in (("traffic log", self.traffic), ("label log", self.labels)):
            if log is None:
                continue
            try:
                recovery = log.start()
            except OSError as error:
                reason = f"the {what} of model '{self.name}' cannot be opened: {error}"
                _log.error("%s; the model is served without it", reason)
                self.publish("log_failed", reason=reason)
                if log is self.traffic:
                    self.traffic = self.observed.log = None
            else:
                if recovery.rows or recovery.lost_bytes:
                    self.publish("recovered", reason=f"{what}: {recovery}")
        self.observed.expects_labels |= bool(self.labels.total_rows)
        entries = self.directory.history().entries
        self._told = entries[-1].sequence if entries else 0
        self._bus.follow(self.name, entries)
        self._history_stamp = _stamp(self.directory.path / HISTORY_NAME)

    def close(self) -> None:
        """Writes what the logs hold and closes them."""
        if self.traffic is not None:
            self.traffic.close()
        try:
            self.labels.close()
        except OSError:
            _log.exception("label log of model '%s': cannot be closed", self.name)

    def finish_logs(self) -> None:
        """Finishes both logs' files, so that a trainer reads all that was acknowledged so far."""
        if self.traffic is not None and not self.traffic.rotate():
            _log.warning("model '%s': not all of the traffic log could be written", self.name)
        try:
            self.labels.rotate()
        except OSError as error:
            _log.warning("model '%s': the label log cannot be finished: %s", self.name, error)

    def publish(
        self,
        kind: str,
        version: int = 0,
        *,
        reason: str,
        actor: str = ACTOR,
        evidence: Mapping[str, Any] | None = None,
        record: bool = False,
    ) -> None:
        """An event at the loop's time; `record` puts it into the model's history."""
        self._bus.publish(
            kind,
            self.name,
            version=version,
            actor=actor,
            reason=reason,
            evidence=evidence,
            event_time_ms=self.now.ms,
            record=record,
        )

    def tell_in_passing(self, kind: str, *, reason: str, evidence: Mapping[str, Any]) -> None:
        """An event for those who listen now; nothing keeps it."""
        self._bus.tell_in_passing(
            kind, self.name, reason=reason, evidence=evidence, event_time_ms=self.now.ms
        )

    def tell_changes(self) -> None:
        """Events for what is new in the history, whoever wrote it: us, a command, another process."""
        stamp = _stamp(self.directory.path / HISTORY_NAME)
        if stamp == self._history_stamp:
            return
        self._history_stamp = stamp
        entries = tuple(self.directory.history_since(self._told - 1))
        if not entries:  # a shorter one: another model in its place
            entries = self.directory.history().entries
        if entries and entries[-1].sequence < self._told:  # another model in its place
            self._told = 0
            self._bus.follow(self.name, ())
        for entry in entries:
            if entry.sequence <= self._told:
                continue
            self._told = entry.sequence
            self._bus.publish_entry(self.name, entry)

    def read_policy(self) -> None:
        """Follows trimtab.toml; a broken one changes nothing and is told of once."""
        path = self.directory.recipe_path
        stamp = _stamp(path)
        if stamp == self._policy_stamp:
            return
        self._policy_stamp = stamp
        self.observed.expects_labels |= self.has_recipe()
        try:
            self.policy = load_model_policy(path, self.config.policy)
            self.quality.follow(self.policy.labels, self.policy.trigger.label_maturity_s)
        except ConfigError as error:
            self.publish("load_failed", reason=f"the policy stays as it was: {error}")

    def has_recipe(self) -> bool:
        """Whether there is anything to train."""
        try:
            content = self.directory.recipe_path.read_bytes().decode("utf-8")
            return "recipe" in tomllib.loads(content)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return False

    def _on_log_problem(self, reason: str) -> None:
        """On the log's own thread."""
        if reason:
            self.post(self._tell_log, "log_failed", reason)
        else:
            self.post(self._tell_log, "log_recovered", "the traffic log is written again")

    def _tell_log(self, kind: str, reason: str) -> None:
        self.publish(kind, reason=reason)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file does; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
