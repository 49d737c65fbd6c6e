"""Building profiles by the live histograms' rules, and reading nothing but whole files."""

import dataclasses
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab._native.histogram import CategoryHistogram, NumericHistogram
from trimtab._native.reference import (
    CategoricalFeature,
    Feature,
    NumericFeature,
    ReferenceFormatError,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)

VALUES = st.lists(
    st.one_of(
        st.floats(width=64),
        st.sampled_from([0.0, -0.0, 0.1, math.nan, math.inf, -math.inf, 1e300]),
        st.integers(0, 3).map(float),
    ),
    max_size=100,
)


@given(VALUES, st.integers(2, 256))
@settings(max_examples=100, deadline=None)
def test_a_reference_counts_its_rows_as_the_live_histogram_does(
    values: list[float], bins: int
) -> None:
    feature = numeric_feature("x", values, bins)
    histogram = NumericHistogram([feature.edges], 1)
    histogram.update(np.array(values, np.float64).reshape(-1, 1))
    counts = histogram.total()[0]
    assert counts[:-1].tolist() == feature.counts.tolist()
    assert counts[-1] == feature.missing
    assert len(feature.counts) <= bins


def test_moments_are_those_of_the_finite_values() -> None:
    feature = numeric_feature("x", np.array([1.0, 2.0, 6.0, np.inf, np.nan]))
    assert (feature.minimum, feature.maximum, feature.mean) == (1, 6, 3)
    assert feature.std == pytest.approx(np.std([1, 2, 6]))
    assert feature.missing == 1
    assert feature.counts.sum() == 4


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_a_column_without_values_has_one_empty_bin(values: list[float]) -> None:
    feature = numeric_feature("x", values)
    assert feature.edges.tolist() == []
    assert feature.counts.tolist() == [0]
    assert feature.missing == len(values)
    assert math.isnan(feature.mean)


def test_infinities_alone_are_counted_without_edges() -> None:
    feature = numeric_feature("x", [math.inf, -math.inf])
    assert feature.counts.tolist() == [2]


def test_any_numeric_type_makes_a_feature() -> None:
    for dtype in ("?", "i1", "u8", "i8", "f2", "f8"):
        feature = numeric_feature("x", np.array([0, 1, 1, 0], dtype))
        assert feature.counts.tolist() == [0, 0, 2, 2, 0, 0]


def test_the_number_of_bins_has_limits() -> None:
    for bins in (1, 257):
        with pytest.raises(ValueError, match=f"bins of 'x' must be from 2 to 256, not {bins}"):
            numeric_feature("x", [1.0], bins)


def test_categories_are_kept_by_frequency_and_the_rest_is_rare() -> None:
    values = [b"b"] * 30 + [b"a"] * 30 + [b"c"] * 40 + [b"d"] * 19 + [b"e", b"", b""]
    feature = categorical_feature("x", values)
    assert feature.kept == (b"c", b"a", b"b")
    assert feature.counts.tolist() == [40, 30, 30]
    assert feature.rare == (b"d", b"e")
    assert (feature.other, feature.missing) == (20, 2)


def test_str_bytes_and_none_may_be_mixed() -> None:
    values = np.array(["ü", "ü".encode(), None, ""], dtype=object)
    feature = categorical_feature("x", values, min_count=1)
    assert feature.kept == ("ü".encode(),)
    assert feature.counts.tolist() == [2]
    assert feature.missing == 2
    with pytest.raises(TypeError, match="a value of 'x' is float, not bytes, str or None"):
        categorical_feature("x", [1.5])  # type: ignore[list-item]  # on purpose


def test_lists_of_categories_are_bounded_and_what_is_cut_is_expected_unseen() -> None:
    values = [f"{i:03d}".encode() for i in range(100) for _ in range(1 + (i < 50))]
    feature = categorical_feature("x", values, min_count=2, max_kept=10, max_rare=20)
    assert feature.kept == tuple(f"{i:03d}".encode() for i in range(10))
    assert feature.rare == tuple(f"{i:03d}".encode() for i in range(10, 30))
    assert feature.other == 150 - 20
    assert feature.expected_unseen == pytest.approx((50 + 20 * 2) / 150)  # single ones, cut ones


