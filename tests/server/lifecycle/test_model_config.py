"""config.pbtxt: what is read from it, what is compared with the model, what is named as ignored."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models
from trimtab.registry.directory import Registry
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import BatchingConfig, ListenConfig, ServerConfig
from trimtab.server.errors import NotFoundError, UnavailableError
from trimtab.server.inference.onnx_session import LoadError
from trimtab.server.lifecycle.model_config import mismatch, parse, parse_json, read
from trimtab.server.lifecycle.model_manager import ModelManager
from trimtab.server.lifecycle.version_plan import VersionPolicy, VersionState

READY, UNLOADED, FAILED = VersionState.READY, VersionState.UNLOADED, VersionState.FAILED

# As Triton's own tutorials write them: commas, missing colons, comments, lists of messages.
TRITON = """
name: "m"  # the directory's
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  {
    name: "x"
    data_type: TYPE_FP32
    dims: [ 2 ]
  }
]
output [ { name: "y", data_type: TYPE_FP32, dims: [ 2 ] } ]
instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  default_queue_policy { max_queue_size: 100, default_timeout_microseconds: 2000 }
}
optimization { execution_accelerators {
  gpu_execution_accelerator : [ { name : "tensorrt"
    parameters { key: "precision_mode" value: "FP16" } } ]
}}
version_policy: { latest { num_versions: 2 } }
parameters { key: "team" value: { string_value: "it's \\"us\\" { [" } }
model_warmup [{ name: "w" inputs { key: "x" value: { random_data: true } } }]
"""


def signature(x: tuple[int, ...] = (-1, 2), y: tuple[int, ...] = (-1, 2)) -> Signature:
    return Signature(
        inputs=(TensorSpec("x", "FP32", x, ()),), outputs=(TensorSpec("y", "FP32", y, ()),)
    )


# -- reading


def test_a_file_as_triton_writes_it_is_read_and_what_is_not_honoured_is_named() -> None:
    file = parse(TRITON, "m")
    settings = file.settings
    assert settings.max_batch_size == 8
    assert (settings.max_queue_delay_us, settings.max_queue_size) == (500, 100)
    assert settings.default_timeout_us == 2000
    assert file.version_policy == VersionPolicy(latest=2)
    assert settings.written.parameters["team"].string_value == 'it\'s "us" { ['
    assert file.ignored == (
        "dynamic_batching.preferred_batch_size",
        "instance_group",
        "model_warmup",
        "optimization",
    )
    assert mismatch(file, signature()) == ""


def test_a_model_needs_no_file_and_a_file_needs_to_say_nothing(tmp_path: Path) -> None:
    absent = read(tmp_path)
    (tmp_path / "config.pbtxt").write_text("")
    assert read(tmp_path) == absent
    assert absent.settings.max_batch_size is None and absent.version_policy == VersionPolicy()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ('name: "m"', None),
        ("max_batch_size: 0", 0),
        ("max_batch_size: 3", 3),
        ('input { name: "x" dims: [-1, 2] }', 0),  # whole shapes: there is no batch dimension
    ],
)
def test_no_batch_size_leaves_it_to_the_model_unless_its_tensors_are_described(
    text: str, size: int | None
) -> None:
    assert parse(text, "m").settings.max_batch_size == size


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", VersionPolicy()),
        ("version_policy { latest {} }", VersionPolicy(latest=1)),
        ("version_policy: { all { } }", VersionPolicy(latest=0)),
        (
            "version_policy { specific: { versions: [1, 3] } }",
            VersionPolicy(latest=0, only=frozenset([1, 3])),
        ),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy) -> None:
    assert parse(text, "m").version_policy == policy


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('name: "other"', "config.pbtxt is named 'other' but its directory 'm'"),
        ("max_batch_size: -1", "config.pbtxt: max_batch_size -1 is less than 0"),
        ("max_batch_size: many", "config.pbtxt is not a model configuration: 1:17"),
        ("name: 'm'\n\ninput {", "config.pbtxt is not a model configuration: 3:"),
        ("unknown: [ {} ]\nname 7", "config.pbtxt is not a model configuration: 2:"),
        ("input { data_type: TYPE_COMPLEX }", "has no value named TYPE_COMPLEX"),
        ("}", "config.pbtxt is not a model configuration"),
        ("[", "config.pbtxt is not a model configuration"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(LoadError) as caught:
        parse(text, "m")
    assert reason in str(caught.value)


def test_a_configuration_in_json_says_what_the_same_in_text_does() -> None:
    text = """
    {
      "name": "m", "max_batch_size": "8", "platform": "onnxruntime_onnx",
      "input": [{"name": "x", "dataType": "TYPE_FP32", "dims": ["2"]}],
      "instance_group": [{"count": 2}], "from_the_future": {"name": 1},
      "dynamicBatching": {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": 500,
        "default_queue_policy": {"max_queue_size": 100, "default_timeout_microseconds": 2000}
      },
      "version_policy": {"latest": {"num_versions": 2}},
      "parameters": {"input": {"string_value": "a"}, "name": {"string_value": "b"}}
    }
    """
    config = parse_json(text, "m")
    settings = config.settings
    assert (settings.max_batch_size, settings.default_timeout_us) == (8, 2000)
    assert (settings.max_queue_delay_us, settings.max_queue_size) == (500, 100)
    assert config.version_policy == VersionPolicy(latest=2) and config.says_version_policy
    assert {name: each.string_value for name, each in settings.written.parameters.items()} == {
        "input": "a",
        "name": "b",
    }
    assert config.ignored == (
        "dynamic_batching.preferred_batch_size",
        "from_the_future",
        "instance_group",
    )
    assert mismatch(config, signature()) == ""
    assert mismatch(config, signature(x=(-1, 3))).startswith("config: input 'x' has dims [2]")


def test_json_that_says_nothing_leaves_everything_open() -> None:
    config = parse_json("{}", "m")
    assert config.settings.max_batch_size is None and config.ignored == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "config is not a model configuration: "),
        ("[]", "config is not a model configuration: "),
        ("7", "config is not a model configuration: "),
        ('"parameters": {}', "config is not a model configuration: "),
        ('{"max_batch_size": "many"}', "config is not a model configuration: "),
        ('{"parameters": [1]}', "config is not a model configuration: "),
        ('{"input": {"name": "x"}}', "config is not a model configuration: "),
        ("[" * 100_000, "config is not a model configuration: "),
        ('{"name": "other"}', "config is named 'other' but its directory 'm'"),
        ('{"max_batch_size": -1}', "config: max_batch_size -1 is less than 0"),
    ],
)
def test_json_that_cannot_be_right_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(LoadError) as caught:
        parse_json(text, "m")
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "config.pbtxt"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(LoadError, match=r"config\.pbtxt cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ('platform: "onnxruntime_onnx" backend: "onnxruntime"', ()),
        ('platform: "tensorrt_plan"', ("platform",)),
        ('default_model_filename: "model.onnx"', ()),
        ('default_model_filename: "other.onnx"', ("default_model_filename",)),
        ("sequence_batching { direct {} }", ("sequence_batching",)),
        ("runtime: 'x'; new_in_triton_99 < a: 1 b: 'x' 'y' >", ("new_in_triton_99", "runtime")),
        ("input { name: 'x' brand_new: { a: 1 } }", ("input.brand_new",)),
        ("input { name: 'x' reshape { shape: [] } }", ("input.reshape",)),
        (
            "dynamic_batching { priority_levels: 2 default_queue_policy { timeout_action: DELAY } }",
            (
                "dynamic_batching.default_queue_policy.timeout_action",
                "dynamic_batching.priority_levels",
            ),
        ),
        ("dynamic_batching { default_queue_policy { timeout_action: REJECT } }", ()),
    ],
)
def test_what_is_not_honoured_is_named(text: str, ignored: tuple[str, ...]) -> None:
    assert parse(text, "m").ignored == ignored


# -- comparing with the model


@pytest.mark.parametrize(
    ("text", "specs", "reason"),
    [
        ("max_batch_size: 4", signature(), ""),
        ("max_batch_size: 4 input { name: 'x' dims: 2 }", signature(), ""),
        ("max_batch_size: 4 input { name: 'x' dims: 7 }", signature(x=(-1, -1)), ""),
        ("max_batch_size: 0 input { name: 'x' dims: [-1, 2] }", signature(), ""),
        ("max_batch_size: 4 output { name: 'y' dims: 1 reshape {} }", signature(y=(-1,)), ""),
        ("input { name: 'x' data_type: TYPE_FP32 }", signature(), ""),
        (
            "max_batch_size: 4",
            signature(x=(3, 2)),
            "config.pbtxt says max_batch_size 4, but 'x' has no batch dimension: its shape is [3,2]",
        ),
        (
            "max_batch_size: 4",
            signature(y=()),
            "config.pbtxt says max_batch_size 4, but 'y' has no batch dimension: its shape is []",
        ),
        (
            "input { name: 'z' dims: [-1, 2] }",
            signature(),
            "config.pbtxt: input 'z' is none of model.onnx, which has 'x'",
        ),
        (
            "output { name: 'y' data_type: TYPE_INT64 dims: [-1, 2] }",
            signature(),
            "config.pbtxt: output 'y' is TYPE_INT64, but in model.onnx it is TYPE_FP32",
        ),
        (
            "max_batch_size: 4 input { name: 'x' dims: [-1, 2] }",
            signature(),
            (
                "config.pbtxt: input 'x' has dims [-1,2], but in model.onnx it has [2] after the "
                "batch dimension"
            ),
        ),
        (
            "input { name: 'x' dims: [-1, 3] }",
            signature(),
            "config.pbtxt: input 'x' has dims [-1,3], but in model.onnx it has [-1,2]",
        ),
        (
            "input { name: 'x' dims: [-1, -1] }",
            signature(),
            "config.pbtxt: input 'x' has dims [-1,-1], but in model.onnx it has [-1,2]",
        ),
        (
            "input { name: 'x' dims: [2] reshape { shape: [1, 3] } }",
            signature(x=(1, 2)),
            "config.pbtxt: input 'x' has reshape [1,3], but in model.onnx it has [1,2]",
        ),
    ],
)
def test_a_model_that_is_not_as_described_is_told_apart(
    text: str, specs: Signature, reason: str
) -> None:
    assert mismatch(parse(text, "m"), specs) == reason


# -- in a repository


class World:
    """A manager of a plain repository with the model m, y = factor · x."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.manager = ModelManager(
            Registry(models_dir),
            ServerConfig(
                models_dir,
                server=ListenConfig(watch=False),
                batching=BatchingConfig(max_batch_rows=64, linger_ms=0.0),
            ),
        )

    def write(self, *versions: int) -> None:
        for version in versions:
            models.write(self.models_dir / f"m/{version}", models.scaled(float(version)))

    def configure(self, text: str) -> None:
        (self.models_dir / "m/config.pbtxt").write_text(text)

    def follow(self) -> None:
        self.manager.reconcile("m").result(30)

    def states(self) -> dict[int, VersionState]:
        status = self.manager.status("m")
        assert status is not None
        return {each.version: each.state for each in status.versions}

    def reasons(self) -> dict[int, str]:
        status = self.manager.status("m")
        assert status is not None
        return {each.version: each.reason for each in status.versions}

    def answers(self) -> int:
        return self.manager.resolve("m", "").servable.version


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.manager.stop(grace_s=10)


