"""Labels meet the answers that they are about, each is counted once, and a loss of quality shows."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.loop_fakes import strings
from trimtab._native.losses import absolute_error, log_loss
from trimtab._native.reference import (
    ReferenceProfile,
    TensorReference,
    numeric_feature,
)
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import DriftConfig, LabelsConfig
from trimtab.server.drift.drift_evidence import DriftEvidence
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import OK as NO_DRIFT
from trimtab.server.drift.drift_report import WindowSnapshot, evaluate, worst
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.answered_rows import AnswerTap
from trimtab.server.loop.label_monitor import EARLY_S, LabelMonitor
from trimtab.server.loop.label_stats import OUTCOMES, LabelStats
from trimtab.server.loop.quality import DEGRADED
from trimtab.server.rollout.loss import loss_of

NUMBER = Signature(
    inputs=(TensorSpec("numeric", "FP32", (-1, 1), ("x",)),),
    outputs=(TensorSpec("variable", "FP32", (-1, 1), ("y",)),),
)
CLASSES = Signature(
    inputs=(),
    outputs=(
        TensorSpec("label", "INT64", (-1,), ("fraud",)),
        TensorSpec("probabilities", "FP32", (-1, 2), ("probabilities[0]", "probabilities[1]")),
    ),
)
TEXTS = Signature(
    inputs=(),
    outputs=(
        TensorSpec("label", "BYTES", (-1,), ("colour",)),
        TensorSpec("probabilities", "FP32", (-1, 2), ("probabilities[blue]", "probabilities[red]")),
    ),
)
CONFIG = LabelsConfig(
    remember_rows=50_000, window_rows=1_000, panes=5, min_rows=400, false_alarm_rows=1_000_000
)
NOW = 1_700_000_000_000


class Clock:
    """Seconds that stand still until they are moved."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class World:
    """A monitor, a version or more that answer, and whoever tells the truth later."""

    def __init__(
        self,
        signature: Signature = NUMBER,
        config: LabelsConfig = CONFIG,
        losses: NDArray[np.float64] | None = None,
        maturity_s: float = 0.0,
    ) -> None:
        self.clock = Clock()
        self.signature = signature
        self.monitor = LabelMonitor(config, maturity_s, self.clock)
        self.profile = None
        if losses is not None:
            name = "absolute_error" if signature is NUMBER else "log_loss"
            tensor = TensorReference("loss", "loss", (numeric_feature(name, losses),))
            self.profile = ReferenceProfile(len(losses), (), losses=(tensor,))
        self.taps: dict[int, AnswerTap] = {}
        self.load(1)
        self.monitor.champion_changed(1)
        self.calls = 0

    def load(self, version: int) -> None:
        tap = self.monitor.watch(version, self.signature, self.profile)
        assert tap is not None
        self.taps[version] = tap

    def answer(
        self, outputs: NDArray[Any], version: int = 1, event_time_ms: int = NOW
    ) -> list[tuple[str, int]]:
        """One request of those rows; their names."""
        self.calls += 1
        rows = len(outputs)
        name = f"call-{self.calls}"
        outputs = np.ascontiguousarray(outputs, np.float32)
        column = outputs.reshape(rows, -1)
        name_of = "variable" if column.shape[1] == 1 else "probabilities"
        tensors = {name_of: Tensor("FP32", column.shape, column)}
        calls = ObservedCalls.of([ObservedCall(name, rows, event_time_ms, NOW + 5)])
        self.taps[version](ObservedBatch("m", version, calls, rows, {}, tensors))
        return [(name, row) for row in range(rows)]

    def tell(
        self,
        names: Iterable[tuple[str, int]],
        values: Iterable[float | str],
        known_ms: int = NOW,
        now_ms: int = NOW,
    ) -> list[str]:
        """Labels come and are looked at; the kinds of the events."""
        labels = [
            Label(name, row, text=value)
            if isinstance(value, str)
            else Label(name, row, number=float(value))
            for (name, row), value in zip(names, values, strict=True)
        ]
        self.monitor.offer(labels, known_ms)
        return [event.kind for event in self.monitor.look(now_ms)]

    @property
    def stats(self) -> LabelStats:
        return self.monitor.stats()

    def counted(self) -> dict[str, int]:
        return {name: count for name, count in self.stats.outcomes.items() if count}

    def window_mean(self, version: int = 1) -> float:
        return self.monitor._versions[version].quality.window().mean


