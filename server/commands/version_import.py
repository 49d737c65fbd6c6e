"""How `trimtab import` works: a model that was made elsewhere, or exported, becomes a version.

Everything is copied into the staged version first, and only the copy is looked at from then on, so
that nobody can exchange a file between a check and its use. The last check is the server's own
loading of it. Whatever fails, nothing is published.

Rows are read by the trainer's side in a process of its own, since only that may import Polars.
"""

import contextlib
import importlib.metadata
import json
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from trimtab._native import bytes_tensor
from trimtab._native.reference import ReferenceFormatError, ReferenceProfile
from trimtab.registry import model_file, signing, version_archive
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.documents import encode_readable
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    FileEntry,
    Manifest,
    Signature,
    TensorSpec,
)
from trimtab.registry.names import is_plain
from trimtab.registry.signing import SigningKey, TrustedKeys
from trimtab.registry.staging import MODEL_FILE_NAME, StagedVersion
from trimtab.registry.version_archive import ExportedVersion

from ..errors import TrimtabError
from ..inference import golden
from ..inference.onnx_session import LoadError, open_session
from ..inference.servable import REFERENCE_FILE, Servable
from ..inference.tensor import BYTES, DTYPES, Tensor
from .train_command import run_training

Task = Literal["regression", "binary", "multiclass"]

REPORT_NAME = "report.json"

_OURS = {
    *(MODEL_FILE_NAME, MANIFEST_NAME, SIGNATURE_NAME),
    *(golden.FILE_NAME, REFERENCE_FILE, REPORT_NAME),
}
_LIBRARIES = ("trimtab", "numpy", "onnxruntime")
_ZERO_ROWS = 2


class ImportFailedError(RegistryError):
    """Nothing was published; the text says what was found and where."""


@dataclass(frozen=True)
class ImportRequest:
    """What to import as what. The options of a foreign model are none of an exported version's."""

    source: Path
    models_dir: Path
    model: str
    actor: str
    reason: str
    promote: bool | None = None  # None: if it is the first version
    columns: tuple[str, ...] = ()  # NAME=A,B,… or, of the only input, A,B,…
    golden_rows: Path | None = None
    reference_rows: Path | None = None
    task: Task | None = None
    signing_key: Path | None = None
    trusted_keys: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Imported:
    """What became of it."""

    version: int
    is_champion: bool
    signature: Signature
    task: str
    rows: Mapping[str, Any]  # what it was run on, as in its report
    notes: tuple[str, ...] = ()
    signed_by: str = ""


@dataclass(frozen=True)
class _Contents:
    """What a staged version is to say of itself."""

    signature: Signature
    task: str
    lineage: Mapping[str, Any]
    metrics: Mapping[str, float]
    rows: Mapping[str, Any]
    notes: tuple[str, ...]


def import_version(request: ImportRequest) -> Imported:
    """Publishes one version. RegistryError of one sentence or OSError, and then there is none.

    Only if it is to be promoted and that fails, it is there and not the champion.
    """
    directory = Registry(request.models_dir).model(request.model)
    key = SigningKey.load(request.signing_key) if request.signing_key else None
    trusted = TrustedKeys.load(request.trusted_keys) if request.trusted_keys else None
    source = request.source
    exported = version_archive.is_archive(source) or version_archive.is_export(source)
    if exported:
        _refuse_options(request)
    else:
        if trusted is not None:
            raise ImportFailedError(f"{source}: is no exported version, so nobody signed it")
        source = _model_in(source)
        model_file.check(source)
    _keep_unmanaged(directory, source)
    with directory.stage() as staged:
        if exported:
            contents = _take_exported(source, trusted, staged, directory)
        else:
            contents = _take_foreign(source, request, staged, directory)
        version = staged.publish(
            signature=contents.signature,
            task=contents.task,
            lineage=contents.lineage,
            metrics=contents.metrics,
            actor=request.actor,
            reason=request.reason,
            champion_if_first=request.promote is not False,
            signing_key=key,
        )
    if request.promote and directory.state().champion != version:
        try:
            directory.promote(version, actor=request.actor, reason=request.reason)
        except (RegistryError, OSError) as error:
            raise ImportFailedError(
                f"published version {version}, but could not promote it: {error}"
            ) from error
    return Imported(
        version=version,
        is_champion=directory.state().champion == version,
        signature=contents.signature,
        task=contents.task,
        rows=contents.rows,
        notes=contents.notes,
        signed_by=key.fingerprint if key else "",
    )


def _refuse_options(request: ImportRequest) -> None:
    given = {
        "--columns": bool(request.columns),
        "--golden-rows": request.golden_rows is not None,
        "--reference-rows": request.reference_rows is not None,
        "--task": request.task is not None,
    }
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise ImportFailedError(
            f"{request.source}: is a version with a manifest, which brings its own: "
            f"{', '.join(wrong)} cannot change it (import its {MODEL_FILE_NAME} alone instead)"
        )


