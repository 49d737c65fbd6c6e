"""`trimtab keys`: the keys that sign versions."""

from pathlib import Path
from typing import Annotated

import typer

from .command_options import Json, print_json

keys = typer.Typer(no_args_is_help=True, help="Make the keys that sign versions.")


@keys.callback()
def _root() -> None:
    """Make the keys that sign versions."""


@keys.command("new")
def new_key(
    file: Annotated[
        Path,
        typer.Argument(metavar="KEYFILE", help="Where the private key goes; must not exist."),
    ],
    as_json: Json = False,
) -> None:
    """Make a pair of ed25519 keys: KEYFILE, for its owner alone, and KEYFILE.pub to hand out.

    Whoever publishes signs with KEYFILE; whoever serves trusts KEYFILE.pub. Needs the extra
    `trimtab[signing]`.

    `trimtab keys new ~/trimtab.key`
    """
    from trimtab.registry.signing import new_key as make

    public, fingerprint = make(file)
    if as_json:
        print_json({"private": str(file), "public": str(public), "fingerprint": fingerprint})
    else:
        typer.echo(f"private key: {file}  (keep it; whoever has it can sign)")
        typer.echo(f"public key:  {public}")
        typer.echo(f"fingerprint: {fingerprint}")
