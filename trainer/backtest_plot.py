"""Draws a backtest's report: the metrics period by period, what was decided, the drift.

The upper part has one line per strategy and a mark where the loop promoted, refused or rolled
back, at the share of the period's rows that had been replayed by then; its colour is the verdict of
the rows that followed. The lower part is the worst
PSI of each period with the feature it belongs to, against the threshold. Many periods and long
names are thinned and cut, so that the picture never outgrows its frame.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .backtest_report import (
    HIGHER_IS_BETTER,
    METRIC_NAMES,
    BacktestReport,
    PeriodReport,
)

_FROZEN, _MANAGED, _RETRAINED = "#9a5b4f", "#1f5fa8", "#7d8a97"
_ORACLE = "#9b8bb4"
_THRESHOLD = "#c0392b"
_VERDICTS = {"right": "#2a8a4a", "wrong": "#c0392b", "neither": "#b8860b", "unjudged": "#777777"}
_MARKS = {
    "promoted": ("^", "promoted"),
    "refused": ("x", "candidate refused"),
    "rolled_back": ("v", "rolled back"),
}
_SAID = {
    "promoted": {"right": ", useful", "wrong": ", harmful", "neither": ", no difference"},
    "refused": {"right": ", rightly", "wrong": ", wrongly", "neither": ", no difference"},
    "rolled_back": {"right": ", rightly", "wrong": ", wrongly", "neither": ", no difference"},
}
_FEW = 20
_MOST_TICKS = 26
_MOST_ROWS = 60
_LONGEST = 16


def plot(report: BacktestReport, path: Path) -> None:
    """Writes the picture as PNG; OSError if the path cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(report))


def png(report: BacktestReport) -> bytes:
    """The picture of the whole."""
    count = len(report.periods)
    width = min(16.0, max(9.0, 3.0 + 0.55 * count))
    figure = plt.figure(figsize=(width, 6.6), layout="constrained")
    try:
        # The legend has a row of its own, where no line can run through it.
        grid = figure.add_gridspec(3, 1, height_ratios=(0.5, 2.4, 1.1))
        above = figure.add_subplot(grid[1])
        below = figure.add_subplot(grid[2], sharex=above)
        legend = figure.add_subplot(grid[0])
        _draw_metrics(above, report)
        _draw_drift(below, report, width)
        _label_periods(below, report.periods, width)
        above.tick_params(labelbottom=False)
        legend.axis("off")
        shown = legend.legend(
            *above.get_legend_handles_labels(),
            loc="center left",
            ncols=3,
            frameon=False,
            fontsize=8,
        )
        shown.set_in_layout(False)  # a long one shall not narrow the plots
        figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
        return _saved(figure)
    finally:
        plt.close(figure)


