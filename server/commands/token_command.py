"""`trimtab token`: who may use the admin port."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..services.admin import tokens
from .command_options import Json, print_json

token = typer.Typer(no_args_is_help=True, help="Make the tokens of the admin port.")


class Role(StrEnum):
    viewer = "viewer"
    operator = "operator"


@token.callback()
def _root() -> None:
    """Make the tokens of the admin port."""


@token.command("new")
def new_token(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Whose; every change is recorded with it.")
    ],
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="The tokens file: `[server] admin_tokens`.")
    ],
    role: Annotated[
        Role, typer.Option(help="A viewer sees everything, an operator changes it too.")
    ] = Role.viewer,
    as_json: Json = False,
) -> None:
    """Make a token, show it this once, and add its hash to FILE.

    A running server takes it from the next call on. Removing the line takes the token back.

    `trimtab token new ann --role operator --file tokens`
    """
    made = tokens.new_token(file, name, role.value)
    if as_json:
        print_json({"name": name, "role": role.value, "token": made, "file": str(file)})
        return
    print(made)
    typer.echo(
        f"{name} may use it as {role.value}; it is not shown again. {file} has its hash.", err=True
    )