def _model_in(source: Path) -> Path:
    """The model file that is meant."""
    if not source.is_dir():
        if not source.exists() and not source.is_symlink():
            raise ImportFailedError(f"{source}: no such file or directory")
        return source
    if (source / MODEL_FILE_NAME).exists():
        return source / MODEL_FILE_NAME
    models = sorted(path.name for path in source.glob("*.onnx"))
    versions = sorted(path.parent.name for path in source.glob(f"*/{MODEL_FILE_NAME}"))
    hint = ""
    if models:
        hint = f"; give the file that you mean: {', '.join(models)}"
    elif versions:
        hint = f"; give one of its versions: {', '.join(versions)}"
    raise ImportFailedError(f"{source}: has no {MODEL_FILE_NAME}{hint}")


def _keep_unmanaged(directory: ModelDirectory, source: Path) -> None:
    """A model becomes managed with its first manifest, and what has none is then no version."""
    if directory.is_managed() or not (versions := directory.versions()):
        return
    if directory.path.resolve() in source.resolve().parents:
        return  # that is what is wanted
    listed = ", ".join(map(str, versions))
    raise ImportFailedError(
        f"{directory.path}: has versions without a manifest ({listed}), which would not be served "
        f"any more beside one that was imported; take another name, or begin with "
        f"`trimtab import {directory.version_path(versions[-1])} … {directory.name}`"
    )


def _take_exported(
    source: Path, trusted: TrustedKeys | None, staged: StagedVersion, directory: ModelDirectory
) -> _Contents:
    found = version_archive.read(source, staged.path)
    lineage = found.origin.lineage(found.manifest.lineage)
    if trusted is not None:
        lineage["exported_from"]["signed_by"] = _signer(source, found, trusted)
    manifest = found.manifest
    with _loaded(source, manifest, staged, directory) as servable:
        rows = _rows_in(staged.path, servable)
        notes = servable.notes
        if not rows["golden_rows"]:
            _run_zeros(servable, source)
    return _Contents(manifest.signature, manifest.task, lineage, manifest.metrics, rows, notes)


def _signer(source: Path, found: ExportedVersion, trusted: TrustedKeys) -> str:
    if found.signature is None:
        raise ImportFailedError(f"{source}: is not signed: it has no {SIGNATURE_NAME}")
    return signing.check(found.sealed, found.signature, trusted, f"{source}: {SIGNATURE_NAME}")


def _take_foreign(
    source: Path, request: ImportRequest, staged: StagedVersion, directory: ModelDirectory
) -> _Contents:
    origin = _copy_model(source, staged.path)
    try:
        opened = open_session(staged.path / MODEL_FILE_NAME)
    except LoadError as error:
        raise ImportFailedError(f"{source}: {error}") from error
    signature = _with_columns(opened.signature, request.columns)
    del opened  # it is loaded once more, as a server does it
    if request.golden_rows or request.reference_rows:
        _make_row_files(request, signature, staged.path)
    task = request.task or _likely_task(signature)
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        model=directory.name,
        created_ms=0,
        files={golden.FILE_NAME: FileEntry("", 0)} if request.golden_rows else {},
        signature=signature,
        task=task,
        lineage={},
        metrics={},
    )
    with _loaded(source, manifest, staged, directory) as servable:
        if not request.golden_rows:
            _run_zeros(servable, source)
        rows = _rows_in(staged.path, servable)
        notes = servable.notes
    if request.task is None:
        notes += (f"the task is taken to be {task}, by its outputs; --task says otherwise",)
    report = {"imported": {**rows, "notes": list(notes)}}
    (staged.path / REPORT_NAME).write_bytes(encode_readable(report))
    lineage = {
        "imported_from": origin,
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    return _Contents(signature, task, lineage, {}, rows, notes)


def _copy_model(source: Path, into: Path) -> dict[str, Any]:
    """Copies the model and the files that it keeps weights in; what the lineage says of them."""
    entry = version_archive.copy_file(source, into / MODEL_FILE_NAME)
    told: dict[str, Any] = {"file": source.name, "sha256": entry.sha256}
    weights = {}
    for name in model_file.external_files(into / MODEL_FILE_NAME):
        _check_beside(source, name)
        weights[name] = version_archive.copy_file(source.parent / name, into / name).sha256
    return {**told, "external_data": weights} if weights else told


def _check_beside(source: Path, name: str) -> None:
    """Raises ImportFailedError unless that is a file that may lie beside the model."""
    what = f"{source}: keeps weights in {name!r}"
    if name.startswith("/"):
        raise ImportFailedError(f"{what}, an absolute path; they must lie in the same directory")
    if ".." in name.split("/"):
        raise ImportFailedError(f"{what}, which leads out of its directory")
    if "/" in name:
        raise ImportFailedError(f"{what}, in another directory; a version has none inside")
    if not is_plain(name) or name in _OURS:
        raise ImportFailedError(f"{what}, which no such file of a version may be called")


def _with_columns(signature: Signature, given: Sequence[str]) -> Signature:
    """The signature with the columns of --columns. ImportFailedError."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    columns: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, listed = text.partition("=")
        if name not in specs or "=" not in text:
            if len(signature.inputs) > 1:
                raise ImportFailedError(
                    f"--columns {text}: must begin with the name of a tensor and '='; "
                    f"there are {', '.join(specs)}"
                )
            name, listed = signature.inputs[0].name, text
        found = tuple(listed.split(","))
        shape = specs[name].shape
        width = (*shape[1:], 1)[0] if 1 <= len(shape) <= 2 else None
        if width not in (-1, len(found)):
            raise ImportFailedError(
                f"--columns names {len(found)} columns of {name!r}, whose shape is {list(shape)}"
            )
        if "" in found or len(set(found)) < len(found):
            raise ImportFailedError(f"--columns of {name!r}: a name is empty or there twice")
        columns[name] = found
    return Signature(
        inputs=tuple(replace(s, columns=columns.get(s.name, ())) for s in signature.inputs),
        outputs=tuple(replace(s, columns=columns.get(s.name, ())) for s in signature.outputs),
    )


def _likely_task(signature: Signature) -> Task:
    """Probabilities of two classes or more are the one thing that can be seen."""
    for spec in signature.outputs:
        if "prob" in spec.name.lower() and len(spec.shape) == 2 and spec.shape[1] >= 2:
            return "binary" if spec.shape[1] == 2 else "multiclass"
    return "regression"


def _make_row_files(request: ImportRequest, signature: Signature, into: Path) -> None:
    """Has the trainer's side make golden.npz and reference.npz. ImportFailedError."""

    def absolute(path: Path | None) -> str | None:
        return None if path is None else str(path.absolute())

    document = {
        "model": absolute(into / MODEL_FILE_NAME),
        "signature": asdict(signature),
        "golden_rows": absolute(request.golden_rows),
        "golden_file": absolute(into / golden.FILE_NAME),
        "reference_rows": absolute(request.reference_rows),
        "reference_file": absolute(into / REFERENCE_FILE),
    }
    with tempfile.TemporaryDirectory(prefix="trimtab-import-") as folder:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(document))
        arguments = ["import-rows", str(file), "--progress", "json", "--exit-with-parent"]
        result = run_training(arguments, Console(stderr=True))
    if result.outcome != "published":
        raise ImportFailedError(result.reason)


