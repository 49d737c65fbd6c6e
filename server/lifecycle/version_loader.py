"""Makes executors of versions, and ends them: the slow work, all of it on the loader thread."""

import ctypes
import logging
from collections.abc import Callable

from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.signing import TrustedKeys

from ..config import BatchingConfig
from ..inference.executor import Executor
from ..inference.observation import Tap
from ..inference.onnx_session import LoadError, one_line
from ..inference.servable import Servable
from . import model_config
from .model_config import ModelConfigFile
from .version_plan import VersionState

_logger = logging.getLogger(__name__)

_RETIRE_TIMEOUT_S = 60.0  # a run of the model that takes longer is left to itself
_M_MMAP_THRESHOLD = -3  # of malloc.h

TapFactory = Callable[[Servable], Tap | None]


class VersionLoader:
    """Used by one thread."""

    def __init__(
        self,
        batching: BatchingConfig,
        tap_factory: TapFactory | None,
        load: Callable[..., Servable] = Servable.load,
        *,
        mirror_contents: bool = False,
        trusted_keys: TrustedKeys | None = None,
    ) -> None:
        """With `trusted_keys`, a version is loaded only if it is signed by one of them."""
        self._batching = batching
        self._tap_factory = tap_factory
        self._load = load
        self._mirror_contents = mirror_contents
        self._trusted_keys = trusted_keys
        _keep_large_blocks_apart()
        self._told: dict[str, str] = {}  # what was said about each model's config.pbtxt

    def load(
        self,
        directory: ModelDirectory,
        version: int,
        given: ModelConfigFile | None = None,
        enter: Callable[[VersionState], None] = lambda _: None,
    ) -> Executor:
        """A started executor of the version; what is `given` stands in place of config.pbtxt.

        `enter` is told of each state on the way. Raises LoadError, whatever went wrong.
        """
        try:
            if self._trusted_keys is not None:
                path = directory.version_path(version)
                signing.verify(path, self._trusted_keys, directory.name)
            managed = directory.is_managed()
            config = given or model_config.read(directory.path)
            self._tell(directory.name, config, managed)
            servable = self._load(
                directory,
                version,
                managed=managed,
                on_stage=lambda stage: enter(VersionState[stage]),
            )
            if reason := model_config.mismatch(config, servable.signature):
                servable.close()
                raise LoadError(reason)
            servable.configure(config.settings)
            batching = config.settings.batching(self._batching)
            executor = Executor(
                servable,
                batching,
                tap=self._make_tap(servable),
                mirror_contents=self._mirror_contents,
            )
            executor.start()
        except LoadError:
            raise
        except RegistryError as error:
            raise LoadError(one_line(error)) from error
        except Exception as error:
            _logger.exception("model '%s' version %d: loading failed", directory.name, version)
            raise LoadError(f"loading failed: {one_line(error)}") from error
        return executor

    def retire(self, executors: list[Executor]) -> None:
        """Ends executors that no route leads to any more and gives their memory back."""
        if not executors:
            return
        for executor in executors:
            if executor.close(drain=True, timeout_s=_RETIRE_TIMEOUT_S):
                # A handler may still hold the executor: the session goes here and now.
                executor.servable.close()
            else:
                _logger.warning("%r: left computing after %s s", executor, _RETIRE_TIMEOUT_S)
        _trim_memory()

    def _tell(self, model: str, config: ModelConfigFile, managed: bool) -> None:
        """Names what is not honoured: once, and again when that changes."""
        ignored = list(config.ignored)
        if managed and config.says_version_policy:
            ignored.append("version_policy (the champion and the previous one are loaded)")
        text = ", ".join(ignored)
        if text and text != self._told.get(model):
            _logger.warning("model '%s': %s: not honoured: %s", model, config.origin, text)
        self._told[model] = text

    def _make_tap(self, servable: Servable) -> Tap | None:
        if self._tap_factory is None:
            return None
        try:
            return self._tap_factory(servable)
        except Exception:
            _logger.exception("%r: is served without being watched", servable)
            return None


def _keep_large_blocks_apart() -> None:
    """Blocks of 1 MiB or more, which is most of a session, go back to the system as they are freed.

    glibc begins like that and then raises the limit to the largest block that was ever freed, up to
    32 MiB, so that sessions come to lie in the heap and leave holes (benchmarks/hot_swap.py, 6 MB:
    10 MB more resident from the start, and 15 instead of 6 more over the first 300 swaps).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _trim_memory() -> None:
    """Gives freed memory back to the system: glibc keeps what a session freed otherwise
    (60 reloads: +138 MB without, flat with)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
