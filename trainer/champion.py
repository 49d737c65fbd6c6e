"""The model that serves now, as a candidate's opponent: its graph, its signature, what it learned.

A champion whose files are damaged or which onnxruntime does not load cannot be compared with. That
must not keep a sound candidate out, so it counts as no opponent, and the reason is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.history import CHAMPION_CHANGES
from trimtab.registry.manifest import Manifest

from .dataset import Dataset
from .errors import ExportError, RecipeError
from .export import OnnxModel
from .recipe import Recipe


@dataclass(frozen=True)
class Champion:
    """The registry's champion, its graph loaded."""

    version: int
    manifest: Manifest
    model: OnnxModel
    withstood: int = 0  # candidates that were compared with it and refused

    @property
    def learned_until_ms(self) -> int | None:
        """The time of the newest row it was trained on; None where its lineage does not tell."""
        data = self.manifest.lineage.get("data")
        until = data.get("time_to_ms") if isinstance(data, Mapping) else None
        return until if isinstance(until, int) else None

    def recipe(self) -> Recipe | None:
        """The recipe it was trained by; None where its lineage has none that is valid today."""
        table = self.manifest.lineage.get("recipe")
        try:
            return Recipe.parse(table, "lineage") if isinstance(table, Mapping) else None
        except RecipeError:
            return None

    def predict(self, data: Dataset) -> NDArray[np.float64]:
        """What it would have answered to these rows, whose columns must be its own."""
        return self.model.predict(data.inputs())


def load_champion(directory: ModelDirectory) -> tuple[Champion | None, str]:
    """The champion, or None and why there is none to compare with."""
    version = directory.state().champion
    if version is None:
        return None, "there is no champion to compare with"
    withstood = _withstood(directory)
    try:
        manifest = directory.verify(version)
        graph = (directory.version_path(version) / "model.onnx").read_bytes()
        return Champion(version, manifest, OnnxModel(graph), withstood), ""
    except (RegistryError, ExportError, OSError) as error:
        return None, f"the champion, version {version}, cannot be loaded: {error}"


def _withstood(directory: ModelDirectory) -> int:
    """Refusals after a comparison, from the history since somebody last became champion."""
    found = 0
    for entry in reversed(directory.history().entries):
        if entry.kind in CHAMPION_CHANGES:
            break
        found += entry.kind == "refused" and _was_compared(entry.evidence)
    return found


def _was_compared(evidence: Mapping[str, Any]) -> bool:
    gates = evidence.get("gates")
    return isinstance(gates, list) and any(
        isinstance(gate, Mapping)
        and gate.get("name") == "champion"
        and "improvement" in (gate.get("figures") or {})
        for gate in gates
    )