def test_each_label_is_counted_under_exactly_one_outcome() -> None:
    world = World()
    first = world.answer(np.array([1.0, 2.0, 3.0, 4.0]))
    world.tell(first[:2], [1.5, 2.0])
    world.tell(first[:2], [1.5, 2.5])  # again; corrected
    world.tell(first[2:3], ["three"])
    world.tell([("nobody", 0), first[3], ("call-1", 99)], [0.0, 4.0, 0.0])
    assert world.counted() == {"joined": 3, "duplicate": 1, "corrected": 1, "wrong_type": 1}
    assert world.stats.waiting == 2  # they may have overtaken their answers
    world.clock.s += EARLY_S
    assert world.monitor.look(NOW) == []
    assert world.counted()["unknown"] == 2 and world.stats.waiting == 0
    (version,) = world.stats.versions
    assert (version.answered, version.labelled, version.coverage) == (4, 3, 0.75)
    assert world.window_mean() == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_a_label_that_overtook_its_answer_is_found_when_that_has_come() -> None:
    world = World()
    world.tell([("call-1", 0)], [3.0])
    world.answer(np.array([1.0]))
    world.clock.s += EARLY_S / 2
    world.monitor.look(NOW)
    assert world.counted() == {"joined": 1}
    assert world.window_mean() == 2.0


def test_several_labels_of_one_row_in_one_batch_are_taken_one_after_another() -> None:
    world = World()
    (name,) = world.answer(np.array([10.0]))
    world.tell([name] * 5, [11.0, 11.0, 14.0, "x", 12.0])
    assert world.counted() == {"joined": 1, "duplicate": 1, "corrected": 2, "wrong_type": 1}
    assert world.window_mean() == 2.0


def test_an_answer_that_is_no_number_counts_for_no_loss() -> None:
    world = World()
    names = world.answer(np.array([math.nan, math.inf, 1.0]))
    world.tell(names, [1.0, 1.0, 1.5])
    assert world.counted() == {"joined": 1, "no_answer": 2}
    assert world.window_mean() == 0.5


def test_a_label_of_the_wrong_type_does_not_take_the_place_of_a_right_one() -> None:
    world = World()
    (name,) = world.answer(np.array([10.0]))
    world.tell([name], [11.0])
    world.tell([name], ["eleven"])
    world.tell([name], [11.0])
    assert world.counted() == {"joined": 1, "wrong_type": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("signature", "value", "loss"),
    [
        (CLASSES, 1.0, -math.log(0.75)),
        (CLASSES, 0.0, -math.log(0.25)),
        (CLASSES, 7.0, -math.log(1e-4)),  # a class that the model does not know
        (CLASSES, "1", None),
        (TEXTS, "red", -math.log(0.75)),
        (TEXTS, "green", -math.log(1e-4)),
        (TEXTS, 1.0, None),
    ],
)
def test_labels_of_classes_are_of_the_classes_type(
    signature: Signature, value: float | str, loss: float | None
) -> None:
    world = World(signature)
    names = world.answer(np.array([[0.25, 0.75]]))
    world.tell(names, [value])
    if loss is None:
        assert world.counted() == {"wrong_type": 1}
    else:
        assert world.counted() == {"joined": 1}
        assert world.window_mean() == pytest.approx(loss, rel=1e-6)


def test_every_tenth_label_is_enough_to_judge_and_coverage_says_so() -> None:
    random = np.random.default_rng(0)
    world = World(losses=np.abs(random.normal(size=10_000)))
    for _ in range(100):
        truth = random.normal(size=100)
        names = world.answer(truth + random.normal(size=100))
        assert world.tell(names[::10], truth[::10]) == []
    quality = world.stats.quality
    assert quality is not None and quality.state == "ok" and quality.rows == 1_000
    assert world.counted() == {"joined": 1_000}
    assert world.stats.versions[0].coverage == 0.1


def test_without_labels_nothing_is_known_and_nothing_is_told() -> None:
    world = World(losses=np.ones(1_000))
    for _ in range(20):
        world.answer(np.zeros(500))
        assert world.monitor.look(NOW) == []
    quality = world.monitor.quality
    assert quality is not None and quality.state == "collecting" and quality.rows == 0
    assert world.stats.versions[0].coverage == 0.0 and world.stats.lag_ms is None


