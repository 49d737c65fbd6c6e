"""The model card of a version: model_card.md, for whoever asks why this model answers.

It says in words what was decided by which evidence, of what rows the model was made, how good it is
where, what it is not good at and what it looks at. The pictures beside it are card_plots.py's. The
same inputs give the same bytes: the version's number, the time of publication and what a clock
measured are in manifest.json, not here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .gates import GateResult
from .recipe import Metric, Recipe
from .scores import HIGHER_IS_BETTER
from .segments import Segment, worst_first
from .window_drift import ColumnDrift

CARD_NAME = "model_card.md"
PLOTS_NAME = "model_card.png"

_NAMES: Mapping[Metric, str] = {
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "roc_auc": "area under the ROC curve",
    "log_loss": "log loss",
    "accuracy": "share of right labels",
}
_KINDS = {
    "auto": "gradient boosted trees (scikit-learn's HistGradientBoosting)",
    "hist_gradient_boosting": "gradient boosted trees (scikit-learn's HistGradientBoosting)",
    "linear": "a linear model on imputed, scaled and one-hot encoded columns",
    "random_forest": "a random forest",
}
_SHOWN = 12  # rows of a table
_WORST = 5
_NOTABLE = 0.1  # of a PSI


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells. `lineage` is the manifest's."""

    model: str
    recipe: Recipe
    gates: Sequence[GateResult]
    metrics: Mapping[str, float]
    constant_metric: float
    lineage: Mapping[str, Any]
    reason: str = ""
    segments: Sequence[Segment] = ()
    importances: Mapping[str, float] = field(default_factory=dict)
    drift: Sequence[ColumnDrift] = ()