@contextlib.contextmanager
def _loaded(
    source: Path, manifest: Manifest, staged: StagedVersion, directory: ModelDirectory
) -> Iterator[Servable]:
    """The staged version as a server loads it, golden rows and all. ImportFailedError."""
    # What it would log is told in notes.
    logging.getLogger("trimtab").addHandler(logging.NullHandler())
    try:
        servable = Servable.load(_Staged(directory, staged.path, manifest), 0, managed=True)
    except LoadError as error:
        raise ImportFailedError(f"{source}: {error}") from error
    try:
        yield servable
    finally:
        servable.close()


class _Staged(ModelDirectory):
    """A model whose only version is the staged one, the manifest of which is not sealed yet."""

    def __init__(self, directory: ModelDirectory, staged: Path, manifest: Manifest) -> None:
        super().__init__(directory.path)
        self._staged = staged
        self._manifest = manifest

    def version_path(self, version: int) -> Path:
        return self._staged

    def verify(self, version: int) -> Manifest:
        return self._manifest


def _run_zeros(servable: Servable, source: Path) -> None:
    """Runs it once on made-up rows, since no others are there. ImportFailedError."""
    inputs = {spec.name: _zeros(spec, servable.batchable) for spec in servable.signature.inputs}
    try:
        servable.run(inputs, servable.output_names)
    except TrimtabError as error:
        raise ImportFailedError(
            f"{source}: cannot be run on zeros and empty strings: {error}; "
            "--golden-rows gives it rows that it takes"
        ) from error


def _zeros(spec: TensorSpec, batchable: bool) -> Tensor:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    if batchable:
        shape = (_ZERO_ROWS, *shape[1:])
    if spec.datatype == BYTES:
        values = np.full(shape, "", dtype=object)
        return Tensor(BYTES, shape, bytes_tensor.encode(values.ravel()))
    return Tensor(spec.datatype, shape, np.zeros(shape, DTYPES[spec.datatype]))


def _rows_in(staged: Path, servable: Servable) -> dict[str, Any]:
    """What the version was run on and how many rows its files have."""
    golden_count = reference_count = 0
    if (staged / golden.FILE_NAME).exists():
        kept = golden.load(staged / golden.FILE_NAME, servable.signature)
        golden_count = next(iter(kept.inputs.values())).shape[0]
    if (staged / REFERENCE_FILE).exists():
        try:
            reference_count = ReferenceProfile.load(staged / REFERENCE_FILE).rows
        except ReferenceFormatError as error:
            raise ImportFailedError(f"{REFERENCE_FILE}: {error}") from error
    run_on = f"{golden_count} golden rows"
    if not golden_count:
        run_on = f"{_ZERO_ROWS if servable.batchable else 1} made-up rows of zeros"
    return {"run_on": run_on, "golden_rows": golden_count, "reference_rows": reference_count}
