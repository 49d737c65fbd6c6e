"""An unmodified tritonclient in its own process gets what onnxruntime computes."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests import models
from tests.live import served
from tests.served import served as served_apart
from trimtab.proto import open_inference_pb2 as pb

SCRIPT = Path(__file__).with_name("client.py")
EVENT_TIME_MS = 1_370_000_000_000
NUMERIC: dict[str, NDArray[Any]] = {
    "FP32": np.array([[0.5, -1e30], [np.inf, -0.0]], dtype=np.float32),
    "FP64": np.array([[0.1, 1e300], [-1.5, 0.0]], dtype=np.float64),
    "FP16": np.array([[0.5, -2.0], [65504.0, 0.0]], dtype=np.float16),
    "INT8": np.array([[-128, 127], [0, 1]], dtype=np.int8),
    "INT32": np.array([[-(2**31), 2**31 - 1], [0, 1]], dtype=np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [0, 1]], dtype=np.int64),
    "UINT8": np.array([[0, 255], [1, 2]], dtype=np.uint8),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], dtype=np.uint64),
    "BOOL": np.array([[True, False], [False, True]]),
}
WORDS = np.array([["EWR", ""], ["Zürich", "a\nb"]])
LIMITED = """
name: "limited"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 100 }
parameters { key: "team" value { string_value: "us" } }
"""


@dataclass
class Session:
    """One run of the client against one server."""

    models_dir: Path
    cases: list[dict[str, Any]]
    inputs: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    outputs: dict[str, NDArray[Any]]
    event_times: list[int | None]

    def case(self, name: str) -> dict[str, Any]:
        return next(case for case in self.cases if case["name"] == name)


def case(
    name: str,
    model: str,
    inputs: dict[str, NDArray[Any]],
    *,
    outputs: list[str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    return {"name": name, "model": model, "inputs": inputs, "outputs": outputs or [], **fields}


def good_cases() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(7, 30)).astype(np.float32)
    flight: dict[str, NDArray[Any]] = {
        "numeric": np.array([[1, 2], [3, -9]], dtype=np.float32),
        "categorical": np.array([["UA"], ["Ünited"]]),
    }
    return [
        *[
            case(f"identity {name}", f"identity_{name.lower()}", {"in0": array})
            for name, array in NUMERIC.items()
        ],
        case("identity BYTES", "identity_bytes", {"in0": WORDS}),
        case("one row", "logistic", {"input": rows[:1]}, id="mine"),
        case("several rows", "logistic", {"input": rows}, version="1"),
        case("more rows than a batch", "logistic", {"input": np.tile(rows, (10, 1))}),
        case("several inputs and outputs", "flights", flight),
        case("requested outputs", "flights", flight, outputs=["label", "variable"]),
        case(
            "parameters",
            "logistic",
            {"input": rows},
            parameters={"event_time": EVENT_TIME_MS},
            timeout=30_000_000,
        ),
        case("no batch dimension", "scalar", {"in0": np.array(3.5, dtype=np.float32)}),
        case("a fixed first dimension", "fixed", {"in0": np.ones((2, 3), dtype=np.float32)}),
    ]


def bad_cases() -> list[dict[str, Any]]:
    x = np.zeros((1, 30), dtype=np.float32)
    return [
        case("unknown model", "nope", {"input": x}),
        case("unknown version", "logistic", {"input": x}, version="99"),
        case("broken version", "logistic", {"input": x}, version="2"),
        case("wrong datatype", "logistic", {"input": x.astype(np.float64)}),
        case("wrong shape", "logistic", {"input": x[:, :29]}),
        case("zero rows", "logistic", {"input": x[:0]}),
        case("unknown output", "logistic", {"input": x}, outputs=["nope"]),
        case("missing input", "flights", {"numeric": x[:, :2]}),
        case("extra input", "logistic", {"input": x, "more": x}),
        case("wrong parameter", "logistic", {"input": x}, parameters={"event_time": "now"}),
    ]


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, client_python: Path, frontend: str
) -> Session:
    models_dir = tmp_path_factory.mktemp("models")
    for name in [*NUMERIC, "BYTES"]:
        models.publish(
            models_dir, f"identity_{name.lower()}", models.identity([(name, ["N", None])])
        )
    models.publish(models_dir, "logistic", models.logistic())
    models.write(models_dir / "logistic/2", b"garbage")
    models.publish(models_dir, "flights", models.flights())
    models.write(models_dir / "scalar/1", models.identity([("FP32", [])]))
    models.write(models_dir / "fixed/3", models.identity([("FP32", [2, 3])]))
    models.write(models_dir / "limited/1", models.scaled(2.0))
    (models_dir / "limited/config.pbtxt").write_text(LIMITED)

    work = tmp_path_factory.mktemp("client")
    cases, errors = good_cases(), bad_cases()
    inputs = {
        f"{each['name']}/{name}": array
        for each in [*cases, *errors]
        for name, array in each["inputs"].items()
    }
    job = {
        "models": ["logistic", "nope", "scalar"],
        "metadata": ["flights", "fixed"],
        "cases": [{**each, "inputs": list(each["inputs"])} for each in cases],
        "errors": [{**each, "inputs": list(each["inputs"])} for each in errors],
    }
    (work / "job.json").write_text(json.dumps(job))
    np.savez(work / "inputs.npz", **inputs)
    files = [str(work / name) for name in ("job.json", "inputs.npz", "facts.json", "outputs.npz")]
    with served(models_dir, model_control=True, frontend=frontend) as server:
        done = subprocess.run(
            [str(client_python), str(SCRIPT), str(server.port), *files],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((work / "facts.json").read_text())
    with np.load(work / "outputs.npz") as archive:
        outputs = {key: archive[key] for key in archive.files}
    event_times = [
        call.event_time_ms
        for batch in server.observed
        for call in batch.calls.each()
        if batch.model == "logistic"
    ]
    return Session(models_dir, cases, inputs, facts, outputs, event_times)


@pytest.mark.parametrize("name", [each["name"] for each in good_cases()])
def test_a_reply_holds_what_onnxruntime_computes(session: Session, name: str) -> None:
    sent = session.case(name)
    version = session.facts["replies"][name]["version"]
    direct = onnxruntime.InferenceSession(
        str(session.models_dir / sent["model"] / version / "model.onnx")
    )
    feed = {
        key: array.astype(object) if array.dtype.kind == "U" else array
        for key, array in sent["inputs"].items()
    }
    names = sent["outputs"] or [each.name for each in direct.get_outputs()]
    expected = dict(zip(names, direct.run(names, feed), strict=True))
    assert [each[0] for each in session.facts["replies"][name]["outputs"]] == names
    for output, value in expected.items():
        got = session.outputs[f"{name}/{output}"]
        assert got.shape == value.shape
        if value.dtype == object:
            assert got.tolist() == value.tolist()
        elif name == "more rows than a batch" or value.dtype.kind == "f":
            np.testing.assert_allclose(got, value, rtol=1e-6)
        else:
            assert got.dtype == value.dtype and np.array_equal(got, value)


@pytest.mark.parametrize("name", [each["name"] for each in good_cases()])
def test_requests_that_meet_in_the_server_get_the_same(session: Session, name: str) -> None:
    assert session.facts["asynchronous"][name] is True


@pytest.mark.parametrize("name", [each["name"] for each in good_cases()])
def test_other_ways_of_asking_get_the_same(session: Session, name: str) -> None:
    assert session.facts["streamed"][name] is True
    assert session.facts["awaited"][name] is True
    assert session.facts["awaited"][f"{name}, streamed"] is True


@pytest.mark.parametrize("name", [*(set(NUMERIC) - {"FP16"}), "BYTES"])
def test_typed_contents_are_taken_and_answered_by_raw_ones(session: Session, name: str) -> None:
    assert session.facts["typed"][name] is True
    assert session.facts["typed"][f"{name} and raw"] == [
        "StatusCode.INVALID_ARGUMENT",
        (
            "contents field must not be specified when using raw_input_contents for 'in0' for "
            f"model 'identity_{name.lower()}'"
        ),
    ]


def test_ids_are_echoed_or_minted(session: Session) -> None:
    replies = session.facts["replies"]
    assert replies["one row"]["id"] == "mine"
    minted = [reply["id"] for name, reply in replies.items() if name != "one row"]
    assert all(minted) and len(set(minted)) == len(minted)


def test_the_event_time_of_a_tritonclient_is_read(session: Session) -> None:
    sent = 6  # waited for, not waited for, twice in a stream, awaited, awaited in a stream
    assert session.event_times.count(EVENT_TIME_MS) == sent


def test_health(session: Session) -> None:
    assert (session.facts["live"], session.facts["ready"]) == (True, True)
    assert session.facts["model_ready"] == {"logistic": True, "nope": False, "scalar": True}


@pytest.mark.e2e
def test_the_server_gives_the_name_that_it_is_told_to(tmp_path: Path, frontend: str) -> None:
    """Triton's own example of health checks stops where the name is not triton."""
    options = ["--frontend", frontend, "--set", "server.name=triton"]
    with served_apart(tmp_path, *options) as server:
        ask = server.channel.unary_unary(
            "/inference.GRPCInferenceService/ServerMetadata",
            pb.ServerMetadataRequest.SerializeToString,
            pb.ServerMetadataResponse.FromString,
        )
        assert ask(pb.ServerMetadataRequest(), timeout=30).name == "triton"


