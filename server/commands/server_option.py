"""Which server a command asks, and how it makes itself known there: the same options everywhere.

A command that takes a parameter `server: Server` and is wrapped by `asks_server` has the options; one
that can do without a server gives `Server.ask` what to do then.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .admin_client import AdminClient, Connection, NotRunningError, find_server
from .command_options import known_directory

_PANEL = "Server"
_Answer = TypeVar("_Answer")

_OPTIONS: dict[str, Any] = {
    "admin": Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Admin port of the server; by default that of the server that runs on MODELS_DIR.",
            rich_help_panel=_PANEL,
        ),
    ],
    "token": Annotated[
        str | None,
        typer.Option(
            envvar="TRIMTAB_TOKEN",
            help="Token for the admin port. In the environment others do not see it.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_ca": Annotated[
        Path | None,
        typer.Option(
            envvar="TRIMTAB_TLS_CA",
            metavar="FILE",
            help="PEM file of the authority that signed the admin port's certificate; makes it TLS.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_cert": Annotated[
        Path | None,
        typer.Option(
            envvar="TRIMTAB_TLS_CERT",
            metavar="FILE",
            help="PEM file of a certificate to show there.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_key": Annotated[
        Path | None,
        typer.Option(
            envvar="TRIMTAB_TLS_KEY",
            metavar="FILE",
            help="PEM file of its private key.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tls_name": Annotated[
        str | None,
        typer.Option(
            envvar="TRIMTAB_TLS_NAME",
            help="The name in the admin port's certificate, where it is not the address.",
            rich_help_panel=_PANEL,
        ),
    ],
}


@dataclass(frozen=True)
class Server:
    """The one that was named, or that runs on the directory."""

    models_dir: Path
    admin: str | None
    connection: Connection

    @contextlib.contextmanager
    def connect(self) -> Iterator[AdminClient]:
        """NotRunningError, AdminError."""
        if self.admin is None:
            known_directory(self.models_dir)
            found = find_server(self.models_dir)
            address, tls = found.address, found.tls
        else:
            address, tls = self.admin, False
        with AdminClient(address, connection=self.connection, tls=tls) as client:
            if client.shows_token:
                typer.echo(
                    f"note: without --tls-ca the token goes to {address} for everybody on the way "
                    "to read",
                    err=True,
                )
            yield client

    def ask(
        self, there: Callable[[AdminClient], _Answer], here: Callable[[Path], _Answer]
    ) -> tuple[_Answer, bool]:
        """Of the server; where none runs on the directory, of what `here` finds in it. And whether a
        server answered."""
        try:
            with self.connect() as client:
                return there(client), True
        except NotRunningError:
            if self.admin is not None:
                raise
        known_directory(self.models_dir)
        return here(self.models_dir), False


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options, and their meaning as its parameter `server`."""
    signature = inspect.signature(command)

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        told = {name: given.pop(name) for name in _OPTIONS}
        admin = told.pop("admin")
        if admin is not None and not admin.rpartition(":")[2].isdecimal():
            raise typer.BadParameter(f"{admin!r} is not HOST:PORT", param_hint="--admin")
        if (told["tls_cert"] is None) != (told["tls_key"] is None):
            raise typer.BadParameter(
                "needs the other one beside it", param_hint="--tls-cert, --tls-key"
            )
        given["server"] = Server(given["models_dir"], admin, Connection(**told))
        command(**given)

    own = [each for each in signature.parameters.values() if each.name != "server"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *options)]
    # What typer reads.
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect looks for it
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped
