"""Counting two files: exactly what the profile and the histograms count of the whole columns."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trimtab._native.histogram import NumericHistogram
from trimtab._native.live_counts import LiveCounts
from trimtab._native.reference import (
    CategoricalFeature,
    Feature,
    NumericFeature,
    ReferenceProfile,
    TensorReference,
    categorical_feature,
    numeric_feature,
)
from trimtab.trainer import data_file, drift_counts
from trimtab.trainer.drift_counts import CountRequest, Found, count
from trimtab.trainer.errors import DataError


def rows(number: int = 3_000, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    temp = random.normal(size=number)
    temp[random.random(number) < 0.1] = np.nan
    return pl.DataFrame(
        {
            "temp": temp,
            "seats": random.integers(0, 400, number),
            "late": random.random(number) < 0.2,
            "carrier": random.choice(["AA", "DL", "Zürich", ""], number),
            "tail": [f"N{value}" for value in random.integers(0, 900, number)],
        }
    ).with_columns(
        pl.col("temp").fill_nan(None), pl.col("carrier").replace("", None).cast(pl.Categorical)
    )


def written(path: Path, frame: pl.DataFrame) -> Path:
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=700)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def compared(
    folder: Path, one: pl.DataFrame, other: pl.DataFrame, suffix: str = ".parquet", **options: Any
) -> Found:
    reference = written(folder / f"reference{suffix}", one)
    current = written(folder / f"current{suffix}", other)
    return count(CountRequest(reference, current, **options))


def features(profile: ReferenceProfile) -> Mapping[str, Feature]:
    return {feature.name: feature for tensor in profile.tensors for feature in tensor.features}


def slots(found: Found, name: str) -> list[int]:
    for tensor in found.current.tensors:
        if name in tensor.features:
            counts: list[int] = tensor.counts[tensor.features.index(name)].tolist()
            return counts
    raise KeyError(name)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches of a few thousand rows."""
    monkeypatch.setattr(data_file, "_MAX_BATCH_ROWS", 1_000)


@pytest.mark.parametrize("bins", [8, 64])
@pytest.mark.usefixtures("small_batches")
def test_a_file_in_batches_has_the_profile_of_its_whole_columns(tmp_path: Path, bins: int) -> None:
    frame = rows()
    found = compared(tmp_path, frame, rows(seed=1), bins=bins)
    assert found.reference.rows == 3_000
    assert [tensor.tensor for tensor in found.reference.tensors] == ["numeric", "categorical"]
    counted = features(found.reference)
    assert list(counted) == ["temp", "seats", "late", "carrier", "tail"]
    for name in ("temp", "seats", "late"):
        values = frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        whole, mine = numeric_feature(name, values, bins), counted[name]
        assert isinstance(mine, NumericFeature)
        assert mine.edges.tolist() == whole.edges.tolist()
        assert mine.counts.tolist() == whole.counts.tolist()
        assert (mine.missing, mine.finite) == (whole.missing, whole.finite)
        assert (mine.minimum, mine.maximum) == (whole.minimum, whole.maximum)
        assert mine.mean == pytest.approx(whole.mean, rel=1e-12)
        assert mine.std == pytest.approx(whole.std, rel=1e-12)
    for name in ("carrier", "tail"):
        text, mine = categorical_feature(name, frame[name].to_list()), counted[name]
        assert isinstance(mine, CategoricalFeature)
        assert (mine.kept, mine.rare, mine.other) == (text.kept, text.rare, text.other)
        assert mine.counts.tolist() == text.counts.tolist()
        assert (mine.missing, mine.expected_unseen) == (text.missing, text.expected_unseen)
    assert found.notes == () and found.faults == ()


