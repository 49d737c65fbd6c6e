"""The commands that change: promote, rollback, approve, reject, freeze, pin, block, their reverses, gc.

The champion is changed by a running server alone: it loads the version, and lets it answer. What is
the registry's alone is done in the directory where no server runs on it, under the same locks and into
the same history.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.proto import admin_pb2

from . import registry_view
from .admin_client import as_dict
from .command_options import (
    Actor,
    Json,
    Model,
    ModelsDir,
    Reason,
    Revision,
    login_name,
    out,
    print_json,
)
from .server_option import Server, asks_server

Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Version number.")]


@asks_server
def promote_version(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Make VERSION the champion: the version that answers requests that name none.

    The server loads and checks it first; no request fails meanwhile.

    `trimtab promote models airtime 3 --reason "approved by the pricing team"`
    """
    with server.connect() as client:
        answer = client.promote(
            model,
            version,
            actor=actor or login_name(),
            reason=reason,
            expected_revision=expected_revision,
        )
    _show_champion(model, answer, as_json)


@asks_server
def roll_back(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    to: Annotated[
        int,
        typer.Option(
            min=0,
            help="An earlier champion, further back (`trimtab models` shows them). "
            "0: the previous one.",
        ),
    ] = 0,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again, at once: it is still loaded.

    The version that it leaves becomes the previous one: a second rollback returns to it.

    `trimtab rollback models airtime --reason "complaints since noon"`
    """
    with server.connect() as client:
        answer = client.rollback(
            model,
            actor=actor or login_name(),
            reason=reason,
            expected_revision=expected_revision,
            version=to,
        )
    _show_champion(model, answer, as_json)


@asks_server
def approve(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Approve VERSION, which passed its gates and waits for it: it goes on as the policy says.

    `[promotion] approval` makes versions wait; `trimtab rollout` shows which one does.

    `trimtab approve models airtime 3 --reason "checked against the winter schedule"`
    """
    request = admin_pb2.ApproveRequest(model_name=model, version=version)
    _answer(server, request, actor, reason, as_json)


@asks_server
def reject(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Reject VERSION, which waits for approval: it is refused, and blocked.

    `trimtab reject models airtime 3 --reason "trained on the strike"`
    """
    request = admin_pb2.RejectRequest(model_name=model, version=version)
    _answer(server, request, actor, reason, as_json)


@asks_server
def freeze(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Let nothing but a person change MODEL's champion, until `unfreeze`.

    `trimtab freeze models airtime --reason "audit until Friday"`
    """
    request = admin_pb2.FreezeRequest(model_name=model, expected_revision=expected_revision)
    _change(server, request, actor, reason, as_json, f"{model} is frozen")


@asks_server
def unfreeze(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Let MODEL's champion be changed automatically again.

    `trimtab unfreeze models airtime`
    """
    request = admin_pb2.UnfreezeRequest(model_name=model, expected_revision=expected_revision)
    _change(server, request, actor, reason, as_json, f"{model} is not frozen")


@asks_server
def pin(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Keep VERSION for good, however old it gets, until `unpin`.

    `trimtab pin models airtime 3 --reason "reported to the regulator"`
    """
    request = admin_pb2.PinRequest(
        model_name=model, version=version, expected_revision=expected_revision
    )
    _change(server, request, actor, reason, as_json, f"{model}: version {version} is pinned")


@asks_server
def unpin(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Let VERSION be removed when it is old.

    `trimtab unpin models airtime 3`
    """
    request = admin_pb2.UnpinRequest(
        model_name=model, version=version, expected_revision=expected_revision
    )
    _change(server, request, actor, reason, as_json, f"{model}: version {version} is not pinned")


@asks_server
def block(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Let nothing promote VERSION by itself, and no rollback return to it, until `unblock`.

    A champion that is blocked stays champion until it is left. Promoting a version by hand lifts
    its block.

    `trimtab block models airtime 3 --reason "trained on mislabelled rows"`
    """
    request = admin_pb2.BlockRequest(
        model_name=model, version=version, expected_revision=expected_revision
    )
    _change(server, request, actor, reason, as_json, f"{model}: version {version} is blocked")


@asks_server
def unblock(
    models_dir: ModelsDir,
    model: Model,
    version: Version,
    server: Server,
    reason: Reason = "",
    actor: Actor = None,
    expected_revision: Revision = 0,
    as_json: Json = False,
) -> None:
    """Let VERSION be promoted automatically again.

    `trimtab unblock models airtime 3`
    """
    request = admin_pb2.UnblockRequest(
        model_name=model, version=version, expected_revision=expected_revision
    )
    _change(server, request, actor, reason, as_json, f"{model}: version {version} is not blocked")


@asks_server
def remove_old(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest versions stay.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which would be removed.")
    ] = False,
    reason: Reason = "",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Remove old versions for good: all but the newest ones and those that may be needed.

    Never the champion, the challenger, what a rollback may return to, what is pinned, or what
    `[serving] versions` keeps loaded.

    `trimtab gc models airtime --keep 10 --dry-run`
    """
    request = admin_pb2.RetainRequest(
        model_name=model,
        keep=keep,
        dry_run=dry_run,
        actor=actor or login_name(),
        reason=reason or f"not one of the newest {keep}",
    )
    answer, _ = server.ask(
        lambda client: client.retain(request), lambda path: registry_view.retain(path, request)
    )
    if as_json:
        print_json({"dry_run": dry_run, **as_dict(answer)})
        return
    word = "would be removed" if dry_run else "removed"
    for version in answer.removed:
        typer.echo(f"{model}: version {version} {word}")
    for kept in answer.kept:
        typer.echo(f"{model}: version {kept.version} stays: {kept.reason}")
    if not answer.removed:
        typer.echo(f"{model}: nothing to remove")


def _answer(server: Server, request: Any, actor: str | None, reason: str, as_json: bool) -> None:
    request.actor = actor or login_name()
    request.reason = reason
    with server.connect() as client:
        answer = client.answer_approval(request)
    if as_json:
        print_json(as_dict(answer))
        return
    out().print(f"{request.model_name}: {answer.text}", markup=False, soft_wrap=True)


def _change(
    server: Server, request: Any, actor: str | None, reason: str, as_json: bool, text: str
) -> None:
    request.actor = actor or login_name()
    request.reason = reason

    def here(models_dir: Path) -> admin_pb2.ChangeResponse:
        return registry_view.change(models_dir, request)

    answer, served = server.ask(lambda client: client.change(request), here)
    if as_json:
        print_json({"served": served, **as_dict(answer)})
        return
    already = ", as it was" if answer.unchanged else ""
    out().print(f"{text}{already}", markup=False, soft_wrap=True)


def _show_champion(model: str, answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(answer))
        return
    text = f"{model}: version {answer.champion} is champion"
    if answer.previous:
        text += f", version {answer.previous} is kept ready for a rollback"
    text += f" (revision {answer.revision}, took {answer.elapsed_ms:.1f} ms)"
    out().print(text, markup=False, soft_wrap=True)
