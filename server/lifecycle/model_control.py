"""What an operator may ask of the lifecycle over the wire: load this model, unload that one.

An unload is a switch and no change of the registry: the model answers nothing until it is loaded
again or the server starts anew, whatever is promoted meanwhile. A load may bring a configuration
that stands in place of the model's config.pbtxt for as long. Both are idempotent and block, so they
are called from a thread that may wait.
"""

import threading

from trimtab.registry.directory import Registry

from ..errors import ModelLoadError, NotFoundError
from ..inference.onnx_session import LoadError, one_line
from .model_config import parse_json
from .model_manager import ModelManager
from .version_plan import ModelStatus


class ModelControl:
    """Loads and unloads models by name; any thread."""

    def __init__(self, registry: Registry, models: ModelManager) -> None:
        self._registry = registry
        self._models = models
        self._loading = threading.Lock()  # one load at a time: a refused one is taken back

    def load(self, model: str, config: str | None = None) -> None:
        """Looks at the model's directory anew and returns when what should answer does.

        `config` is a ModelConfig in JSON that holds instead of config.pbtxt, until the next load.
        Raises ModelLoadError with the reason; whatever answered before then still does, as it did.
        """
        with self._loading:
            self._load(model, config)

    def _load(self, model: str, config: str | None) -> None:
        failed = load_failed(model)
        try:
            known = model in self._registry.models()
        except OSError as error:
            raise ModelLoadError(f"{failed}: {one_line(error)}") from error
        if not known:
            raise ModelLoadError(failed)
        try:
            given = None if config is None else parse_json(config, model)
        except LoadError as error:
            raise ModelLoadError(f"{failed}: {error}") from error
        if self._models.status(model) is None:
            self._models.reconcile(model).result()
        loaded, before = self._models.switched(model)
        self._models.switch(model, loaded=True, given=given).result()
        status = self._models.status(model)
        reason = _reason(status)
        if not reason:
            return
        if given is not None:
            self._models.switch(model, loaded=loaded, given=before).result()
        raise ModelLoadError(f"{failed}: {reason}")

    def unload(self, model: str) -> None:
        """From now on nothing of the model answers; returns when what it computed is done.

        Raises NotFoundError.
        """
        if self._models.status(model) is None:
            raise NotFoundError(f"Request for unknown model: '{model}' is not found")
        self._models.switch(model, loaded=False).result()


def load_failed(model: str) -> str:
    """How Triton begins to say that a load failed; clients look for it."""
    return f"failed to load '{model}', failed to poll from model repository"


def _reason(status: ModelStatus | None) -> str:
    """Why the model does not answer as its directory is now; empty: it does."""
    if status is None:
        return "the model was removed"
    for each in status.versions:
        if each.version == status.champion:
            if status.serving == status.champion and not each.refusal:
                return ""
            return f"version {each.version}: {each.refusal or each.reason or each.state.value}"
    return status.reason or "no version of it was promoted"
