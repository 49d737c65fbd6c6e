"""Whole trainings in this process: what is published, what is refused, what is left behind."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab._native.reference import CategoricalFeature, ReferenceProfile
from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.trainer import training
from trimtab.trainer.champion import load_champion
from trimtab.trainer.errors import (
    BusyError,
    DataError,
    ExportError,
    RecipeError,
    TrainingError,
)
from trimtab.trainer.export import OnnxModel
from trimtab.trainer.parity import Parity
from trimtab.trainer.progress import SilentProgress
from trimtab.trainer.trainer_lock import trainer_lock
from trimtab.trainer.training import TrainingRequest, TrainingResult, record_failure

FrameMaker = Callable[..., pl.DataFrame]
Rows = Callable[[pl.DataFrame, str], pl.DataFrame]
MODEL = "m"
OWN_MODELS = """
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler


def extra_trees(recipe):
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer(
        [("numeric", "passthrough", list(recipe.numeric)), ("codes", codes, ["colour"])]
    )
    return Pipeline(
        [("columns", columns), ("model", ExtraTreesClassifier(20, max_depth=6, n_jobs=-1))]
    )


def scaled_trees(recipe):
    columns = ColumnTransformer([("numeric", StandardScaler(), list(recipe.numeric))])
    return Pipeline([("columns", columns), ("model", ExtraTreesClassifier(20, max_depth=6))])
