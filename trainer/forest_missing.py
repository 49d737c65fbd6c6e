"""Tells an ONNX forest which way missing values go: skl2onnx sends all of them to the right.

scikit-learn's decision trees, and forests of them, learn at each split on which side a missing
value belongs (`tree_.missing_go_to_left`), and skl2onnx 1.20 drops that: with a tenth of the values
missing, one label in ten was another one (sklearn-onnx issue 1253). The flags are written into the
converted graph here. Trees of the graph are recognised by their shape and thresholds, not by their
place, so forests inside of a calibration, a vote or a stack are found as well.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .errors import ExportError

_FLAGS = "nodes_missing_value_tracks_true"


def write_missing_directions(graph: onnx.ModelProto, fitted: Any) -> int:
    """Sets the flags of every tree of `fitted`, in place; returns the number of trees set.

    ExportError if one of the fitted trees is not in the graph: its missing values would go astray.
    """
    trees = list(_trees(fitted, set()))
    if not trees:
        return 0
    known: dict[bytes, list[Any]] = {}
    for tree in trees:
        known.setdefault(_shape_of_fitted(tree), []).append(tree)
    written: set[int] = set()
    count = 0
    for node in graph.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        attributes = {item.name: item for item in node.attribute}
        columns = {
            name: np.array(attributes[f"nodes_{name}"].ints)
            for name in ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
        }
        values = np.array(attributes["nodes_values"].floats)
        leaf = np.array([mode == b"LEAF" for mode in attributes["nodes_modes"].strings])
        flags = np.array(attributes[_FLAGS].ints if _FLAGS in attributes else [0] * len(leaf))
        for number in np.unique(columns["treeids"]):
            rows = np.flatnonzero(columns["treeids"] == number)
            rows = rows[np.argsort(columns["nodeids"][rows])]
            branch = ~leaf[rows]
            shape = _shape(
                branch,
                columns["featureids"][rows],
                columns["truenodeids"][rows],
                columns["falsenodeids"][rows],
            )
            for tree in known.get(shape, ()):
                if np.allclose(values[rows][branch], tree.threshold[branch], rtol=1e-6):
                    flags[rows] = np.where(branch, tree.missing_go_to_left, 0)
                    written.add(id(tree))
                    count += 1
                    break
        if _FLAGS in attributes:
            node.attribute.remove(attributes[_FLAGS])
        node.attribute.append(onnx.helper.make_attribute(_FLAGS, flags.astype(int).tolist()))
    # Two fitted trees may be the same one: either of them stands for both.
    if len(written) < len({_identity(tree) for tree in trees}):
        raise ExportError(
            f"{len(trees) - len(written):,} of the forest's {len(trees):,} trees are not found in "
            "the converted graph, so missing values would go astray in them: put a SimpleImputer "
            "before the forest, or use hist_gradient_boosting"
        )
    return count


def _trees(fitted: Any, seen: set[int]) -> Iterator[Any]:
    """The arrays of every decision tree that is somewhere inside of a fitted estimator."""
    if id(fitted) in seen:
        return
    seen.add(id(fitted))
    if isinstance(fitted, list | tuple):
        children: Any = fitted
    elif isinstance(fitted, np.ndarray):
        children = fitted.ravel() if fitted.dtype == object else ()
    elif hasattr(fitted, "tree_"):
        yield fitted.tree_
        return
    elif type(fitted).__module__.startswith("sklearn.") and hasattr(fitted, "__dict__"):
        children = vars(fitted).values()
    else:
        children = ()
    for child in children:
        yield from _trees(child, seen)


def _shape_of_fitted(tree: Any) -> bytes:
    left, right = tree.children_left, tree.children_right
    return _shape(left != -1, tree.feature, left, right)


def _shape(
    branch: NDArray[Any], feature: NDArray[Any], left: NDArray[Any], right: NDArray[Any]
) -> bytes:
    parts = [np.flatnonzero(branch), *(each[branch] for each in (feature, left, right))]
    return b"|".join([str(len(branch)).encode(), *(p.astype(np.int64).tobytes() for p in parts)])


def _identity(tree: Any) -> bytes:
    parts = (tree.threshold.astype(np.float32), tree.missing_go_to_left)
    return _shape_of_fitted(tree) + b"".join(part.tobytes() for part in parts)
