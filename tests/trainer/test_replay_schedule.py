"""The order of requests and labels in a replay."""

import numpy as np
import pytest

from trimtab.trainer.replay_schedule import LabelSchedule, plan


def test_the_same_seed_gives_the_same_requests() -> None:
    one = plan(100, 5_000, chunk_rows=700, rows_per_request=64, seed=5)
    two = plan(100, 5_000, chunk_rows=700, rows_per_request=64, seed=5)
    other = plan(100, 5_000, chunk_rows=700, rows_per_request=64, seed=6)
    assert one == two
    assert one != other


@pytest.mark.parametrize("rows_per_request", [1, 2, 64, 4_000])
def test_every_row_is_in_one_request_and_chunks_are_panes(rows_per_request: int) -> None:
    chunks = plan(100, 5_030, chunk_rows=700, rows_per_request=rows_per_request, seed=0)
    rows = [
        row
        for chunk in chunks
        for request in chunk.requests
        for row in range(request.start, request.stop)
    ]
    assert rows == list(range(100, 5_030))
    assert [chunk.stop - chunk.start for chunk in chunks] == [700] * 7 + [30]
    sizes = [request.stop - request.start for chunk in chunks for request in chunk.requests]
    assert min(sizes) >= 1
    assert max(sizes) < 2 * rows_per_request


@pytest.mark.parametrize("chunk_rows", [1, 7, 100])
def test_no_chunk_reaches_into_another_slot_and_each_slot_counts_its_rows_anew(
    chunk_rows: int,
) -> None:
    slots = np.sort(np.random.default_rng(1).integers(-5, 30, size=400))
    chunks = plan(40, 400, chunk_rows=chunk_rows, rows_per_request=3, seed=0, slots=slots)
    assert [chunk.start for chunk in chunks] == [40, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == 400 and not chunks[-1].ends_slot, "nothing comes after it"
    for chunk in chunks:
        assert len(set(slots[chunk.start : chunk.stop])) == 1
        rows = [row for part in chunk.requests for row in range(part.start, part.stop)]
        assert rows == list(range(chunk.start, chunk.stop))
    for slot in set(slots[40:].tolist()):
        whole, rest = divmod(int((slots[40:] == slot).sum()), chunk_rows)
        sizes = [chunk.stop - chunk.start for chunk in chunks if slots[chunk.start] == slot]
        assert sizes == [chunk_rows] * whole + [rest] * (rest > 0)
    for chunk in chunks[:-1]:
        assert chunk.ends_slot == (slots[chunk.stop - 1] != slots[chunk.stop])


def test_one_slot_is_as_good_as_none() -> None:
    slots = np.full(5_000, 7)
    one = plan(100, 5_000, chunk_rows=700, rows_per_request=64, seed=5, slots=slots)
    assert one == plan(100, 5_000, chunk_rows=700, rows_per_request=64, seed=5)


def test_ids_are_unique() -> None:
    chunks = plan(0, 3_000, chunk_rows=500, rows_per_request=10, seed=0)
    ids = [request.id for chunk in chunks for request in chunk.requests]
    assert len(set(ids)) == len(ids)


def test_labels_come_when_their_delay_is_over_in_order_and_once() -> None:
    schedule = LabelSchedule(np.array([0, 10, 20, 30, 40, 50]), start=1, delay_ms=15)
    assert schedule.due(clock_ms=20, sent=3) == (1, 1)
    assert schedule.due(clock_ms=25, sent=3) == (1, 2)
    assert schedule.due(clock_ms=50, sent=6) == (2, 4)
    assert schedule.due(clock_ms=50, sent=6) == (4, 4)
    assert schedule.due(clock_ms=1_000, sent=6) == (4, 6)


def test_a_row_that_was_not_sent_yet_has_no_label() -> None:
    schedule = LabelSchedule(np.zeros(6, dtype=np.int64), start=0, delay_ms=0)
    assert schedule.due(clock_ms=0, sent=2) == (0, 2)
    assert schedule.due(clock_ms=0, sent=6) == (2, 6)
