"""The commands about trainings that a server runs: retrain, cancel, trainings."""

import time
from typing import Annotated

import typer

from trimtab.proto import admin_pb2

from ..events import wall_ms
from . import registry_view
from .admin_client import AdminClient, as_dict
from .command_options import Actor, Json, Model, ModelsDir, Reason, login_name, out, print_json
from .server_option import Server, asks_server
from .training_view import (
    SKIPPED,
    TrainingRecord,
    in_the_last,
    progress_text,
    summary,
    trainings_of,
    trainings_view,
)

_LOOK_S = 0.5  # between two looks of `retrain --wait`
_SAY_S = 5.0  # between two lines of one stage
_FAILED, _REFUSED = 1, 3


@asks_server
def retrain(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    reason: Reason = "asked for by hand",
    actor: Actor = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show how far it is, and end with its result.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have the server train MODEL now, whatever the drift.

    Cooldown, budget and labels are passed over; the gates and the policy of promotion are not. With
    `--wait` the exit code is 0 for a version, 3 for a refusal by a gate, 1 for anything else.
    `trimtab train` trains in a process of its own instead, and promotes nothing.

    `trimtab retrain models airtime --reason "new columns" --wait`
    """
    with server.connect() as client:
        training_id = client.train(model, actor=actor or login_name(), reason=reason).training_id
        if not wait:
            if as_json:
                print_json({"training_id": training_id})
            else:
                out().print(f"{model}: training {training_id} began", markup=False)
            return
        _follow(client, model, training_id)
        record = _record(client.history(model), training_id)
    if as_json:
        print_json(record.as_dict())
    else:
        detail = f": {record.detail}" if record.detail else ""
        text = f"{model}: training {training_id} {record.outcome}{detail}"
        out().print(text, markup=False, soft_wrap=True)
    if record.outcome == "refused":
        raise typer.Exit(_REFUSED)
    if not record.made_a_version:
        raise typer.Exit(_FAILED)


@asks_server
def cancel_training(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    training_id: Annotated[
        str, typer.Option("--id", help="Only this one, as `trimtab trainings` shows it.")
    ] = "",
    reason: Reason = "no reason given",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """End the training of MODEL that runs, or withdraw the request for one that has not begun.

    It is no failure, but counts as a training: the next one that begins by itself waits for the
    cooldown and for new labels. Fails if the training ended by itself at the same moment.

    `trimtab cancel models airtime --reason "wrong data"`
    """
    with server.connect() as client:
        answer = client.cancel_training(
            model, training_id, actor=actor or login_name(), reason=reason
        )
    if as_json:
        print_json(as_dict(answer))
    else:
        out().print(f"{model}: {answer.text}", markup=False)


@asks_server
def list_trainings(
    models_dir: ModelsDir,
    model: Model,
    server: Server,
    days: Annotated[
        float, typer.Option(min=0, help="Of so many days up to now; 0: of all times.")
    ] = 7.0,
    as_json: Json = False,
) -> None:
    """List MODEL's trainings: when, why, what came of them; in a dry run those that would have been.

    And what runs now: its stage, how far it is and how long it will take. Without a server the history
    in the directory tells what was.

    `trimtab trainings models airtime --days 30`
    """
    request = admin_pb2.GetHistoryRequest(model_name=model)

    def ask(
        client: AdminClient,
    ) -> tuple[admin_pb2.GetHistoryResponse, admin_pb2.TrainingStatusResponse | None]:
        return client.ask_history(request), client.training(model)

    (history, status), served = server.ask(
        ask, lambda path: (registry_view.history(path, request), None)
    )
    records = in_the_last(trainings_of(history.entries), days, wall_ms())
    if not as_json:
        out().print(trainings_view(model, records, days, status))
        return
    skipped = sum(record.outcome == SKIPPED for record in records)
    print_json(
        {
            "served": served,
            "model_name": model,
            "summary": summary(model, records, days),
            "trained": len(records) - skipped,
            "would_have_trained": skipped,
            "trainings": [record.as_dict() for record in records],
            "status": None if status is None else as_dict(status),
        }
    )


def _follow(client: AdminClient, model: str, training_id: str) -> None:
    """Lines on standard error until the training is over."""
    said, said_s = "", 0.0
    while (status := client.training(model)).training_id == training_id:
        now_s = time.monotonic()
        if status.stage != said or now_s - said_s >= _SAY_S:
            said, said_s = status.stage, now_s
            typer.echo(f"{training_id}: {progress_text(status)}", err=True)
        time.sleep(_LOOK_S)


def _record(history: admin_pb2.GetHistoryResponse, training_id: str) -> TrainingRecord:
    for record in trainings_of(history.entries):
        if record.training_id == training_id:
            return record
    return TrainingRecord(training_id, 0, "", "", "", "unknown", "the history does not have it")