def test_metadata(session: Session) -> None:
    assert session.facts["server"]["name"] == "trimtab"
    flights = session.facts["metadata"]["flights"]
    assert flights["platform"] == "onnxruntime_onnx" and flights["versions"] == ["1"]
    assert flights["inputs"] == [
        {"name": "numeric", "datatype": "FP32", "shape": ["-1", "2"]},
        {"name": "categorical", "datatype": "BYTES", "shape": ["-1", "1"]},
    ]
    assert [each["name"] for each in flights["outputs"]] == ["variable", "label", "positive"]
    assert session.facts["metadata"]["fixed"]["inputs"][0]["shape"] == ["2", "3"]


def test_the_repository_index(session: Session) -> None:
    index = {(entry["name"], entry["version"]): entry for entry in session.facts["index"]["models"]}
    assert index["logistic", "1"]["state"] == "READY"
    assert index["logistic", "2"]["state"] == "UNAVAILABLE"
    assert "manifest.json: missing" in index["logistic", "2"]["reason"]
    assert index["fixed", "3"]["state"] == "READY"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        (
            "unknown model",
            "NOT_FOUND",
            "Request for unknown model: 'nope' is not found",
        ),
        (
            "unknown version",
            "NOT_FOUND",
            "Request for unknown model: 'logistic' version 99 is not found",
        ),
        (
            "broken version",
            "UNAVAILABLE",
            "Request for unknown model: 'logistic' version 2 is not at ready state",
        ),
        (
            "wrong datatype",
            "INVALID_ARGUMENT",
            "inference input 'input' data-type is 'FP64', but model 'logistic' expects 'FP32'",
        ),
        (
            "wrong shape",
            "INVALID_ARGUMENT",
            "unexpected shape for input 'input' for model 'logistic'. Expected [-1,30], got [1,29]",
        ),
        (
            "zero rows",
            "INVALID_ARGUMENT",
            "input 'input' for model 'logistic' has zero rows: [0,30]",
        ),
        (
            "unknown output",
            "INVALID_ARGUMENT",
            "unexpected inference output 'nope' for model 'logistic'",
        ),
        (
            "missing input",
            "INVALID_ARGUMENT",
            (
                "expected 2 inputs but got 1 inputs for model 'flights'. Got input(s) ['numeric'], "
                "but missing required input(s) ['categorical']. Please provide all required "
                "input(s)."
            ),
        ),
        (
            "extra input",
            "INVALID_ARGUMENT",
            "unexpected inference input 'more' for model 'logistic'",
        ),
        (
            "wrong parameter",
            "INVALID_ARGUMENT",
            "invalid value type for 'event_time' parameter, expected int64_param.",
        ),
    ],
)
def test_a_wrong_request_gets_its_status_and_text(
    session: Session, name: str, code: str, text: str
) -> None:
    assert session.facts["errors"][name] == [f"StatusCode.{code}", text]
    assert session.facts["streamed"][name] == text


