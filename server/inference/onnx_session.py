"""The one place that imports onnxruntime: how a model file becomes a session, and what it takes.

A session is opened for one thread that never spins: parallelism comes from running several versions
and from batching, and a spinning pool would take the second core from the transport. The memory
arena and memory pattern are off because batch sizes vary from run to run, and what an arena once
took it keeps for the life of the session.
"""

import os

# The Linux wheel of 1.32 reports usage home by default and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
from numpy.typing import NDArray

from trimtab.registry import model_file
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import Signature, TensorSpec

from .tensor import DATATYPES_OF_ONNX

PLATFORM = "onnxruntime_onnx"
_LOG_NOTHING = 4  # whatever fails is raised, and told to the caller

# Files above this are looked through before onnxruntime gets them: it may read gigabytes of garbage
# into memory before it says so (2 GiB in one string: 17 s and 3 GB).
_LOOKED_THROUGH_BYTES = 64 << 20


class LoadError(Exception):
    """A version cannot be served; the message is one sentence that says why."""


class Session(Protocol):
    """What a servable needs of onnxruntime.InferenceSession."""

    def run(
        self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]: ...


@dataclass(frozen=True)
class OpenedModel:
    """A session and what it says about itself."""

    session: Session
    signature: Signature  # columns empty: a model file does not name them
    batch_dimension: bool  # by its shapes, rows of several calls can share a run
    notes: tuple[str, ...]  # what an operator should know, in sentences


def open_session(file: Path) -> OpenedModel:
    """Raises LoadError; OSError. External data is taken from the file's own directory only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _LOG_NOTHING
    if not file.is_file():
        raise LoadError(f"{file.name} is missing")
    size = file.stat().st_size
    if size == 0:
        raise LoadError(f"{file.name} is empty")
    if size > _LOOKED_THROUGH_BYTES and (reason := _not_a_model(file)):
        raise LoadError(reason)
    _check_external_files(file)
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = _not_a_model(file) or one_line(error)
        raise LoadError(f"onnxruntime refuses {file.name}: {reason}") from error
    inputs = list(session.get_inputs())
    if not inputs:
        raise LoadError(f"{file.name} has no inputs")
    for each in inputs:
        if each.type not in DATATYPES_OF_ONNX:
            raise LoadError(f"input '{each.name}' is of type {each.type}, which cannot be served")
    outputs = [each for each in session.get_outputs() if each.type in DATATYPES_OF_ONNX]
    notes = tuple(
        f"output '{each.name}' is of type {each.type} and is not served"
        + ("; export the model with zipmap=False" if each.type.startswith("seq(map(") else "")
        for each in session.get_outputs()
        if each.type not in DATATYPES_OF_ONNX
    )
    if not outputs:
        raise LoadError(f"{file.name} has no output that can be served: {'; '.join(notes)}")
    return OpenedModel(
        session=session,
        signature=Signature(
            inputs=tuple(_spec(each) for each in inputs),
            outputs=tuple(_spec(each) for each in outputs),
        ),
        batch_dimension=has_batch_dimension(
            [each.shape for each in inputs], [each.shape for each in outputs]
        ),
        notes=notes,
    )


def _not_a_model(file: Path) -> str:
    """What can be said against a file without onnxruntime, and is said better; else empty."""
    try:
        model_file.check(file)
    except RegistryError as error:
        return one_line(error)
    return ""


def _check_external_files(file: Path) -> None:
    """LoadError if the model keeps weights anywhere else than in or below its own directory.

    onnxruntime 1.32 refuses that too, and older ones do not in every case.
    """
    try:
        names = model_file.external_files(file)
    except RegistryError:
        return  # onnxruntime says so too
    home = file.parent.resolve()
    for name in names:
        try:
            inside = not Path(name).is_absolute() and (home / name).resolve().is_relative_to(home)
        except (OSError, ValueError, RuntimeError):  # a loop of links, a null character
            inside = False
        if not inside:
            raise LoadError(f"{file.name} keeps weights in {name!r}, outside of its own directory")


def has_batch_dimension(
    inputs: Sequence[Sequence[int | str | None]], outputs: Sequence[Sequence[int | str | None]]
) -> bool:
    """Whether every tensor begins with a dimension of any size, and the inputs with the same one.

    The names of the outputs' dimensions are not compared: exporters invent names for them.
    """
    for shape in [*inputs, *outputs]:
        if not shape or isinstance(shape[0], int):
            return False
    return len({shape[0] for shape in inputs if shape[0] is not None}) <= 1


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception's text for a message that must stay one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(
        name=node.name, datatype=DATATYPES_OF_ONNX[node.type], shape=shape, columns=()
    )
