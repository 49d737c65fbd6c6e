"""Counts what one version is asked and answers, pane by pane, beside its reference.

A pane ends once it has `window_rows / panes` rows: a batch is split there. Where the window has a
span (`window_s`) it also ends as the loop's clock passes into another slot of `window_s / panes`
seconds. The slots are laid over all time, not from the first row on, so that whoever knows the
times knows the panes. As a pane ends the window (that pane and the ones before it) is copied and
handed to `on_pane`, on the thread that observed or moved the time; judging it is the control loop's
work, so the executor only ever counts. Where panes fill faster than `judge_every_s` the windows in
between are passed over, until one is due or `hand_out` asks for it. A pane that ends without a row
is no evidence: it takes its place in the window, so that older ones leave, and nobody is told.

A version without a reference has the first `bootstrap_rows` live rows for one. They are kept as
they came, in bounded memory; when there are enough, `on_bootstrap` is told, and the control loop
builds the profile (`bootstrap`), for that is too slow for the executor's thread. Rows that come
meanwhile wait, as many as the bootstrap has, and are observed right after.

`observe` is called by one thread at a time, everything else by any. A lock is held while a batch is
counted (tens of microseconds), while a window is copied (as long) and while panes end by time;
nothing slow happens under it.
"""

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.histogram import CategoryHistogram, NumericHistogram
from trimtab._native.reference import (
    CategoricalFeature,
    NumericFeature,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.registry.manifest import Signature, TensorSpec

from ..config import DriftConfig
from ..inference.observation import ObservedBatch
from ..inference.tensor import BYTES, Tensor
from .drift_report import WindowSnapshot
from .feature_faults import TensorCounts
from .row_columns import names_of, width_of
from .row_sampler import RowSampler
from .thinning import every, rows_of, thinned
from .yardstick import Yardstick, yardstick_of

MAX_FEATURES = 4096  # of one tensor that has no reference: a wider one is no table
_MAX_BOOTSTRAP_BYTES = 64 * 1024 * 1024

Role = Literal["input", "output"]
OnPane = Callable[[WindowSnapshot], None]


class _Watch(Protocol):
    """One tensor's histogram."""

    @property
    def role(self) -> str: ...

    tensor: str
    width: int

    def accepts(self, tensor: Tensor) -> bool: ...
    def chosen(self, tensor: Tensor, rows: slice) -> Any:
        """Those rows of it, as `count` takes them."""

    def count(self, chosen: Any, start: int, rows: int, room: int, pane_rows: int) -> None: ...
    def close_panes(self, panes: int) -> None: ...
    def window(self) -> TensorCounts: ...
    def recent(self, panes: int) -> TensorCounts: ...


class DriftMonitor:
    """One served version's live counts. See the module for who calls what."""

    def __init__(
        self,
        signature: Signature,
        reference: ReferenceProfile | None,
        config: DriftConfig,
        on_pane: OnPane,
        on_bootstrap: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pane_rows = max(1, config.window_rows // config.panes)
        self.pane_ms = pane_ms(config)
        window = self.pane_rows * config.panes
        self.config = dataclasses.replace(config, min_rows=min(config.min_rows, window))
        self._signature = signature
        self._on_pane = on_pane
        self._on_bootstrap = on_bootstrap
        self._lock = threading.Lock()  # guards every field below
        self._reference = reference
        self._yardstick: Yardstick | None = None
        self._bootstrapped = False
        self._watches: list[_Watch | None] = _watches(reference, config.panes) if reference else []
        self._open_rows = 0
        self._closed_rows: deque[int] = deque(maxlen=config.panes - 1)  # of each closed pane
        self._ended = 0  # panes so far, empty ones too
        self._recent_panes = 1  # that have rows which were not handed out yet, the open one too
        self._clock = clock
        self._handed = -math.inf  # by that clock, when a window was last handed out
        self._owed = 0  # panes with rows that ended since
        self._slot: int | None = None  # that the open pane belongs to
        self._is_event_time = False  # whether event time told it
        self._observed = 0
        self._passed_over = 0  # of those
        self._kept: list[ObservedBatch] = []  # until there is a reference
        self._kept_rows = 0
        self._kept_bytes = 0
        self._announced = False
        self._backlog: list[ObservedBatch] = []  # while the reference is being built
        self._backlog_rows = 0
        self._unwatched_rows = 0

    def __repr__(self) -> str:
        return (
            f"DriftMonitor(reference={self.reference_kind}, observed={self._observed}, "
            f"panes={self._ended}, at most {self.pane_rows} rows each)"
        )

    @property
    def yardstick(self) -> Yardstick | None:
        """What windows are held against; None: no reference yet."""
        reference = self._reference
        if reference is None:
            return None
        if self._yardstick is None:
            self._yardstick = yardstick_of(reference)
        return self._yardstick

    @property
    def reference_kind(self) -> str:
        """Where the reference is from: training, bootstrap, or none yet."""
        if self._reference is None:
            return "none"
        return "bootstrap" if self._bootstrapped else "training"

    @property
    def observed_rows(self) -> int:
        """Rows given to `observe`."""
        return self._observed

    @property
    def passed_over_rows(self) -> int:
        """Of these, the rows that were not counted, for `rows_per_request` or the sampler."""
        return self._passed_over

    @property
    def bootstrap_rows(self) -> int:
        """Rows kept so far towards a reference."""
        return self._kept_rows

    def observe(self, batch: ObservedBatch, sampler: RowSampler | None = None) -> None:
        """Counts a batch, of which `sampler` may leave out rows; `on_pane` is called as a pane
        fills, `judge_every_s` permitting."""
        announce = False
        came = batch.rows
        if self.config.rows_per_request:
            batch = thinned(batch, self.config.rows_per_request)
        chosen = slice(batch.rows) if sampler is None else sampler.choose(batch.rows)
        rows = 0 if chosen is None else len(range(*chosen.indices(batch.rows)))
        with self._lock:
            self._observed += came
            self._passed_over += came - rows
            if chosen is None or not rows:
                return
            if self._reference is not None:
                self._count(batch, chosen, rows)
            else:
                announce = self._keep(every(batch, chosen))
        if announce:
            self._on_bootstrap()

    def advance(self, now_ms: int, *, is_event_time: bool = False) -> None:
        """Ends the panes that time has ended, by the loop's clock; nothing where rows alone end them.

        To be called before the rows of that moment are observed.
        """
        if self.pane_ms:
            with self._lock:
                self._enter(now_ms // self.pane_ms, is_event_time)

    def hand_out(self) -> None:
        """Calls `on_pane` with the window as it is now, if panes ended since it was last called."""
        with self._lock:
            if self._owed:
                self._hand_out()

    def snapshot(self) -> WindowSnapshot:
        """The window as it is now, the pane that is filling included."""
        with self._lock:
            return self._snapshot()

    def bootstrap(self) -> None:
        """Makes the rows that were kept the reference, and observes those that came meanwhile."""
        with self._lock:
            if self._reference is not None or not self._announced:
                return
            kept = list(self._kept)
        reference = _reference_of(self._signature, kept)  # slow: outside the lock
        with self._lock:
            self._reference, self._bootstrapped = reference, True
            self._watches = _watches(reference, self.config.panes)
            backlog, self._backlog, self._kept = self._backlog, [], []
            for batch in backlog:
                self._count(batch, slice(batch.rows), batch.rows)

    # Everything below is called with the lock held.

    def _enter(self, slot: int, is_event_time: bool) -> None:
        """The open pane belongs to that slot from now on, or a new one does."""
        before = self._slot
        if before is None or (is_event_time and not self._is_event_time):
            # The first reading, or the first of a clock that went over from the wall's to event
            # time, which may be years away: how long a pane lasted is not known.
            self._slot, self._is_event_time = slot, is_event_time
            return
        if (self._is_event_time and not is_event_time) or slot <= before:
            return  # a reading that another thread's has overtaken
        self._slot = slot
        passed = slot - before
        full = self._open_rows == self.pane_rows
        self._owed += (
            bool(self._open_rows) and not full
        )  # a full one is owed already, or handed out
        if self._owed:
            self._hand_out()  # now: the panes that follow push rows out of the window
        if full:
            self._end_pane()
        if self._open_rows:
            self._end_pane()
            passed -= 1
        if any(self._closed_rows):
            empty = min(passed, self.config.panes)
            for watch in self._watches:
                if watch is not None:
                    watch.close_panes(empty)
            self._closed_rows.extend([0] * empty)
            self._recent_panes += empty
        self._ended += passed

    def _keep(self, batch: ObservedBatch) -> bool:
        """Keeps a batch towards the reference; True as there are enough."""
        if self._announced:
            if self._backlog_rows + batch.rows <= self.config.bootstrap_rows:
                self._backlog.append(batch)
                self._backlog_rows += batch.rows
            else:
                self._unwatched_rows += batch.rows
            return False
        self._kept.append(batch)
        self._kept_rows += batch.rows
        self._kept_bytes += sum(
            len(tensor.data) if isinstance(tensor.data, bytes) else tensor.data.nbytes
            for tensors in (batch.inputs, batch.outputs)
            for tensor in tensors.values()
        )
        self._announced = (
            self._kept_rows >= self.config.bootstrap_rows
            or self._kept_bytes >= _MAX_BOOTSTRAP_BYTES
        )
        return self._announced

    def _count(self, batch: ObservedBatch, chosen: slice, count: int) -> None:
        """Counts the chosen rows, which are so many."""
        parts = []
        for watch in self._watches:
            if watch is None:
                continue
            tensor = (batch.inputs if watch.role == "input" else batch.outputs).get(watch.tensor)
            if tensor is not None and not (
                width_of(tensor, batch.rows) == watch.width and watch.accepts(tensor)
            ):
                tensor = None
            parts.append((watch, None if tensor is None else watch.chosen(tensor, chosen)))
        done = 0
        while done < count:
            rows = count - done
            room = self.pane_rows - self._open_rows  # 0: the next row ends the open pane
            to_full = room or self.pane_rows
            due = rows >= to_full and self._clock() - self._handed >= self.config.judge_every_s
            if due:
                rows = to_full  # the window is handed out as it is then
            ends = max(0, -((room - rows) // self.pane_rows))
            for watch, part in parts:
                if part is None:
                    watch.close_panes(ends)
                else:
                    watch.count(part, done, rows, room, self.pane_rows)
            self._closed_rows.extend([self.pane_rows] * ends)
            self._ended += ends
            self._recent_panes += ends
            self._owed += (self._open_rows % self.pane_rows + rows) // self.pane_rows
            self._open_rows += rows - ends * self.pane_rows
            done += rows
            if due:
                self._hand_out()

    def _end_pane(self) -> None:
        for watch in self._watches:
            if watch is not None:
                watch.close_panes(1)
        self._closed_rows.append(self._open_rows)
        self._open_rows = 0
        self._ended += 1
        self._recent_panes += 1

    def _hand_out(self) -> None:
        self._owed = 0
        self._handed = self._clock()
        panes, self._recent_panes = self._recent_panes, 1
        recent = tuple(None if watch is None else watch.recent(panes) for watch in self._watches)
        self._on_pane(dataclasses.replace(self._snapshot(), recent=recent))

    def _snapshot(self) -> WindowSnapshot:
        return WindowSnapshot(
            rows=sum(self._closed_rows) + self._open_rows,
            observed_rows=self._observed,
            newest_pane=self._ended + 1,
            tensors=tuple(None if watch is None else watch.window() for watch in self._watches),
        )


class _NumericWatch:
    """A numeric tensor: its histogram, which follows the columns that vary in the reference."""

    def __init__(self, reference: TensorReference, panes: int) -> None:
        features = [f for f in reference.features if isinstance(f, NumericFeature)]
        self.role, self.tensor, self.width = reference.role, reference.tensor, len(features)
        self._histogram = NumericHistogram(
            [f.edges for f in features], panes, follow=[f.minimum < f.maximum for f in features]
        )
        self._total = self._histogram.total()

    def accepts(self, tensor: Tensor) -> bool:
        return tensor.datatype != BYTES

    def chosen(self, tensor: Tensor, rows: slice) -> NDArray[Any]:
        array = tensor.array()
        if array.ndim != 2:
            array = array.reshape(-1, self.width)
        array = array[rows]
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def count(self, chosen: NDArray[Any], start: int, rows: int, room: int, pane_rows: int) -> None:
        if len(chosen) != rows:
            chosen = chosen[start : start + rows]
        self._histogram.update(chosen, room, pane_rows)

    def close_panes(self, panes: int) -> None:
        for _ in range(panes):
            self._histogram.advance()

    def window(self) -> TensorCounts:
        histogram = self._histogram
        return TensorCounts(histogram.window(), *histogram.extremes(histogram.panes))

    def recent(self, panes: int) -> TensorCounts:
        """Of the rows since it was last asked, which are in so many panes."""
        before, self._total = self._total, self._histogram.total()
        return TensorCounts(self._total - before, *self._histogram.extremes(panes))


class _CategoryWatch:
    """A BYTES tensor: a histogram of categories."""

    def __init__(self, reference: TensorReference, panes: int) -> None:
        features = [f for f in reference.features if isinstance(f, CategoricalFeature)]
        self.role, self.tensor, self.width = reference.role, reference.tensor, len(features)
        self._histogram = CategoryHistogram(
            [feature.kept for feature in features], [feature.rare for feature in features], panes
        )
        self._total = self._histogram.total()

    def accepts(self, tensor: Tensor) -> bool:
        return tensor.datatype == BYTES

    def chosen(self, tensor: Tensor, rows: slice) -> Tensor:
        return rows_of(tensor, rows)

    def count(self, chosen: Tensor, start: int, rows: int, room: int, pane_rows: int) -> None:
        raw = chosen.wire()
        if (after := chosen.shape[0] - start - rows) or start:
            _, raw, _ = bytes_tensor.split(raw, (start, rows, after), self.width)
        self._histogram.update(raw, rows, room, pane_rows)

    def close_panes(self, panes: int) -> None:
        for _ in range(panes):
            self._histogram.advance()

    def window(self) -> TensorCounts:
        return TensorCounts(self._histogram.window())

    def recent(self, panes: int) -> TensorCounts:
        before, self._total = self._total, self._histogram.total()
        return TensorCounts(self._total - before)


def pane_ms(config: DriftConfig) -> int:
    """How long a pane lasts at most; 0: as long as it takes to fill."""
    return max(1, round(config.window_s * 1000) // config.panes) if config.window_s else 0


def _watches(reference: ReferenceProfile, panes: int) -> list[_Watch | None]:
    watches: list[_Watch | None] = []
    for tensor in reference.tensors:
        if not tensor.features:
            watches.append(None)
        elif isinstance(tensor.features[0], NumericFeature):
            watches.append(_NumericWatch(tensor, panes))
        else:
            watches.append(_CategoryWatch(tensor, panes))
    return watches


def _reference_of(signature: Signature, batches: Sequence[ObservedBatch]) -> ReferenceProfile:
    tensors = []
    sides: list[tuple[Role, tuple[TensorSpec, ...]]]
    sides = [("input", signature.inputs), ("output", signature.outputs)]
    for role, specs in sides:
        for spec in specs:
            held = [batch.inputs if role == "input" else batch.outputs for batch in batches]
            rows = [batch.rows for batch in batches]
            if found := _tensor_reference(spec, role, held, rows):
                tensors.append(found)
    return ReferenceProfile(rows=sum(batch.rows for batch in batches), tensors=tuple(tensors))


def _tensor_reference(
    spec: TensorSpec, role: Role, held: Sequence[Mapping[str, Tensor]], rows: Sequence[int]
) -> TensorReference | None:
    """The reference of one tensor from the batches that have it; None: it is not columns."""
    found = [
        (tensors[spec.name], count)
        for tensors, count in zip(held, rows, strict=True)
        if spec.name in tensors
    ]
    widths = {width_of(tensor, count) for tensor, count in found}
    if len(widths) != 1:
        return None
    width = widths.pop()
    if not width or width > MAX_FEATURES:
        return None
    names = names_of(spec, width)
    features: tuple[NumericFeature, ...] | tuple[CategoricalFeature, ...]
    if found[0][0].datatype == BYTES:
        raw = b"".join([tensor.wire() for tensor, _ in found])
        features = tuple(
            categorical_feature(name, _values(offsets, data))
            for name, (offsets, data) in zip(names, bytes_tensor.columns(raw, width), strict=True)
        )
    else:
        joined = np.concatenate([tensor.array().reshape(-1, width) for tensor, _ in found])
        by_column = np.ascontiguousarray(joined.T, np.float32)
        features = tuple(
            numeric_feature(name, values) for name, values in zip(names, by_column, strict=True)
        )
    return TensorReference(spec.name, role, features)


def _values(offsets: NDArray[np.int32], data: bytes) -> list[bytes]:
    ends = offsets.tolist()
    return [data[start:end] for start, end in pairwise(ends)]
