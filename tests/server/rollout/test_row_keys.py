import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.server.inference.observation import ObservedCall, ObservedCalls
from trimtab.server.rollout import row_keys


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.integers(1, 5)),
        min_size=1,
        max_size=20,
        unique_by=lambda call: call[0],
    )
)
def test_a_label_finds_the_row_that_it_names_and_no_other(calls: list[tuple[str, int]]) -> None:
    observed = ObservedCalls.of(ObservedCall(id, rows, None, 0) for id, rows in calls)
    keys = row_keys.of_calls(observed.ids, observed.id_ends, observed.rows)
    named = [(id, row) for id, rows in calls for row in range(rows)]
    found = row_keys.of_rows([id for id, _ in named], [row for _, row in named])
    assert np.array_equal(keys, found)
    assert len(set(keys.tolist())) == len(named)


def test_ids_that_differ_in_order_length_or_zero_bytes_have_other_keys() -> None:
    ids = ["ab", "ba", "a", "aa", "aaa", "a\0", "\0a", "\0", "\0\0", "", "x" * 1024, "x" * 1023]
    assert len({*row_keys.of_text(ids).tolist()}) == len(ids)


def test_no_rows_have_no_keys() -> None:
    assert len(row_keys.of_rows([], [])) == 0
