"""A model's directory for files of labels: each is read once, and its labels submitted as by RPC.

A file is taken up when it has stood still for `STILL_S`: renamed into the directory, or written
and closed. Names that begin with a dot or end in .tmp or .part are left alone, so who writes slowly
writes under such a name and renames. One file after another, the oldest first, one at a time in the
whole server. It ends in `done/`, after its labels are on the disk, or in `failed/` beside a text that
says why, and in one event with its counts. A server that ends in between reads the file once more:
the same labels again are duplicates, which change nothing but the number of labels in the log.

Whoever may write here is not trusted with more than labels: a link is not followed, what is read is
read by a child process (label_run.py), and what that hands over is what a client might send.

Everything runs on the control loop's thread, but `_take` and `_ended`, which are the run's.
"""

import itertools
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..logs.label_log import Label
from .label_run import LabelCounts, LabelParts, LabelRun
from .label_stats import (
    CORRECTED,
    DUPLICATE,
    JOINED,
    NO_ANSWER,
    SKIPPED,
    UNKNOWN,
    UNREAD,
    WRONG_TYPE,
    LabelTally,
)
from .model_context import ModelContext
from .training_run import TrainingResult

_log = logging.getLogger(__name__)

STILL_S = 5.0
DONE, FAILED = "done", "failed"
_UNFINISHED = (".tmp", ".part")
_MAX_ENTRIES = 10_000  # of the directory that are looked at
_TOGETHER = 10_000  # labels that are submitted at once: a frame of the log has a price of its own
_FIRST_RETRY_S, _MAX_RETRY_S = 60.0, 3600.0  # where the log of labels cannot be written
_END_S = 10.0

_OUTCOMES = {
    JOINED: "of rows that had none",
    CORRECTED: "corrections",
    DUPLICATE: "told before",
    UNKNOWN: "of rows that are not remembered",
    SKIPPED: "of rows outside of remember_share",
    WRONG_TYPE: "of the wrong type",
    NO_ANSWER: "of rows without an answer",
    UNREAD: "not looked at",
}


class Run(Protocol):
    """A child that reads a file, as LabelRun is one."""

    @property
    def counts(self) -> LabelCounts: ...
    @property
    def taken(self) -> int: ...
    @property
    def error(self) -> Exception | None: ...
    def start(self) -> None: ...
    def kill(self, reason: str) -> None: ...
    def join(self, timeout_s: float | None = None) -> bool: ...


Submit = Callable[[Sequence[tuple[Sequence[Label], int]], LabelTally], None]
"""Returns once the labels are in the log; OSError: none of them is."""


