"""Whether each decision of a replay was right, judged on the rows that came after it.

A decision chose between two models: a promotion took a version for the one before it, a refusal
kept the champion instead of a candidate, a rollback took the earlier version again. Both are asked
about the rows of one period's length after the decision, whoever answered them then, and compared
in pairs by the recipe's metric: the decision was right if what it chose is surely better (the 95 %
interval of the difference is above 0), wrong if it is surely worse, and neither otherwise. The
interval is the gates' own (scores.py). Of forty decisions between equals it calls one wrong.

A refused candidate is kept nowhere. It is fitted again: same recipe, same seed, the rows that its
training could read (the first period and the labels told until it began, by request and row as the
traffic log has them, the newest `window_rows`), all of them, as it would have been published. The
published versions show whether that is so: the digest of the rows that each was trained on is in
its manifest, and `Reproduced` counts those that match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from trimtab.registry.directory import ModelDirectory

from .backtest_baselines import Scores, empty_scores, version_scores
from .backtest_data import Dataset
from .dataset import Dataset as TrainingRows
from .errors import TrainingError
from .fit import classes_of, fit, predict
from .recipe import Recipe
from .replay_schedule import PlannedRequest
from .scores import paired_difference

RIGHT, WRONG, NEITHER, UNJUDGED = "right", "wrong", "neither", "unjudged"
_KINDS = ("promoted", "refused", "rolled_back")


@dataclass(frozen=True)
class Decision:
    """One decision and what came after it. Figures are None where it could not be judged."""

    kind: str  # promoted, refused or rolled_back
    time: str  # event time
    row: int  # of the data, the first one after it
    version: int  # that was promoted or taken again; 0: a refused candidate
    against: int  # the version that answered before it
    signal: str  # why the training began
    reason: str
    judged_rows: int
    metric_version: float | None  # of the promoted version, candidate, or version taken again
    metric_against: float | None
    improvement: float | None  # of the first over the second; positive is better
    low: float | None
    high: float | None
    verdict: str  # right, wrong, neither, unjudged
    served_rows: int  # that the version answered until the next change; 0 of a candidate
    rolled_back: bool  # the loop took it back by itself, sooner or later
    note: str = ""


@dataclass(frozen=True)
class Reproduced:
    """How many published versions' training rows were found again to the last bit."""

    matching: int
    of: int


@dataclass(frozen=True)
class LoopEvent:
    """An event of the replay that says what the loop did."""

    kind: str
    version: int
    reason: str
    time: str
    row: int  # of the data, the first one after it
    labelled: int  # rows of the data before this one had their labels told
    time_ms: int


