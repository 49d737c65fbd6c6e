"""Watching a directory of models: which of them look different from before.

The file system's notifications only wake the watcher; what changed is found by looking. Every model
has a fingerprint (names, sizes and times of what matters in it), and a model is named when its
fingerprint is another one. A lost notification therefore costs a delay, never a version: the
watcher looks every `rescan_ms` anyway, and lives on that alone where there are no notifications.

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

_Fingerprint = frozenset[tuple[str, int, int, int]]  # path, inode, size, time of change in ns


async def watch(
    models_dir: Path, *, stop: asyncio.Event | None = None, rescan_ms: int = 2000
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
    try:
        while not stop.is_set():
            try:
                now = await asyncio.to_thread(_fingerprints, registry)
            except OSError as error:
                _logger.warning("cannot look at the models: %s", error)
                now = seen
            changed = {name for name in seen | now if seen.get(name) != now.get(name)}
            seen = now
            if changed:
                yield changed
            await _sleep(notifier, models_dir, stop, rescan_ms)
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
) -> None:
    """Until something that matters was touched, `stop` is set or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_ms / 1000
    while not stop.is_set() and (left := deadline - loop.time()) > 0:
        if notifier is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), left)
        elif await _notified(notifier, models_dir, stop, left):
            return


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


def _fingerprints(registry: Registry) -> dict[str, _Fingerprint]:
    return {name: _fingerprint(registry.model(name)) for name in registry.models()}


def _fingerprint(model: ModelDirectory) -> _Fingerprint:
    try:
        folders = [model.path, *map(model.version_path, model.version_directories())]
    except PermissionError:
        folders = []
    return frozenset(found for folder in folders for found in _contents(folder))


def _contents(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    # What goes while we look is not there; what we may not look into is there without contents.
    with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield entry.path, status.st_ino, status.st_size, status.st_mtime_ns