@pytest.mark.usefixtures("small_batches")
def test_the_current_file_is_counted_as_the_histogram_counts_it(tmp_path: Path) -> None:
    current = rows(2_500, seed=1)
    found = compared(tmp_path, rows(), current)
    assert found.current.rows == 2_500
    feature = features(found.reference)["temp"]
    assert isinstance(feature, NumericFeature)
    histogram = NumericHistogram([feature.edges], 1)
    histogram.update(np.ascontiguousarray(current["temp"].fill_null(np.nan).to_numpy()[:, None]))
    assert slots(found, "temp") == histogram.total()[0].tolist()
    carriers = features(found.reference)["carrier"]
    assert isinstance(carriers, CategoricalFeature)
    expected = [
        current["carrier"].cast(pl.String).eq(kept.decode()).sum() for kept in carriers.kept
    ]
    counted = slots(found, "carrier")
    assert counted[: len(expected)] == expected
    assert counted[len(expected) + 2] == current["carrier"].null_count()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_csv_is_counted_as_the_same_rows_of_a_parquet_file(tmp_path: Path, suffix: str) -> None:
    one, other = rows(), rows(2_000, seed=1)
    parquet, text = compared(tmp_path, one, other), compared(tmp_path, one, other, suffix)
    for name, feature in features(parquet.reference).items():
        assert features(text.reference)[name].counts.tolist() == feature.counts.tolist()
        assert slots(text, name) == slots(parquet, name)


def test_digits_are_text_in_a_csv_where_the_reference_has_text(tmp_path: Path) -> None:
    one = pl.DataFrame({"zip": ["00501", "x"] * 30})
    other = pl.DataFrame({"zip": ["00501"] * 30})
    found = compared(tmp_path, one, other, ".csv")
    assert slots(found, "zip") == [30, 0, 0, 0, 0]
    assert found.faults == ()
    typed = written(tmp_path / "typed.parquet", other)
    digits = written(tmp_path / "digits.csv", other)
    found = count(CountRequest(digits, typed))
    assert slots(found, "zip") == [30, 0, 0, 0]
    assert found.faults == ()


def test_times_and_nested_columns_are_passed_over_and_named(tmp_path: Path) -> None:
    extra = rows().with_columns(
        pl.lit(datetime(2024, 1, 1, tzinfo=UTC)).alias("when"), pl.lit([1]).alias("tags")
    )
    for suffix in (".parquet", ".csv"):
        frame = extra if suffix == ".parquet" else extra.drop("tags")
        found = compared(tmp_path, frame, frame, suffix)
        assert "when" not in features(found.reference)
        assert any(note.startswith("when is not compared: it holds Date") for note in found.notes)
    with pytest.raises(DataError, match=r"when holds Datetime.*, neither numbers nor text"):
        compared(tmp_path, extra, extra, columns=("when",))


def test_columns_may_be_chosen(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(), rows(seed=1), columns=("carrier", "temp"))
    assert list(features(found.reference)) == ["temp", "carrier"]
    with pytest.raises(DataError, match="has no column 'tmp'; did you mean 'temp'"):
        compared(tmp_path, rows(), rows(), columns=("tmp",))


def test_a_column_that_is_gone_is_a_fault_and_the_others_are_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(), rows(2_000, seed=1).drop("temp", "tail"))
    assert [(fault.role, fault.feature) for fault in found.faults] == [
        ("input", "temp"),
        ("input", "tail"),
    ]
    assert found.faults[0].reason == f"{tmp_path / 'current.parquet'} has no such column"
    assert slots(found, "temp")[-1] == 2_000
    assert sum(slots(found, "seats")) == 2_000


def test_a_column_of_another_kind_is_a_fault(tmp_path: Path) -> None:
    changed = rows().with_columns(pl.col("seats").cast(pl.String), pl.lit(5).alias("carrier"))
    found = compared(tmp_path, rows(), changed)
    reasons = {fault.feature: fault.reason for fault in found.faults}
    assert reasons["seats"].endswith("holds String there, the reference numbers")
    assert reasons["carrier"].endswith("holds Int32 there, the reference text")
    wider = rows().with_columns(pl.col("seats").cast(pl.Float64), pl.col("late").cast(pl.Int8))
    assert compared(tmp_path, rows(), wider).faults == ()


def test_a_column_without_any_value_is_missing_and_no_fault(tmp_path: Path) -> None:
    nothing = rows().with_columns(pl.lit(None).alias("temp"), pl.lit(None).alias("carrier"))
    found = compared(tmp_path, rows(), nothing)
    assert found.faults == ()
    assert slots(found, "temp")[-1] == 3_000
    # The other way round the current file tells what the column is.
    turned = compared(tmp_path, nothing, rows())
    assert features(turned.reference)["temp"].missing == 3_000
    both = compared(tmp_path, nothing, nothing)
    assert "temp is not compared: it has no values" in both.notes