def decisions_png(report: BacktestReport) -> bytes | None:
    """By how much each candidate was better on the rows that followed; None: none was judged."""
    judged = [each for each in report.decisions if each.improvement is not None][-_MOST_ROWS:]
    if not judged:
        return None
    figure, axes = plt.subplots(figsize=(8.0, 1.1 + 0.28 * len(judged)), layout="constrained")
    try:
        for place, each in enumerate(judged):
            assert each.improvement is not None and each.low is not None and each.high is not None
            colour = _VERDICTS[each.verdict]
            axes.plot([each.low, each.high], [place, place], color=colour, linewidth=1.6)
            axes.plot(each.improvement, place, _MARKS[each.kind][0], color=colour, markersize=7)
        axes.axvline(0, color="#888888", linewidth=1)
        names = [
            f"{each.time[:16]}  {_MARKS[each.kind][1]}"
            + (f" {each.against}→{each.version}" if each.version else "")
            for each in judged
        ]
        axes.set_yticks(range(len(judged)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("better than the version before by, with 95 % interval", fontsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        return _saved(figure)
    finally:
        plt.close(figure)


def _saved(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_metrics(axes: Axes, report: BacktestReport) -> None:
    periods = report.periods
    centres = [place + 0.5 for place in range(len(periods))]
    size = 5 if len(periods) <= _MOST_TICKS else 0
    for values, colour, style, width, label in (
        ([p.metric_frozen for p in periods], _FROZEN, "--", 1.6, "first model, never retrained"),
        (
            [p.metric_retrain_every_period for p in periods],
            _RETRAINED,
            ":",
            1.8,
            "retrained every period",
        ),
        ([p.metric_oracle for p in periods], _ORACLE, "-.", 1.2, "oracle: knows the period"),
        ([p.metric_managed for p in periods], _MANAGED, "-", 2.4, "managed by Trimtab"),
    ):
        numbers = [float("nan") if value is None else value for value in values]
        overall = {
            _FROZEN: report.overall.metric_frozen,
            _RETRAINED: report.overall.metric_retrain_every_period,
            _MANAGED: report.overall.metric_managed,
            _ORACLE: report.overall.metric_oracle,
        }[colour]
        if all(value is None for value in values):
            continue
        if overall is not None:
            label += f" ({overall:.4g} overall)"
        axes.plot(
            centres,
            numbers,
            style,
            color=colour,
            linewidth=width,
            marker="o",
            markersize=size,
            label=label,
        )
    _mark_decisions(axes, report)
    metric = report.overall.metric
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    axes.set_ylabel(f"{METRIC_NAMES.get(metric, metric)}\n({better} is better)")
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_decisions(axes: Axes, report: BacktestReport) -> None:
    verdicts = {(each.kind, each.time): each.verdict for each in report.decisions}
    found: list[tuple[str, float, int, str]] = []
    for place, period in enumerate(report.periods):
        for event in period.events:
            if event["kind"] in _MARKS:
                at = place + min(1.0, event["after_rows"] / max(1, period.rows))
                verdict = verdicts.get((event["kind"], event["time"]), "unjudged")
                found.append((event["kind"], at, int(event["version"]), verdict))
    for kind, at, version, verdict in found:
        if kind != "refused":
            axes.axvline(at, color=_VERDICTS[verdict], alpha=0.35, linewidth=1, zorder=0)
        if kind == "promoted" and len(found) <= _FEW:
            axes.annotate(
                f"v{version}",
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=_VERDICTS[verdict],
            )
    for kind, (marker, name) in _MARKS.items():
        for verdict, colour in _VERDICTS.items():
            places = [at for k, at, _, v in found if (k, v) == (kind, verdict)]
            if places:
                axes.plot(
                    places,
                    [0.02] * len(places),
                    marker,
                    color=colour,
                    markersize=7,
                    linestyle="none",
                    label=name + _SAID[kind].get(verdict, ""),
                    transform=axes.get_xaxis_transform(),
                    clip_on=False,
                    zorder=5,
                )


def _draw_drift(axes: Axes, report: BacktestReport, width: float) -> None:
    threshold = _threshold(report)
    values = [float(p.drift["psi"]) if p.drift else 0.0 for p in report.periods]
    top = max([*values, threshold or 0.0, 0.05])
    # One broken feature can have a PSI of 10; the others should stay legible beside it.
    limit = min(top, max(8 * (threshold or 0.2), sorted(values)[len(values) // 2] * 3))
    longest = min(2 * _LONGEST, int(_characters(width, len(values), 7.5)))
    for place, (value, period) in enumerate(zip(values, report.periods, strict=True)):
        over = threshold is not None and value >= threshold
        height = min(value, limit)
        axes.bar(place + 0.5, height, 0.7, color="#c97b4a" if over else "#c9c9c9")
        words = [f"{value:.3g}"] if value > limit else []
        if period.drift and longest >= 4:
            words.append(_cut(str(period.drift["feature"]), longest))
        if words:
            axes.annotate(
                "\n".join(words),
                (place + 0.5, height),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7.5,
                color="#333333",
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75},
            )
    if threshold is not None:
        axes.axhline(threshold, color=_THRESHOLD, linewidth=1, linestyle="--")
        axes.text(
            1.0,
            1.02,
            f"dashed: threshold {threshold:g}",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=8,
            color=_THRESHOLD,
        )
    axes.set_ylim(0, limit * 1.35)
    axes.set_ylabel("worst PSI")
    axes.spines[["top", "right"]].set_visible(False)


def _label_periods(axes: Axes, periods: tuple[PeriodReport, ...], width: float) -> None:
    step = -(-len(periods) // _MOST_TICKS)
    places = range(0, len(periods), step)
    room = _characters(width, len(places), 9)
    level = max(len(_cut(periods[place].period, 2 * _LONGEST)) for place in places) <= room
    names = [_cut(periods[place].period, 2 * _LONGEST if level else _LONGEST) for place in places]
    axes.set_xlim(0, len(periods))
    axes.set_xticks(
        [place + 0.5 for place in places],
        names,
        rotation=0 if level else 35,
        ha="center" if level else "right",
        rotation_mode="default" if level else "anchor",
        fontsize=9,
    )


def _characters(width: float, places: int, size: float) -> float:
    """How many characters of a font size fit side by side above each of so many places."""
    return (width - 1.2) * 72 / max(1, places) / (0.62 * size)


def _title(report: BacktestReport) -> str:
    settings = report.settings
    data = Path(str(settings.get("data", ""))).name
    target = _cut(str(settings.get("target", "")), 40)
    about = f"{target} of {_cut(data, 40)}" if data else target
    return f"{about}: {report.overall.rows:,} rows replayed" if about else "Backtest"


def _threshold(report: BacktestReport) -> float | None:
    drift: Any = report.settings.get("policy", {}).get("drift", {})
    value = drift.get("psi")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _cut(name: str, longest: int = _LONGEST) -> str:
    """Both ends of a long name, for names often differ at their end."""
    if len(name) > longest:
        tail = (longest - 1) // 2
        name = f"{name[: longest - 1 - tail]}…{name[-tail:] if tail else ''}"
    return name.replace("$", r"\$")  # matplotlib would set it as mathematics
