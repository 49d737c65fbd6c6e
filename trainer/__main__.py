"""The trainer's command line: `python -m trimtab.trainer COMMAND`.

The server starts it as a child process; a person may do so too. The thread pools of Polars, OpenMP
and OpenBLAS are sized when those libraries are imported, so nothing heavy is imported at the top of
this file, and a command sets the sizes before it imports its work.

Exit codes: 0 done (a version was published), 1 failed, 2 wrong usage, 3 refused by a gate.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import threading
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import backtest_command

FAILED = 1
REFUSED = 3

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LEAST_MB = 1400  # of address space: 740 for the libraries, 1,290 for a training of a few rows

app = typer.Typer(
    help="Trains models, rolls traffic logs, replays history.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelsDir = Annotated[
    Path,
    typer.Option("--models-dir", help="The directory of models.", exists=True, file_okay=False),
]
ModelName = Annotated[str, typer.Option("--model", help="The model's name.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads to use; else POLARS_MAX_THREADS and OMP_NUM_THREADS hold, or 1.",
    ),
]
ExitWithParent = Annotated[
    bool,
    typer.Option(
        "--exit-with-parent", help="End when standard input, a pipe from the parent, ends."
    ),
]


class ProgressMode(StrEnum):
    JSON = "json"
    RICH = "rich"
    NONE = "none"


def limit_threads(threads: int | None) -> None:
    """Sizes the thread pools; None: one thread where the environment does not say otherwise.

    Only of use before polars, numpy and scikit-learn are imported.
    """
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if threads is None:
            os.environ.setdefault(name, "1")
        else:
            os.environ[name] = str(threads)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # the Linux wheel would phone home


app.command("backtest")(backtest_command.backtest)


@app.command()
def train(
    models_dir: ModelsDir,
    model: ModelName,
    actor: Annotated[str, typer.Option(help="Who asks for it, for the history.")] = "trainer",
    reason: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    trigger: Annotated[str, typer.Option(help="What set it off, a JSON object.")] = "{}",
    event_time_ms: Annotated[
        int | None, typer.Option(help="The loop's time, in milliseconds since the epoch.")
    ] = None,
    label_maturity_s: Annotated[
        float, typer.Option(min=0, help="Served rows younger than so many seconds are left out.")
    ] = 0.0,
    signing_key: Annotated[
        Path | None, typer.Option(help="PEM file of the key that a version is signed with.")
    ] = None,
    progress: Annotated[
        ProgressMode, typer.Option(help="json: lines on standard output, for a program.")
    ] = ProgressMode.RICH,
    record: Annotated[
        bool, typer.Option("--record", help="Enter a refusal or failure into the history.")
    ] = False,
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Trains a model by its recipe; publishes it as a version if it passes every gate."""
    try:
        set_off_by = json.loads(trigger)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--trigger") from error
    if not isinstance(set_off_by, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--trigger")
    limit_threads(threads)
    _follow_parent(exit_with_parent)
    if lacking := _lacking_memory():
        if progress is ProgressMode.JSON:
            print(json.dumps({"result": {"outcome": "failed", "reason": lacking}}), flush=True)
        print(f"error: {lacking}", file=sys.stderr)
        raise typer.Exit(FAILED)

    from .progress import progress_of

    told = progress_of(progress.value)
    told.stage("start", "loading libraries")

    from .data_quality import DataQualityError
    from .errors import BusyError
    from .training import TrainingRequest, TrainingResult, record_failure
    from .training import train as run

    request = TrainingRequest(
        models_dir,
        model,
        actor,
        reason,
        set_off_by,
        event_time_ms,
        label_maturity_s,
        record,
        signing_key,
    )
    try:
        result = run(request, told)
    except Exception as error:  # noqa: BLE001  the process's edge
        findings = error.findings if isinstance(error, DataQualityError) else ()
        result = TrainingResult("failed", _sentence(error, models_dir), quality=findings)
        try:
            if not isinstance(error, BusyError):  # else nothing was tried; the other one goes on
                record_failure(request, result.reason)
        except Exception:  # noqa: BLE001  the failure itself is still to be told
            traceback.print_exc()
    finally:
        told.close()
    if progress is ProgressMode.JSON:
        print(json.dumps({"result": result.to_dict()}), flush=True)
    elif result.outcome == "published":
        print(f"published {result.reason}")
    if result.outcome == "failed":
        print(f"error: {result.reason}", file=sys.stderr)
        raise typer.Exit(FAILED)
    if result.outcome == "refused":
        print(f"refused by the gate {result.reason}", file=sys.stderr)
        raise typer.Exit(REFUSED)


@app.command()
def roll(
    models_dir: ModelsDir,
    model: ModelName,
    keep_days: Annotated[
        int, typer.Option(min=0, help="Days of traffic to keep, by event time; 0: all.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Turns closed traffic and label files into Parquet."""
    limit_threads(threads)
    _follow_parent(exit_with_parent)

    import dataclasses

    from trimtab.registry.directory import Registry

    from .log_reader import roll as run
    from .trainer_lock import trainer_lock

    try:
        data = Registry(models_dir).data_path(model)
        with trainer_lock(data, model):
            done = run(data, keep_days)
    except Exception as error:  # noqa: BLE001  the process's edge
        print(f"error: {_sentence(error)}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
    else:
        print(f"rolled {done.files} files with {done.rows:,} rows into Parquet")
        if done.torn_bytes:
            print(f"{done.torn_bytes} bytes were no whole frame; the files are kept as damaged-*")


@app.command("drift-counts")
def drift_counts(
    reference: Annotated[Path, typer.Argument(help="Rows, a reference.npz or its directory.")],
    current: Annotated[Path, typer.Argument(help="Rows to compare with it.")],
    out: Annotated[
        Path, typer.Option(help="Directory for what is found.", exists=True, file_okay=False)
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="Compare this one; all without any.")
    ] = None,
    bins: Annotated[int, typer.Option(min=2, max=256, help="Bins of a numeric column.")] = 64,
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Counts two files for `trimtab drift-check`, which starts this and judges the counts."""
    limit_threads(threads)
    _follow_parent(exit_with_parent)

    from .drift_counts import CountRequest, count

    def tell(done: float, message: str) -> None:
        step = {"stage": "count", "fraction": done, "message": message}
        print(json.dumps({"progress": step}), flush=True)

    try:
        count(CountRequest(reference, current, tuple(column or ()), bins), tell).save(out)
    except Exception as error:  # noqa: BLE001  the process's edge
        reason = "ran out of memory" if isinstance(error, MemoryError) else _sentence(error)
        print(json.dumps({"result": {"outcome": "failed", "reason": reason}}), flush=True)
        raise typer.Exit(FAILED) from None


@app.command("import-rows")
def import_rows(
    request: Annotated[Path, typer.Argument(help="A JSON file that says what to make of which.")],
    progress: Annotated[
        ProgressMode, typer.Option(help="json: lines on standard output, for a program.")
    ] = ProgressMode.RICH,
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Makes golden rows and a reference profile for `trimtab import`, which starts this."""
    limit_threads(threads)
    _follow_parent(exit_with_parent)

    from .import_rows import ImportRowsRequest, make_files
    from .progress import progress_of

    told = progress_of(progress.value)
    told.stage("read", "reading rows")
    reason = ""
    try:
        make_files(ImportRowsRequest.from_json(request.read_text()))
    except Exception as error:  # noqa: BLE001  the process's edge
        reason = "ran out of memory" if isinstance(error, MemoryError) else _sentence(error)
    finally:
        told.close()
    outcome = "failed" if reason else "published"
    if progress is ProgressMode.JSON:
        print(json.dumps({"result": {"outcome": outcome, "reason": reason}}), flush=True)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        raise typer.Exit(FAILED)


@app.command("init")
def init(
    request: Annotated[Path, typer.Argument(help="A JSON file that says what is wanted.")],
    out: Annotated[Path, typer.Option(help="File for what was found and written.")],
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Writes a first recipe for `trimtab init`, which starts this."""
    limit_threads(threads)
    _follow_parent(exit_with_parent)

    from .recipe_writer import InitRequest, write_recipe

    def tell(done: float, message: str) -> None:
        step = {"stage": "init", "fraction": done, "message": message}
        print(json.dumps({"progress": step}), flush=True)

    try:
        found = write_recipe(InitRequest.from_json(request.read_text()), tell)
        out.write_text(json.dumps(found.to_dict(), ensure_ascii=False))
    except Exception as error:  # noqa: BLE001  the process's edge
        reason = "ran out of memory" if isinstance(error, MemoryError) else _sentence(error)
        print(json.dumps({"result": {"outcome": "failed", "reason": reason}}), flush=True)
        raise typer.Exit(FAILED) from None


@app.command("labels")
def labels(
    file: Annotated[Path, typer.Argument(help="A Parquet or CSV file of labels.")],
    wanted: Annotated[
        Literal["number", "text", "any"], typer.Option(help="What the model's labels are.")
    ] = "any",
    max_request_rows: Annotated[
        int, typer.Option(min=1, help="Rows that a request may have had.")
    ] = 65_536,
    threads: Threads = None,
    exit_with_parent: ExitWithParent = False,
) -> None:
    """Checks a file of labels and hands them over as lines of JSON, to the server that starts this."""
    limit_threads(threads)
    os.environ["RUST_BACKTRACE"] = "0"  # to print one with no memory left can take for ever
    _follow_parent(exit_with_parent)

    from .label_file import send

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    try:
        reason = send(file, wanted, max_request_rows, tell)
    except Exception as error:  # noqa: BLE001  the process's edge
        reason = "ran out of memory" if isinstance(error, MemoryError) else _sentence(error)
    outcome = "failed" if reason else "published"
    tell({"result": {"outcome": outcome, "reason": reason}})
    if reason:
        raise typer.Exit(FAILED)


def _sentence(error: Exception, written: Path | None = None) -> str:
    """What is said of an error: its message if it was written for people, else also the traceback.

    `written`: the directory below which files are written; a disk that is full does not say which it is.
    """
    from trimtab.registry.errors import RegistryError

    from .errors import TrainingError

    if isinstance(error, TrainingError | RegistryError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "the training ran out of memory; window_rows in the recipe makes it smaller"
    if isinstance(error, OSError) and error.errno in _NO_ROOM and written and not error.filename:
        return f"nothing more can be written below {written}: {error.strerror}"
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _lacking_memory() -> str:
    """Why there is too little address space to even begin, where there is; with less a library may
    ask for it for ever."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= _LEAST_MB * 2**20:
        return ""
    return (
        f"{limit // 2**20:,} MiB of address space are too little memory for any training: "
        f"[training] memory_mb must be at least {_LEAST_MB:,}, or 0"
    )


def _leave(number: int, frame: Any) -> None:
    """SIGTERM: unwinds, so that what was staged is removed."""
    raise SystemExit(128 + number)


def _follow_parent(wanted: bool) -> None:
    """From now on SIGTERM unwinds, and the end of standard input is a SIGTERM if that is wanted.

    Then the end of the parent is a SIGKILL as well, by the kernel: nothing in this process may come
    to a turn any more, as in a library that asks for memory again and again.
    """
    signal.signal(signal.SIGTERM, _leave)
    if wanted:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if wanted:
        threading.Thread(target=wait, name="parent", daemon=True).start()


def main() -> None:
    if sys.argv[1:2] == ["backtest"]:
        limit_threads(os.cpu_count() or 1)
        backtest_command.main(sys.argv[2:])  # under the name that its users know it by
    app()


if __name__ == "__main__":
    main()
