"""Counts of live rows as a value: added exactly, saved, and never mixed with those of other bins."""

import dataclasses
import functools
import itertools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.loop_fakes import SIGNATURE, batch, draw, reference
from trimtab._native.live_counts import LiveCounts, LiveCountsFormatError
from trimtab._native.reference import ReferenceProfile, TensorReference, numeric_feature
from trimtab.server.config import DriftConfig
from trimtab.server.drift.drift_monitor import DriftMonitor

REFERENCE = reference(2_000)
EMPTY = DriftMonitor(SIGNATURE, REFERENCE, DriftConfig(), lambda snapshot: None).snapshot()


def counted(numeric: NDArray[Any], carriers: list[str]) -> LiveCounts:
    """What one host's monitor has in its window."""
    monitor = DriftMonitor(SIGNATURE, REFERENCE, DriftConfig(), lambda snapshot: None)
    if len(numeric):
        monitor.observe(batch(numeric, carriers))
    snapshot = monitor.snapshot()
    return LiveCounts.of(REFERENCE, snapshot.rows, snapshot.tensors)


def plain(counts: LiveCounts) -> Any:
    return counts.rows, [
        [str(x) for x in (t.tensor, t.features, t.layouts)]
        + [[str(value) for value in x.ravel()] for x in (t.counts, t.lowest, t.highest)]
        for t in counts.tensors
    ]


@given(cuts=st.lists(st.integers(0, 300), min_size=1, max_size=4), constant=st.booleans())
@settings(max_examples=25, deadline=None)
def test_windows_of_several_hosts_add_to_that_of_all_their_rows(
    cuts: list[int], constant: bool
) -> None:
    random = np.random.default_rng(0)
    numeric, carriers = draw(random, 300)
    numeric[random.random((300, 2)) < 0.1] = np.nan
    if constant:
        numeric[:, 0] = 4
    ends = [0, *sorted(cuts), 300]
    hosts = [counted(numeric[a:b], carriers[a:b]) for a, b in itertools.pairwise(ends)]
    whole = counted(numeric, carriers)
    for order in (hosts, hosts[::-1]):
        total = functools.reduce(operator.add, order)
        assert total.rows == 300
        for mine, theirs in zip(total.tensors, whole.tensors, strict=True):
            assert mine.counts.tolist() == theirs.counts.tolist()
            # Extremes matter only as far as they are equal.
            assert (mine.lowest == mine.highest).tolist() == (
                theirs.lowest == theirs.highest
            ).tolist()
    assert plain(hosts[0] + hosts[-1]) == plain(hosts[-1] + hosts[0])
    nested = hosts[0] + functools.reduce(operator.add, hosts[1:])
    assert plain(nested) == plain(functools.reduce(operator.add, hosts))


def test_saved_counts_are_loaded_as_they_were(tmp_path: Path) -> None:
    one = counted(*draw(np.random.default_rng(1), 50))
    one.save(tmp_path / "a.npz")
    loaded = LiveCounts.load(tmp_path / "a.npz")
    assert plain(loaded) == plain(one)
    loaded.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert plain(loaded + one) == plain(one + one)


def test_counts_are_in_the_order_of_their_reference() -> None:
    bare = TensorReference("nothing", "output", ())
    wider = dataclasses.replace(REFERENCE, tensors=(bare, *REFERENCE.tensors))
    one = counted(*draw(np.random.default_rng(1), 50))
    none, *found = one.over(wider)
    assert none is None
    assert [tensor.tensor for tensor in found if tensor] == ["numeric", "categorical", "variable"]
    unwatched = LiveCounts.of(wider, 0, (None, *EMPTY.tensors[:2], None))
    assert plain(unwatched) == plain(LiveCounts.of(REFERENCE, 0, EMPTY.tensors))


def other_edges() -> ReferenceProfile:
    first, *rest = REFERENCE.tensors
    values = np.random.default_rng(9).normal(size=2_000)
    features = (first.features[0], numeric_feature("wind", values))
    return dataclasses.replace(
        REFERENCE, tensors=(dataclasses.replace(first, features=features), *rest)
    )


