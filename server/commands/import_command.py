"""What `trimtab import` is asked and says; the work is version_import's, which is imported late.

It brings onnxruntime and numpy, and no other command should wait for those.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .command_options import (
    Actor,
    Json,
    Model,
    ModelsDir,
    Reason,
    known_directory,
    login_name,
    out,
    print_json,
)

if TYPE_CHECKING:
    from .version_import import Imported, ImportRequest


def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A model.onnx, a directory that holds one, or what `trimtab export` wrote.",
        ),
    ],
    models_dir: ModelsDir,
    model: Model,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TENSOR=]A,B,…",
            help="What the columns of a tensor are called; once for each tensor.",
        ),
    ] = None,
    golden_rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet",
            help="Rows to run it on; 256 of them and its answers become golden rows, which every "
            "load is held against.",
        ),
    ] = None,
    reference_rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet",
            help="Rows as it was trained on: what live rows are compared with.",
        ),
    ] = None,
    task: Annotated[
        Literal["regression", "binary", "multiclass"] | None,
        typer.Option(help="By default what its outputs look like."),
    ] = None,
    promote: Annotated[
        bool | None,
        typer.Option(
            "--promote/--no-promote",
            help="Make it the champion at once, or never; by default if it is the first version.",
        ),
    ] = None,
    signing_key: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="Sign its manifest with this key.")
    ] = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEYFILE.pub",
            help="Take an exported version only if one of these signed it; may be repeated.",
        ),
    ] = None,
    reason: Reason = "imported by hand",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Make a version of a model that was trained elsewhere, or of an exported version.

    It is copied, loaded and run as the server will do it; if anything fails, nothing is published.
    Give rows: without any it is run on zeros alone, and the first live rows become its reference.

    `trimtab import model.onnx models airtime --columns x=distance,dep_delay --golden-rows rows.parquet`

    `trimtab import airtime-3.tar.gz models airtime --promote`
    """
    from . import version_import

    known_directory(models_dir)
    request = version_import.ImportRequest(
        source=source,
        models_dir=models_dir,
        model=model,
        actor=actor or login_name(),
        reason=reason,
        promote=promote,
        columns=tuple(columns or ()),
        golden_rows=golden_rows,
        reference_rows=reference_rows,
        task=task,
        signing_key=signing_key,
        trusted_keys=tuple(trusted_key or ()),
    )
    found = version_import.import_version(request)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        print_json(_as_dict(model, found))
    else:
        out().print(_told(request, found), markup=False, highlight=False)


def _told(request: "ImportRequest", found: "Imported") -> str:
    lines = [f"published version {found.version} of {request.model}, {found.task}"]
    for what, specs in (("input", found.signature.inputs), ("output", found.signature.outputs)):
        for spec in specs:
            named = f": {', '.join(spec.columns)}" if spec.columns else ""
            lines.append(f"  {what} {spec.name} {spec.datatype} {list(spec.shape)}{named}")
    rows = found.rows
    lines.append(f"  run on {rows['run_on']}")
    if not rows["golden_rows"]:
        lines.append("  no golden rows: no load of it will be held against known answers")
    if not rows["reference_rows"]:
        lines.append("  no reference: the first live rows will be what drift is measured against")
    if found.signed_by:
        lines.append(f"  signed by {found.signed_by}")
    if found.is_champion:
        lines.append("it is the champion")
    else:
        command = f"trimtab promote {request.models_dir} {request.model} {found.version}"
        lines.append(f"it waits for: {command}")
    return "\n".join(lines)


def _as_dict(model: str, found: "Imported") -> dict[str, Any]:
    return {
        "model": model,
        "version": found.version,
        "champion": found.is_champion,
        "task": found.task,
        "inputs": [_spec(spec) for spec in found.signature.inputs],
        "outputs": [_spec(spec) for spec in found.signature.outputs],
        **found.rows,
        "notes": list(found.notes),
        "signed_by": found.signed_by,
    }


def _spec(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape),
        "columns": list(spec.columns),
    }
