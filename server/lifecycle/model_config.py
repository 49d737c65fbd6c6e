"""config.pbtxt: how a model of a Triton repository says what it takes and how it wants to be run.

`read` turns the file into a `ModelConfigFile`, `parse_json` what an operator sends in its place;
`mismatch` compares either with what onnxruntime says of a version. All are pure but for the reading.
A configuration that contradicts itself or its directory refuses every version of the model. A field
that Trimtab does not honour, or that a newer Triton has, never does: `ignored` names it, and the
lifecycle says so once.

protobuf's own parser stops at `instance_group [ { ... } ]` where it does not know the field, which
is how most files are written. So unknown fields are found and blanked before it reads the text, and
what it complains of keeps its line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format

from trimtab.proto import model_config_pb2 as pb
from trimtab.registry.manifest import Signature, TensorSpec

from ..inference.model_settings import ModelSettings
from ..inference.onnx_session import PLATFORM, LoadError, one_line
from ..inference.servable import MODEL_FILE
from ..inference.tensor import BYTES, shape_text
from .version_plan import VersionPolicy

FILE_NAME = "config.pbtxt"
PARAMETER = "config"  # of a load, in place of the file
BACKEND = "onnxruntime"

_DATA_TYPES: Mapping[str, pb.DataType] = {
    "BOOL": pb.TYPE_BOOL,
    "UINT8": pb.TYPE_UINT8,
    "UINT16": pb.TYPE_UINT16,
    "UINT32": pb.TYPE_UINT32,
    "UINT64": pb.TYPE_UINT64,
    "INT8": pb.TYPE_INT8,
    "INT16": pb.TYPE_INT16,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "FP16": pb.TYPE_FP16,
    "FP32": pb.TYPE_FP32,
    "FP64": pb.TYPE_FP64,
    BYTES: pb.TYPE_STRING,
}

_HONOURED = {
    "name",
    "max_batch_size",
    *(f"{of}{each}" for of in ("input", "output") for each in ("", ".name", ".data_type", ".dims")),
    "dynamic_batching",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.default_queue_policy",
    "dynamic_batching.default_queue_policy.max_queue_size",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "version_policy",
    "version_policy.latest",
    "version_policy.latest.num_versions",
    "version_policy.all",
    "version_policy.specific",
    "version_policy.specific.versions",
    # Nothing to honour: ModelConfig repeats them to clients.
    "metric_tags",
    "metric_tags.key",
    "metric_tags.value",
    "parameters",
    "parameters.key",
    "parameters.value",
    "parameters.value.string_value",
}


@dataclass(frozen=True)
class ModelConfigFile:
    """What a config.pbtxt says, or what stands in its place; the defaults: there is none."""

    origin: str = FILE_NAME  # how it is called where something is wrong with it
    settings: ModelSettings = field(default_factory=ModelSettings)
    version_policy: VersionPolicy = field(default_factory=VersionPolicy)
    says_version_policy: bool = False
    ignored: tuple[str, ...] = ()  # fields that are not honoured, as dotted paths


def read(directory: Path) -> ModelConfigFile:
    """The file of the model in `directory`, which need not have one. Raises LoadError."""
    try:
        text = (directory / FILE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ModelConfigFile()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{FILE_NAME} cannot be read: {one_line(error)}") from error
    return parse(text, directory.name)


def parse(text: str, model: str) -> ModelConfigFile:
    """Raises LoadError."""
    known, said, unknown = _without_unknown_fields(text)
    written = pb.ModelConfig()
    try:
        text_format.Parse(known, written)
    except text_format.ParseError as error:
        raise LoadError(f"{FILE_NAME} is not a model configuration: {one_line(error)}") from error
    return _understood(written, said, unknown, model, FILE_NAME)


def parse_json(text: str, model: str) -> ModelConfigFile:
    """Raises LoadError."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("it is no object")
        written = json_format.ParseDict(values, pb.ModelConfig(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.Error) as error:
        raise LoadError(f"{PARAMETER} is not a model configuration: {one_line(error)}") from error
    said: set[str] = set()
    unknown: set[str] = set()
    for path, known in _json_fields(values, pb.ModelConfig.DESCRIPTOR, ""):
        (said if known else unknown).add(path)
    return _understood(written, said, unknown, model, PARAMETER)


def _understood(
    written: pb.ModelConfig, said: set[str], unknown: set[str], model: str, origin: str
) -> ModelConfigFile:
    if written.name and written.name != model:
        raise LoadError(f"{origin} is named '{written.name}' but its directory '{model}'")
    if written.max_batch_size < 0:
        raise LoadError(f"{origin}: max_batch_size {written.max_batch_size} is less than 0")
    max_batch_size: int | None = written.max_batch_size
    if "max_batch_size" not in said and not {"input", "output"} & said:
        max_batch_size = None
    batching = written.dynamic_batching
    queue = batching.default_queue_policy
    delay = "dynamic_batching.max_queue_delay_microseconds" in said
    return ModelConfigFile(
        origin=origin,
        settings=ModelSettings(
            max_batch_size=max_batch_size,
            max_queue_delay_us=batching.max_queue_delay_microseconds if delay else None,
            max_queue_size=queue.max_queue_size or None,
            default_timeout_us=queue.default_timeout_microseconds,
            written=written,
        ),
        version_policy=_version_policy(written.version_policy),
        says_version_policy="version_policy" in said,
        ignored=tuple(sorted({*unknown, *_not_honoured(said, written)})),
    )


def mismatch(config: ModelConfigFile, signature: Signature) -> str:
    """Why a version of this signature is not the model that is described; empty: it is."""
    settings, origin = config.settings, config.origin
    if settings.max_batch_size:
        for spec in [*signature.inputs, *signature.outputs]:
            if not spec.shape or spec.shape[0] != -1:
                return (
                    f"{origin} says max_batch_size {settings.max_batch_size}, but '{spec.name}' "
                    f"has no batch dimension: its shape is {shape_text(spec.shape)}"
                )
    written = settings.written
    batched = bool(settings.max_batch_size)
    return _differing(f"{origin}: input", written.input, signature.inputs, batched) or _differing(
        f"{origin}: output", written.output, signature.outputs, batched
    )


def data_type(datatype: str) -> pb.DataType:
    """TYPE_FP32 of FP32."""
    return _DATA_TYPES[datatype]


def _differing(
    kind: str,
    written: Sequence[pb.ModelInput | pb.ModelOutput],
    specs: Sequence[TensorSpec],
    batched: bool,
) -> str:
    by_name = {spec.name: spec for spec in specs}
    for tensor in written:
        where = f"{kind} '{tensor.name}'"
        spec = by_name.get(tensor.name)
        if spec is None:
            return f"{where} is none of {MODEL_FILE}, which has {', '.join(map(repr, by_name))}"
        if tensor.data_type and tensor.data_type != data_type(spec.datatype):
            return (
                f"{where} is {pb.DataType.Name(tensor.data_type)}, but in {MODEL_FILE} it is "
                f"{pb.DataType.Name(data_type(spec.datatype))}"
            )
        shape = spec.shape[1:] if batched else spec.shape
        dims = tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        if not dims and not tensor.HasField("reshape"):
            continue  # not said
        if len(dims) != len(shape) or any(
            size not in (-1, dim) for dim, size in zip(dims, shape, strict=True)
        ):
            called = "reshape" if tensor.HasField("reshape") else "dims"
            after = " after the batch dimension" if batched else ""
            return (
                f"{where} has {called} {shape_text(dims)}, but in {MODEL_FILE} it has "
                f"{shape_text(shape)}{after}"
            )
    return ""


def _version_policy(written: pb.ModelVersionPolicy) -> VersionPolicy:
    choice = written.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        return VersionPolicy(latest=0, only=frozenset(written.specific.versions))
    return VersionPolicy(latest=written.latest.num_versions or 1)


def _not_honoured(said: set[str], written: pb.ModelConfig) -> set[str]:
    """Of the fields that we know, those that change nothing here though they would elsewhere."""
    ignored = said - _HONOURED
    for path, same in (
        ("platform", written.platform in ("", PLATFORM)),
        ("backend", written.backend in ("", BACKEND)),
        ("default_model_filename", written.default_model_filename in ("", MODEL_FILE)),
        (
            "dynamic_batching.default_queue_policy.timeout_action",
            written.dynamic_batching.default_queue_policy.timeout_action
            == pb.ModelQueuePolicy.REJECT,
        ),
        # Replies of one connection need no order: each names its request.
        ("dynamic_batching.preserve_ordering", not written.dynamic_batching.preserve_ordering),
    ):
        if same:
            ignored.discard(path)
    return {path for path in ignored if path.rpartition(".")[0] not in ignored}


def _json_fields(values: Any, of: Any, prefix: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it is known) of every field that a message's JSON names; `of` describes it."""
    for each in values if isinstance(values, list) else [values]:
        for name, value in each.items() if isinstance(each, dict) else ():
            known = of.fields_by_name.get(name) or of.fields_by_camelcase_name.get(name)
            path = f"{prefix}{name if known is None else known.name}"
            yield path, known is not None
            if known is None or known.message_type is None:
                continue
            inner = known.message_type
            if inner.GetOptions().map_entry:
                value = [{"value": item} for item in value.values()]
            yield from _json_fields(value, inner, f"{path}.")


_TOKEN = re.compile(
    r"""\#[^\n]*              # a comment
      | "(?:\\.|[^"\\\n])*"   # a string
      | '(?:\\.|[^'\\\n])*'
      | [\w.+-]+              # a name, a number, an enum's value
      | \S
    """,
    re.VERBOSE,
)


def _without_unknown_fields(text: str) -> tuple[str, set[str], set[str]]:
    """(the text with unknown fields blanked, the known fields that it names, the unknown ones)."""
    scan = _Scan(text)
    scan.fields(pb.ModelConfig.DESCRIPTOR, "")
    kept = list(text)
    for start, end in scan.blank:
        kept[start:end] = ["\n" if char == "\n" else " " for char in text[start:end]]
    return "".join(kept), scan.known, scan.unknown


class _Scan:
    """Walks a text of protobuf's text format; what is malformed is left to protobuf to refuse."""

    def __init__(self, text: str) -> None:
        self._tokens = [each for each in _TOKEN.finditer(text) if not each[0].startswith("#")]
        self._at = 0
        self.known: set[str] = set()
        self.unknown: set[str] = set()
        self.blank: list[tuple[int, int]] = []

    def fields(self, of: Any, prefix: str) -> None:
        """The fields of a message, up to its closing bracket; `of` is its descriptor, or None of one
        that is unknown."""
        while (name := self._take()) not in ("", "}", ">"):
            first = self._tokens[self._at - 1]
            known = of.fields_by_name.get(name) if of is not None else None
            self._value(known.message_type if known is not None else None, f"{prefix}{name}.")
            if self._peek() in (",", ";"):
                self._take()
            if known is not None:
                self.known.add(prefix + name)
            elif of is not None and name.isidentifier():
                self.unknown.add(prefix + name)
                self.blank.append((first.start(), self._tokens[self._at - 1].end()))

    def _value(self, of: Any, prefix: str) -> None:
        token = self._take()
        if token == ":":
            token = self._take()
        if token in ("{", "<"):
            self.fields(of, prefix)
        elif token == "[":
            while self._peek() not in ("", "]"):
                self._value(of, prefix)
                if self._peek() == ",":
                    self._take()
            self._take()
        elif token[:1] in ("'", '"'):
            while self._peek()[:1] in ("'", '"'):  # strings side by side are one
                self._take()

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at = min(self._at + 1, len(self._tokens))
        return token