def test_a_column_of_identifiers_expects_nothing_but_unseen_categories() -> None:
    feature = categorical_feature("id", [str(i) for i in range(20_000)])
    assert feature.kept == ()
    assert len(feature.rare) == 10_000
    assert feature.expected_unseen == 1.0


@given(st.lists(st.sampled_from(["", "a", "b", "c", "dd", "ee"]), max_size=60))
@settings(deadline=None)
def test_a_reference_counts_categories_as_the_live_histogram_does(values: list[str]) -> None:
    feature = categorical_feature("x", values, min_count=8, max_kept=2)
    histogram = CategoryHistogram([feature.kept], [feature.rare], 1)
    histogram.update(bytes_tensor.encode(np.array(values, dtype=object)), len(values))
    assert histogram.total()[0].tolist() == [
        *feature.counts.tolist(),
        feature.other,
        0,
        feature.missing,
    ]


def profile() -> ReferenceProfile:
    rng = np.random.default_rng(0)
    numeric = tuple(
        numeric_feature(name, values)
        for name, values in {
            "höhe": rng.normal(size=500),
            "constant": np.full(500, 2.5),
            "nothing": np.full(500, np.nan),
        }.items()
    )
    categorical = (
        categorical_feature("carrier", rng.choice([b"AA", b"UA", "Zürich".encode(), b""], 500)),
        categorical_feature("id", [str(i) for i in range(500)]),
        categorical_feature("empty", [b""] * 500),
    )
    return ReferenceProfile(
        rows=500,
        tensors=(
            TensorReference("numeric", "input", numeric),
            TensorReference("categorical", "input", categorical),
            TensorReference("variable", "output", numeric[:1]),
            TensorReference("nothing", "output", ()),
        ),
    )


