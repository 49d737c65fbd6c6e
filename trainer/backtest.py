"""A backtest: trains on the first period, serves, replays the rest, and reports what happened.

The server is a real one in its own process, and all it learns of the replay comes through its
ports: requests with their event time, labels when they would have become known. The replay goes
chunk by chunk and waits after each until the server's loop has nothing under way, so decisions
depend on the data and the seed and not on the machine's speed. Where a pane of the drift window
ends by time, the server is told so and settles before the next chunk. Only the timings differ
between two runs, also where one of them is a fast one, whose trainings begin in a warm process.
"""

import asyncio
import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trimtab.proto import admin_pb2, feedback_pb2
from trimtab.registry.directory import ModelDirectory, Registry

from .backtest_baselines import (
    Scores,
    clean,
    empty_scores,
    frozen_scores,
    oracle_scores,
    places,
    retrained_scores,
    score_output,
)
from .backtest_data import Dataset
from .backtest_decisions import Decision, Judge, Reproduced
from .backtest_processes import ServerProcess, WarmTrainers, train, verify
from .backtest_report import BacktestReport
from .backtest_settings import (
    HISTORY_FILE,
    BacktestSettings,
    Tables,
    pane_ms,
    pane_rows,
    period_rows,
    tables_for,
    to_toml,
)
from .backtest_warnings import warnings_of
from .recipe import Recipe
from .replay import ReplayClient, ReplayError, RequestEncoder
from .replay_record import ReplayRecord
from .replay_schedule import LabelSchedule, PlannedRequest, plan

# Kinds of events that say nothing to the reader of a report.
_QUIET = ("loaded", "training_progress")
_PACKAGES = (
    "trimtab",
    "grpcio",
    "numpy",
    "onnxruntime",
    "polars",
    "scikit-learn",
    "skl2onnx",
)


class BacktestError(Exception):
    """The backtest could not be run to its end; the message is one sentence."""


class Observer(Protocol):
    """Is told how far a backtest is; all calls come from the event loop's thread."""

    def stage(self, text: str) -> None: ...
    def training(self, stage: str, fraction: float, message: str) -> None: ...
    def replaying(self, rows: int, of: int, state: str) -> None: ...
    def happened(self, when: str, kind: str, version: int, reason: str) -> None: ...
    def fitting(self, done: int, of: int) -> None: ...


