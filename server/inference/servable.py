"""One loaded version of a model: its session, what it takes and gives, and proof that it works.

`Servable.load` does everything that can fail, in this order, before anybody may send it a request:
check the files against the manifest, open the session, compare it with the manifest's signature,
warm it up, replay the golden rows. Every failure is a `LoadError` of one sentence.

Afterwards a servable never changes until `close`. `run` may be called by several threads at once.
Closing it frees the session, once nothing runs any more; the lifecycle does so off the request path.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab._native import bytes_tensor
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import Manifest, Signature, TensorSpec

from ..errors import InvalidRequestError, ModelExecutionError, TrimtabError
from . import batch, golden
from .golden import GoldenRows
from .model_settings import ModelSettings
from .onnx_session import LoadError, OpenedModel, Session, one_line, open_session
from .tensor import BYTES, DTYPES, Tensor

_logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
REFERENCE_FILE = "reference.npz"
_PROBE_ROWS = 3
_PROBE_TOLERANCE = 1e-3  # a batched kernel may add up in another order


Stage = Literal["VERIFYING", "WARMING"]
"""What a load does after it has opened the session."""


class Servable:
    """A version ready to compute; see the module. Made by `load`, or from parts by a test."""

    def __init__(
        self,
        *,
        model: str,
        version: int,
        session: Session,
        signature: Signature,
        batchable: bool,
        path: Path | None = None,
        manifest: Manifest | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.version = version
        self.signature = signature
        self.batchable = batchable  # rows of several calls may share a run
        self.path = path
        self.manifest = manifest  # None: unmanaged
        self.notes = notes
        self.settings = ModelSettings()
        self.inputs = {spec.name: spec for spec in signature.inputs}
        self.input_names = [spec.name for spec in signature.inputs]
        self.output_names = tuple(spec.name for spec in signature.outputs)
        self._session: Session | None = session
        self._outputs = {spec.name: spec.datatype for spec in signature.outputs}

    def __repr__(self) -> str:
        return f"<Servable {self.model}/{self.version}{'' if self.manifest else ' unmanaged'}>"

    @classmethod
    def load(
        cls,
        directory: ModelDirectory,
        version: int,
        *,
        managed: bool,
        on_stage: Callable[[Stage], None] = lambda _: None,
    ) -> "Servable":
        """Raises LoadError. Takes as long as the model takes; call it off the request path.

        `on_stage` is told what it begins to do.
        """
        path = directory.version_path(version)
        if not path.is_dir():
            raise LoadError(f"directory {path.name} is missing")
        manifest = None
        if managed:
            try:
                manifest = directory.verify(version)
            except RegistryError as error:
                raise LoadError(one_line(error)) from error
        try:
            opened = open_session(path / MODEL_FILE)
        except OSError as error:
            raise LoadError(f"{MODEL_FILE} cannot be read: {error}") from error
        on_stage("VERIFYING")
        signature = opened.signature
        if manifest is not None:
            signature = _agreed_signature(opened.signature, manifest.signature)
        servable = cls(
            model=directory.name,
            version=version,
            session=opened.session,
            signature=signature,
            batchable=opened.batch_dimension,
            path=path,
            manifest=manifest,
            notes=opened.notes,
        )
        rows = None
        if manifest is not None and golden.FILE_NAME in manifest.files:
            rows = golden.load(path / golden.FILE_NAME, signature)
            servable._replay(rows)
        on_stage("WARMING")
        servable._warm_up(opened, rows)
        for note in servable.notes:
            _logger.warning("%r: %s", servable, note)
        return servable

    def configure(self, settings: ModelSettings) -> None:
        """What the model's own file says; once, before an executor is made."""
        self.settings = settings
        if settings.max_batch_size == 0:
            self.batchable = False

    @property
    def reference_path(self) -> Path | None:
        """The file of the reference profile, where the version has one."""
        if self.path is None:
            return None
        file = self.path / REFERENCE_FILE
        return file if file.is_file() else None

    def close(self) -> None:
        """Frees the session as soon as nothing is running. Nothing can run any more."""
        self._session = None

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Computes the named outputs, in that order.

        Raises InvalidRequestError (a string is not UTF-8) or ModelExecutionError (also if the version
        was unloaded).
        """
        feed = {}
        for name, tensor in inputs.items():
            data = tensor.data
            feed[name] = self._strings(name, tensor) if isinstance(data, bytes) else data
        session = self._session
        if session is None:
            raise ModelExecutionError(f"model '{self.model}' version {self.version} was unloaded")
        try:
            values = session.run(outputs, feed)
            return {
                name: _as_tensor(self._outputs[name], value)
                for name, value in zip(outputs, values, strict=True)
            }
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ModelExecutionError(
                f"model '{self.model}' version {self.version} failed: {one_line(error)}"
            ) from error

    def _strings(self, name: str, tensor: Tensor) -> NDArray[Any]:
        """onnxruntime takes str objects only, and would turn bytes into their repr."""
        try:
            return bytes_tensor.decode(tensor.wire(), tensor.elements).reshape(tensor.shape)
        except ValueError as error:
            raise InvalidRequestError(
                f"input '{name}' for model '{self.model}': {error}"
            ) from error

    def _replay(self, rows: GoldenRows) -> None:
        try:
            actual = self.run(rows.inputs, tuple(rows.outputs))
        except TrimtabError as error:
            raise LoadError(f"the golden rows fail: {error}") from error
        if difference := golden.difference(rows.outputs, actual):
            raise LoadError(f"the golden rows give other results: {difference}")

    def _warm_up(self, opened: OpenedModel, rows: GoldenRows | None) -> None:
        """Runs the model, and finds out whether calls may really share a run of it.

        A first dimension of any size need not be a batch: a model may normalise over it, or give
        one row for all. So a few rows are computed together and apart. Made-up rows can be invalid
        for a model that is fine; what fails on them is therefore not held against it.
        """
        inputs = rows.inputs if rows else _made_up(self.signature, opened.batch_dimension)
        count = next(iter(inputs.values())).shape[0] if opened.batch_dimension else 1
        try:
            whole = self.run(inputs, self.output_names)
            if not opened.batch_dimension or count < 2:
                return
            parts = [
                self.run(part, self.output_names) for part in batch.split(inputs, [1, count - 1])
            ]
        except TrimtabError as error:
            _logger.info("%r: made-up rows cannot be computed: %s", self, error)
            return
        if not _same(whole, parts, count):
            self.batchable = False
            self.notes += (
                "the rows of a batch influence each other, so that its calls are run one by one",
            )


def _agreed_signature(session: Signature, manifest: Signature) -> Signature:
    """The session's signature with the manifest's column names. Raises LoadError."""
    return Signature(
        inputs=_agreed("inputs", session.inputs, manifest.inputs),
        outputs=_agreed("outputs", session.outputs, manifest.outputs),
    )


def _agreed(
    what: str, session: tuple[TensorSpec, ...], manifest: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    ours = [(spec.name, spec.datatype) for spec in session]
    theirs = [(spec.name, spec.datatype) for spec in manifest]
    if sorted(ours) != sorted(theirs):
        raise LoadError(
            f"{MODEL_FILE} has the {what} {_listed(ours)} but the manifest says {_listed(theirs)}"
        )
    columns = {spec.name: spec.columns for spec in manifest}
    agreed = []
    for spec in session:
        names = columns[spec.name]
        width = (*spec.shape[1:], 1)[0] if 1 <= len(spec.shape) <= 2 else None
        if names and width not in (-1, len(names)):
            raise LoadError(
                f"the manifest names {len(names)} columns of '{spec.name}', whose shape is "
                f"{list(spec.shape)}"
            )
        agreed.append(
            TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape, columns=names)
        )
    return tuple(agreed)


def _listed(specs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {datatype}" for name, datatype in specs)


def _as_tensor(datatype: str, value: NDArray[Any]) -> Tensor:
    if datatype == BYTES:
        return Tensor(BYTES, value.shape, bytes_tensor.encode(value.ravel()))
    if not value.flags.c_contiguous:
        value = np.ascontiguousarray(value)
    return Tensor(datatype, value.shape, value)


def _made_up(signature: Signature, batch_dimension: bool) -> dict[str, Tensor]:
    """Inputs of the signature: small numbers, letters, and 1 for each size that is not fixed."""
    random = np.random.default_rng(0)
    tensors = {}
    for spec in signature.inputs:
        shape = tuple(1 if size < 0 else size for size in spec.shape)
        if batch_dimension:
            shape = (_PROBE_ROWS, *shape[1:])
        if spec.datatype == BYTES:
            letters = random.choice(np.array(["a", "b", "c"], dtype=object), size=shape)
            data = bytes_tensor.encode(np.asarray(letters, dtype=object).ravel())
            tensors[spec.name] = Tensor(BYTES, shape, data)
        elif spec.datatype.startswith("FP"):
            normal = np.asarray(random.normal(size=shape), dtype=DTYPES[spec.datatype])
            tensors[spec.name] = Tensor(spec.datatype, shape, normal)
        else:
            bits = np.asarray(random.integers(0, 2, size=shape), dtype=DTYPES[spec.datatype])
            tensors[spec.name] = Tensor(spec.datatype, shape, bits)
    return tensors


def _same(whole: Mapping[str, Tensor], parts: Sequence[Mapping[str, Tensor]], rows: int) -> bool:
    """Whether the rows computed together equal those computed apart."""
    for name, tensor in whole.items():
        apart = [part[name] for part in parts]
        if not tensor.shape or tensor.shape[0] != rows:
            return False
        counts = [1, rows - 1]
        if [each.shape for each in apart] != [(count, *tensor.shape[1:]) for count in counts]:
            return False
        joined = batch.join([{name: each} for each in apart])[name]
        if isinstance(tensor.data, bytes):
            if tensor.data != joined.data:
                return False
        elif not np.allclose(
            tensor.array(),
            joined.array(),
            rtol=_PROBE_TOLERANCE,
            atol=_PROBE_TOLERANCE,
            equal_nan=True,
        ):
            return False
    return True
