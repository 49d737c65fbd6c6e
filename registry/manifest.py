"""manifest.json: what a version consists of, how it is called, where it comes from.

It is the last file written into a version, so a directory with one is whole, and it lists every
other file with its hash, so a version that was altered is noticed. It never changes afterwards.

Beside it may lie its signature (signing.py), the one file that it does not list.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .documents import Document, encode_readable
from .names import is_plain

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
MANIFEST_FORMAT = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output."""

    name: str
    datatype: str  # as the Open Inference Protocol calls it: FP32, INT64, BYTES, ...
    shape: tuple[int, ...]  # with the batch dimension, which is the first; -1: any size
    columns: tuple[str, ...] = ()  # what the columns of a [-1, n] tensor are; empty: not known


@dataclass(frozen=True)
class Signature:
    """How a model is called."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file of a version."""

    sha256: str  # 64 hexadecimal digits
    size: int  # bytes


@dataclass(frozen=True)
class Publication:
    """Who published a version and why.

    It is here for the history's sake: if the publisher dies right after its version came into
    being, whoever writes next enters it into the history in the publisher's name.
    """

    actor: str = ""
    reason: str = ""
    event_time_ms: int = 0
    champion_if_first: bool = False


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    format: int
    model: str  # the name it was published under
    created_ms: int
    files: Mapping[str, FileEntry]  # by name: every file but the manifest and its signature
    signature: Signature
    task: str  # regression, binary, multiclass
    lineage: Mapping[str, Any]  # data, recipe, libraries, seed, trigger: whatever the trainer tells
    metrics: Mapping[str, float]  # NaN where a metric is not defined
    publication: Publication = Publication()

    def to_json(self) -> str:
        """TypeError if the lineage holds what JSON cannot express."""
        parts = {
            "files": {name: vars(entry) for name, entry in self.files.items()},
            "signature": asdict(self.signature),
            "publication": vars(self.publication),
        }
        return encode_readable(vars(self) | parts).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """ValueError naming the key that is missing or not of its type."""
        document = Document.parse(text)
        format_ = document.integer("format")
        if format_ != MANIFEST_FORMAT:
            raise ValueError(f"format is {format_}, this Trimtab reads {MANIFEST_FORMAT}")
        metrics = document.nested("metrics")
        publication = document.nested("publication")
        return cls(
            format=format_,
            model=document.text("model"),
            created_ms=document.integer("created_ms"),
            files=_files(document.nested("files")),
            signature=signature_from(document.nested("signature")),
            task=document.text("task"),
            lineage=document.mapping("lineage"),
            metrics={name: metrics.number(name) for name in metrics},
            publication=Publication(
                actor=publication.text("actor"),
                reason=publication.text("reason"),
                event_time_ms=publication.integer("event_time_ms"),
                champion_if_first=publication.boolean("champion_if_first"),
            ),
        )


def signature_from(document: Document) -> Signature:
    """A signature as it is in a manifest; ValueError as in `Manifest.from_json`."""
    return Signature(
        inputs=tuple(map(_tensor, document.sequence("inputs"))),
        outputs=tuple(map(_tensor, document.sequence("outputs"))),
    )


def _tensor(document: Document) -> TensorSpec:
    return TensorSpec(
        name=document.text("name"),
        datatype=document.text("datatype"),
        shape=document.integers("shape"),
        columns=document.texts("columns"),
    )


def _files(document: Document) -> dict[str, FileEntry]:
    entries = {}
    for name in document:
        if not is_plain(name) or name in (MANIFEST_NAME, SIGNATURE_NAME):
            raise ValueError(f"files: {name!r} is not allowed as the name of a file")
        entry = document.nested(name)
        sha256 = entry.text("sha256")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"files.{name}.sha256 is not 64 hexadecimal digits")
        entries[name] = FileEntry(sha256, entry.integer("size"))
    return entries