def test_a_triton_repository_is_served_as_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.write(1, 2, 3)
    world.configure(TRITON)
    with caplog.at_level(logging.WARNING):
        world.manager.start()
    assert world.states() == {1: UNLOADED, 2: READY, 3: READY}
    assert world.answers() == 3
    assert [record.getMessage() for record in caplog.records] == [
        (
            "model 'm': config.pbtxt: not honoured: dynamic_batching.preferred_batch_size, "
            "instance_group, model_warmup, optimization"
        )
    ]
    servable = world.manager.resolve("m", "2").servable
    assert servable.batchable
    batching = servable.settings.batching(BatchingConfig(max_batch_rows=64))
    assert batching == BatchingConfig(max_batch_rows=8, max_queue_rows=100, linger_ms=0.5)


@pytest.mark.parametrize(
    ("policy", "ready", "answers"),
    [
        ("latest { num_versions: 2 }", {2, 3}, 3),
        ("all {}", {1, 2, 3}, 3),
        ("specific { versions: [1, 2, 9] }", {1, 2}, 2),
    ],
)
def test_the_version_policy_says_what_is_loaded_and_the_highest_of_it_answers(
    world: World, policy: str, ready: set[int], answers: int
) -> None:
    world.write(1, 2, 3)
    world.configure(f"version_policy: {{ {policy} }}")
    world.manager.start()
    assert {version for version, state in world.states().items() if state is READY} == ready
    assert world.answers() == answers


