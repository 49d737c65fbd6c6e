"""Watching a directory of models: which of them look different from before.

The file system's notifications only wake the watcher; what changed is found by looking. Every model
has a fingerprint (names, sizes and times of what matters in it), and a model is named when its
fingerprint is another one. A lost notification therefore costs a delay, never a version: the
watcher looks every `rescan_ms` anyway, and lives on that alone where there are no notifications
(another host's changes of a network file system). Looking at every file of every version costs some
20 µs a file, so most of those looks are at the models' own directories only, where state.json is and
where versions come and go; a file that is overwritten in place is found by every tenth.

Notifications come from watchfiles' documented Rust interface and not from its `awatch`, which
begins to listen too late (after the first look) and gives no time-out while traffic is logged.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from .directory import ModelDirectory, Registry
from .history import HISTORY_NAME

_logger = logging.getLogger(__name__)

_DEBOUNCE_MS = 100  # a burst of notifications is gathered for so long at most
_QUIET_MS = 50  # and is over when nothing comes for so long

_DEEP_LOOK = 10  # every so many looks that nothing gave rise to are at all files

_Contents = frozenset[tuple[str, int, int, int]]  # path, inode, size, time of change in ns
_Fingerprint = tuple[_Contents, _Contents]  # of the model's own directory, of its versions'


async def watch(
    models_dir: Path, *, stop: asyncio.Event | None = None, rescan_ms: int = 1000
) -> AsyncIterator[set[str]]:
    """Yields the names of the models that changed, came or went, until `stop` is set.

    The first set names every model that is there, so a consumer that brings the named models to
    what their directories ask for needs no other start and misses nothing in between. Hidden
    entries (staged versions, the server's own data) and the history are no changes. A look that
    fails, such as at a mount that is away, is logged, and nothing counts as gone.
    """
    stop = stop or asyncio.Event()
    models_dir = models_dir.resolve()  # as notifications call it
    registry = Registry(models_dir)
    notifier = _notifier(models_dir)
    seen: dict[str, _Fingerprint] = {}
    looks = 0
    try:
        while not stop.is_set():
            known = seen if looks % _DEEP_LOOK else {}
            try:
                now = await asyncio.to_thread(_fingerprints, registry, known)
            except OSError as error:
                _logger.warning("cannot look at the models: %s", error)
                now = seen
            changed = {name for name in seen | now if seen.get(name) != now.get(name)}
            seen = now
            if changed:
                yield changed
            notified = await _sleep(notifier, models_dir, stop, rescan_ms)
            looks = 0 if notified else looks + 1
    finally:
        if notifier is not None:
            notifier.close()


def _notifier(models_dir: Path) -> RustNotify | None:
    try:
        return RustNotify(
            [str(models_dir)],
            debug=False,
            force_polling=False,
            poll_delay_ms=0,
            recursive=True,
            ignore_permission_denied=True,
        )
    except (OSError, WatchfilesRustInternalError) as error:  # such as the limit of inotify watches
        _logger.warning("no notifications for %s, looking regularly: %s", models_dir, error)
        return None


async def _sleep(
    notifier: RustNotify | None, models_dir: Path, stop: asyncio.Event, timeout_ms: int
) -> bool:
    """Until something that matters was touched (True), `stop` is set or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_ms / 1000
    while not stop.is_set() and (left := deadline - loop.time()) > 0:
        if notifier is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), left)
        elif await _notified(notifier, models_dir, stop, left):
            return True
    return False


async def _notified(
    notifier: RustNotify, models_dir: Path, stop: asyncio.Event, timeout_s: float
) -> bool:
    """Whether the next notifications, if any come in time, are about something that matters."""
    leave = _Leave(stop)
    waiting = asyncio.get_running_loop().run_in_executor(
        None, notifier.watch, _DEBOUNCE_MS, _QUIET_MS, max(1, round(timeout_s * 1000)), leave
    )
    try:
        changes = await asyncio.shield(waiting)
    except asyncio.CancelledError:
        leave.cancelled = True
        await waiting  # the thread looks every _QUIET_MS; the notifier outlives it so
        raise
    return isinstance(changes, set) and any(_matters(path, models_dir) for _, path in changes)


class _Leave:
    """What the waiting thread looks at: the caller's stop, or our own cancellation."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.cancelled = False

    def is_set(self) -> bool:
        return self.cancelled or self._stop.is_set()


def _matters(path: str, models_dir: Path) -> bool:
    parts = Path(path).relative_to(models_dir).parts[:2]
    return not any(_is_ignored(part) for part in parts)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == HISTORY_NAME


def _fingerprints(registry: Registry, known: dict[str, _Fingerprint]) -> dict[str, _Fingerprint]:
    return {name: _fingerprint(registry.model(name), known.get(name)) for name in registry.models()}


def _fingerprint(model: ModelDirectory, known: _Fingerprint | None) -> _Fingerprint:
    """The known one if the model's own directory is as it was then."""
    try:
        own = frozenset(_contents(model.path))
        if known is not None and known[0] == own:
            return known
        folders = list(map(model.version_path, model.version_directories()))
    except PermissionError:
        return frozenset(), frozenset()
    return own, frozenset(found for folder in folders for found in _contents(folder))


def _contents(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    # What goes while we look is not there; what we may not look into is there without contents.
    with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield entry.path, status.st_ino, status.st_size, status.st_mtime_ns
