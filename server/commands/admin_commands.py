"""The commands that ask: models, describe, drift, rollout, history, events.

`models`, `describe` and `history` read the directory where no server runs on it.
"""

import contextlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from trimtab.proto import admin_pb2

from . import registry_view
from .admin_client import as_dict
from .command_options import Json, Model, ModelsDir, out, print_json
from .report_tables import drift_table, event_line, history_table, moment, versions_view
from .server_option import Server, asks_server
from .version_views import description_view, rollout_view

_LOOK_S = 1.0  # between two looks of `rollout --watch`


@asks_server
def list_models(
    models_dir: ModelsDir,
    server: Server,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Only this one.", show_default=False)
    ] = "",
    as_json: Json = False,
) -> None:
    """List the versions of every model: which is champion, what is loaded, how good it was.

    Asks the server that runs on MODELS_DIR; without one, reads the directory. The revision
    counts the changes of champion.

    `trimtab models models`
    """
    answer, served = server.ask(
        lambda client: client.list_versions(model),
        lambda path: registry_view.list_versions(path, model),
    )
    if as_json:
        print_json({"served": served, **as_dict(answer)})
        return
    _say_unserved(models_dir, served)
    if answer.models:
        out().print(versions_view(answer.models, served=served))
    else:
        out().print(f"no models in {models_dir}", markup=False)


@asks_server
def describe_version(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    version: Annotated[
        int,
        typer.Argument(
            metavar="[VERSION]", min=0, help="By default the champion.", show_default=False
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Show one version in full: tensors, files, gates, where it comes from, what became of it.

    Asks the server that runs on MODELS_DIR; without one, reads the directory.

    `trimtab describe models airtime 3`
    """
    answer, served = server.ask(
        lambda client: client.describe(model, version),
        lambda path: registry_view.describe(path, model, version),
    )
    if as_json:
        print_json({"served": served, **as_dict(answer)})
        return
    _say_unserved(models_dir, served)
    out().print(description_view(answer))


@asks_server
def show_drift(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    limit: Annotated[int, typer.Option(min=1, help="How many features to show.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show every feature.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far the live data of MODEL's champion moved from its reference.

    The strongest drift comes first. The two small histograms are the reference and the sliding
    window of live rows, drawn to one scale.

    `trimtab drift models airtime`
    """
    with server.connect() as client:
        report = client.drift(model)
    if as_json:
        print_json(as_dict(report))
    else:
        out().print(drift_table(report, 0 if show_all else limit))


@asks_server
def show_rollout(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show it again whenever it changes, until the roll-out ends."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show how MODEL's roll-out stands: what is compared, how far it came, what was found.

    `trimtab rollout models airtime --watch`
    """
    with server.connect() as client, contextlib.suppress(KeyboardInterrupt):
        status = client.rollout(model)
        _show_rollout(status, as_json)
        while watch and status.phase not in ("", "none"):
            time.sleep(_LOOK_S)
            shown, status = status, client.rollout(model)
            if status != shown:
                _show_rollout(status, as_json)


@asks_server
def show_history(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0: all.")] = 30,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Not what was before, as 2026-01-31 or 2026-01-31T12:00Z."
        ),
    ] = None,
    version: Annotated[int, typer.Option(min=0, help="Only what is about this version.")] = 0,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Show which version was champion then, and why."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what was changed, when, by whom and why. Or who was champion at a time.

    Asks the server that runs on MODELS_DIR; without one, reads the directory. Times without a
    zone are UTC.

    `trimtab history models airtime`

    `trimtab history models airtime --at "2026-01-31T12:00Z"`
    """
    request = admin_pb2.GetHistoryRequest(model_name=model, limit=limit, version=version)
    if since is not None:
        request.since_ms = _time_ms(since, "--since")
    if at is not None:
        request.champion_at_ms = _time_ms(at, "--at")
    answer, _ = server.ask(
        lambda client: client.ask_history(request),
        lambda path: registry_view.history(path, request),
    )
    if as_json:
        print_json(as_dict(answer))
    elif at is not None:
        text = champion_text(model, request.champion_at_ms, answer)
        out().print(text, markup=False, soft_wrap=True)
    elif answer.entries:
        out().print(history_table(answer.entries))
    else:
        out().print(f"{model} has no history{' that fits' * bool(since or version)}", markup=False)
    if not answer.chain_valid:
        where = f": {answer.chain_error}" if answer.chain_error else ""
        typer.echo(
            f"error: the history of {model} was altered: its hashes do not fit{where}", err=True
        )
        raise typer.Exit(1)


def champion_text(model: str, time_ms: int, answer: admin_pb2.GetHistoryResponse) -> str:
    """Who was champion at a time, in one sentence."""
    when = f"at {moment(time_ms)} UTC"
    if not answer.HasField("champion_at"):
        return f"{model} had no champion {when}"
    found = answer.champion_at
    how = found.kind.replace("_", " ")
    return (
        f"{model}: version {found.version} was champion {when}, {how} {moment(found.time_ms)} "
        f"by {found.actor}: {found.reason}"
    )


@asks_server
def watch_events(
    models_dir: ModelsDir,
    server: Server,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Only this one's.", show_default=False)
    ] = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: never.")] = 0,
    resume_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep there how far it came, and begin after what it holds: nothing is missed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow what happens from now on: drift, trainings, promotions, rollbacks. Ctrl-C ends it.

    With `--resume-file` the next call goes on where this one ended, whatever happened in between:
    what is recorded is not missed, and an event `events_lost` tells of what else is.

    `trimtab events models`

    `trimtab events models --json --resume-file events.at`
    """
    console = out()
    with server.connect() as client, contextlib.suppress(KeyboardInterrupt):
        events = client.watch_events(model, _read_token(resume_file))
        for number, event in enumerate(events, 1):
            if as_json:
                print(json.dumps(as_dict(event)), flush=True)
            else:
                console.print(event_line(event))
            if resume_file is not None and event.resume_token:
                _keep_token(resume_file, event.resume_token)
            if number == count:
                break


def _read_token(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""  # the first time


def _keep_token(file: Path, token: str) -> None:
    staged = file.with_name(file.name + ".tmp")
    staged.write_text(token + "\n", encoding="ascii")
    staged.replace(file)


def _show_rollout(status: admin_pb2.RolloutStatusResponse, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(status)), flush=True)
    else:
        out().print(rollout_view(status))


def _say_unserved(models_dir: Path, served: bool) -> None:
    if not served:
        typer.echo(f"no server runs on {models_dir}: this is what the directory holds", err=True)


def _time_ms(text: str, option: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a time, as 2026-01-31 or 2026-01-31T12:00Z", param_hint=option
        ) from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return round(found.timestamp() * 1000)
