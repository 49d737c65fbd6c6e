"""What was answered is found by (id, row), against a list and a dict."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab._native.prediction_table import FOUND, LEFT_OUT, UNKNOWN, PredictionTable, row_keys


@dataclass(frozen=True)
class Answer:
    """One row as the naive table keeps it."""

    version: int
    time_ms: int
    values: tuple[float, ...]


class NaiveTable:
    """All rows ever put; of one name the newest counts, if it is among the last `capacity`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Answer] = []
        self.newest: dict[tuple[str, int], int] = {}

    def put(self, name: str, row: int, answer: Answer) -> None:
        self.newest[name, row] = len(self.rows)
        self.rows.append(answer)

    def get(self, name: str, row: int) -> int:
        sequence = self.newest.get((name, row), -1)
        return sequence if sequence >= len(self.rows) - self.capacity else -1


def columns(names: Sequence[str]) -> tuple[bytes, NDArray[np.int32]]:
    encoded = [name.encode() for name in names]
    return b"".join(encoded), np.cumsum([len(each) for each in encoded], dtype=np.int32)


def put(
    table: PredictionTable,
    calls: Sequence[tuple[str, int]],
    values: NDArray[Any],
    version: int = 1,
    event_time_ms: int = -1,
    received_ms: int = 5,
) -> int:
    ids, ends = columns([name for name, _ in calls])
    rows = np.array([count for _, count in calls], np.int64)
    same = np.ones(len(calls), np.int64)
    return table.put(ids, ends, rows, same * event_time_ms, same * received_ms, version, values)


def get(table: PredictionTable, names: Sequence[tuple[str, int]]) -> tuple[NDArray[Any], ...]:
    ids, ends = columns([name for name, _ in names])
    return table.get(ids, ends, np.array([row for _, row in names], np.int64))


NAMES = st.sampled_from([f"call-{index}" for index in range(12)] + ["", "ü" * 40])
CALLS = st.lists(st.tuples(NAMES, st.integers(0, 5)), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([np.float32, np.float64, np.uint64, np.float16]),
    st.lists(st.tuples(CALLS, st.booleans()), max_size=25),
)
def test_a_table_finds_what_a_dict_of_the_newest_rows_finds(
    capacity: int, width: int, dtype: Any, batches: list[tuple[list[tuple[str, int]], bool]]
) -> None:
    table, naive = PredictionTable(capacity, width, dtype), NaiveTable(capacity)
    asked = [(f"call-{index}", row) for index in range(12) for row in range(6)]
    asked += [("", 0), ("ü" * 40, 4), ("nobody", 0), ("call-1", -1)]
    for number, (calls, look) in enumerate(batches):
        total = sum(count for _, count in calls)
        values = np.arange(total * width).reshape(total, width).astype(dtype) + number
        at = 0
        for name, count in calls:
            for row in range(count):
                told = tuple(values[at].tolist())
                naive.put(name, row, Answer(number, 100 + number % 2, told))
                at += 1
        event_time_ms = 101 if number % 2 else -1
        assert put(table, calls, values, number, event_time_ms, 100) == total
        if not look and number + 1 < len(batches):
            continue  # several batches are entered by one look
        found, sequence, version, time_ms, answers = get(table, asked)
        expected = [naive.get(*each) for each in asked]
        assert sequence.tolist() == expected
        assert found.tolist() == [FOUND if each >= 0 else UNKNOWN for each in expected]
        for index, place in enumerate(expected):
            if place >= 0:
                answer = naive.rows[place]
                assert (version[index], time_ms[index]) == (answer.version, answer.time_ms)
                assert tuple(answers[index].tolist()) == answer.values
        assert table.rows == len(naive.rows)
        assert len(table) == min(len(naive.rows), capacity)
        assert table.forgotten == max(0, len(naive.rows) - capacity)


def test_a_table_that_has_gone_round_many_times_still_finds_exactly_the_newest() -> None:
    """Long chains in the index, moved up again and again, and more rows between looks than fit."""
    random = np.random.default_rng(0)
    table, naive = PredictionTable(500, 1, np.float64), NaiveTable(500)
    for number in range(120):
        calls = [(str(name), 3) for name in random.integers(0, 400, random.integers(1, 80))]
        if number % 20 == 19:
            calls *= 9
        values = random.random((3 * len(calls), 1))
        for at, (name, row) in enumerate((n, row) for n, count in calls for row in range(count)):
            naive.put(name, row, Answer(number, 5, (values[at, 0],)))
        put(table, calls, values, number)
        if number % 5 == 4:
            asked = [(str(name), row) for name in range(410) for row in range(4)]
            _, sequence, _, _, answers = get(table, asked)
            assert sequence.tolist() == [naive.get(*each) for each in asked]
            for index in np.flatnonzero(sequence >= 0):
                assert answers[index, 0] == naive.rows[sequence[index]].values[0]


