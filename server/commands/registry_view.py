"""The admin port's answers, made from the directory when no server runs on it.

What only a running server knows (which versions are loaded, how much they answered) stays empty.
Changes are the registry's own, under its locks, so a server that starts meanwhile finds them whole.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.proto import admin_pb2
from trimtab.registry.directory import ModelDirectory, Registry, Why
from trimtab.registry.errors import RegistryError, VersionNotFoundError
from trimtab.registry.state import State

from ..errors import NotFoundError
from ..services.admin import messages, removal

_Mark = Callable[..., State]

_MARKS: Mapping[str, _Mark] = {
    "FreezeRequest": ModelDirectory.freeze,
    "UnfreezeRequest": ModelDirectory.unfreeze,
    "PinRequest": ModelDirectory.pin,
    "UnpinRequest": ModelDirectory.unpin,
    "BlockRequest": ModelDirectory.block,
    "UnblockRequest": ModelDirectory.unblock,
}


def list_versions(models_dir: Path, model: str = "") -> admin_pb2.ListVersionsResponse:
    """Every version of one model, or of all; NotFoundError for a model that is not there."""
    registry = Registry(models_dir)
    names = [_known(models_dir, model).name] if model else registry.models()
    return admin_pb2.ListVersionsResponse(models=[_versions(registry.model(n)) for n in names])


def describe(models_dir: Path, model: str, version: int = 0) -> admin_pb2.VersionDescription:
    """One version in full, 0: the champion. NotFoundError, RegistryError."""
    directory = _known(models_dir, model)
    if not version:
        highest = max(directory.versions(), default=None)
        version = (directory.state().champion if directory.is_managed() else highest) or 0
    if not version:
        raise VersionNotFoundError(f"model {model!r} has no champion to describe")
    return messages.describe(directory, version)


def history(models_dir: Path, request: admin_pb2.GetHistoryRequest) -> admin_pb2.GetHistoryResponse:
    """What of a model's history was asked for; NotFoundError."""
    found = _known(models_dir, request.model_name).history()
    return messages.history_response(request.model_name, found, request)


def change(models_dir: Path, request: Any) -> admin_pb2.ChangeResponse:
    """A FreezeRequest, PinRequest, BlockRequest or their reverses. NotFoundError, RegistryError."""
    directory = _known(models_dir, request.model_name)
    versions = (request.version,) if hasattr(request, "version") else ()
    before = directory.state()
    state = _MARKS[request.DESCRIPTOR.name](
        directory,
        *versions,
        actor=request.actor,
        reason=request.reason or "no reason given",
        expected_revision=request.expected_revision or None,
    )
    return admin_pb2.ChangeResponse(
        revision=state.revision,
        champion=state.champion or 0,
        previous=state.previous or 0,
        unchanged=state == before,
    )


def retain(models_dir: Path, request: admin_pb2.RetainRequest) -> admin_pb2.RetainResponse:
    """Removes old versions, or says which. NotFoundError, ConfigError, RegistryError."""
    directory = _known(models_dir, request.model_name)
    if request.dry_run:
        return removal.message_of(removal.plan(directory, request.keep))
    why = Why(actor=request.actor, reason=request.reason)
    return removal.message_of(removal.retain(directory, request.keep, why))


def _known(models_dir: Path, model: str) -> ModelDirectory:
    registry = Registry(models_dir)
    names = registry.models()
    if model not in names:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise NotFoundError(f"no model {model!r} in {models_dir}; {there}")
    return registry.model(model)


def _versions(directory: ModelDirectory) -> admin_pb2.ModelVersions:
    managed = directory.is_managed()
    state = directory.state()
    answer = admin_pb2.ModelVersions(model_name=directory.name, managed=managed)
    messages.set_state(answer, state)
    for version in directory.versions():
        item = answer.versions.add(version=version)
        messages.set_decisions(item, state)
        if not managed:
            continue
        try:
            messages.set_manifest(item, directory.manifest(version))
        except RegistryError as error:
            item.reason = str(error)
    return answer
