import io

import numpy as np
import polars as pl

from trimtab.server.logs import arrow_frame


def test_every_kind_of_column_is_read_back_as_it_was() -> None:
    valid = np.array([True, False, True])
    columns = [
        arrow_frame.numbers("f", np.array([1.5, np.nan, -np.inf], np.float32)),
        arrow_frame.numbers("d", np.array([1, 2, 3], np.float64), valid),
        arrow_frame.numbers("h", np.array([1, 2, 3], np.float16)),
        arrow_frame.numbers("b", np.array([True, False, True])),
        *[
            arrow_frame.numbers(name, np.array([0, 1, np.iinfo(name).max], name))
            for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        ],
        arrow_frame.strings("s", [b"", "Zürich 日本".encode(), b"x" * 1000]),
        arrow_frame.strings("t", [b"a", b"", b""], valid),
        *[
            arrow_frame.nulls(f"null {kind}", kind, 3)
            for kind in set(arrow_frame.ARROW_TYPE.values())
        ],
    ]
    frame = pl.read_ipc_stream(io.BytesIO(arrow_frame.encode(columns, 3)))
    assert frame.columns == [column.name for column in columns]
    assert np.array_equal(frame["f"].to_numpy(), [1.5, np.nan, -np.inf], equal_nan=True)
    assert frame["d"].to_list() == [1, None, 3]
    assert frame["h"].to_list() == [1, 2, 3]
    assert frame["b"].to_list() == [True, False, True]
    for name in ("int8", "int64", "uint32", "uint64"):
        assert frame[name].to_list() == [0, 1, np.iinfo(name).max]
    assert frame["s"].to_list() == ["", "Zürich 日本", "x" * 1000]
    assert frame["t"].to_list() == ["a", None, ""]
    for kind in arrow_frame.ARROW_TYPE.values():
        assert frame[f"null {kind}"].null_count() == 3


def test_the_last_column_of_whole_numbers_is_read_back_without_arrow() -> None:
    random = np.random.default_rng(0)
    for rows in (1, 2, 3, 7, 8, 9, 63, 64, 65, 1000):
        valid = random.random(rows) < 0.5
        times = random.integers(-(2**62), 2**62, rows)
        payload = arrow_frame.encode(
            [
                arrow_frame.strings("s", [b"x" * (row % 5) for row in range(rows)], valid),
                arrow_frame.numbers("f", random.random(rows).astype(np.float32), valid),
                arrow_frame.numbers("t", times),
            ],
            rows,
        )
        assert arrow_frame.last_int64(payload, rows).tolist() == times.tolist()
        assert pl.read_ipc_stream(io.BytesIO(payload))["t"].to_list() == times.tolist()
