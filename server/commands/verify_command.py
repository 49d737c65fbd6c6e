"""`trimtab verify`: looks for what a server would refuse, here or where a server is.

The looking is registry_check.py's. By default it is done by this process, in the directory, whether a
server runs on it or not; only `--admin` asks a server, to look at its own.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.proto import admin_pb2
from trimtab.registry.signing import TrustedKeys

from ..registry_check import Finding, Findings, check
from .command_options import Json, ModelsDir, known_directory, print_json
from .server_option import Server, asks_server

ALTERED = 3  # exit code
_CANNOT_LOOK = 1


@asks_server
def verify_models(
    models_dir: ModelsDir,
    server: Server,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Look at this model alone.")
    ] = None,
    trusted_key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEYFILE.pub",
            help="A key whose signatures count; may be repeated. Without any, a signature need "
            "only be valid.",
        ),
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="A version without a signature is wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look for what a server would refuse: damaged, altered or unsigned files. Changes nothing.

    Looks at the directory itself; with `--admin` the server there looks at its own. Ends with exit
    code 3 if something is wrong, one line for each; with 1 if it could not look.

    `trimtab verify models`

    `trimtab verify models airtime --trusted-key trimtab.key.pub --require-signature`
    """
    if require_signature and not trusted_key:
        raise typer.BadParameter("needs --trusted-key", param_hint="--require-signature")
    if server.admin is None:
        known_directory(models_dir)
        trusted = TrustedKeys.load(trusted_key) if trusted_key else None
        found = check(models_dir, model, trusted, require_signature=require_signature)
    elif trusted_key:
        raise typer.BadParameter("is for a directory, not for --admin", param_hint="--trusted-key")
    else:
        with server.connect() as client:
            found = _collected(client.verify(model or ""))
    if as_json:
        print_json(
            {
                "whole": [_as_dict(each) for each in found.whole],
                "wrong": [_as_dict(each) for each in found.wrong],
                "notes": [_as_dict(each) for each in found.notes],
                "unreadable": [_as_dict(each) for each in found.unreadable],
            }
        )
    else:
        for each in found.whole:
            typer.echo(f"ok: {each.model}: {each.text}")
    for kind, list_ in (
        ("note", found.notes),
        ("error", found.wrong),
        ("cannot look", found.unreadable),
    ):
        for each in list_:
            typer.echo(f"{kind}: {each.text}", err=True)
    if code := ALTERED if found.wrong else _CANNOT_LOOK if found.unreadable else 0:
        raise typer.Exit(code)


def _collected(messages: Iterable[admin_pb2.VerifyFinding]) -> Findings:
    found = Findings()
    lists = {
        "ok": found.whole,
        "wrong": found.wrong,
        "note": found.notes,
        "unreadable": found.unreadable,
    }
    for message in messages:
        # A verdict of a newer server is shown, and is no reason for an exit code.
        list_ = lists.get(message.verdict, found.notes)
        list_.append(Finding(message.model_name, message.text, message.version))
    return found


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {"model": finding.model, "version": finding.version or None, "text": finding.text}
