"""Figures against a computation row by row, however batches fall and labels come."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.loop_fakes import SIGNATURE, reference
from trimtab._native import bytes_tensor
from trimtab._native.divergence import psi
from trimtab._native.reference import NumericFeature
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.drift.yardstick import TensorYardstick
from trimtab.server.inference.observation import ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs.label_log import Label
from trimtab.server.rollout import paired_losses
from trimtab.server.rollout.comparison import Comparison
from trimtab.server.rollout.loss import AbsoluteError
from trimtab.server.rollout.paired_losses import PairedLosses

REFERENCE = reference(5_000)
(OUTPUT,) = (
    feature
    for tensor in REFERENCE.tensors
    for feature in tensor.features
    if tensor.role == "output" and isinstance(feature, NumericFeature)
)


def value(numbers: NDArray[Any] | Sequence[float]) -> dict[str, Tensor]:
    array = np.ascontiguousarray(numbers, np.float32).reshape(-1, 1)
    return {"variable": Tensor("FP32", array.shape, array)}


def calls(rows: Sequence[int], first: int = 0) -> ObservedCalls:
    return ObservedCalls.of(
        ObservedCall(f"call-{first + index}", count, None, 0) for index, count in enumerate(rows)
    )


def comparison(**options: Any) -> Comparison:
    taken = {"tolerance": 0.1, "capacity": 10_000, **options}
    return Comparison(SIGNATURE, SIGNATURE, taken.pop("reference", REFERENCE), **taken)


def shown(found: Comparison) -> dict[str, Any]:
    """Without compute times."""
    figures = found.figures()
    (output,) = figures.outputs
    labels = figures.labels
    return {
        "counts": (
            figures.rows,
            figures.answered,
            figures.requests,
            figures.failed_version,
            figures.failed_against,
            figures.failed_both,
        ),
        "output": (output.rows, output.agreement, output.mean_difference, output.psi),
        "labels": (labels.rows, labels.version, labels.against, labels.improvement, labels.error),
    }


def psi_of(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Over the reference's ten groups of bins, and one of missing values."""
    (tensor,) = (t for t in REFERENCE.tensors if t.role == "output")
    (feature,) = TensorYardstick(tensor).features
    counts = []
    for values in (one, other):
        groups = feature.group_of[np.searchsorted(OUTPUT.edges, values, side="right")]
        counts.append(np.bincount(groups, minlength=len(feature.labels)).astype(float))
    there = counts[0] + counts[1] > 0
    return psi(counts[0][there], counts[1][there])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=30),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_figures_are_those_of_a_computation_row_by_row(
    rows: list[int], seed: int, noise: float
) -> None:
    random = np.random.default_rng(seed)
    total = sum(rows)
    against = random.normal(0, 2, total).astype(np.float32)
    version = (against + random.normal(0, noise, total)).astype(np.float32)
    truth = against + random.normal(0, 1, total)
    bad = random.random(total) < 0.05
    version[bad] = random.choice([np.nan, np.inf], bad.sum())
    starts = np.cumsum([0, *rows])
    answered = random.random(len(rows)) < 0.5
    labelled = random.random(total) < 0.6
    labels = [
        Label(f"call-{call}", row - starts[call], number=float(truth[row]))
        for call in range(len(rows))
        for row in range(starts[call], starts[call + 1])
        if labelled[row]
    ]

    found = comparison()
    early = random.integers(0, len(labels) + 1)
    found.label(labels[:early])
    call = 0
    while call < len(rows):
        many = int(random.integers(1, 5))
        same = next(
            (
                n
                for n in range(1, many)
                if call + n < len(rows) and answered[call + n] != answered[call]
            ),
            many,
        )
        end = min(call + same, len(rows))
        part = slice(starts[call], starts[end])
        found.add(
            calls(rows[call:end], call),
            value(version[part]),
            value(against[part]),
            answered=bool(answered[call]),
        )
        call = end
    found.label(labels[early:])

    failed = np.array([bad[a:b].any() for a, b in itertools.pairwise(starts)])
    good = ~np.repeat(failed, rows)
    apart = np.abs(version[good].astype(float) - against[good]) / OUTPUT.std
    expected: dict[str, Any] = {
        "counts": (
            total,
            int(np.repeat(answered, rows).sum()),
            len(rows),
            int(failed.sum()),
            0,
            0,
        ),
        "output": (0, math.nan, math.nan, math.nan),
        "labels": (0, math.nan, math.nan, math.nan, math.nan),
    }
    if good.any():
        expected["output"] = (
            int(good.sum()),
            np.mean(apart <= 0.1),
            np.mean(apart),
            psi_of(version[good], against[good]),
        )
    known = good & labelled
    if known.any():
        losses = np.abs(version[known] - truth[known]), np.abs(against[known] - truth[known])
        better = losses[1] - losses[0]
        groups = np.repeat(np.arange(len(rows)), rows)[known]
        sums = [(better[groups == group] - better.mean()).sum() for group in np.unique(groups)]
        error = math.inf
        if len(sums) > 1:
            error = math.sqrt(np.square(sums).sum() * len(sums) / (len(sums) - 1)) / known.sum()
        expected["labels"] = (
            int(known.sum()),
            losses[0].mean(),
            losses[1].mean(),
            better.mean(),
            error,
        )
    for name, figures in shown(found).items():
        assert figures == pytest.approx(expected[name], rel=1e-5, abs=1e-6, nan_ok=True), name