class Backtest:
    """One run in one directory, which is there and empty. `run` once."""

    def __init__(
        self, dataset: Dataset, settings: BacktestSettings, directory: Path, observer: Observer
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._observer = observer
        self._models_dir = directory / "models"
        self._log = directory / "server.log"
        self._tables: Tables = tables_for(dataset, settings)
        self._recipe = Recipe.parse(self._tables["recipe"])
        self.warnings = warnings_of(dataset, self._tables)
        self._start = dataset.periods[0].stop
        self._times = dataset.times_ms
        self._chunks = plan(
            self._start,
            dataset.frame.height,
            chunk_rows=pane_rows(self._tables),
            rows_per_request=settings.rows_per_request,
            seed=settings.seed,
            slots=self._times // slot_ms if (slot_ms := pane_ms(self._tables)) else None,
        )
        self._requests = [request for chunk in self._chunks for request in chunk.requests]
        self._starts = np.array([request.start for request in self._requests])
        self._timings: dict[str, float] = {}
        self._frontend = ""
        self._exercising = False

    async def run(self) -> BacktestReport:
        """BacktestError, ChildError, ReplayError, TrainingError; children are always ended."""
        began = time.monotonic()
        model = self._write_model()
        record = ReplayRecord(self._dataset)
        async with self._checked_and_warm() as trainers:
            with self._timed("train_s"):
                await self._train_first(trainers)
            manifest = model.manifest(1)
            with self._timed("replay_s"):
                await self._serve_and_replay(model, record, trainers)
        self._observer.stage("comparing with a model never retrained and one retrained each period")
        with self._timed("baselines_s"):
            frozen = frozen_scores(
                model.version_path(1), manifest, self._recipe, self._dataset, self._start
            )
            retrained = await self._fitting(
                lambda told: retrained_scores(
                    self._recipe, self._dataset, self._known_after_ms(), told
                )
            )
        oracle = empty_scores(self._dataset)
        if self._settings.oracle:
            self._observer.stage("fitting the oracle: each period from within")
            with self._timed("oracle_s"):
                oracle = await self._fitting(
                    lambda told: oracle_scores(
                        self._recipe, self._dataset, self._settings.seed, told
                    )
                )
        self._observer.stage("judging each decision by the rows that followed")
        with self._timed("judging_s"):
            decisions, reproduced = await asyncio.to_thread(self._judge, model, record)
        self._timings["total_s"] = round(time.monotonic() - began, 3)
        metric = self._recipe.metric
        requests = len(self._requests)
        return BacktestReport(
            periods=record.periods(metric, frozen, retrained, oracle),
            overall=record.overall(metric, frozen, retrained, oracle, requests, decisions),
            decisions=decisions,
            environment=self._environment(record, reproduced),
            settings=self._settings_used(),
        )

    def _known_after_ms(self) -> int:
        """Who is retrained each period learns from the rows that the service may, none younger."""
        return max(self._settings.label_delay_ms, self._maturity_ms())

    def _maturity_ms(self) -> int:
        return round(float(self._tables["trigger"]["label_maturity_s"]) * 1000)

    async def _fitting(self, fits: Callable[[Callable[[int, int], None]], Scores]) -> Scores:
        """Fits beside the event loop, which shows the progress and takes an interruption."""
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        def on_progress(done: int, of: int) -> None:
            if cancelled.is_set():
                raise BacktestError("the backtest was interrupted")
            loop.call_soon_threadsafe(self._observer.fitting, done, of)

        try:
            return await asyncio.to_thread(fits, on_progress)
        finally:
            cancelled.set()

    def _judge(
        self, model: ModelDirectory, record: ReplayRecord
    ) -> tuple[tuple[Decision, ...], Reproduced]:
        judge = Judge(
            self._dataset,
            self._recipe,
            model,
            self._requests,
            record.answers.version,
            period_rows=period_rows(self._dataset),
            maturity_ms=self._maturity_ms(),
        )
        return judge.decisions(record.loop_events), judge.reproduced(record.loop_events)

    def _write_model(self) -> ModelDirectory:
        model = Registry(self._models_dir).model(self._settings.model)
        model.path.mkdir(parents=True)
        history = self._dataset.frame.slice(0, self._start)
        history.write_parquet(model.path / HISTORY_FILE)
        model.recipe_path.write_text(to_toml(self._tables), encoding="utf-8")
        return model

    @contextlib.asynccontextmanager
    async def _checked_and_warm(self) -> AsyncIterator[WarmTrainers | None]:
        """Settings that the server takes, and where a fast run is wanted trainers to go on with."""
        if not self._settings.fast:
            await verify(self._models_dir)
            yield None
            return
        trainers = WarmTrainers(self._threads, self._log.with_name("trainers.log"))
        try:
            warming = asyncio.create_task(trainers.start())
            try:
                await verify(self._models_dir)
                await warming
            finally:
                warming.cancel()
                await asyncio.gather(warming, return_exceptions=True)
            yield trainers
        finally:
            await trainers.aclose()

    @property
    def _threads(self) -> int:
        return int(self._tables["training"]["threads"])

    async def _train_first(self, trainers: WarmTrainers | None) -> None:
        first = self._dataset.periods[0]
        self._observer.stage(f"training on the first period, {first.name}: {first.rows:,} rows")
        result = await train(
            self._models_dir,
            self._settings.model,
            reason=f"first period, {first.name}",
            event_time_ms=int(self._times[first.stop - 1]),
            threads=self._threads,
            timeout_s=self._settings.training_timeout_s,
            on_progress=self._observer.training,
            **({"command": (*trainers.command, "{}")} if trainers is not None else {}),
        )
        if result.get("outcome") != "published":
            raise BacktestError(f"the first model was refused: {result.get('reason')}")

    async def _serve_and_replay(
        self, model: ModelDirectory, record: ReplayRecord, trainers: WarmTrainers | None
    ) -> None:
        self._observer.stage("starting the server")
        server = ServerProcess(self._models_dir, self._log, trainers=trainers)
        client: ReplayClient | None = None
        try:
            await server.start()
            self._frontend = server.frontend
            client = ReplayClient(
                server.inference,
                server.admin,
                self._settings.model,
                in_flight=self._settings.in_flight,
                timeout_s=self._settings.request_timeout_s,
            )
            replay = asyncio.create_task(self._replay(client, model, record))
            death = asyncio.create_task(server.wait_for_death())
            try:
                await asyncio.wait({replay, death}, return_when=asyncio.FIRST_COMPLETED)
                if replay.done() and replay.exception() is not None and not death.done():
                    # A dying server fails a call first: its end is the better explanation.
                    await asyncio.wait({death}, timeout=1.0)
                if death.done():
                    raise await death
                await replay
            finally:
                for task in (replay, death):
                    task.cancel()
                await asyncio.gather(replay, death, return_exceptions=True)
        finally:
            if client is not None:
                await client.aclose()
            await server.aclose()

    async def _replay(
        self, client: ReplayClient, model: ModelDirectory, record: ReplayRecord
    ) -> None:
        manifest = model.manifest(1)
        output = score_output(manifest).name
        features = clean(self._recipe, self._dataset.frame)
        encoder = RequestEncoder(
            self._settings.model,
            manifest.signature.inputs,
            {name: features[name].to_numpy() for name in features.columns},
        )
        place_of: dict[int, Any] = {}

        def place(version: int) -> Any:
            if version not in place_of:
                place_of[version] = places(model.manifest(version), self._dataset.classes)
            return place_of[version]

        labels = LabelSchedule(self._times, self._start, self._settings.label_delay_ms)
        watching = asyncio.create_task(self._watch(client, record))
        try:
            await self._await_loaded(client)
            total = self._dataset.frame.height - self._start
            self._observer.stage(
                f"replaying {total:,} rows in {len(self._requests):,} requests through the server"
            )
            for chunk in self._chunks:
                failed = record.answers.failed_requests
                await client.replay(
                    chunk.requests, encoder, self._times, output, place, record.answers
                )
                if record.answers.failed_requests - failed == len(chunk.requests):
                    raise ReplayError(
                        f"all {len(chunk.requests)} requests for rows {chunk.start:,} to "
                        f"{chunk.stop:,} failed: {record.answers.failures[-1]}"
                    )
                clock = int(self._times[chunk.stop - 1])
                # The pane first and then the labels: if both were under way, which of them
                # the loop decides on would be left to chance.
                settled = await self._settle(client, record)
                if await self._tell_labels(client, labels, clock, chunk.stop, record):
                    settled = await self._settle(client, record)
                report = await client.drift()
                record.note_drift(report, clock)
                if chunk.ends_slot:
                    settled = await self._settle(client, record, int(self._times[chunk.stop]))
                self._observer.replaying(
                    chunk.stop - self._start, total, f"version {settled.champion}, {_words(report)}"
                )
                if watching.done():
                    await watching  # raises what ended it
            await self._exercise(client, encoder, record)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _await_loaded(self, client: ReplayClient) -> None:
        """The server listens before it has loaded everything."""
        deadline = time.monotonic() + 60
        while True:
            versions = await client.versions()
            states = {item.version: item for item in versions.versions}
            first = states.get(1)
            if first is not None and first.state == "READY":
                return
            if first is not None and first.state == "FAILED":
                raise ReplayError(f"the server does not load the first model: {first.reason}")
            if time.monotonic() > deadline:
                raise ReplayError("the server did not load the first model within 60 s")
            await asyncio.sleep(0.05)

    async def _watch(self, client: ReplayClient, record: ReplayRecord) -> None:
        async for event in client.events():
            if event.kind in _QUIET or event.actor == "backtest" or self._exercising:
                continue  # what our own rollback at the end causes is no decision of the loop
            noted = record.note_event(event)
            self._observer.happened(noted["time"], noted["kind"], noted["version"], noted["reason"])

    async def _tell_labels(
        self,
        client: ReplayClient,
        schedule: LabelSchedule,
        clock_ms: int,
        sent: int,
        record: ReplayRecord,
    ) -> bool:
        """Whether there were any to tell."""
        first, last = schedule.due(clock_ms, sent)
        if first == last:
            return False
        values = self._dataset.frame[self._dataset.target].slice(first, last - first).to_list()
        which = np.searchsorted(self._starts, np.arange(first, last), side="right") - 1
        labels = []
        for row, value, number in zip(range(first, last), values, which.tolist(), strict=True):
            if not record.answers.version[row]:
                continue  # it was not answered: there is nothing to label
            request = self._requests[number]
            if isinstance(value, str):
                label = feedback_pb2.Label(id=request.id, row=row - request.start, text=value)
            else:
                label = feedback_pb2.Label(id=request.id, row=row - request.start, number=value)
            labels.append(label)
        await client.submit_labels(labels, clock_ms)
        record.labels_told = last
        return True

    async def _settle(
        self, client: ReplayClient, record: ReplayRecord, watermark_ms: int | None = None
    ) -> admin_pb2.AwaitSettledResponse:
        timeout_s = self._settings.training_timeout_s + 60
        return await client.await_settled(record.answers.answered_rows, timeout_s, watermark_ms)

    async def _exercise(
        self, client: ReplayClient, encoder: RequestEncoder, record: ReplayRecord
    ) -> None:
        """A rollback and a promotion by hand; each ends when a request is answered accordingly."""
        versions = await client.versions()
        champion, previous = versions.champion, versions.previous
        if not previous:
            return
        self._exercising = True
        self._observer.stage(f"rolling back to version {previous} and promoting {champion} again")
        probe = PlannedRequest(len(self._times) - 1, len(self._times))
        at = int(self._times[-1])

        async def timed(change: Any, expected: int, what: str) -> float:
            began = time.perf_counter()
            await change
            answered = await client.version_of(encoder, probe, at)
            elapsed = (time.perf_counter() - began) * 1000
            if answered != expected:
                raise ReplayError(
                    f"after the {what} version {answered} answered, expected {expected}"
                )
            return round(elapsed, 3)

        reason = "the backtest's last step"
        record.rollback_ms = await timed(client.rollback(reason), previous, "rollback")
        record.promote_ms = await timed(client.promote(champion, reason), champion, "promotion")

    def _environment(self, record: ReplayRecord, reproduced: Reproduced) -> Mapping[str, Any]:
        rows = self._dataset.frame.height - self._start
        replay_s = self._timings.get("replay_s") or 1e-9
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "machine": platform.platform(),
            "cpus": os.cpu_count(),
            "frontend": self._frontend,
            "fast": self._settings.fast,
            "packages": {name: package_version(name) for name in _PACKAGES},
            "timings": {**self._timings, "rows_per_s": round(rows / replay_s, 1)},
            "failures": list(record.answers.failures),
            "training_rows_reproduced": {"matching": reproduced.matching, "of": reproduced.of},
        }

    def _settings_used(self) -> Mapping[str, Any]:
        data, settings = self._settings.data, self._settings
        first = self._dataset.periods[0]
        policy = {name: table for name, table in self._tables.items() if name != "recipe"}
        return {
            "data": str(data.path),
            "model": settings.model,
            "target": self._dataset.target,
            "time": self._dataset.time,
            "task": self._dataset.task,
            "numeric": list(self._dataset.numeric),
            "categorical": list(self._dataset.categorical),
            "notes": list(self._dataset.notes),
            "warnings": list(self.warnings),
            "period": data.period,
            "every": data.every,
            "last_period": data.last_period,
            "first_period": {"period": first.name, "rows": first.rows},
            "order": data.order,
            "seed": data.seed,
            "label_delay_ms": settings.label_delay_ms,
            "rows_per_request": settings.rows_per_request,
            "in_flight": settings.in_flight,
            "recipe": json.loads(json.dumps(self._recipe.to_dict())),
            "policy": policy,
        }

    @contextlib.contextmanager
    def _timed(self, name: str) -> Any:
        began = time.monotonic()
        try:
            yield
        finally:
            self._timings[name] = round(time.monotonic() - began, 3)


def _words(report: admin_pb2.DriftReport) -> str:
    if not report.features or report.state == "collecting":
        return f"drift: {report.state}"
    worst = max(report.features, key=lambda feature: feature.psi)
    return f"drift: {report.state} (PSI {worst.psi:.2f} of {worst.name})"