def test_columns_that_only_the_current_file_has_are_named(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(), rows().with_columns(pl.lit(1).alias("new")))
    assert found.notes == (f"not in {tmp_path / 'reference.parquet'}, and not compared: new",)


def test_a_column_of_too_many_texts_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_counts, "MAX_CATEGORIES", 500)
    found = compared(tmp_path, rows(), rows())
    assert "tail" not in features(found.reference)
    assert found.notes == ("tail is not compared: it has more than 500 different texts",)


@pytest.mark.parametrize(
    ("reference", "current", "message"),
    [
        (rows(0), rows(), "reference.parquet: has no rows"),
        (rows(), rows(0), "current.parquet: has no rows"),
        (rows(), rows().select("temp").rename({"temp": "x"}), "has none of the reference's"),
        (pl.DataFrame({"tags": [[1]]}), rows(), "reference.parquet: no column is left to compare"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(
    tmp_path: Path, reference: pl.DataFrame, current: pl.DataFrame, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compared(tmp_path, reference, current)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"not parquet", "x.parquet: cannot be read: "),
        ("x.csv", b"", "x.csv: cannot be read: empty CSV"),
        ("x.csv", b"a,b\n", "x.csv: has no rows"),
        ("x.json", b"{}", "x.json: must be a .parquet, .csv or .tsv file"),
        ("x.npz", b"{}", "x.npz: not a readable npz file"),
        ("x.parquet", None, "x.parquet: no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    current = written(tmp_path / "current.parquet", rows(10))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        count(CountRequest(tmp_path / name, current))


def version(folder: Path) -> Path:
    """A version's directory, with inputs and an output named like the target."""
    frame = rows()
    temp = numeric_feature("temp", frame["temp"].fill_null(np.nan).to_numpy())
    carrier = categorical_feature("carrier", frame["carrier"].to_list())
    late = numeric_feature("late", np.linspace(0, 1, 500))
    tensors = (
        TensorReference("numeric", "input", (temp,)),
        TensorReference("categorical", "input", (carrier,)),
        TensorReference("variable", "output", (late,)),
    )
    folder.mkdir()
    ReferenceProfile(3_000, tensors).save(folder / "reference.npz")
    return folder


def test_the_profile_of_a_version_may_be_the_reference(tmp_path: Path) -> None:
    current = written(tmp_path / "current.parquet", rows(2_000, seed=1))
    directory = version(tmp_path / "3")
    found = count(CountRequest(directory, current))
    assert list(features(found.reference)) == ["temp", "carrier"]
    (note,) = found.notes
    assert note.endswith("does not have as columns out.NAME are not compared: late")
    same = count(CountRequest(directory / "reference.npz", current, ("temp",)))
    assert slots(same, "temp") == slots(found, "temp")
    assert list(features(same.reference)) == ["temp"]
    with pytest.raises(DataError, match="has no column 'tail'"):
        count(CountRequest(directory, current, ("tail",)))
    with pytest.raises(DataError, match=r"a directory without a reference\.npz"):
        count(CountRequest(tmp_path, current))


def test_columns_of_the_traffic_log_are_known_by_their_names_there(tmp_path: Path) -> None:
    served = rows(2_000, seed=1).select(
        pl.col("temp").alias("in.temp"),
        pl.col("carrier").alias("in.carrier"),
        pl.lit(0.5).alias("out.late"),
    )
    current = written(tmp_path / "traffic.parquet", served)
    found = count(CountRequest(version(tmp_path / "3"), current))
    assert list(features(found.reference)) == ["temp", "carrier", "late"]
    assert found.notes == () and found.faults == ()
    assert sum(slots(found, "late")) == 2_000


def test_what_was_found_is_three_files(tmp_path: Path) -> None:
    found = compared(tmp_path, rows(), rows(2_000, seed=1).drop("temp"))
    found.save(tmp_path)
    assert ReferenceProfile.load(tmp_path / "reference.npz").rows == 3_000
    loaded = LiveCounts.load(tmp_path / "current.npz")
    assert loaded.rows == 2_000
    loaded.over(found.reference)
    told = json.loads((tmp_path / "notes.json").read_text())
    assert [fault["feature"] for fault in told["faults"]] == ["temp"]
