"""`reference.npz`: the columns of a reference profile as arrays, one per field over all features.

Format 2 has two fields more than format 1, which is read too: how many rows a numeric feature's
moments are of (in format 1: all that are not missing, which counts infinities in), and importances.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import npz_file
from .reference_feature import CategoricalFeature, Feature, NumericFeature

FORMAT = 2
_MOMENTS = ("minimum", "maximum", "mean", "std")

Tensor: TypeAlias = tuple[str, Any, tuple[Feature, ...]]
"""Name, role and features."""


class ReferenceFormatError(Exception):
    """A file is not a reference profile; the message says which file and what is wrong with it."""


def write(path: Path, rows: int, tensors: Sequence[Tensor]) -> None:
    """Writes one file, of the same bytes for the same content; OSError."""
    arrays: dict[str, NDArray[Any]] = {}
    for index, (_, _, features) in enumerate(tensors):
        for key, array in _arrays_of(features).items():
            arrays[f"{index}.{key}"] = array
    header = {
        "format": FORMAT,
        "rows": rows,
        "tensors": [
            {
                "tensor": tensor,
                "role": role,
                "kind": "categorical" if _is_categorical(features) else "numeric",
                "features": [feature.name for feature in features],
            }
            for tensor, role, features in tensors
        ],
    }
    npz_file.write(path, header, arrays)


def read(path: Path) -> tuple[int, list[Tensor]]:
    """Rows and tensors; ReferenceFormatError for what `write` never wrote, OSError."""
    file = npz_file.NpzFile(path, ReferenceFormatError)
    number = file.format(1, FORMAT)
    rows = file.field(file.header, "rows", int)
    entries = file.field(file.header, "tensors", list)
    try:
        return rows, [_tensor(file, number, index, entry) for index, entry in enumerate(entries)]
    except ValueError as error:
        file.fail(str(error))


def _is_categorical(features: Sequence[Feature]) -> bool:
    return bool(features) and isinstance(features[0], CategoricalFeature)


def _arrays_of(features: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """One array per field over all features, with the lengths of the pieces beside."""
    numeric = [feature for feature in features if isinstance(feature, NumericFeature)]
    categorical = [feature for feature in features if isinstance(feature, CategoricalFeature)]
    unknown = [np.nan if f.importance is None else f.importance for f in features]
    common: dict[str, NDArray[Any]] = {
        "missing": np.array([feature.missing for feature in features], np.uint64),
        "counts": np.concatenate(
            [np.empty(0, np.uint64), *(feature.counts for feature in features)]
        ),
        "importance": np.array(unknown, np.float64),
    }
    if not categorical:
        return common | {
            "edges": np.concatenate([np.empty(0, np.float32), *(f.edges for f in numeric)]),
            "edge_counts": np.array([len(f.edges) for f in numeric], np.int64),
            "moments": np.array(
                [[getattr(f, field) for field in _MOMENTS] for f in numeric], np.float64
            ).reshape(-1, len(_MOMENTS)),
            "finite": np.array([f.moment_rows() for f in numeric], np.uint64),
        }
    texts = [text for f in categorical for text in (*f.kept, *f.rare)]
    return common | {
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "text_lengths": np.array([len(text) for text in texts], np.int64),
        "kept_counts": np.array([len(f.kept) for f in categorical], np.int64),
        "rare_counts": np.array([len(f.rare) for f in categorical], np.int64),
        "other": np.array([f.other for f in categorical], np.uint64),
        "expected_unseen": np.array([f.expected_unseen for f in categorical], np.float64),
    }


def _tensor(file: npz_file.NpzFile, number: int, index: int, entry: object) -> Tensor:
    names = file.strings(entry, "features", f"the name of a feature of tensor {index}")
    kind = file.field(entry, "kind", str)
    if kind not in ("numeric", "categorical"):
        file.fail(f"kind of tensor {index} is {kind!r}, not numeric or categorical")
    importances: list[float | None] = [None] * len(names)
    if number >= 2:
        known = file.array(f"{index}.importance", np.float64, (len(names),)).tolist()
        importances = [None if np.isnan(value) else value for value in known]
    features: Sequence[Feature] = (
        _numeric(file, number, index, names, importances)
        if kind == "numeric"
        else _categorical(file, index, names, importances)
    )
    return file.field(entry, "tensor", str), file.field(entry, "role", str), tuple(features)


def _numeric(
    file: npz_file.NpzFile,
    number: int,
    index: int,
    names: Sequence[str],
    importances: Sequence[float | None],
) -> list[NumericFeature]:
    width = len(names)
    edge_counts = file.lengths(f"{index}.edge_counts", width)
    edges = file.array(f"{index}.edges", np.float32, (sum(edge_counts),))
    counts = file.array(f"{index}.counts", np.uint64, (sum(edge_counts) + width,))
    missing = file.array(f"{index}.missing", np.uint64, (width,)).tolist()
    moments = file.array(f"{index}.moments", np.float64, (width, len(_MOMENTS))).tolist()
    finite: list[int | None] = [None] * width
    if number >= 2:
        finite = file.array(f"{index}.finite", np.uint64, (width,)).tolist()
    features = []
    at = 0
    for i, name in enumerate(names):
        end = at + edge_counts[i]
        minimum, maximum, mean, std = moments[i]
        features.append(
            NumericFeature(
                name,
                edges[at:end],
                counts[at + i : end + i + 1],
                missing[i],
                minimum,
                maximum,
                mean,
                std,
                finite=finite[i],
                importance=importances[i],
            )
        )
        at = end
    return features


def _categorical(
    file: npz_file.NpzFile,
    index: int,
    names: Sequence[str],
    importances: Sequence[float | None],
) -> list[CategoricalFeature]:
    width = len(names)
    kept = file.lengths(f"{index}.kept_counts", width)
    rare = file.lengths(f"{index}.rare_counts", width)
    lengths = file.lengths(f"{index}.text_lengths", sum(kept) + sum(rare))
    text = file.array(f"{index}.text", np.uint8, (sum(lengths),)).tobytes()
    counts = file.array(f"{index}.counts", np.uint64, (sum(kept),))
    other = file.array(f"{index}.other", np.uint64, (width,)).tolist()
    missing = file.array(f"{index}.missing", np.uint64, (width,)).tolist()
    unseen = file.array(f"{index}.expected_unseen", np.float64, (width,)).tolist()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    texts = [text[end - size : end] for end, size in zip(ends, lengths, strict=True)]
    features = []
    at = counted = 0
    for i, name in enumerate(names):
        middle = at + kept[i]
        end = middle + rare[i]
        features.append(
            CategoricalFeature(
                name=name,
                kept=tuple(texts[at:middle]),
                counts=counts[counted : counted + kept[i]],
                rare=tuple(texts[middle:end]),
                other=other[i],
                missing=missing[i],
                expected_unseen=unseen[i],
                importance=importances[i],
            )
        )
        at, counted = end, counted + kept[i]
    return features
