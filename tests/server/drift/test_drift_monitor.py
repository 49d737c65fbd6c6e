import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeClock
from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab._native.reference import NumericFeature
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor
from trimtab.server.drift.drift_report import WindowSnapshot
from trimtab.server.drift.feature_faults import TensorCounts
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor

REFERENCE = reference()


def monitor_of(panes: list[WindowSnapshot]) -> DriftMonitor:
    config = DriftConfig(judge_every_s=0, window_rows=60, panes=3, min_rows=1)
    return DriftMonitor(SIGNATURE, REFERENCE, config, panes.append)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 75), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
    panes=st.integers(1, 5),
    pane_rows=st.integers(1, 25),
)
def test_panes_hold_exactly_their_rows_however_batches_fall(
    sizes: list[int], seed: int, panes: int, pane_rows: int
) -> None:
    random = np.random.default_rng(seed)
    total = sum(sizes)
    numeric, carriers = draw(random, total)
    numeric[random.random((total, 2)) < 0.1] = np.nan
    carriers = [carrier if random.random() < 0.8 else "" for carrier in carriers]
    seen: list[WindowSnapshot] = []
    window_rows = pane_rows * panes
    config = DriftConfig(judge_every_s=0, window_rows=max(window_rows, 10), panes=panes, min_rows=1)
    monitor = DriftMonitor(SIGNATURE, REFERENCE, config, seen.append)
    pane_rows = monitor.pane_rows
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        monitor.observe(batch(numeric[rows], carriers[rows]))
        start += size
    assert len(seen) == total // pane_rows
    assert monitor.observed_rows == total
    for index, snapshot in enumerate(seen):
        rows = slice(index * pane_rows, (index + 1) * pane_rows)
        assert snapshot.recent is not None
        compare(snapshot.recent, brute_force(numeric[rows], carriers[rows]))
    for index, snapshot in enumerate([*seen, monitor.snapshot()]):
        last = index == len(seen)
        end = total if last else (index + 1) * pane_rows
        # A full pane stays the newest one until the next row comes.
        newest = (total - 1) // pane_rows if last else index
        begin = max(0, (newest - panes + 1) * pane_rows)
        assert snapshot.rows == end - begin
        compare(snapshot.tensors, brute_force(numeric[begin:end], carriers[begin:end]))


def compare(
    tensors: Sequence[TensorCounts | None], expected: Sequence[Sequence[np.ndarray]]
) -> None:
    for tensor, counts in zip(tensors, expected, strict=True):
        assert tensor is not None
        assert tensor.counts.tolist() == [feature.tolist() for feature in counts]


def brute_force(numeric: np.ndarray, carriers: Sequence[str]) -> list[list[np.ndarray]]:
    counted = []
    for tensor, columns in (
        (REFERENCE.tensors[0], [numeric[:, 0], numeric[:, 1]]),
        (REFERENCE.tensors[2], [numeric[:, 0] * 2]),
    ):
        slots = max(len(f.edges) for f in tensor.features if isinstance(f, NumericFeature)) + 2
        found = []
        for feature, values in zip(tensor.features, columns, strict=True):
            assert isinstance(feature, NumericFeature)
            counts = np.zeros(slots, int)
            for value in values:
                slot = -1 if np.isnan(value) else int((feature.edges <= value).sum())
                counts[slot] += 1
            found.append(counts)
        counted.append(found)
    (feature,) = REFERENCE.tensors[1].features
    kept = [value.decode() for value in feature.kept]  # type: ignore[union-attr]  # categorical
    counts = np.zeros(len(kept) + 3, int)
    for carrier in carriers:
        counts[kept.index(carrier) if carrier in kept else len(kept) + (1 if carrier else 2)] += 1
    return [counted[0], [counts], counted[1]]


def test_a_constant_column_is_seen_as_one_and_a_varying_one_is_not() -> None:
    seen: list[WindowSnapshot] = []
    monitor = monitor_of(seen)
    numeric = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    numeric[:, 0] = 5
    numeric[7, 0] = np.nan
    for start in range(0, 60, 6):
        monitor.observe(batch(numeric[start : start + 6]))
    window = seen[-1].tensors[0]
    assert window is not None and window.lowest is not None and window.highest is not None
    assert window.lowest[0] == window.highest[0] == 5
    assert window.lowest[1] < window.highest[1]


