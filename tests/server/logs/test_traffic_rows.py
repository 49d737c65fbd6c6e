import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loop_fakes import SIGNATURE, batch
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.inference.observation import ObservedBatch, ObservedCall, ObservedCalls
from trimtab.server.inference.tensor import Tensor
from trimtab.server.logs import arrow_frame, traffic_rows
from trimtab.server.logs.traffic_rows import Rows, TrafficLayout

CALLS = st.lists(
    st.tuples(st.text(max_size=4), st.integers(0, 3), st.none() | st.integers(0, 9)),
    min_size=1,
    max_size=4,
).filter(lambda calls: any(rows for _, rows, _ in calls))


def gathered(layout: TrafficLayout, batches: list[ObservedBatch]) -> Rows:
    rows = Rows(layout.shape_of(batches[0]), began=0)
    for each in batches:
        assert layout.shape_of(each) is rows.shape
        rows.gather(each, rows.shape.size_of(each))
    return rows


def read(rows: Rows) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(arrow_frame.encode(rows.columns(), rows.rows)))


@given(st.lists(CALLS, min_size=1, max_size=4), st.integers(0, 1000))
def test_batches_become_the_rows_of_their_calls_one_after_another(
    batches: list[list[tuple[str, int, int | None]]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    made = []
    expected = []
    for calls in batches:
        count = sum(rows for _, rows, _ in calls)
        numeric = random.normal(size=(count, 2)).astype(np.float32)
        carriers = [chr(97 + letter) * letter for letter in random.integers(0, 4, count)]
        plain = batch(numeric, carriers, version=3)
        observed = [ObservedCall(id, rows, event, 100 + rows) for id, rows, event in calls]
        made.append(
            ObservedBatch("m", 3, ObservedCalls.of(observed), count, plain.inputs, plain.outputs)
        )
        named = [
            (call.id, row, call.received_ms if call.event_time_ms is None else call.event_time_ms,
             call.received_ms, 3)
            for call in observed
            for row in range(call.rows)
        ]  # fmt: skip
        values = zip(numeric.tolist(), carriers, (numeric[:, 0] * 2).tolist(), strict=True)
        expected += [
            (*name, *numbers, carrier, out)
            for name, (numbers, carrier, out) in zip(named, values, strict=True)
        ]
    rows = gathered(TrafficLayout(SIGNATURE), made)
    assert rows.rows == len(expected)
    assert read(rows).rows() == expected


def test_what_is_gathered_is_a_copy_and_its_size_is_known() -> None:
    numeric = np.ones((3, 2), np.float32)
    made = batch(numeric, ["a", "bc", ""], prefix="id")
    rows = gathered(TrafficLayout(SIGNATURE), [made])
    numeric[:] = 7
    assert read(rows)["in.temp"].to_list() == [1, 1, 1]
    texts = 3 * 4 + 3
    assert rows.size == 3 * 3 * 4 + texts + len("id-0") + 4 + 3 * 8


def shaped(version: int = 1, **inputs: Tensor) -> ObservedBatch:
    calls = ObservedCalls.of([ObservedCall("a", 2, None, 5)])
    return ObservedBatch("m", version, calls, 2, inputs, {})


def test_batches_share_a_shape_where_version_types_and_widths_are_equal() -> None:
    layout = TrafficLayout(Signature(inputs=(TensorSpec("x", "FP32", (-1, -1), ()),), outputs=()))
    two = Tensor("FP32", (2, 2), np.zeros((2, 2), np.float32))
    three = Tensor("FP32", (2, 3), np.zeros((2, 3), np.float32))
    whole = Tensor("INT64", (2, 2), np.zeros((2, 2), np.int64))
    flat = Tensor("FP32", (4,), np.zeros(4, np.float32))
    batches = [
        shaped(x=two),
        shaped(x=three),
        shaped(x=whole),
        shaped(x=flat),
        shaped(2, x=two),
        shaped(),
    ]
    shapes = [layout.shape_of(each) for each in batches]
    assert len(set(shapes)) == len(batches)
    assert [layout.shape_of(each) for each in batches] == shapes
    widths = [[part.width for part in shape.parts] for shape in shapes]
    assert widths == [[2], [3], [2], [], [2], []]


def test_shapes_that_are_kept_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_rows, "_KEPT_SHAPES", 2)
    layout = TrafficLayout(Signature(inputs=(TensorSpec("x", "FP32", (-1, -1), ()),), outputs=()))
    batches = [
        shaped(x=Tensor("FP32", (2, width), np.zeros((2, width), np.float32)))
        for width in (1, 2, 3)
    ]
    first, second, _ = (layout.shape_of(each) for each in batches)
    assert layout.shape_of(batches[0]) is not first, "forgotten"
    assert layout.shape_of(batches[1]) is not second


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Tensor("FP32", (2, 2), np.zeros((3, 2), np.float32)), "cannot reshape"),
        (Tensor("BYTES", (2, 2), b"\1\0\0\0a" * 2), "1 rows of in.x.0., of others 2"),
        (Tensor("BYTES", (2, 2), b"torn"), "torn"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(wrong: Tensor, message: str) -> None:
    layout = TrafficLayout(Signature(inputs=(TensorSpec("x", "FP32", (-1, 2), ()),), outputs=()))
    rows = gathered(layout, [shaped(x=wrong)])
    with pytest.raises(ValueError, match=message):
        rows.columns()
