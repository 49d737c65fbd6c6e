"""Golden rows and reference profiles of models that were made elsewhere."""

import datetime
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import helper

from tests import models
from trimtab._native.reference import CategoricalFeature, NumericFeature, ReferenceProfile
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.trainer.errors import DataError, ExportError
from trimtab.trainer.import_rows import ImportRowsRequest, RowCounts, make_files

FLIGHTS = Signature(
    inputs=(
        TensorSpec("numeric", "FP32", (-1, 2), ("distance", "delay")),
        TensorSpec("categorical", "BYTES", (-1, 1), ("carrier",)),
    ),
    outputs=(
        TensorSpec("variable", "FP32", (-1, 1)),
        TensorSpec("label", "BYTES", (-1, 1)),
        TensorSpec("positive", "BOOL", (-1, 1)),
    ),
)


def flights(rows: int = 1000) -> pl.DataFrame:
    delay = [None, *np.arange(1, rows, dtype=float).tolist()]
    carrier = [("AA", "BB", None)[row % 3] for row in range(rows)]
    distance = np.arange(rows, dtype=np.int64)
    return pl.DataFrame({"carrier": carrier, "unused": "x", "delay": delay, "distance": distance})


class Maker:
    """A model file and rows for it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(
        self, model: bytes, signature: Signature, frame: pl.DataFrame, *, golden: bool = True
    ) -> RowCounts:
        (self.path / "model.onnx").write_bytes(model)
        frame.write_parquet(self.path / "rows.parquet")
        return make_files(self.request(signature, "golden" if golden else "reference"))

    def request(self, signature: Signature, *wanted: str) -> ImportRowsRequest:
        rows = self.path / "rows.parquet"
        return ImportRowsRequest(
            model=self.path / "model.onnx",
            signature=signature,
            golden_rows=rows if "golden" in wanted else None,
            golden_file=self.path / "golden.npz",
            reference_rows=rows if "reference" in wanted else None,
            reference_file=self.path / "reference.npz",
        )

    def golden(self) -> dict[str, Any]:
        with np.load(self.path / "golden.npz", allow_pickle=False) as archive:
            return dict(archive)

    def reference(self) -> dict[str, Any]:
        profile = ReferenceProfile.load(self.path / "reference.npz")
        return {f"{t.role} {f.name}": f for t in profile.tensors for f in t.features}


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def one_input(datatype: str, shape: tuple[int | str, ...]) -> tuple[bytes, Signature]:
    """A model that gives what it is given, with its signature."""
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    values = (TensorSpec("in0", datatype, sizes), TensorSpec("out0", datatype, sizes))
    return models.identity([(datatype, shape)]), Signature((values[0],), (values[1],))


def test_golden_rows_are_spread_over_the_file_and_have_the_models_answers(make: Maker) -> None:
    assert make(models.flights(), FLIGHTS, flights()) == RowCounts(golden=256)
    found = make.golden()
    distance, delay = found["input/numeric"].T
    assert len(distance) == 256
    assert (distance[0], distance[-1]) == (0, 999)
    assert math.isnan(delay[0]) and delay[-1] == 999
    assert set(found["input/categorical"].ravel()) == {"AA", "BB", ""}
    np.testing.assert_array_equal(found["output/variable"][:, 0], distance + delay)
    assert found["output/label"].tolist() == found["input/categorical"].tolist()
    assert found["output/positive"].dtype == np.bool_
    assert not (make.path / "reference.npz").exists()


def test_a_reference_counts_the_rows_and_the_models_answers_to_them(make: Maker) -> None:
    assert make(models.flights(), FLIGHTS, flights(), golden=False) == RowCounts(reference=1000)
    found = make.reference()
    assert list(found) == [
        *("input distance", "input delay", "input carrier"),
        *("output variable", "output label", "output positive"),
    ]
    distance, delay, carrier = (found[f"input {name}"] for name in FLIGHTS_COLUMNS)
    assert isinstance(distance, NumericFeature) and isinstance(carrier, CategoricalFeature)
    assert (distance.minimum, distance.maximum, distance.missing) == (0, 999, 0)
    assert delay.missing == 1
    assert carrier.kept == (b"AA", b"BB")
    assert carrier.missing == 333
    assert found["output variable"].maximum == 1998
    assert (found["output positive"].minimum, found["output positive"].maximum) == (0, 1)


FLIGHTS_COLUMNS = ("distance", "delay", "carrier")


def test_columns_without_names_are_called_as_the_server_calls_them(make: Maker) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
    frame = pl.DataFrame({"x[1]": [1.0, 2.0], "x[0]": [10.0, 20.0]})
    make(models.scaled(2.0), signature, frame)
    assert make.golden()["input/x"].tolist() == [[10, 1], [20, 2]]
    make(models.scaled(2.0), signature, frame, golden=False)
    assert list(make.reference()) == ["input x[0]", "input x[1]", "output y[0]", "output y[1]"]


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (pl.Series([1.0, 2.0]), "INT64"),
        (pl.Series([2**53 + 1, -5]), "INT64"),
        (pl.Series([True, False]), "BOOL"),
        (pl.Series([0, 1]), "BOOL"),
        (pl.Series([0.1, 1e300]), "FP64"),
        (pl.Series([1, 2], dtype=pl.UInt8), "FP16"),
        (pl.Series([255, 0]), "UINT8"),
        (pl.Series(["a", "ü"], dtype=pl.Categorical), "BYTES"),
        (pl.Series([b"a", b"b"]), "BYTES"),
    ],
)
def test_values_become_what_the_input_takes(make: Maker, values: pl.Series, datatype: str) -> None:
    model, signature = one_input(datatype, ("N",))
    make(model, signature, pl.DataFrame({"in0": values}))
    found = make.golden()["input/in0"]
    expected = values.cast(pl.String) if datatype == "BYTES" else values
    assert found.tolist() == expected.to_list()
    assert found.shape == (2,)


@pytest.mark.parametrize(
    ("values", "datatype", "problem"),
    [
        (pl.Series([1.5]), "INT64", "'in0' holds 1.5, and its input takes INT64"),
        (pl.Series([math.nan]), "INT64", "'in0' holds nan"),
        (pl.Series([1, None]), "INT32", "'in0' has missing values, which INT32 cannot express"),
        (pl.Series([300]), "UINT8", "holds values beyond the range of UINT8"),
        (pl.Series([1e300]), "FP32", "holds values beyond the range of FP32"),
        (pl.Series([2]), "BOOL", "holds other values than 0 and 1"),
        (pl.Series(["1"]), "FP32", "holds String, and its input takes FP32"),
        (pl.Series([1]), "BYTES", "holds Int64, and its input takes text"),
        (pl.Series([b"\xff"]), "BYTES", "is not text"),
        (pl.Series([datetime.date(2026, 1, 1)]), "INT64", "holds Date, and its input takes INT64"),
        (pl.Series([[1.0]]), "FP32", r"holds List\(Float64\), not single values"),
        (pl.Series([], dtype=pl.Float64), "FP32", "has no rows"),
    ],
)
def test_what_the_input_cannot_hold_is_named(
    make: Maker, values: pl.Series, datatype: str, problem: str
) -> None:
    model, signature = one_input(datatype, ("N",))
    with pytest.raises(DataError, match=problem):
        make(model, signature, pl.DataFrame({"in0": values}))


def test_a_whole_input_may_be_a_column_of_lists(make: Maker) -> None:
    model, signature = one_input("FP32", ("N", 2, 3))
    nested = [[[row, 1, 2], [3, 4, 5]] for row in range(4)]
    make(model, signature, pl.DataFrame({"in0": nested}))
    assert make.golden()["input/in0"].tolist() == nested
    array = pl.DataFrame({"in0": nested}, schema={"in0": pl.Array(pl.Float32, (2, 3))})
    make(model, signature, array)
    assert make.golden()["input/in0"].tolist() == nested
    for wrong in ([[[1, 2], [3, 4]]], [[[1, 2, 3], [4, 5]]], [[[1, 2, 3]]], [[None, [1, 2, 3]]]):
        with pytest.raises(DataError, match=r"'in0' must hold . entries, and holds lists of"):
            make(model, signature, pl.DataFrame({"in0": wrong}))
    with pytest.raises(DataError, match="holds fewer dimensions than its input has"):
        make(model, signature, pl.DataFrame({"in0": [[1, 2]]}))
    # A tensor of more than two dimensions is no table, so there is nothing to count of it.
    make(model, signature, array, golden=False)
    assert make.reference() == {}


def test_a_list_of_any_length_may_be_the_row_of_a_wide_input(make: Maker) -> None:
    model, signature = one_input("FP32", ("N", "M"))
    make(model, signature, pl.DataFrame({"in0": [[1.0, 2.0], [3.0, 4.0]]}))
    assert make.golden()["input/in0"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match=r"no column 'in0' of lists, which .* shape \[-1, -1\]"):
        make(model, signature, pl.DataFrame({"other": [1.0]}))


def test_a_column_that_is_not_there_is_named_with_its_nearest(make: Maker) -> None:
    with pytest.raises(
        DataError, match=r"no column 'delay' of the input 'numeric'; did .*'delays'"
    ):
        make(models.flights(), FLIGHTS, flights().rename({"delay": "delays"}))
    model, signature = one_input("FP32", ("N", 2))
    with pytest.raises(DataError, match=r"'in0\[0\]' of .*; --columns says what its columns are"):
        make(model, signature, pl.DataFrame({"a": [1.0], "b": [2.0]}))


def test_a_model_of_a_fixed_number_of_rows_is_given_as_many(make: Maker) -> None:
    model, signature = one_input("FP32", (4, 1))
    frame = pl.DataFrame({"in0": np.arange(10.0)})
    assert make(model, signature, frame) == RowCounts(golden=4)
    assert make.golden()["input/in0"].tolist() == [[0], [3], [6], [9]]
    assert make(model, signature, frame, golden=False) == RowCounts(reference=8)
    for golden in (True, False):
        with pytest.raises(DataError, match="has 3 rows, and a run of the model takes 4"):
            make(model, signature, frame.head(3), golden=golden)


def test_a_model_whose_inputs_have_no_rows_in_common_takes_none(make: Maker) -> None:
    for shapes in (((), ("N",)), ((1,), ("N",))):
        model = models.identity([("FP32", shape) for shape in shapes])
        specs = [
            TensorSpec(f"in{at}", "FP32", tuple(-1 if size == "N" else 1 for size in shape))
            for at, shape in enumerate(shapes)
        ]
        with pytest.raises(DataError, match="do not begin with one common number of rows"):
            make(model, Signature(tuple(specs), ()), pl.DataFrame({"in0": [1.0]}))


def test_texts_that_golden_rows_cannot_hold_are_passed_over(make: Maker) -> None:
    model, signature = one_input("BYTES", ("N", 1))
    make(model, signature, pl.DataFrame({"in0": ["a", "b" * 300, "c\0", "d"]}))
    assert make.golden()["input/in0"].tolist() == [["a"], ["d"]]
    with pytest.raises(DataError, match="too long, or end in NUL"):
        make(model, signature, pl.DataFrame({"in0": ["b" * 300]}))


def test_rows_that_the_model_fails_on_are_told(make: Maker) -> None:
    signature = Signature(
        (TensorSpec("index", "INT64", (-1,)),), (TensorSpec("value", "FP32", (-1,)),)
    )
    with pytest.raises(DataError, match=r"the model fails on these rows: .*indices element out of"):
        make(models.lookup(4), signature, pl.DataFrame({"index": [1, 9]}))


def test_outputs_that_are_not_served_are_not_computed(make: Maker) -> None:
    model = onnx.load_from_string(models.scaled(2.0))
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["all"]))
    kind = helper.make_tensor_sequence_value_info("all", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(kind)
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 2), ("a", "b")),), (TensorSpec("y", "FP32", (-1, 2)),)
    )
    make(model.SerializeToString(), signature, pl.DataFrame({"a": [1.0], "b": [2.0]}))
    assert sorted(make.golden()) == ["input/x", "output/y"]


def test_an_output_without_an_entry_for_each_row_is_not_counted(make: Maker) -> None:
    model = models.build(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        ],
        [("x", "FP32", ["N", 1])],
        [("y", "FP32", ["N", 1]), ("mean", "FP32", ["N", 1])],
    )
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 1)),),
        (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("mean", "FP32", (-1, 1))),
    )
    make(model, signature, pl.DataFrame({"x": [1.0, 2.0, 3.0]}), golden=False)
    assert list(make.reference()) == ["input x", "output y"]


def test_weights_beside_the_model_are_found(make: Maker) -> None:
    model = onnx.load_from_string(models.scaled(2.0))
    factor = model.graph.initializer[0]
    (make.path / "weights").write_bytes(factor.raw_data)
    factor.ClearField("raw_data")
    factor.data_location = onnx.TensorProto.EXTERNAL
    factor.external_data.add(key="location", value="weights")
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 2), ("a", "b")),), (TensorSpec("y", "FP32", (-1, 2)),)
    )
    make(model.SerializeToString(), signature, pl.DataFrame({"a": [1.0], "b": [2.0]}))
    assert make.golden()["output/y"].tolist() == [[2, 4]]


def test_what_is_no_model_or_no_rows_is_told(make: Maker) -> None:
    model, signature = one_input("FP32", ("N",))
    frame = pl.DataFrame({"in0": [1.0]})
    with pytest.raises(ExportError, match=r"onnxruntime refuses model\.onnx"):
        make(b"onnx", signature, frame)
    make(model, signature, frame)
    (make.path / "rows.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read"):
        make_files(make.request(signature, "golden"))
    (make.path / "rows.parquet").unlink()
    with pytest.raises(DataError, match=r"rows\.parquet: no such file"):
        make_files(make.request(signature, "reference"))


def test_the_command_reads_its_request_and_says_what_failed(make: Maker) -> None:
    (make.path / "model.onnx").write_bytes(models.flights())
    flights().drop("carrier").write_parquet(make.path / "rows.parquet")
    request = make.request(FLIGHTS, "golden")
    document = {
        **{key: str(value) for key, value in vars(request).items() if isinstance(value, Path)},
        "signature": asdict(FLIGHTS),
    }
    (make.path / "request.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "trimtab.trainer", "import-rows", "--progress", "json"]
    command.append(str(make.path / "request.json"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    result = json.loads(done.stdout.splitlines()[-1])["result"]
    assert (done.returncode, result["outcome"]) == (1, "failed")
    assert "has no column 'carrier'" in result["reason"]
