"""`trimtab labels`: submits a file of labels to a running server.

The file is checked and read by the child process that reads the files of a model's drop directory
(loop/label_run.py), and its labels go to the server as a client's would, by `SubmitLabels`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trimtab.proto import feedback_pb2 as pb

from ..logs.label_log import Label
from ..loop.label_run import LabelCounts, LabelParts, LabelRun
from ..loop.training_run import TrainingResult
from .admin_client import find_server
from .command_options import Json, Model, ModelsDir, known_directory, out, print_json

_METHOD = "/trimtab.v1.Feedback/SubmitLabels"
_TIMEOUT_S = 60.0
_ANY_ROWS = 2**31 - 1  # the server knows how many rows its requests have

_Send = Callable[[LabelParts], None]


class LabelsError(Exception):
    """Not all labels were taken; the text says why, and how many were."""


def submit_labels(
    models_dir: ModelsDir,
    model: Model,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .parquet, .csv or .tsv file of labels.")
    ],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Inference port; by default that of the server that runs on MODELS_DIR.",
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the authority that signed its certificate."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of a certificate to show there.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file of its private key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a file of labels: what the truth turned out to be, for rows that were predicted.

    Columns: `id` of the request and `label`; `row` in that request (0 without it), and `time` when the
    label became known (now without it). A file with a row that cannot be read is refused whole.

    `trimtab labels models airtime arrived.parquet`
    """
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter(
            "needs the other one beside it", param_hint="--tls-cert, --tls-key"
        )
    address = server or _inference_address(models_dir)
    if not address.rpartition(":")[2].isdecimal():
        raise typer.BadParameter(f"{address!r} is not HOST:PORT", param_hint="--server")
    with _channel(address, tls_ca, tls_cert, tls_key) as channel:
        counts, taken = read_labels(file, _sender(channel, model), Console(stderr=True))
    if as_json:
        print_json(
            {
                "model": model,
                "rows": counts.rows,
                "labels": taken,
                "unlabelled": counts.unlabelled,
                "repeated": counts.repeated,
            }
        )
        return
    told = [f"{taken:,} labels of model {model} were taken"]
    if counts.unlabelled:
        told.append(f"{counts.unlabelled:,} rows had none yet")
    if counts.repeated:
        told.append(f"{counts.repeated:,} rows were in it more than once, the last one counts")
    out().print("; ".join(told), markup=False, highlight=False)


def read_labels(file: Path, send: _Send, console: Console) -> tuple[LabelCounts, int]:
    """Reads a file to its end, with a bar that vanishes: its counts, and how many labels were taken.
    LabelsError."""
    results: list[TrainingResult] = []
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"checking {file.name}", total=None)

        def take(parts: LabelParts) -> None:
            send(parts)
            done = sum(len(labels) for labels, _ in parts)
            bar.update(task, advance=done, total=run.counts.labels, description="labels")

        run = LabelRun(file.resolve(), "any", _ANY_ROWS, take, results.append, nice=0)
        run.start()
        try:
            run.join()
        except KeyboardInterrupt:
            run.kill("was interrupted")
            run.join()
            raise
    if results[0].outcome == "failed":
        before = f"; {run.taken:,} labels had been taken before" if run.taken else ""
        raise LabelsError("\n".join([f"{file}: {results[0].reason}{before}", *run.counts.problems]))
    return run.counts, run.taken


def _sender(channel: grpc.Channel, model: str) -> _Send:
    method = channel.unary_unary(
        _METHOD,
        request_serializer=pb.SubmitLabelsRequest.SerializeToString,
        response_deserializer=pb.SubmitLabelsResponse.FromString,
    )

    def send(parts: LabelParts) -> None:
        for labels, time_ms in parts:
            request = pb.SubmitLabelsRequest(
                model_name=model,
                labels=[_message(label) for label in labels],
                event_time_ms=time_ms or 0,
            )
            try:
                method(request, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise LabelsError(error.details() or error.code().name) from error

    return send


def _message(label: Label) -> pb.Label:
    if label.text is not None:
        return pb.Label(id=label.id, row=label.row, text=label.text)
    return pb.Label(id=label.id, row=label.row, number=label.number or 0.0)


def _inference_address(models_dir: Path) -> str:
    """Of the server that runs on the directory; NotRunningError, AdminError."""
    known_directory(models_dir)
    find_server(models_dir)
    return str(json.loads((models_dir / ".trimtab" / "server.json").read_text())["inference"])


def _channel(address: str, ca: Path | None, cert: Path | None, key: Path | None) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0)]
    if ca is None and cert is None:
        return grpc.insecure_channel(address, options)
    pems = [None if file is None else file.read_bytes() for file in (ca, key, cert)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*pems), options)
