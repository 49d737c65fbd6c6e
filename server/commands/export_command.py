"""What `trimtab export` does: takes one version out of a registry, whole and verified.

As Trimtab's own export it keeps manifest, signature and its part of the history. For Triton it is a
model directory with a config.pbtxt, which says what the loaded version is: whether its rows may
share a run is not in the model's shapes alone, so the version is loaded for that.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.registry import version_archive
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import MANIFEST_NAME
from trimtab.registry.version_archive import ArchiveError, Origin

from .command_options import Json, Model, ModelsDir, known_directory, print_json

if TYPE_CHECKING:
    from trimtab.registry.manifest import TensorSpec

    from ..inference.servable import Servable

_TRITON_ROWS = 1024  # of one run; Triton refuses larger requests


def export_version(
    models_dir: ModelsDir,
    model: Model,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="PATH",
            help="A new directory or, by its name, a new .tar.gz archive.",
        ),
    ],
    version: Annotated[
        int | None, typer.Option(min=1, help="Which version; by default the champion.")
    ] = None,
    triton: Annotated[
        bool, typer.Option("--triton", help="As a model of a Triton repository.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take one version out: to another registry, or to Triton. Every file is verified first.

    `trimtab export models airtime --to airtime-3.tar.gz`

    `trimtab export models airtime --version 2 --triton --to repository/airtime`
    """
    known_directory(models_dir)
    directory = Registry(models_dir).model(model)
    number = _version(directory, version)
    if triton:
        _export_for_triton(directory, number, to)
    else:
        _export(directory, number, to)
    if as_json:
        print_json({"model": model, "version": number, "to": str(to), "triton": triton})
    else:
        typer.echo(f"exported version {number} of {model} to {to}")


def _version(directory: ModelDirectory, version: int | None) -> int:
    """The version that is meant. ArchiveError if there is no such one."""
    versions = directory.versions()
    if not versions:
        raise ArchiveError(f"{directory.path}: has no version to export")
    if version is None:
        return directory.state().champion or versions[-1]
    if version not in versions:
        listed = ", ".join(map(str, versions))
        raise ArchiveError(f"model '{directory.name}' has no version {version}; it has {listed}")
    return version


def _export(directory: ModelDirectory, version: int, target: Path) -> None:
    if not directory.is_managed():
        raise ArchiveError(
            f"{directory.version_path(version)}: has no {MANIFEST_NAME}; --triton exports it"
        )
    manifest = directory.verify(version)
    path = directory.version_path(version)
    history = directory.history()
    if not history.valid:
        raise RegistryError(f"{directory.name}: its history was altered: {history.error}")
    origin = Origin(
        model=directory.name,
        version=version,
        manifest_sha256=hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest(),
        history=tuple(entry for entry in history.entries if entry.version == version),
    )
    version_archive.write(path, origin, manifest, target)


def _export_for_triton(directory: ModelDirectory, version: int, target: Path) -> None:
    from trimtab.registry import model_file

    from ..inference.onnx_session import LoadError
    from ..inference.servable import MODEL_FILE, Servable

    path = directory.version_path(version)
    try:
        servable = Servable.load(directory, version, managed=directory.is_managed())
    except LoadError as error:
        raise ArchiveError(f"{path}: {error}") from error
    try:
        config = triton_config(servable)
    finally:
        servable.close()
    files: dict[str, Path | bytes] = {"config.pbtxt": config.encode()}
    for name in (MODEL_FILE, *model_file.external_files(path / MODEL_FILE)):
        files[f"1/{name}"] = path / name
    version_archive.write_files(files, target, directory.name)


def triton_config(servable: "Servable") -> str:
    """The config.pbtxt by which Triton's onnxruntime backend serves the same model.

    It names no model, so that its directory may be called as one likes. ArchiveError for tensors
    that Triton's configuration cannot express.
    """
    from google.protobuf import text_format

    from trimtab.proto import model_config_pb2

    from ..lifecycle.model_config import BACKEND

    config = model_config_pb2.ModelConfig(backend=BACKEND)
    signature = servable.signature
    if servable.batchable:
        config.max_batch_size = _TRITON_ROWS
        config.dynamic_batching.SetInParent()
    for spec in signature.inputs:
        _describe(config.input.add(), spec, servable.batchable)
    for spec in signature.outputs:
        _describe(config.output.add(), spec, servable.batchable)
    columns = [
        f"#   {json.dumps([spec.name, *spec.columns], ensure_ascii=False)}\n"
        for spec in signature.inputs
        if spec.columns
    ]
    origin = f"# Version {servable.version} of {servable.model}, exported by Trimtab.\n"
    named = f"# Inputs and what their columns are called:\n{''.join(columns)}" if columns else ""
    # max_batch_size must be there, and protobuf's text leaves out a 0.
    zero = "" if servable.batchable else "max_batch_size: 0\n"
    return origin + named + zero + text_format.MessageToString(config, as_utf8=True)


def _describe(tensor: Any, spec: "TensorSpec", batched: bool) -> None:
    from ..lifecycle.model_config import data_type

    tensor.name = spec.name
    tensor.data_type = data_type(spec.datatype)
    shape = spec.shape[1:] if batched else spec.shape
    if 0 in shape or (not shape and not batched):
        raise ArchiveError(
            f"'{spec.name}' has the shape {list(spec.shape)}, which Triton's configuration "
            "cannot express"
        )
    tensor.dims[:] = shape or (1,)
    if not shape:  # one value a row: to Triton's clients that is a column
        tensor.reshape.SetInParent()