def test_columns_that_are_constant_only_within_each_pane_are_not_constant() -> None:
    seen: list[WindowSnapshot] = []
    monitor = monitor_of(seen)
    for value in (1, 2, 3):
        monitor.observe(batch(np.full((20, 2), value)))
    window = seen[-1].tensors[0]
    assert window is not None and window.lowest is not None and window.highest is not None
    assert (window.lowest[0], window.highest[0]) == (1, 3)


def test_all_missing_has_no_extremes() -> None:
    seen: list[WindowSnapshot] = []
    monitor = monitor_of(seen)
    monitor.observe(batch(np.full((20, 2), np.nan)))
    window = seen[-1].tensors[0]
    assert window is not None and window.lowest is not None and np.isnan(window.lowest).all()


def test_a_tensor_that_is_absent_or_of_another_width_is_passed_over() -> None:
    seen: list[WindowSnapshot] = []
    monitor = monitor_of(seen)
    whole = batch(np.zeros((20, 2)))
    partial = ObservedBatch(
        "m", 1, whole.calls, 20, {"numeric": Tensor("FP32", (20, 3), np.zeros((20, 3)))}, {}
    )
    monitor.observe(partial)
    assert seen[-1].rows == 20
    assert all(window is not None and window.counts.sum() == 0 for window in seen[-1].tensors)


def test_the_first_live_rows_become_the_reference_of_a_version_without_one() -> None:
    seen: list[WindowSnapshot] = []
    asked: list[bool] = []
    config = DriftConfig(judge_every_s=0, window_rows=100, panes=2, min_rows=10, bootstrap_rows=300)
    monitor = DriftMonitor(SIGNATURE, None, config, seen.append, lambda: asked.append(True))
    random = np.random.default_rng(0)
    for _ in range(10):
        monitor.observe(batch(*draw(random, 30)))
    assert asked == [True] and not seen and monitor.reference_kind == "none"
    for _ in range(9):  # come while the reference is made
        monitor.observe(batch(*draw(random, 30)))
    monitor.bootstrap()
    monitor.bootstrap()
    assert monitor.reference_kind == "bootstrap"
    assert len(seen) == 5 and seen[-1].rows == 100, "they were observed afterwards"
    assert monitor.yardstick is not None
    profile = monitor.yardstick.profile
    assert profile.rows == 300
    assert [(t.tensor, t.role, len(t.features)) for t in profile.tensors] == [
        ("numeric", "input", 2),
        ("categorical", "input", 1),
        ("variable", "output", 1),
    ]
    assert profile.tensors[0].features[1].name == "wind"
    assert monitor.observed_rows == 570


def test_a_bootstrap_leaves_out_what_is_no_table() -> None:
    signature = Signature(
        inputs=(
            TensorSpec("image", "FP32", (-1, 2, 2), ()),
            TensorSpec("ragged", "FP32", (-1, -1), ()),
            TensorSpec("flag", "BOOL", (-1,), ()),
        ),
        outputs=(),
    )
    config = DriftConfig(judge_every_s=0, window_rows=100, panes=2, bootstrap_rows=100)
    asked: list[bool] = []
    monitor = DriftMonitor(
        signature, None, config, lambda snapshot: None, lambda: asked.append(True)
    )
    for width in (1, 2):
        inputs = {
            "image": Tensor("FP32", (50, 2, 2), np.zeros((50, 2, 2), np.float32)),
            "ragged": Tensor("FP32", (50, width), np.zeros((50, width), np.float32)),
            "flag": Tensor("BOOL", (50,), np.arange(50) % 2 == 0),
        }
        calls = ObservedCalls.of([ObservedCall("a", 50, None, 1)])
        monitor.observe(ObservedBatch("m", 1, calls, 50, inputs, {}))
    assert asked
    monitor.bootstrap()
    assert monitor.yardstick is not None
    assert [tensor.tensor for tensor in monitor.yardstick.profile.tensors] == ["flag"]


def by_time(seen: list[WindowSnapshot], **changes: Any) -> DriftMonitor:
    """Three panes of at most 20 rows and 1 second."""
    config = DriftConfig(judge_every_s=0, window_rows=60, window_s=3, panes=3, min_rows=1)
    config = dataclasses.replace(config, **changes)
    return DriftMonitor(SIGNATURE, REFERENCE, config, seen.append)


