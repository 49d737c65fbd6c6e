"""What an operator may ask of the lifecycle over the wire: load this model, unload that one.

An unload is a switch and no change of the registry: the model answers nothing until it is loaded
again or the server starts anew, whatever is promoted meanwhile. Both are idempotent and block, so
they are called from a thread that may wait.
"""

from trimtab.registry.directory import Registry

from ..errors import ModelLoadError, NotFoundError
from ..inference.onnx_session import one_line
from .model_manager import ModelManager
from .version_plan import ModelStatus


class ModelControl:
    """Loads and unloads models by name; any thread."""

    def __init__(self, registry: Registry, models: ModelManager) -> None:
        self._registry = registry
        self._models = models

    def load(self, model: str) -> None:
        """Looks at the model's directory anew and returns when what should answer does.

        Raises ModelLoadError with the reason; whatever answered before then still does.
        """
        failed = f"failed to load '{model}', failed to poll from model repository"
        try:
            known = model in self._registry.models()
        except OSError as error:
            raise ModelLoadError(f"{failed}: {one_line(error)}") from error
        if not known:
            raise ModelLoadError(failed)
        self._models.switch(model, loaded=True).result()
        status = self._models.status(model)
        if status is None or status.champion is None or status.serving != status.champion:
            raise ModelLoadError(f"{failed}: {_reason(status)}")

    def unload(self, model: str) -> None:
        """From now on nothing of the model answers; returns when what it computed is done.

        Raises NotFoundError.
        """
        if self._models.status(model) is None:
            raise NotFoundError(f"Request for unknown model: '{model}' is not found")
        self._models.switch(model, loaded=False).result()


def _reason(status: ModelStatus | None) -> str:
    if status is None:
        return "the model was removed"
    for each in status.versions:
        if each.version == status.champion:
            return f"version {each.version}: {each.reason or each.state.value}"
    return status.reason or "no version of it was promoted"
