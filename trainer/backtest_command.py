"""The command line of a backtest: `trimtab backtest`, `python -m trimtab.trainer backtest`.

Reads the options, the data and what is left to infer; runs the backtest; writes the report, the
plot and the table. Exit codes: 0 done, 1 failed (one sentence on standard error; also when requests
failed or replies were of the wrong shape, after the report was written), 2 usage, 130 interrupted.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its Linux wheel would phone home

PROG = "trimtab backtest"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Task(StrEnum):
    regression = "regression"
    classification = "classification"
    binary = "binary"
    multiclass = "multiclass"


class Metric(StrEnum):
    mae = "mae"
    rmse = "rmse"
    roc_auc = "roc_auc"
    log_loss = "log_loss"
    accuracy = "accuracy"


class Order(StrEnum):
    as_is = "as-is"
    within = "shuffle-within-period"
    shuffle = "shuffle"
    time = "time"  # the older name of as-is


_ORDERS: Mapping[Order, Literal["as-is", "shuffle-within-period", "shuffle"]] = {
    Order.as_is: "as-is",
    Order.time: "as-is",
    Order.within: "shuffle-within-period",
    Order.shuffle: "shuffle",
}
_DATA, _REPLAY, _OUT = "Data", "Replay", "Output"


@app.command(
    epilog="Exit codes: 0 done; 1 failed, or requests failed; 2 usage.",
)
def backtest(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Parquet or CSV file, one row per event.")
    ],
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="What is to be predicted.", rich_help_panel=_DATA)
    ],
    time: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="When the event took place: a time, a date, or whole seconds, milliseconds, "
            "microseconds or nanoseconds since 1970.",
            rich_help_panel=_DATA,
        ),
    ],
    period: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Which period a row belongs to. Default: the calendar months if there are at "
            "least three, else ten slices of equally many rows.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Periods of that length instead, as in 30d, 1w, 1mo, 6h.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    last_period: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Take only the first N periods: a shorter trial.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="Default: two values of the target are binary; text and at most twenty whole "
            "numbers are multiclass; all else is regression.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    numeric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of numbers to predict from: repeat the option, or separate by commas. "
            "Default, if --categorical is not given either: every column of numbers.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    categorical: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of text to predict from. Default: every column of text that repeats.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMNS", help="Columns not to predict from.", rich_help_panel=_DATA),
    ] = None,
    metric: Annotated[
        Metric | None,
        typer.Option(
            help="Default: mae for a regression, roc_auc for two classes, log_loss for more.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    label_delay: Annotated[
        str,
        typer.Option(
            metavar="LENGTH",
            help="How long after its event a row's true value becomes known, as in 1d, 6h, 0.",
            rich_help_panel=_REPLAY,
        ),
    ] = "1d",
    label_maturity: Annotated[
        str,
        typer.Option(
            metavar="LENGTH",
            help="How long after its event a row's true value counts as final: younger rows are "
            "neither counted nor trained on. Sets trigger.label_maturity_s.",
            rich_help_panel=_REPLAY,
        ),
    ] = "0",
    window: Annotated[
        str,
        typer.Option(
            metavar="LENGTH",
            help="The drift window spans that time, as in 7d or 12h, however many rows that is; "
            "take a whole number of the data's cycles. 0: it goes by rows alone.",
            rich_help_panel=_REPLAY,
        ),
    ] = "0",
    order: Annotated[
        Order,
        typer.Option(
            help="as-is: as it happened. shuffle-within-period: the periods as they happened, the "
            "rows of each dealt out anew over its times. For data whose neighbours are alike: "
            "one hour of weather is one sample, however many rows it has, so a window of a few "
            "hours differs from a whole month, and the drift monitor, which counts rows, would "
            "take every calm day for a change of the climate.",
            rich_help_panel=_REPLAY,
        ),
    ] = Order.as_is,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of all that is random. The same data, options and seed give the same report, "
            "but for the timings.",
            rich_help_panel=_REPLAY,
        ),
    ] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Run once with each of these seeds instead, and show mean and spread: with --out "
            "in DIR/seed-N, and DIR/summary.json.",
            rich_help_panel=_REPLAY,
        ),
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option(
            help="Fit models within each period too, to say how much was possible: "
            "three more fits a period.",
            rich_help_panel=_REPLAY,
        ),
    ] = True,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Keep the trainer's libraries loaded between trainings: the same decisions, "
            "sooner, where there are many trainings. Takes some 200 MB more memory.",
            rich_help_panel=_REPLAY,
        ),
    ] = False,
    rows_per_request: Annotated[
        int,
        typer.Option(
            min=1,
            max=8192,
            help="Rows of a request on average: sizes vary from one to twice that.",
            rich_help_panel=_REPLAY,
        ),
    ] = 64,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="A setting of the model's trimtab.toml, as in drift.psi=0.1, "
            "trigger.cooldown_s=3600, recipe.window_rows=20000, recipe.estimator.max_iter=200.",
            rich_help_panel=_REPLAY,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model. Default: that of the file.", rich_help_panel=_REPLAY),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the report as JSON; - is standard output.",
            allow_dash=True,
            rich_help_panel=_OUT,
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Write the plot.", rich_help_panel=_OUT),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE.html",
            help="Write the report as one HTML file, pictures included.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write report.html, report.json and report.png there and keep the models with their history "
            "and the traffic log (DIR/models) and the server's log.",
            rich_help_panel=_OUT,
        ),
    ] = None,
) -> None:
    """Replay your labelled history through a real server and see what the loop would have done.

    The first period trains a model. A server is started with it, the rest is replayed through
    its gRPC port in the order of time, and the true values come in as late as they would have.
    The loop acts by itself: it notices drift, retrains, checks, promotes or refuses. Period by
    period the report holds that against a model that is never retrained and against one that is
    retrained every period.

    `trimtab backtest flights.parquet --target air_time --time time --out report`

    `trimtab backtest loans.csv --target paid --time month --label-delay 30d --json loans.json`
    """
    from .backtest_data import DataRequest
    from .backtest_run import Outputs, run_all
    from .backtest_settings import (
        BacktestSettings,
        model_name,
        parse_duration_ms,
        parse_overrides,
    )

    with _usage():
        settings = BacktestSettings(
            data=DataRequest(
                path=data,
                target=target,
                time=time,
                period=period,
                every=every,
                task=task.value if task else None,
                numeric=_columns(numeric),
                categorical=_columns(categorical),
                exclude=_columns(exclude),
                last_period=last_period,
                order=_ORDERS[order],
                seed=seed,
            ),
            model=model or model_name(data),
            metric=metric.value if metric else None,
            label_delay_ms=parse_duration_ms(label_delay),
            window_ms=parse_duration_ms(window),
            label_maturity_ms=parse_duration_ms(label_maturity),
            rows_per_request=rows_per_request,
            oracle=oracle,
            fast=fast,
            overrides=parse_overrides(assignments or []),
        )
        chosen = _seeds(seeds, seed)
    outputs = Outputs(json=json_file, plot=plot_file, html=html_file, out=out)
    code = run_all(settings, chosen, outputs)
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _columns(values: Sequence[str] | None) -> tuple[str, ...]:
    """`a,b` and repeated options alike; blanks around a name do not count."""
    names = [name.strip() for value in values or () for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def _seeds(text: str | None, seed: int) -> tuple[int, ...]:
    """`1,2,3` as numbers; ValueError."""
    if text is None:
        return (seed,)
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text}: must be whole numbers, as in 1,2,3") from None
    if min(found) < 0:
        raise ValueError(f"--seeds {text}: a seed is at least 0")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments, or the process's own, and exits."""
    app(args=None if arguments is None else list(arguments), prog_name=PROG)


if __name__ == "__main__":
    main()