def test_labels_that_are_late_by_a_period_go_to_the_version_that_answered() -> None:
    """Version 2 answers by then: its state is its own, and of version 1 nothing more is told."""
    random = np.random.default_rng(1)
    world = World(losses=np.abs(random.normal(size=10_000)))
    world.load(2)
    late: list[tuple[list[tuple[str, int]], NDArray[np.float64]]] = []
    for period in range(6):
        version = 1 if period < 3 else 2
        if period == 3:
            world.monitor.champion_changed(2)
        truth = random.normal(size=800)
        spread = 3.0 if version == 1 else 1.0
        names = world.answer(truth + random.normal(size=800, scale=spread), version)
        late.append((names, truth))
        kinds = world.tell(*late[period - 1], known_ms=NOW + 3_600_000) if period else []
        assert kinds == (["quality"] if period == 1 else [])
    assert {each.quality.version: each.quality.state for each in world.stats.versions} == {
        1: DEGRADED,
        2: "ok",
    }
    assert [each.labelled for each in world.stats.versions] == [2_400, 1_600]
    lag = world.stats.lag_ms
    assert lag is not None and lag == pytest.approx((3_600_000,) * 3, rel=0.09)


def test_labels_that_must_mature_count_once_they_have_in_the_order_of_predictions() -> None:
    world = World(maturity_s=3600, config=LabelsConfig(window_rows=1_000, panes=1_000))
    old = world.answer(np.zeros(2), event_time_ms=NOW)
    new = world.answer(np.zeros(2), event_time_ms=NOW + 1_000)
    world.tell(new, [5.0, 6.0], now_ms=NOW + 2_000)
    world.tell(old, [1.0, 2.0], now_ms=NOW + 3_000)
    assert world.counted() == {"joined": 4} and world.stats.young == 4
    quality = world.monitor._versions[1].quality
    assert quality.window().rows == 0

    world.monitor.look(NOW + 3_600_000)
    assert quality.window().rows == 2 and quality.window().mean == 1.5
    world.tell(new[:1], [7.0], now_ms=NOW + 3_600_500)  # corrected before it counts
    world.tell(old[:1], [3.0], now_ms=NOW + 3_600_500)  # and after
    assert world.stats.young == 2
    world.monitor.look(NOW + 3_601_000)
    assert quality.window().mean == pytest.approx((3 + 2 + 7 + 6) / 4)
    assert world.counted() == {"joined": 4, "corrected": 2} and world.stats.young == 0


def test_a_row_that_was_forgotten_is_unknown_and_counted_so() -> None:
    world = World(config=LabelsConfig(remember_rows=1_000))
    names = world.answer(np.zeros(1_500))
    world.tell(names, [0.0] * 1_500)
    world.clock.s += EARLY_S
    world.monitor.look(NOW)
    assert world.counted() == {"joined": 1_000, "unknown": 500}
    assert (world.stats.remembered, world.stats.forgotten) == (1_000, 500)


def test_labels_of_rows_outside_of_the_remembered_share_are_told_apart_from_unknown_ones() -> None:
    world = World(config=LabelsConfig(remember_share=0.3))
    names = world.answer(np.zeros(10_000))
    world.tell(names, [1.0] * 10_000)
    counted = world.counted()
    assert counted["joined"] + counted["left_out"] == 10_000
    assert counted["joined"] == world.stats.versions[0].labelled == pytest.approx(3_000, abs=200)
    assert world.stats.versions[0].coverage == 1.0


def test_memory_is_bounded_by_bytes_as_well() -> None:
    wide = Signature(
        (), (TensorSpec("p", "FP32", (-1, 500), tuple(f"p[{index}]" for index in range(500))),)
    )
    world = World(wide, LabelsConfig(remember_mb=4))
    assert world.monitor._forms[0].table.nbytes < 4 * 2**20


