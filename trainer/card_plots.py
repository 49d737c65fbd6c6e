"""The pictures of a model card, four in one small PNG: quality in time, calibration, drift, columns.

Drawn in the trainer's process after all gates have passed, so matplotlib is imported only then. The
same figures give the same bytes: the fonts are matplotlib's own and the file has no metadata.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .recipe import Recipe
from .scores import score
from .window_drift import ColumnDrift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_THIS, _CHAMPION, _CONSTANT, _FAINT = "#1f5fa8", "#9a5b4f", "#7d8a97", "#c9d3dd"
_PARTS = 12  # of the held-out rows
_BINS = 10
_POINTS = 400
_BARS = 8
_LONGEST = 16


@dataclass(frozen=True)
class PlotFacts:
    """What is drawn; rows are the held-out ones in the order of time."""

    truth: NDArray[Any]
    prediction: NDArray[Any]
    constant: NDArray[Any]
    champion: NDArray[Any] | None = None
    classes: Sequence[Any] = ()
    drift: Sequence[ColumnDrift] = ()
    importances: Mapping[str, float] = field(default_factory=dict)


def card_png(recipe: Recipe, facts: PlotFacts) -> bytes:
    """A PNG of some 30 kB."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=(8.6, 5.6), dpi=80)
        FigureCanvasAgg(figure)
        places = ((0.07, 0.57), (0.57, 0.57), (0.07, 0.04), (0.57, 0.04))
        axes = [figure.add_axes((x, y, 0.40, 0.36)) for x, y in places]
        _metric_in_time(axes[0], recipe, facts)
        if recipe.classification:
            _calibration(axes[1], facts)
        else:
            _predicted(axes[1], facts)
        drift = [(item.column, item.psi) for item in facts.drift]
        _bars(axes[2], drift, "PSI, first to last third of the rows")
        _bars(axes[3], list(facts.importances.items()), f"loss of {recipe.metric} if shuffled")
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _metric_in_time(axes: "Axes", recipe: Recipe, facts: PlotFacts) -> None:
    rows = len(facts.truth)
    bounds = np.linspace(0, rows, min(_PARTS, max(1, rows // 20)) + 1).astype(int)
    for name, prediction, colour in (
        ("constant guess", facts.constant, _CONSTANT),
        ("champion", facts.champion, _CHAMPION),
        ("this version", facts.prediction, _THIS),
    ):
        if prediction is None or (name == "constant guess" and not recipe.classification):
            continue  # it would flatten the others
        found = [
            score(recipe.metric, facts.truth[a:b], prediction[a:b], facts.classes)
            for a, b in pairwise(bounds.tolist())
        ]
        axes.plot(
            (bounds[:-1] + bounds[1:]) / 2, found, "o-", ms=3, lw=1.2, color=colour, label=name
        )
    _title(axes, f"{recipe.metric} over the {rows:,} held-out rows, oldest to newest")
    axes.legend(frameon=False)


def _calibration(axes: "Axes", facts: PlotFacts) -> None:
    axes.plot([0, 1], [0, 1], color=_FAINT, lw=1)
    if len(facts.classes) == 2:
        given, came = facts.prediction[:, 1], facts.truth == facts.classes[1]
        told = f"share of {str(facts.classes[1])[:_LONGEST]}"
    else:
        given = np.max(facts.prediction, axis=1)
        best = np.argmax(facts.prediction, axis=1)
        came = np.asarray(facts.classes, dtype=facts.truth.dtype)[best] == facts.truth
        told = "share of right answers"
    order = np.argsort(given, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if part.size]
    axes.plot(
        [float(np.mean(given[part])) for part in parts],
        [float(np.mean(came[part])) for part in parts],
        "o-",
        ms=3,
        lw=1.2,
        color=_THIS,
    )
    _title(axes, f"calibration: {told} by given probability")


def _predicted(axes: "Axes", facts: PlotFacts) -> None:
    every = np.unique(
        np.linspace(0, len(facts.truth) - 1, min(_POINTS, len(facts.truth))).astype(int)
    )
    truth, given = facts.truth[every], facts.prediction[every]
    low, high = (float(f(np.concatenate([truth, given]))) for f in (np.min, np.max))
    axes.plot([low, high], [low, high], color=_FAINT, lw=1)
    axes.plot(truth, given, ".", ms=2, color=_THIS)
    _title(axes, "predicted (up) against actual (across)")


def _bars(axes: "Axes", named: Sequence[tuple[str, float]], title: str) -> None:
    """Bars with their names and values as text: ticks would take half of the drawing's time."""
    shown = [(name, value) for name, value in named if np.isfinite(value)][:_BARS]
    longest = max((abs(value) for _, value in shown), default=0.0) or 1.0
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(_BARS, -0.5)
    places, widths = range(len(shown)), [max(0.0, value) / longest for _, value in shown]
    axes.barh(places, [0.58 * width for width in widths], left=0.3, color=_THIS, height=0.6)
    for place, (name, value) in enumerate(shown):
        cut = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
        # A dollar sign would begin a formula.
        axes.text(0.28, place, cut.replace("$", r"\$"), ha="right", va="center")
        axes.text(0.31 + 0.58 * widths[place], place, f"{value:.2g}", va="center")
    axes.set_title(title, loc="left", y=1.02)


def _title(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left", y=1.02)  # at a given height it needs no search for room
    axes.locator_params(nbins=4)
