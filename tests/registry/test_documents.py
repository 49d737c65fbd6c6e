import json
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.registry.documents import Document, encode, encode_readable

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES)
def test_the_canonical_form_survives_reading_and_writing(value: Any) -> None:
    assert encode(json.loads(encode(value))) == encode(value)
    assert encode(json.loads(encode_readable(value))) == encode(value)


def test_equal_values_have_equal_bytes() -> None:
    assert encode({"b": 1, "a": (1, 2)}) == encode({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'


def test_nan_and_infinity_become_null() -> None:
    assert encode([math.nan, math.inf, -math.inf, np.float32("nan")]) == b"[null,null,null,null]"


def test_numpy_scalars_and_any_mapping_are_plain_values() -> None:
    value = MappingProxyType({"n": np.int64(3), "x": np.float32(0.5), "ok": np.bool_(True)})
    assert encode(value) == b'{"n":3,"ok":true,"x":0.5}'


def test_half_a_surrogate_pair_is_escaped() -> None:
    assert encode("a\udc80") == b'"a\\udc80"'


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), np.zeros(2)])
def test_what_json_cannot_express_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        encode({"value": value})


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda d: d.text("gone"), "gone is missing"),
        (lambda d: d.text("n"), "n is not a string"),
        (lambda d: d.integer("s"), "s is not an integer"),
        (lambda d: d.integer("flag"), "flag is not an integer"),
        (lambda d: d.number("flag"), "flag is not a number"),
        (lambda d: d.boolean("n"), "n is not true or false"),
        (lambda d: d.texts("integers"), "integers is not a list of strings"),
        (lambda d: d.integers("objects"), "objects is not a list of integers"),
        (lambda d: d.integers("s"), "s is not a list"),
        (lambda d: d.nested("n"), "n is not an object"),
        (lambda d: d.sequence("integers"), r"integers\[0\] is not an object"),
        (lambda d: d.sequence("objects")[1].text("deep"), r"objects\[1\]\.deep is missing"),
        (lambda d: d.nested("inner").text("x"), r"inner\.x is not a string"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(read: Callable[[Document], Any], problem: str) -> None:
    document = Document(
        {"n": 1, "s": "x", "flag": True, "integers": [1], "objects": [{}, {}], "inner": {"x": 1}}
    )
    with pytest.raises(ValueError, match=f"^{problem}$"):
        read(document)


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000, "[]", "1"])
def test_what_is_no_json_object_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|not an object|too deeply"):
        Document.parse(text)
