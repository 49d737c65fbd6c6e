"""A version's lineage as `describe` prints it."""

from typing import Any

import pytest

from trimtab.server.commands.lineage_lines import lineage_lines

MONTH_MS = 1_388_534_400_000  # 2014-01-01


def told(**lineage: Any) -> dict[str, str]:
    return dict(lineage_lines(lineage))


def test_what_a_training_writes_becomes_lines_without_braces() -> None:
    lines = told(
        data={
            "rows": 26_398,
            "time_from_ms": MONTH_MS,
            "sha256": "ab" * 32,
            "sources": [
                {"path": "2014-01.parquet", "rows": 900},
                {"path": "2014-02.parquet", "rows": 80},
            ],
            "dropped": {"no label": 12},
        },
        holdout={"rows": 5000, "refitted": True},
        latency_us={
            "candidate": {"alone_us": 41.234, "batched_us": 1.5},
            "champion": {"alone_us": 40.0, "batched_us": 1.4},
        },
        recipe={"task": "binary", "numeric": ["age", "fare"], "estimator": {"kind": "logistic"}},
        seed=0,
        champion=0,
    )
    assert lines == {
        "champion": "0",
        "data": "rows 26,398, time from 2014-01-01 00:00:00 UTC, sha256 abababababababab",
        "data sources": "path 2014-01.parquet, rows 900; path 2014-02.parquet, rows 80",
        "data dropped": "no label 12",
        "holdout": "rows 5000, refitted",
        "latency": (
            "candidate (alone 41.23 µs, batched 1.5 µs), champion (alone 40 µs, batched 1.4 µs)"
        ),
        "recipe": "task binary",
        "recipe numeric": "age, fare",
        "recipe estimator": "kind logistic",
        "seed": "0",
    }


def test_what_is_empty_or_not_known_has_no_line() -> None:
    assert told(trigger={}, note="", of=None, rows=[], score=float("nan"), data={"at": None}) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        (9_999, "9999"),
        (10_000, "10,000"),
        (0.123456, "0.1235"),
        ("x" * 61, "x" * 60 + " …"),
        (list("abcdefghij"), "a, b, c, d, e, f, g, h and 2 more"),
        ([{"x": 1}, {"a": False}], "x 1; not a"),
        ({"a": {"b": {"c": 1}}}, "b (c 1)"),
    ],
)
def test_whatever_others_write_has_a_line(value: Any, text: str) -> None:
    assert list(told(thing=value).values()) == [text]


def test_times_are_moments_and_a_time_that_is_none_is_left_as_it_is() -> None:
    assert told(made_ms=MONTH_MS, forever_ms=10**20) == {
        "made": "2014-01-01 00:00:00 UTC",
        "forever": f"{10**20} ms UTC",
    }