"""


class World:
    """A directory of models with one model in it."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        self.directory = ModelDirectory(self.models / MODEL)
        self.directory.path.mkdir(parents=True)
        self.data = Registry(self.models).data_path(MODEL)
        self.request = TrainingRequest(self.models, MODEL, actor="test", reason="because")

    def recipe(self, task: str = "regression", *, estimator: str = "", **changes: Any) -> None:
        table: dict[str, Any] = {
            "task": task,
            "target": "value",
            "numeric": ["size", "age"],
            "categorical": ["colour"],
            "time": "when",
            "files": ["history.parquet"],
            "min_rows": 100,
            "min_holdout_rows": 100,
        }
        table |= changes
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        lines += ["[recipe.estimator]", "max_iter = 20", estimator]
        self.directory.recipe_path.write_text("\n".join(["[recipe]", *lines]))

    def history(self, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.directory.path / "history.parquet")

    def train(self, **changes: Any) -> TrainingResult:
        request = dataclasses.replace(self.request, **changes)
        return training.train(request, SilentProgress())

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.directory.path.glob(".tmp-*"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_a_first_training_publishes_a_whole_version_that_becomes_champion(
    world: World, make_frame: FrameMaker, task: str
) -> None:
    world.recipe(task)
    world.history(make_frame(task=task))
    result = world.train(trigger={"kind": "admin"}, event_time_ms=123)
    assert (result.outcome, result.version, result.rows) == ("published", 1, 1_500)
    assert [str(gate.verdict) for gate in result.gates] == ["pass"] * 6
    manifest = world.directory.verify(1)
    assert world.directory.state().champion == 1
    assert set(manifest.files) == {
        "model.onnx",
        "reference.npz",
        "golden.npz",
        "report.json",
        "model_card.md",
        "model_card.png",
    }
    assert manifest.task == task
    lineage = manifest.lineage
    assert lineage["data"]["rows"] == 1_500
    assert lineage["data"]["time_to_ms"] == int(make_frame()["when"][-1])
    assert len(lineage["data"]["sha256"]) == len(lineage["data"]["sources"][0]["sha256"]) == 64
    assert lineage["recipe"]["target"] == "value"
    assert lineage["trigger"] == {"kind": "admin"}
    assert lineage["libraries"]["onnxruntime"]
    assert lineage["champion"] == 0
    entry = world.directory.history().entries[0]
    assert (entry.kind, entry.actor, entry.reason) == ("published", "test", "because")
    assert entry.event_time_ms == 123


def test_the_golden_rows_replay_on_the_published_graph(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe("multiclass")
    world.history(make_frame(task="multiclass"))
    world.train()
    version = world.directory.version_path(1)
    model = OnnxModel((version / "model.onnx").read_bytes())
    with np.load(version / "golden.npz", allow_pickle=False) as golden:
        found = model.run(
            {
                "numeric": golden["input/numeric"],
                "categorical": golden["input/categorical"].astype(object),
            }
        )
        assert np.array_equal(found["probabilities"], golden["output/probabilities"])


def test_the_reference_profile_counts_every_row_of_inputs_and_the_held_out_ones_of_outputs(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe("multiclass")
    world.history(make_frame(task="multiclass"))
    world.train()
    profile = ReferenceProfile.load(world.directory.version_path(1) / "reference.npz")
    assert profile.rows == 1_500
    features = {
        (tensor.role, feature.name): feature
        for tensor in profile.tensors
        for feature in tensor.features
    }
    assert set(features) == {
        ("input", "size"),
        ("input", "age"),
        ("input", "colour"),
        ("output", "value"),
        *(("output", f"probabilities[{name}]") for name in ("high", "low", "middle")),
    }
    age = features["input", "age"]
    assert age.missing == make_frame()["age"].null_count()
    assert int(np.sum(age.counts)) + age.missing == 1_500
    colour = features["input", "colour"]
    assert isinstance(colour, CategoricalFeature)
    assert colour.missing == make_frame()["colour"].null_count()
    assert colour.kept[0] == b"red"
    assert int(np.sum(features["output", "probabilities[low]"].counts)) == 300


def test_the_report_has_gates_metrics_and_importances(world: World, make_frame: FrameMaker) -> None:
    world.recipe()
    world.history(make_frame())
    result = world.train()
    report = json.loads((world.directory.version_path(1) / "report.json").read_text())
    names = ["schema", "champion", "baseline", "segments", "parity", "latency"]
    assert [gate["name"] for gate in report["gates"]] == names
    assert report["metrics"] == dict(result.metrics)
    assert report["metrics"]["mae"] < report["constant_metric"] / 3
    assert next(iter(report["importances"])) == "size"
    profile = ReferenceProfile.load(world.directory.version_path(1) / "reference.npz")
    kept = {f.name: f.importance for t in profile.tensors for f in t.features if t.role == "input"}
    assert kept == report["importances"]
    assert report["gates"][4]["figures"]["rows"] >= 10_000
    assert set(report["window_drift"]) == {"size", "age", "colour", "value"}


def test_the_same_inputs_and_seed_give_the_same_files(
    tmp_path: Path, make_frame: FrameMaker
) -> None:
    hashes = []
    for name in ("a", "b"):
        world = World(tmp_path / name)
        world.recipe()
        world.history(make_frame())
        world.train()
        files = world.directory.manifest(1).files
        kept = ("model.onnx", "report.json", "model_card.md", "model_card.png")
        hashes.append({name: files[name].sha256 for name in kept})
    for name in ("model.onnx", "report.json", "model_card.png"):
        assert hashes[0][name] == hashes[1][name]
    # The card names the file that the rows are from, and that lies somewhere else.
    assert hashes[0]["model_card.md"] != hashes[1]["model_card.md"]


def test_two_processes_make_the_same_files_of_the_same_inputs(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe("binary", estimator="max_features = 0.5")
    world.history(make_frame(task="binary"))
    arguments = ["--models-dir", str(world.models), "--model", MODEL, "--progress", "none"]
    made: list[dict[str, bytes]] = []
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "trimtab.trainer", "train", *arguments, "--reason", "why"],
            check=True,
            capture_output=True,
            timeout=120,
            env={**os.environ, "PYTHONHASHSEED": str(len(made))},
        )
        version = world.directory.version_path(1)
        made.append({path.name: path.read_bytes() for path in version.iterdir()})
        for path in world.directory.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("trimtab.toml", "history.parquet"):
                path.unlink()
    for name in ("model.onnx", "report.json", "model_card.md", "model_card.png"):
        assert made[0][name] == made[1][name], name
    assert len(made[0]["model_card.md"]) + len(made[0]["model_card.png"]) < 300_000


def test_the_card_explains_the_decision_and_the_timings_are_in_the_manifest_only(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe()
    world.history(make_frame())
    result = world.train()
    card = (world.directory.version_path(1) / "model_card.md").read_text()
    assert "no champion: it is a first" in card
    assert "| baseline | pass | better: mae" in card
    assert "1,500 labelled rows from 2023-11-14 22:13" in card
    measured = world.directory.manifest(1).lineage["latency_us"]["candidate"]
    assert 0 < measured["batched_us"] < measured["alone_us"]
    latency = next(gate for gate in result.gates if gate.name == "latency")
    assert latency.figures["alone_us"] == measured["alone_us"]
    report = json.loads((world.directory.version_path(1) / "report.json").read_text())
    assert report["gates"][5]["figures"] == {}
    assert "manifest.json" in report["gates"][5]["reason"]


def test_what_nothing_can_be_learned_from_is_refused_by_every_gate_that_sees_it(
    world: World, make_frame: FrameMaker
) -> None:
    random = np.random.default_rng(0)
    history = make_frame().with_columns(value=pl.Series(random.normal(size=1_500)))
    world.recipe()
    world.history(history)
    result = world.train()
    assert result.reason.startswith("baseline: not better: mae")
    world.recipe(baseline="report")
    assert world.train().version == 1
    world.recipe(schema_change="refuse", numeric=["size"])
    both = world.train().reason
    assert both.startswith("schema: the input 'numeric' has the champion's columns without age")
    assert "; baseline: not" in both


def test_a_pipeline_of_the_users_is_trained_and_one_that_onnx_gets_wrong_is_not_even_fitted(
    world: World, make_frame: FrameMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_models.py").write_text(OWN_MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    world.history(make_frame(600, task="binary"))
    world.recipe("binary", estimator='kind = "own_models:extra_trees"')
    result = world.train()
    assert result.outcome == "published", result.reason
    world.recipe("binary", estimator='kind = "own_models:scaled_trees"')
    with pytest.raises(ExportError, match="StandardScaler before trees moves rows") as caught:
        world.train()
    assert "take it out" in str(caught.value)


def test_early_stopping_is_found_once_and_kept_for_the_published_model(
    world: World, make_frame: FrameMaker
) -> None:
    world.history(make_frame())
    world.recipe(estimator="early_stopping = 5\nlearning_rate = 0.5")
    world.train()
    assert world.directory.manifest(1).task == "regression"
    small = (world.directory.version_path(1) / "model.onnx").stat().st_size
    other = World(world.models.parent / "other")
    other.history(make_frame())
    other.recipe(estimator="learning_rate = 0.5")
    other.train()
    assert small < (other.directory.version_path(1) / "model.onnx").stat().st_size / 1.25


def test_a_better_candidate_on_new_labelled_traffic_is_published_as_the_next_version(
    world: World,
    make_frame: FrameMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    history = make_frame(1_000)
    live = make_frame(1_000, seed=2, start_ms=int(history["when"][-1]) + 1)
    live = live.with_columns(value=pl.col("value") + 2 * pl.col("size"))  # the world moved
    world.recipe()
    world.history(history)
    world.train()
    write_frames(world.data / "traffic/active.frames", [served(live, "a")])
    write_frames(world.data / "labels/active.frames", [labels(live, "a")])
    result = world.train()
    assert (result.outcome, result.version) == ("published", 2)
    assert result.gates[1].reason.startswith("better: mae")
    assert result.metrics["mae"] < result.metrics["champion_mae"]
    assert world.directory.state().champion == 1  # promoting is not the trainer's
    lineage = world.directory.manifest(2).lineage
    assert lineage["champion"] == 1
    assert lineage["holdout"]["time_from_ms"] > int(history["when"][-1])


def test_a_candidate_that_is_not_better_is_refused_and_recorded_on_request(
    world: World,
    make_frame: FrameMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    history = make_frame(1_500)
    live = make_frame(150, seed=2, start_ms=int(history["when"][-1]) + 1)
    world.recipe()
    world.history(history)
    world.train()
    write_frames(world.data / "traffic/active.frames", [served(live, "a")])
    write_frames(world.data / "labels/active.frames", [labels(live, "a")])
    result = world.train(record=True)
    assert (result.outcome, result.version) == ("refused", None)
    assert result.reason.startswith("champion: not")
    assert world.directory.versions() == [1]
    assert world.left_behind() == []
    last = world.directory.history().entries[-1]
    assert (last.kind, last.reason) == ("refused", result.reason)
    assert last.evidence["gates"][1]["figures"]["rows"] == 150


def test_each_refusal_makes_the_next_comparison_stricter_until_another_is_champion(
    world: World,
    make_frame: FrameMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
) -> None:
    history = make_frame(1_000)
    live = make_frame(300, seed=2, start_ms=int(history["when"][-1]) + 1)
    world.recipe()
    world.history(history)
    world.train()
    few = world.train(record=True)  # without a new row nothing was compared, so nothing was tried
    assert few.outcome == "refused"
    write_frames(world.data / "traffic/active.frames", [served(live, "a")])
    write_frames(world.data / "labels/active.frames", [labels(live, "a")])
    tried = [world.train(record=True).gates[1] for _ in range(3)]
    assert [gate.figures["refusals"] for gate in tried] == [0, 1, 2]
    widths = [gate.figures["high"] - gate.figures["low"] for gate in tried]
    assert widths[0] < widths[1] < widths[2]
    assert "99.58 % interval" in tried[2].reason
    champion, _ = load_champion(world.directory)
    assert champion and champion.withstood == 3
    world.recipe(numeric=["size"], schema_change="allow")
    assert world.train().version == 2
    world.directory.promote(2, actor="test", reason="it takes less")
    champion, _ = load_champion(world.directory)
    assert champion and champion.withstood == 0


def test_a_second_training_on_the_same_rows_is_inconclusive(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe()
    world.history(make_frame())
    world.train()
    result = world.train()
    assert result.outcome == "refused"
    assert "0 labelled rows are newer than those the champion learned" in result.reason
    assert [entry.kind for entry in world.directory.history().entries] == ["published", "promoted"]


def test_a_better_recipe_on_the_same_rows_is_published(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe(estimator="max_leaf_nodes = 2")
    world.history(make_frame())
    world.train()
    world.recipe(estimator="max_leaf_nodes = 31\nlearning_rate = 0.2")
    result = world.train()
    assert (result.outcome, result.version) == ("published", 2)
    worse = World(world.models.parent / "other")
    worse.recipe()
    worse.history(make_frame())
    worse.train()
    worse.recipe(estimator="max_leaf_nodes = 2")
    assert worse.train().outcome == "refused"


def test_another_column_is_refused_until_the_recipe_allows_it(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe()
    world.history(make_frame())
    world.train()
    world.recipe(numeric=["size"])
    refused = world.train()
    assert refused.outcome == "refused"
    assert "without age" in refused.reason
    world.recipe(numeric=["size"], schema_change="allow")
    assert world.train().version == 2


def test_a_champion_that_cannot_be_loaded_keeps_no_candidate_out(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe()
    world.history(make_frame())
    world.train()
    (world.directory.version_path(1) / "model.onnx").write_bytes(b"damaged")
    result = world.train()
    assert result.version == 2
    assert "the champion, version 1, cannot be loaded" in result.gates[1].reason


def test_a_model_that_onnx_gets_wrong_is_refused(
    world: World, make_frame: FrameMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.recipe()
    world.history(make_frame())
    monkeypatch.setattr(training, "check_parity", lambda *_: Parity(10_000, 0.5, 1e-4, 0))
    result = world.train()
    assert result.reason.startswith("parity: the ONNX model differs from scikit-learn by up to 0.5")
    assert [gate.name for gate in result.gates][-1] == "latency"
    assert world.directory.version_directories() == []


def test_without_refit_the_judged_model_itself_is_published(
    world: World, make_frame: FrameMaker
) -> None:
    world.recipe(refit=False)
    world.history(make_frame())
    world.train()
    assert world.directory.manifest(1).lineage["holdout"]["refitted"] is False


class Stop(BaseException):
    pass


class StopAt(SilentProgress):
    def __init__(self, name: str) -> None:
        self._name = name

    def stage(self, name: str, message: str) -> None:
        if name == self._name:
            raise Stop


@pytest.mark.parametrize("name", ["read", "fit", "export", "reference", "card", "publish"])
def test_a_training_that_ends_at_any_stage_leaves_nothing(
    world: World, make_frame: FrameMaker, name: str
) -> None:
    world.recipe()
    world.history(make_frame(300))
    with pytest.raises(Stop):
        training.train(world.request, StopAt(name))
    assert world.directory.version_directories() == []
    assert world.left_behind() == []
    assert world.train().version == 1  # the lock is free again


def test_an_error_while_writing_leaves_no_staged_files(
    world: World, make_frame: FrameMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    world.recipe()
    world.history(make_frame(300))
    monkeypatch.setattr(training, "save_golden", fail)
    with pytest.raises(OSError, match="No space left"):
        world.train()
    assert world.directory.version_directories() == []
    assert world.left_behind() == []


def test_a_training_does_not_begin_while_another_process_holds_the_lock(world: World) -> None:
    world.recipe()
    with trainer_lock(world.data, MODEL), pytest.raises(BusyError, match="is training m or"):
        world.train()


def test_what_is_missing_or_wrong_publishes_nothing(world: World, make_frame: FrameMaker) -> None:
    with pytest.raises(TrainingError, match="nowhere does not exist"):
        world.train(model="nowhere")
    with pytest.raises(RecipeError, match="no recipe to train by"):
        world.train()
    world.recipe(numeric=["sise"])
    world.history(make_frame(300))
    with pytest.raises(DataError, match="did you mean 'size'"):
        world.train()
    world.recipe()
    world.history(make_frame(300).with_columns(age=pl.lit(None, pl.Float64)))
    with pytest.raises(DataError, match="'age' has no value"):
        world.train()
    assert world.directory.version_directories() == []
    assert world.left_behind() == []


def test_a_failure_is_recorded_on_request_only(world: World) -> None:
    world.recipe()
    record_failure(world.request, "the reason")
    assert world.directory.history().entries == ()
    record_failure(dataclasses.replace(world.request, record=True), "the reason")
    [entry] = world.directory.history().entries
    assert (entry.kind, entry.reason) == ("training_failed", "the reason")


@pytest.mark.parametrize("clock", ["event time", "wall"])
def test_rows_whose_labels_are_not_final_yet_are_not_trained_on(
    world: World,
    make_frame: FrameMaker,
    write_frames: Callable[..., None],
    served: Rows,
    labels: Rows,
    monkeypatch: pytest.MonkeyPatch,
    clock: str,
) -> None:
    world.recipe(files=[])
    live = make_frame(1_200)  # a row each second
    write_frames(world.data / "traffic/active.frames", [served(live, "a")])
    write_frames(world.data / "labels/active.frames", [labels(live, "a")])
    now = int(live["when"][-1])
    if clock == "wall":
        monkeypatch.setattr(time, "time_ns", lambda: now * 1_000_000)
    result = world.train(
        label_maturity_s=200.0, event_time_ms=now if clock == "event time" else None
    )
    assert (result.outcome, result.rows) == ("published", 1_000)
    data = world.directory.manifest(1).lineage["data"]
    assert data["time_to_ms"] == now - 200_000
    assert data["dropped"] == {"served rows younger than label_maturity_s": 200}
