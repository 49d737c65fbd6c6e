"""`trimtab serve`: its options, the settings they make, the banner, the way to stop.

The server itself is `app.py`. It is imported late, because the other commands should not wait for
onnxruntime. The banner asks what ListVersions answers, on a thread of its own: serving never waits
for it.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from trimtab.proto import admin_pb2
from trimtab.registry.errors import RegistryError

from ..config import ConfigError, ServerConfig, load_server_config
from ..errors import TrimtabError
from .command_options import ModelsDir, known_directory
from .report_tables import versions_view

if TYPE_CHECKING:
    from ..app import Listening
    from ..loop.training_underway import Spawn


class Frontend(StrEnum):
    auto = "auto"
    native = "native"
    portable = "portable"


class Policy(StrEnum):
    auto = "auto"
    manual = "manual"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


_LISTEN, _BATCH, _DRIFT, _LOOP = "Listening", "Batching", "Drift", "Training and promotion"


def serve_models(
    models_dir: ModelsDir,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; options win over it.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Any other setting of the TOML file, as in traffic.keep_days=30.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Inference address. (0.0.0.0)", rich_help_panel=_LISTEN),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Inference port; 0 takes a free one. (8001)", rich_help_panel=_LISTEN),
    ] = None,
    admin_host: Annotated[
        str | None, typer.Option(help="Admin address. (127.0.0.1)", rich_help_panel=_LISTEN)
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(help="Admin port; 0 takes a free one. (8003)", rich_help_panel=_LISTEN),
    ] = None,
    admin_tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Tokens that callers of the admin port need (`trimtab token new`).",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    metrics: Annotated[
        bool | None,
        typer.Option(
            "--metrics/--no-metrics",
            help="Answer scrapes of Prometheus. (metrics)",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            help="Metrics port, on the inference address; 0 takes a free one. (8002)",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    frontend: Annotated[
        Frontend | None,
        typer.Option(help="Which gRPC transport answers. (auto)", rich_help_panel=_LISTEN),
    ] = None,
    watch: Annotated[
        bool | None,
        typer.Option(
            "--watch/--no-watch",
            help="Follow changes of the directory while serving. (watch)",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    model_control: Annotated[
        bool | None,
        typer.Option(
            "--model-control/--no-model-control",
            help="Let clients of the inference port load and unload models. (no)",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    max_batch_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows that one run of a model takes at most. (1024)", rich_help_panel=_BATCH
        ),
    ] = None,
    max_queue_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows that may wait per version; more are refused. (65536)",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    linger_ms: Annotated[
        float | None,
        typer.Option(
            help="How long an idle executor waits for more rows. (0)", rich_help_panel=_BATCH
        ),
    ] = None,
    drift: Annotated[
        bool | None,
        typer.Option("--drift/--no-drift", help="Watch for drift. (drift)", rich_help_panel=_DRIFT),
    ] = None,
    window_rows: Annotated[
        int | None,
        typer.Option(help="Rows in the sliding window. (10000)", rich_help_panel=_DRIFT),
    ] = None,
    psi: Annotated[
        float | None,
        typer.Option(
            help="PSI of one feature from which it has drifted. (0.2)", rich_help_panel=_DRIFT
        ),
    ] = None,
    ks: Annotated[
        float | None,
        typer.Option(
            help="KS distance of one feature from which it has drifted. (0.2)",
            rich_help_panel=_DRIFT,
        ),
    ] = None,
    train_on_drift: Annotated[
        bool | None,
        typer.Option(
            "--train-on-drift/--no-train-on-drift",
            help="Drift starts a training. (on)",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    train_every: Annotated[
        float | None,
        typer.Option(
            help="Seconds between scheduled trainings; 0: none. (0)", rich_help_panel=_LOOP
        ),
    ] = None,
    min_labels: Annotated[
        int | None,
        typer.Option(
            help="New labels that a training by itself waits for. (2000)", rich_help_panel=_LOOP
        ),
    ] = None,
    cooldown: Annotated[
        float | None,
        typer.Option(help="Seconds between trainings at least. (86400)", rich_help_panel=_LOOP),
    ] = None,
    promotion: Annotated[
        Policy | None,
        typer.Option(
            help="auto: a version that passed every gate becomes champion by itself; manual: you "
            "promote it. (auto)",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged.")] = LogLevel.info,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON when the server is ready.")
    ] = False,
    until_eof: Annotated[
        bool,
        typer.Option(
            "--until-eof", help="Stop when standard input ends: for a parent process that may die."
        ),
    ] = False,
) -> None:
    """Serve every model in MODELS_DIR until SIGINT or SIGTERM.

    An ONNX file is served as it is from `MODELS_DIR/NAME/1/model.onnx`. A model whose directory
    has a `trimtab.toml` is also retrained, by the recipe and the policy in that file. Settings
    come from the defaults (in brackets below), then the file of `--config`, then the options.

    `trimtab serve models`

    `trimtab serve models --port 9001 --psi 0.1 --promotion manual`
    """
    options = {
        "server.host": host,
        "server.port": port,
        "server.admin_host": admin_host,
        "server.admin_port": admin_port,
        "server.admin_tokens": str(admin_tokens) if admin_tokens else None,
        "server.metrics": metrics,
        "server.metrics_port": metrics_port,
        "server.frontend": frontend.value if frontend else None,
        "server.watch": watch,
        "server.model_control": model_control,
        "batching.max_batch_rows": max_batch_rows,
        "batching.max_queue_rows": max_queue_rows,
        "batching.linger_ms": linger_ms,
        "drift.enabled": drift,
        "drift.window_rows": window_rows,
        "drift.psi": psi,
        "drift.ks": ks,
        "trigger.on_drift": train_on_drift,
        "trigger.every_s": train_every,
        "trigger.min_labels": min_labels,
        "trigger.cooldown_s": cooldown,
        "promotion.policy": promotion.value if promotion else None,
    }
    settings = make_config(models_dir, config, options, assignments or [])
    configure_logging(log_level.value)
    serve(settings, as_json=as_json, until_eof=until_eof)


def read_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """`drift.psi=0.1` and the like as dotted keys and values; a value is TOML, else a string.

    Raises ConfigError.
    """
    settings: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or key.count(".") != 1:
            raise ConfigError(f"--set {text}: must be SECTION.KEY=VALUE, as in drift.psi=0.1")
        try:
            settings[key] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value.strip()
    return settings


def make_config(
    models_dir: Path,
    file: Path | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
) -> ServerConfig:
    """The server's settings: defaults, then the file, then `--set`, then the named options.

    Raises ConfigError.
    """
    known_directory(models_dir)
    given = {key: value for key, value in options.items() if value is not None}
    settings = {**read_settings(assignments), **given}
    return load_server_config(models_dir, file, settings)


def serve(
    config: ServerConfig, *, as_json: bool, until_eof: bool, spawn: "Spawn | None" = None
) -> None:
    """Serves until SIGTERM or SIGINT, or until standard input ends where that was asked for.

    `spawn` makes the trainer's runs; None: each is a process from the start.
    """
    from ..app import Listening, run  # not at the top: it brings onnxruntime

    if until_eof:
        threading.Thread(target=_stop_at_eof, name="stdin", daemon=True).start()

    def on_ready(listening: Listening) -> None:
        threading.Thread(
            target=_announce,
            args=(listening, as_json),
            name="banner",
            daemon=True,
        ).start()

    asyncio.run(run(config, on_ready, spawn))


def configure_logging(level: str) -> None:
    """Log lines go to standard error: time, level, logger, text."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def _announce(listening: "Listening", as_json: bool) -> None:
    models: Sequence[admin_pb2.ModelVersions] = ()
    problem = ""
    try:
        models = list(listening.list_versions().models)
    except (OSError, TrimtabError, RegistryError) as error:
        problem = str(error)
    if as_json:
        line = {
            "event": "listening",
            "inference": listening.inference,
            "admin": listening.admin,
            "metrics": listening.metrics,
            "frontend": listening.frontend,
            "models": [_summary(model) for model in models],
        }
        print(json.dumps(line), flush=True)
        return
    console = Console()
    console.print(f"[bold]Trimtab {version('trimtab')}[/bold] is ready")
    protocol = f"Open Inference Protocol over gRPC, {listening.frontend}"
    console.print(f"  inference  {listening.inference}   ({protocol})")
    console.print(f"  admin      {listening.admin}")
    if listening.metrics is not None:
        console.print(f"  metrics    http://{listening.metrics}/metrics")
    console.print()
    if problem:
        console.print(f"the list of models could not be had: {problem}", markup=False)
    elif models:
        console.print(versions_view(models, served=True))
    else:
        console.print("no models yet: a directory that is put there is served as it appears")


def _summary(model: admin_pb2.ModelVersions) -> dict[str, Any]:
    return {
        "model": model.model_name,
        "managed": model.managed,
        "champion": model.champion,
        "versions": [
            {"version": item.version, "state": item.state, "reason": item.reason}
            for item in model.versions
        ],
    }


def _stop_at_eof() -> None:
    # os.read and not sys.stdin: a daemon thread that holds the buffer's lock breaks the exit.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