def test_a_failed_run_is_every_request_of_it() -> None:
    found = comparison()
    found.add(calls([2, 3]), None, value([1.0] * 5), answered=False)
    found.add(calls([1], 2), value([1.0]), None, answered=True)
    found.add([4], None, None, answered=True)
    figures = found.figures()
    assert (figures.rows, figures.requests) == (10, 4)
    assert (figures.failed_version, figures.failed_against, figures.failed_both) == (3, 2, 1)
    assert figures.outputs[0].rows == 0 and math.isnan(figures.agreement)


def test_a_later_label_replaces_the_earlier_one() -> None:
    found = comparison()
    found.add(calls([2]), value([1.0, 1.0]), value([2.0, 2.0]), answered=True)
    found.label([Label("call-0", 0, number=2.0)])
    assert found.figures().labels.improvement == -1.0
    found.label([Label("call-0", 0, number=1.0), Label("call-0", 7, number=9.0)])
    labels = found.figures().labels
    assert (labels.rows, labels.improvement) == (1, 1.0)


def test_an_output_without_a_reference_is_held_against_the_older_versions_first_answers() -> None:
    random = np.random.default_rng(0)
    found = comparison(reference=None)
    for _ in range(10):
        against = random.normal(size=100)
        found.add(calls([100]), value(np.zeros(100)), value(against), answered=False)
    assert found.figures().worst.psi > 3
    output = found.figures().outputs[0]
    assert output.rows == 1000
    assert output.agreement == pytest.approx(0.08, abs=0.03)


def test_labels_and_texts_agree_where_they_are_equal() -> None:
    outputs = (
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("number", "INT64", (-1,)),
        TensorSpec("grid", "FP32", (-1, 2, 2)),
    )
    signature = Signature(inputs=(), outputs=outputs)
    found = Comparison(signature, signature, None, tolerance=0.1, capacity=100)

    def answer(texts: list[str], numbers: list[int]) -> dict[str, Tensor]:
        rows = len(texts)
        return {
            "text": Tensor("BYTES", (rows,), bytes_tensor.encode(np.array(texts, object))),
            "number": Tensor("INT64", (rows,), np.array(numbers, np.int64)),
            "grid": Tensor("FP32", (rows, 2, 2), np.zeros((rows, 2, 2), np.float32)),
        }

    for _ in range(60):
        found.add(
            calls([4]),
            answer(["a", "b", "a", "b"], [0, 1, 2, 3]),
            answer(["a", "b", "b", "b"], [0, 0, 0, 3]),
            answered=False,
        )
    agreements = {each.name: each.agreement for each in found.figures().outputs if each.rows}
    assert agreements == {"text": 0.75, "number": 0.5}
    assert found.figures().agreement == 0.5


