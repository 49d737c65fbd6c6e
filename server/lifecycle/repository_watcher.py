"""The thread that tells of changes in the models' directory, for as long as the server runs.

A watch can break: the directory is replaced, a mount goes away, the kernel is out of watches. Then
it is begun again after a pause, and everything is looked at, since whatever happened in between was
not told. So a change is noticed late at worst, never not at all.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from trimtab.registry.watch import watch

_logger = logging.getLogger(__name__)

_PAUSE_S = 1.0

Watch = Callable[..., AsyncIterator[set[str]]]


class RepositoryWatcher:
    """Calls `changed` on a thread of its own: with names of models, or None for look at all."""

    def __init__(
        self,
        models_dir: Path,
        changed: Callable[[set[str] | None], None],
        *,
        watch: Watch = watch,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._models_dir = models_dir
        self._changed = changed
        self._watch = watch
        self._pause_s = pause_s
        self._stop = asyncio.Event()
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._begun.wait()

    def stop(self) -> None:
        """Once, whether it was started or not; waits for the thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        while not self._stop.is_set():
            try:
                self._changed(None)
                async for names in self._watch(self._models_dir, stop=self._stop):
                    self._changed(names)
            except Exception:
                _logger.exception("watching %s broke off; trying again", self._models_dir)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._pause_s)