def plain(value: Any) -> Any:
    """A profile as nested lists, floats as strings, so that == finds NaN equal."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), *map(plain, value.tolist())]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return [type(value).__name__, *(plain(item) for item in vars(value).values())]
    return str(value) if isinstance(value, float) else value


def formerly(path: Path) -> None:
    """Makes the file one of format 1, which had no importances and no number of finite values."""
    with np.load(path) as file:
        arrays = dict(file)
    header(format=1)(arrays)
    newer = [key for key in arrays if key.endswith((".importance", ".finite"))]
    assert len(newer) == 7
    np.savez(path, **{key: array for key, array in arrays.items() if key not in newer})


def test_a_profile_of_format_1_is_read_without_importances(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    features = tuple(
        dataclasses.replace(feature, importance=0.25) for feature in profile().tensors[0].features
    )
    first = dataclasses.replace(profile().tensors[0], features=features)
    known = dataclasses.replace(profile(), tensors=(first, *profile().tensors[1:]))
    known.save(path)
    read = ReferenceProfile.load(path).tensors[0].features
    assert [feature.importance for feature in read] == [0.25, 0.25, 0.25]
    assert [f.finite for f in read if isinstance(f, NumericFeature)] == [500, 500, 0]

    formerly(path)
    loaded = ReferenceProfile.load(path)
    assert all(f.importance is None for tensor in loaded.tensors for f in tensor.features)
    old = [f for f in loaded.tensors[0].features if isinstance(f, NumericFeature)]
    assert [feature.moment_rows() for feature in old] == [500, 500, 0]
    assert plain((loaded + profile()).tensors[1]) == plain((profile() + profile()).tensors[1])


def test_a_saved_profile_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    profile().save(path)
    loaded = ReferenceProfile.load(path)
    assert plain(loaded) == plain(profile())
    assert isinstance(loaded.tensors[0].features[0], NumericFeature)
    assert isinstance(loaded.tensors[1].features[0], CategoricalFeature)


def test_equal_profiles_are_equal_files(tmp_path: Path) -> None:
    profile().save(tmp_path / "a.npz")
    profile().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReferenceProfile.load(tmp_path / "reference.npz")


def rewritten(change: Callable[[dict[str, Any]], object], path: Path) -> None:
    profile().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def header(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        content = json.loads(arrays["header"].tobytes())
        for key, value in changes.items():
            if value is None:
                del content[key]
            else:
                content[key] = value
        arrays["header"] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return change


def tensor(**changes: Any) -> Callable[[dict[str, Any]], None]:
    entry = {"tensor": "t", "role": "input", "kind": "numeric", "features": ["a", "b", "c"]}
    return header(tensors=[entry | changes])


def replaced(key: str, value: NDArray[Any]) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({key: value})


def descending(arrays: dict[str, Any]) -> None:
    arrays["0.edges"] = arrays["0.edges"][::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("header"), "array 'header' is missing"),
        (lambda arrays: arrays.pop("0.counts"), "array '0.counts' is missing"),
        (replaced("header", np.frombuffer(b"{", np.uint8)), "its header is not JSON"),
        (replaced("header", np.frombuffer(b"[]", np.uint8)), "its header lacks 'format'"),
        (header(format=3), "its format is 3, this version reads 1 and 2"),
        (header(rows=None), "its header lacks 'rows'"),
        (header(rows="many"), "header key 'rows' is str, not int"),
        (header(tensors=[3]), "its header lacks 'features'"),
        (tensor(role="both"), "role of tensor 't' is 'both'"),
        (tensor(kind="text"), "kind of tensor 0 is 'text'"),
        (tensor(features=["a"]), r"array '0.importance' has shape \(3,\), expected \(1,\)"),
        (tensor(features=["a", "b", 3]), "the name of a feature of tensor 0 is not a string"),
        (replaced("0.missing", np.zeros(3)), "array '0.missing' is float64, expected uint64"),
        (replaced("0.moments", np.zeros(3)), "array '0.moments' has shape"),
        (replaced("0.edge_counts", np.array([70, -5, 0])), "has a negative length"),
        (descending, "edges of 'höhe' do not ascend strictly"),
        (replaced("1.text", np.zeros(1, np.uint8)), "array '1.text' has shape"),
        (replaced("1.kept_counts", np.array([0, 0, 0])), "array '1.text_lengths' has shape"),
    ],
)
def test_a_broken_profile_is_refused_by_file_and_fault(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "reference.npz"
    rewritten(change, path)
    with pytest.raises(ReferenceFormatError, match=message) as refused:
        ReferenceProfile.load(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    rewritten(replaced("0.edges", np.array([{}], dtype=object)), path)
    with pytest.raises(ReferenceFormatError, match="allow_pickle"):
        ReferenceProfile.load(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_what_is_no_npz_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(content)
    with pytest.raises(ReferenceFormatError, match="not a readable npz file"):
        ReferenceProfile.load(path)


def test_a_bare_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ReferenceFormatError, match="array 'header' is missing"):
        ReferenceProfile.load(path)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_refused_or_loads_as_it_was(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "reference.npz"
    profile().save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = ReferenceProfile.load(path)
    except ReferenceFormatError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert plain(loaded) == plain(profile())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TensorReference("t", "both", ()), "role of tensor 't' is 'both'"),  # type: ignore[arg-type]  # on purpose
        (
            lambda: TensorReference(
                "t", "input", (numeric_feature("a", [1.0]), categorical_feature("b", [b"x"]))
            ),
            "tensor 't' mixes numeric and categorical features",
        ),
        (
            lambda: CategoricalFeature("c", (b"a",), np.array([1], np.uint64), (b"a",), 0, 0),
            "'c' lists a category twice",
        ),
        (
            lambda: CategoricalFeature("c", (b"a",), np.array([], np.uint64), (), 0, 0),
            "'c' has 1 categories and 0 counts",
        ),
        (
            lambda: CategoricalFeature("c", (), np.array([], np.uint64), (b"",), 0, 0),
            "'c' lists the empty category",
        ),
        (
            lambda: NumericFeature(
                "n", np.array([1], np.float32), np.array([1], np.uint64), 0, 0, 0, 0, 0
            ),
            "'n' has 2 bins and 1 counts",
        ),
        (
            lambda: NumericFeature("n", np.array([1.0]), np.array([1, 1]), 0, 0, 0, 0, 0),
            "edges of 'n' are not a row of float32",
        ),
        (
            lambda: NumericFeature("n", np.array([1], np.float32), np.array([1, 1]), 0, 0, 0, 0, 0),
            "counts of 'n' are int64, not uint64",
        ),
        (
            lambda: dataclasses.replace(numeric_feature("n", [1.0]), importance=math.inf),
            "importance of 'n' is inf; unknown is None",
        ),
    ],
)
def test_a_profile_that_contradicts_itself_cannot_be_made(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build()


EXTREMES = st.one_of(
    st.floats(width=32), st.integers(0, 3).map(float), st.sampled_from([-0.0, math.inf, math.nan])
)


def added(parts: Sequence[Feature]) -> Feature:
    return functools.reduce(operator.add, parts)


def exact(feature: Feature) -> Any:
    """All that adds without rounding."""
    if isinstance(feature, NumericFeature):
        feature = dataclasses.replace(feature, mean=0.0, std=0.0)
    return plain(feature)


@given(st.lists(st.lists(EXTREMES, max_size=30), min_size=1, max_size=6), st.integers(2, 64))
@settings(max_examples=100, deadline=None)
def test_parts_of_a_numeric_column_add_to_the_whole(parts: list[list[float]], bins: int) -> None:
    whole = numeric_feature("x", list(itertools.chain(*parts)), bins)
    counted: list[Feature] = [numeric_feature("x", part, bins, whole.edges) for part in parts]
    total = added(counted)
    assert exact(total) == exact(whole) == exact(added(counted[::-1]))
    assert isinstance(total, NumericFeature)
    if whole.finite:
        scale = max(abs(whole.minimum), abs(whole.maximum))
        assert total.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-12 * scale)
        assert total.std == pytest.approx(whole.std, rel=1e-6, abs=1e-6 * scale)
    else:
        assert math.isnan(total.mean) and math.isnan(total.std)


@given(st.lists(st.lists(EXTREMES, max_size=20), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_adding_is_commutative_and_associative(parts: list[list[float]]) -> None:
    edges = numeric_feature("x", list(itertools.chain(*parts)), 8).edges
    a, b, c = (numeric_feature("x", part, edges=edges) for part in parts)
    assert plain(a + b) == plain(b + a)  # moments too
    assert exact((a + b) + c) == exact(a + (b + c))


def test_moments_add_without_losing_a_small_spread_beside_a_large_mean() -> None:
    values = np.random.default_rng(0).normal(16_000_000, 3, 9_000).astype(np.float32)
    whole = numeric_feature("x", values)
    parts = [numeric_feature("x", part, edges=whole.edges) for part in np.split(values, 90)]
    total = functools.reduce(operator.add, parts)
    assert total.mean == pytest.approx(whole.mean, rel=1e-14)
    assert total.std == pytest.approx(whole.std, rel=1e-9)


@given(st.lists(st.lists(st.sampled_from(["", "a", "b", "c", "dd"]), max_size=40), min_size=1))
@settings(max_examples=60, deadline=None)
def test_parts_of_a_column_of_categories_add_to_the_whole(parts: list[list[str]]) -> None:
    whole = categorical_feature(
        "x", list(itertools.chain(*parts)), min_count=5, max_kept=2, max_rare=1
    )
    counted: list[Feature] = [categorical_feature("x", part, like=whole) for part in parts]
    assert plain(added(counted)) == plain(whole) == plain(added(counted[::-1]))


def test_what_two_references_expect_unseen_is_weighed_by_their_rows() -> None:
    one = CategoricalFeature("x", (b"a",), np.array([30], np.uint64), (), 0, 0, 0.4)
    other = dataclasses.replace(one, counts=np.array([5], np.uint64), missing=5, expected_unseen=0)
    assert (one + other).expected_unseen == pytest.approx(0.3)
    assert (other + one).expected_unseen == (one + other).expected_unseen


def test_profiles_add_tensor_by_tensor() -> None:
    total = profile() + profile()
    assert total.rows == 1000
    for tensor, once in zip(total.tensors, profile().tensors, strict=True):
        assert (tensor.tensor, tensor.role) == (once.tensor, once.role)
        for feature, single in zip(tensor.features, once.features, strict=True):
            assert feature.counts.tolist() == (2 * single.counts).tolist()
            assert feature.missing == 2 * single.missing
    with pytest.raises(TypeError):
        profile() + 1


def test_importances_are_those_of_the_one_model() -> None:
    unknown = numeric_feature("x", [1.0, 2.0])
    known = dataclasses.replace(unknown, importance=0.5)
    assert (unknown + unknown).importance is None
    assert (unknown + known).importance == (known + unknown).importance == 0.5
    assert (known + known).importance == 0.5
    with pytest.raises(
        ValueError, match=r"'x' cannot be added: its importance is 0\.5 in one and 0"
    ):
        known + dataclasses.replace(unknown, importance=0.0)


def category(name: str = "x", kept: str = "a", rare: str = "b") -> CategoricalFeature:
    lists = [tuple(letter.encode() for letter in letters) for letters in (kept, rare)]
    return CategoricalFeature(name, lists[0], np.ones(len(kept), np.uint64), lists[1], 0, 0)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (numeric_feature("a", [1]), numeric_feature("b", [1]), "features 'a' and 'b' cannot be"),
        (numeric_feature("x", [1]), category(), "'x' .* is numeric in one and categorical in the"),
        (category(), numeric_feature("x", [1]), "'x' .* is categorical in one and numeric in the"),
        (numeric_feature("x", [1]), numeric_feature("x", [1, 2]), "'x' .* 3 bins in one, 6 in the"),
        (
            numeric_feature("x", [1, 2]),
            numeric_feature("x", [1, 3]),
            r"'x' cannot be added: edge 0 is -8\.0 in one and -17\.0 in the other",
        ),
        (category(), category(kept="ac"), "'x' .* has 1 kept categories in one, 2 in the other"),
        (category(), category(kept="c"), "'x' .* kept category 0 is 'a' in one and 'c' in the"),
        (category(), category(rare="c"), "'x' .* rare category 0 is 'b' in one and 'c' in the"),
    ],
)
def test_features_over_other_bins_are_not_added(one: Feature, other: Feature, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one + other
    # However it is found: the digests differ where adding is refused for the bins or lists.
    assert one.layout() != other.layout() or one.name != other.name


def test_profiles_of_other_tensors_are_not_added() -> None:
    whole = profile()
    first, *rest = whole.tensors
    for tensors, message in (
        ((first,), "profiles of 4 and 1 tensors cannot be added"),
        ((dataclasses.replace(first, tensor="t"), *rest), "tensor 'numeric' and input tensor 't'"),
        ((dataclasses.replace(first, role="output"), *rest), "'numeric' and output tensor 'nu"),
        (
            (dataclasses.replace(first, features=first.features[:2]), *rest),
            "tensor 'numeric' cannot be added: it has 3 features in one and 2 in the other",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            whole + dataclasses.replace(whole, tensors=tensors)


def test_a_counter_that_is_full_is_an_error_and_does_not_wrap() -> None:
    full = 2**64 - 1
    number = numeric_feature("x", [1.0, 2.0], edges=np.array([1, 2, 3], np.float32))
    many = dataclasses.replace(
        number, counts=np.array([0, full, 0, 0], np.uint64), finite=5, missing=full
    )
    with pytest.raises(OverflowError, match=r"bins of 'x', count 1: 1 \+ 18446744073709551615 exc"):
        number + many
    with pytest.raises(OverflowError, match="missing of 'x'"):
        many + dataclasses.replace(number, missing=1, counts=np.array([0, 0, 1, 0], np.uint64))
    text = category()
    with pytest.raises(OverflowError, match="other of 'x'"):
        dataclasses.replace(text, other=full) + dataclasses.replace(text, other=1)
    whole = profile()
    with pytest.raises(OverflowError, match="rows: 500"):
        whole + dataclasses.replace(whole, rows=full)


def test_the_size_of_zeros_sign_makes_no_other_bins() -> None:
    one, other = numeric_feature("x", [0.0, 1.0]), numeric_feature("x", [-0.0, 1.0])
    assert one.layout() == other.layout()
    assert (one + other).counts.tolist() == [0, 0, 2, 2, 0, 0]