def test_a_pane_ends_as_the_clock_passes_into_another_slot() -> None:
    seen: list[WindowSnapshot] = []
    monitor = by_time(seen)
    rows = batch(np.zeros((5, 2)))
    for now_ms in (900, 999, 1000, 1999, 2000, 3000, 4000):
        monitor.advance(now_ms)
        monitor.observe(rows)
    assert [snapshot.rows for snapshot in seen] == [10, 20, 25, 20]
    assert [snapshot.newest_pane for snapshot in seen] == [1, 2, 3, 4]
    for snapshot in seen:
        tensor, pane = snapshot.tensors[0], snapshot.recent
        assert tensor is not None and tensor.counts.sum() == 2 * snapshot.rows
        assert pane is not None and pane[0] is not None
    assert [s.recent[0].counts.sum() for s in seen if s.recent and s.recent[0]] == [20, 20, 10, 10]
    assert monitor.snapshot().rows == 15


def test_rows_end_a_pane_inside_its_slot_too() -> None:
    seen: list[WindowSnapshot] = []
    monitor = by_time(seen)
    monitor.advance(500)
    monitor.observe(batch(np.zeros((45, 2))))
    assert [snapshot.rows for snapshot in seen] == [20, 40]
    monitor.advance(1500)
    assert [snapshot.rows for snapshot in seen] == [20, 40, 45]
    assert monitor.snapshot().rows == 25, "the first pane has left for the fourth"


def test_several_slots_at_once_empty_the_window_and_tell_nobody_of_empty_panes() -> None:
    for passed, left in ((1, 10), (2, 5), (3, 0), (4, 0), (10**12, 0)):
        seen: list[WindowSnapshot] = []
        monitor = by_time(seen)
        for now_ms in (0, 1000):
            monitor.advance(now_ms)
            monitor.observe(batch(np.ones((5, 2))))
        monitor.advance(1000 + passed * 1000)
        assert [snapshot.rows for snapshot in seen] == [5, 10]
        window = monitor.snapshot()
        assert (window.rows, window.newest_pane) == (left, 2 + passed)
        tensor = window.tensors[0]
        assert tensor is not None and tensor.counts.sum() == 2 * left
        assert tensor.lowest is not None and np.isnan(tensor.lowest).all() == (not left)


def test_a_window_without_a_span_is_not_moved_by_time() -> None:
    seen: list[WindowSnapshot] = []
    monitor = by_time(seen, window_s=0.0)
    for now_ms in (0, 10**9, 10**12):
        monitor.advance(now_ms)
        monitor.observe(batch(np.zeros((5, 2))))
    assert not seen and monitor.snapshot().rows == 15


def test_a_reading_that_was_overtaken_and_a_change_to_event_time_end_nothing() -> None:
    seen: list[WindowSnapshot] = []
    monitor = by_time(seen)
    monitor.advance(50_000)  # the wall's
    monitor.observe(batch(np.zeros((5, 2))))
    monitor.advance(40_000)
    monitor.advance(50_999)
    monitor.advance(7000, is_event_time=True)
    monitor.advance(51_000)  # the wall's: it was read before
    monitor.observe(batch(np.zeros((5, 2))))
    assert not seen and monitor.snapshot().rows == 10
    monitor.advance(8000, is_event_time=True)
    assert [snapshot.rows for snapshot in seen] == [10]


