import json
import math
from typing import Any

import pytest

from trimtab.registry.manifest import FileEntry, Manifest, Publication, Signature


@pytest.fixture
def manifest(signature: Signature) -> Manifest:
    return Manifest(
        format=1,
        model="airtime",
        created_ms=1,
        files={"model.onnx": FileEntry("0" * 64, 4), "golden.npz": FileEntry("f" * 64, 0)},
        signature=signature,
        task="regression",
        lineage={"recipe": {"seed": 0}, "files": ["january.parquet"]},
        metrics={"mae": 7.9, "rows": 3},
        publication=Publication("trainer", "Δ > 0.2", 5, champion_if_first=True),
    )


def test_a_manifest_reads_back_equal(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_an_undefined_metric_is_null_in_the_file_and_nan_again(manifest: Manifest) -> None:
    document = json.loads(manifest.to_json()) | {"metrics": {"roc_auc": None}}
    assert math.isnan(Manifest.from_json(json.dumps(document)).metrics["roc_auc"])


def changed(document: dict[str, Any], path: str, value: object) -> str:
    *parents, last = path.split("/")
    inner: Any = document
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("format", 2, "format is 2, this Trimtab reads 1"),
        ("format", None, "format is missing"),
        ("model", 7, "model is not a string"),
        ("files", [], "files is not an object"),
        ("files/model.onnx/sha256", "F" * 64, "files.model.onnx.sha256 is not 64 hexadecimal"),
        ("files/model.onnx/size", "4", "files.model.onnx.size is not an integer"),
        ("files/..", {}, "'..' is not allowed"),
        ("files/manifest.json", {}, "'manifest.json' is not allowed"),
        ("files/manifest.sig", {}, "'manifest.sig' is not allowed"),
        ("signature/inputs/0/shape", [-1, "2"], r"signature.inputs\[0\].shape is not a list of in"),
        ("signature/outputs/0/datatype", None, r"signature.outputs\[0\].datatype is missing"),
        ("metrics/mae", "good", "metrics.mae is not a number"),
        ("publication", None, "publication is missing"),
        ("publication/champion_if_first", 1, "publication.champion_if_first is not true or false"),
    ],
)
def test_the_key_at_fault_is_named(
    manifest: Manifest, path: str, value: object, problem: str
) -> None:
    text = changed(json.loads(manifest.to_json()), path, value)
    with pytest.raises(ValueError, match=problem):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", ".hidden", "a\\\n", ""])
def test_a_file_name_that_leads_elsewhere_is_refused(manifest: Manifest, name: str) -> None:
    document = json.loads(manifest.to_json())
    document["files"][name] = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(ValueError, match="is not allowed as the name of a file"):
        Manifest.from_json(json.dumps(document))