def card_markdown(facts: CardFacts) -> str:
    """The card's text; its picture is PLOTS_NAME beside it."""
    parts = [
        [f"# {_plain(facts.model)}: why this version was published", ""],
        _decision(facts),
        _gates(facts),
        _data(facts),
        _quality(facts),
        _weaknesses(facts),
        _columns(facts),
        _making(facts),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _decision(facts: CardFacts) -> Iterator[str]:
    lineage, recipe = facts.lineage, facts.recipe
    champion = lineage.get("champion") or 0
    against = f"version {champion}, the champion then" if champion else "no champion: it is a first"
    gate = next(item for item in facts.gates if item.name == "champion")
    yield (
        f"It predicts `{recipe.target}` ({recipe.task}). It was judged against {against}, and it "
        f"passed all {len(facts.gates)} gates. What decided:"
    )
    yield ""
    yield f"> {_plain(gate.reason)}"
    yield ""
    found = gate.figures
    if "improvement" in found:
        better = "higher" if recipe.metric in HIGHER_IS_BETTER else "lower"
        yield (
            f"Both models predicted the same {found['rows']:,.0f} newest labelled rows, which "
            f"neither had learned. The {_NAMES[recipe.metric]} ({better} is better) went from "
            f"{found['champion']:.4g} to {found['candidate']:.4g}; with 95 % confidence the true "
            f"improvement is between {found['low']:+.3g} and {found['high']:+.3g}. The interval "
            "comes from leaving out blocks of consecutive rows, since neighbours in time are alike."
        )
        yield ""
    if facts.reason or lineage.get("trigger"):
        # What is nested is for programs: manifest.json has it.
        known = (lineage.get("trigger") or {}).items()
        plain = {name: value for name, value in known if isinstance(value, str | int | float)}
        told = ", ".join(f"{n}: {value}" for n, value in plain.items() if value != facts.reason)
        because = " — ".join(_plain(part) for part in (facts.reason, told) if part)
        yield f"The training was started because of: {because}."
        yield ""


def _gates(facts: CardFacts) -> Iterator[str]:
    yield "## Gates"
    yield ""
    yield "| gate | verdict | why |"
    yield "|---|---|---|"
    for gate in facts.gates:
        told = gate.repeated()
        yield f"| {told.name} | {told.verdict} | {_plain(told.reason)} |"
    yield ""


def _data(facts: CardFacts) -> Iterator[str]:
    data: Mapping[str, Any] = facts.lineage.get("data") or {}
    holdout: Mapping[str, Any] = facts.lineage.get("holdout") or {}
    yield "## Data"
    yield ""
    yield f"* {data.get('rows', 0):,} labelled rows{_between(data)}, newest last."
    if holdout:
        then = (
            "then the published model was fitted again on all rows"
            if holdout.get("refitted")
            else "and the judged model itself was published, which has not learned them"
        )
        yield f"* The newest {holdout.get('rows', 0):,} of them were kept for judging; {then}."
    weighted = _weights(facts.recipe, data)
    yield f"* {weighted}"
    sources = data.get("sources") or ()
    for source in sources[:_SHOWN]:
        digest = f", SHA-256 `{source['sha256'][:12]}…`" if source.get("sha256") else ""
        yield f"* from `{_plain(source['path'])}`: {source['rows']:,} rows{digest}"
    if len(sources) > _SHOWN:
        yield f"* and from {len(sources) - _SHOWN} more, which manifest.json lists"
    for why, rows in (data.get("dropped") or {}).items():
        yield f"* left out: {rows:,} {_plain(why)}"
    if data.get("sha256"):
        yield f"* digest of the training matrix: `{data['sha256']}`"
    yield ""


def _weights(recipe: Recipe, data: Mapping[str, Any]) -> str:
    sampling: Mapping[str, Any] = data.get("sampling") or {}
    taken, of = sampling.get("window_taken", 0), sampling.get("window_rows", 0)
    history: Mapping[str, Any] = sampling.get("history") or {}
    if taken >= of and not history:
        return "Every row of the window was taken, and all count the same."
    told = f"Of the window's {of:,} rows {taken:,} were taken"
    if history:
        told += f", and {history.get('taken', 0):,} of {history.get('rows', 0):,} older ones"
    counted = "as many as it stands for" if recipe.weights == "sampling" else "one"
    return f"{told}; each counts for {counted} (`data.sampling` in manifest.json has the weights)."


def _quality(facts: CardFacts) -> Iterator[str]:
    recipe = facts.recipe
    yield "## Quality on the held-out rows"
    yield ""
    yield f"![The four pictures that the text refers to]({PLOTS_NAME})"
    yield ""
    yield "| metric | this version | champion | best constant guess |"
    yield "|---|---|---|---|"
    for name, value in facts.metrics.items():
        if name.startswith("champion_"):
            continue
        champion = facts.metrics.get(f"champion_{name}")
        constant = facts.constant_metric if name == recipe.metric else None
        yield f"| {name} | {_figure(value)} | {_figure(champion)} | {_figure(constant)} |"
    yield ""
    yield (
        "The first picture is the metric over the held-out rows in the order of time, the second "
        + (
            "how often what was given a probability came true"
            if recipe.classification
            else "what was predicted against what came true"
        )
        + "."
    )
    yield ""


def _weaknesses(facts: CardFacts) -> Iterator[str]:
    recipe = facts.recipe
    yield "## What it is not good at"
    yield ""
    worst = worst_first(recipe, facts.segments)[:_WORST]
    if worst:
        whole = facts.metrics.get(recipe.metric)
        yield f"The worst of {len(facts.segments)} segments; on the whole it is {_figure(whole)}:"
        yield ""
        yield f"| segment | rows | {recipe.metric} | champion's |"
        yield "|---|---|---|---|"
        for item in worst:
            champion = item.difference.first if item.difference is not None else None
            name = f"{_plain(item.column)} = {_plain(item.value) or 'missing'}"
            yield f"| {name} | {item.rows:,} | {_figure(item.metric)} | {_figure(champion)} |"
        yield ""
    else:
        yield "* No category has enough held-out rows to be judged on its own."
    moved = [column for column in facts.drift if column.psi > max(_NOTABLE, column.critical)]
    for column in moved[:_WORST]:
        yield (
            f"* `{_plain(column.column)}` changed within the training rows already (PSI "
            f"{column.psi:.2g} between the first and the last third of them, {column.critical:.2g} is "
            "chance): expect less of rows that are further off."
        )
    yield (
        f"* Rows outside of {_range(facts)}, values outside of the reference's range and categories "
        "that were not there: nothing is known of those."
    )
    if recipe.target and not facts.lineage.get("champion"):
        yield "* It is the first version: nobody has seen it in operation yet."
    yield ""


def _columns(facts: CardFacts) -> Iterator[str]:
    if facts.importances:
        yield "## What it looks at"
        yield ""
        yield (
            f"How much worse {facts.recipe.metric} gets on held-out rows if a column is shuffled; "
            "around zero is noise. A column that stands for another shares its importance."
        )
        yield ""
        yield "| column | importance | PSI within the training rows |"
        yield "|---|---|---|"
        drift = {item.column: item.psi for item in facts.drift}
        for name, value in list(facts.importances.items())[:_SHOWN]:
            yield f"| {_plain(name)} | {_figure(value)} | {_figure(drift.get(name), 2)} |"
        if len(facts.importances) > _SHOWN:
            yield f"| {len(facts.importances) - _SHOWN} more, in report.json | | |"
        yield ""


def _making(facts: CardFacts) -> Iterator[str]:
    recipe = facts.recipe
    kind = recipe.estimator.kind
    yield "## How it was made"
    yield ""
    yield f"* Model: {_KINDS.get(kind, f'the pipeline of `{kind}`')}, seed {recipe.seed}."
    yield f"* Inputs: {len(recipe.numeric)} numeric, {len(recipe.categorical)} categorical columns."
    libraries = facts.lineage.get("libraries") or {}
    told = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    yield f"* Python {facts.lineage.get('python', '')}, {told}."
    yield "* The recipe as it was, all figures and hashes: `manifest.json` and `report.json`."
    yield ""


def _between(data: Mapping[str, Any]) -> str:
    first, last = data.get("time_from_ms"), data.get("time_to_ms")
    if not first and not last:
        return " in the order of their files"
    return f" from {_time(first)} to {_time(last)}"


def _range(facts: CardFacts) -> str:
    data = facts.lineage.get("data") or {}
    if not data.get("time_from_ms") and not data.get("time_to_ms"):
        return "the training rows"
    return f"{_time(data.get('time_from_ms'))} to {_time(data.get('time_to_ms'))}"


def _time(ms: Any) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError, OSError):
        return f"{ms} ms"


def _figure(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def _plain(text: object) -> str:
    """Text from outside, which must not break a table or begin markup."""
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())
