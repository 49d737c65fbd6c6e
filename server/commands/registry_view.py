"""The admin port's answers, read from the directory when no server runs on it.

What only a running server knows (which versions are loaded, how much they answered) stays empty.
"""

import json
from pathlib import Path

from trimtab.proto import admin_pb2
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.history import HistoryEntry

from ..errors import NotFoundError


def list_versions(models_dir: Path, model: str = "") -> admin_pb2.ListVersionsResponse:
    """Every version of one model, or of all; NotFoundError for a model that is not there."""
    registry = Registry(models_dir)
    names = registry.models()
    if model:
        names = [_known(model, names, models_dir)]
    return admin_pb2.ListVersionsResponse(models=[_versions(registry.model(n)) for n in names])


def history(models_dir: Path, model: str, limit: int = 0) -> admin_pb2.GetHistoryResponse:
    """The newest `limit` entries (0: all), oldest first; NotFoundError."""
    registry = Registry(models_dir)
    name = _known(model, registry.models(), models_dir)
    found = registry.model(name).history()
    entries = found.entries[-limit:] if limit else found.entries
    return admin_pb2.GetHistoryResponse(
        entries=[_event(name, entry) for entry in entries], chain_valid=found.valid
    )


def _known(model: str, names: list[str], models_dir: Path) -> str:
    if model not in names:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise NotFoundError(f"no model {model!r} in {models_dir}; {there}")
    return model


def _versions(directory: ModelDirectory) -> admin_pb2.ModelVersions:
    managed = directory.is_managed()
    state = directory.state()
    roles = {state.previous: "previous", state.champion: "champion"}
    answer = admin_pb2.ModelVersions(
        model_name=directory.name,
        managed=managed,
        revision=state.revision,
        champion=state.champion or 0,
        previous=state.previous or 0,
    )
    for version in directory.versions():
        item = answer.versions.add(version=version, role=roles.get(version, ""))
        if not managed:
            continue
        try:
            manifest = directory.manifest(version)
        except RegistryError as error:
            item.reason = str(error)
            continue
        item.created_ms = manifest.created_ms
        item.metrics.update(manifest.metrics)
    return answer


def _event(model: str, entry: HistoryEntry) -> admin_pb2.Event:
    return admin_pb2.Event(
        sequence=entry.sequence,
        time_ms=entry.time_ms,
        event_time_ms=entry.event_time_ms,
        model_name=model,
        kind=entry.kind,
        version=entry.version,
        actor=entry.actor,
        reason=entry.reason,
        evidence_json=json.dumps(entry.evidence, sort_keys=True),
    )