def test_a_model_of_another_name_is_not_served_and_the_index_says_why(world: World) -> None:
    world.write(1)
    world.configure('name: "other"')
    world.manager.start()
    assert world.states() == {1: FAILED}
    assert world.reasons() == {1: "config.pbtxt is named 'other' but its directory 'm'"}
    assert not world.manager.ready()
    with pytest.raises(NotFoundError, match="has no available versions"):
        world.manager.resolve("m", "")
    with pytest.raises(UnavailableError, match="version 1 is not at ready state"):
        world.manager.resolve("m", "1")


def test_a_repaired_file_is_noticed(world: World) -> None:
    world.write(1)
    world.configure('input { name: "nope" }')
    world.manager.start()
    assert "is none of model.onnx" in world.reasons()[1]
    world.configure("max_batch_size: 4")
    world.follow()
    assert world.answers() == 1


def test_a_changed_file_is_taken_up_and_a_broken_one_leaves_the_model_serving(
    world: World,
) -> None:
    world.write(1)
    world.manager.start()
    before = world.manager.resolve("m", "")
    world.configure("max_batch_size: 4")
    world.follow()
    changed = world.manager.resolve("m", "")
    assert changed is not before and changed.servable.settings.max_batch_size == 4
    world.configure('name: "other"')
    world.follow()
    assert world.manager.resolve("m", "") is changed
    assert world.states() == {1: READY}
    assert world.reasons()[1].startswith("its changed files are refused: config.pbtxt is named")


