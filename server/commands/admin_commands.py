"""The commands that ask a running server: models, promote, rollback, drift, history, events.

`models` and `history` read the directory where no server runs on it.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .admin_client import AdminClient, NotRunningError, as_dict, find_server
from .command_options import (
    Actor,
    AdminAddress,
    Json,
    Model,
    ModelsDir,
    Reason,
    Revision,
    known_directory,
    login_name,
    out,
    print_json,
)
from .report_tables import drift_table, event_line, history_table, versions_view


def list_models(
    models_dir: ModelsDir,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Only this one.", show_default=False)
    ] = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """List the versions of every model: which is champion, what is loaded, how good it was.

    Asks the server that runs on MODELS_DIR; without one, reads the directory. The revision
    counts the changes of champion.

    `trimtab models models`
    """
    try:
        with _client(models_dir, admin) as client:
            answer, served = client.list_versions(model), True
    except NotRunningError:
        if admin:
            raise
        from . import registry_view

        known_directory(models_dir)
        answer, served = registry_view.list_versions(models_dir, model), False
    if as_json:
        print_json({"served": served, **as_dict(answer)})
        return
    if not served:
        typer.echo(f"no server runs on {models_dir}: this is what the directory holds", err=True)
    if answer.models:
        out().print(versions_view(answer.models, served=served))
    else:
        out().print(f"no models in {models_dir}", markup=False)


def promote_version(
    models_dir: ModelsDir,
    model: Model,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Version number.")],
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Make VERSION the champion: the version that answers requests that name none.

    The server loads and checks it first; no request fails meanwhile.

    `trimtab promote models airtime 3 --reason "approved by the pricing team"`
    """
    with _client(models_dir, admin) as client:
        answer = client.promote(
            model,
            version,
            actor=actor or login_name(),
            reason=reason,
            expected_revision=expected_revision,
        )
    _show_change(model, answer, as_json)


def roll_back(
    models_dir: ModelsDir,
    model: Model,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again, at once: it is still loaded.

    The version that it leaves becomes the previous one: a second rollback returns to it.

    `trimtab rollback models airtime --reason "complaints since noon"`
    """
    with _client(models_dir, admin) as client:
        answer = client.rollback(
            model, actor=actor or login_name(), reason=reason, expected_revision=expected_revision
        )
    _show_change(model, answer, as_json)


def show_drift(
    models_dir: ModelsDir,
    model: Model,
    limit: Annotated[int, typer.Option(min=1, help="How many features to show.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show every feature.")] = False,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Show how far the live data of MODEL's champion moved from its reference.

    The strongest drift comes first. The two small histograms are the reference and the sliding
    window of live rows, drawn to one scale.

    `trimtab drift models airtime`
    """
    with _client(models_dir, admin) as client:
        report = client.drift(model)
    if as_json:
        print_json(as_dict(report))
    else:
        out().print(drift_table(report, 0 if show_all else limit))


def show_history(
    models_dir: ModelsDir,
    model: Model,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0: all.")] = 30,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Show what was changed, when, by whom and why.

    Asks the server that runs on MODELS_DIR; without one, reads the directory.

    `trimtab history models airtime`
    """
    try:
        with _client(models_dir, admin) as client:
            answer = client.history(model, limit)
    except NotRunningError:
        if admin:
            raise
        from . import registry_view

        known_directory(models_dir)
        answer = registry_view.history(models_dir, model, limit)
    if as_json:
        print_json(as_dict(answer))
    elif answer.entries:
        out().print(history_table(answer.entries))
    else:
        out().print(f"{model} has no history", markup=False)
    if not answer.chain_valid and answer.entries:
        typer.echo(f"error: the history of {model} was altered: its hashes do not fit", err=True)
        raise typer.Exit(1)


def watch_events(
    models_dir: ModelsDir,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Only this one's.", show_default=False)
    ] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: never.")] = 0,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Follow what happens from now on: drift, trainings, promotions, rollbacks. Ctrl-C ends it.

    `trimtab events models`
    """
    console = out()
    with _client(models_dir, admin) as client, contextlib.suppress(KeyboardInterrupt):
        for number, event in enumerate(client.watch_events(model), 1):
            if as_json:
                print(json.dumps(as_dict(event)), flush=True)
            else:
                console.print(event_line(event))
            if number == count:
                break


@contextlib.contextmanager
def _client(models_dir: Path, admin: str | None) -> Iterator[AdminClient]:
    if admin is not None and not admin.rpartition(":")[2].isdecimal():
        raise typer.BadParameter(f"{admin!r} is not HOST:PORT", param_hint="--admin")
    if admin is None:
        known_directory(models_dir)
    with AdminClient(admin or find_server(models_dir)) as client:
        yield client


def _show_change(model: str, answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(answer))
        return
    text = f"{model}: version {answer.champion} is champion"
    if answer.previous:
        text += f", version {answer.previous} is kept ready for a rollback"
    text += f" (revision {answer.revision}, took {answer.elapsed_ms:.1f} ms)"
    out().print(text, markup=False, soft_wrap=True)