def test_the_newest_answers_come_back_newest_first() -> None:
    table = PredictionTable(4, 2)
    put(table, [("a", 3)], np.arange(6, dtype=np.float32).reshape(3, 2), version=1)
    put(table, [("b", 3)], np.arange(6, 12, dtype=np.float32).reshape(3, 2), version=2)
    versions, values = table.latest(10)
    assert versions.tolist() == [2, 2, 2, 1]
    assert values.tolist() == [[10, 11], [8, 9], [6, 7], [4, 5]]
    assert table.latest(2)[1].tolist() == [[10, 11], [8, 9]]
    assert PredictionTable(3, 1).latest(2)[1].shape == (0, 1)


def test_a_share_of_the_rows_is_kept_and_a_label_knows_whether_its_row_was() -> None:
    table = PredictionTable(100_000, 1, keep=0.25)
    names = [f"{index:08d}" for index in range(20_000)]
    kept = put(table, [(name, 1) for name in names], np.zeros((len(names), 1), np.float32))
    assert kept == table.rows == pytest.approx(5_000, abs=200)
    found = get(table, [(name, 0) for name in names])[0]
    assert (found == FOUND).sum() == kept
    assert (found == LEFT_OUT).sum() == len(names) - kept
    others = get(table, [(f"x{name}", 0) for name in names])[0]
    assert set(others.tolist()) == {UNKNOWN, LEFT_OUT}
    assert (others == UNKNOWN).mean() == pytest.approx(0.25, abs=0.02)


def test_keys_are_the_same_in_every_build() -> None:
    """Hosts that split one model's traffic by them must agree."""
    ids, ends = columns(["", "a", "abcd", "abcdefgh", "abcdefghijklmnop", "abcdefghijklmnopq" * 3])
    keys = row_keys(ids, ends, np.array([0, 0, 1, 2, 3, 4], np.int64))
    assert [f"{key:016x}" for key in keys.tolist()] == KEYS


KEYS = [
    "0c637aea5d255972",
    "f5a54be3c22f1e6e",
    "0f8914b38b7e6684",
    "130396aa025268e5",
    "b1234a5794419bac",
    "619350427dabaa71",
]


def test_keys_of_names_that_people_make_are_all_different_and_even() -> None:
    names = [f"{index:024d}" for index in range(100_000)]
    names += [f"order/2024-01-{day:02d}/{index}" for day in range(10) for index in range(10_000)]
    ids, ends = columns(names)
    keys = row_keys(ids, ends, np.arange(len(names), dtype=np.int64) % 7)
    assert len(set(keys.tolist())) == len(names)
    for shift in (0, 24, 32, 54):
        counts = np.bincount((keys >> np.uint64(shift)).astype(np.int64) & 1023, minlength=1024)
        expected = len(names) / 1024
        assert ((counts - expected) ** 2 / expected).sum() < 1250  # χ² of 1023: one in 10⁶


def test_rows_that_are_put_while_others_are_looked_up_are_whole() -> None:
    """Of each row version, time and both values tell the same number."""
    table = PredictionTable(3_000, 2, np.float64)
    done = threading.Event()
    faults: list[str] = []

    def look() -> None:
        while not done.is_set():
            asked = [(str(name), row) for name in range(0, 400, 7) for row in range(3)]
            found, _, version, time_ms, values = get(table, asked)
            there = found == FOUND
            told = np.stack([version[there], time_ms[there], *values[there].T])
            if (told != told[0]).any():
                faults.append(str(told))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1_500):
        calls = [(str((number * 5 + each) % 400), 3) for each in range(5)]
        put(table, calls, np.full((15, 2), float(number)), number, event_time_ms=number)
    done.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert table.rows == 22_500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((2, 1), np.float64)}, "values are float64, expected float32"),
        ({"values": np.zeros((3, 1), np.float32)}, "values have 12 bytes, 2 rows of 1 need 8"),
        ({"rows": np.array([-2], np.int64)}, "call 0 has -2 rows"),
        ({"id_ends": np.array([9], np.int32)}, "ids have 2 bytes, the last one ends at 9"),
        ({"id_ends": np.array([-1], np.int32)}, "its id goes from 0 to -1"),
        ({"event_time_ms": np.zeros(2, np.int64)}, "are not an int32 and three int64"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(change: dict[str, Any], message: str) -> None:
    table = PredictionTable(10, 1)
    given: dict[str, Any] = {
        "ids": b"ab",
        "id_ends": np.array([2], np.int32),
        "rows": np.array([2], np.int64),
        "event_time_ms": np.array([-1], np.int64),
        "received_ms": np.array([5], np.int64),
        "version": 1,
        "values": np.zeros((2, 1), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        table.put(**(given | change))
    assert table.rows == 0


def test_a_table_is_of_at_least_one_row_and_value() -> None:
    for arguments in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be"):
            PredictionTable(*arguments)
    with pytest.raises(ValueError, match="keep must be above 0"):
        PredictionTable(1, 1, keep=0)


def test_memory_is_what_a_row_is_said_to_take() -> None:
    assert PredictionTable(1_000_000, 1).nbytes == 1_000_000 * (24 + 8 + 4) + 8 * 2**21
