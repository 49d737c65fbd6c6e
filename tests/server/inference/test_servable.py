"""Loading a version: what is proved before it serves, and the sentence for every way it can fail."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests import models
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.errors import InvalidRequestError, ModelExecutionError
from trimtab.server.inference.onnx_session import (
    LoadError,
    has_batch_dimension,
    one_line,
    open_session,
)
from trimtab.server.inference.servable import Servable
from trimtab.server.inference.tensor import BYTES, DTYPES, Tensor


def load(models_dir: Path, version: int = 1, *, managed: bool = True) -> Servable:
    return Servable.load(ModelDirectory(models_dir / "m"), version, managed=managed)


def refusal(models_dir: Path, version: int = 1, *, managed: bool = True) -> str:
    with pytest.raises(LoadError) as caught:
        load(models_dir, version, managed=managed)
    text = str(caught.value)
    assert "\n" not in text
    return text


def floats(values: Any) -> Tensor:
    array = np.asarray(values, dtype=np.float32)
    return Tensor("FP32", array.shape, array)


def strings(*values: bytes) -> Tensor:
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return Tensor(BYTES, (len(values), 1), raw)


# -- what works


def test_a_published_version_computes_what_onnxruntime_computes(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.logistic())
    servable = load(tmp_path)
    x = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
    outputs = servable.run({"input": floats(x)}, servable.output_names)
    direct = onnxruntime.InferenceSession(str(tmp_path / "m/1/model.onnx")).run(None, {"input": x})
    assert list(outputs) == ["label", "probabilities"]
    assert np.array_equal(outputs["label"].array(), direct[0])
    assert np.array_equal(outputs["probabilities"].array(), direct[1])
    assert servable.batchable and servable.manifest is not None


def test_strings_go_in_and_come_out_in_their_wire_form(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())
    words = strings(b"EWR", "Zürich".encode(), b"")
    outputs = load(tmp_path).run(
        {"numeric": floats([[1, 2], [3, -4], [0, 0]]), "categorical": words},
        ("label", "variable", "positive"),
    )
    assert list(outputs) == ["label", "variable", "positive"]
    assert outputs["label"] == words
    assert outputs["variable"].array().tolist() == [[3.0], [-1.0], [0.0]]
    assert outputs["positive"].array().tolist() == [[True], [False], [False]]


def test_a_string_that_is_not_utf8_is_refused_by_input_and_element(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.flights())
    bad = {"numeric": floats(np.zeros((2, 2))), "categorical": strings(b"ok", b"\xff")}
    with pytest.raises(InvalidRequestError, match=r"input 'categorical' for model 'm': .*\b1\b"):
        load(tmp_path).run(bad, ("label",))


def test_the_signature_is_the_models_with_the_manifests_columns(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0), columns={"x": ("distance", "hour")})
    assert load(tmp_path).signature.inputs == (
        TensorSpec("x", "FP32", (-1, 2), ("distance", "hour")),
    )


def test_golden_rows_that_agree_are_no_obstacle(tmp_path: Path) -> None:
    model = models.logistic()
    models.publish(tmp_path, "m", model, golden=models.golden_of(model, tmp_path))
    assert load(tmp_path).batchable


def test_golden_rows_may_be_strings(tmp_path: Path) -> None:
    golden = {
        "input/numeric": np.ones((2, 2), dtype=np.float32),
        "input/categorical": np.array([["a"], ["b"]]),
        "output/label": np.array([["a"], ["b"]]),
    }
    models.publish(tmp_path, "m", models.flights(), golden=golden)
    load(tmp_path)


def test_a_reference_profile_is_pointed_at_where_there_is_one(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.scaled(1.0))
    assert load(tmp_path, managed=False).reference_path is None
    (tmp_path / "m/1/reference.npz").write_bytes(b"")
    assert load(tmp_path, managed=False).reference_path == tmp_path / "m/1/reference.npz"


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    external(tmp_path, "weights.bin")
    assert load(tmp_path, managed=False).signature.inputs[0].shape == (-1, 300)


def external(models_dir: Path, location: str) -> None:
    """A version 1 of m whose weights are in another file, which it says is at `location`."""
    models.write(models_dir / "m/1", models.logistic(300))
    proto = onnx.load(models_dir / "m/1/model.onnx")
    onnx.save(
        proto,
        models_dir / "m/1/model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    proto = onnx.load(models_dir / "m/1/model.onnx", load_external_data=False)
    for initializer in proto.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = location
    (models_dir / "m/1/model.onnx").write_bytes(proto.SerializeToString())


# -- what calls may share


def test_rows_that_influence_each_other_are_found_out(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.centred())
    servable = load(tmp_path)
    assert not servable.batchable
    assert "influence each other" in servable.notes[0]


@pytest.mark.parametrize("shape", [[2, 3], [], [4]])
def test_a_fixed_first_dimension_is_no_batch(tmp_path: Path, shape: list[int]) -> None:
    models.write(tmp_path / "m/1", models.identity([("FP32", shape)]))
    assert not load(tmp_path, managed=False).batchable


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([["N", 2]], [["N", 1]], True),
        ([[None, 2], ["N"]], [["other"]], True),
        ([["N", 2], ["M", 2]], [["N"]], False),
        ([["N", 2]], [[]], False),
        ([["N", 2]], [[1]], False),
        ([[]], [[None]], False),
    ],
)
def test_the_shapes_say_whether_there_is_a_batch(
    inputs: list[list[Any]], outputs: list[list[Any]], expected: bool
) -> None:
    assert has_batch_dimension(inputs, outputs) is expected


def test_made_up_rows_that_the_model_cannot_compute_are_not_held_against_it(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.lookup(size=0))
    assert load(tmp_path, managed=False).batchable


# -- what is refused


def test_a_missing_directory(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert refusal(tmp_path) == "directory 1 is missing"


def test_a_missing_model_file(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    assert refusal(tmp_path, managed=False) == "model.onnx is missing"


def test_an_empty_model_file(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", b"")
    assert refusal(tmp_path, managed=False) == "model.onnx is empty"


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", b"PK\x03\x04 garbage")
    assert refusal(tmp_path, managed=False).startswith("onnxruntime refuses model.onnx: ")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_external_data_from_outside_the_version(tmp_path: Path, location: str) -> None:
    external(tmp_path, location)
    (tmp_path / "m/outside.bin").write_bytes(bytes(1200))
    expected = f"model.onnx keeps weights in {location!r}, outside of its own directory"
    assert refusal(tmp_path, managed=False) == expected


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    external(tmp_path, "absent.bin")
    assert "does not exist" in refusal(tmp_path, managed=False)


def test_external_data_through_a_link(tmp_path: Path) -> None:
    external(tmp_path, "link.bin")
    (tmp_path / "m/outside.bin").write_bytes(bytes(1200))
    (tmp_path / "m/1/link.bin").symlink_to(tmp_path / "m/outside.bin")
    expected = "model.onnx keeps weights in 'link.bin', outside of its own directory"
    assert refusal(tmp_path, managed=False) == expected


def test_a_manifest_that_is_missing(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.scaled(1.0))
    assert "manifest.json: missing" in refusal(tmp_path)


def test_a_manifest_that_lacks_a_key(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    manifest = tmp_path / "m/1/manifest.json"
    manifest.write_text(manifest.read_text().replace('"signature"', '"signatur"'))
    assert "signature" in refusal(tmp_path)


def test_a_file_that_was_altered(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0))
    file = tmp_path / "m/1/model.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "model.onnx: its SHA-256 is not the one in the manifest" in refusal(tmp_path)


def test_a_signature_that_is_not_the_models(tmp_path: Path) -> None:
    wrong = Signature(
        inputs=(TensorSpec("x", "FP64", (-1, 2)),), outputs=(TensorSpec("y", "FP32", (-1, 2)),)
    )
    models.publish(tmp_path, "m", models.scaled(1.0), signature=wrong)
    assert refusal(tmp_path) == ("model.onnx has the inputs x FP32 but the manifest says x FP64")


def test_columns_that_do_not_fit_the_tensor(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(1.0), columns={"x": ("a", "b", "c")})
    assert refusal(tmp_path) == "the manifest names 3 columns of 'x', whose shape is [-1, 2]"


def test_golden_rows_that_differ(tmp_path: Path) -> None:
    model = models.logistic()
    golden = models.golden_of(model, tmp_path)
    golden["output/probabilities"] = golden["output/probabilities"][:, ::-1].copy()
    models.publish(tmp_path, "m", model, golden=golden)
    text = refusal(tmp_path)
    assert text.startswith("the golden rows give other results: output 'probabilities' differs in")


def test_golden_labels_that_differ(tmp_path: Path) -> None:
    model = models.logistic()
    golden = models.golden_of(model, tmp_path)
    golden["output/label"] = 1 - golden["output/label"]
    models.publish(tmp_path, "m", model, golden=golden)
    assert "output 'label' differs in 8 of 8 values" in refusal(tmp_path)


def test_golden_rows_without_an_input(tmp_path: Path) -> None:
    model = models.logistic()
    golden = models.golden_of(model, tmp_path)
    del golden["input/input"]
    models.publish(tmp_path, "m", model, golden=golden)
    assert refusal(tmp_path) == "golden.npz has no array 'input/input'"


def test_golden_rows_that_the_model_cannot_compute(tmp_path: Path) -> None:
    golden = {"input/index": np.array([99]), "output/value": np.array([1], dtype=np.float32)}
    models.publish(tmp_path, "m", models.lookup(), golden=golden)
    assert refusal(tmp_path).startswith("the golden rows fail: model 'm' version 1 failed: ")


def test_a_golden_file_that_is_damaged(tmp_path: Path) -> None:
    with ModelDirectory(tmp_path / "m").stage() as staged:
        (staged.path / "model.onnx").write_bytes(models.scaled(1.0))
        (staged.path / "golden.npz").write_bytes(b"PK\x03\x04")
        staged.publish(
            signature=open_session(staged.path / "model.onnx").signature,
            task="regression",
            lineage={},
            metrics={},
            actor="test",
            reason="test",
        )
    assert refusal(tmp_path).startswith("golden.npz cannot be read: ")


def test_an_output_that_is_no_tensor_is_left_out_and_said(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", sequence_output(also_tensor=True))
    servable = load(tmp_path, managed=False)
    assert servable.output_names == ("y",)
    assert servable.notes[0].startswith("output 'list' is of type seq(tensor(float))")


def test_a_model_with_no_output_that_is_a_tensor(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", sequence_output(also_tensor=False))
    assert "has no output that can be served" in refusal(tmp_path, managed=False)


def sequence_output(*, also_tensor: bool) -> bytes:
    proto = onnx.load_from_string(models.scaled(2.0))
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["list"]))
    proto.graph.output.append(
        helper.make_tensor_sequence_value_info("list", onnx.TensorProto.FLOAT, None)
    )
    if not also_tensor:
        del proto.graph.output[0]
    return bytes(proto.SerializeToString())


def test_what_fails_in_onnxruntime_is_one_sentence(tmp_path: Path) -> None:
    models.write(tmp_path / "m/1", models.lookup())
    servable = load(tmp_path, managed=False)
    with pytest.raises(ModelExecutionError, match="model 'm' version 1 failed: ") as caught:
        servable.run({"index": Tensor("INT64", (1,), np.array([99]))}, ("value",))
    assert "\n" not in str(caught.value)


def test_long_messages_are_cut() -> None:
    assert len(one_line(ValueError("x" * 1000), limit=50)) == 50
    assert one_line(ValueError()) == "ValueError"


# -- every datatype and shape, against onnxruntime itself


@st.composite
def values(draw: st.DrawFn) -> list[tuple[str, list[Any], np.ndarray[Any, Any]]]:
    rows = draw(st.integers(1, 4))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        datatype = draw(st.sampled_from(sorted(DTYPES)))
        tail = draw(st.lists(st.integers(1, 3), max_size=2))
        declared = ["N", *[draw(st.sampled_from([size, None])) for size in tail]]
        shape = (rows, *tail)
        if datatype == BYTES:
            flat = [
                draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=4))
                for _ in range(int(np.prod(shape)))
            ]
            array = np.array(flat, dtype=object).reshape(shape)
        else:
            seed = draw(st.integers(0, 2**32 - 1))
            raw = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * 8)
            array = raw.astype(np.uint8).view(np.uint64).astype(DTYPES[datatype]).reshape(shape)
        made.append((datatype, declared, array))
    return made


@given(values())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_whatever_goes_in_comes_out_of_an_identity(
    tmp_path: Path, given_values: list[tuple[str, list[Any], np.ndarray[Any, Any]]]
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(models.identity([(datatype, shape) for datatype, shape, _ in given_values]))
    opened = open_session(file)
    servable = Servable(
        model="m",
        version=1,
        session=opened.session,
        signature=opened.signature,
        batchable=opened.batch_dimension,
    )
    inputs = {}
    for number, (datatype, _, array) in enumerate(given_values):
        data: Any = array
        if datatype == BYTES:
            encoded = [text.encode() for text in array.ravel()]
            data = b"".join(struct.pack("<I", len(item)) + item for item in encoded)
        inputs[f"in{number}"] = Tensor(datatype, array.shape, data)
    outputs = servable.run(inputs, servable.output_names)
    for number in range(len(given_values)):
        sent, got = inputs[f"in{number}"], outputs[f"out{number}"]
        assert (got.datatype, got.shape, got.wire()) == (sent.datatype, sent.shape, sent.wire())