def renamed() -> ReferenceProfile:
    first, *rest = REFERENCE.tensors
    features = (dataclasses.replace(first.features[0], name="t"), *first.features[1:])
    return dataclasses.replace(
        REFERENCE, tensors=(dataclasses.replace(first, features=features), *rest)
    )


def narrower() -> ReferenceProfile:
    first, *rest = REFERENCE.tensors
    return dataclasses.replace(
        REFERENCE, tensors=(dataclasses.replace(first, features=first.features[:1]), *rest)
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_edges(), "'wind' was counted over other bins or categories"),
        (renamed(), "feature 0 of tensor 'numeric' is 't' in one and 'temp' in the other"),
        (narrower(), "tensor 'numeric' has 1 features in one and 2 in the other"),
        (
            dataclasses.replace(REFERENCE, tensors=REFERENCE.tensors[:2]),
            "counts of the tensors numeric, categorical.* do not go together",
        ),
    ],
)
def test_counts_over_another_reference_are_refused_by_name(
    other: ReferenceProfile, message: str
) -> None:
    one = counted(*draw(np.random.default_rng(1), 50))
    theirs = LiveCounts.of(other, 0, [None] * len(other.tensors))
    with pytest.raises(ValueError, match=message):
        theirs + one
    with pytest.raises(ValueError, match=message):
        theirs.over(REFERENCE)
    with pytest.raises(TypeError):
        one + 1


def test_counts_with_other_slots_are_refused() -> None:
    tensors = [EMPTY.tensors[1], *EMPTY.tensors[1:]]
    with pytest.raises(ValueError, match="counts of tensor 'numeric' have shape"):
        LiveCounts.of(REFERENCE, 0, tensors)
    with pytest.raises(ValueError, match="rows must be from 0 to"):
        LiveCounts(-1, ())


def test_a_counter_that_is_full_is_an_error_and_does_not_wrap() -> None:
    one = counted(*draw(np.random.default_rng(1), 50))
    counts = np.full_like(one.tensors[0].counts, 2**64 - 40)
    full = dataclasses.replace(one.tensors[0], counts=counts)
    nulls = counted(np.full((50, 2), np.nan), ["AA"] * 50)
    with pytest.raises(
        OverflowError, match=r"slots of 'temp', count 64: 18446744073709551576 \+ 50"
    ):
        dataclasses.replace(one, tensors=(full, *one.tensors[1:])) + nulls
    with pytest.raises(OverflowError, match="rows: 50"):
        one + dataclasses.replace(one, rows=2**64 - 1)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    counted(*draw(np.random.default_rng(1), 50)).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.update(format=2), "its format is 2, this version reads 1"),
        (lambda header, arrays: header.update(kind="x"), "it holds x, not live counts"),
        (lambda header, arrays: header.pop("kind"), "its header lacks 'kind'"),
        (lambda header, arrays: header.update(rows=-1), "rows must be from 0"),
        (lambda header, arrays: arrays.pop("0.counts"), "array '0.counts' is missing"),
        (
            lambda header, arrays: arrays.update({"0.counts": np.zeros((1, 66), np.uint64)}),
            r"array '0.counts' has shape \(1, 66\), expected \(2, any\)",
        ),
        (lambda header, arrays: header["tensors"][0].update(layouts=[]), "2 features and 0 lay"),
        (lambda header, arrays: header["tensors"][0].update(layouts=[1, 2]), "is not a string"),
        (lambda header, arrays: arrays.update({"1.lowest": np.array([{}])}), "allow_pickle"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_fault(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "counts.npz"
    rewritten(path, change)
    with pytest.raises(LiveCountsFormatError, match=message) as refused:
        LiveCounts.load(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_reference_is_not_taken_for_live_counts(tmp_path: Path) -> None:
    REFERENCE.save(tmp_path / "reference.npz")
    with pytest.raises(LiveCountsFormatError, match="its header lacks 'kind'"):
        LiveCounts.load(tmp_path / "reference.npz")