# -- the rest of the client


def operation(session: Session, name: str) -> Any:
    return session.facts["operations"][name]


def test_the_configuration_of_a_model(session: Session) -> None:
    config = operation(session, "config")["config"]
    assert (config["name"], config["platform"], config["backend"]) == (
        "flights",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert config["max_batch_size"] == 65536 and "dynamic_batching" in config
    assert config["input"] == [
        {"name": "numeric", "data_type": "TYPE_FP32", "dims": ["2"]},
        {"name": "categorical", "data_type": "TYPE_STRING", "dims": ["1"]},
    ]
    assert [each["data_type"] for each in config["output"]] == [
        "TYPE_FP32",
        "TYPE_STRING",
        "TYPE_BOOL",
    ]
    assert config["version_policy"] == {"specific": {"versions": ["1"]}}


def test_a_model_without_a_batch_dimension_says_so(session: Session) -> None:
    config = operation(session, "config of a version")["config"]
    assert "max_batch_size" not in config and "dynamic_batching" not in config
    assert config["input"] == [{"name": "in0", "data_type": "TYPE_FP32", "dims": ["2", "3"]}]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_a_config_pbtxt_is_honoured_and_reported(session: Session) -> None:
    config = operation(session, "config of a file")["config"]
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": "100"}
    assert config["parameters"] == {"team": {"string_value": "us"}}


def test_statistics_count_what_was_answered_in_equal_counts(session: Session) -> None:
    (entry,) = operation(session, "statistics")["model_stats"]
    (same,) = operation(session, "statistics of a version")["model_stats"]
    assert entry == same and (entry["name"], entry["version"]) == ("logistic", "1")
    stats = entry["inference_stats"]
    ways = 6  # of asking, see above
    answered = ways * sum(each["model"] == "logistic" for each in session.cases)
    counts = [
        int(stats[key]["count"])
        for key in ("success", "queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert counts == [answered] * 5
    rows = ways * sum(
        len(each["inputs"]["input"]) for each in session.cases if each["model"] == "logistic"
    )
    assert int(entry["inference_count"]) == rows
    assert int(entry["execution_count"]) > 0 and int(entry["last_inference"]) > 1.6e12
    assert entry["batch_stats"]
    everything = operation(session, "statistics of all")["model_stats"]
    assert {"logistic", "flights", "scalar", "limited"} <= {each["name"] for each in everything}
    assert all(each["version"].isdigit() for each in everything)


def test_a_model_is_unloaded_and_loaded(session: Session) -> None:
    assert operation(session, "unload") is None and operation(session, "load") is None
    assert operation(session, "unloaded") == [True, False]
    assert operation(session, "loaded") == [True, True]
    index = {entry["name"]: entry for entry in operation(session, "index")["models"]}
    assert index["limited"] == {
        "name": "limited",
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "unloaded",
    }


def test_a_load_may_bring_a_configuration(session: Session) -> None:
    assert operation(session, "load of a config") is None
    assert operation(session, "config of a load")["config"]["max_batch_size"] == 16
    code, text = operation(session, "load of a wrong config")
    assert code == "StatusCode.INTERNAL" and "failed to load" in text


def test_trace_and_log_settings(session: Session) -> None:
    settings = operation(session, "trace")["settings"]
    assert settings["trace_level"] == {"value": ["OFF"]}
    for name in ("trace of a model", "trace off", "trace cleared"):
        assert operation(session, name)["settings"] == settings
    log = operation(session, "log")["settings"]
    assert log["log_error"] == {"bool_param": True} and log["log_file"] == {"string_param": ""}
    more = operation(session, "log more")["settings"]
    assert more["log_verbose_level"] == {"uint32_param": 1}
    less = operation(session, "log less")["settings"]
    assert less["log_verbose_level"] == {"uint32_param": 0}
    assert (less["log_info"], less["log_warning"]) == ({"bool_param": False}, {"bool_param": True})


def test_shared_memory_is_empty_and_can_be_tidied_up(session: Session) -> None:
    for kind in ("system", "cuda"):
        assert operation(session, kind) == {}
        assert operation(session, f"{kind} unregistered") is None


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("config of nothing", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("statistics of nothing", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        (
            "load of nothing",
            "INTERNAL",
            "failed to load 'nope', failed to poll from model repository",
        ),
        (
            "load of files",
            "INTERNAL",
            (
                "failed to load 'limited', failed to poll from model repository: a load takes the "
                "files of the model's own directory: parameter 'file:1/model.onnx' is not supported"
            ),
        ),
        (
            "trace on",
            "UNIMPLEMENTED",
            "tracing is not supported: trace_level can only be 'OFF'",
        ),
        (
            "log file",
            "UNIMPLEMENTED",
            (
                "log_file '/tmp/log' is not supported: the server logs to standard error, in its "
                "own format"
            ),
        ),
        ("system registered", "UNIMPLEMENTED", "shared memory is not supported"),
        ("cuda registered", "UNIMPLEMENTED", "shared memory is not supported"),
    ],
)
def test_an_operation_that_cannot_be_gets_its_status_and_text(
    session: Session, name: str, code: str, text: str
) -> None:
    assert operation(session, name) == [f"StatusCode.{code}", text]