class DropTurns:
    """Whose turn it is to read a file, among the models of a server: who came first."""

    def __init__(self) -> None:
        self._waiting: deque[LabelDrop] = deque()

    def has(self, drop: "LabelDrop") -> bool:
        """Whether it is this one's, who waits for it from now on."""
        if drop not in self._waiting:
            self._waiting.append(drop)
        return self._waiting[0] is drop

    def leave(self, drop: "LabelDrop") -> None:
        if drop in self._waiting:
            self._waiting.remove(drop)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What a file is, as far as can be told without reading it."""

    inode: int
    mode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_Stamp":
        return cls(found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns)


@dataclass(slots=True)
class _Taking:
    """The file that is being read."""

    path: Path
    stamp: _Stamp
    tally: LabelTally
    run: Run | None = None
    submitted: int = 0  # labels that are in the log
    pending: list[tuple[Sequence[Label], int]] | None = None
    result: TrainingResult | None = None
    log_failed: bool = False


class LabelDrop:
    """One model's; see the module."""

    def __init__(
        self,
        context: ModelContext,
        submit: Submit,
        turns: DropTurns,
        *,
        spawn: Callable[..., Run] = LabelRun,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._submit = submit
        self._turns = turns
        self._spawn = spawn
        self._monotonic = monotonic
        self._seen: dict[str, tuple[_Stamp, float]] = {}  # and since when it stands still
        self._settled: dict[str, _Stamp] = {}  # told of, and still there
        self._taking: _Taking | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._told = ""  # what is wrong with the directory
        self._closing = False
        self._looked = threading.Event()  # the control loop has seen what was submitted

    def __repr__(self) -> str:
        return f"LabelDrop({self._context.name}, {self.busy() or 'no file'})"

    @property
    def idle(self) -> bool:
        return self._taking is None

    def busy(self) -> str:
        """What is under way, in words; empty: nothing."""
        return f"labels of {self._name(self._taking.path)}" if self._taking is not None else ""

    def tick(self) -> None:
        """Once a second, after the labels so far were looked at."""
        if self._taking is not None:
            self._look(self._taking)
            return
        found = self._next()
        if found is None:
            self._turns.leave(self)
        elif self._turns.has(self):
            self._begin(*found)

    def close(self) -> None:
        """Ends what is read; it is read again by the next server, unless all of it was taken."""
        self._closing = True
        self._looked.set()
        if (taking := self._taking) is not None:
            if taking.run is not None:
                taking.run.kill("was ended: the server stopped")
                taking.run.join(_END_S)
            if taking.result is not None and taking.result.outcome == "published":
                self._succeed(taking)
        self._taking = None
        self._turns.leave(self)

    # -- which file

    def _folder(self) -> Path | None:
        name = self._context.policy.labels.drop_dir
        return self._context.directory.path / name if name else None

    def _name(self, path: Path) -> str:
        """As people know it."""
        folder = self._context.policy.labels.drop_dir
        shown = path.name if path.name.isprintable() else ascii(path.name)
        return f"{folder}/{shown}"

    def _next(self) -> tuple[Path, _Stamp] | None:
        """The oldest file that stands still and was not dealt with."""
        folder = self._folder()
        now = self._monotonic()
        entries: dict[str, _Stamp] = {}
        if folder is not None:
            try:
                entries = _entries(folder)
                self._context.observed.expects_labels = True  # answers are remembered for them
                self._told = ""
            except (FileNotFoundError, NotADirectoryError):
                self._told = ""  # who wants it makes it
            except OSError as error:
                self._complain(f"the label files of model '{self._context.name}': {error}")
        seen = {}
        for name, stamp in entries.items():
            was, since = self._seen.get(name, (None, now))
            seen[name] = (stamp, since if was == stamp else now)
        self._seen = seen
        self._settled = {n: s for n, s in self._settled.items() if entries.get(n) == s}
        if folder is None or now < self._retry_at:
            return None
        ready = [
            (stamp.changed_ns, name)
            for name, (stamp, since) in seen.items()
            if now - since >= STILL_S and name not in self._settled
        ]
        if not ready:
            return None
        _, name = min(ready)
        return folder / name, seen[name][0]

    def _complain(self, reason: str) -> None:
        """About the directory, once."""
        if self._told != reason:
            self._told = reason
            self._context.publish("label_file_failed", reason=reason)

    # -- a file

    def _begin(self, path: Path, stamp: _Stamp) -> None:
        taking = _Taking(path, stamp, LabelTally())
        wrong = _no_file(stamp)
        try:
            for name in (DONE, FAILED):
                _make_folder(path.parent / name)
        except OSError as error:
            wrong = wrong or f"cannot be put away afterwards: {error}"
            self._refuse(taking, wrong, move=False)
            return
        if wrong:
            self._refuse(taking, wrong, move=not stat.S_ISDIR(stamp.mode))
            return
        context = self._context
        takes_text = context.quality.takes_text
        self._taking = taking
        taking.run = self._spawn(
            path,
            {None: "any", True: "text", False: "number"}[takes_text],
            context.config.batching.max_request_rows,
            lambda parts: self._take(taking, parts),
            lambda result: self._ended(taking, result),
        )
        taking.run.start()

    def _take(self, taking: _Taking, parts: LabelParts) -> None:
        """On the run's thread: gathers labels, submits many at once."""
        now_ms = self._context.wall()
        pending = taking.pending = taking.pending or []
        pending += [(labels, now_ms if at is None else at) for labels, at in parts]
        if sum(len(labels) for labels, _ in pending) >= _TOGETHER:
            self._hand_in(taking)

    def _hand_in(self, taking: _Taking) -> None:
        """On the run's thread: returns once the control loop has looked at these labels."""
        parts, taking.pending = taking.pending or [], None
        if not parts:
            return
        try:
            self._submit(parts, taking.tally)
        except OSError as error:
            taking.log_failed = True
            raise OSError(f"the labels cannot be written: {error}") from error
        taking.submitted += sum(len(labels) for labels, _ in parts)
        self._looked.clear()
        if not self._closing:
            self._context.post(self._looked.set)
            self._looked.wait()

    def _ended(self, taking: _Taking, result: TrainingResult) -> None:
        """On the run's thread."""
        try:
            if result.outcome == "published":
                self._hand_in(taking)
                self._context.labels.sync()
        except OSError as error:
            taking.log_failed = True
            result = TrainingResult("failed", str(error))
        taking.result = result
        self._context.post(self._look, taking)

    def _look(self, taking: _Taking) -> None:
        """Whether the file is read, and each of its labels has an outcome."""
        if taking is not self._taking or taking.result is None:
            return
        if taking.tally.total < taking.submitted:
            return  # some may have overtaken their answers
        assert taking.run is not None
        taking.run.join(_END_S)
        self._taking = None
        self._turns.leave(self)
        if taking.result.outcome == "published":
            self._retry_s = 0.0
            self._succeed(taking)
        elif taking.log_failed:
            self._retry_s = min(max(_FIRST_RETRY_S, 2 * self._retry_s), _MAX_RETRY_S)
            self._retry_at = self._monotonic() + self._retry_s
            self._complain(
                f"{self._name(taking.path)} stays where it is, and is tried again: "
                f"{taking.result.reason}"
            )
        else:
            self._refuse(taking, taking.result.reason)

    def _succeed(self, taking: _Taking) -> None:
        assert taking.run is not None
        counts = taking.run.counts
        told = [f"{taking.submitted:,} labels taken"]
        if self._context.policy.labels.watch:
            told += [
                f"{count:,} {_OUTCOMES[outcome]}"
                for outcome, count in taking.tally.outcomes.items()
                if count
            ]
        if counts.unlabelled:
            told.append(f"{counts.unlabelled:,} rows had none yet")
        if counts.repeated:
            told.append(f"{counts.repeated:,} rows were in it more than once")
        where, problem = self._move(taking, DONE)
        if problem:
            told.append(problem)
        self._context.publish(
            "label_file_taken",
            reason=f"{self._name(taking.path)}: {', '.join(told)}",
            evidence=self._evidence(taking, counts, where),
        )

    def _refuse(self, taking: _Taking, reason: str, *, move: bool = True) -> None:
        counts = taking.run.counts if taking.run is not None else LabelCounts()
        where = None
        if taking.submitted:
            reason += f"; {taking.submitted:,} labels had been taken before"
        if not move:
            self._settled[taking.path.name] = taking.stamp
            self._turns.leave(self)
        else:
            where, problem = self._move(taking, FAILED)
            if where is not None:
                _explain(where, reason, counts)
            if problem:
                reason += f"; {problem}"
            self._turns.leave(self)
        self._context.publish(
            "label_file_failed",
            reason=f"{self._name(taking.path)}: {reason}",
            evidence=self._evidence(taking, counts, where),
            record=True,
        )

    def _evidence(
        self, taking: _Taking, counts: LabelCounts, where: Path | None
    ) -> Mapping[str, Any]:
        return {
            "file": self._name(taking.path),
            "moved_to": f"{where.parent.name}/{where.name}" if where is not None else "",
            "rows": counts.rows,
            "labels": taking.submitted,
            "unlabelled": counts.unlabelled,
            "unreadable": counts.unreadable,
            "repeated": counts.repeated,
            "problems": list(counts.problems),
            "outcomes": {name: count for name, count in taking.tally.outcomes.items() if count},
        }

    def _move(self, taking: _Taking, folder: str) -> tuple[Path | None, str]:
        """Where the file was put, or why it was not: then it is not read again while it stands still."""
        path = taking.path
        try:
            if _Stamp.of(path.lstat()) != taking.stamp:
                return None, "there is another file of that name by now"
            target = _free(path.parent / folder / path.name)
            path.rename(target)
        except OSError as error:
            self._settled[path.name] = taking.stamp
            return None, f"it cannot be put into {folder}/: {error}"
        return target, ""


def _entries(folder: Path) -> dict[str, _Stamp]:
    """What lies in the directory and is no business of ours but to be read."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MAX_ENTRIES):
            name = entry.name
            if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if name not in (DONE, FAILED):
                found[name] = _Stamp.of(status)
    return found


def _no_file(stamp: _Stamp) -> str:
    """Why it cannot be one of labels, by its kind."""
    if stat.S_ISLNK(stamp.mode):
        return "is a symbolic link, which is not followed"
    if stat.S_ISDIR(stamp.mode):
        return "is a directory; files are looked for in the directory itself"
    return "" if stat.S_ISREG(stamp.mode) else "is no file"


def _make_folder(folder: Path) -> None:
    """OSError where it cannot be made, or is a link to somewhere else."""
    folder.mkdir(exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(f"{folder.name}/ is a symbolic link")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder.name}/ cannot be written to")


def _free(target: Path) -> Path:
    """A name there that nothing has."""
    stem, suffix, number = target.stem, target.suffix, 1
    while os.path.lexists(target):
        number += 1
        target = target.with_name(f"{stem}.{number}{suffix}")
    return target


def _explain(target: Path, reason: str, counts: LabelCounts) -> None:
    """Writes beside a file why it was not taken."""
    lines = [reason, *([""] if counts.problems else []), *counts.problems]
    if counts.unreadable > len(counts.problems):
        lines.append(f"… and {counts.unreadable - len(counts.problems):,} rows more")
    try:
        with target.with_name(f"{target.name}.error.txt").open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        _log.error("%s: cannot say why it was not taken: %s", target, error)