def test_labels_that_nobody_looks_at_are_not_gathered_for_ever() -> None:
    world = World()
    many = [Label("x", 0, number=1.0)] * 200_000
    for _ in range(4):
        world.monitor.offer(many, NOW)
    assert world.counted() == {"unread": 400_000} and world.stats.waiting == 400_000
    world.monitor.look(NOW)
    assert world.stats.waiting == 50_000
    world.clock.s += EARLY_S
    world.monitor.look(NOW)
    assert world.counted() == {"unread": 400_000, "unknown": 400_000}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 5),
                st.integers(0, 3),
                st.one_of(st.integers(0, 3).map(float), st.just("text")),
            ),
            max_size=12,
        ),
        max_size=8,
    )
)
def test_outcomes_and_the_mean_are_those_of_a_dict(
    batches: list[list[tuple[int, int, float | str]]],
) -> None:
    world = World()
    for rows in (3, 1, 4):
        world.answer(np.full(rows, 1.5))
    known = {
        (f"call-{call}", row) for call, rows in ((1, 3), (2, 1), (3, 4)) for row in range(rows)
    }
    expected = dict.fromkeys(OUTCOMES, 0)
    truth: dict[tuple[str, int], float] = {}
    for each in batches:
        names = [(f"call-{call}", row) for call, row, _ in each]
        world.tell(names, [value for _, _, value in each])
        for name, value in zip(names, (value for _, _, value in each), strict=True):
            if name not in known:
                expected["unknown"] += 1
            elif isinstance(value, str):
                expected["wrong_type"] += 1
            elif name not in truth:
                expected["joined"] += 1
                truth[name] = value
            elif truth[name] == value:
                expected["duplicate"] += 1
            else:
                expected["corrected"] += 1
                truth[name] = value
    world.clock.s += EARLY_S
    world.monitor.look(NOW)
    assert dict(world.stats.outcomes) == expected
    if truth:
        mean = np.mean([abs(value - 1.5) for value in truth.values()])
        assert world.window_mean() == pytest.approx(mean)


def drift_of(random: np.random.Generator) -> tuple[DriftMonitor, list[WindowSnapshot]]:
    """A drift monitor of one input and one output, and the windows that it has handed out."""
    x = random.normal(size=20_000)
    tensors = (
        TensorReference("numeric", "input", (numeric_feature("x", x),)),
        TensorReference("variable", "output", (numeric_feature("y", 3 * x),)),
    )
    windows: list[WindowSnapshot] = []
    config = DriftConfig(window_rows=4_000, panes=10, min_rows=1_000, judge_every_s=0)
    monitor = DriftMonitor(NUMBER, ReferenceProfile(20_000, tensors), config, windows.append)
    return monitor, windows


def test_a_target_that_turned_round_is_found_where_drift_is_silent() -> None:
    """y = 3x until row 20,000, then −3x: x and what is answered are distributed as ever."""
    random = np.random.default_rng(3)
    monitor, windows = drift_of(random)
    held_out = np.abs(random.normal(size=5_000, scale=0.5))
    world = World(losses=held_out)
    told: list[tuple[int, str]] = []
    for start in range(0, 40_000, 500):
        x = random.normal(size=500).astype(np.float32)
        sign = 1 if start < 20_000 else -1
        truth = sign * 3 * x + random.normal(size=500, scale=0.5)
        names = world.answer(3 * x)
        tensors = {"numeric": Tensor("FP32", (500, 1), x[:, None])}
        outputs = {"variable": Tensor("FP32", (500, 1), 3 * x[:, None])}
        calls = ObservedCalls.of([ObservedCall(names[0][0], 500, NOW, NOW)])
        monitor.observe(ObservedBatch("m", 1, calls, 500, tensors, outputs))
        told += [(start, kind) for kind in world.tell(names, truth)]
    ((row, kind),) = told
    assert kind == "quality" and 20_000 <= row < 22_000
    quality = world.monitor.quality
    assert quality is not None and quality.state == DEGRADED and quality.increase > 2

    yardstick = monitor.yardstick
    assert yardstick is not None and len(windows) >= 90
    evidence = DriftEvidence(yardstick.profile, 400, 10_000_000, deflate=True)
    for window in windows:
        assert window.recent is not None
        evidence.add(window.recent)
        judged = evaluate(yardstick, window, monitor.config, {}, evidence.latest)
        assert worst(judged) == NO_DRIFT