def test_a_bootstrap_remembers_the_slot_and_nothing_else() -> None:
    seen: list[WindowSnapshot] = []
    config = DriftConfig(
        judge_every_s=0, window_rows=300, window_s=3, panes=3, min_rows=1, bootstrap_rows=100
    )
    monitor = DriftMonitor(SIGNATURE, None, config, seen.append)
    random = np.random.default_rng(0)
    for now_ms in (0, 1000, 5000):
        monitor.advance(now_ms)
        monitor.observe(batch(*draw(random, 50)))
    monitor.bootstrap()
    assert not seen and monitor.snapshot().rows == 50, "those that came after the reference's"
    monitor.advance(5999)
    assert not seen
    monitor.advance(6000)
    assert [snapshot.rows for snapshot in seen] == [50]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 60)), min_size=1, max_size=25
    ),  # milliseconds that go by, then rows
    start=st.integers(-(10**6), 10**6),
    seed=st.integers(0, 1000),
    panes=st.integers(1, 5),
    pane_rows=st.integers(2, 25),
    pane_ms=st.integers(1, 300),
)
def test_the_window_is_the_rows_of_its_newest_panes_however_batches_and_the_clock_go(
    steps: list[tuple[int, int]], start: int, seed: int, panes: int, pane_rows: int, pane_ms: int
) -> None:
    """Held to a model that gives every row, one by one, its time and the number of its pane."""
    config = DriftConfig(
        judge_every_s=0,
        window_rows=max(10, pane_rows * panes),
        window_s=pane_ms * panes / 1000,
        panes=panes,
        min_rows=1,
    )
    seen: list[WindowSnapshot] = []
    monitor = DriftMonitor(SIGNATURE, REFERENCE, config, seen.append)
    pane_rows = monitor.pane_rows
    assert monitor.pane_ms == pane_ms
    numeric, carriers = draw(np.random.default_rng(seed), sum(rows for _, rows in steps))
    pane_of: list[int] = []
    time_of: list[int] = []
    now_ms, pane, filled = start, 1, 0
    full = False  # the pane before that one is, and stays the newest until something comes
    ended: list[int] = []  # panes that ended with rows
    for index, (passed, rows) in enumerate(steps):
        before = now_ms // pane_ms
        now_ms += passed if index else 0
        monitor.advance(now_ms)
        if slots := now_ms // pane_ms - before:
            ended += [pane] * (filled > 0)
            pane, filled, full = pane + slots, 0, False
        first = len(pane_of)
        for _ in range(rows):
            pane_of.append(pane)
            time_of.append(now_ms)
            filled += 1
            full = filled == pane_rows
            if full:
                ended.append(pane)
                pane, filled = pane + 1, 0
        if rows:
            monitor.observe(batch(numeric[first : first + rows], carriers[first : first + rows]))
        window = monitor.snapshot()
        newest = pane - full
        inside = [row for row, number in enumerate(pane_of) if number > newest - panes]
        assert (window.rows, window.newest_pane) == (len(inside), newest)
        assert len(inside) <= config.window_rows
        assert all(time_of[row] > now_ms - config.window_s * 1000 for row in inside)
        compare(window.tensors, brute_force(numeric[inside], [carriers[row] for row in inside]))
    assert [snapshot.newest_pane for snapshot in seen] == ended
    for snapshot in seen:
        newest = snapshot.newest_pane
        inside = [row for row, number in enumerate(pane_of) if newest - panes < number <= newest]
        assert snapshot.rows == len(inside)
        compare(snapshot.tensors, brute_force(numeric[inside], [carriers[row] for row in inside]))
        alone = [row for row, number in enumerate(pane_of) if number == newest]
        assert snapshot.recent is not None
        compare(snapshot.recent, brute_force(numeric[alone], [carriers[row] for row in alone]))


def test_where_panes_fill_fast_windows_in_between_are_passed_over() -> None:
    clock = FakeClock()
    config = DriftConfig(judge_every_s=1.0, window_rows=30, panes=3, min_rows=1)
    seen: list[WindowSnapshot] = []
    random = np.random.default_rng(4)
    monitor = DriftMonitor(SIGNATURE, REFERENCE, config, seen.append, clock=clock)

    def observe(rows: int) -> None:
        monitor.observe(batch(*draw(random, rows)))

    observe(30)
    assert [(each.rows, each.newest_pane) for each in seen] == [(10, 1)]
    assert monitor.snapshot().rows == 30, "whole panes, until the next row comes"
    observe(15)
    monitor.hand_out()
    assert [(each.rows, each.newest_pane) for each in seen[1:]] == [(25, 5)], "as it is now"
    assert seen[1].recent is not None and seen[1].recent[0] is not None
    assert seen[1].recent[0].counts[0].sum() == 35, "all rows since it was last handed out"
    monitor.hand_out()
    assert len(seen) == 2, "nothing ended since"
    observe(5)
    assert len(seen) == 2
    clock.advance(1.0)
    observe(10)
    assert [(each.rows, each.newest_pane) for each in seen[2:]] == [(30, 6)]