def test_rows_are_forgotten_in_bounded_memory_and_what_they_showed_is_kept() -> None:
    losses = PairedLosses(AbsoluteError("variable"), AbsoluteError("variable"), 1024)
    brute = []
    for index in range(40):
        version, against = float(index), float(index + 1 + index % 2)
        rows = 100
        losses.add(calls([rows], index), value([version] * rows), value([against] * rows), rows)
        losses.label([Label(f"call-{index}", row, number=0.0) for row in range(50)])
        brute += [against - version] * 50
        losses.next_block()
    figures = losses.figures()
    assert figures.rows == len(brute) == 2000
    assert figures.improvement == pytest.approx(np.mean(brute))
    blocks = np.reshape(brute, (40, 50)).sum(axis=1) - 50 * np.mean(brute)
    error = math.sqrt((blocks @ blocks) * 40 / 39) / 2000
    assert figures.error == pytest.approx(error)
    # Two halves of 1,024 are kept at most; half of what went was never labelled.
    assert figures.forgotten == pytest.approx(1024, abs=100)
    losses.label([Label("call-0", 99, number=0.0)])
    assert losses.figures().rows == 2000, "its row was forgotten"


def test_of_labels_that_come_early_the_latest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_losses, "_MAX_EARLY", 3)
    losses = PairedLosses(AbsoluteError("variable"), AbsoluteError("variable"), 1024)
    losses.label([Label("call-0", row, number=0.0) for row in range(5)])
    losses.add(calls([5]), value([1.0] * 5), value([2.0] * 5), 5)
    assert losses.figures().rows == 3


@pytest.mark.parametrize("absurd", [1e6, 1e30])
def test_one_absurd_label_does_not_hide_that_a_version_is_worse(absurd: float) -> None:
    losses = PairedLosses(AbsoluteError("variable"), AbsoluteError("variable"), 3_000)
    random = np.random.default_rng(1)
    for call in range(20):
        against = np.abs(random.normal(5, 1, 100))
        losses.add(calls([100], call), value(2 * against), value(against), 100)
        truth = [0.0] * 100
        if call == 3:
            truth[7] = absurd
        losses.label([Label(f"call-{call}", row, number=y) for row, y in enumerate(truth)])
        losses.next_block()
    figures = losses.figures()
    assert figures.rows == 2_000
    assert -figures.improvement > 0.9 * figures.against
    assert figures.high < -0.5 * figures.against


def test_blocks_that_differ_widen_the_interval() -> None:
    """The newer version is better in one hour and worse in the next: rows alone do not tell."""
    losses = PairedLosses(AbsoluteError("variable"), AbsoluteError("variable"), 10_000)
    random = np.random.default_rng(1)
    for block in range(20):
        shift = 1.0 if block % 2 else -1.0
        against = np.abs(random.normal(5, 0.1, 100))
        losses.add(calls([1] * 100, 100 * block), value(against + shift), value(against), 100)
        losses.label([Label(f"call-{100 * block + row}", 0, number=0.0) for row in range(100)])
        losses.next_block()
    figures = losses.figures()
    assert figures.rows == 2000
    assert figures.error > 5 * 1.0 / math.sqrt(2000)
    assert figures.low < 0 < figures.high


def test_compute_times_are_compared_by_their_median() -> None:
    found = comparison()
    random = np.random.default_rng(2)
    for against in random.lognormal(0, 1, 200) * 1e6:
        found.add_times(int(against * 3), int(against))
    latency = found.figures().latency
    assert latency.runs == 200
    assert latency.ratio == pytest.approx(3, rel=1e-3) and 2.9 < latency.ratio_low <= 3.001
    assert 0 < latency.more_ms_low < latency.more_ms


def test_few_compute_times_bound_nothing() -> None:
    found = comparison()
    for _ in range(10):
        found.add_times(9, 1)
    assert found.figures().latency.ratio_low == -math.inf
