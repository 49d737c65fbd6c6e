"""Looks for what a server would refuse, without starting one: `trimtab verify`, and Verify of a server.

It reads every model's settings, every version's files and hashes, the chain of its history, and
holds them against each other: what the history says was published and promoted, what state.json
says, what is there. Signatures are checked as far as that can be: that one is valid needs no more
than the version, that it is of somebody trusted needs the trusted keys. Whether a model loads and
answers as it should is for the server to find out; the recipe is for the trainer.

Nothing is changed, and no lock is taken: what a writer is doing just now may be found half done in
one pass and whole in the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.history import HISTORY_NAME, History
from trimtab.registry.manifest import MANIFEST_NAME, Manifest
from trimtab.registry.signing import SigningError, TrustedKeys
from trimtab.registry.staging import MODEL_FILE_NAME
from trimtab.registry.state import STATE_NAME, replay

from .config import ConfigError, ModelPolicy, load_model_policy
from .errors import NotFoundError

if TYPE_CHECKING:
    from .lifecycle.model_config import ModelConfigFile


@dataclass(frozen=True)
class Finding:
    """One thing that is to be said, and of what."""

    model: str
    text: str
    version: int = 0  # 0: it is about the model


@dataclass
class Findings:
    """All that was found."""

    whole: list[Finding] = field(default_factory=list)  # one for each model with nothing wrong
    wrong: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)  # no server would mind
    unreadable: list[Finding] = field(default_factory=list)  # nobody knows


def check(
    models_dir: Path,
    model: str | None = None,
    trusted: TrustedKeys | None = None,
    *,
    require_signature: bool = False,
) -> Findings:
    """Looks at one model or all; NotFoundError for one that is not there, OSError for MODELS_DIR."""
    registry = Registry(models_dir)
    names = registry.models()
    if model is not None and model not in names:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise NotFoundError(f"no model {model!r} in {models_dir}; {there}")
    findings = Findings()
    for name in names if model is None else [model]:
        looked = _ModelCheck(registry.model(name), trusted, require_signature)
        try:
            looked.run()
        except OSError as error:
            where = error.filename or name
            findings.unreadable.append(Finding(name, f"{where}: {error.strerror or error}"))
        else:
            if not looked.wrong:
                findings.whole.append(Finding(name, looked.summary))
        findings.wrong += looked.wrong
        findings.notes += looked.notes
    return findings


class _ModelCheck:
    """One model, looked at once."""

    def __init__(
        self, model: ModelDirectory, trusted: TrustedKeys | None, require_signature: bool
    ) -> None:
        self._model = model
        self._trusted = trusted
        self._require_signature = require_signature
        self._unchecked = 0  # signed versions
        self._signed = 0
        self.wrong: list[Finding] = []
        self.notes: list[Finding] = []
        self.summary = ""

    def run(self) -> None:
        """OSError: the model cannot be read."""
        model = self._model
        self._check_policy()
        config = self._read_config()
        if not model.is_managed():
            self._check_unmanaged()
            return
        history = model.history()
        if not history.valid:
            self._is_wrong(f"{model.path / HISTORY_NAME}: was altered: {history.error}")
        published = {each.version for each in history.entries if each.kind == "published"}
        whole = {
            version: manifest
            for version in model.version_directories()
            if (manifest := self._check_version(version, version in published)) is not None
        }
        if config is not None:
            self._check_config(config, whole)
        champion = self._check_state(history, set(whole))
        if self._unchecked:
            self._note(
                f"{model.name}: the signatures of {self._unchecked} versions were not checked: "
                "that needs the extra trimtab[signing]"
            )
        signed = f", {self._signed} signed" if self._signed else ""
        count = f"{len(whole)} version{'' if len(whole) == 1 else 's'}"
        self.summary = f"{count}, champion {champion or 'none'}{signed}"

    def _check_policy(self) -> None:
        try:
            load_model_policy(self._model.recipe_path, ModelPolicy())
        except ConfigError as error:
            self._is_wrong(str(error))

    def _read_config(self) -> "ModelConfigFile | None":
        """The model's config.pbtxt; None: there is none, or it is wrong by itself."""
        if not (self._model.path / "config.pbtxt").exists():
            return None
        from .inference.onnx_session import LoadError
        from .lifecycle import model_config

        try:
            return model_config.read(self._model.path)
        except LoadError as error:
            self._is_wrong(f"{self._model.path}: {error}")
            return None

    def _check_config(self, config: "ModelConfigFile", whole: Mapping[int, Manifest]) -> None:
        from .lifecycle import model_config

        for version, manifest in whole.items():
            if problem := model_config.mismatch(config, manifest.signature):
                self._is_wrong(f"{self._model.version_path(version)}: {problem}", version)

    def _check_unmanaged(self) -> None:
        from trimtab.registry import model_file

        versions = self._model.versions()
        for version in versions:
            try:
                model_file.check(self._model.version_path(version) / MODEL_FILE_NAME)
            except RegistryError as error:
                self._is_wrong(str(error), version)
        if self._require_signature and versions:
            self._is_wrong(f"{self._model.path}: its versions have no manifest to be signed")
        count = f"{len(versions)} version{'' if len(versions) == 1 else 's'}"
        self.summary = f"{count}, unmanaged"

    def _check_version(self, version: int, published: bool) -> Manifest | None:
        """The manifest of a version that is whole."""
        path = self._model.version_path(version)
        if not published and not (path / MANIFEST_NAME).exists():
            # As it was copied in, or by a writer that is at it: no server takes it for a version.
            self._note(f"{path}: has no {MANIFEST_NAME} and is no version", version)
            return None
        try:
            manifest = self._model.verify(version)
            self._check_signature(path, version)
        except SigningError:
            self._unchecked += 1
        except RegistryError as error:
            self._is_wrong(str(error), version)
            return None
        return manifest

    def _check_signature(self, path: Path, version: int) -> None:
        if signing.is_signed(path) or self._require_signature:
            signing.verify(path, self._trusted, self._model.name)
            self._signed += 1

    def _check_state(self, history: History, whole: set[int]) -> int | None:
        """The champion; state.json must agree with the history and with what is there."""
        model = self._model
        where = model.path / STATE_NAME
        try:
            state = model.state()
        except RegistryError as error:
            self._is_wrong(str(error))
            return None
        told = replay(history.entries).state
        if history.valid and (told.champion, told.previous) != (state.champion, state.previous):
            self._is_wrong(
                f"{where}: says champion {state.champion}, previous {state.previous}, but the "
                f"history leads to champion {told.champion}, previous {told.previous}"
            )
        there = set(model.version_directories())
        for role, version in (("champion", state.champion), ("previous", state.previous)):
            if version is not None and version not in there:
                self._is_wrong(f"{where}: the {role}, version {version}, is not there", version)
            elif version is not None and version not in whole and not self._is_known(version):
                self._is_wrong(f"{where}: the {role}, version {version}, is no version", version)
        return state.champion

    def _is_known(self, version: int) -> bool:
        return any(each.version == version for each in self.wrong)

    def _is_wrong(self, text: str, version: int = 0) -> None:
        self.wrong.append(Finding(self._model.name, text, version))

    def _note(self, text: str, version: int = 0) -> None:
        self.notes.append(Finding(self._model.name, text, version))
