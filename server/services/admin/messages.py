"""The registry's values as the admin protocol has them.

A running server and a command that reads the directory without one answer with the same messages;
this is where they are made. What only a server knows (what is loaded, what was answered) it adds
itself. Everything is read from disk, so not for an event loop.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError, VersionNotFoundError
from trimtab.registry.history import History, HistoryEntry
from trimtab.registry.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, TensorSpec
from trimtab.registry.state import State

REPORT_NAME = "report.json"
_MAX_REPORT_BYTES = 1 << 20


def role_of(version: int, state: State) -> str:
    """champion, previous, earlier, challenger or empty."""
    if version == state.champion:
        return "champion"
    if version == state.previous:
        return "previous"
    if version in state.champions:
        return "earlier"
    return "challenger" if version == state.challenger else ""


def set_state(message: pb.ModelVersions, state: State) -> None:
    """What state.json tells of a model."""
    message.revision = state.revision
    message.champion = state.champion or 0
    message.previous = state.previous or 0
    message.earlier[:] = state.earlier
    message.challenger = state.challenger or 0
    message.frozen = state.frozen
    message.frozen_reason = state.frozen_reason


def set_decisions(message: pb.VersionInfo, state: State) -> None:
    """What state.json tells of a version; a role that is set already stays."""
    message.role = message.role or role_of(message.version, state)
    message.pinned = message.version in state.pinned
    message.blocked = message.version in state.blocked
    message.blocked_reason = state.blocked.get(message.version, "")


def set_manifest(message: pb.VersionInfo, manifest: Manifest) -> None:
    """When a version was made and how good it was then."""
    message.created_ms = manifest.created_ms
    message.metrics.update(manifest.metrics)


def event_of_entry(model: str, entry: HistoryEntry) -> pb.Event:
    """An entry of a history."""
    return pb.Event(
        sequence=entry.sequence,
        time_ms=entry.time_ms,
        event_time_ms=entry.event_time_ms,
        model_name=model,
        kind=entry.kind,
        version=entry.version,
        actor=entry.actor,
        reason=entry.reason,
        evidence_json=json.dumps(entry.evidence, sort_keys=True),
        history_sequence=entry.sequence,
    )


def history_response(
    model: str, history: History, request: pb.GetHistoryRequest
) -> pb.GetHistoryResponse:
    """What of a history was asked for, oldest first."""
    entries = [
        entry
        for entry in history.entries
        if not request.version or entry.version == request.version
        if not request.HasField("since_ms") or entry.time_ms >= request.since_ms
    ]
    answer = pb.GetHistoryResponse(
        entries=[event_of_entry(model, entry) for entry in entries[-request.limit :]],
        chain_valid=history.valid,
        chain_error=history.error,
    )
    if request.HasField("champion_at_ms"):
        found = history.champion_at(request.champion_at_ms)
        if found is not None:
            answer.champion_at.CopyFrom(event_of_entry(model, found))
    return answer


def describe(directory: ModelDirectory, version: int) -> pb.VersionDescription:
    """All that the directory tells of a version; `info` lacks what only a server knows.

    VersionNotFoundError, which tells who removed it if it was there once; RegistryError.
    """
    history = directory.history()
    entries = [entry for entry in history.entries if entry.version == version]
    if version not in directory.version_directories():
        raise VersionNotFoundError(
            f"model '{directory.name}' has no version {version}{_end(entries)}"
        )
    message = pb.VersionDescription(
        model_name=directory.name,
        managed=directory.is_managed(),
        history=[event_of_entry(directory.name, entry) for entry in entries],
    )
    message.info.version = version
    if message.managed:
        manifest = directory.manifest(version)
        set_decisions(message.info, directory.state())
        set_manifest(message.info, manifest)
        _add_manifest(message, directory, manifest)
    else:
        for path in sorted(directory.version_path(version).iterdir()):
            if path.is_file():
                message.files.add(name=path.name, size=path.stat().st_size)
    _add_report(message, directory)
    return message


def _end(entries: list[HistoryEntry]) -> str:
    removed = next((each for each in reversed(entries) if each.kind == "removed"), None)
    return f": {removed.actor} removed it ({removed.reason})" if removed else ""


def _add_manifest(
    message: pb.VersionDescription, directory: ModelDirectory, manifest: Manifest
) -> None:
    path = directory.version_path(message.info.version)
    message.task = manifest.task
    message.inputs.extend(map(_tensor, manifest.signature.inputs))
    message.outputs.extend(map(_tensor, manifest.signature.outputs))
    for name, file in sorted(manifest.files.items()):
        message.files.add(name=name, sha256=file.sha256, size=file.size)
    message.manifest_sha256 = hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()
    message.signed = (path / SIGNATURE_NAME).exists()
    message.lineage_json = json.dumps(manifest.lineage, sort_keys=True)


def _tensor(spec: TensorSpec) -> pb.TensorInfo:
    return pb.TensorInfo(
        name=spec.name, datatype=spec.datatype, shape=spec.shape, columns=spec.columns
    )


def _add_report(message: pb.VersionDescription, directory: ModelDirectory) -> None:
    """A report that is absent, too long or none is no reason to tell nothing."""
    path = directory.version_path(message.info.version) / REPORT_NAME
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            return
        text = path.read_text(encoding="utf-8")
        report = json.loads(text)
    except (OSError, ValueError):
        return
    message.report_json = text
    gates = report.get("gates") if isinstance(report, Mapping) else None
    for gate in gates if isinstance(gates, list) else ():
        if isinstance(gate, Mapping):
            message.gates.add(**{name: _text(gate, name) for name in ("name", "verdict", "reason")})


def _text(gate: Mapping[str, Any], name: str) -> str:
    return str(gate.get(name, ""))


def state_or_none(directory: ModelDirectory) -> State | None:
    """None: state.json cannot be read, which whoever loads the model says."""
    try:
        return directory.state()
    except RegistryError:
        return None
