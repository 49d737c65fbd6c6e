"""A version that somebody needs loaded, whatever the registry says of it: a hold on it.

Who is about to promote a version holds it meanwhile; so does who runs it beside the champion. A
hold keeps the version, not its session: should the model's configuration change, the version is
loaded anew, and `executor` is the new one from then on.
"""

from collections.abc import Callable
from typing import Self

from ..inference.executor import Executor
from ..inference.servable import Servable
from .served_model import ServedModel


class HeldVersion:
    """Loaded, verified and warm until `release`. Any thread; a context manager."""

    def __init__(
        self, model: ServedModel, version: int, executor: Executor, released: Callable[[], object]
    ) -> None:
        """`released` is called if there is something to load or to retire after the release."""
        self.model = model.name
        self.version = version
        self._served = model
        self._executor = executor
        self._released = released
        self._held = True

    def __repr__(self) -> str:
        return f"<HeldVersion {self.model}/{self.version}{'' if self._held else ' released'}>"

    @property
    def executor(self) -> Executor:
        """What answers requests that name the version. The last one there was, after the model was
        removed, or the version released and retired."""
        found = self._served.executors.get(self.version)
        if found is not None:
            self._executor = found
        return self._executor

    @property
    def servable(self) -> Servable:
        """`run` may be called from any thread, beside the executor's; ModelExecutionError when the
        version was unloaded."""
        return self.executor.servable

    def release(self) -> None:
        """Once or more often; the version is unloaded if nothing else wants it."""
        with self._served.lock:
            if not self._held:
                return
            self._held = False
            self._served.let_go(self.version)
            todo = self._served.plan()
        if todo.load or todo.retire:
            self._released()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