class Judge:
    """Judges the decisions of one replay. Used by one thread."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        model: ModelDirectory,
        requests: Sequence[PlannedRequest],
        answered: NDArray[np.int64],
        *,
        period_rows: int,
        maturity_ms: int = 0,
    ) -> None:
        """`answered`: the version that answered each row, 0 for none."""
        self._dataset = dataset
        self._recipe = recipe
        self._model = model
        self._answered = answered
        self._period_rows = period_rows
        self._maturity_ms = maturity_ms
        self._start = dataset.periods[0].stop
        self._asked = _as_logged(dataset, requests)
        self._least = max(50, min(recipe.min_holdout_rows, period_rows // 2))

    def decisions(self, events: Sequence[LoopEvent]) -> tuple[Decision, ...]:
        """One for each promotion, refusal and rollback by the loop, in their order."""
        champion, signal, labelled, began_ms = 1, "", self._start, 0
        found: list[Decision] = []
        for place, event in enumerate(events):
            if event.kind == "training_started":
                signal, labelled, began_ms = event.reason, event.labelled, event.time_ms
            if event.kind not in _KINDS:
                continue
            rest = events[place + 1 :]
            found.append(self._decision(event, champion, signal, labelled, began_ms, rest))
            if event.kind != "refused" and event.version:
                champion = event.version
        return tuple(found)

    def reproduced(self, events: Sequence[LoopEvent]) -> Reproduced:
        """Compares the rows found here with the digests in the published versions' manifests."""
        matching = of = labelled = began_ms = 0
        for event in events:
            if event.kind == "training_started":
                labelled, began_ms = event.labelled, event.time_ms
            elif event.kind == "published" and event.version > 1:
                of += 1
                lineage = self._model.manifest(event.version).lineage
                digest = lineage.get("data", {}).get("sha256")
                matching += digest == self.training_rows(labelled, began_ms).sha256()
        return Reproduced(matching, of)

    def training_rows(self, labelled: int, began_ms: int) -> TrainingRows:
        """What a training could read that began when the labels up to that row had been told."""
        there = self._answered[self._start : labelled] > 0
        if self._maturity_ms:
            times = self._asked["trimtab.asked"].to_numpy()[self._start : labelled]
            there &= times <= began_ms - self._maturity_ms
        recipe, name = self._recipe, self._dataset.time
        history = self._dataset.frame.slice(0, self._start)
        served = (
            self._asked.slice(self._start, labelled - self._start)
            .filter(pl.Series(there))
            .sort("trimtab.asked", "trimtab.request", "trimtab.place")
            .with_columns(pl.col("trimtab.asked").alias(name))
            .select(history.columns)
        )
        # Stable, so that rows of one request keep their order; a history's rows come first.
        rows = pl.concat([history, served]).sort(name, maintain_order=True)
        return TrainingRows.from_frame(recipe, rows.tail(recipe.window_rows))

    def _decision(
        self,
        event: LoopEvent,
        champion: int,
        signal: str,
        labelled: int,
        began_ms: int,
        rest: Sequence[LoopEvent],
    ) -> Decision:
        rows = slice(event.row, min(event.row + self._period_rows, self._dataset.frame.height))
        count = rows.stop - rows.start
        note, pair = "", None
        if count < self._least:
            note = f"{count:,} rows came after it, {self._least:,} are needed to judge it"
        else:
            try:
                if event.kind == "refused":
                    first = self._candidate(labelled, began_ms, rows)
                else:
                    first = self._scores(event.version, rows)
                pair = self._compared(self._scores(champion, rows), first, rows)
            except (TrainingError, OSError) as error:
                note = f"it could not be judged: {error}"
        low, high = (pair.low, pair.high) if pair else (np.nan, np.nan)
        if pair and not low <= high:  # NaN
            note, pair = f"{self._recipe.metric} is not defined on the rows after it", None
        changes = [later for later in rest if later.kind in ("promoted", "rolled_back")]
        until = changes[0].row if changes else self._dataset.frame.height
        chosen = event.kind != "refused"
        return Decision(
            kind=event.kind,
            time=event.time,
            row=event.row,
            version=event.version if chosen else 0,
            against=champion,
            signal=signal,
            reason=event.reason,
            judged_rows=count if pair else 0,
            metric_version=pair.second if pair else None,
            metric_against=pair.first if pair else None,
            improvement=pair.improvement if pair else None,
            low=low if pair else None,
            high=high if pair else None,
            verdict=verdict(low, high, chosen=chosen) if pair else UNJUDGED,
            served_rows=until - event.row if chosen else 0,
            rolled_back=event.kind == "promoted"
            and bool(changes)
            and changes[0].kind == "rolled_back",
            note=note,
        )

    def _scores(self, version: int, rows: slice) -> Scores:
        path, manifest = self._model.version_path(version), self._model.manifest(version)
        return version_scores(path, manifest, self._recipe, self._dataset, rows)

    def _candidate(self, labelled: int, began_ms: int, rows: slice) -> Scores:
        """What the refused candidate would have said, had it been published."""
        recipe = self._recipe
        found = empty_scores(self._dataset)[rows]
        with threadpool_limits(1):
            pipeline = fit(recipe, self.training_rows(labelled, began_ms))
            asked = self._dataset.frame.slice(rows.start, rows.stop - rows.start)
            predicted = predict(recipe, pipeline, asked)
        where = {str(name): place for place, name in enumerate(self._dataset.classes)}
        columns = [where[str(name)] for name in classes_of(pipeline)] or [0]
        found[:, columns] = predicted.reshape(len(found), -1)
        return found

    def _compared(self, before: Scores, after: Scores, rows: slice) -> Any:
        truth = self._dataset.frame[self._dataset.target][rows].to_numpy()
        classes = self._dataset.classes
        first, second = (np.nan_to_num(each) if classes else each[:, 0] for each in (before, after))
        return paired_difference(self._recipe.metric, truth, first, second, classes)


def verdict(low: float, high: float, *, chosen: bool) -> str:
    """Of a decision for the second of two models, or against it, by how much better that is."""
    if low > 0:
        return RIGHT if chosen else WRONG
    if high < 0:
        return WRONG if chosen else RIGHT
    return NEITHER


def tally(decisions: Sequence[Decision]) -> Mapping[str, Mapping[str, int]]:
    """How many decisions of each kind had which verdict."""
    counts = {kind: dict.fromkeys((RIGHT, WRONG, NEITHER, UNJUDGED), 0) for kind in _KINDS}
    for decision in decisions:
        counts[decision.kind][decision.verdict] += 1
    return counts


def words(decision: Decision) -> str:
    """The verdict as one reads it: a promotion that was wrong is harmful."""
    told = {
        "promoted": {RIGHT: "useful", WRONG: "HARMFUL", NEITHER: "made no sure difference"},
        "refused": {
            RIGHT: "rightly refused",
            WRONG: "wrongly refused",
            NEITHER: "would have made no sure difference",
        },
        "rolled_back": {
            RIGHT: "rightly taken back",
            WRONG: "wrongly taken back",
            NEITHER: "made no sure difference",
        },
    }
    text = told[decision.kind].get(decision.verdict, "not judged")
    return f"{text}, and was taken back" if decision.rolled_back else text


def _as_logged(dataset: Dataset, requests: Sequence[PlannedRequest]) -> pl.DataFrame:
    """The rows with the time, the id and the place that the traffic log has of each."""
    height = dataset.frame.height
    asked = dataset.times_ms.copy()
    place = np.zeros(height, dtype=np.int64)
    names = np.full(height, "", dtype=object)
    for request in requests:
        rows = slice(request.start, request.stop)
        asked[rows] = dataset.times_ms[request.stop - 1]
        place[rows] = np.arange(request.stop - request.start)
        names[rows] = request.id
    return dataset.frame.with_columns(
        pl.Series("trimtab.asked", asked),
        pl.Series("trimtab.request", names.tolist(), dtype=pl.String),
        pl.Series("trimtab.place", place),
    )