def test_without_batching_every_call_runs_by_itself(world: World) -> None:
    world.write(1)
    world.configure("max_batch_size: 0")
    world.manager.start()
    assert not world.manager.resolve("m", "").servable.batchable


def test_a_managed_models_limits_hold_and_its_version_policy_does_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for factor in (1.0, 2.0):
        models.publish(world.models_dir, "m", models.scaled(factor))
    world.configure("max_batch_size: 4\nversion_policy { all {} }")
    with caplog.at_level(logging.WARNING):
        world.manager.start()
    assert world.states() == {1: READY, 2: UNLOADED}
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 4
    assert [record.getMessage() for record in caplog.records] == [
        (
            "model 'm': config.pbtxt: not honoured: version_policy (the champion and the previous "
            "one are loaded)"
        )
    ]
    before = world.manager.resolve("m", "")
    world.configure("max_batch_size: 2")
    world.follow()
    assert world.manager.resolve("m", "") is not before
    world.follow()
    assert world.manager.resolve("m", "").servable.settings.max_batch_size == 2


def test_a_warning_is_given_once_per_model_and_again_when_it_changes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> int:
        return len([each for each in caplog.records if "not honoured" in each.getMessage()])

    world.write(1, 2, 3)
    world.configure("instance_group {}  version_policy { all {} }")
    with caplog.at_level(logging.WARNING):
        world.manager.start()
        assert said() == 1
        world.configure("optimization {}  version_policy { all {} }")
        world.follow()
        assert said() == 2