def test_classes_that_turned_round_for_a_segment_are_found_and_their_return_too() -> None:
    random = np.random.default_rng(4)

    def segment(rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        p = random.beta(0.5, 0.5, rows)
        return np.stack([1 - p, p], axis=1), (random.random(rows) < p).astype(np.float64)

    given, truth = segment(5_000)
    held_out = log_loss(given[np.arange(5_000), truth.astype(int)])
    world = World(CLASSES, losses=held_out)
    told = []
    for start in range(0, 15_000, 250):
        given, truth = segment(250)
        flipped = 5_000 <= start < 8_000
        kinds = world.tell(world.answer(given), (1 - truth) if flipped else truth)
        told += [(start, kind) for kind in kinds]
    (begun, first), (ended, second) = told
    assert (first, second) == ("quality", "quality_cleared")
    assert 5_000 <= begun < 6_000 and 8_000 <= ended < 10_000


@pytest.mark.parametrize("seed", range(3))
def test_stationary_labels_raise_no_alarm_over_long_runs(seed: int) -> None:
    random = np.random.default_rng(10 + seed)
    world = World(losses=np.abs(random.normal(size=2_000)))
    for _ in range(100):
        truth = random.normal(size=500)
        assert world.tell(world.answer(truth + random.normal(size=500)), truth) == []
    quality = world.monitor.quality
    assert quality is not None and quality.state == "ok"


def test_labels_of_one_class_only_are_noticed_and_not_judged() -> None:
    """Frauds are reported, all-clears never are: the loss says nothing of the model."""
    random = np.random.default_rng(5)
    rare = np.clip(random.beta(0.2, 6, 20_000), 1e-3, 0.999)
    held_out = log_loss(np.where(random.random(20_000) < rare, rare, 1 - rare))
    world = World(CLASSES, losses=held_out)
    told: list[tuple[int, str]] = []
    reported = 0
    for _ in range(60):
        p = random.choice(rare, 2_000)
        frauds = np.flatnonzero(random.random(2_000) < p)
        names = world.answer(np.stack([1 - p, p], axis=1))
        told += [
            (reported, kind)
            for kind in world.tell([names[at] for at in frauds], [1.0] * len(frauds))
        ]
        reported += len(frauds)
    ((row, kind),) = told
    assert kind == "labels_one_sided" and 300 <= row <= 460
    assert world.stats.one_sided
    quality = world.monitor.quality
    assert quality is not None and quality.state != DEGRADED

    kinds: list[str] = []
    for _ in range(20):
        p = random.choice(rare, 200)
        truth = (random.random(200) < p).astype(np.float64)
        kinds += world.tell(world.answer(np.stack([1 - p, p], axis=1)), truth)
    assert kinds == ["labels_two_sided"]
    quality = world.monitor.quality
    assert quality is not None and quality.state == "ok" and not world.stats.one_sided


def test_labels_of_a_class_that_is_nearly_all_there_is_are_not_one_sided() -> None:
    world = World(CLASSES)
    names = world.answer(np.tile([[0.9999, 0.0001]], (5_000, 1)))
    assert world.tell(names, [0.0] * 5_000) == []
    assert not world.stats.one_sided


def test_a_new_champion_begins_with_an_empty_window_and_its_own_reference() -> None:
    random = np.random.default_rng(6)
    world = World(losses=np.abs(random.normal(size=5_000)))
    truth = random.normal(size=3_000)
    names = world.answer(truth + random.normal(size=3_000, scale=3))
    assert world.tell(names, truth) == ["quality"]
    world.load(2)
    world.monitor.champion_changed(2)
    quality = world.monitor.quality
    assert quality is not None and (quality.version, quality.state) == (2, "collecting")
    world.monitor.champion_changed(1)  # rolled back
    quality = world.monitor.quality
    assert quality is not None and (quality.version, quality.state) == (1, "collecting")
    world.tell(names[:10], truth[:10] + 1)  # corrections of rows whose window is gone
    assert world.counted()["corrected"] == 10
    world.monitor.champion_changed(None)
    assert world.monitor.quality is None and world.stats.quality is None


def test_versions_that_answer_in_other_forms_have_tables_of_their_own() -> None:
    world = World(NUMBER)
    names = world.answer(np.array([1.0]))
    world.signature = CLASSES
    world.load(2)
    others = world.answer(np.array([[0.5, 0.5]]), version=2)
    world.tell([*names, *others], [2.0, 1.0])
    assert world.counted() == {"joined": 2}
    assert world.window_mean(1) == 1.0
    assert world.window_mean(2) == pytest.approx(math.log(2), rel=1e-6)
    world.signature = TEXTS
    world.load(3)  # a third form: the first one's answers are let go
    world.tell(names, [2.0])
    world.clock.s += EARLY_S
    world.monitor.look(NOW)
    assert world.counted() == {"joined": 2, "unknown": 1}


def test_a_model_whose_answers_no_label_goes_with_is_not_watched() -> None:
    foreign = Signature((), (TensorSpec("embedding", "FP32", (-1, 64)),))
    monitor = LabelMonitor(CONFIG)
    assert monitor.watch(1, foreign, None) is None
    assert LabelMonitor(LabelsConfig(watch=False)).watch(1, NUMBER, None) is None
    monitor.champion_changed(1)
    monitor.offer([Label("a", 0, number=1.0)], NOW)
    assert monitor.look(NOW) == [] and monitor.quality is None
    assert monitor.stats().outcomes["unknown"] == 1


def test_an_output_that_is_not_as_the_signature_says_is_passed_over() -> None:
    world = World()
    calls = ObservedCalls.of([ObservedCall("a", 2, None, 5)])
    odd = {"variable": Tensor("FP32", (2, 3), np.zeros((2, 3), np.float32))}
    world.taps[1](ObservedBatch("m", 1, calls, 2, {}, odd))
    world.taps[1](ObservedBatch("m", 1, calls, 2, {}, {}))
    assert world.taps[1].answered == 0


def test_answers_and_labels_come_from_several_threads() -> None:
    world = World(config=LabelsConfig(window_rows=10_000))
    world.load(2)

    def work(version: int) -> None:
        for number in range(200):
            calls = ObservedCalls.of([ObservedCall(f"{version}-{number}", 5, None, 5)])
            outputs = {"variable": Tensor("FP32", (5, 1), np.full((5, 1), version, np.float32))}
            world.taps[version](ObservedBatch("m", version, calls, 5, {}, outputs))
            world.monitor.offer(
                [Label(f"{version}-{number}", row, number=0.0) for row in range(5)], NOW
            )

    threads = [threading.Thread(target=work, args=(version,)) for version in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        world.monitor.look(NOW)
    world.monitor.look(NOW)
    assert world.counted() == {"joined": 2_000}
    assert (world.window_mean(1), world.window_mean(2)) == (1.0, 2.0)


LIVE: Sequence[tuple[Signature, Mapping[str, NDArray[Any]], Sequence[Label]]] = (
    (NUMBER, {"variable": np.array([[1.5], [2.0]])}, [Label("a", 0, 1.0), Label("a", 1, 4.5)]),
    (
        CLASSES,
        {"probabilities": np.array([[0.3, 0.7], [1.0, 0.0]])},
        [Label("a", 0, 1.0), Label("a", 1, 1.0)],
    ),
)


@pytest.mark.parametrize(("signature", "outputs", "labels"), LIVE)
def test_live_losses_are_those_that_the_reference_is_made_of(
    signature: Signature, outputs: Mapping[str, NDArray[Any]], labels: Sequence[Label]
) -> None:
    loss = loss_of(signature)
    assert loss is not None
    tensors = {
        name: Tensor("FP32", each.shape, each.astype(np.float32)) for name, each in outputs.items()
    }
    answers = loss.answers(tensors, 2)
    assert answers is not None
    truth = np.array([label.number for label in labels])
    if signature is NUMBER:
        expected = absolute_error(answers[:, 0], truth)
    else:
        expected = log_loss(answers[np.arange(2), truth.astype(int)])
    assert loss.of(answers, labels).tolist() == expected.tolist()


def test_text_answers_are_right_or_wrong() -> None:
    only_labels = Signature((), (TensorSpec("label", "BYTES", (-1,), ()),))
    monitor = LabelMonitor(CONFIG)
    tap = monitor.watch(1, only_labels, None)
    assert tap is not None
    monitor.champion_changed(1)
    calls = ObservedCalls.of([ObservedCall("a", 3, None, 5)])
    outputs = {"label": Tensor("BYTES", (3,), strings(["red", "blue", "red"]))}
    tap(ObservedBatch("m", 1, calls, 3, {}, outputs))
    told = ["red", "red", "red"]
    monitor.offer([Label("a", row, text=text) for row, text in enumerate(told)], NOW)
    monitor.offer([Label("a", 0, number=1.0)], NOW)
    monitor.look(NOW)
    stats = monitor.stats()
    assert (stats.outcomes["joined"], stats.outcomes["wrong_type"]) == (3, 1)
    assert monitor._versions[1].quality.window().mean == pytest.approx(1 / 3)
